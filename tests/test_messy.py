"Files as strangers write them: from `scalai init --from` to what the table holds; and what is refused, in two lines."

import gzip
import io
import json
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

import scalai_nb as sn
from scalai_nb.cli.main import capture
from scalai_nb.core.settings import Settings
from scalai_nb.data import text_files
from scalai_nb.data.read_options import ReadOptions
from scalai_nb.data.table import Table
from scalai_nb.data.table_file import TableFile

N = 60


def table(sep=",", end="\n", **columns) -> str:
    "Sixty customers as text: a key with leading zeros, a number, two words and a target; with more columns."
    rows = {"Kunden Nr": [f"{i:05}" for i in range(N)], "Größe (m²)": [f"{50 + i}.5" for i in range(N)],
            "🚀 plan": ["basic", "plus", "max"]*20, "churn": ["yes", "no"]*30} | columns
    return end.join(sep.join(line) for line in [list(rows), *zip(*rows.values())]) + end


class Work:
    "A folder with a file, and a workspace made from it."
    def __init__(self, folder: Path): self.folder, self.path = folder, folder/"work"

    def init(self, *options: str):
        return capture(f"init {self.path} --from {self.source} --json " + " ".join(options))

    def take(self, name: str, data: bytes | str, *options: str) -> dict:  # what init reports
        "Make a workspace from a file, and ingest it as the job does."
        self.source = self.folder/name
        self.source.write_bytes(data if isinstance(data, bytes) else data.encode())
        return self.taken(*options)

    def taken(self, *options: str) -> dict:
        done = self.init("--target churn", *options)
        assert done.code == 0, done.err
        self.settings = Settings.load(self.path)
        self.file = TableFile.load("", self.settings)
        self.ingested = self.file.ingest(self.settings)
        self.rows = Table(self.file.name, self.settings).arrow()
        if self.file.key: self.rows = self.rows.sort_by(self.file.key[0])
        return json.loads(done.out)

    def refused(self) -> dict[str, int]: return {r: n for done in self.ingested for r, n in done.refused.items()}
    def values(self, name: str) -> list: return self.rows[name].to_pylist()


@pytest.fixture
def work(tmp_path) -> Work: return Work(tmp_path)


KEY = "--key 'Kunden Nr'"
COMMAS = [f"1.{i:03},25" for i in range(N)]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8-sig", "utf-16"])
def test_semicolons_decimal_commas_and_another_encoding(work, encoding):
    text = table(";", "\r\n", **{"Größe (m²)": COMMAS, "🚀 plan": ["Köln", "größer; als", "é"]*20})
    text = text.replace("größer; als", '"größer; als"').replace("🚀 plan", "Plan")
    said = work.take("k.csv", text.encode(encoding), KEY)
    assert said["read"] == {"sep": ";", "encoding": encoding.removesuffix("-sig"), "decimal": ","}
    assert work.file.read == ReadOptions.parse(**said["read"]) and work.refused() == {}
    assert work.values("Größe (m²)") == [1_000.25 + i for i in range(N)]
    assert work.values("Plan")[:3] == ["Köln", "größer; als", "é"] and work.values("Kunden Nr")[1] == "00001"
    assert "Größe (m²)" in json.loads(capture(f"profile {work.source} --json").out)["columns"]


@pytest.mark.parametrize("sep", ["\t", "|", ","])
def test_separators_and_headers_of_any_letters(work, sep):
    said = work.take("k.txt", table(sep), KEY)
    assert said["read"]["sep"] == sep and said["model"] == "churn"
    assert work.rows.column_names[:4] == ["Kunden Nr", "Größe (m²)", "🚀 plan", "churn"]
    assert set(work.values("churn")) == {"yes", "no"}


def test_options_win_over_what_is_found(work):
    work.take("k.csv", table(";", x=["1,5"]*30 + ["?"]*30), KEY, "--decimal , --na ? --encoding utf-8 --sep ';'")
    assert work.file.read.na == ("?",) and work.values("x") == [1.5]*30 + [None]*30
    assert work.values("Größe (m²)") == [50.5 + i for i in range(N)]  # points, against the mark of the file
    text = (work.path/"tables"/"k.toml").read_text()
    assert '[read]' in text and 'na = ["?"]' in text
    (work.path/"tables"/"k.toml").write_text(text.replace("decimal =", "decimals ="))
    with pytest.raises(sn.ScalaiError, match="Unknown key 'read.decimals'"): TableFile.load("k", work.settings)


