"""The profile's laws on columns of every type, hostile values in each; its bounds beside exact answers.

test_profile.py has the laws on the commonest types; here every sentence that the design says of a profile is held on
all of them. """

import datetime as dt
import decimal
import functools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_profile import floats, hostile, ints, orno, rank_error, words

from scalai_nb.data.profile import Profile, profile, total

few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

days = st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 31))
moments_of_day = st.one_of(st.times(), st.sampled_from([dt.time(0), dt.time(23, 59, 59, 999_999)]))
spans = st.integers(-10**15, 10**15)
wide = st.integers(-10**37, 10**37).map(lambda n: decimal.Decimal(n).scaleb(-6, decimal.Context(prec=60)))
money = st.integers(-10**6, 10**6).map(lambda n: decimal.Decimal(n).scaleb(-2))
# the hour that New York skipped
instants = st.one_of(
    st.integers(-(2**62), 2**62),
    st.integers(0, 10**15),
    st.sampled_from([0, 1_362_898_799_999_999, 1_362_898_800_000_000]),
)
SORTS = {  # name: type, values
    "float64": (pa.float64(), floats),
    "float32": (pa.float32(), st.one_of(st.floats(width=32), st.integers(-9, 9).map(float))),
    "float16": (pa.float16(), st.floats(width=16)),
    "int64": (pa.int64(), ints),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "uint64": (pa.uint64(), st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 3))),
    "bool": (pa.bool_(), st.booleans()),
    "money": (pa.decimal128(9, 2), money),
    "wide": (pa.decimal128(38, 6), wide.filter(lambda d: abs(d) < 10**31)),
    "date32": (pa.date32(), days),
    "date64": (pa.date64(), days),
    "time": (pa.time64("us"), moments_of_day),
    "time_s": (pa.time32("s"), st.integers(0, 86_399)),
    "span": (pa.duration("us"), spans),
    "span_ms": (pa.duration("ms"), spans),
    "instant": (pa.timestamp("us"), instants),
    "instant_s": (pa.timestamp("s"), st.integers(-(10**10), 10**11)),
    "instant_ns": (pa.timestamp("ns"), st.integers(-(2**62), 2**62)),
    "zone": (pa.timestamp("us", tz="America/New_York"), instants),
    "utc": (pa.timestamp("ms", tz="UTC"), st.integers(-(10**13), 10**14)),
    "text": (pa.string(), words),
    "large": (pa.large_string(), words),
    "bytes": (pa.binary(), st.binary(max_size=9)),
    "fixed": (pa.binary(2), st.binary(min_size=2, max_size=2)),
    "list": (pa.list_(pa.int64()), st.lists(orno(ints), max_size=4)),
    "large_list": (pa.large_list(pa.string()), st.lists(orno(words), max_size=3)),
    "pair": (pa.list_(pa.float64(), 2), st.lists(floats, min_size=2, max_size=2)),
    "map": (pa.map_(pa.string(), pa.int64()), st.dictionaries(words, ints, max_size=3).map(lambda d: list(d.items()))),
    "struct": (
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        st.fixed_dictionaries({"a": orno(ints), "b": orno(words)}),
    ),
    "null": (pa.null(), st.none()),
}


@st.composite
def values(draw, kind, n):
    "n values of a kind: anything, one value over and over, or nothing but nulls."
    how = draw(st.sampled_from(["any", "any", "any", "constant", "empty"]))
    if how == "empty": return [None] * n
    if how == "constant": return [draw(SORTS[kind][1])] * n
    return draw(st.lists(orno(SORTS[kind][1]), min_size=n, max_size=n))


@st.composite
def tables(draw, most=40, kinds=None, width=6):
    names = kinds or draw(st.lists(st.sampled_from(sorted(SORTS)), min_size=1, max_size=width, unique=True))
    n = draw(st.integers(0, most))
    return pa.table({k: pa.array(draw(values(k, n)), SORTS[k][0]) for k in names})


def cuts(data, n): return [0, *sorted(data.draw(st.lists(st.integers(0, n), max_size=4))), n]


def same(a, b):
    "Equal digest and close moments, either way round; and the digest says no less than `==`."
    assert a.digest == b.digest and a == b and b == a and a.rows == b.rows


