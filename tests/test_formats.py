"Files of every format, written by that format's own writers: what comes in, what goes to quarantine, what is refused."

import datetime as dt
import decimal
import gzip
import json
import random
import sqlite3
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as quick
from hypothesis import strategies as st

import scalai_nb as sn
from scalai_nb.cli.main import capture
from scalai_nb.core.settings import Settings
from scalai_nb.data import source
from scalai_nb.data.quarantine import Quarantine
from scalai_nb.data.table import Table

N = 40
WORDS = ["Köln", "東京", "a,b;\"c\"", None, "x\ny"]
DAYS = [dt.date(1899, 12, 31), dt.date(1955, 2, 3), dt.date(1970, 1, 1), dt.date(2024, 2, 29)]
ROWS = [{"id": i, "word": WORDS[i % 5], "x": None if i % 7 == 3 else i/8 - 1, "day": DAYS[i % 4], "ok": i % 3 == 0}
        for i in range(N)]


def frame():
    import pandas as pd
    return pd.DataFrame(ROWS)


def _sheet():  # a spreadsheet knows no day before 1900
    return frame().assign(day=[max(d, DAYS[1]) for d in frame()["day"]])


def _json_rows(): return [{k: v.isoformat() if isinstance(v, dt.date) else v for k, v in r.items()} for r in ROWS]


def _avro(path: Path) -> None:
    import fastavro
    nullable = lambda t: ["null", t]
    types = {"id": "long", "word": nullable("string"), "x": nullable("double"), "ok": "boolean",
             "day": {"type": "int", "logicalType": "date"}}
    fields = [{"name": n, "type": types[n]} for n in ROWS[0]]
    with open(path, "wb") as f:
        fastavro.writer(f, {"type": "record", "name": "r", "fields": fields}, ROWS, codec="deflate")


def _orc(path: Path) -> None:
    from pyarrow import orc
    orc.write_table(pa.Table.from_pylist(ROWS), path)


def _sqlite(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, word TEXT, x REAL, day DATE, ok BOOLEAN)")
        db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)",
                       [(r["id"], r["word"], r["x"], r["day"].isoformat(), r["ok"]) for r in ROWS])
    db.close()


def _duckdb(path: Path) -> None:
    import duckdb
    rows = pa.Table.from_pylist(ROWS)  # noqa: F841 (DuckDB finds it by its name)
    with duckdb.connect(str(path)) as db: db.execute("CREATE TABLE rows AS SELECT * FROM rows")


def _stats(writer: str):
    def write(path: Path) -> None:
        import pyreadstat
        data = frame().assign(word=[w or "" for w in frame()["word"].where(frame()["word"].notna(), None)])
        getattr(pyreadstat, writer)(data, path)
    return write


WRITERS = {
    "jsonl": lambda p: p.write_text("\n".join(map(json.dumps, _json_rows()))),
    "jsonl.gz": lambda p: p.write_bytes(gzip.compress("\n".join(map(json.dumps, _json_rows())).encode())),
    "jsonl.zst": lambda p: p.write_bytes(
        pa.compress("\n".join(map(json.dumps, _json_rows())).encode(), "zstd", asbytes=True)
    ),
    "json": lambda p: p.write_text(json.dumps(_json_rows(), indent=2, ensure_ascii=False)),
    "parquet": lambda p: pq.write_table(pa.Table.from_pylist(ROWS), p),
    "feather": lambda p: frame().to_feather(p),
    "orc": _orc,
    "avro": _avro,
    "xlsx": lambda p: _sheet().to_excel(p, index=False),
    "ods": lambda p: _sheet().to_excel(p, index=False),
    "db": _sqlite,
    "duckdb": _duckdb,
    "dta": _stats("write_dta"),
    "sav": _stats("write_sav"),
    "xpt": _stats("write_xport"),
}


