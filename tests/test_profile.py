"""The profile's laws, on values chosen to break them, and its answers beside exact ones."""
import functools
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scalai_nb.core.errors import BadRequest
from scalai_nb.data.accumulators import Sum
from scalai_nb.data.column import align, align_categories
from scalai_nb.data.hashing import hash64
from scalai_nb.data.histogram import Histogram, number_keys, tally
from scalai_nb.data.profile import Profile, profile, total

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

# Hostile numbers: payload NaNs, both zeros, subnormals, infinities, the ends of int64 and float64, clusters beside
# tails.
payload = np.array([0x7FF8000000000001, 0xFFF0000000000123], "u8").view("f8").tolist()
floats = st.one_of(
    st.sampled_from(
        [
            0.0,
            -0.0,
            5e-324,
            -5e-324,
            2.2e-308,
            math.inf,
            -math.inf,
            math.nan,
            1.7e308,
            -1.7e308,
            1e9 - 1,
            1e9,
            1e9 + 1,
            *payload,
        ]
    ),
    st.floats(width=64),
    st.floats(1e9 - 1, 1e9 + 1),
    st.integers(-5, 5).map(float),
)
ints = st.one_of(
    st.sampled_from([2**63 - 1, -(2**63), 2**53, 2**53 + 1, 0]), st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9)
)
words = st.one_of(st.sampled_from(["", "a", "JFK", "Zürich", "\u0000", "𝔘", "<b>", "a" * 3000]), st.text(max_size=9))
times = st.one_of(st.integers(-2**62, 2**62), st.integers(0, 10**15))
orno = lambda s: st.one_of(st.none(), s)


@st.composite
def tables(draw, most=60):
    n = draw(st.integers(0, most))
    col = lambda s, t: pa.array(draw(st.lists(orno(s), min_size=n, max_size=n)), t)
    return pa.table(
        {
            "f": col(floats, pa.float64()),
            "i": col(ints, pa.int64()),
            "s": col(words, pa.string()),
            "b": col(st.booleans(), pa.bool_()),
            "t": col(times, pa.timestamp("us", tz="UTC")),
            "l": col(st.lists(ints, max_size=3), pa.list_(pa.int64())),
            "n": pa.nulls(n),
        }
    )


@quick
@given(tables(), st.data())
def test_sum_of_parts_is_the_whole(table, data):
    whole = profile(table)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(table)), max_size=4)))
    parts = [profile(table.slice(a, b - a)) for a, b in zip([0, *cuts], [*cuts, len(table)])]
    shuffled = table.take(data.draw(st.permutations(range(len(table))))) if len(table) else table
    assert profile(shuffled) == whole
    assert sum(parts) == whole
    assert total(data.draw(st.permutations(parts))) == whole
    assert Profile.from_bytes(whole.to_bytes()) == whole


# A far value of `f` stands where `i` is null: around the column's mean, nothing would be left of the other rows'
# digits.
FAR = pa.table(
    {
        "f": pa.array([0, None, 4e9, 1e23, None], pa.float64()),
        "i": pa.array([2**53, None, 2**63 - 1, None, 2**63 - 1], pa.int64()),
        "s": ["", None, "a", "a", None],
    }
)


@quick
@given(tables(), st.lists(st.integers(0, 60), max_size=4), st.integers(1, 40))
@example(FAR, [2], 1)
def test_counting_batches_is_profiling_pieces(table, cuts, limit):
    """Long tables are counted batch by batch, short ones profiled in one piece: the same rows, the same profile."""
    from scalai_nb.data.profile import Counting, _batches, _of_table
    coded = table.set_column(2, "s", table["s"].dictionary_encode()) if len(table) else table
    cuts = sorted(min(c, len(table)) for c in cuts)
    for rows in (table, coded):
        counting = Counting(rows.schema, 64)
        for c in counting.counters.values(): c.limit = limit  # so that what is set aside is summarised midway
        for a, b in zip([0, *cuts], [*cuts, len(table)]):
            for batch in _batches([rows.slice(a, b - a)]): counting.add(batch)
        made = counting.profile()
        assert made == _of_table(table)
        np.testing.assert_allclose(made.corr()[1], _of_table(table).corr()[1], atol=1e-5)


