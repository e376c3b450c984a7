"""How often the band around an AUC that was estimated without labels holds the AUC that was measured afterwards: the
flights of 2013, by months and by weeks.

A model learns from four fifths of the flights of January to March, drawn by `seed`. It scores every flight from April
on. Labels come a month late, so when a window is estimated, the reference is every scored week whose labels are there
by then; afterwards the window is measured with its labels. No week is in the reference that the model learnt from: of
those, the fifth of the flights that it did not learn from says how far weeks differ, no more. The band was chosen on
the seeds 0 and 2, and on single airports; the flights are the same for every seed. `coverage` is imported by the bench
of the monitor and by a slow test; by hand:

    python tests/bench/labelfree.py [--seeds 0 1 2] [--known departed scheduled]
"""

import argparse
import functools
import sys

import numpy as np
import pandas as pd

MODELS, KINDS = ("logistic", "boosting"), ("month", "week")
LEARNT, WEEKS = 3, 13  # months that the model learns from, and the weeks that they reach into
# weeks after which labels are there; weeks that a window is as long as, and that its reference has at least
LATE, RUN, LEAST = 4, {"month": 4, "week": 1}, {"month": 12, "week": 8}
COLUMNS = {  # what is known of a flight
    "scheduled": [
        "distance",
        "sched_minute",
        "weekday",
        "temp",
        "humid",
        "wind_speed",
        "precip",
        "pressure",
        "visib",
        "carrier",
        "origin",
        "dest",
    ],  # before it leaves: a hard task, AUC about .7
    "departed": [
        "dep_delay",
        "distance",
        "sched_minute",
        "weekday",
        "temp",
        "humid",
        "wind_speed",
        "precip",
        "pressure",
        "visib",
        "carrier",
        "origin",
        "dest",
    ],
}  # when it leaves: AUC about .9


@functools.cache
def rows() -> pd.DataFrame:
    "The flights that arrived, with the weather at their airport and hour, the month and the week they belong to."
    from scalai_nb.loop.flights import flights, weather
    w = weather().to_pandas()[["origin", "time_hour", "temp", "humid", "wind_speed", "precip", "pressure", "visib"]]
    f = (
        flights()
        .to_pandas()
        .dropna(subset=["dep_delay", "arr_delay"])
        .merge(w.drop_duplicates(["origin", "time_hour"]), "left", ["origin", "time_hour"])
    )
    day = pd.to_datetime(f[["year", "month", "day"]])
    f = f.assign(
        sched_minute=f.sched_dep_time // 100 * 60 + f.sched_dep_time % 100,
        weekday=day.dt.dayofweek.astype("int64"),
        late=f.arr_delay >= 15,
        week=(day.dt.dayofyear - 1) // 7,
    )
    return f[f.week < 52].reset_index(drop=True)


@functools.cache
def scored(model: str, seed: int, known: str, learnt: bool = False) -> pd.DataFrame:  # score, late, month, week
    """The flights after those that the model learnt from, with their scores; `learnt`:

    of the same months, those kept aside."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    f = rows()
    inside = (f.month <= LEARNT) & (np.random.default_rng(seed).random(len(f)) < .8)
    train, asked = f[inside], f[(f.month <= LEARNT) & ~inside] if learnt else f[f.month > LEARNT]
    prep = Prep.fit(profile(train[COLUMNS[known]]))
    made = {
        "logistic": lambda: LogisticRegression(max_iter=100),
        "boosting": lambda: HistGradientBoostingClassifier(max_iter=60, random_state=seed),
    }[model]()
    made.fit(prep.transform(train), train.late)
    return asked[["late", "month", "week"]].assign(
        score=made.predict_proba(prep.transform(asked))[:, 1].astype("float32")
    )


def labelled(kind: str, window: int) -> int:
    """The week from which on labels are missing when a window is estimated:

    the one that the month begins in, or three back."""
    return int(rows().week[rows().month == window].min()) if kind == "month" else window - LATE + 1


def windows(
    model: str, seed: int, kind: str, known: str, learnt: bool = False
) -> dict:  # window -> family by label, oldest first
    from scalai_nb.data.profile import profile
    f, families = scored(model, seed, known, learnt), {}
    for (window, label), p in profile(f[["score", kind, "late"]], by=[kind, "late"]).items():
        families.setdefault(window, {})[label] = p.select(["score"])
    return {w: families[w] for w in sorted(families) if kind == "month" or (w < WEEKS - 1 if learnt else w >= WEEKS)}


def referenced(kind: str, asked, weeks) -> dict[int, list[int]]:  # window -> the weeks of its reference
    "The windows that can be estimated: those before whose end the labels of enough weeks have come."
    return {w: before for w in asked if len(before := [x for x in weeks if x < labelled(kind, w)]) >= LEAST[kind]}


def coverage(kind: str,  # month or week
             model: str,  # logistic or boosting
             seed: int,  # of the fold and of the model
             known: str = "departed",  # what the model knows of a flight: departed or scheduled
            ) -> dict:
    """How the band of 95 % fared on all windows with a reference: `windows`, `covered` (share whose measured AUC lies
    in it), `half_width` (mean, AUC), `error` (mean absolute, AUC), `trusted` (share); `constant_covered`,
    `constant_half_width` and `constant_error` are of the guess that needs no estimate, the reference's AUC, with a
    band made in the same way."""
    from scalai_nb.monitor.estimation import estimate
    from scalai_nb.monitor.performance import performance
    asked, weeks, learnt = (
        windows(model, seed, k, known, inside) for k, inside in ((kind, False), ("week", False), ("week", True))
    )
    found = []
    for window, before in referenced(kind, asked, weeks).items():
        e, truth = (
            estimate(sum(asked[window].values()), [weeks[w] for w in before], spread=learnt, run=RUN[kind]),
            performance(asked[window]).auc,
        )
        found.append(
            (
                e.low <= truth <= e.high,
                (e.high - e.low) / 2,
                abs(e.value - truth),
                e.trusted,
                e.baseline_low <= truth <= e.baseline_high,
                (e.baseline_high - e.baseline_low) / 2,
                abs(e.baseline - truth),
            )
        )
    names = ("covered", "half_width", "error", "trusted", "constant_covered", "constant_half_width", "constant_error")
    return {
        "kind": kind,
        "model": model,
        "seed": seed,
        "known": known,
        "windows": len(found),
        **dict(zip(names, np.mean(np.array(found, float), axis=0).tolist())),
    }


def main():
    given = argparse.ArgumentParser()
    given.add_argument("--seeds", type=int, nargs="+", default=[0])
    given.add_argument("--known", nargs="+", default=list(COLUMNS), choices=COLUMNS)
    given = given.parse_args()
    for known in given.known:
        for model in MODELS:
            for kind in KINDS:
                for seed in given.seeds:
                    print(
                        " ".join(
                            f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}"
                            for k, v in coverage(kind, model, seed, known).items()
                        ),
                        flush=True,
                    )


if __name__ == "__main__": sys.exit(main())
