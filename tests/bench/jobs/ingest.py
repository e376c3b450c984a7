"""Check + write + profile: rows that break a rule go apart with their reason, good ones into zstd Parquet of level 1
(Delta here, plain files elsewhere), and every column of the good rows is summarised. Polars and DuckDB write the same
good and refused rows, then make the profile bench's summary of the good file with sketches. At its default: the peer's
own level of zstd, 3."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

CONTENDERS = ("scalai", "first_run", "polars", "polars_default", "duckdb", "duckdb_default")
NAMES = {
    "first_run": "scalai, first run",
    "polars": "Polars",
    "polars_default": "Polars, at its default",
    "duckdb": "DuckDB",
    "duckdb_default": "DuckDB, at its default",
}
LEVEL = 1  # of zstd, which the workbench writes
RANGES = {"flights": {"dep_delay": (-40, 240), "distance": (100, 5000), "air_time": (None, 600)},  # null is allowed
          "walks": {"walk_00": (-24.3, None), "walk_05": (None, 540), "walk_15": (-20_000, 302_000)},
          "refusals": {"walk_00": (-10, None), "walk_05": (None, 500), "walk_15": (-200_000, 200_000)},
          "readings": {"temperature": (10, 27), "humidity": (None, 90), "vibration": (None, 3)}}
WORDS = {
    "flights": {
        "carrier": ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "UA", "US", "VX", "WN", "YV"]
    },  # not OO
    "walks": {},
    "refusals": {},
    "readings": {"site": [f"site-{k:06}" for k in range(39)]},
}  # not the last one
TMP = Path(tempfile.gettempdir())


def prepare(rows):
    from rows import flights  # here: a contender shall not load what it does not use
    return flights(rows)


def _rules(file): return RANGES[which := Path(file).stem.split("-")[0]], WORDS[which]


def _summary(who, file):
    spec = importlib.util.spec_from_file_location("profile_job", Path(__file__).with_name("profile.py"))
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return getattr(job, who)(file)["said"][0]


def scalai(file):
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.contract import Contract
    from scalai_nb.data.ingest import ingest
    from scalai_nb.data.rules import Rule
    folder, (ranges, words) = Path(tempfile.mkdtemp(dir=TMP)), _rules(file)
    try:
        (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
        contract = Contract(
            {n: Rule(min=low, max=high) for n, (low, high) in ranges.items()}
            | {n: Rule(categories=tuple(w)) for n, w in words.items()}
        )
        done = ingest(os.path.abspath(file), "rows", contract, settings=Settings.load(folder/"settings.ini"))
        return {"said": [done.rows_good, done.rows_refused]}
    finally:
        shutil.rmtree(folder)


def first_run(file):
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        return scalai(file)


def polars(file, level=LEVEL):
    import polars as pl
    folder, (ranges, words) = Path(tempfile.mkdtemp(dir=TMP)), _rules(file)
    try:
        why = pl.lit(None, pl.String)
        for n, (low, high) in ranges.items():
            tests = [
                t
                for t in (low is not None and pl.col(n) < low, high is not None and pl.col(n) > high)
                if t is not False
            ]
            why = pl.when(pl.any_horizontal(tests).fill_null(False)).then(pl.lit(f"{n}: out of range")).otherwise(why)
        for n, known in words.items():
            why = pl.when(~pl.col(n).is_in(known)).then(pl.lit(f"{n}: unknown")).otherwise(why)
        rows, how = pl.scan_parquet(file).with_columns(why.alias("_reason")), dict(
            compression="zstd", compression_level=level, lazy=True
        )
        good = rows.filter(pl.col("_reason").is_null()).drop("_reason").sink_parquet(folder/"good.parquet", **how)
        bad = rows.filter(pl.col("_reason").is_not_null()).sink_parquet(folder/"bad.parquet", **how)
        pl.collect_all([good, bad], engine="streaming")
        return {
            "said": [
                _summary("polars", folder / "good.parquet"),
                pl.scan_parquet(folder / "bad.parquet").select(pl.len()).collect().item(),
            ]
        }
    finally:
        shutil.rmtree(folder)


def polars_default(file): return polars(file, None)


def duckdb(file, level=f", COMPRESSION_LEVEL {LEVEL}"):
    import duckdb
    folder, (ranges, words) = Path(tempfile.mkdtemp(dir=TMP)), _rules(file)
    try:
        cases = [f"WHEN {n} NOT IN ({', '.join(map(repr, known))}) THEN '{n}: unknown'" for n, known in words.items()]
        for n, (low, high) in ranges.items():
            tests = [f"{n} < {low}"] * (low is not None) + [f"{n} > {high}"] * (high is not None)
            cases.append(f"WHEN {' OR '.join(tests)} THEN '{n}: out of range'")
        con, reason, how = (
            duckdb.connect(),
            f"CASE {' '.join(cases)} END",
            f"(FORMAT parquet, COMPRESSION zstd{level})",
        )
        con.execute(f"COPY (SELECT * FROM '{file}' WHERE ({reason}) IS NULL) TO '{folder}/good.parquet' {how}")
        con.execute(
            f"COPY (SELECT *, {reason} AS _reason FROM '{file}' WHERE ({reason}) IS NOT NULL) TO"
            f" '{folder}/bad.parquet' {how}"
        )
        return {
            "said": [
                _summary("duckdb", f"{folder}/good.parquet"),
                con.execute(f"SELECT count(*) FROM '{folder}/bad.parquet'").fetchone()[0],
            ]
        }
    finally:
        shutil.rmtree(folder)


def duckdb_default(file): return duckdb(file, "")


def check(answers): assert len({tuple(a) for a in answers.values()}) == 1, answers


def targets(rows, cost):
    if "polars" not in cost: return []
    own, peer, say = cost["scalai"], cost["polars"], lambda good: "reached" if good else "not reached"
    wall, cpu, share = peer["seconds"] / own["seconds"], peer["cpu"] / own["cpu"], own["peak"] / peer["peak"]
    return [
        (
            f"must: 2 × Polars at the same level: {cpu:.2f} × in CPU seconds, {say(cpu >= 2)} (aim 3 ×:"
            f" {say(cpu >= 3)}), {wall:.2f} × in time"
        ),
        f"must: half of Polars' memory: {share:.2f} of it, {say(share <= .5)}",
    ]
