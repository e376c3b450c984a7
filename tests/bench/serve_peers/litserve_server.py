"LitServe with batches: `python litserve_server.py PORT`."
import sys

import litserve
from common import MAX_BATCH, check, predict


class Model(litserve.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return check(request)
    def predict(self, rows): return [{"score": s} for s in predict(rows)]
    def encode_response(self, output): return output


if __name__ == "__main__":
    server = litserve.LitServer(Model(max_batch_size=MAX_BATCH, batch_timeout=.0005), accelerator="cpu",
                                workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error",
               num_api_servers=1)
