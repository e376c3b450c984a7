"Type names: a round trip for every type that a table can hold, through profile, contract, check and ingest."

import datetime as dt
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalai_nb.core.errors import BadRequest
from scalai_nb.data.contract import Contract
from scalai_nb.data.ingest import ingest
from scalai_nb.data.profile import profile
from scalai_nb.data.rules import Rule
from scalai_nb.data.table import Table
from scalai_nb.data.types import arrow_type, declared_type, kind, stored, stored_type, type_name
from scalai_nb.data.write import write

units, zones = st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from([None, "UTC", "Asia/Tokyo", "+05:30"])
texts = st.sampled_from([pa.string(), pa.large_string(), pa.string_view()])
plain = st.one_of(
    st.sampled_from(
        [
            pa.bool_(),
            pa.float16(),
            pa.float32(),
            pa.float64(),
            pa.date32(),
            pa.date64(),
            pa.null(),
            pa.binary(),
            pa.large_binary(),
            pa.binary_view(),
            pa.binary(4),
            *(getattr(pa, f"{u}int{n}")() for n in (8, 16, 32, 64) for u in ("", "u")),
        ]
    ),
    texts,
    st.builds(pa.timestamp, units, zones),
    st.builds(pa.duration, units),
    units.map(lambda u: pa.time32(u) if u in ("s", "ms") else pa.time64(u)),
    st.integers(1, 38).flatmap(lambda p: st.integers(-3, p).map(lambda s: pa.decimal128(p, s))),
    st.integers(1, 76).flatmap(lambda p: st.integers(0, p).map(lambda s: pa.decimal256(p, s))),
)
names = st.text("aZ_0 :<>,\"\\é", min_size=1, max_size=6)
nested = st.recursive(
    plain,
    lambda t: st.one_of(
        t.map(pa.list_),
        t.map(pa.large_list),
        t.map(lambda x: pa.list_(x, 2)),
        texts.flatmap(lambda k: t.map(lambda v: pa.map_(k, v))),
        st.lists(st.tuples(names, t), min_size=1, max_size=3, unique_by=lambda f: f[0]).map(pa.struct),
    ),
    max_leaves=4,
)
encoded = st.one_of(
    nested, texts.map(lambda t: pa.dictionary(pa.int32(), t)), st.just(pa.run_end_encoded(pa.int32(), pa.int64()))
)


@settings(max_examples=200, deadline=None)
@given(encoded)
def test_names_and_types_are_one_round_trip(t):
    name = type_name(t)
    back = arrow_type(name)
    assert (
        type_name(back) == name
        and arrow_type(type_name(back)) == back
        and kind(name) in ("number", "boolean", "text", "time", "null", "nested")
    )
    if (kept := stored_type(t)) is None: return
    assert stored_type(kept) == kept and stored_type(back) == stored_type(arrow_type(type_name(back)))
    assert kind(type_name(kept)) == kind(name) or "time[" in name or name == "null"
    if (word := declared_type(t)) is not None:
        assert type_name(arrow_type(word)) == word and stored_type(arrow_type(word)) == kept or t == pa.null()


@settings(max_examples=100, deadline=None)
@given(st.text("intflodeca<>,:[] 0129us\"()", max_size=20))
def test_what_is_no_name_is_refused_in_two_lines(word):
    try: assert arrow_type(type_name(arrow_type(word))) == arrow_type(word)
    except BadRequest as e: assert e.hint