@few
@given(tables(), st.data())
def test_cuts_orders_and_trees_of_sums(table, data):
    """p(a) + p(b) = p(a ++ b) for any cut, any order of rows and any order of adding, empty parts among them; saving
    keeps it."""
    whole, at = profile(table), cuts(data, len(table))
    parts = [profile(table.slice(a, b - a)) for a, b in zip(at, at[1:])]
    same(sum(parts), whole)
    same(functools.reduce(lambda a, b: b + a, parts), whole)
    same(total(data.draw(st.permutations(parts))), whole)
    order = data.draw(st.permutations(range(len(table))))
    if len(table): same(profile(table.take(order)), whole)
    same(Profile.from_bytes(sum(parts).to_bytes()), whole)
    same(Profile.from_bytes(parts[0].to_bytes()) + sum(parts[1:], Profile.empty()), whole)


@few
@given(tables(12), st.data())
def test_chunks_batches_slices_and_dictionaries_are_the_same_rows(table, data):
    "However Arrow holds the rows in memory."
    whole, at = profile(table), cuts(data, len(table))
    pieces = [table.slice(a, b - a) for a, b in zip(at, at[1:])]
    same(profile(pa.concat_tables(pieces)), whole)  # chunks, some of them empty
    same(profile(pa.concat_tables([table, table]).slice(len(table))), whole)  # offsets
    same(profile(iter(pieces)), whole)
    same(
        profile(pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=3))),
        whole if len(table) else profile(table),
    )
    flat = [i for i, f in enumerate(table.schema) if f.type in (pa.string(), pa.int64(), pa.binary())]
    coded = functools.reduce(
        lambda t, i: t.set_column(i, t.schema.names[i], t.column(i).dictionary_encode()), flat, table
    )
    if len(table): same(profile(coded), whole)


@few
@given(tables(30), st.data(), st.integers(1, 12))
def test_counting_batch_by_batch_is_profiling_in_one_piece(table, data, limit):
    """The way of long tables and of Parquet, on every type:

    with little set aside before it is summarised, and as dictionaries."""
    from scalai_nb.data.profile import Counting, _batches, _of_table
    if not table.num_columns: return
    whole, at = _of_table(table), cuts(data, len(table))
    coded = functools.reduce(
        lambda t, n: t.set_column(t.column_names.index(n), n, t[n].dictionary_encode()),
        [n for n in ("text", "large", "bytes") if n in table.column_names and len(table)],
        table,
    )
    for rows in (table, coded):
        counting = Counting(rows.schema, 64)
        for c in counting.counters.values(): c.limit = limit
        for a, b in zip(at, at[1:]):
            for batch in _batches([rows.slice(a, b - a)]): counting.add(batch)
        same(counting.profile(), whole)


@few
@given(st.data())
def test_any_types_add_up_alike_in_any_order(data):
    """The lattice of types:

    what the sum of three parts is does not depend on who was added first, whatever their types."""
    def part():
        kind = data.draw(st.sampled_from(sorted(SORTS)))
        return profile(
            pa.table(
                {
                    data.draw(st.sampled_from("xy")): pa.array(
                        data.draw(values(kind, data.draw(st.integers(0, 6)))), SORTS[kind][0]
                    )
                }
            )
        )
    a, b, c = part(), part(), part()
    assert (a + b).digest == (b + a).digest
    left, right = (a + b) + c, a + (b + c)
    assert left.digest == right.digest == ((c + a) + b).digest
    for p in (left, right):
        assert (p + Profile.empty()).digest == (Profile.empty() + p).digest == p.digest
        for n, col in p.columns.items():
            assert col.rows == p.rows and 0 <= col.nulls <= p.rows and col.count == p.rows - col.nulls


