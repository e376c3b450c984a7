"""The files that the benches read: the real flights, as many rows as asked, kept in a cache folder outside the repository."""
import os
from pathlib import Path

import numpy as np, pyarrow as pa, pyarrow.parquet as pq

CACHE = Path(os.environ.get("SCALAI_BENCH", Path.home()/".cache"/"scalai-nb"/"bench"))
COLUMNS = ["month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay",
           "carrier", "flight", "tailnum", "origin", "dest", "air_time", "distance", "time_hour"]
GROUP = 250_000  # rows of a row group
YEAR = np.timedelta64(52 * 7, "D")
HOLED = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]  # with nulls: float64, as pandas and R hand them on


def flights(rows: int) -> Path:  # Parquet, 16 columns
    """Flights by the row group: each group draws its rows from the real ones with its own seed, a whole number of years of 52 weeks later,
    so that every column keeps its real values, nulls and shares, and no two groups are alike."""
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
            out.write_table(table.take(pa.array(drawn)).set_column(COLUMNS.index("time_hour"), "time_hour", later).cast(shape), row_group_size=GROUP)
    part.rename(path)
    return path


if __name__ == "__main__":
    import sys
    for n in sys.argv[1:]: print(flights(int(float(n))))
