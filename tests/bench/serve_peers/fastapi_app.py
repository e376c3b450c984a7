"FastAPI: the row is a pydantic model, ONNX Runtime is called in the event loop for each request."
from common import INPUTS, predict
from fastapi import FastAPI
from pydantic import create_model

TYPES = {"number": float | None, "text": str | None}
Row = create_model("Row", **{name: (TYPES[kind], ...) for name, kind in INPUTS.items()})
app = FastAPI()


@app.post("/predict")
async def predicted(row: Row) -> dict[str, float]: return {"score": predict([vars(row)])[0]}