@pytest.fixture
def settings(tmp_path): return Settings(root=tmp_path)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_comes_in_as_its_writer_wrote_it(kind, tmp_path, settings):
    file = tmp_path/f"rows.{kind}"
    WRITERS[kind](file)
    done = sn.ingest(file, "rows", settings=settings)
    assert (done.rows_good, done.refused) == (N, {})
    rows = sorted(Table("rows", settings).arrow().to_pylist(), key=lambda r: r["id"])
    assert [r["id"] for r in rows] == [*range(N)]
    assert [r["x"] for r in rows] == [r["x"] for r in ROWS]
    assert [r["word"] or None for r in rows] == [r["word"] for r in ROWS]
    assert [bool(r["ok"]) for r in rows] == [r["ok"] for r in ROWS]
    days = [dt.date.fromisoformat(str(r["day"])[:10]) for r in rows]
    assert days == [max(r["day"], DAYS[1]) if kind in ("xlsx", "ods") else r["day"] for r in ROWS]
    assert sn.ingest(file, "rows", settings=settings).already


@pytest.mark.parametrize("kind", [k for k in WRITERS if k not in ("jsonl", "json")])
def test_a_torn_file_says_so_in_two_lines_and_leaves_nothing(kind, tmp_path):
    file = tmp_path/f"rows.{kind}"
    WRITERS[kind](file)
    file.write_bytes(file.read_bytes()[:file.stat().st_size//2 + 7 if kind != "db" else 90])
    work = tmp_path/"work"
    assert capture(f"init {work}").code == 0
    done = capture(f"ingest {file} rows --settings {work/'settings.ini'}")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 2 and str(file) in done.err, done
    assert not Table("rows", Settings.load(work)).exists
    assert capture(f"read {file}").code == 2


@pytest.mark.parametrize("value, text", [(2**63 - 1, False), (2**63, False), (2**64 - 1, False),
                                         (2**64, True), (-2**63, False)])
def test_an_integer_of_json_is_never_rounded(value, text, tmp_path, settings):
    (tmp_path/"big.jsonl").write_text("".join(f'{{"id": {i}, "big": {value}}}\n' for i in range(5)))
    sn.ingest(tmp_path/"big.jsonl", "big", settings=settings)
    found = Table("big", settings).arrow()["big"].to_pylist()
    assert [int(v) for v in found] == [value]*5 and isinstance(found[0], str) is text


def test_a_decimal_keeps_its_digits(tmp_path, settings):
    import fastavro
    price = decimal.Decimal("-12345678901234567.89")
    fields = [{"name": "p", "type": {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 2}}]
    with open(tmp_path/"p.avro", "wb") as f:
        fastavro.writer(f, {"type": "record", "name": "r", "fields": fields}, [{"p": price}])
    sn.ingest(tmp_path/"p.avro", "p", settings=settings)
    assert Table("p", settings).arrow()["p"].to_pylist() == [price]


BREAKS = {
    "cut": lambda line: line[:len(line)//2],
    "no object": lambda line: "[1, 2]",
    "unknown": lambda line: line[:-1] + ', "surprise": 1}',
    "twice": lambda line: line[:-1] + ', "id": 1}',
    "word": lambda line: line.replace('"w": "w"', '"w": 7'),
    "bytes": lambda line: line.replace('"w"', '"w\udcff"'),
}


@quick(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 399), st.sampled_from([*BREAKS]), max_size=30),
       st.sampled_from(["lines", "list of lines"]),
       st.booleans())
def test_every_record_of_a_damaged_json_file_is_accounted_for(breaks, layout, nested):
    import tempfile
    rows = [{"id": i, "x": i/4, "w": "w", **({"to": {"y": i}} if nested else {"y": i})} for i in range(400)]
    lines = [*map(json.dumps, rows)]
    for i, b in breaks.items(): lines[i] = BREAKS[b](lines[i])
    text = "\n".join(lines) if layout == "lines" else "[" + ",\n".join(lines) + "]"
    with tempfile.TemporaryDirectory() as folder:
        file, bad = Path(folder)/"d.json", []
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        found = [r for t in source.batches(file, text=True, bad=bad) for r in t.to_pylist()]
    # numbers of a slice with other values come as text
    good = {int(r["id"]): r for r in found}
    assert len(good) == len(found) and {n for n, *_ in bad} == {i + 1 for i in range(400) if i not in good}
    for i in range(400):
        if i in breaks: continue
        assert float(good[i]["x"]) == i/4 and int(good[i]["to.y" if nested else "y"]) == i


@quick(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 99), unique=True, max_size=8), st.sampled_from([None, 1]), st.integers(0, 9))
def test_records_of_a_damaged_list_are_found_again(cuts, indent, seed):
    import tempfile
    rows = [{"id": i, "to": [{"z": j} for j in range(i % 3)], "word": "},{"*(i % 2)} for i in range(100)]
    texts = [json.dumps(r, indent=indent) for r in rows]
    for i in cuts: texts[i] = texts[i].replace('"to"', ['"to', 'to"', '"to" "'][(seed + i) % 3], 1)
    with tempfile.TemporaryDirectory() as folder:
        file, bad = Path(folder)/"d.json", []
        file.write_text("[" + ", ".join(texts) + "]")
        found = {r["id"] for t in source.batches(file, text=True, bad=bad) for r in t.to_pylist()}
    assert found == {*range(100)} - {*cuts} and len(bad) <= len(cuts) and bool(bad) == bool(cuts)


