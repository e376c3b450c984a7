"Type inference of texts: nothing is lost or guessed in silence; doubt is reported with counts and a proposal."

from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from conftest import scalai
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from scalai_nb.core.errors import BadRequest
from scalai_nb.data import text_files
from scalai_nb.data.contract import Contract
from scalai_nb.data.ingest import ingest
from scalai_nb.data.profile import profile
from scalai_nb.data.rules import Rule
from scalai_nb.data.table import Table


def file(name: str, **columns) -> str:
    Path(name).write_text(
        ",".join(columns)
        + "\n"
        + "".join(",".join(f'"{v}"' if "," in v else v for v in row) + "\n" for row in zip(*columns.values()))
    )
    return name


def test_identifiers_and_large_numbers_come_in_as_they_were_written(workspace):
    uri = file(
        "a.csv",
        id=["000011", "000012"],
        big=["18446744073709551615", "1"],
        huge=["123456789012345678901234567890", "7"],
        n=["1", "2"],
    )
    kept = next(text_files.csv(uri))
    assert kept.to_pylist()[0] == {"id": "000011", "big": 2**64 - 1, "huge": "123456789012345678901234567890", "n": 1}
    contract = Contract.infer(profile(uri))
    assert {n: r.type for n, r in contract.columns.items()} == {
        "id": "string",
        "big": "uint64",
        "huge": "string",
        "n": "int64",
    }
    for given_contract in (contract, None):
        name = "with" if given_contract else "without"
        assert ingest(uri, name, given_contract).refused == {}
        assert [str(v) for v in Table(name).arrow().to_pylist()[0].values()] == [
            "000011",
            str(2**64 - 1),
            "123456789012345678901234567890",
            "1",
        ]
    assert "decimal(30, 0)" in contract.notes["huge"]


def test_a_word_for_a_missing_value_is_one_only_when_somebody_said_so(workspace):
    uri = file("a.csv", n=[str(i) for i in range(97)] + ["NA", "-", "many"], country=["NA"] + ["DE"]*99)
    seen = profile(uri)
    assert seen["n"].nulls == seen["country"].nulls == 0 and seen["n"].formats["missing"] == 2
    said = next(w for w in seen.warnings() if w.startswith("n holds numbers"))
    assert (
        "97 of 98 values" in said
        and "'NA' once" in said
        and "1 other" in said
        and 'clean: [{"nulls": {"n": ["-", "NA"]}}]' in said
    )
    contract = Contract.infer(seen)
    assert "'NA' once" in contract.notes["country"] and "# n holds numbers as text" in contract.to_yaml()
    assert ingest(uri, "as_it_came").refused == {} and Table("as_it_came").arrow()["country"].null_count == 0
    read = Contract({"n": Rule("int64")}, clean=({"nulls": {"n": ["NA", "-"]}},))
    done = ingest(uri, "read", read, period="x")
    assert (
        done.refused == {"n: not an integer": 1}
        and Table("read").arrow()["n"].null_count == 2
        and "NA" in Table("read").arrow()["country"].to_pylist()
    )
    assert ingest(uri, "strict", Contract({"n": Rule("int64")}), period="y").refused == {"n: not an integer": 3}


@pytest.mark.parametrize(
    "values,words",
    [
        (
            [f"{i},5" for i in range(95)] + ["odd"] * 5,
            ("decimal comma", "type: float64", '{"decimal": {"x": ","}}'),
        ),
        ([f"1,{i:03},000.5" for i in range(95)] + ["odd"] * 5, ('{"decimal": {"x": "."}}',)),
        ([f"{i},234" for i in range(1, 96)] + ["odd"] * 5, ("may be 1234 or 1.234",)),
        (
            [f"{1 + i % 28:02}.01.2013 05:15" for i in range(95)] + ["soon"] * 5,
            ("95 of 100 values", "timestamp[us]", "%d.%m.%Y %H:%M"),
        ),
        ([f"{1 + i % 28:02}/02/2013" for i in range(95)] + ["soon"] * 5, ("type: date", "%d/%m/%Y")),
        (
            [f"{1 + i % 12:02}/02/2013" for i in range(95)] + ["soon"] * 5,
            ("no value says whether the day or the month comes first",),
        ),
        ([f"{i}" for i in range(95)] + ["007"] * 5, ("95 of 100 values", "5 with leading zeros")),
        ([f"{i}" for i in range(80)] + ["seven"] * 20, ()),
    ],
)
def test_what_is_almost_a_number_or_a_date_is_reported_with_counts_and_a_step(workspace, values, words):
    uri = file("a.csv", x=values)
    seen = profile(uri)
    said = [w for w in seen.warnings() if " as text: " in w]
    assert seen["x"].type == "string" and bool(said) == bool(words)
    for w in words:
        assert w in said[0] and w in str(seen) .replace("\n    ", " ") and w in Contract.infer(seen).to_yaml()
    half = profile(pa.table({"x": values[:50]})) + profile(pa.table({"x": values[50:]}))
    assert half == seen


