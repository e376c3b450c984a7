"""Under uvicorn: `echo` reads and writes JSON and knows no model; `starlette` is what a team writes in an afternoon,
ONNX Runtime called for each request."""
import os

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


async def predicted(request):
    try: row = check(orjson.loads(await request.body())["rows"][0])
    except (ValueError, KeyError, TypeError) as e: return Response(orjson.dumps({"error": str(e)}), 422)
    return Response(orjson.dumps({"rows": [{"score": predict([row])[0]}]}), media_type="application/json")


if "MODEL" in os.environ:
    from common import check, predict

starlette = Starlette(routes=[Route("/predict", predicted, methods=["POST"])])
