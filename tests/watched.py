"A workspace as the loop leaves it, made in seconds from real flights, without training anything."

import time
from pathlib import Path

import numpy as np
import pandas as pd

FEATURES = [
    "carrier",
    "origin",
    "dest",
    "distance",
    "sched_minute",
    "weekday",
    "dep_delay",
    "temp",
    "humid",
    "wind_speed",
    "precip",
    "pressure",
    "visib",
]
MODEL, TRAINED, SHIFTED = "late", 5, 10


def features(month: int, weather: pd.DataFrame, shift: int) -> pd.DataFrame:
    "A month's flights beside the weather at their airport and hour."
    from scalai_nb.loop.flights import month_rows
    rows = (
        month_rows(month, shift=shift)
        .to_pandas()
        .dropna(subset=["arr_delay", "dep_delay"])
        .merge(weather, on=["origin", "time_hour"], how="left")
    )
    day = pd.to_datetime(dict(year=rows.year, month=rows.month, day=rows.day))
    return rows.assign(
        sched_minute=rows.sched_dep_time // 100 * 60 + rows.sched_dep_time % 100,
        weekday=day.dt.dayofweek,
        late=rows.arr_delay >= 15,
    )[[*FEATURES, "late"]]


def score(rows: pd.DataFrame) -> np.ndarray:
    "A plain logistic curve over the delay at departure and the hour: enough for an AUC near .9."
    z = -2.6 + .095 * np.clip(rows.dep_delay, -15, 90) + .0006 * rows.sched_minute + 9 * rows.precip.fillna(0)
    return (1 / (1 + np.exp(-z))).to_numpy()


def watched(root: Path, months: int = 12, shift: int = SHIFTED) -> Path:
    "Make the workspace in `root`."
    from scalai_nb.core.settings import Settings
    from scalai_nb.data import profile_store
    from scalai_nb.data.profile import profile
    from scalai_nb.loop.flights import weather as all_weather
    (root / "settings.ini").write_text("[apps]\nkernels = 4\n")
    settings = Settings.load(root)
    weather = all_weather().to_pandas()[
        ["origin", "time_hour", "temp", "humid", "wind_speed", "precip", "pressure", "visib"]
    ]
    windows, scores = {}, {}
    for month in range(1, months + 1):
        period, rows = f"2013-{month:02}", features(month, weather, shift)
        windows[period] = profile(rows)
        scored = pd.DataFrame({"score": score(rows), "label": rows.late.astype(int).astype(str)})
        scores[period] = {k: profile(scored[scored.label == k][["score"]]) for k in ("0", "1")}
        profile_store.record("features", {period: windows[period]}, batch=period, by="period", settings=settings)
        profile_store.record(
            "scores",
            {(period, k): p for k, p in scores[period].items()},
            batch=period,
            by=("period", "label"),
            settings=settings,
        )
        for airport in ("EWR", "JFK", "LGA"):
            there = rows.origin == airport
            profile_store.record(
                f"features[origin={airport}]",
                {period: profile(rows[there])},
                batch=period,
                by="period",
                settings=settings,
            )
            profile_store.record(
                f"scores[origin={airport}]",
                {(period, k): profile(scored[there & (scored.label == k)][["score"]]) for k in ("0", "1")},
                batch=period,
                by=("period", "label"),
                settings=settings,
            )
    decide_all(settings, windows, scores)
    run_some(settings)
    return root


def decide_all(settings, windows: dict, scores: dict) -> None:
    "What the policy says of every month after those that trained the model."
    from scalai_nb.loop import decisions
    from scalai_nb.monitor.decision import decide
    from scalai_nb.monitor.drift import compare
    from scalai_nb.monitor.estimation import estimate
    from scalai_nb.monitor.performance import performance
    from scalai_nb.monitor.thresholds import Policy
    reference, version = list(windows)[:TRAINED], 1
    policy = Policy(ignore=("late",), columns={"dep_delay": {"unit": "min"}}).calibrate(
        [windows[p] for p in reference]
    )
    known = {p: performance(scores[p]) for p in reference}
    for period in list(windows)[TRAINED:]:
        whole = sum(scores[period].values())
        verdict = decide(
            compare(sum(windows[p] for p in reference), windows[period], policy),
            performance(scores[period]),
            known,
            policy,
            estimate(whole, {p: scores[p] for p in reference}),
        )
        outcome = {"retrain": "promoted"}.get(verdict.action, "kept")
        decisions.record(
            MODEL,
            period,
            verdict.action,
            verdict.reasons,
            verdict.evidence,
            reference,
            version,
            outcome if outcome == "kept" else "pending",
            settings,
        )
        if outcome == "promoted":
            version += 1
            decisions.settle(
                MODEL, period, "promoted", version, f"Passed: version {version} was better on {period}.", settings
            )