def test_names_that_come_twice_or_not_at_all(work):
    said = work.take("k.csv", table().replace("Größe (m²),🚀 plan", "x,x").replace("Kunden Nr", ""), "--key column_1")
    assert work.rows.column_names[:3] == ["column_1", "x", "x_2"] and work.values("x_2")[0] == "basic"
    assert "column 3, 'x' in the header, is called 'x_2'" in said["remarks"]


def test_wrong_cells_go_to_quarantine_and_words_for_missing_values_are_null(work):
    x = [str(i) for i in range(N - 4)] + ["oops", "#!", "NA", "n/a"]
    said = work.take("k.csv", table(x=x, word=["NA", "US", "n/a"]*20, y=["1", "-"] + ["2"]*58), KEY)
    assert work.refused() == {"x: not an integer": 2} and work.values("x")[-2:] == [None, None]
    assert work.values("word")[:3] == ["NA", "US", "n/a"]  # a country, perhaps
    assert work.file.read.na == ("-",) and work.values("y")[:2] == [1, None]
    assert any(r.startswith("x holds numbers as text: 56 of 58 values") for r in said["remarks"])


def test_currencies_and_percentages_are_numbers(work):
    price, share = [f"{1 + i}.234,50 €" for i in range(N)], [f"{i} %" for i in range(N)]
    work.take("k.csv", table(";", price=price, share=share), KEY)
    assert work.values("price")[0] == 1234.5 and work.values("share")[7] == 7 and work.refused() == {}


def test_columns_of_nothing_of_one_value_and_of_huge_numbers(work):
    said = work.take("k.csv", table(none=[""]*N, one=["7"]*N, big=[str(2**63 + i) for i in range(N)],
                                    huge=[str(2**64 + i) for i in range(N)], flag=["true", "false"]*30), KEY)
    assert work.values("none") == [None]*N and work.values("one") == [7]*N and work.refused() == {}
    assert [int(v) for v in work.values("big")] == [2**63 + i for i in range(N)]
    assert work.values("huge") == [str(2**64 + i) for i in range(N)] and work.values("flag")[:2] == [True, False]
    assert {"none is empty: no row has a value.", "one is constant: always 7."} <= set(said["remarks"])


def test_a_text_of_five_megabytes(work):
    work.take("k.csv", table(text=["short"]*(N - 1) + ["ü"*2_500_000]), KEY)
    assert max(map(len, work.values("text"))) == 2_500_000 and work.refused() == {}


