"""The files that the benches read: the real flights and two tables of continuous measurements, as many rows as asked,
kept in a cache folder outside the repository."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CACHE = Path(os.environ.get("SCALAI_BENCH", Path.home()/".cache"/"scalai-nb"/"bench"))
COLUMNS = ["month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay",
           "carrier", "flight", "tailnum", "origin", "dest", "air_time", "distance", "time_hour"]
GROUP = 250_000  # rows of a row group
YEAR = np.timedelta64(52 * 7, "D")
# with nulls: float64, as pandas and R hand them on
HOLED = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]


def flights(rows: int) -> Path:  # Parquet, 16 columns
    """Flights by the row group: each group draws its rows from the real ones with its own seed, a whole number of
    years of 52 weeks later, so that every column keeps its real values, nulls and shares, and no two groups are
    alike."""
    path = CACHE/f"flights-{rows}.parquet"
    if path.exists(): return path
    from scalai_nb.loop.flights import flights as real
    CACHE.mkdir(parents=True, exist_ok=True)
    table = real().select(COLUMNS)
    for name in HOLED: table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.float64()))
    hours = np.array([h.rstrip("Z") for h in table["time_hour"].to_pylist()], "M8[us]")
    shape = table.schema.set(COLUMNS.index("time_hour"), pa.field("time_hour", pa.timestamp("us", "UTC")))
    part = path.with_suffix(".part")
    with pq.ParquetWriter(part, shape, compression="zstd") as out:
        for i, start in enumerate(range(0, rows, GROUP)):
            n = min(GROUP, rows - start)
            drawn = np.sort(np.random.default_rng([2013, i]).integers(0, len(table), n))
            later = pa.array(hours[drawn] + (start // len(table)) * YEAR, pa.timestamp("us", "UTC"))
            out.write_table(
                table.take(pa.array(drawn)).set_column(COLUMNS.index("time_hour"), "time_hour", later).cast(shape),
                row_group_size=GROUP,
            )
    part.rename(path)
    return path


def _written(path: Path, rows: int, make) -> Path:
    "A Parquet file made row group by row group: `make(rng, first row, rows)` returns the columns of one."
    if path.exists(): return path
    CACHE.mkdir(parents=True, exist_ok=True)
    part, out = path.with_suffix(".part"), None
    for i, start in enumerate(range(0, rows, GROUP)):
        table = pa.table(make(np.random.default_rng([2013, i]), start, min(GROUP, rows - start)))
        out = out or pq.ParquetWriter(part, table.schema, compression="zstd")
        out.write_table(table, row_group_size=GROUP)
    out.close()
    part.rename(path)
    return path


def walks(rows: int) -> Path:  # Parquet, 16 columns
    "Sixteen random walks, each going on where the row group before it ended."
    at = np.zeros(16)
    def make(rng, start, n):
        steps = at[:, None] + rng.normal(size=(16, n)).cumsum(1) * np.geomspace(.01, 100, 16)[:, None]
        at[:] = steps[:, -1]
        return {f"walk_{k:02}": x for k, x in enumerate(steps)}
    return _written(CACHE/f"walks-{rows}.parquet", rows, make)


def refusals(rows: int) -> Path:
    "The walks under another name, for rules that refuse most of them."
    made, path = walks(rows), CACHE/f"refusals-{rows}.parquet"
    if not path.exists(): path.symlink_to(made.name)
    return path


def readings(rows: int) -> Path:  # Parquet, 10 columns
    """Sensors:

    40 sites, 5,000 devices and 200,000 batches as text; seven noisy measurements, one of them with 2 % nulls."""
    names = lambda word, codes: pa.DictionaryArray.from_arrays(
        pa.array(codes.astype("i4")), pa.array([f"{word}-{k:06}" for k in range(codes.max() + 1)])
    ).cast(pa.string())
    def make(rng, start, n):
        t, device = np.arange(start, start + n) / 86_400, np.minimum(rng.zipf(1.2, n), 5_000) - 1
        wave = lambda level, swing, noise: level + swing * np.sin(2 * np.pi * t) + rng.normal(0, noise, n)
        power = rng.lognormal(3, 1, n)
        return {
            "site": names("site", device % 40),
            "device": names("device", device),
            "batch": names("batch", rng.integers(0, 200_000, n)),
            "temperature": wave(18, 6, 0.8),
            "humidity": wave(60, 15, 5),
            "pressure": wave(1013, 4, 1.5),
            "voltage": rng.normal(230, 2, n),
            "current": power / 230,
            "power": power * rng.normal(1, 0.01, n),
            "vibration": pa.array(rng.gamma(2, 0.3, n), mask=rng.random(n) < 0.02),
        }
    return _written(CACHE/f"readings-{rows}.parquet", rows, make)


if __name__ == "__main__":
    import sys
    for n in sys.argv[1:]: print(*(make(int(float(n))) for make in (flights, walks, readings)))