def run_some(settings) -> None:
    "Two workflows in the record, the later one with a failed step."
    from scalai_nb.jobs.job_run import JobRun
    from scalai_nb.jobs.record import Record
    record, now = Record(settings), time.time()
    def ran(name, state, seconds, ago, parent=None, kind="notebook", **more):
        return record.create(
            JobRun(
                name=name,
                state=state,
                kind=kind,
                notebook=f"workflows/{name}.ipynb",
                seconds=seconds,
                parent=parent,
                created=now - ago,
                started=now - ago,
                **more,
            )
        )
    steps = dict(ingest=31.2, features=14.8, profile=4.1, train=42.5, compress=38.9, gate=6.2, score=21.7, monitor=9.4)
    for start, failed in ((7200, None), (3600, "compress")):
        whole = ran(
            "flights",
            "failed" if failed else "succeeded",
            170.0,
            start,
            kind="workflow",
            parameters={"months": 12, "ranks": 2},
            **(
                {"error": {"cell": None, "kind": "WorkFailed", "message": f"step {failed} failed"}}
                if failed
                else {"results": {"months": 12}}
            ),
        )
        at = start
        for name, seconds in steps.items():
            bad = (
                {
                    "error": {
                        "cell": 5,
                        "kind": "OutOfMemory",
                        "message": "the kernel needed 25.1 GiB, the machine has 24.0 GiB",
                    }
                }
                if name == failed
                else {"results": {"rows": 27004}}
            )
            ran(name, "failed" if name == failed else "succeeded", seconds, at, whole.id, **bad)
            at -= seconds
            if name == failed: break


def ingested(root: Path, months: int = 3) -> None:
    "A table of flights through their contract, with what it refused."
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.ingest import ingest
    from scalai_nb.loop.flights import write_month
    contract = Path(__file__).parents[1]/"examples"/"flights"/"contracts"/"flights.yaml"
    for month in range(1, months + 1):
        ingest(
            str(write_month(root / "data", month, 0, 0)),
            "flights",
            contract=contract,
            period=f"2013-{month:02}",
            settings=Settings.load(root),
        )


def registered(root: Path) -> None:
    "Three versions of a small network on real flights: one served before, one serves, one waits."
    from scalai_nb.compression.frontier import compress
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.table import Table
    from scalai_nb.data.write import write
    from scalai_nb.loop.flights import weather as all_weather
    from scalai_nb.training.fit import fit
    from scalai_nb.training.models import MLP
    from scalai_nb.training.registry import Registry
    settings, weather = (
        Settings.load(root),
        all_weather().to_pandas()[
            ["origin", "time_hour", "temp", "humid", "wind_speed", "precip", "pressure", "visib"]
        ],
    )
    rows = (
        features(1, weather, 0)[["carrier", "origin", "distance", "sched_minute", "dep_delay", "late"]]
        .head(5000)
        .reset_index(drop=True)
    )
    write(rows.assign(flight_id=range(len(rows))), "learning", key="flight_id", fold="flight_id", settings=settings)
    table = Table("learning", settings)
    prep, registry = Prep.fit(
        table.profile(fold=[1, 2, 3, 4]), target="late", exclude=("flight_id", "fold")
    ), Registry(settings)
    for epochs in (1, 3):
        run = fit(MLP, table, prep, target="late", epochs=epochs, batch_size=512, lr=2e-3, ranks=1, settings=settings)
        frontier = compress(run, budget={"accuracy_drop": .05}, recipes=("int8",), settings=settings)
        for c in frontier.candidates if epochs == 1 else [frontier["int8"]]:
            number = registry.register(
                MODEL,
                c.path,
                run,
                {k: getattr(c, k) for k in ("accuracy", "auc", "latency_ms", "size_bytes")},
                {"recipe": c.recipe, "periods": "2013-01"},
            )
            if epochs == 1: registry.promote(MODEL, number, f"Passed: {c.recipe} was better than the base rate.")
