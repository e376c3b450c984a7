"MLServer with adaptive batching (settings.json and model-settings.json are written by the bench)."
import numpy as np
from common import INPUTS, SESSION
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput


class Model(MLModel):
    async def load(self) -> bool: return True

    async def predict(self, payload):
        given = {i.name: getattr(i.data, "root", i.data) for i in payload.inputs}
        feeds = {}
        for name, kind in INPUTS.items():
            if kind == "number": feeds[name] = np.asarray(given[name], np.float64).reshape(-1)
            else:
                texts = [v.decode() if isinstance(v, bytes) else v for v in given[name]]
                feeds |= {name: np.array(texts, object), f"{name}__null": np.zeros(len(texts), bool)}
        scores = SESSION.run(["score"], feeds)[0]
        output = ResponseOutput(name="score", shape=[len(scores), 1], datatype="FP32", data=scores.tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])
