"""Files with planted damages: no row left alone is lost, changed or doubled; every line is accounted for."""

import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalai_nb.data.source import batches
from scalai_nb.data.text_lines import Accounts

HEADER = "id,code,name,amount,at"


def clean_rows(n: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    names = ["Ann", "Bob Ray", "Oak, red", 'a 6" pipe', "Zoë; x", "two\nlines", ""]
    return [[str(1000 + i), f"{draw.choice('ABC')}X-{draw.randrange(100, 999)}", draw.choice(names),
             f"{draw.randrange(1, 900)}.{draw.randrange(10, 99)}",
             f"2026-{draw.randrange(10, 13)}-{draw.randrange(10, 29)}"]
            for i in range(n)]


def written(row: list[str]) -> str:
    "A row as a line of CSV."
    plain = lambda c: c if not set(c) & set(',"\n') else '"' + c.replace('"', '""') + '"'
    return ",".join(map(plain, row))


def stray_quote(line, draw):  # at the start of a cell
    places = [0, *(i + 1 for i, c in enumerate(line) if c == ",")]
    at = draw.choice(places)
    return line[:at] + '"' + line[at:]


def more(line, draw):
    at = draw.choice([i for i, c in enumerate(line) if c == ","])
    return line[:at] + "," + line[at:]


def less(line, draw):
    at = draw.choice([i for i, c in enumerate(line) if c == ","])
    return line[:at] + line[at + 1:]


def other(line, draw): return line.replace(",", ";")
def cut(line, draw): return line[:draw.randrange(1, len(line))].split("\n")[0]


DAMAGES = (stray_quote, more, less, other, cut)
ADDED = (HEADER, "", "# a remark")  # lines that are no rows


def check(n: int, seed: int, damages: int, added: int, folder) -> None:
    draw, rows = random.Random(seed), clean_rows(n, seed)
    lines = [written(r) for r in rows]
    damaged = set(draw.sample(range(n), damages))
    for i in damaged: lines[i] = draw.choice(DAMAGES)(lines[i], draw)
    wrong = {i: lines[i] for i in damaged}
    for _ in range(added):
        at = draw.randrange(1, len(lines))
        lines.insert(at, draw.choice(ADDED))
    file = folder/f"{seed}.csv"
    file.write_text(HEADER + "\n" + "\n".join(lines) + "\n")
    accounts, bad = Accounts(), []
    table = pa.concat_tables(batches(file, text=True, bad=bad, accounts=accounts))
    found = {}
    for r in table.to_pylist():
        cells = [v or "" for v in r.values()]
        found.setdefault(cells[0].strip('"'), []).append(cells)
    for i, r in enumerate(rows):
        if i in damaged: assert len(found.get(r[0], [])) <= 1, f"row {i} came twice"
        else: assert found.get(r[0]) == [r], f"seed {seed}, row {i}: {r} came as {found.get(r[0])}"
    assert not accounts.missing, f"seed {seed}: {accounts}"
    text = {t for _, _, t in bad}
    for i in damaged:  # good, or refused as it is in the file
        known = rows[i][0] in found or wrong[i].split("\n")[0] in text
        assert known or any(rows[i][0] in c for c in found), f"seed {seed}: {i}"
    file.unlink()


@settings(max_examples=25, deadline=None)
@given(st.integers(60, 400), st.integers(0, 10**6), st.integers(0, 6), st.integers(0, 3))
def test_rows_that_were_left_alone_arrive_unchanged(tmp_path_factory, n, seed, damages, added):
    check(n, seed, damages, added, tmp_path_factory.mktemp("damaged"))


@pytest.mark.slow
def test_a_thousand_damaged_files(tmp_path):
    for seed in range(1_000): check(80 + seed % 50, seed, 1 + seed % 7, seed % 3, tmp_path)
