"""How soon a followed topic's messages are rows that a reader sees: `make bench-stores`, or

    python tests/bench/stores_follow.py [--seconds 60] [--rate 5000] [--dry]

Kafka 4 on this machine, two partitions, JSON messages of 12 columns at a steady rate; `scalai ingest --follow` in a
process of its own. A reader opens the table ten times a second and counts its rows; a message is seen when so many
rows are there. The section goes to tests/bench/RESULTS.md."""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import keep_row, stamp  # noqa: E402
from servers.java import Kafka  # noqa: E402
from stores import message  # noqa: E402

STEPS = 20  # of a second


class Reader(threading.Thread):
    "It notes when how many rows are in a table, in how many files."
    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.seen, self.over = folder, [], threading.Event()

    def run(self):
        from scalai_nb.core.settings import Settings
        from scalai_nb.data.table import Table
        settings = Settings(root=self.folder)
        while not self.over.wait(.1):
            table = Table("rows", settings)
            if table.exists: self.seen.append((time.time(), table.count(), len(table.delta().file_uris())))


def produced(address: str, seconds: int, rate: int) -> list[tuple[float, int]]:  # when how many were sent
    from confluent_kafka import Producer
    r, producer = random.Random(1), Producer({"bootstrap.servers": address, "linger.ms": 5})
    count, out, began = 0, [], time.time()
    while len(out) < seconds*STEPS:
        for _ in range(rate//STEPS):
            count += 1
            producer.produce("stream", message(r, count), partition=count % 2)
        producer.poll(0)
        out.append((time.time(), count))
        time.sleep(max(0, began + len(out)/STEPS - time.time()))
    assert producer.flush(60) == 0
    return out


def measured(seconds: int, rate: int) -> dict:
    from confluent_kafka.admin import AdminClient, NewTopic
    with Kafka() as broker, tempfile.TemporaryDirectory() as folder:
        admin = AdminClient({"bootstrap.servers": broker.address})
        admin.create_topics([NewTopic("stream", 2)])["stream"].result(30)
        command = [Path(sys.executable).with_name("scalai"), "ingest", f"kafka://{broker.address}/stream", "rows",
                   "--follow"]
        follower = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        reader = Reader(Path(folder))
        reader.start()
        try:
            sent = produced(broker.address, seconds, rate)
            end = time.time() + 120
            while time.time() < end and (not reader.seen or reader.seen[-1][1] < sent[-1][1]): time.sleep(.1)
            used = psutil.Process(follower.pid).cpu_times()
        finally:
            reader.over.set()
            follower.terminate()
            follower.wait(60)
            reader.join()
    times, rows, files = map(np.array, zip(*reader.seen))
    assert rows[-1] == sent[-1][1], (rows[-1], sent[-1])
    after = times[[int(np.searchsorted(rows, n)) for _, n in sent]] - [t for t, _ in sent]
    half, most = np.percentile(after, [50, 95])
    return {"messages": f"{sent[-1][1]:,}", "seconds until seen, half": f"{half:.1f}", "95 %": f"{most:.1f}",
            "all": f"{after.max():.1f}", "files at most": int(files.max()), "batches": len(set(rows.tolist())),
            "CPU s of the follower": f"{used.user + used.system:.1f}"}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--rate", type=int, default=5_000, help="messages a second")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    load, found = os.getloadavg()[0], measured(a.seconds, a.rate)
    title = f"## stores: a topic followed, {a.rate:,} messages a second"
    measured_how = stamp(f"python tests/bench/stores_follow.py --seconds {a.seconds} --rate {a.rate}", load)
    keep_row(title, __doc__, found, measured_how, a.dry)


if __name__ == "__main__": main()