@pytest.mark.parametrize("name", ["k.csv.gz", "k.csv.zst", "k.csv.zip", "k.zip"])
def test_packed_files(work, name):
    text, packed = table(";").encode(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z: z.writestr("customers.csv", text)
    data = {"gz": gzip.compress(text), "zst": pa.compress(text, "zstd", asbytes=True), "zip": packed.getvalue()}
    if name.endswith("zst"):
        with pa.CompressedOutputStream(sink := pa.BufferOutputStream(), "zstd") as f: f.write(text)
        data["zst"] = sink.getvalue().to_pybytes()
    said = work.take(name, data[name.rsplit(".", 1)[1]], KEY)
    assert said["read"]["sep"] == ";" and work.values("Größe (m²)") == [50.5 + i for i in range(N)]


def test_a_workbook_and_its_second_sheet(work):
    import openpyxl
    book = openpyxl.Workbook()
    book.active.append(["nothing"])
    page = book.create_sheet("customers")
    for line in table().splitlines(): page.append([float(c) if c.endswith(".5") else c for c in line.split(",")])
    sink = io.BytesIO()
    book.save(sink)
    said = work.take("k.xlsx", sink.getvalue(), KEY, "--sheet customers")
    assert work.file.read.sheet == "customers" and work.values("Größe (m²)")[0] == 50.5
    assert "the workbook has other sheets too, for --sheet: Sheet" in said["remarks"]
    done = capture(f"profile {work.source} --sheet custmers")
    assert done.code == 2 and "Did you mean 'customers'?" in done.err


@pytest.mark.parametrize("form", ["lines", "list"])
def test_json(work, form):
    rows = [dict(zip(["id", "x", "churn"], (i, i/2, "yes" if i % 3 else "no"))) for i in range(N)]
    work.take("k.json", json.dumps(rows) if form == "list" else "\n".join(map(json.dumps, rows)), "--key id")
    assert work.values("x") == [i/2 for i in range(N)]


def test_nested_json_becomes_dotted_columns(work):
    rows = [{"id": i, "to": {"city": "Bonn", "tags": [i]}, "churn": "yes" if i % 2 else "no"} for i in range(N)]
    said = work.take("k.jsonl", "\n".join(map(json.dumps, rows)), "--key id")
    assert work.values("to.city") == ["Bonn"]*N and work.values("to.tags")[7] == "[7]"
    assert "objects became columns with dotted names: to" in said["remarks"]


def test_a_folder_of_files_of_different_encodings(work):
    work.source = work.folder/"inbox"
    work.source.mkdir()
    lines = table(word=["Köln"]*N).splitlines()
    for name, encoding, part in (("a.csv", "utf-8", lines[1:31]), ("b.csv", "cp1252", lines[31:])):
        text = "\n".join([lines[0].replace("🚀 ", ""), *part])
        (work.source/name).write_bytes(text.encode(encoding))
    said = work.taken(KEY)
    assert "encoding" not in said["read"] and len(work.rows) == N and set(work.values("word")) == {"Köln"}
    assert [d.rows_good for d in work.ingested] == [30, 30]
    (work.source/"b.csv").write_text("other,columns\n1,2\n")
    refused(Work(work.folder/"b"), "--target churn", "has other columns than", source=work.source)


def test_standard_input(work, monkeypatch):
    pipe = lambda: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(table(";").encode("utf-16"))))
    work.source = "-"
    pipe()
    work.taken(KEY)
    assert work.file.source == "data/stdin.csv" and len(work.rows) == N and work.file.read.encoding == "utf-16"
    monkeypatch.chdir(work.path)
    pipe()
    assert json.loads(capture("profile - --json").out)["rows"] == N
    for already in (False, True):
        pipe()
        assert json.loads(capture("ingest - piped --json").out)["already"] is already


def test_a_frame_in_memory_comes_in_once(work):
    import pandas as pd
    import polars as pl
    settings = Settings(root=work.folder)
    frame = pd.read_csv(io.StringIO(table()), dtype={"Kunden Nr": str})
    for rows in (frame, pl.from_pandas(frame), pa.Table.from_pandas(frame)):
        name = type(rows).__module__.split(".")[0]
        assert [sn.ingest(rows, name, settings=settings).already for _ in range(2)] == [False, True]
        kept = Table(name, settings).arrow().sort_by("Kunden Nr")
        assert kept["Größe (m²)"].to_pylist() == [50.5 + i for i in range(N)]
    bad = frame.assign(**{"Kunden Nr": "x"}).iloc[:1]
    sn.ingest(bad, "pandas", settings=settings)  # other rows
    assert Table("pandas", settings).rows == N + 1


def test_cleaning_words(work):
    contract = work.folder/"c.yaml"
    contract.write_text("""
columns: {plan: {type: string}, churn: {type: bool}, phone: {type: string}, price: {type: float64}}
clean:
- map: {churn: {ja: true, nein: false}, plan: {b: basic}}
- replace: {phone: {'[^0-9]': ''}}
- nulls: {plan: ['?']}
- decimal: {price: ','}
""")
    file = work.folder/"k.csv"
    file.write_text("plan;churn;phone;price\nb;ja;030/12-3;1.234,5 €\n?;nein;1;5 %\nplus;vielleicht;2;3\n")
    (work.folder/"settings.ini").write_text("")
    done = capture(f"ingest {file} k --contract {contract} --json --settings {work.folder/'settings.ini'}")
    assert done.code == 0 and json.loads(done.out)["refused"] == {"churn: not true or false": 1}, done
    rows = Table("k", Settings(root=work.folder)).arrow().sort_by("price").to_pylist()
    assert [tuple(r.values())[:4] for r in rows] == [(None, False, "1", 5.0), ("basic", True, "030123", 1234.5)]


