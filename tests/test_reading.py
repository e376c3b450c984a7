"""The files of docs/howto/read-a-difficult-file.md, each ingested with nothing said about it: what the page says is
what happens. And accounts of the lines of several files that workers read."""

import json
import random
import re
import sqlite3
from datetime import datetime
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pytest

from scalai_nb.core.settings import Settings
from scalai_nb.data.ingest import ingest
from scalai_nb.data.preview import preview
from scalai_nb.data.table import Table

PAGE = Path(__file__).resolve().parents[1]/"docs"/"howto"/"read-a-difficult-file.md"


def rows(n: int) -> list[str]: return [f"{i},Ann {i},2026-01-{i % 28 + 1:02}" for i in range(n)]


def with_quotes(n: int, *at: int) -> str:
    lines = rows(n)
    for k in at: lines[k] = lines[k].replace("Ann", '"Ann')
    return "id,name,at\n" + "\n".join(lines) + "\n"


def records(n: int, **wrong) -> str:  # JSON lines; number of a record → its text
    lines = [json.dumps({"id": i, "size": i/2}) for i in range(n)]
    for k, text in wrong.items(): lines[int(k[1:])] = text
    return "\n".join(lines) + "\n"


def people(n: int = 40, sep: str = ",", end: str = "\n") -> str:
    return end.join(["id,name,at".replace(",", sep), *(r.replace(",", sep) for r in rows(n))]) + end


def amounts() -> str:
    draw = random.Random(0)
    lines = ["a;b;euro;share;booked;day;month;either"]
    for i in range(300):
        x = 1000 + draw.randrange(9_000)
        cents = f"{draw.randrange(100):02}"
        point, comma = f"{x // 1000},{x % 1000:03}.{cents}", f"{x // 1000}.{x % 1000:03},{cents}"
        lines.append(f"{point};{comma};€ {x};{x % 100} %;{f'({x})' if i % 3 else x};"
                     f"{i % 28 + 1:02}/12/2026;12/{i % 28 + 1:02}/2026;{i % 12 + 1:02}/{i % 12 + 1:02}/2026")
    return "\n".join(lines) + "\n"


