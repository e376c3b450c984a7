"""Check + write + profile: rows that break a rule go apart with their reason, good ones into zstd Parquet (Delta here, plain files elsewhere), and every column of the good rows is summarised. Polars and DuckDB write the same good and refused rows, then make the profile bench's summary of the good file."""
import importlib.util, shutil, tempfile
from pathlib import Path

from rows import flights as prepare

CONTENDERS = ("scalai", "polars", "duckdb")
RULES = {"dep_delay": (-40, 240), "distance": (100, 5000), "air_time": (None, 600)}  # null is allowed
CARRIERS = ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "UA", "US", "VX", "WN", "YV"]  # not OO
TMP = Path(tempfile.gettempdir())


def _summary(who, file):
    spec = importlib.util.spec_from_file_location("profile_job", Path(__file__).with_name("profile.py"))
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return getattr(job, who)(file)["said"][0]


def scalai(file):
    import os
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.contract import Contract, Rule
    from scalai_nb.data.ingest import ingest
    folder = Path(tempfile.mkdtemp(dir=TMP))
    try:
        (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
        contract = Contract({n: Rule(min=low, max=high) for n, (low, high) in RULES.items()} | {"carrier": Rule(categories=tuple(CARRIERS))})
        done = ingest(os.path.abspath(file), "flights", contract, settings=Settings.load(folder/"settings.ini"))
        return {"said": [done.rows_good, done.rows_refused]}
    finally: shutil.rmtree(folder)


def polars(file):
    import polars as pl
    folder = Path(tempfile.mkdtemp(dir=TMP))
    try:
        why = pl.lit(None, pl.String)
        for n, (low, high) in RULES.items():
            broken = pl.col(n) > high if low is None else (pl.col(n) < low) | (pl.col(n) > high)
            why = pl.when(broken.fill_null(False)).then(pl.lit(f"{n}: out of range")).otherwise(why)
        rows = pl.scan_parquet(file).with_columns(pl.when(~pl.col("carrier").is_in(CARRIERS)).then(pl.lit("carrier: unknown")).otherwise(why).alias("_reason"))
        good = rows.filter(pl.col("_reason").is_null()).drop("_reason").sink_parquet(folder/"good.parquet", compression="zstd", lazy=True)
        bad = rows.filter(pl.col("_reason").is_not_null()).sink_parquet(folder/"bad.parquet", compression="zstd", lazy=True)
        pl.collect_all([good, bad], engine="streaming")
        return {"said": [_summary("polars", folder/"good.parquet"), pl.scan_parquet(folder/"bad.parquet").select(pl.len()).collect().item()]}
    finally: shutil.rmtree(folder)


def duckdb(file):
    import duckdb
    folder = Path(tempfile.mkdtemp(dir=TMP))
    try:
        cases = [f"WHEN carrier NOT IN {tuple(CARRIERS)} THEN 'carrier: unknown'"]
        for n, (low, high) in RULES.items(): cases.append(f"WHEN {f'{n} < {low} OR ' if low is not None else ''}{n} > {high} THEN '{n}: out of range'")
        con, reason = duckdb.connect(), f"CASE {' '.join(cases)} END"
        con.execute(f"COPY (SELECT * FROM '{file}' WHERE ({reason}) IS NULL) TO '{folder}/good.parquet' (FORMAT parquet, COMPRESSION zstd)")
        con.execute(f"COPY (SELECT *, {reason} AS _reason FROM '{file}' WHERE ({reason}) IS NOT NULL) TO '{folder}/bad.parquet' (FORMAT parquet, COMPRESSION zstd)")
        return {"said": [_summary("duckdb", f"{folder}/good.parquet"), con.execute(f"SELECT count(*) FROM '{folder}/bad.parquet'").fetchone()[0]]}
    finally: shutil.rmtree(folder)


def check(answers): assert len({tuple(a) for a in answers.values()}) == 1, answers


def targets(rows, cost):
    if "polars" not in cost: return []
    got, share = cost["polars"]["seconds"] / cost["scalai"]["seconds"], cost["scalai"]["peak"] / cost["polars"]["peak"]
    return [f"must: 2 × Polars: {got:.2f} ×, {'reached' if got >= 2 else 'not reached'} (CPU {cost['polars']['cpu'] / cost['scalai']['cpu']:.2f} ×); aim: 3 ×",
            f"must: half of Polars' memory: {share:.2f} of it, {'reached' if share <= .5 else 'not reached'}"]
