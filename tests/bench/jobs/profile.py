"""The summary of every column of a Parquet file: nulls, min, max, mean, std, distinct, seven quantiles, top values where the column is no float."""
from rows import flights as prepare

CONTENDERS = ("scalai", "polars", "duckdb", "duckdb_all", "pandas", "dask")
Q = [.01, .05, .25, .5, .75, .95, .99]
TOP = 10


def scalai(file):
    from scalai_nb.data.profile import profile
    d = profile(file).to_dict(TOP)
    return {"said": [d["rows"], {n: (c["nulls"], c["distinct"]) for n, c in d["columns"].items()}]}


def polars(file):
    import polars as pl
    scan = pl.scan_parquet(file)
    schema, asked = scan.collect_schema(), []
    for n, t in schema.items():
        c = pl.col(n)
        asked += [c.null_count().alias(f"{n}|nulls"), c.min().alias(f"{n}|min"), c.max().alias(f"{n}|max"), c.n_unique().alias(f"{n}|distinct")]
        if t.is_numeric(): asked += [c.mean().alias(f"{n}|mean"), c.std().alias(f"{n}|std")]
        if t.is_numeric() or t.is_temporal(): asked += [c.quantile(q).alias(f"{n}|{q}") for q in Q]
        if not t.is_float(): asked.append(c.drop_nulls().value_counts(sort=True).head(TOP).implode().alias(f"{n}|top"))
    got = scan.select(pl.len().alias("rows"), *asked).collect(engine="streaming").row(0, named=True)
    return {"said": [got["rows"], {n: (got[f"{n}|nulls"], got[f"{n}|distinct"] - (got[f"{n}|nulls"] > 0)) for n in schema}]}


def _summarize(file):
    import duckdb
    con = duckdb.connect()
    found = con.execute(f"SUMMARIZE SELECT * FROM '{file}'")
    names = [d[0] for d in found.description]
    return con, [dict(zip(names, r)) for r in found.fetchall()]


def _told(rows):
    n = rows[0]["count"]
    return {"said": [n, {r["column_name"]: (round(n * float(r["null_percentage"]) / 100), r["approx_unique"]) for r in rows}]}


def duckdb(file):
    "SUMMARIZE alone: three quantiles, no top values, everything approximate."
    return _told(_summarize(file)[1])


def duckdb_all(file):
    "SUMMARIZE, and a second query for what it leaves out: seven quantiles and the top values, approximate too."
    con, rows = _summarize(file)
    kinds = {r["column_name"]: r["column_type"] for r in rows}
    asked = [f"approx_quantile({n}, {Q})" for n, t in kinds.items() if t != "VARCHAR"] + [f"approx_top_k({n}, {TOP})" for n, t in kinds.items() if t not in ("DOUBLE", "FLOAT")]
    con.execute(f"SELECT {', '.join(asked)} FROM '{file}'").fetchall()
    return _told(rows)


def pandas(file):
    import pandas as pd
    frame, out = pd.read_parquet(file), {}
    for n, x in frame.items():
        nulls, _, _, distinct = int(x.isna().sum()), x.min() if x.dtype != object else x.dropna().min(), x.max() if x.dtype != object else x.dropna().max(), int(x.nunique())
        if x.dtype.kind in "if": x.mean(), x.std()
        if x.dtype.kind in "ifM": x.quantile(Q)
        if x.dtype.kind != "f": x.value_counts().head(TOP)
        out[n] = nulls, distinct
    return {"said": [len(frame), out]}


def dask(file):
    import dask, dask.dataframe as dd
    from dask.distributed import Client, LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        frame, asked = dd.read_parquet(file, split_row_groups=True), {}
        for n, t in frame.dtypes.items():
            x = frame[n]
            asked[n] = [x.isnull().sum(), x.nunique_approx(), x.min(), x.max()]
            if t.kind in "if": asked[n] += [x.mean(), x.std()]
            if t.kind in "if": asked[n].append(x.quantile(Q))
            if t.kind != "f": asked[n].append(x.value_counts().nlargest(TOP))
        rows, got = dask.compute(frame.shape[0], asked)
        return {"said": [int(rows), {n: (int(v[0]), float(v[1])) for n, v in got.items()}]}


def check(answers: dict):
    "The contenders must have seen the same rows: nulls equal, distinct within 3 % (DuckDB's own estimate within 30 %)."
    rows, exact = answers["polars"] if "polars" in answers else answers["scalai"]
    for who, (n, columns) in answers.items():
        assert n == rows, (who, n, rows)
        for name, (nulls, distinct) in columns.items():
            about = who.startswith("duckdb")
            assert abs(nulls - exact[name][0]) <= about * 1e-4 * n, (who, name, nulls, exact[name])
            assert abs(distinct / exact[name][1] - 1) <= (.3 if about else .03), (who, name, distinct, exact[name])


def targets(rows, cost):
    "What issue 3 asks for, and what came out."
    must, aim = (4, 6) if rows >= 20_000_000 else (3, 3)
    own, peers = cost["scalai"], [w for w in ("polars", "duckdb") if w in cost]
    if len(peers) < 2: return []
    fast = min(peers, key=lambda w: cost[w]["seconds"])
    got, share = cost[fast]["seconds"] / own["seconds"], own["peak"] / cost["polars"]["peak"]
    say = lambda good: "reached" if good else "not reached"
    return [f"must: {must} × the faster of Polars and DuckDB: {got:.2f} × {fast}, {say(got >= must)}; in CPU seconds {cost[fast]['cpu'] / own['cpu']:.2f} ×"] + \
           ([f"aim: {aim} ×: {say(got >= aim)}"] if aim > must else []) + \
           [f"must: half of Polars' memory: {share:.2f} of it, {say(share <= .5)}; aim: DuckDB's memory: {own['peak'] / cost['duckdb']['peak']:.2f} × it, {say(own['peak'] <= cost['duckdb']['peak'])}"]
