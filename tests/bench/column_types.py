"""The types that readers find in sixty columns, next to those a person would give: `make bench-reading`, or

    python tests/bench/column_types.py [--wrong] [--dry]

Ten files of six columns and 200 rows, each in a style of its own: as databases, laboratories, and people in four
countries write. Some columns have a wrong cell or words for missing values. The peers are given the separator; pandas
converts what it can (`convert_dtypes`), Polars tries dates, DuckDB, PyArrow, frictionless (`describe`) and agate (the
one of csvkit) find types by themselves. Where a person would accept two types, both count. The section goes to
tests/bench/RESULTS.md."""

import argparse
import csv
import os
import sys
import tempfile
import time
import uuid
import warnings
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bench import keep, stamp

N = 200
WORDS = "red oak bridge ford mill stone hill green lake north field new market old town".split()


# --- ten styles: separator, and column → values, the types that a person would accept

def styles() -> dict[str, tuple[str, dict]]:
    "Made anew each time from one seed."
    rng = np.random.default_rng(0)
    whole = rng.integers(1, 9_000, N)
    real = np.round(rng.gamma(2, 900, N) + 1_000, 2)
    days = [date(2024, 1, 1) + timedelta(int(d)) for d in rng.integers(0, 900, N)]
    times = [datetime(2025, 1, 1) + timedelta(seconds=int(s)) for s in rng.integers(0, 40_000_000, N)]
    text = [" ".join(rng.choice(WORDS, 3)) for _ in range(N)]
    some = lambda values, word, share=.1: [word if x < share else v for v, x in zip(values, rng.random(N))]
    one = lambda values, word, at=137: [*values[:at], word, *values[at + 1:]]
    pick = lambda *words: list(rng.choice(words, N))
    comma = lambda v: f"{v:,.2f}".translate(str.maketrans(",.", ".,"))
    day = lambda form: [d.strftime(form) for d in days]
    at = lambda form: [t.strftime(form) for t in times]
    zeros = [f"{v:05}" for v in whole]
    return {
        "plain": (",", {
            "id": (whole, "whole"), "size": (some(real, ""), "number"), "day": (day("%Y-%m-%d"), "date"),
            "at": (at("%Y-%m-%d %H:%M:%S"), "time"), "open": (pick("true", "false"), "boolean"),
            "name": (text, "text")}),
        "United States": (",", {
            "amount": ([f"{v:,.2f}" for v in real], "number"), "price": ([f"${v:,.2f}" for v in real], "number"),
            "day": (day("%m/%d/%Y"), "date"), "share": ([f"{v % 100}%" for v in whole], "number whole"),
            "zip": (zeros, "text"), "member": (pick("Yes", "No"), "boolean")}),
        "Germany": (";", {
            "Betrag": (list(map(comma, real)), "number"), "Preis": ([f"{comma(v)} €" for v in real], "number"),
            "Tag": (day("%d.%m.%Y"), "date"), "Anteil": ([f"{v % 100},5 %" for v in whole], "number"),
            "PLZ": (zeros, "text"), "Mitglied": (pick("ja", "nein"), "boolean")}),
        "France": (";", {
            "montant": ([f"{v:,.2f}".replace(",", "\u202f").replace(".", ",") for v in real], "number"),
            "prix": ([f"{v:.2f} €".replace(".", ",") for v in real], "number"), "jour": (day("%d/%m/%Y"), "date"),
            "code": (zeros, "text"), "client": (pick("oui", "non"), "boolean"), "ville": (text, "text")}),
        "accounts": (",", {
            "balance": ([f"({v:,.2f})" if v > 2_500 else f"{v:,.2f}" for v in real], "number"),
            "gross": ([f"£{v:,.2f}" for v in real], "number"), "day": (day("%d-%b-%Y"), "date"),
            "items": (some(whole, "-"), "whole"), "account": ([f"00{v}" for v in whole], "text"),
            "note": (some(text, ""), "text")}),
        "laboratory": ("\t", {
            "dose": ([f"{v:.3e}" for v in real/1e9], "number"), "signal": (some(real, "NaN"), "number"),
            "count": ([int(v)*10**12 for v in whole], "whole"), "probe": ([f"{v:04x}" for v in whole], "text"),
            "week": (day("%G-W%V"), "text"), "temperature": ([f"{v/1000 - 3:.2f}" for v in real], "number")}),
        "database": ("|", {
            "id": (some(whole, "NULL"), "whole"), "at": (at("%Y-%m-%d %H:%M:%S.123"), "time"),
            "active": (pick("t", "f"), "boolean"), "key": ([str(uuid.UUID(int=int(v)**3)) for v in whole], "text"),
            "flag": (pick("0", "1"), "whole boolean"), "total": ([f"{v:.2f}" for v in real], "number")}),
        "times": (",", {
            "utc": (at("%Y-%m-%dT%H:%M:%SZ"), "time"), "zoned": (at("%Y-%m-%d %H:%M:%S+01:00"), "time"),
            "us": (at("%m/%d/%Y %I:%M %p"), "time"), "epoch": ([int(t.timestamp()) for t in times], "whole time"),
            "compact": (day("%Y%m%d"), "date whole"), "clock": (at("%H:%M"), "clock text")}),
        "wrong cells": (",", {
            "visits": (one(list(whole), "oops"), "whole"), "size": (some(real, "?"), "number"),
            "day": (one(day("%Y-%m-%d"), "yesterday"), "date"), "price": (some(real, "n/a"), "number"),
            "rooms": (some([v % 9 for v in whole], "NA"), "whole"), "street": (one(text, "17"), "text")}),
        "codes": (",", {
            "phone": ([f"+49 30 {v}" for v in whole], "text"),
            "host": ([f"10.0.{v % 250}.{v % 99}" for v in whole], "text"),
            "version": (pick("1.10.0", "1.9.2", "2.0.1"), "text"),
            "part": ([f"{v % 90 + 10}E{v % 9}" for v in whole], "text"),
            "agent": ([f"{v % 90:03}" for v in whole], "text"), "place": (text, "text")}),
    }  # fmt: skip


