"""Comparisons of two windows: rates of false alarms, power, unusual windows, volume, segments."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalai_nb.core.errors import ScalaiError
from scalai_nb.data.profile import Profile, profile
from scalai_nb.monitor.decision import decide
from scalai_nb.monitor.drift import compare
from scalai_nb.monitor.thresholds import Policy

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from drifts import CASES, NORMAL, PLANTED, SEGMENTS, TABLES, alarms, flights, splits, weather  # noqa: E402


def upper(rate, times): return rate + 3 * np.sqrt(rate * (1 - rate) / times)  # what chance alone hardly passes


@pytest.fixture(scope="module", params=TABLES)
def table(request): return request.param, TABLES[request.param]()


def test_no_drift_no_alarm(table):
    assert alarms(table[1], 1_000, 60, 1) <= upper(.05, 60)


@pytest.mark.parametrize(
    "name", ["mean +.1 sd", "variance × 1.2", "2 % new category", "nulls 1 → 3 %", "correlation broken"]
)
def test_power_at_ten_thousand_rows(name):
    assert alarms(weather(), 10_000, 6, 2, NORMAL[name]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("n, times, by", [(1_000, 150, False), (10_000, 40, False), (1_000, 20, True)])
def test_false_alarms(table, n, times, by):
    name, frame = table
    assert alarms(frame, n, times, 3, by=SEGMENTS[name] if by else None) <= upper(.04, times)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_power(table, name):
    which, frame = table
    case = PLANTED[which][name]
    assert alarms(frame, 10_000, 8, 4, case, SEGMENTS[which] if case.segment is not None else None) >= 7 / 8


# at a thousand rows; what is missing here lies beyond the best test that answers for twelve columns (drifts.reach): a
# tenth of a sd of the
# temperatures .53, a variance × 1.2 of the delays .60, half a sd among the forty temperatures of one hour .19
SMALL = {
    ("flights", "mean +.1 sd"): 0.6,
    ("flights", "mean +.25 sd"): 0.9,
    ("flights", "2 % new category"): 0.7,
    ("flights", "nulls 1 → 3 %"): 0.3,
    ("flights", "correlation broken"): 0.9,
    ("weather", "mean +.25 sd"): 0.9,
    ("weather", "mean +.5 sd"): 0.9,
    ("weather", "variance × 1.2"): 0.55,
    ("weather", "correlation broken"): 0.9,
}


@pytest.mark.slow
def test_power_at_a_thousand_rows():
    frames, times = {name: make() for name, make in TABLES.items()}, 40
    found = {key: alarms(frames[key[0]], 1_000, times, 5, PLANTED[key[0]][key[1]]) for key in SMALL}
    assert {k: v for k, v in found.items() if v < SMALL[k]} == {}


def one(values, **types): return profile(pd.DataFrame({"x": values}, **types))


N = 2_000
NORMALS = np.random.default_rng(0).normal(size=2 * N)
A, B = NORMALS[:N], NORMALS[N:]
TEXT = pd.Series(["a", "b", "c", "d"] * (N // 4), dtype="str")
NONE = pd.Series([None] * N)
NAMED = {  # reference, current, whether it is drift, what names it, a word of the sentence
    "all-null numeric": (one(A), one(np.full(N, np.nan)), True, "nulls", "all null now"),
    "all-null numeric that has values again": (one(np.full(N, np.nan)), one(A), True, "nulls", "was all null"),
    "all-null in both": (one(np.full(N, np.nan)), one(np.full(N, np.nan)), False, "empty", "all null in both"),
    "all-null categorical": (one(TEXT), one(NONE.astype("str")), True, "nulls", "all null now"),
    "constant reference": (one(np.full(N, 7.0)), one(A + 7), True, "ks", "KS"),
    "constant in both": (one(np.full(N, 7.0)), one(np.full(N, 7.0)), False, "", ""),
    "inf 0.2 to 3 %": (
        one(np.where(np.arange(N) < 4, np.inf, A)),
        one(np.where(np.arange(N) < 60, np.inf, B)),
        True,
        "inf",
        "inf 0.2 % → 3.0 %",
    ),
    "number turned to text": (one(A), one(B.astype(str)), True, "schema", "type changed"),
    "time with zone": (
        one(pd.date_range("2013-01-01", periods=N, freq="h", tz="America/New_York")),
        one(pd.date_range("2013-06-01", periods=N, freq="h", tz="America/New_York")),
        False,
        "span",
        "reference",
    ),
    "a zone that changed": (
        one(pd.date_range("2013-01-01", periods=N, freq="h", tz="America/New_York")),
        one(pd.date_range("2013-06-01", periods=N, freq="h", tz="UTC")),
        False,
        "span",
        ", UTC]",
    ),
    "disjoint identifiers": (one(np.arange(N)), one(np.arange(N, 2 * N)), False, "identifier", "identifier"),
    "disjoint text identifiers": (
        one([f"flight {i}" for i in range(N)]),
        one([f"flight {i}" for i in range(N, 2 * N)]),
        False,
        "identifier",
        "identifier",
    ),
    "a category seen once": (one(TEXT), one(TEXT.where(TEXT.index > 0, "e")), False, "", "no significant"),
    "a category seen once in a small window": (
        one(TEXT),
        one(TEXT[:50].where(TEXT[:50].index > 0, "e")),
        False,
        "",
        "no significant",
    ),
    "1 sd with 1 % NaN": (one(A), one(np.where(np.arange(N) % 100 == 0, np.nan, B + 1)), True, "ks", "median"),
    "a number for what is missing": (
        one(A),
        one(np.where(np.arange(N) % 50 == 0, -999.0, B)),
        True,
        "range",
        "2.0 % of the rows are below",
    ),
    "whole numbers become real": (
        one(np.arange(N) % 50),
        one((np.arange(N) % 50).astype(float)),
        False,
        "",
        "type int64 → float64",
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_finding_not_a_crash(case):
    reference, current, drifted, test, word = NAMED[case]
    report = compare(reference, current)
    f = report.columns["x"]
    assert f.drifted is drifted and report.drifted is drifted and word in f.reason, f.sentence
    assert not test or f.test == test, f.test
    json.dumps(report.to_dict(), allow_nan=False)
    report._repr_html_()


def test_new_and_missing_columns_are_named():
    a, b = profile(pd.DataFrame({"x": A, "gone": A})), profile(pd.DataFrame({"x": B, "new": B}))
    report = compare(a, b)
    assert report.columns["gone"].reason.startswith("column is missing") and report.columns["new"].reason.startswith(
        "new column"
    )
    assert [n for n, f in report.columns.items() if f.drifted] == ["gone", "new"] and {
        f.test for f in report.findings
    } == {"schema"}


def test_an_empty_window_is_named():
    for current in (profile(pd.DataFrame({"x": A[:0]})), Profile.empty()):
        empty = compare(one(A), current)
        assert empty.drifted and "empty" in empty.problem
        assert decide(empty).action == "alert"
        json.dumps(empty.to_dict(), allow_nan=False)
        empty._repr_html_()
    assert not compare(Profile.empty(), Profile.empty()).drifted
    assert not (single := compare(one(A), one(B[:1]))).drifted
    json.dumps(single.to_dict(), allow_nan=False)


def test_an_unchanged_source_is_quiet():
    p = profile(weather())
    report = compare(p, p)
    assert report.sentences() == ["nothing drifted: 12 columns, 26,115 rows against 26,115"]


def test_two_thousand_columns():
    wide = {f"c{i}": NORMALS[i:i + 200] for i in range(2_000)}
    a, b = profile(pd.DataFrame(wide)), profile(pd.DataFrame(wide | {"c7": NORMALS[:200] + 2}))
    report = compare(a, b)
    assert [n for n, f in report.columns.items() if f.drifted] == ["c7"] and len(report.columns) == 2_000


def test_a_row_far_outside_moves_no_alarm():
    "Of a small window held against a large one: a mean would jump."
    assert not compare(one(np.tile(A, 50)), one(np.r_[B[:99], 1e6])).drifted


def test_segments_are_named_and_small_ones_stand_together():
    frame = flights()[["arr_delay", "distance", "carrier", "origin"]]
    a, b = splits(frame, 10_000, np.random.default_rng(6))
    b = b.assign(arr_delay=b.arr_delay + 30 * b.carrier.isin(["9E", "US"]))
    report = compare(profile(a, by="carrier"), profile(b, by="carrier"))
    assert {f.segment for f in report.segments} == {"9E", "US"} and {f.column for f in report.segments} == {
        "arr_delay"
    }
    told = [s for s in report.sentences() if " in " in s]
    assert len(told) == 1 and "also in" in told[0], report.sentences()
    doc = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (
        set(doc["segments"]["drifted"]) == {"arr_delay in 9E", "arr_delay in US"} and doc["segments"]["compared"] > 8
    )
    assert "9E" in report._repr_html_()


def test_a_new_segment_and_a_lost_one_are_told():
    a, b = (
        pd.DataFrame({"x": x, "by": by})
        for x, by in ((A, ["a", "b", "c", None] * (N // 4)), (B, ["a", "b", "d", None] * (N // 4)))
    )
    report = compare(profile(a, columns=["x"], by="by"), profile(b, columns=["x"], by="by"))
    assert [f.name for f in report.findings] == ["rows by segment"] and "'c'" in str(report) and "'d'" in str(report)


def test_windows_calibrate_what_is_usual():
    "What reference windows do every month is not told; what they never did is, with what was usual beside it."
    f = weather()
    months = profile(f[["month", "hour", "temp", "dewp", "humid", "pressure", "origin"]], by="month")
    months = {m: p.drop("month") for m, p in months.items()}
    policy = Policy.calibrate([months[m] for m in range(1, 7)])
    reference = sum(months[m] for m in range(1, 7))
    assert compare(reference, months[7]).columns["temp"].drifted  # July is warm
    shifted = profile(
        f[f.month == 7].assign(hour=lambda d: (d.hour + 6) % 24 // 2)[
            ["hour", "temp", "dewp", "humid", "pressure", "origin"]
        ]
    )
    report = compare(reference, shifted, policy)
    assert (
        report.columns["hour"].drifted and " usual" in report.columns["hour"].reason and not report.arrival[0].drifted
    )
    half = compare(reference, profile(f[f.month == 7][:900].drop(columns="month")), policy)
    assert [a.reason for a in half.arrival if a.drifted][0].startswith("900 rows, usually 2,")


def test_windows_know_the_noise_of_a_heavy_tailed_pair(tmp_path):
    f = (
        flights()[["dep_delay", "arr_delay", "distance"]]
        .dropna()
        .sample(12_000, random_state=0)
        .reset_index(drop=True)
    )
    windows = [profile(f[i:i + 1_000]) for i in range(0, 10_000, 1_000)]
    policy = Policy.load(Policy.calibrate(windows).save(tmp_path / "policy.yaml"))
    fine, bad = f[10_000:11_000], f[11_000:].assign(
        arr_delay=lambda d: np.random.default_rng(0).permutation(d.arr_delay)
    )
    assert "dep_delay × arr_delay" in policy.pairs or "arr_delay × dep_delay" in policy.pairs
    assert not compare(sum(windows), profile(fine), policy).drifted
    assert compare(sum(windows), profile(bad), policy).joint.drifted


def test_freshness_against_the_end_of_the_window():
    hours = pd.date_range("2013-01-01", periods=24 * 31, freq="h", tz="UTC")
    hours = hours[(hours.hour > 5)]  # nothing happens at night
    make = lambda at: profile(pd.DataFrame({"at": at, "x": NORMALS[:len(at)]}))
    january, february = make(hours), hours + pd.Timedelta(days=31)
    fresh = lambda p, until, **policy: {f.name: f for f in compare(january, p, Policy(**policy), until=until).arrival}[
        "freshness"
    ]
    assert not fresh(make(february), "2013-03-04").drifted
    assert not fresh(make(february), "2013-03-04T05:30Z").drifted  # the night is silent
    late = fresh(make(february[:-30]), "2013-03-04")
    assert late.drifted and "before the window's end" in late.reason
    assert "clock runs ahead" in fresh(make(february), "2013-02-20").reason
    assert "no column of times" in fresh(make(february), "2013-03-04", clock="x").reason
    with pytest.raises(ScalaiError, match="no time"): compare(january, january, until="soon")