@few
@given(tables(30, ["float64", "text", "int64"]), st.data())
def test_families_sum_to_the_whole(table, data):
    """By any key:

    floats with NaN and -0.0, text, nulls, booleans, times, several at once; each member is the profile of its rows."""
    n = len(table)
    key = data.draw(
        st.sampled_from(["float64", "int64", "text", "bool", "instant", "date32", "money", "null", "bytes"])
    )
    keys = (
        pa.array([data.draw(SORTS[key][1]) if data.draw(st.booleans()) else None for _ in range(n)], SORTS[key][0])
        if n
        else pa.array([], SORTS[key][0])
    )
    few_keys = (
        keys.take(
            pa.array(data.draw(st.lists(st.integers(0, max(min(n, 3) - 1, 0)), min_size=n, max_size=n)), pa.int64())
        )
        if n
        else keys
    )
    rows = table.append_column("key", few_keys).append_column(
        "side", pa.array(data.draw(st.lists(st.sampled_from([True, False, None]), min_size=n, max_size=n)), pa.bool_())
    )
    whole = profile(rows)
    for by in ("key", ["key", "side"], ["side"]):
        family = profile(rows, by=by)
        same(sum(family.values(), Profile.empty()) if family else profile(rows.slice(0, 0)), whole)
        assert sum(p.rows for p in family.values()) == n and (not n or all(p.rows for p in family.values()))
    for k, p in profile(rows, by="side").items():
        same(p, profile(rows.filter(pa.array([v is k for v in rows["side"].to_pylist()], pa.bool_()))))
    at = cuts(data, n)
    parts = [profile(rows.slice(a, b - a), by="key") for a, b in zip(at, at[1:])]
    same(sum((p for f in parts for p in f.values()), Profile.empty()) if n else whole, whole)


@few
@given(tables(25), st.data())
def test_other_rows_have_another_digest(table, data):
    "The digest is no constant: a row more, a null for a value, a column less change it."
    if not len(table): return
    p = profile(table)
    assert profile(table.slice(1)).digest != p.digest != profile(pa.concat_tables([table, table])).digest
    name = data.draw(st.sampled_from(table.column_names))
    at = data.draw(st.integers(0, len(table) - 1))
    if table[name][at].is_valid:
        holed = [None if i == at else v for i, v in enumerate(table[name])]
        gone = pa.concat_arrays(
            [
                *(c for c in table[name].slice(0, at).chunks),
                pa.nulls(1, table.schema.field(name).type),
                *(c for c in table[name].slice(at + 1).chunks),
            ]
        )
        assert (
            len(holed) == len(gone)
            and profile(table.set_column(table.column_names.index(name), name, gone)).digest != p.digest
        )
    if len(table.column_names) > 1: assert profile(table.drop_columns(name)).digest != p.digest


@few
@given(st.lists(floats, min_size=1, max_size=80), st.data())
def test_moments_are_within_their_bound_of_exact_fractions(xs, data):
    """Mean and standard deviation within 1e-9 of the column's scale, beside exact rational arithmetic, whatever was
    added in which order."""
    at = cuts(data, len(xs))
    parts = [profile(pa.table({"x": pa.array(xs[a:b], pa.float64())})) for a, b in zip(at, at[1:])]
    finite = [Fraction(x) for x in xs if math.isfinite(x)]
    c = total(data.draw(st.permutations(parts)))["x"]
    assert (c.nan, c.inf, c.zeros) == (sum(map(math.isnan, xs)), sum(map(math.isinf, xs)), sum(x == 0 for x in xs))
    if not finite: assert c.mean is None and c.min is None; return
    assert c.min == min(finite) and c.max == max(finite)
    scale, mean = max(map(abs, finite)), sum(finite) / len(finite)
    bound = scale / 10**9 + Fraction(1e-323)  # below 1e-314 the steps of float64 are wider than a billionth
    assert abs(Fraction(c.mean) - mean) <= bound
    if len(finite) > 1:
        variance = sum((x - mean) ** 2 for x in finite) / (len(finite) - 1)
        with decimal.localcontext(prec=60, Emin=-10**6, Emax=10**6):
            spread = Fraction((decimal.Decimal(variance.numerator) / decimal.Decimal(variance.denominator)).sqrt())
        assert (
            abs(Fraction(c.std) - spread) <= bound if math.isfinite(c.std) else spread > Fraction(sys.float_info.max)
        )