def test_a_file_of_many_row_groups_is_read_by_all_cores_alike(flights, tmp_path, monkeypatch):
    import pyarrow.parquet as pq
    table = pa.Table.from_pandas(flights, preserve_index=False)
    for size, version in ((20_000, "2.6"), (400_000, "1.0")):
        pq.write_table(
            table,
            path := tmp_path / f"{size}.parquet",
            row_group_size=size,
            use_dictionary=size < 100_000,
            version=version,
            coerce_timestamps="us",
        )
        for cores in (1, 3):
            monkeypatch.setattr("os.cpu_count", lambda: cores)
            made = profile(path)
            assert made == profile(pq.read_table(path)) and made.rows == len(flights)
            assert (
                made["tailnum"].nulls == flights["tailnum"].isna().sum()
                and made["tailnum"].distinct == profile(flights)["tailnum"].distinct
            )
    with pytest.raises(BadRequest, match="carier"): profile(path, columns=["carier"])
    assert profile(path, columns=["carrier", "distance"]) == profile(flights[["carrier", "distance"]])
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2] + data[len(data) // 2 + 9:])
    with pytest.raises(BadRequest, match="cannot be read"): profile(path)


def test_a_sum_of_many_is_the_sum_of_pairs(monkeypatch):
    "However many wait to be added at once; what is bounded keeps its bounds, and correlations their digits."
    rng, n = np.random.default_rng(8), 40_000
    values = hostile(rng, n) | {
        "w": np.array([f"w{i}" for i in rng.zipf(1.3, n) % 5_000], object),
        "t": rng.integers(0, 2**50, n).view("M8[us]"),
        "few": rng.choice(list("abc"), n),
    }
    table = pa.table({k: rng.permutation(v) for k, v in values.items()})
    parts, at = [], 0
    for size in [1, 0, 3, 500, 9_000, *[300] * 98, 1_096]: parts.append(profile(table.slice(at, size))); at += size
    pairwise = functools.reduce(lambda a, b: a + b, parts)
    truth = {k: pd.Series(table[k].to_pylist()).value_counts() for k in ("w", "few", "minutes")}
    for limit in (0, 1 << 20, 1 << 40):
        monkeypatch.setattr("scalai_nb.data.profile.Sum", lambda add, _=0: Sum(add, limit))
        made = total(iter(parts))
        assert made == pairwise and made.rows == at == n
        np.testing.assert_allclose(made.corr()[1], pairwise.corr()[1], atol=1e-9)
        for name, counts in truth.items():
            found = {v: (low, high) for v, low, high in made[name].top(600)}
            assert all(low <= counts[v] <= high for v, (low, high) in found.items()) and set(
                counts.index[counts > n / 513]
            ) <= set(found)


@quick
@given(tables(30), tables(30), tables(30))
def test_commutative_associative_identity(a, b, c):
    a, b, c = map(profile, (a, b, c))
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Profile.empty() == a == Profile.empty() + a


@st.composite
def any_column(draw):
    kind = draw(
        st.sampled_from(
            [
                (floats, pa.float64()),
                (ints, pa.int64()),
                (st.integers(0, 200), pa.uint8()),
                (words, pa.string()),
                (st.booleans(), pa.bool_()),
                (times, pa.timestamp("us")),
            ]
        )
    )
    name = draw(st.sampled_from("xyz"))
    return pa.table({name: pa.array(draw(st.lists(orno(kind[0]), max_size=20)), kind[1])})


@quick
@given(any_column(), any_column(), any_column())
def test_laws_hold_across_types_and_schemas(a, b, c):
    a, b, c = map(profile, (a, b, c))
    assert (a + b).digest == (b + a).digest
    assert ((a + b) + c).digest == (a + (b + c)).digest == total([a, b, c]).digest
    assert total([a, b, c]) == a + b + c


@quick
@given(
    st.lists(
        st.one_of(
            st.floats(allow_nan=False, allow_infinity=False),
            st.floats(1e9 - 1, 1e9 + 1),
            st.integers(-40, 40).map(float),
        ),
        max_size=200,
    ),
    st.data(),
)
def test_histograms_with_small_caps_add_exactly(values, data):
    """Small caps make coarsening common, which sixty rows under 64 x 512 would not."""
    caps = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 9)))
    h = lambda v, caps=caps: Histogram.from_counts(*tally(number_keys(np.array(v, "f8"))), caps=caps)
    cut = data.draw(st.integers(0, len(values)))
    wide = data.draw(st.tuples(st.integers(caps[0], 9), st.integers(caps[1], 20)))
    assert h(values[:cut]) + h(values[cut:]) == h(values)
    assert Histogram.sum(*(h(values[i:i + 7]) for i in range(0, len(values) or 1, 7))) == h(values)
    assert h(values[:cut]) + h(values[cut:], wide) == h(values)


