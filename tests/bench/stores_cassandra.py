"""Cassandra: what the driver reads alone, and what this library reads up to Arrow: `make bench-stores`, or

    python tests/bench/stores_cassandra.py [--rows 200000] [--rounds 5] [--dry]

One node of Cassandra 5 on this machine, a table of 12 columns in partitions of 100 rows, read whole and by turns in
one process, connecting included: by the driver's own concurrent paging (`execute_concurrent` over token ranges, its
compiled parser, tuples, pages of 5,000 rows), and by `source.batches`. Figures are medians, of this process without
the server's; × is the median of the ratios of each round. The section goes to tests/bench/RESULTS.md."""

import statistics
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import stamp  # noqa: E402
from stores import main  # noqa: E402

RANGES = 32  # of the driver's; more make it slower

TABLE = """CREATE TABLE bench.orders (day int, id bigint, at timestamp, name text, code text, origin text, amount
 double, share double, x float, n int, kept boolean, size bigint, PRIMARY KEY (day, id))"""


def rows(count: int) -> pa.Table:
    r, ids = np.random.default_rng(1), np.arange(count)
    pick = lambda words: np.array(words)[r.integers(0, len(words), count)]
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return pa.table({
        "day": pa.array(ids//100, pa.int32()), "id": ids,
        "at": pa.array([start + timedelta(seconds=i) for i in range(count)], pa.timestamp("ms", "UTC")),
        "name": [f"customer {i*7919 % 9973}" for i in range(count)], "code": pick(["A-1", "B-22", "C-333"]),
        "origin": pick(["JFK", "LGA", "EWR"]), "amount": r.normal(100, 30, count), "share": r.random(count),
        "x": pa.array(r.random(count), pa.float32()), "n": pa.array(r.integers(0, 1000, count), pa.int32()),
        "kept": r.random(count) < .5, "size": r.integers(0, 1 << 40, count),
    })


def by_driver(port: int) -> int:
    "Count the rows that the driver reads over token ranges, several at a time."
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
    from cassandra.concurrent import execute_concurrent
    from cassandra.policies import RoundRobinPolicy
    from cassandra.query import tuple_factory

    from scalai_nb.data.cassandra import spans
    profile = ExecutionProfile(RoundRobinPolicy(), request_timeout=60, row_factory=tuple_factory)
    cluster = Cluster(["127.0.0.1"], port, auth_provider=PlainTextAuthProvider("cassandra", "cassandra"),
                      protocol_version=4, execution_profiles={EXEC_PROFILE_DEFAULT: profile})
    try:
        session = cluster.connect()
        session.default_fetch_size = 5_000
        asked = session.prepare("SELECT * FROM bench.orders WHERE token(day) > ? AND token(day) <= ?")
        each = [(asked, r) for r in spans(RANGES)]
        found = execute_concurrent(session, each, concurrency=16, results_generator=True)
        return sum(1 for _, result in found for _ in result)
    finally: cluster.shutdown()


def uri(port: int) -> str: return f"cassandra://cassandra:cassandra@127.0.0.1:{port}/bench/orders"


def by_source(port: int) -> int:
    from scalai_nb.data import source
    return sum(t.num_rows for t in source.batches(uri(port)))


READERS = {"cassandra-driver": by_driver, "scalai-nb": by_source}


def measured(count: int, rounds: int) -> dict[str, list[tuple]]:  # CPU seconds and seconds of each round, by reader
    "Read the same table by turns."
    from servers.java import Cassandra

    from scalai_nb.data.cassandra_sink import write_rows
    found = {name: [] for name in READERS}
    with Cassandra() as server:
        session = server.session()
        session.execute("CREATE KEYSPACE bench WITH replication = {'class': 'SimpleStrategy',"
                        " 'replication_factor': 1}")
        session.execute(TABLE)
        session.cluster.shutdown()
        write_rows(rows(count), uri(server.port))
        for n in range(rounds + 2):  # the server's compiler needs two
            for name in [*READERS][::1 if n % 2 else -1]:
                wall, cpu = time.perf_counter(), time.process_time()
                assert READERS[name](server.port) == count
                if n > 1: found[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return found


def section(count: int, rounds: int, load: float) -> str:
    found = measured(count, rounds)
    alone = found["cassandra-driver"]
    lines = [f"## stores: Cassandra 5, {count:,} rows", "", __doc__.split("\n\n")[2].replace("\n", " "), "",
             "| reader | CPU s | s | rows/s | throughput by CPU, × the driver's | by seconds, × |"
             " every round, CPU s; s |", "|---|---:|---:|---:|---:|---:|---|"]
    for name, each in found.items():
        cpu, wall = (statistics.median(x) for x in zip(*each))
        times = [statistics.median(a[i]/b[i] for a, b in zip(alone, each)) for i in (0, 1)]
        raw = "; ".join(", ".join(f"{x:.2f}" for x in side) for side in zip(*each))
        cells = [name, f"{cpu:.2f}", f"{wall:.2f}", f"{count/wall:,.0f}", *(f"{x:.2f}" for x in times), raw]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "At least .8 of the driver's throughput is the target.", ""]
    how = stamp(f"python tests/bench/stores_cassandra.py --rows {count} --rounds {rounds}", load)
    return "\n".join([*lines, how, ""])


if __name__ == "__main__": main(__doc__, section, 200_000)
