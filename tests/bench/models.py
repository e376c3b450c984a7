"""What each network reaches on real rows, compared with the gradient boosting of scikit-learn and of LightGBM.

All have the same split. Part of `make bench-learn`, or

    python tests/bench/models.py late airtime pictures [--rows 6e4] [--images 6e3] [--seeds 3] [--dry]

Every network is trained by `fit` with the settings given below, every one of them on the same rows; the held-out rows
judge it once, after the last epoch. The sections go to tests/bench/RESULTS.md as those of bench.py do.
"""

import argparse
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

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
CATEGORIES = ["carrier", "origin", "dest", "weekday", "month"]
NUMBERS = [
    "distance",
    "sched_minute",
    "dep_delay",
    "temp",
    "humid",
    "wind_speed",
    "wind_dir",
    "precip",
    "pressure",
    "visib",
]


def flights(n: int, target: str):
    """Rows of the flights beside the weather at their hour, a fifth of the days (by hash) kept aside:

    flights of one day share their weather and their jams."""
    import pandas as pd
    import pyarrow as pa

    from scalai_nb.data.hashing import fold
    from scalai_nb.loop import flights as source
    x = source.flights().to_pandas().dropna(subset=[target])
    x = x.merge(
        source.weather().to_pandas()[["origin", "time_hour", *NUMBERS[3:]]], on=["origin", "time_hour"], how="left"
    )
    x = x.sample(min(n, len(x)), random_state=0).reset_index(drop=True)
    local = pd.to_datetime(x["time_hour"], utc=True).dt.tz_convert("America/New_York")
    x = x.assign(sched_minute=x["sched_dep_time"]//100*60 + x["sched_dep_time"] % 100, weekday=local.dt.dayofweek)
    return x, fold(pa.table({"day": local.dt.strftime("%Y-%m-%d").to_numpy(object)}), "day", 5) == 0


def table(name: str, n: int, seeds: int):
    "A target of the flights: networks, and gradient boosting on the same columns with its own categories."
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    from scalai_nb.training.models import MLP
    from scalai_nb.training.networks import FTTransformer, ResidualMLP
    late = name == "late"
    x, aside = flights(n, "arr_delay" if late else "air_time")
    columns = [*CATEGORIES, *(c for c in NUMBERS if late or c != "dep_delay")]
    y = (x["arr_delay"] >= 15).to_numpy(np.float32) if late else x["air_time"].to_numpy(np.float32)
    spread = 1. if late else float(y[~aside].std())
    middle = 0. if late else float(y[~aside].mean())
    scaled, x = (y - middle)/spread, x[columns]
    made, loss = {}, "binary" if late else "regression"
    for what, step, build, how in (
        ("MLP, one-hot", "onehot", MLP, {}),
        ("ResidualMLP", "code", ResidualMLP, {}),
        ("FTTransformer", "code", FTTransformer, {}),
    ):
        prep = Prep.fit(profile(x[~aside]), dict.fromkeys(CATEGORIES, step))
        X, codes = prep.transform(x), {"cardinalities": prep.cardinalities} if step == "code" else {}
        model = lambda features, build=build, codes=codes: build(features, **codes)
        made[what] = [
            network(model, X, scaled, aside, loss, seed, epochs=EPOCHS[name], batch_size=256, lr=2e-3, **how)
            for seed in range(seeds)
        ]
        for run in made[what]: run |= measure(loss, y[aside], run.pop("said")*spread + middle)
    boosted = x.astype(dict.fromkeys(CATEGORIES, "category"))
    learner = HistGradientBoostingClassifier if late else HistGradientBoostingRegressor
    made["HistGradientBoosting"] = [
        boost(learner(categorical_features="from_dtype", random_state=s), boosted, y, aside, loss)
        for s in range(seeds)
    ]
    made["LightGBM"] = light(
        x.astype({c: str for c in CATEGORIES if x[c].dtype.kind not in "iuf"}), y, aside, loss, seeds
    )
    return made, loss, y[aside], len(x)


def pictures(name: str, n: int, seeds: int):
    "Pictures, 28 × 28; boosting takes them as 784 numbers, and learns from one seed only, as it takes long."
    from sklearn.ensemble import HistGradientBoostingClassifier

    from scalai_nb.training.networks import CNN, fashion_mnist
    (X, y), (T, t) = fashion_mnist("train"), fashion_mnist("test")
    X, y = (np.concatenate([a[:n], b]) for a, b in ((X, T), (y, t)))
    aside, loss = np.arange(len(y)) >= n, "multiclass"
    made = {
        "CNN": [
            network(CNN, X, y, aside, loss, seed, epochs=EPOCHS[name], batch_size=64, lr=5e-3) for seed in range(seeds)
        ]
    }
    for run in made["CNN"]: run |= measure(loss, t, run.pop("said"))
    made["HistGradientBoosting"] = [
        boost(HistGradientBoostingClassifier(random_state=0), X.reshape(len(X), -1), y, aside, loss)
    ]
    import pandas as pd
    made["LightGBM"] = light(pd.DataFrame(X.reshape(len(X), -1)).add_prefix("pixel_"), y, aside, loss, 1)
    return made, loss, t, len(y)


def network(model, X, y, aside, loss, seed, **how) -> dict:
    "Train once; seconds, CPU seconds, parameters and what it says of the rows kept aside."
    from scalai_nb.core.settings import Settings
    from scalai_nb.training.fit import fit
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        run = fit(
            model,
            (X[~aside], y[~aside]),
            task=loss,
            seed=seed,
            ranks=1,
            validation=None,
            settings=Settings(root=Path(folder)),
            **how,
        )
        took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    return {**took, "said": run.predict(X[aside]), "parameters": sum(p.numel() for p in run.model.parameters())}


def boost(learner, X, y, aside, loss) -> dict:
    "The same of scikit-learn's; its parameters are the nodes of its trees."
    part = (lambda rows: X[rows]) if isinstance(X, np.ndarray) else (lambda rows: X.loc[rows])
    start, cpu = time.perf_counter(), time.process_time()
    learner.fit(part(~aside), y[~aside])
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    said = learner.predict(part(aside)) if loss == "regression" else learner.predict_proba(part(aside))
    nodes = sum(len(tree.nodes) for trees in learner._predictors for tree in trees)
    return {**took, **measure(loss, y[aside], said[:, 1] if loss == "binary" else said), "parameters": nodes}


def light(x, y, aside, loss, seeds: int) -> "list[dict] | str":
    "The same of LightGBM by its defaults, in an environment of its own; why not, where that cannot be made."
    import subprocess

    from monitor import Peer
    try:
        with Peer("lightgbm") as peer:
            runs = []
            for seed in range(seeds):
                said = peer(x[~aside].assign(target=y[~aside], objective=loss, seed=seed), x[aside], ask="lightgbm")
                if "error" in said: raise RuntimeError(said["error"])
                of = said["alarms"]
                runs.append(
                    {
                        "seconds": of["seconds"],
                        "cpu": of["cpu"],
                        "parameters": of["nodes"],
                        **measure(loss, y[aside], np.array(of["said"])),
                    }
                )
            return runs
    except (RuntimeError, subprocess.CalledProcessError) as e:
        return f"not run: {e}"


def measure(task: str, y: np.ndarray, said: np.ndarray) -> dict:
    """The score, and half of its 95 % interval:

    of an AUC (DeLong) or of a share of right answers (Wilson); None for an error in units."""
    from scalai_nb.core.stats import delong, wilson
    from scalai_nb.training.objective import OBJECTIVES
    score = next(iter(OBJECTIVES[task].metrics.values()))(y, said)
    low, high = (
        (None, None)
        if task == "regression"
        else delong(y, said)[1:] if task == "binary" else wilson(round(score * len(y)), len(y))
    )
    return {"score": score, "half": None if low is None else (high - low)/2}


JOBS = {  # title -> what makes it, rows by default, what it is about, what is measured, which way is better
    "late": (table, "late by 15 minutes or more, known when the flight departs", "AUC", max),
    "airtime": (table, "minutes in the air, known before it departs", "RMSE, minutes", min),
    "pictures": (pictures, "ten classes of clothes, Fashion-MNIST's own test pictures kept aside", "accuracy", max),
}
TREES = ("HistGradientBoosting", "LightGBM")
EPOCHS = {"late": 4, "airtime": 6, "pictures": 6}


def section(name: str, made: dict, loss: str, y: np.ndarray, n: int, seeds: int, command: str, load: float) -> str:
    job, about, metric, better = JOBS[name]
    mid = lambda runs, what: statistics.median(r[what] for r in runs)
    left_out = {what: why for what, why in made.items() if isinstance(why, str)}
    made = {what: runs for what, runs in made.items() if what not in left_out}
    rank = {what: mid(runs, "score") for what, runs in made.items()}
    place = "{:.2f}" if loss == "regression" else "{:.4f}"
    lines = [
        f"## {name}, {n:,} rows",
        "",
        (
            f"{job.__doc__} {about[0].upper()}{about[1:]}; {len(y):,} rows kept aside. Networks train for"
            f" {EPOCHS[name]} epochs by `fit`; medians over the seeds."
        ),
        "",
        f"| | {metric} | every seed | parameters | seconds | CPU s |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for what, runs in made.items():
        half = None if loss == "regression" else mid(runs, "half")
        lines.append(
            f"| {what} | {place.format(rank[what])}{'' if half is None else f' ± {half:.4f}'} |"
            f" {', '.join(place.format(r['score']) for r in runs)} |"
            f" {mid(runs, 'parameters'):,.0f}{' nodes' if what in TREES else ''} | {mid(runs, 'seconds'):.1f} |"
            f" {mid(runs, 'cpu'):.1f} |"
        )
    lines += [f"| {what} | {why} | | | | |" for what, why in left_out.items()]
    best, told = better((what for what in rank if what not in TREES), key=rank.get), []
    for trees in (t for t in TREES if t in rank):
        gap, half = abs(rank[best] - rank[trees]), None if loss == "regression" else mid(made[best], "half")
        words = (
            f"{best} and {trees} differ by {place.format(gap)}, which is inside the interval"
            if half is not None and gap <= half
            else (
                f"{best} {'beats' if better(rank[best], rank[trees]) == rank[best] else 'loses to'} {trees} by"
                f" {place.format(gap)}"
            )
        )
        told.append(
            f"- {words}; its median takes {mid(made[best], 'cpu')/mid(made[trees], 'cpu'):.1f} × the CPU seconds"
        )
    return "\n".join([*lines, "", *told, "", stamp(command, load), ""])


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("jobs", nargs="*", default=list(JOBS))
    p.add_argument("--rows", type=lambda x: int(float(x)), default=60_000, help="of the flights")
    p.add_argument("--images", type=lambda x: int(float(x)), default=6_000, help="of Fashion-MNIST, to learn from")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    for name in a.jobs:
        load = os.getloadavg()[0]
        size = a.images if name == "pictures" else a.rows
        made, loss, y, n = JOBS[name][0](name, size, a.seeds)
        text = section(
            name,
            made,
            loss,
            y,
            n,
            a.seeds,
            f"python tests/bench/models.py {name} --{'images' if name == 'pictures' else 'rows'} {size} --seeds"
            f" {a.seeds}",
            load,
        )
        print(text)
        if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