@few
@given(st.integers(1, 4), st.data())
def test_heavy_hitters_are_within_their_bounds(parts, data):
    """Every value above 1/512 of the rows is named, and [low, high] holds the true count:

    text above the cap, numbers off the exact histogram."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    n = data.draw(st.sampled_from([3_000, 12_000]))
    skew = data.draw(st.sampled_from([1.05, 1.3, 2.0]))
    which = np.minimum(rng.zipf(skew, n), 10**9)
    x = np.where(
        rng.random(n) < data.draw(st.sampled_from([0.0, 0.01, 0.4])),
        7.25,
        rng.standard_cauchy(n) * 10.0 ** rng.integers(-200, 200, n),
    )
    table = pa.table({"w": [f"w{i}" for i in which], "x": x})
    at = np.sort(rng.integers(0, n, parts - 1)).tolist()
    p = total(data.draw(st.permutations([profile(table.slice(a, b - a)) for a, b in zip([0, *at], [*at, n])])))
    for name, truth in (("w", pd.Series(table["w"].to_pandas()).value_counts()), ("x", pd.Series(x).value_counts())):
        found = {v: (low, high) for v, low, high in p[name].top(10_000)}
        assert all(low <= truth[v] <= high for v, (low, high) in found.items())
        assert set(truth.index[truth > n / 513]) <= set(found)


@few
@given(st.lists(st.one_of(floats.filter(math.isfinite), ints.map(float)), min_size=1, max_size=300), st.data())
def test_every_rank_error_is_within_the_stated_resolution(xs, data):
    "Also where the caps are so small that buckets are coarse, and after adding."
    from scalai_nb.data.column import column
    caps = data.draw(st.sampled_from([(64, 512), (4, 8), (1, 2), (2, 1)]))
    cut = data.draw(st.integers(0, len(xs)))
    c = column("x", pa.array(xs[:cut], pa.float64()), caps) + column("x", pa.array(xs[cut:], pa.float64()), caps)
    qs = np.linspace(0, 1, 101)
    assert rank_error(c, np.array(xs), qs) <= c.resolution + 2 / len(xs)
    assert c.quantile(0) >= c.min and c.quantile(1) <= c.max and (np.diff(c.quantile(qs)) >= 0).all()
    shares = c.cdf(np.sort(xs))
    assert (
        np.abs(shares - np.searchsorted(np.sort(xs), np.sort(xs), "right") / len(xs)) <= c.resolution + 2 / len(xs)
    ).all()


# Beside exact answers on real rows, and on hostile ones of every kind that has an order.

def exact(series: pd.Series) -> np.ndarray:  # float64, as the profile counts them
    x = series.dropna()
    return (x.dt.as_unit("us").astype("int64") if pd.api.types.is_datetime64_any_dtype(x) else x).to_numpy("f8")


def test_all_flights_columns_beside_exact_answers(flights):
    "In twelve parts, as they come in: 401 quantiles of every ordered column, distinct, moments, top values."
    p = total(profile(flights[flights["month"] == m]) for m in range(1, 13))
    assert p == profile(flights) and set(p.columns) == set(flights)
    qs, ordered = np.linspace(0, 1, 401), 0
    for name in flights:
        c, counts = p[name], flights[name].value_counts()
        assert (
            c.resolution <= 0.01
            and abs(c.distinct / len(counts) - 1) <= 0.03
            and c.nulls == flights[name].isna().sum()
        ), name
        if c.kind in ("number", "time"):
            x, ordered = exact(flights[name]), ordered + 1
            assert rank_error(c, x, qs) <= c.resolution + 2 / len(x), name
            scale = np.abs(x).max()
            assert abs(c.mean - x.mean()) <= 1e-9 * scale and abs(c.std - x.std(ddof=1)) <= 1e-9 * scale, name
        for value, low, high in c.top(512):
            if c.kind == "time": value = pd.Timestamp(value, unit="us", tz=flights[name].dt.tz)
            assert low <= counts[value] <= high, (name, value)
        assert c.kind == "time" or set(counts.index[counts > len(flights) / 513]) <= {
            v for v, _, _ in c.top(10_000)
        }, name
    assert ordered >= 14


def test_hostile_columns_beside_exact_answers():
    "1e9 ± 1 mixed with Cauchy, two scales, 2**62 and more; in eight parts; also as integers and as times."
    rng, n = np.random.default_rng(11), 200_000
    columns = {k: pa.array(v) for k, v in hostile(rng, n).items()}
    columns |= {
        "int64": pa.array(rng.integers(-(2**63), 2**63 - 1, n)),
        "ends": pa.array(np.where(rng.random(n) < 0.5, 2**63 - 1 - rng.integers(0, 9, n), rng.integers(-9, 9, n))),
        "uint64": pa.array(rng.integers(0, 2**64 - 1, n, np.uint64)),
        "times": pa.array(rng.integers(0, 2**61, n), pa.timestamp("us")),
        "bursts": pa.array(
            np.sort(rng.integers(0, 40, n) * 10**12 + rng.integers(0, 10**6, n)),
            pa.timestamp("us", tz="America/New_York"),
        ),
        "subnormal": pa.array(rng.integers(-(10**6), 10**6, n) * 5e-324),
        "zeros": pa.array(np.where(rng.random(n) < 0.5, 0.0, -0.0)),
    }
    table, qs = pa.table(columns), np.linspace(0, 1, 801)
    p = total(profile(table.slice(i, n // 8)) for i in range(0, n, n // 8))
    for name in table.column_names:
        native = (
            table[name].cast(pa.int64()) if pa.types.is_timestamp(table.schema.field(name).type) else table[name]
        ).to_numpy()
        c, x = p[name], native.astype("f8")
        assert c.resolution <= .01, (name, c.resolution)
        assert rank_error(c, x, qs) <= c.resolution + 2 / n, name
        assert abs(c.distinct / len(np.unique(native + native.dtype.type(0))) - 1) <= .03, (name, c.distinct)
        assert c.min == native.min() and c.max == native.max()
        scale = np.abs(x).max() or 1
        y = np.longdouble(x) / scale  # in units of the scale: NumPy's own sums of squares overflow and underflow
        assert (
            abs(c.mean - float(y.mean() * scale)) <= 1e-9 * scale
            and abs(c.std - float(y.std(ddof=1) * scale)) <= 1e-9 * scale
        ), name
    assert p["zeros"].distinct == 1 and p["zeros"].zeros == n


def test_booleans_decimals_dates_and_nested_beside_exact_answers():
    rng, n = np.random.default_rng(12), 30_000
    cents = rng.integers(-10**7, 10**7, n)
    lists = [None if k == 9 else list(range(k)) for k in rng.integers(0, 10, n).tolist()]
    table = pa.table(
        {
            "yes": pa.array(rng.random(n) < 0.3),
            "price": pa.array(cents).cast(pa.decimal128(20, 0)).cast(pa.float64()),
            "day": pa.array(rng.integers(0, 20_000, n).astype("i4")).cast(pa.date32()),
            "list": pa.array(lists, pa.list_(pa.int64())),
            "map": pa.array(
                [None if v is None else [(str(i), i) for i in v] for v in lists], pa.map_(pa.string(), pa.int64())
            ),
        }
    )
    table = table.append_column(
        "money", pa.array([decimal.Decimal(int(c)).scaleb(-2) for c in cents], pa.decimal128(12, 2))
    )
    p = total(profile(table.slice(i, 5_000)) for i in range(0, n, 5_000))
    yes = np.array(table["yes"])
    assert (p["yes"].true, p["yes"].distinct, p["yes"].top(2)[0]) == (
        yes.sum(),
        2,
        (False, (~yes).sum(), (~yes).sum()),
    ) and abs(p["yes"].mean - yes.mean()) < 1e-12
    assert (
        p["money"].min == cents.min() / 100
        and abs(p["money"].mean - cents.mean() / 100) <= 1e-9 * 1e5
        and rank_error(p["money"], cents / 100, np.linspace(0, 1, 201)) <= p["money"].resolution + 2 / n
    )
    days_us = table["day"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy().astype("f8")
    assert (
        p["day"].resolution <= 0.01
        and rank_error(p["day"], days_us, np.linspace(0, 1, 201)) <= p["day"].resolution + 2 / n
    )
    sizes = {k: sum(v is not None and len(v) == k for v in lists) for k in range(9)}
    assert p["list"].lengths == p["map"].lengths == sizes and p["list"].nulls == p["map"].nulls == sum(
        v is None for v in lists
    )


ELSEWHERE = (
    "import pyarrow as pa; from scalai_nb.data.profile import profile; print(profile(pa.table({'w': [f'w{i % 1500}'"
    " for i in range(9000)], 'x': [i * .37 for i in range(9000)]})).digest)"
)


def test_the_digest_is_the_same_in_another_process():
    "Nothing of it hangs on Python's hash seed or on what ran before."
    import os
    said = {
        subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": s},
            check=True,
        ).stdout.strip()
        for s in ("0", "77")
    }
    assert said == {
        profile(pa.table({"w": [f"w{i % 1500}" for i in range(9000)], "x": [i * 0.37 for i in range(9000)]})).digest
    }
