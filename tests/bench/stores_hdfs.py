"""What reading files of HDFS and S3 costs next to their clients alone: `make bench-stores`, or

    python tests/bench/stores_hdfs.py [--rows 1000000] [--rounds 5] [--dry]

One Parquet file of seven columns and a table of the same rows, on HDFS (a NameNode and a DataNode of this machine) and
on S3 (SeaweedFS where it is built, else moto). A file's client is hdfs-native's file system, s3fs without its cache or
PyArrow's S3 with its pre-buffering, under PyArrow's Parquet; a table's is deltalake. Ours is `source.batches` and
`Table.arrow`. By turns in one process; CPU seconds are of this process without the servers'; × is the median of the
ratios of each round. The section goes to tests/bench/RESULTS.md."""

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


def parquet_rows(file, **how) -> int: return sum(b.num_rows for b in pq.ParquetFile(file, **how).iter_batches(250_000))


def hdfs_native(root: str) -> int:
    from hdfs_native.fsspec import HdfsFileSystem
    host, port = root.partition("://")[2].split("/")[0].split(":")
    return parquet_rows(HdfsFileSystem(host, int(port)).open(f"/{root.split('/', 3)[3]}/rows.parquet", "rb"))


def by_s3fs(root: str) -> int:
    import s3fs
    return parquet_rows(s3fs.S3FileSystem().open(f"{root}/rows.parquet", "rb", cache_type="none"))


def by_pyarrow(root: str) -> int:
    from pyarrow.fs import S3FileSystem
    scheme, _, address = os.environ["AWS_ENDPOINT_URL"].partition("://")
    fs = S3FileSystem(endpoint_override=address, scheme=scheme, region=os.environ["AWS_DEFAULT_REGION"])
    return parquet_rows(fs.open_input_file(f"{root.removeprefix('s3://')}/rows.parquet"), pre_buffer=True)


def our_file(root: str) -> int:
    from scalai_nb.data import source
    return sum(t.num_rows for t in source.batches(f"{root}/rows.parquet"))


def client_table(root: str) -> int:
    from deltalake import DeltaTable
    return DeltaTable(f"{root}/tables/rows").to_pyarrow_dataset().to_table().num_rows


def our_table(root: str) -> int:
    from scalai_nb.data.table_reader import TableReader
    return TableReader.from_uri(f"{root}/tables/rows").arrow().num_rows


TABLE = ({"deltalake": client_table}, our_table)
FILES = {"HDFS": {"hdfs-native": hdfs_native}, "S3": {"s3fs": by_s3fs, "PyArrow": by_pyarrow}}


def by_turns(readers: dict, root: str, count: int, rounds: int) -> dict[str, list]:  # CPU seconds, seconds of each
    spent = {name: [] for name in readers}
    for n in range(rounds + 1):
        for name, fn in [*readers.items()][::1 if n % 2 else -1]:
            began, at = time.process_time(), time.perf_counter()
            rows = fn(root)
            if n: spent[name].append((time.process_time() - began, time.perf_counter() - at))
            assert rows == count, (name, rows)
    return spent


def measured(count: int, rounds: int, kind: str) -> list[tuple[str, str, dict]]:  # store, what, what each reader spent
    from file_stores import store
    from servers.java import Hdfs
    found = []
    with Hdfs() as hdfs, store(kind) as (s3, env, _):
        os.environ.update(env)
        for name, root in (("HDFS", f"{hdfs.root}/bench"), ("S3", f"{s3}/bench")):
            fill(root, count)
            for what, (clients, ours) in {"a Parquet file": (FILES[name], our_file), "a table": TABLE}.items():
                found.append((name, what, by_turns(clients | {"scalai": ours}, root, count, rounds)))
                print(found[-1], file=sys.stderr, flush=True)
    return found


def section(count: int, rounds: int, load: float) -> str:
    import servers
    kind = "seaweed" if (servers.weed_home()/"weed").exists() else "s3"
    lines = [f"## stores: HDFS and S3, {count:,} rows", "", __doc__.split("\n\n")[2].replace("\n", " "), "",
             f"S3 was {'SeaweedFS' if kind == 'seaweed' else 'moto'}.", "",
             "| store | what | reader | CPU s | s | throughput of scalai by CPU, × | by seconds, × |"
             " every round, CPU s; s |", "|---|---|---|---:|---:|---:|---:|---|"]
    for name, what, spent in measured(count, rounds, kind):
        for reader, each in spent.items():
            cpu, wall = zip(*each)
            times = [statistics.median(a[i]/b[i] for a, b in zip(each, spent["scalai"])) for i in (0, 1)]
            raw = "; ".join(", ".join(f"{x:.2f}" for x in side) for side in (cpu, wall))
            cells = [name, what, reader, *(f"{x:.2f}" for x in (*map(statistics.median, (cpu, wall)), *times)), raw]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "× says how many times the rows of that line's reader ours reads in the same time (at least .9 is"
              " the target).", ""]
    return "\n".join([*lines, stamp(f"python tests/bench/stores_hdfs.py --rows {count} --rounds {rounds}", load), ""])


if __name__ == "__main__": main(__doc__, section, 1_000_000)
