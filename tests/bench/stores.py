"""What reading a store costs next to its client alone: `make bench-stores`, or

    python tests/bench/stores.py [--rows 600000] [--rounds 5] [--dry]

Kafka 4 on this machine, one broker that keeps running. JSON messages of 12 columns in two partitions, whole, and with
one that is cut in 1,000. The client polls (confluent-kafka, 10,000 at once) and parses each message with orjson; ours
goes up to Arrow tables, then up to a committed table with its profile. By turns in one process; the figures are
medians, of CPU seconds of this process without the broker's. The section goes to tests/bench/RESULTS.md."""

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import orjson

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import keep, stamp  # noqa: E402
from servers.java import Kafka  # noqa: E402

KINDS = {"whole": 0, "one broken in 1,000": 1_000}


def message(r: random.Random, i: int) -> bytes:
    return orjson.dumps({
        "id": i, "carrier": r.choice(["UA", "AA", "B6"]), "flight": i % 2000, "origin": "EWR", "dest": "IAH",
        "dep_time": r.randrange(2400), "dep_delay": round(r.gauss(0, 10), 1), "arr_delay": round(r.gauss(0, 12), 2),
        "distance": r.randrange(3000), "air_time": r.random()*300, "cancelled": False,
        "time_hour": "2013-01-01T05:00:00Z",
    })


def fill(address: str, topic: str, count: int, every: int):
    from confluent_kafka import Producer
    r = random.Random(1)
    producer = Producer({"bootstrap.servers": address, "compression.type": "lz4", "linger.ms": 50})
    for i in range(count):
        value = message(r, i)
        if every and i % every == every//2: value = value[:-r.randrange(1, 150)]
        while True:
            try: producer.produce(topic, value, partition=i % 2); break
            except BufferError: producer.poll(.1)
    assert producer.flush(120) == 0


def client(broker: Kafka, topic: str, root: Path) -> int:
    "Rows that confluent-kafka and orjson alone give."
    from confluent_kafka import Consumer, TopicPartition
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "bench", "enable.auto.commit": False,
                         "enable.partition.eof": True, "isolation.level": "read_committed"})
    rows = 0
    for p in (0, 1):
        consumer.assign([TopicPartition(topic, p, 0)])
        done = False
        while not done:
            for m in consumer.consume(10_000, timeout=.2):
                if m.error(): done = True; continue
                try: orjson.loads(m.value()); rows += 1
                except orjson.JSONDecodeError: continue
    consumer.close()
    return rows


def arrow(broker: Kafka, topic: str, root: Path) -> int:
    from scalai_nb.data import kafka
    return sum(t.num_rows for t in kafka.read(broker.uri(topic), bad=[]))


def table(broker: Kafka, topic: str, root: Path) -> int:
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.ingest import ingest
    root.mkdir()
    done = ingest(broker.uri(topic), "rows", settings=Settings(root=root))
    shutil.rmtree(root)
    return done.rows_good


WORK = {"confluent-kafka and orjson": client, "scalai, up to Arrow": arrow, "scalai, ingested into a table": table}


def measured(count: int, rounds: int) -> dict[tuple, list[tuple]]:
    "CPU seconds and seconds of each round, by work and kind."
    found = {(w, k): [] for w in WORK for k in KINDS}
    with Kafka() as broker, tempfile.TemporaryDirectory() as folder:
        for i, every in enumerate(KINDS.values()): fill(broker.address, f"topic{i}", count, every)
        for n in range(rounds + 1):
            for w, k in [*found][::1 if n % 2 else -1]:
                began, at = time.process_time(), time.perf_counter()
                rows = WORK[w](broker, f"topic{[*KINDS].index(k)}", Path(folder)/"w")
                spent = time.process_time() - began, time.perf_counter() - at
                assert rows == count - (count//KINDS[k] if KINDS[k] else 0), (w, k, rows)
                if n: found[w, k].append(spent)
                print(f"{n}/{rounds} {w}, {k}: {spent[0]:.2f} CPU s, {spent[1]:.2f} s", file=sys.stderr, flush=True)
    return found


def ratio(found: dict, one: tuple, other: tuple) -> float:
    "The median of what each round cost, by what the other cost in the same round."
    return statistics.median(a/b for (a, _), (b, _) in zip(found[one], found[other]))


def section(count: int, rounds: int, load: float) -> str:
    found = measured(count, rounds)
    lines = [f"## stores: Kafka 4, {count:,} rows", "", __doc__.split("\n\n")[2].replace("\n", " "), "",
             "| | messages | CPU s | × the client alone | seconds | rows a minute | every round, CPU s; s |",
             "|---|---|---:|---:|---:|---:|---|"]
    for (w, k), spent in found.items():
        cpu, wall = (statistics.median(x) for x in zip(*spent))
        each = "; ".join(", ".join(f"{x:.2f}" for x in row) for row in zip(*spent))
        times = ratio(found, (w, k), ([*WORK][0], k))
        lines.append(f"| {w} | {k} | {cpu:.2f} | {times:.2f} | {wall:.2f} | {count*60/wall:,.0f} | {each} |")
    whole, broken = KINDS
    own, made = [*WORK][1:]
    lines += ["", f"- Up to Arrow: {ratio(found, (own, whole), ([*WORK][0], whole)):.2f} × the client's CPU seconds"
              " (at most 1.3 is the target).",
              f"- One broken message in 1,000 costs {ratio(found, (own, broken), (own, whole)):.2f} × the CPU seconds"
              f" up to Arrow, {ratio(found, (made, broken), (made, whole)):.2f} × up to a table (at most 1.1).",
              f"- Kafka to a table: {count*60/statistics.median(s for _, s in found[made, whole]):,.0f} rows a minute"
              " (at least 2,000,000).", ""]
    return "\n".join([*lines, stamp(f"python tests/bench/stores.py --rows {count} --rounds {rounds}", load), ""])


def main(described: str, section, rows: int):  # section(rows, rounds, load): a section of RESULTS.md
    p = argparse.ArgumentParser(description=described.split("\n")[0])
    p.add_argument("--rows", type=int, default=rows)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    text = section(a.rows, a.rounds, os.getloadavg()[0])
    print(text)
    if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main(__doc__, section, 600_000)