def refused(work: Work, options: str, *words: str, source=None, code: int = 2) -> None:
    "An init that writes two lines and nothing else."
    if source is not None: work.source = source
    done = capture(f"init {work.path} --from {work.source} {options}")
    lines = done.err.strip().splitlines()
    assert done.code == code and len(lines) == 2 and done.out == "", done
    assert all(w in done.err for w in words), done.err
    assert not work.path.exists()


def test_a_time_that_is_none_and_times_of_several_zones(work):
    work.source = work.folder/"k.csv"
    soon = ["soon", "later"]*30
    zones = [f"2024-01-{1 + i % 28:02}T00:00:00{('+01:00', 'Z', '-05:00')[i % 3]}" for i in range(N)]
    work.source.write_text(table(soon=soon, at=zones, day=[f"{1 + i % 28:02}.01.2024" for i in range(N)]))
    refused(work, "--target churn --time soon", "'soon' is string, and --time needs dates")
    refused(work, "--target churn --time Größe", "no column 'Größe'")
    work.taken(KEY, "--time at")
    assert str(work.rows["at"].type) == "timestamp[us, tz=UTC]" and work.values("at")[0].hour == 23
    assert set(Table("k", work.settings).profiles(by="period")) == {"2023-12", "2024-01"}
    again = Work(work.folder/"day")
    again.source = work.source
    again.taken("--time day")
    assert str(again.rows["day"].type) == "date32[day]"


def test_few_rows_and_two_columns(work):
    work.take("k.csv", "x,churn\n" + "".join(f"{i},{'yes' if i % 2 else 'no'}\n" for i in range(10)))
    assert len(work.rows) == 10


@pytest.mark.slow
def test_three_thousand_columns(work):
    names = ",".join(f"c{i}" for i in range(3_000))
    lines = [",".join(str((i*j) % 7) for j in range(3_000)) for i in range(12)]
    (work.folder/"settings.ini").write_text("")
    (work.folder/"k.csv").write_text("\n".join([names, *lines]))
    at = f"--json --settings {work.folder/'settings.ini'}"
    done = capture(f"ingest {work.folder/'k.csv'} k {at}")
    assert done.code == 0 and len(Table("k", Settings(root=work.folder)).arrow().column_names) >= 3_000, done.err


def test_a_file_that_grows_while_it_is_read(work, monkeypatch):
    file, real = work.folder/"k.csv", text_files.regroup
    file.write_text(table())
    (work.folder/"settings.ini").write_text("")
    def grow(stream, rows, schema=None):
        with open(file, "a") as f: f.write("99999,1.5,max,yes\n")
        return real(stream, rows, schema)
    monkeypatch.setattr(text_files, "regroup", grow)
    done = capture(f"ingest {file} k --settings {work.folder/'settings.ini'}")
    assert done.code == 2 and "changed while it was read" in done.err and len(done.err.splitlines()) == 2, done
    assert not Table("k", Settings(root=work.folder)).exists


@pytest.mark.parametrize("words, said", [
    ("columns: {x: {typ: int64}}", "Did you mean 'type'?"),
    ("columns: {x: {}}\nclean: [{nuls: {x: [NA]}}]", "Did you mean 'nulls'?"),
    ("columns: {x: {}}\nnulls: [NA]\nclean: [{map: {x: [a, b]}}]", "Write it as in map: {churn: {y: 'yes', n: 'no'}}"),
    ("columns: {x: {}}\nreplace: {x: {a: b}}", "is a cleaning step"),
    ("columns: {x: {}}\nclean: [{decimal: {y: ','}}]", "names column 'y'"),
    ("columns: {x: {type: int64, min: many}}", "many"),
])
def test_a_contract_edited_wrongly(work, words, said):
    (work.folder/"k.csv").write_text("x\n1\n2\n")
    (work.folder/"c.yaml").write_text(words)
    (work.folder/"settings.ini").write_text("")
    done = capture(f"ingest {work.folder/'k.csv'} k --contract {work.folder/'c.yaml'}"
                   f" --settings {work.folder/'settings.ini'}")
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 2, done
    assert not Table("k", Settings(root=work.folder)).exists