# --- readers: file, separator → column → whole, number, date, time, clock, boolean or text

def scalai(file: Path, sep: str) -> dict[str, str]:
    from scalai_nb.data.preview import preview
    kinds = {"int": "whole", "uint": "whole", "float": "number", "decimal": "number", "date": "date",
             "timestamp": "time", "bool": "boolean", "time": "clock"}
    found = preview(file).columns
    return {c: next((k for start, k in kinds.items() if t.startswith(start)), "text") for c, t in found.items()}


def first_of(checks: dict, dtype) -> str: return next((kind for kind, is_it in checks.items() if is_it(dtype)), "text")


def pandas(file, sep):
    import pandas as pd
    from pandas.api import types as t
    checks = {"boolean": t.is_bool_dtype, "whole": t.is_integer_dtype, "number": t.is_float_dtype,
              "time": t.is_datetime64_any_dtype}
    dtypes = pd.read_csv(file, sep=sep, parse_dates=True).convert_dtypes().dtypes
    return {c: first_of(checks, d) for c, d in dtypes.items()}


def polars(file, sep):
    import polars as pl
    schema = pl.read_csv(file, separator=sep, try_parse_dates=True, infer_schema_length=None).schema
    kind = lambda d: ("boolean" if d == pl.Boolean else "whole" if d.is_integer() else "number" if d.is_numeric() else
                      "date" if d == pl.Date else "clock" if d == pl.Time else "time" if d.is_temporal() else "text")
    return {c: kind(d) for c, d in schema.items()}


def duckdb(file, sep):
    import duckdb as d
    found = d.connect().read_csv(str(file), sep=sep)
    kinds = {"BIGINT": "whole", "HUGEINT": "whole", "DOUBLE": "number", "DATE": "date", "TIMESTAMP": "time",
             "TIMESTAMP WITH TIME ZONE": "time", "BOOLEAN": "boolean", "TIME": "clock"}
    return {c: kinds.get(str(t), "text") for c, t in zip(found.columns, found.types)}


