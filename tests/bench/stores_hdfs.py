"""What reading files of HDFS and S3 costs next to their clients alone:

    python tests/bench/stores_hdfs.py [--rows 1000000] [--rounds 5] [--dry]

One Parquet file of seven columns and a table of the same rows, on HDFS (a NameNode and a DataNode of this machine) and
on S3 (moto). The client is hdfs-native or s3fs with PyArrow, and for a table deltalake; ours is `source.batches` and
`Table.arrow`. By turns in one process; CPU seconds are of this process without the servers'. The section goes to
tests/bench/RESULTS.md."""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import stamp  # noqa: E402
from stores import main  # noqa: E402


def rows_of(count: int) -> pa.Table:
    r = np.random.default_rng(1)
    return pa.table({"id": range(count)} | {f"x{i}": r.normal(size=count) for i in range(6)})


def fill(root: str, count: int):
    from scalai_nb.core.settings import Settings
    from scalai_nb.core.storage import filesystem
    from scalai_nb.data.write import write
    fs, path = filesystem(f"{root}/rows.parquet")
    with fs.open(path, "wb") as f: pq.write_table(rows_of(count), f, row_group_size=100_000)
    with tempfile.TemporaryDirectory() as home:
        (Path(home)/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[data]\nstorage = {root}\n")
        write(rows_of(count), "rows", settings=Settings.load(home))


def client_file(root: str) -> int:
    "Rows that PyArrow gives from the file system of the client alone."
    if root.startswith("hdfs"):
        from hdfs_native.fsspec import HdfsFileSystem
        host, port = root.partition("://")[2].split("/")[0].split(":")
        f = HdfsFileSystem(host, int(port)).open(f"/{root.split('/', 3)[3]}/rows.parquet", "rb")
    else:
        import s3fs
        f = s3fs.S3FileSystem().open(f"{root}/rows.parquet", "rb")
    return sum(b.num_rows for b in pq.ParquetFile(f).iter_batches(250_000))


def our_file(root: str) -> int:
    from scalai_nb.data import source
    return sum(t.num_rows for t in source.batches(f"{root}/rows.parquet"))


def client_table(root: str) -> int:
    from deltalake import DeltaTable
    return DeltaTable(f"{root}/tables/rows").to_pyarrow_dataset().to_table().num_rows


def our_table(root: str) -> int:
    from scalai_nb.data.table_reader import TableReader
    return TableReader.from_uri(f"{root}/tables/rows").arrow().num_rows


WORK = {"a Parquet file": (client_file, our_file), "a table": (client_table, our_table)}


def measured(count: int = 1_000_000, rounds: int = 5) -> list[tuple]:  # store, what, medians of CPU s and s of both
    from file_stores import store
    from servers.java import Hdfs
    found = []
    with Hdfs() as hdfs, store("s3") as (s3, env, _):
        os.environ.update(env)
        for name, root in (("HDFS", f"{hdfs.root}/bench"), ("S3", f"{s3}/bench")):
            fill(root, count)
            for what, pair in WORK.items():
                spent = {fn: [] for fn in pair}
                for n in range(rounds + 1):
                    for fn in pair[::1 if n % 2 else -1]:
                        began, at = time.process_time(), time.perf_counter()
                        rows = fn(root)
                        if n: spent[fn].append((time.process_time() - began, time.perf_counter() - at))
                        assert rows == count, (name, what, rows)
                found.append((name, what, *(tuple(zip(*spent[fn])) for fn in pair)))
                print(found[-1], file=sys.stderr, flush=True)
    return found


def section(count: int, rounds: int, load: float) -> str:
    lines = [f"## stores: HDFS and S3, {count:,} rows", "", __doc__.split("\n\n")[2].replace("\n", " "), "",
             "| store | what | client alone: CPU s, s | ours: CPU s, s | throughput by CPU, × the client's |"
             " by seconds | every round: the client's CPU s; ours |", "|---|---|---:|---:|---:|---:|---|"]
    for name, what, client, ours in measured(count, rounds):
        both = [tuple(map(statistics.median, side)) for side in (client, ours)]
        by = [statistics.median(a/b for a, b in zip(client[i], ours[i])) for i in (0, 1)]
        each = "; ".join(", ".join(f"{x:.2f}" for x in side[0]) for side in (client, ours))
        lines.append(f"| {name} | {what} | {both[0][0]:.2f}, {both[0][1]:.2f} | {both[1][0]:.2f}, {both[1][1]:.2f} |"
                     f" {by[0]:.2f} | {by[1]:.2f} | {each} |")
    lines += ["", "The target is .9 of the client's throughput."]
    return "\n".join([*lines, stamp(f"python tests/bench/stores_hdfs.py --rows {count} --rounds {rounds}", load), ""])


if __name__ == "__main__": main(__doc__, section, 1_000_000)