at = dt.datetime(2013, 1, 1, 5, 15)
COLUMNS = {  # of every type: values, and what a table keeps of them
    "bool": pa.array([True, None, False]),
    "int8": pa.array([1, None, -3], pa.int8()),
    "uint8": pa.array([200, None, 3], pa.uint8()),
    "uint32": pa.array([2**32 - 1, None, 3], pa.uint32()),
    "uint64": pa.array([2**64 - 1, None, 3], pa.uint64()),
    "float16": pa.array(np.array([1.5, 2.25, -2], "f2")),
    "float32": pa.array([1.5, None, 2], pa.float32()),
    "duration_s": pa.array([90, None, 1], pa.duration("s")),
    "duration_ns": pa.array([90_000_001_000, None, 1000], pa.duration("ns")),
    "time_s": pa.array([dt.time(5, 15), None, dt.time(23, 59, 59)], pa.time32("s")),
    "time_us": pa.array([dt.time(5, 15, 0, 7), None, dt.time(0)], pa.time64("us")),
    "date64": pa.array([at.date(), None, at.date()], pa.date64()),
    "at_ns": pa.array([at, None, at], pa.timestamp("ns")),
    "at_zone": pa.array([at, None, at], pa.timestamp("s", "Asia/Tokyo")),
    "decimal128": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-3.50")], pa.decimal128(7, 2)),
    "decimal256": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-3.50")], pa.decimal256(30, 2)),
    "large_string": pa.array(["a", None, "é"], pa.large_string()),
    "string_view": pa.array(["a", None, "é"], pa.string_view()),
    "coded": pa.array(["a", None, "a"]).dictionary_encode(),
    "coded_numbers": pa.array([7, None, 7]).dictionary_encode(),
    "binary": pa.array([b"a", None, b"\xff"]),
    "large_binary": pa.array([b"a", None, b"\xff"], pa.large_binary()),
    "fixed": pa.array([b"ab", None, b"\xff\xfe"], pa.binary(2)),
    "null": pa.array([None, None, None]),
    "list": pa.array([[1, 200], None, []], pa.list_(pa.uint8())),
    "large_list": pa.array([["a"], None, []], pa.large_list(pa.large_string())),
    "struct": pa.array(
        [{"a": 1, "b": "x"}, None, {"a": 255, "b": None}], pa.struct([("a", pa.uint8()), ("b", pa.string())])
    ),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
}
CANNOT = {
    "decimal256": pa.array([decimal.Decimal(10) ** 45, None], pa.decimal256(50, 2)),
    "interval": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    "durations": pa.array([[90], None], pa.list_(pa.duration("s"))),
    "nothing": pa.array([{}, None], pa.struct([])),
}


def test_every_type_goes_through_profile_contract_check_and_ingest(workspace):
    rows = pa.table({"n": pa.array(range(3)), **COLUMNS})
    contract = Contract.infer(seen := profile(rows))
    contract.save("all.yaml")
    assert Contract.load("all.yaml") == contract
    done = contract.check(rows)
    assert done.reasons == {} and done.good.num_rows == len(rows)
    kept = pa.table({n: stored(rows[n], n) for n in rows.column_names})
    assert write(rows, "written", contract).refused == write(rows, "bare").refused == {}
    pq.write_table(rows, "a.parquet")
    pq.write_table(rows, "b.parquet", compression="gzip")
    for i, given_contract in enumerate((contract, None)):
        for batch in "ab":  # the second batch meets the types of the table
            assert ingest(f"{batch}.parquet", f"ingested{i}", given_contract, period=batch).refused == {}
    for table, times in {"written": 1, "bare": 1, "ingested0": 2, "ingested1": 2}.items():
        held, back = Table(table).arrow(), Table(table).profile()
        for name, c in seen.columns.items():
            assert (
                held[name].null_count == times * rows[name].null_count
                and held[name].to_pylist() == kept[name].to_pylist() * times
            ), (table, name)
            if name.startswith("time"): continue  # numbers of seconds there, text here
            high = float(c.max) if name == "uint64" else c.max  # a decimal there
            assert (back[name].count, back[name].distinct, back[name].min, back[name].max) == (
                times * c.count,
                c.distinct,
                c.min,
                high,
            ), (table, name)


@pytest.mark.parametrize("name", CANNOT)
def test_what_no_table_holds_is_refused_before_anything_is_written(workspace, name):
    rows = pa.table({"n": [1, 2], "x": CANNOT[name]})
    assert profile(rows)["x"].count == 1
    with pytest.raises(BadRequest, match=r"Column 'x': no table holds values of type") as e: write(rows, "t")
    assert e.value.hint and not Table("t").exists
    if name == "decimal256":
        assert Contract.infer(profile(rows))["x"].type == "string"
        with pytest.raises(BadRequest, match="Column 'x': no table holds"):
            Contract.from_dict({"columns": {"x": {"type": "decimal(50, 2)"}}})
        assert (
            write(rows, "t", Contract.infer(profile(rows))).rows_good == 2
            and Table("t").arrow()["x"].to_pylist()[0] == f"{10**45}.00"
        )


def test_lengths_of_time_are_seconds_whatever_their_unit(workspace):
    "Two files, one in seconds and one in nanoseconds, make one column."
    for i, unit in enumerate(("s", "ns")):
        pq.write_table(
            pa.table({"waited": pa.array([90], pa.duration("s")).cast(pa.duration(unit))}), f"{unit}.parquet"
        )
        ingest(f"{unit}.parquet", "waits")
    assert Table("waits").arrow()["waited"].to_pylist() == [90., 90.]
    with pytest.raises(BadRequest, match="Column 'waited': no table holds"):
        Contract({"waited": Rule("duration[us]")}).sensible()
