"BentoML with adaptive batching."
from typing import Any

import bentoml
from common import MAX_BATCH, check, predict


@bentoml.service(workers=1, traffic={"timeout": 60})
class Model:
    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=2000)
    def predict(self, row: list[dict[str, Any]]) -> list[dict[str, float]]:
        return [{"score": s} for s in predict([check(r) for r in row])]