def pyarrow(file, sep):
    from pyarrow import csv as reader
    from pyarrow import types as t
    schema = reader.read_csv(file, parse_options=reader.ParseOptions(delimiter=sep)).schema
    checks = {"boolean": t.is_boolean, "whole": t.is_integer, "number": t.is_floating, "date": t.is_date,
              "clock": t.is_time, "time": t.is_timestamp}
    return {f.name: first_of(checks, f.type) for f in schema}


def frictionless(file, sep):
    from frictionless import Dialect, describe, formats, system
    with system.use_context(trusted=True):
        found = describe(str(file), dialect=Dialect(controls=[formats.CsvControl(delimiter=sep)]))
    kinds = {"integer": "whole", "number": "number", "date": "date", "datetime": "time", "boolean": "boolean",
             "time": "clock"}
    return {f.name: kinds.get(f.type, "text") for f in found.schema.fields}


def agate(file, sep):
    import agate as a
    table = a.Table.from_csv(str(file), delimiter=sep)
    kinds = {"Number": "number", "Date": "date", "DateTime": "time", "Boolean": "boolean"}
    kind = lambda c: "whole" if isinstance(c.data_type, a.Number) and all(
        v is None or v == v.to_integral_value() for v in c.values()) else kinds.get(type(c.data_type).__name__, "text")
    return {c.name: kind(c) for c in table.columns}


READERS = {"scalai": scalai, "pandas": pandas, "Polars": polars, "DuckDB": duckdb, "PyArrow": pyarrow,
           "frictionless": frictionless, "agate": agate}  # fmt: skip


def measured(folder: Path) -> tuple[dict, dict]:
    "Find what each reader takes each column for, next to what is accepted; and the CPU seconds of each."
    found, spent = {}, {}
    for style, (sep, columns) in styles().items():
        file = folder/f"{style}.csv"
        with open(file, "w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, delimiter=sep)
            writer.writerow(columns)
            writer.writerows(zip(*(values for values, _ in columns.values())))
        for who, read in READERS.items():
            began = time.process_time()
            try: types = read(file, sep)
            except Exception as e:  # one that cannot read the file finds nothing
                print(f"{style}, {who}: {e}"[:200], file=sys.stderr)
                types = {}
            spent[who] = spent.get(who, 0.) + time.process_time() - began
            for c, (_, accepted) in columns.items():
                found.setdefault(who, {})[style, c] = (types.get(c, "nothing"), accepted)
    return found, spent


def section(found: dict, spent: dict, command: str, load: float) -> str:
    "The figures as a section of RESULTS.md."
    names = [*dict.fromkeys(style for style, _ in found["scalai"])]
    right = lambda who, style="": [t in ok.split() for (s, _), (t, ok) in found[who].items() if style in (s, "")]
    lines = [f"| | {' | '.join(names)} | of 60 | share | CPU s |", f"|---|{'---:|'*(len(names) + 3)}"]
    for who in found:
        n = sum(right(who))
        lines.append(f"| {who} | {' | '.join(str(sum(right(who, s))) for s in names)} | {n} | {n/60:.0%} |"
                     f" {spent[who]:.1f} |")
    told = ("Columns, of six a style, whose type is one that a person would give: whole number, number, date, time,"
            " time of day, yes or no, text. The peers are given the separator.")
    missed = [f"{c} ({s}): {t} instead of {ok.replace(' ', ' or ')}" for (s, c), (t, ok) in found["scalai"].items()
              if t not in ok.split()]
    return "\n".join(["## types, sixty columns", "", told, "", *lines, "",
                      f"Ours is wrong on: {'; '.join(missed) or 'none'}.", "", stamp(command, load), ""])


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--wrong", action="store_true", help="list what each reader takes for another type")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    warnings.simplefilter("ignore")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder: found, spent = measured(Path(folder))
    text = section(found, spent, "python tests/bench/column_types.py", load)
    print(text)
    for who, columns in found.items() if a.wrong else ():
        for (style, c), (t, ok) in columns.items():
            if t not in ok.split(): print(f"{who}: {c} of {style}: {t}, {ok}")
    if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