def test_a_json_ingest_names_the_lines_that_it_set_aside(tmp_path, settings):
    lines = [json.dumps({"id": i, "x": i/2}) for i in range(2_000)]
    lines[700], lines[1_200] = lines[700][:9], '{"id": 1200, "x": "oops"}'
    (tmp_path/"k.jsonl").write_text("\n".join(lines))
    done = sn.ingest(tmp_path/"k.jsonl", "k", settings=settings)
    assert (done.rows_in, done.rows_good, done.refused) == (2_000, 1_998, {"line: not JSON": 1, "x: not a number": 1})
    pen = {r["_reason"]: r for r in Quarantine(Table("k", settings)).arrow().to_pylist()}
    assert pen["line: not JSON"]["_line"] == "701" and pen["x: not a number"]["x"] == "oops"
    assert str(Table("k", settings).schema.field("x").type) == "double"


def test_both_date_systems_and_error_cells_of_excel(tmp_path):
    import openpyxl
    from openpyxl.utils.datetime import CALENDAR_MAC_1904
    for epoch in (None, CALENDAR_MAC_1904):
        book = openpyxl.Workbook()
        if epoch: book.epoch = epoch
        for line in [["id", "day", "x"], [1, dt.date(1955, 2, 3), 1.5], [2, dt.date(2024, 2, 29), "#N/A"]]:
            book.active.append(line)
        book.active["C3"].data_type = "e"
        book.save(tmp_path/"d.xlsx")
        rows = next(source.batches(tmp_path/"d.xlsx")).to_pydict()
        assert rows == {"id": [1, 2], "day": [dt.date(1955, 2, 3), dt.date(2024, 2, 29)], "x": [1.5, None]}
        said = json.loads(capture(f"read {tmp_path/'d.xlsx'} --json").out)
        assert "1 cell is an error and becomes null: C3" in said["remarks"]


def test_a_damaged_row_group_is_named_and_left_out_when_asked(tmp_path):
    file, work = tmp_path/"p.parquet", tmp_path/"work"
    pq.write_table(pa.table({"id": range(3_000), "x": [random.Random(i).random() for i in range(3_000)]}), file,
                   row_group_size=1_000, compression="zstd", use_dictionary=False)
    at = pq.read_metadata(file).row_group(1).column(1)
    data = bytearray(file.read_bytes())
    data[at.data_page_offset + 40 : at.data_page_offset + at.total_compressed_size // 2] = bytes(
        at.total_compressed_size // 2 - 40
    )
    file.write_bytes(data)
    capture(f"init {work}")
    ini = f"--settings {work/'settings.ini'}"
    done = capture(f"ingest {file} p {ini}")
    assert done.code == 2 and "row group 2, rows 1,001 to 2,000" in done.err and "--damaged skip" in done.err, done
    done = capture(f"ingest {file} p --damaged skip --json {ini}")
    said = json.loads(done.out)
    assert (said["rows_good"], said["refused"]) == (2_000, {"row group: damaged": 1}), said


