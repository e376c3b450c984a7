"""How many files a followed table has after an hour at 5,000 rows a second: `make bench-stores`, or

    python tests/bench/stores_hour.py [--seconds 3600] [--rate 5000] [--every 2] [--dry]

A follower whose clock is simulated: each batch has the rows of two seconds, 12 columns, windows of an hour, and is
ingested and committed as ever; after every 24 batches the small files are joined, and the next batch waits for that.
Files are those that the newest version names. The section goes to tests/bench/RESULTS.md."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import keep_row, stamp  # noqa: E402

from scalai_nb.core.delta_log import store  # noqa: E402
from scalai_nb.core.settings import Settings  # noqa: E402
from scalai_nb.data import delta  # noqa: E402
from scalai_nb.data.follow import Follow  # noqa: E402
from scalai_nb.data.ingest import ingest  # noqa: E402
from scalai_nb.data.table import Table  # noqa: E402

BEGIN = np.datetime64("2026-03-01T05:30:00", "us")  # the hour lies in two windows


def rows(first: int, rate: int, every: int) -> pa.Table:  # of the seconds from the first on
    r, number = np.random.default_rng(first), rate*every
    pick = lambda *words: pa.array(words).take(pa.array(r.integers(0, len(words), number)))
    return pa.table({
        "id": first*rate + np.arange(number), "carrier": pick("UA", "AA", "B6"),
        "flight": r.integers(0, 2000, number), "origin": pick("EWR", "JFK", "LGA"), "dest": pick("IAH", "MIA", "BQN"),
        "dep_time": r.integers(0, 2400, number), "dep_delay": r.normal(0, 10, number).round(1),
        "arr_delay": r.normal(0, 12, number).round(2), "distance": r.integers(0, 3000, number),
        "air_time": r.random(number)*300, "cancelled": r.random(number) < .02,
        "time": BEGIN + (first*1_000_000 + r.integers(0, every*1_000_000, number)).astype("m8[us]")})


class Simulated(Follow):
    "A follower for which some seconds have passed at each look."
    def __init__(self, rate: int, every: int, settings: Settings):
        super().__init__("simulated", "rows", period="time", settings=settings)
        self.rate, self.every, self.second, self.most, self.longest = rate, every, 0, 0, 0.

    def _kind(self): return True

    def _topic(self):
        self.second += self.every
        made = rows(self.second - self.every, self.rate, self.every)
        return ingest(made, "rows", period="time", settings=self.settings)

    def _join(self):
        began = time.time()
        self.most = max(self.most, files(self.settings, "tables", "rows"))
        super()._join()
        self.joining.join()
        self.longest = max(self.longest, time.time() - began)


def files(settings: Settings, *place: str) -> int: return len(delta.current_files(store(settings, *place)))


def measured(seconds: int, rate: int, every: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(root=Path(folder))
        settings = settings.model_copy(update={"monitor": settings.monitor.model_copy(update={"period": "hour"})})
        follow = Simulated(rate, every, settings)
        for _ in range(seconds//every): follow.step()
        table, used = Table("rows", settings), psutil.Process().cpu_times()
        assert table.count() == seconds*rate and sum(p.rows for p in table.profiles().values()) == seconds*rate
        size = sum(pa.table(table.delta().get_add_actions(flatten=True))["size_bytes"].to_pylist())
        return {"rows": f"{seconds*rate:,}", "batches": f"{follow.did.batches:,}",
                "live files after it": files(settings, "tables", "rows"), "live files at most": follow.most,
                "files of profiles": files(settings, "windows"), "MB": f"{size/1e6:,.0f}",
                "CPU s": f"{used.user + used.system:,.0f}", "longest joining, s": f"{follow.longest:.1f}"}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seconds", type=int, default=3_600)
    p.add_argument("--rate", type=int, default=5_000, help="rows a second")
    p.add_argument("--every", type=int, default=2, help="seconds of a batch")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    load, found = os.getloadavg()[0], measured(a.seconds, a.rate, a.every)
    title = f"## stores: an hour of a table that is followed, {a.rate:,} a second"
    measured_how = stamp(f"python tests/bench/stores_hour.py --seconds {a.seconds} --rate {a.rate}", load)
    keep_row(title, __doc__, found, measured_how, a.dry)


if __name__ == "__main__": main()
