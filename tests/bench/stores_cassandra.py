"""Cassandra: what the driver reads alone, and what this library reads up to Arrow: `make bench-stores`, or

    python tests/bench/stores_cassandra.py [--rows 200000] [--rounds 5] [--dry]

One node of Cassandra 5 on this machine, a table of 12 columns in partitions of 100 rows, read whole and by turns in
one process, connecting included: by the driver's own concurrent paging (`execute_concurrent` over token ranges, its
compiled parser, tuples, pages of 5,000 rows), and by `source.batches`. Figures are medians; × is the median of
the ratios of rows a second in the same round. The section goes to tests/bench/RESULTS.md."""

import argparse
import os
import statistics
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import keep, stamp  # noqa: E402

TITLE = "## Cassandra"
HEAD = ["reader", "rows/s", "client CPU s", "× of the driver"]
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


def measured(count: int = 200_000, rounds: int = 5) -> list[tuple]:  # rows of a table with `HEAD`
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
                spent = time.perf_counter() - wall, time.process_time() - cpu
                if n > 1: found[name].append(spent)
    alone = found["cassandra-driver"]
    return [(name, f"{count/statistics.median(w for w, _ in got):,.0f}",
             f"{statistics.median(c for _, c in got):.2f}",
             f"{statistics.median(a/w for (w, _), (a, _) in zip(got, alone)):.2f}") for name, got in found.items()]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rows", type=int, default=200_000)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    load = os.getloadavg()[0]
    table = ["| " + " | ".join(line) + " |" for line in [HEAD, ["---"]*len(HEAD), *measured(a.rows, a.rounds)]]
    said = __doc__.split("\n\n")[2].replace("\n", " ")
    how = stamp(f"python tests/bench/stores_cassandra.py --rows {a.rows}", load)
    text = [TITLE, "", said, "", *table, "", how, ""]
    print("\n".join(text))
    if not a.dry: keep(TITLE, "\n".join(text))


if __name__ == "__main__": main()
