"Ray Serve with batches: `python ray_app.py PORT`, until SIGTERM."
import os
import signal
import sys

import ray
from common import MAX_BATCH
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse


@serve.deployment(num_replicas=1, max_ongoing_requests=2*MAX_BATCH, ray_actor_options={"num_cpus": .1})
class Model:
    def __init__(self):
        import common
        self.common = common

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=.001)
    async def many(self, rows): return self.common.predict(rows)

    async def __call__(self, request: Request):
        try: row = self.common.check(await request.json())
        except ValueError as e: return JSONResponse({"error": str(e)}, 422)
        return JSONResponse({"score": await self.many(row)})


def stop(*_):
    serve.shutdown()
    ray.shutdown()
    os._exit(0)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000,
             _temp_dir=os.environ["SERVED"] + "/ray")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Model.bind(), route_prefix="/")
    signal.signal(signal.SIGTERM, stop)
    while True: signal.pause()