def late(n: int) -> str:
    lines = [f"{i},{i/4},2026-01-{i % 28 + 1:02}" for i in range(n)]
    lines[n//2], lines[n//3] = f"{n//2},oops,2026-01-01", f"{n//3},1.5,yesterday"
    return "id,size,day\n" + "\n".join(lines) + "\n"


# a row of the page's table → the files that it speaks of
FILES = {
    "two stray quotes at the start of a field, lines 100 and 2,000 of 3,000": {"a.csv": with_quotes(3_000, 98, 1_998)},
    "a quote that is never closed, in line 7,001 of 20,000": {"a.csv": with_quotes(20_000, 6_999)},
    "one line of a JSON-lines file cut; `\"\"` or `\"oops\"` in a number": {
        "a.jsonl": records(60_000, _30000='{"id": 30000, "si'),
        "b.jsonl": records(60_000, _30000='{"id": 30000, "size": ""}', _40000='{"id": 40000, "size": "oops"}')},
    "a `.json` array of objects; objects in objects": {
        "a.json": json.dumps([{"id": i, "at": {"city": "Bonn", "place": {"lat": i/2}}} for i in range(30)])},
    "record ends are CR only": {"a.csv": people(end="\r")},
    "every line ends with a delimiter": {"a.csv": people(end=",\n"), "b.csv": people(end=",\n").partition("\n")[2]},
    "comment or title lines above the header": {"a.csv": "# made by a machine\nPeople of 2026\n\n" + people()},
    "no header": {"a.csv": people().partition("\n")[2]},
    "a header of two rows; names empty or twice": {
        "a.csv": "size,size,day\nin cm,in kg,of birth\n" + "".join(f"{i},{i}.5,2026-01-01\n" for i in range(30)),
        "b.csv": "name,name,,at\n" + "".join(f"Ann,Bob,{i},2026-01-01\n" for i in range(30))},
    "`Total,1500,,` as the last line; a repeated header in the middle": {
        "a.csv": "n,paid,at,by\n" + "".join(f"{i},{i*2},2026-01-01,Ann\n" for i in range(30)) + "Total,1500,,\n",
        "b.csv": people() + people(), "c.csv": "from,to\n" + "Bonn,Ulm\nKiel,Hof\n"*9 + "from,to\n" + "Ulm,Hof\n"*9},
    "1 of 5,000 cells \"oops\" in a number, \"yesterday\" in a date, a new table": {"a.csv": late(5_000)},
    "`NA`, `null`, `-`, `?`, `n/a`, `.` in numbers": {
        "a.csv": "id,a,b\n" + "".join(f"{i},{w},{i}\n" for i, w in enumerate(
            ["NA", "null", "-", "?", "n/a", ".", *map(str, range(60))]))},
    "`1,234.50`, `1.234,50`, `€ 12`, `12 %`, `(35)`, `31/12/2026`, `12/31/2026`": {"a.csv": amounts()},
    "UTF-16 with its mark; Latin-1, cp1252": {
        "a.csv": people().replace("Ann", "Zoë").encode("utf-16"),
        "b.csv": people().replace("Ann", "Zoë").encode("cp1252"),
        "c.csv": people().replace("Ann", "€ Zoë").encode("cp1252")},
}  # fmt: skip


def outcome(file: Path, settings: Settings) -> str:
    "What an ingest reports, in one line."
    done = ingest(file, file.stem, settings=settings)
    refused = "".join(f", {n} refused ({why})" for why, n in done.refused.items())
    remarks = "".join(f"; {r}" for r in done.remarks)
    return f"{done.rows_good:,} rows{refused}; read as {done.read_as or file.suffix[1:]}{remarks}"


def workbook(file: Path):
    import openpyxl
    book = openpyxl.Workbook()
    book.active["A1"] = "about this book"
    sheet = book.create_sheet("People")
    sheet.append(["who", None, "since"])
    sheet.merge_cells("A1:B1")
    sheet.append(["id", "name", "at"])
    for i in range(20): sheet.append([i, f"Ann {i}", datetime(2026, 1, i + 1)])
    book.save(file)


def database(file: Path):
    with sqlite3.connect(file) as base:
        for table in ("orders", "people"): base.execute(f"create table {table} (id int, name text)")
        base.executemany("insert into orders values (?, ?)", [(i, f"Ann {i}") for i in range(20)])


def packed(file: Path):
    with ZipFile(file, "w") as z:
        for k in range(3): z.writestr(f"part{k}.csv", people())


def stata(file: Path):
    pd.DataFrame({"id": range(20), "name": [f"Ann {i}" for i in range(20)]}).to_stata(file, write_index=False)


# a row of the page's second table → a file's name and its text, or what makes it
TWELVE = {
    "decimal commas, `;`, cp1252, `?` for a missing value": ("a.csv", ("id;size;name\n" + "".join(
        f"{i};{i},5;Zoë\n" for i in range(40)) + "40;?;Zoë\n").encode("cp1252")),
    "tabs, UTF-16 with its mark, CR LF": ("b.tsv", people(sep="\t", end="\r\n").encode("utf-16")),
    "title lines, and a header of two rows": ("c.csv", "People of 2026\nmade by Ann,,\n\nsize,size,day\n"
        "in cm,in kg,of birth\n" + "".join(f"{i},{i}.5,2026-01-01\n" for i in range(30))),
    "no header, `|`, quotes of one stroke": ("d.txt", "".join(
        f"{i}|'Ann | {i}'|2026-01-{i % 28 + 1:02}\n" for i in range(40))),
    "a separator of three characters, a sum below the table": ("e.csv", people(sep=" ; ") + "Total ;  ; \n"),
    "quotes escaped by a backslash": ("f.csv", "id,name\n" + "".join(f'{i},"Ann \\"A, {i}\\""\n' for i in range(40))),
    "JSON: a list of rows in an object, objects in them": ("g.json", json.dumps({"made": "2026-01-01", "rows": [
        {"id": i, "at": {"city": "Bonn", "place": {"lat": i/2}}} for i in range(30)]})),
    "fixed width": ("h.fwf", "id    name  since\n" + "".join(f"{i:<6}Ann   2026-01-01\n" for i in range(30))),
    "Excel: the second sheet, names merged over two rows": ("i.xlsx", workbook),
    "a zip of three files": ("j.zip", packed),
    "a table of a SQLite file": ("k.db::orders", database),
    "Stata": ("l.dta", stata),
}


@pytest.mark.parametrize("what", TWELVE)
def test_the_page_shows_the_line_that_is_printed(what, tmp_path):
    name, text = TWELVE[what]
    file = tmp_path/name.partition("::")[0]
    if callable(text): text(file)
    else: file.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = preview(tmp_path/name)
    line = f"`{name}: {found.summary}`"
    print(line, found.remarks)
    assert table_of_the_page()[what] == line


def table_of_the_page() -> dict[str, str]:  # first cell → last, of all tables of two columns
    lines = [x for x in PAGE.read_text().splitlines() if x.startswith("| ")]
    cells = [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", x)[1:-1]] for x in lines]
    return {c[0]: c[-1] for c in cells if len(c) == 2}


@pytest.mark.parametrize("what", FILES)
def test_the_page_says_what_happens(what, tmp_path):
    settings, said = Settings(root=tmp_path), []
    for name, text in FILES[what].items():
        (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
        said.append(outcome(tmp_path/name, settings))
    now = " — ".join(said).replace(str(tmp_path) + "/", "")
    print(now)
    assert table_of_the_page()[what] == now


def test_lines_that_workers_read_add_up(tmp_path):
    "Several pieces, with lines of every kind."
    from distributed import Client
    total = 0
    for k in range(3):
        lines = [f"{i},{'two' if i % 9 else 'q'},2026-01-{i % 28 + 1:02}" for i in range(400)]
        lines[50] = '50,"two\nlines",2026-01-01'
        lines[60], lines[70], lines[80], lines[90] = "60", "", '80,"two,2026-01-01', "id,name,at"
        text = f"# file {k}\nid,name,at\n" + "\n".join(lines) + "\nTotal,,\n"
        total += text.count("\n")
        (tmp_path/f"part{k}.csv").write_text(text)
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as client:
        done = ingest(str(tmp_path/"part*.csv"), "parts", settings=Settings(root=tmp_path), client=client)
    counts = done.lines
    kinds = ("preamble", "header", "good", "refused", "continued", "blank", "footer")
    assert counts["lines"] == total == sum(counts[k] for k in kinds), counts
    assert counts == {"lines": total, "preamble": 3, "header": 3, "good": 3*397, "refused": 6, "continued": 3,
                      "blank": 3, "footer": 3, "mended": 3}
    assert done.rows_good == 3*397 == Table("parts", Settings(root=tmp_path)).rows
    assert done.refused == {"line: 1 cells": 3, "line: the header again": 3, "line: below the table": 3}