def test_a_zip_of_many_files_is_a_folder(tmp_path, settings):
    with zipfile.ZipFile(tmp_path/"all.zip", "w") as z:
        for name, some in (("a.csv", ROWS[:10]), ("deep/b.csv", ROWS[10:])):
            z.writestr(name, "id,ok\n" + "".join(f"{r['id']},{r['ok']}\n" for r in some))
        z.writestr("readme.md", "words")
    assert sn.ingest(tmp_path/"all.zip", "rows", settings=settings).rows_good == N
    with zipfile.ZipFile(tmp_path/"one.jsonl.zip", "w") as z:
        z.writestr("one.jsonl", "\n".join(map(json.dumps, _json_rows())))
    assert sn.ingest(tmp_path/"one.jsonl.zip", "one", settings=settings).rows_good == N


def test_a_table_of_a_database_file(tmp_path):
    _sqlite(tmp_path/"shop.db")
    work = tmp_path/"work"
    done = capture(f"init {work} --from {tmp_path/'shop.db'}::rows --target ok --key id")
    assert done.code == 0, done.err
    done = capture(f"read {tmp_path/'shop.db'}::row")
    assert done.code == 2 and done.err.splitlines()[1] == "Did you mean 'rows'?"


def test_fixed_width_by_flag_and_found(tmp_path, settings):
    (tmp_path/"k.fwf").write_text("".join(f"{i:06}{'Köln':<10}{i/4:8.2f}\n" for i in range(50)) + "short\n")
    done = capture(f"read {tmp_path/'k.fwf'} --widths 6,10,8 --json")
    said = json.loads(done.out)
    assert said["columns"] == {"column_1": "string", "column_2": "string", "column_3": "float64"}, said
    assert any("line 51, 'short'" in r for r in said["remarks"])
    assert capture(f"read {tmp_path/'k.fwf'} --widths 6,x").code == 2


@pytest.mark.parametrize("kind, module, extra", [("avro", "fastavro", "avro"), ("dta", "pyreadstat", "stats"),
                                                 ("duckdb", "duckdb", "duckdb")])
def test_a_missing_extra_is_named_with_its_command(kind, module, extra, tmp_path, monkeypatch):
    WRITERS[kind](file := tmp_path/f"rows.{kind}")
    monkeypatch.setitem(sys.modules, module, None)
    done = capture(f"read {file}")
    assert done.code == 2 and done.err.splitlines()[1] == f"pip install 'scalai-nb[{extra}]'"


def test_look_first(tmp_path):
    lines = [json.dumps({"id": i, "to": {"city": "Köln", "tags": [i]}}) for i in range(300)]
    lines[100] = lines[100][:9]
    (tmp_path/"k.jsonl").write_text("\n".join(lines))
    done = capture(f"read {tmp_path/'k.jsonl'} --json --rows 3")
    said = json.loads(done.out)
    assert done.code == 0 and said["found"] == "JSON lines, utf-8, 3 columns" and len(said["rows"]) == 3
    assert said["columns"] == {"id": "int64", "to.city": "string", "to.tags": "string"}
    assert said["rows"][2] == {"id": "2", "to.city": "Köln", "to.tags": "[2]"}
    assert any("not JSON: line 101" in r for r in said["remarks"])
    text = capture(f"read {tmp_path/'k.jsonl'}").out
    assert "<int64>" in text and "JSON lines" in text
    assert "JSON lines" in sn.read(tmp_path/"k.jsonl", bad=[])._repr_html_()
