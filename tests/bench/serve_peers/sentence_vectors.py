"sentence-transformers behind FastAPI: the network in torch, or as the ONNX file that its optimizer writes."
import os
from pathlib import Path

import orjson
import torch
from fastapi import FastAPI, Response
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer, export_optimized_onnx_model

torch.set_num_threads(1)


def encoder() -> SentenceTransformer:
    if os.environ["BACKEND"] == "torch": return SentenceTransformer(os.environ["MODEL"], device="cpu")
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    how = {"provider": "CPUExecutionProvider", "session_options": options}
    folder = str(Path(os.environ["FOLDER"])/"onnx_peer")
    made = SentenceTransformer(os.environ["MODEL"], device="cpu", backend="onnx", model_kwargs=how)
    made.save_pretrained(folder)
    export_optimized_onnx_model(made, "O3", folder)
    return SentenceTransformer(folder, device="cpu", backend="onnx",
                               model_kwargs=how | {"file_name": "onnx/model_O3.onnx"})


class Request(BaseModel): rows: list[dict]


model, app = encoder(), FastAPI()


@app.post("/predict")
async def predict(request: Request):
    vectors = model.encode([r["text"] for r in request.rows], batch_size=64, normalize_embeddings=True)
    return Response(orjson.dumps({"rows": vectors}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