def test_the_proposed_steps_do_what_was_proposed(workspace):
    uri = file(
        "a.csv",
        price=[f"{i}.234,5" for i in range(1, 96)] + ["NA"] * 5,
        at=[f"{1 + i % 28}.1.2013" for i in range(100)],
    )
    contract = Contract.infer(profile(uri))
    assert all(
        f in contract.notes["price"] for f in ('{"nulls": {"price": ["NA"]}}', '{"decimal": {"price": ","}}')
    )
    taken = Contract(
        {"price": Rule("float64"), "at": Rule("date")},
        clean=({"nulls": {"price": ["NA"]}}, {"decimal": {"price": ","}}, {"dates": {"at": ["%d.%m.%Y"]}}),
    )
    assert (
        ingest(uri, "t", taken).refused == {}
        and Table("t").arrow()["price"].to_pylist()[0] == 1234.5
        and Table("t").arrow()["price"].null_count == 5
    )


def test_what_comes_after_the_first_look_is_not_lost_either(workspace, monkeypatch):
    monkeypatch.setattr(text_files, "SNIFF", 1 << 10)
    early = [str(i) for i in range(10, 900)]
    for late, nulls in (("000011", ()), ("18446744073709551616", ()), ("NA", ("NA",))):
        uri = file("a.csv", x=[*early, late])
        with pytest.raises(BadRequest, match=f"column 'x' holds '{late}'"): list(text_files.csv(uri))
        assert pa.concat_tables(text_files.csv(uri, types={"x": "string"}))["x"].to_pylist()[-1] == late
        if nulls: assert pa.concat_tables(text_files.csv(uri, na=nulls))["x"].null_count == 1
    uri = file("a.csv", x=[*early, "000011"])
    assert ingest(uri, "t").refused == {"x: leading zeros": 1}
    assert ingest(uri, "u", Contract({"x": Rule("int64")})).refused == {}  # a person said that it is a number


def test_a_messy_file_through_the_command(workspace):
    uri = file(
        "a.csv",
        id=["000011"] * 50 + ["000012"] * 50,
        price=[f"{i},5" for i in range(90)] + ["NA"] * 10,
        country=["NA", "DE"] * 50,
    )
    shown = scalai("profile", uri)
    assert (
        shown.code == 0
        and "price holds numbers as text" in " ".join(shown.out.split())
        and "'NA' 10 times" in " ".join(shown.out.split())
    )
    assert scalai("profile", uri, "--json").doc["columns"]["price"]["formats"] == {"comma": 90, "missing": 10}
    made = scalai("contract", "infer", uri, "--save", "c.yaml")
    assert (
        made.code == 0
        and "# price holds numbers as text: 90 of 90 values, 'NA' 10 times" in Path("c.yaml").read_text()
    )
    assert (
        scalai("contract", "check", uri, "c.yaml").code == 0
        and scalai("ingest", uri, "t", "--contract", "c.yaml").code == 0
    )
    assert Table("t").arrow()["id"][0].as_py() == "000011"


WORDS = st.one_of(
    st.sampled_from(
        [
            "no",
            "Yes",
            "on",
            "OFF",
            "y",
            "N",
            "1e3",
            "012",
            "0x1f",
            "1:30",
            "2013-01-01",
            "~",
            "null",
            "",
            "=",
            "<<",
            "1_000",
            ".5",
            "-",
            "?",
            "#a",
            "a: b",
            "é",
            "'",
            '"',
            "- a",
            "0b1",
            ".inf",
            "nan",
        ]
    ),
    st.text("noyes01e3_:.-+~ 'xX#&*!|>%@`\"", max_size=5),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS.filter(bool), min_size=1, max_size=6, unique=True), st.lists(WORDS, max_size=3, unique=True))
def test_yaml_means_the_same_to_readers_of_both_versions(names, values):
    contract = Contract(
        {n: Rule("string", categories=tuple(values) or None) for n in names}, nulls=tuple(values), key=(names[0],)
    )
    text = contract.to_yaml()
    for read in (YAML(typ="safe", pure=True).load(text), yaml.safe_load(text)):
        assert (
            list(read["columns"]) == names
            and tuple(read.get("nulls", ())) == tuple(values)
            and read["key"] == [names[0]]
        )
        for n in names: assert tuple((read["columns"][n] or {}).get("categories", ())) == tuple(values)
    assert Contract.from_dict(YAML(typ="safe", pure=True).load(text)) == contract
