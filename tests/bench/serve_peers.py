"""What `scalai serve` is measured beside, under uvicorn: `python -m uvicorn serve_peers:echo`.

`echo` reads and writes JSON and knows no model. `starlette` is what a team writes in an afternoon: the same file in
ONNX Runtime, called for each request, with a look at each value's type.
"""
import math
import os

import numpy as np
import onnxruntime
import orjson
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route


async def echo(scope, receive, send):
    message = await receive()
    body = orjson.dumps(orjson.loads(message["body"]))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def loaded():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


session = loaded() if "MODEL" in os.environ else None
TYPES = {i.name: i.type for i in session.get_inputs()} if session else {}


def feeds(row: dict) -> dict:
    found = {}
    for name, kind in TYPES.items():
        if kind == "tensor(bool)": continue
        value = row[name]
        if kind == "tensor(double)":
            if value is not None and type(value) not in (int, float): raise ValueError(f"{name}: a number is expected")
            found[name] = np.array([math.nan if value is None else value], np.float64)
        else:
            if value is not None and type(value) is not str: raise ValueError(f"{name}: a text is expected")
            found[name] = np.array(["" if value is None else value], object)
            found[f"{name}__null"] = np.array([value is None])
    return found


async def predict(request):
    try: row = feeds(orjson.loads(await request.body())["rows"][0])
    except (ValueError, KeyError, TypeError) as e: return Response(orjson.dumps({"error": str(e)}), 422)
    score = session.run(["score"], row)[0]
    return Response(orjson.dumps({"rows": [{"score": float(score[0])}]}), media_type="application/json")


starlette = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