def hostile(rng, n):
    return {
        "cluster": np.concatenate([rng.uniform(1e9 - 1, 1e9 + 1, n // 2), rng.standard_cauchy(n - n // 2)]),
        "normal": rng.normal(size=n),
        "lognormal": rng.lognormal(0, 5, n),
        "cauchy": rng.standard_cauchy(n),
        "uniform": rng.uniform(-1, 1, n),
        "integers": rng.integers(-(2**62), 2**62, n).astype("f8"),
        "minutes": np.round(rng.gamma(1, 40, n)),
        "money": np.round(rng.lognormal(3, 1, n), 2),
        "epoch": rng.uniform(1.3e9, 1.4e9, n),
        "two_scales": np.where(rng.random(n) < 0.5, rng.normal(0, 1e-12, n), rng.normal(1, 1e-9, n)),
    }


def rank_error(column, values, qs):
    """How far, in ranks, the profile's quantiles lie from the asked ones."""
    x, got = np.sort(values), column.quantile(qs)
    above, below = np.searchsorted(x, got, "right") / len(x), np.searchsorted(x, got, "left") / len(x)
    return np.maximum(np.maximum(qs - above, below - qs), 0).max()


def test_every_rank_error_is_within_resolution_and_one_percent():
    rng, qs = np.random.default_rng(3), np.linspace(0, 1, 401)
    data = hostile(rng, 100_000)
    p = total(profile(pa.table({k: v[i::4] for k, v in data.items()})) for i in range(4))
    for name, x in data.items():
        c, x = p[name], np.sort(x)
        worst = rank_error(c, x, qs)
        assert c.resolution <= .01, (name, c.resolution)
        assert worst <= c.resolution + 2 / len(x), (name, worst, c.resolution)
        assert abs(c.distinct / len(np.unique(x)) - 1) < .03, name
        scale = np.abs(x).max()
        assert abs(c.mean - x.mean()) <= 1e-9 * scale and abs(c.std - x.std(ddof=1)) <= 1e-9 * scale


def test_long_columns_from_sorted_keys_are_those_made_in_one_piece():
    """Batches of measurements are summarised from sorted keys, a table in one piece from counted values: two ways to
    one state, on every hostile distribution, with nulls, NaN, infinities and values that come again."""
    from scalai_nb.data.profile import Counting, _batches, _of_table
    rng, n = np.random.default_rng(21), 60_000
    values = hostile(rng, n) | {"again": rng.choice(rng.normal(size=25_000), n)}
    values = {
        k: np.where(rng.random(n) < 0.01, rng.choice([np.nan, np.inf, -np.inf, -0.0], n), x) for k, x in values.items()
    }
    table = pa.table({k: pa.array(rng.permutation(x), mask=rng.random(n) < .02) for k, x in values.items()})
    whole = _of_table(table)
    for limit in (1 << 17, 20_000):
        counting = Counting(table.schema, 1 << 16)
        for c in counting.counters.values(): c.limit = limit
        for batch in _batches([table.slice(0, 33_333), table.slice(33_333)]): counting.add(batch)
        made = counting.profile()
        assert made == whole
        for name, c in whole.columns.items():
            truth = pd.Series(np.array(table[name].drop_null())).value_counts()
            found = {v: (low, high) for v, low, high in made[name].top(600)}
            assert all(low <= truth[v] <= high for v, (low, high) in found.items()), name
            assert {v for v in truth.index[truth > n / 513] if np.isfinite(v)} <= set(found), name


def test_flights_are_what_pandas_says(flights, backend):
    p = profile(backend.frame(flights))
    assert p.rows == len(flights) and len(p.to_bytes()) <= 1_000_000
    for name in flights:
        c, x = p[name], flights[name]
        assert c.nulls == x.isna().sum()
        exact = x.nunique()
        assert abs(c.distinct / exact - 1) < .03, name
        assert c.resolution <= .01
        if c.kind == "number":
            x = x.dropna().to_numpy("f8")
            qs = np.array([.01, .05, .25, .5, .75, .95, .99])
            assert rank_error(c, x, qs) <= c.resolution + 2 / len(x)
            if c.resolution == 0: np.testing.assert_allclose(c.quantile(qs), np.quantile(x, qs))
            np.testing.assert_allclose(
                [c.min, c.max, c.mean, c.std], [x.min(), x.max(), x.mean(), x.std(ddof=1)], rtol=1e-9
            )
        counts = x.value_counts() if c.kind == "text" else None
        if counts is not None:
            for value, low, high in c.top(20): assert low <= counts[value] <= high
    json.dumps(p.to_dict(), allow_nan=False)


def test_families_sum_to_the_whole(flights, backend):
    part = flights[["month", "origin", "carrier", "dep_delay", "tailnum", "time_hour"]].head(60_000)
    whole = profile(part)
    assert sum(profile(backend.frame(part), by="carrier").values()) == whole
    family = profile(backend.frame(part), by=["month", "origin"])
    assert sum(family.values()) == whole and all(isinstance(k, tuple) for k in family)
    missing = profile(part, by="tailnum" if part["tailnum"].nunique() < 50 else "dep_delay")
    assert sum(missing.values()) == whole  # rows without a key are a group too


def test_heavy_hitters_are_bounded_in_any_order_of_adding():
    rng = np.random.default_rng(4)
    words = np.array([f"w{i}" for i in np.minimum(rng.zipf(1.2, 60_000), 10**9)], object)
    numbers = np.where(rng.random(60_000) < .3, 7.25, rng.normal(size=60_000))
    table = pa.table({"w": words, "x": numbers})
    parts = [profile(table.slice(i, 3_000)) for i in range(0, 60_000, 3_000)]
    truth = pd.Series(words).value_counts()
    for p in (sum(parts), total(parts), functools.reduce(lambda a, b: b + a, parts)):
        found = {v: (low, high) for v, low, high in p["w"].top(600)}
        assert all(low <= truth[v] <= high for v, (low, high) in found.items())
        assert set(truth.index[truth > 60_000 / 513]) <= set(found)
        value, low, high = p["x"].top(1)[0]
        assert value == 7.25 and low <= (numbers == 7.25).sum() <= high


def test_wide_tables_get_smaller_histograms_and_still_add():
    rng = np.random.default_rng(5)
    table = pa.table({f"c{i}": rng.normal(size=3_000) for i in range(120)})
    assert profile(table.slice(0, 100)) + profile(table.slice(100)) == profile(table)
    narrow = profile(table.select(["c0"]))
    assert narrow.caps == (64, 512) and (narrow + profile(table)).caps == (32, 256)
    assert len(profile(table).corr()[0]) == 64


def test_size_stays_under_two_megabytes_for_any_twenty_columns():
    rng = np.random.default_rng(6)
    x = {f"{k}{j}": v for j in range(2) for k, v in hostile(rng, 200_000).items()}
    assert len(x) == 20
    assert len(profile(pa.table(x)).to_bytes()) <= 2_000_000


def test_types_of_every_sort():
    from datetime import date, time, timedelta
    from decimal import Decimal
    t = pa.table(
        {
            "dec": pa.array([Decimal("1.50"), None]),
            "date": pa.array([date(2013, 1, 1), None]),
            "time": pa.array([time(1, 2), None]),
            "dur": pa.array([timedelta(seconds=3), None]),
            "zone": pa.array(pd.to_datetime(["2013-01-01 05:00", None]).tz_localize("America/New_York")),
            "dict": pa.array(["a", None]).dictionary_encode(),
            "view": pa.array(["a", None], pa.string_view()),
            "struct": pa.array([{"a": 1}, None]),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "bin": pa.array([b"\xff\x00", None]),
            "null": pa.nulls(2),
            "f16": pa.array([1.5, None], pa.float16()),
            "u64": pa.array([2**64 - 1, None], pa.uint64()),
            "big": pa.array(["x" * 5_000, None]),
            "fixed": pa.array([b"ab", None], pa.binary(2)),
        }
    )
    p = profile(t)
    assert all(p[n].nulls == 1 for n in t.column_names if n != "null") and p["null"].nulls == 2
    assert (p["dec"].mean, p["dur"].mean, p["time"].mean, p["u64"].max, p["zone"].to_dict()["min"]) == (
        1.5,
        3.0,
        3720.0,
        2**64 - 1,
        "2013-01-01T10:00:00Z",
    )
    assert [p[n].kind for n in ("dict", "view", "struct", "map", "date", "null")] == [
        "text",
        "text",
        "nested",
        "nested",
        "time",
        "null",
    ]
    json.dumps(p.to_dict(), allow_nan=False)
    assert sum(profile(t.slice(i, 1)) for i in range(2)) == p == Profile.from_bytes(p.to_bytes())


def test_ints_in_one_part_and_floats_in_the_next(backend):
    a, b = pd.DataFrame({"x": [1, 2, 3]}), pd.DataFrame({"x": [4.0, np.nan, 2.0]})
    assert profile(backend.frame(a)) + profile(backend.frame(b)) == profile(pd.concat([a, b]))
    lacking = pd.DataFrame({"x": [9.5]})
    c = pd.DataFrame({"x": [1.5], "y": ["a"]})
    assert profile(lacking) + profile(c) == profile(pd.concat([lacking, c]))


def test_dask_workers_and_threads_give_the_same_digest(flights, backend):
    import dask
    part = flights.head(40_000)
    frame = backend.lazy(part, 7)
    with dask.config.set(scheduler="threads"): assert profile(frame) == profile(part)
    with dask.config.set(scheduler="sync"): assert sum(profile(frame, by="month").values()) == profile(part)


def test_nothing_is_half_read(tmp_path, flights):
    data = profile(flights.head(1_000)).to_bytes()
    for cut in (0, 5, 100, len(data) // 2, len(data) - 3):
        with pytest.raises(BadRequest): Profile.from_bytes(data[:cut])
    with pytest.raises(BadRequest): profile(7)
    with pytest.raises(BadRequest): profile(flights, columns=["nothing"])


@quick
@given(st.lists(orno(st.one_of(ints, st.floats())), max_size=40))
def test_equal_values_hash_alike(values):
    as_float = pa.array([None if v is None else float(v) for v in values], pa.float64())
    whole = [v for v in values if isinstance(v, int) and float(v) == v and abs(v) < 2**63]
    assert (hash64(pa.array(whole, pa.int64())) == hash64(pa.array([float(v) for v in whole], pa.float64()))).all()
    k = len(values) // 2
    assert (np.concatenate([hash64(as_float.slice(0, k)), hash64(as_float.slice(k))]) == hash64(as_float)).all()


def test_aligned_histograms_keep_all_rows(flights):
    a, b = (profile(flights[flights["month"] == m]) for m in (1, 7))
    for name in ("dep_delay", "distance", "flight"):
        lo, hi, ca, cb = align(a[name], b[name])
        finite = lambda c: c.count - c.nan - c.inf
        assert ca.sum() == finite(a[name]) and cb.sum() == finite(b[name]) and (lo <= hi).all()
    labels, ca, cb = align_categories(a["carrier"], b["carrier"])
    assert labels and ca.sum() == a["carrier"].count
    assert align_categories(a["tailnum"], b["tailnum"])[1].sum() == a["tailnum"].count


def test_a_part_of_a_profile_is_the_profile_of_the_part():
    "Also where no numeric column is left, or only one."
    frame = pd.DataFrame({"carrier": ["UA", "AA", "UA"], "delay": [1., 2., 4.], "distance": [3, 1, 2]})
    whole = profile(frame)
    for names in (["carrier"], ["delay"], ["carrier", "delay"], ["delay", "distance"]):
        part = whole.select(names)
        assert part == profile(frame[names]) == whole.drop([n for n in frame if n not in names])
        assert part + part == profile(pd.concat([frame, frame])[names])


MANY = {  # pieces of a table, after how many rows its memory is taken, and how much may come to that
    "ten million distinct strings": (
        """
    import pyarrow.compute as pc
    for i in range(0, 10_000_000, 100_000):
        numbers = pa.array(range(i, i + 100_000)).cast(pa.string())
        yield pa.table({"id": pc.binary_join_element_wise("user", numbers, "-")})""",
        1_000_000,
        1.2,
    ),
    "two thousand columns": (
        """
    import numpy as np
    rng = np.random.default_rng(1)
    text = pa.array(rng.integers(0, 3_000, 8_192)).cast(pa.string())
    column = lambda i: rng.normal(i, 1, 8_192) if i % 2 else rng.integers(0, 10**6, 8_192)
    for _ in range(10): yield pa.table({f"c{i:04}": text if i % 4 == 3 else column(i) for i in range(2_000)})""",
        4 * 8_192,
        1.5,
    ),
}
COUNT = """
import json, resource, pyarrow as pa
from scalai_nb.data.profile import profile
def pieces():{pieces}
peaks, rows = [], 0
def seen():
    global rows
    for piece in pieces():
        yield piece
        rows += len(piece)
        if rows >= {settled}: peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
p = profile(seen())
distinct = p.columns[list(p.columns)[0]].distinct
print(json.dumps([p.rows, len(p.columns), distinct, peaks[0], peaks[-1], len(p.to_bytes()) / 1e6]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", MANY)
def test_memory_does_not_grow_with(what):
    import subprocess
    import sys
    pieces, settled, most = MANY[what]
    made = subprocess.run(
        [sys.executable, "-c", COUNT.format(pieces=pieces, settled=settled)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    rows, columns, distinct, before, after, size = json.loads(made.stdout)
    print(
        f"{what}: {rows:,} rows x {columns:,} columns, {distinct:,} distinct, {before:.0f} MB after {settled:,} rows,"
        f" {after:.0f} MB at the end, {size:.1f} MB saved"
    )
    assert after <= most * before
    if columns == 1: assert rows == 10_000_000 and abs(distinct / rows - 1) < .03 and size < 1
    else: assert (rows, columns) == (81_920, 2_000) and size < 60
