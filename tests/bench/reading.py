"""Damaged files, each loaded with nothing said about it: `make bench-reading POLLOCK=FOLDER`, or

    python tests/bench/reading.py FOLDER [--only scalai duckdb] [--worst 20] [--dry]

FOLDER is a checkout of the Pollock benchmark (Vitagliano et al., VLDB 2023) with `polluted_files/csv`,
`polluted_files/clean` and `pollock_weights.json`. A file's score is the benchmark's: whether it was loaded, and
precision, recall and F1 of header, records and cells, at most 10; the weighted mean goes by what occurs in the wild.
Numbers and dates are put into one form first. A row that was refused is a row that was not read. The section goes to
tests/bench/RESULTS.md."""

import argparse
import csv
import json
import os
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bench import keep, stamp  # noqa: E402

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.I)


def normal(cell) -> str:
    "One form for a cell, whatever its type or spelling."
    if cell is None or cell != cell: return ""  # also NaN and NaT
    text = " ".join(str(cell).split()).lower()
    if m := re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)(?:[ t]00:00(:00(\.0+)?)?)?", text): return f"{m[1]}-{m[2]}-{m[3]}"
    if m := re.fullmatch(r"(\d\d)/(\d\d)/(\d{4})", text): return f"{m[3]}-{m[2]}-{m[1]}"
    if m := re.fullmatch(r"(\d\d?:\d\d)(:00(\.0+)?)?", text): return m[1]
    plain = text.removeprefix("$")
    return repr(float(plain)) if NUMBER.fullmatch(plain) else text


def measures(truth: list, found: list) -> list[float]:  # precision, recall, F1, of two multisets
    if not truth: return [1., 1., 1.]
    both = (Counter(truth) & Counter(found)).total()
    if not both: return [0., 0., 0.]
    p, r = both/len(found), both/len(truth)
    return [p, r, 2*p*r/(p + r)]


def score(header: list, rows: list, names: list, found: list) -> float:  # of 10
    "The ten measures of a file that was loaded, summed."
    rows, found = ([[*map(normal, r)] for r in x] for x in (rows, found))
    record = lambda r: "\x1f".join(r)
    cells = lambda rows: [c for r in rows for c in r]
    return 1 + sum(measures([*map(normal, header)], [*map(normal, names)]) +
                   measures([*map(record, rows)], [*map(record, found)]) + measures(cells(rows), cells(found)))


def scalai(path):
    from scalai_nb.data.source import batches
    tables = list(batches(path, bad=[]))
    return tables[0].column_names, [r for t in tables for r in zip(*(c.to_pylist() for c in t.columns))]


def duckdb(path, **options):
    import duckdb as d
    r = d.connect().read_csv(path, **options)
    return r.columns, r.fetchall()


def duckdb_lenient(path): return duckdb(path, ignore_errors=True, strict_mode=False, null_padding=True)


def pandas(path):
    import pandas as pd
    f = pd.read_csv(path)
    return [*map(str, f.columns)], f.itertuples(index=False, name=None)


def polars(path):
    import polars as pl
    f = pl.read_csv(path)
    return f.columns, f.rows()


def clevercsv(path):
    from clevercsv.wrappers import read_table
    first, *rest = read_table(path)
    return first, rest


CONTENDERS = {"scalai": scalai, "duckdb": duckdb, "duckdb_lenient": duckdb_lenient, "pandas": pandas,
              "polars": polars, "clevercsv": clevercsv}


def clean(file: Path) -> tuple[list, list]:
    with open(file, newline="", encoding="utf-8") as f: rows = [*csv.reader(f)]
    return ([], rows) if not rows or file.stem == "file_no_header" else (rows[0], rows[1:])


def loaded(fn, path: str) -> tuple[list, list] | None:
    try:
        names, rows = fn(path)
        return names, [*rows]
    except Exception: return None  # whatever a reader raises, the file was not loaded


def measured(folder: Path, only: list[str]) -> dict:  # contender → {file: score}, and its CPU seconds
    "Load every file with every contender."
    files = sorted((folder/"polluted_files"/"csv").glob("*.csv"))
    scores, spent = {w: {} for w in only}, dict.fromkeys(only, 0.)
    for file in files:
        truth = clean(file.parents[1]/"clean"/file.name)
        for who in only:
            start = time.process_time()
            found = loaded(CONTENDERS[who], str(file))
            spent[who] += time.process_time() - start
            scores[who][file.name] = 0. if found is None else score(*truth, *found)
    return scores, spent


def weighted(scores: dict, weights: dict) -> float:
    weights = {f: w for f, w in weights.items() if f in scores}
    return sum(scores[f]*w for f, w in weights.items())/sum(weights.values())


def section(scores: dict, spent: dict, weights: dict, command: str, load: float) -> str:
    "The figures as a section of RESULTS.md."
    told = ("Damaged variants of one CSV file, each loaded with nothing said about it, by the score of the Pollock"
            " benchmark (VLDB 2023; at most 10); weighted by what occurs in the wild. `lenient` is DuckDB with"
            " ignore_errors, null_padding and without strict_mode. Rows that are refused count as not read.")
    lines = ["| | simple | weighted | files not loaded | CPU s |", "|---|---:|---:|---:|---:|"]
    for who, s in scores.items():
        lines.append(f"| {who.replace('_', ', ')} | {sum(s.values())/len(s):.3f} | {weighted(s, weights):.3f} |"
                     f" {sum(not v for v in s.values()):,} | {spent[who]:.0f} |")
    n = len(next(iter(scores.values())))
    return "\n".join([f"## reading, {n:,} files", "", told, "", *lines, "", stamp(command, load), ""])


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("folder", type=Path)
    p.add_argument("--only", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    p.add_argument("--worst", type=int, default=0, help="files to list that the first contender reads worst")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    warnings.simplefilter("ignore")
    load = os.getloadavg()[0]
    weights = json.loads((a.folder/"pollock_weights.json").read_text())
    scores, spent = measured(a.folder, a.only)
    text = section(scores, spent, weights, f"python tests/bench/reading.py POLLOCK --only {' '.join(a.only)}", load)
    print(text)
    mine = scores[a.only[0]]
    for f in sorted(mine, key=mine.get)[:a.worst]: print(f"{mine[f]:7.3f}  {f}")
    if a.worst:
        groups = {}
        for f, s in mine.items(): groups.setdefault(re.sub(r"\d+", "N", f) if f.startswith("row") else f, []).append(s)
        for g, s in sorted(groups.items(), key=lambda x: sum(x[1])/len(x[1])): print(f"{sum(s)/len(s):7.3f}  {g}")
    if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
