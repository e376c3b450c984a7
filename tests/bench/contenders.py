"How each server of `serve.py` is started and asked: one worker, batches where it has them, no log of requests."
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from environments import environment

APPS = Path(__file__).resolve().parent/"serve_peers"
MODEL = ["onnxruntime==1.32.0", "numpy==2.4.6", "orjson==3.13.0"]
UVICORN = ["uvicorn==0.54.0", "starlette==1.10.0", "httptools==0.9.0", "uvloop==0.23.0"]
OURS, UNSEEN = "scalai serve", "scalai serve, not observed"  # what observing costs is the difference
ECHO, STARLETTE = "uvicorn echo", "Starlette, a call a request"
GRANIAN, LITSERVE, BENTOML = "granian, batches as ours", "LitServe, batches", "BentoML, adaptive batches"
MLSERVER, RAY = "MLServer, adaptive batches", "Ray Serve, batches"


@dataclass
class Start:
    "What a contender is started with."
    python: Path
    port: int
    folder: Path  # of the workspace; the working directory
    workers: int = 1

    def uvicorn(self, app: str) -> list:
        return [self.python, "-m", "uvicorn", app, "--port", self.port, "--http", "httptools", "--loop", "uvloop",
                "--no-access-log", "--log-level", "error"]


@dataclass
class Contender:
    command: Callable[[Start], list]
    path: str = "/predict"
    body: Callable[[dict], dict] = lambda row: {"rows": [row]}  # of one row
    environment: str = ""  # its name; "": this Python's own
    packages: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Start, dict], None] = lambda start, env: None

    def python(self) -> Path:
        "Raises `RuntimeError` where its packages cannot be installed."
        return environment(self.environment, self.packages) if self.environment else Path(sys.executable)


def ours(start: Start) -> list:
    return [start.python.with_name("scalai"), "serve", "late", "--port", start.port, "--workers", start.workers]


def tensors(row: dict) -> dict:
    "A row as the Open Inference Protocol has it."
    kind = lambda v: "BYTES" if isinstance(v, str) else "FP64"
    return {"inputs": [{"name": k, "shape": [1, 1], "datatype": kind(v), "data": [v]} for k, v in row.items()]}


def mlserver_files(start: Start, env: dict):
    ports = {f"{name}_port": start.port + i for i, name in enumerate(("http", "grpc", "metrics"))}
    write = lambda name, document: (start.folder/name).write_text(json.dumps(document))
    write("settings.json", ports | {"host": "127.0.0.1", "parallel_workers": 0, "debug": False,
                                    "use_structured_logging": False})
    write("model-settings.json", {"name": "late", "implementation": "mlserver_runtime.Model", "max_batch_size": 64,
                                  "max_batch_time": .001})


def mlflow_files(start: Start, env: dict):
    if (start.folder/"pyfunc").exists(): return
    command = [start.python, APPS/"mlflow_model.py", start.folder/"pyfunc"]
    subprocess.run(command, check=True, capture_output=True, cwd=start.folder, env=env)


def script(name: str) -> Callable[[Start], list]: return lambda start: [start.python, APPS/name, start.port]


def program(start: Start, name: str) -> Path: return start.python.with_name(name)


CONTENDERS = {
    ECHO: Contender(lambda s: s.uvicorn("uvicorn_apps:echo")),
    STARLETTE: Contender(lambda s: s.uvicorn("uvicorn_apps:starlette")),
    OURS: Contender(ours, "/models/late/predict", env={"SCALAI_SERVE__FLUSH": "4"}),  # a measurement has one
    UNSEEN: Contender(ours, "/models/late/predict", env={"SCALAI_SERVE__OBSERVE": "false"}),
    GRANIAN: Contender(
        lambda s: [program(s, "granian"), "granian_app:app", "--port", s.port, "--interface", "rsgi", "--loop",
                   "uvloop", "--workers", 1, "--no-ws", "--no-access-log", "--log-level", "error"],
        environment="granian", packages=["granian==2.8.9", "uvloop==0.23.0", *MODEL]),
    "FastAPI, a call a request": Contender(
        lambda s: s.uvicorn("fastapi_app:app"), body=lambda row: row, environment="fastapi",
        packages=["fastapi==0.165.0", "pydantic==2.14.4", *UVICORN, *MODEL]),
    LITSERVE: Contender(
        script("litserve_server.py"), body=lambda row: row, environment="litserve",
        packages=["litserve==0.2.19", "fastapi==0.165.0", *UVICORN, *MODEL]),
    BENTOML: Contender(
        lambda s: [program(s, "bentoml"), "serve", "bentoml_service:Model", "--host", "127.0.0.1", "--port", s.port],
        body=lambda row: {"row": [row]}, environment="bentoml", env={"BENTOML_DO_NOT_TRACK": "True"},
        packages=["bentoml==1.4.40", *UVICORN, *MODEL]),
    MLSERVER: Contender(
        lambda s: [program(s, "mlserver"), "start", s.folder], "/v2/models/late/infer", tensors,
        environment="mlserver", prepare=mlserver_files,
        packages=["mlserver==1.7.1", "fastapi==0.115.14", "uvicorn==0.54.0", "httptools==0.9.0", "uvloop==0.23.0",
                  *MODEL]),
    "KServe's Python server": Contender(
        script("kserve_server.py"), "/v1/models/late:predict", lambda row: {"instances": [row]},
        environment="kserve", packages=["kserve==0.21.0", "fastapi==0.165.0", *UVICORN, *MODEL]),
    "mlflow models serve": Contender(
        lambda s: [program(s, "mlflow"), "models", "serve", "-m", s.folder/"pyfunc", "--env-manager", "local",
                   "--port", s.port, "--workers", 1],
        "/invocations", lambda row: {"dataframe_records": [row]}, environment="mlflow", prepare=mlflow_files,
        env={"MLFLOW_DISABLE_TELEMETRY": "true"}, packages=["mlflow==3.17.2", *UVICORN, *MODEL]),
    RAY: Contender(
        script("ray_app.py"), "/", lambda row: row, environment="ray",
        env={"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
             "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
             # how long ray waits; a raylet gives up where its agent, in Python, takes over 15 s to start
             "RAY_raylet_start_wait_time_s": "120"},
        packages=["ray[serve]==2.60.0", *UVICORN, *MODEL]),
}
