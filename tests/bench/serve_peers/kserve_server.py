"KServe's Python server: `python kserve_server.py PORT`."
import sys

from common import check, predict
from kserve import Model, ModelServer


class Late(Model):
    def __init__(self):
        super().__init__("late")
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": [{"score": s} for s in predict([check(r) for r in payload["instances"]])]}


if __name__ == "__main__":
    ModelServer(http_port=int(sys.argv[1]), workers=1, enable_grpc=False, access_log_format=None).start([Late()])
