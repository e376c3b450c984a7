"More processes and more rows: the same digest, and memory that does not grow with the table."
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalai_nb.data.profile import profile

pytestmark = pytest.mark.slow


def test_a_cluster_of_processes_gives_the_same_digest(workspace, flights):
    """Three worker processes:

    frames, families, files and saved tables; also text above the cap, and a table of one partition."""
    import dask.dataframe as dd

    from scalai_nb.core.cluster import cluster
    from scalai_nb.data.source import read
    from scalai_nb.data.table import Table
    from scalai_nb.data.write import write
    part = flights.iloc[::3].reset_index(drop=True)
    part["id"] = "f" + part.index.astype(str)
    part.to_parquet("part.parquet", row_group_size=20_000)
    whole = profile(part)
    with cluster(kind="processes", workers=3) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 3
        lazy = dd.from_pandas(part, npartitions=11)
        assert profile(lazy) == whole == profile(dd.from_pandas(part, npartitions=1))
        family = profile(lazy, by=["month", "origin"])
        assert sum(family.values()) == whole and {k: p.digest for k, p in family.items()} == {
            k: p.digest for k, p in profile(part, by=["month", "origin"]).items()
        }
        assert profile(read("part.parquet", rows=15_000)) == profile("part.parquet")
        write(lazy, "many", period="month")
    write(part, "one", period="month")
    assert Table("many").profile() == Table("one").profile() and len(Table("many").profiles()) == 12


PEAK = """
import re, sys
import torch, pyarrow.dataset as ds, pyarrow.parquet as pq
from scalai_nb.data import loader, prep, profile as room, shuffle, source
what, file = sys.argv[1:]
# ru_maxrss would begin with what the parent had
memory = lambda of: int(re.search(of + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
before = memory("VmRSS")
if what == "profile": print(room.profile(file).rows)
if what == "loader":
    made = prep.Prep.fit(room.profile(pq.ParquetFile(file).read_row_group(0)), target="y", exclude=["word"])
    print(sum(len(y) for _, y in loader.Loader(ds.dataset(file), made, batch_size=4096, memory=1 << 20)))
print(memory("VmHWM") - before)
"""


def peak(what, file) -> tuple:  # rows that went by, MB above what the imports took
    done = subprocess.run([sys.executable, "-c", PEAK, what, str(file)], capture_output=True, text=True, check=True)
    rows, megabytes = done.stdout.split()
    return int(rows), float(megabytes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "The same kind of rows, 300,000 and 2,400,000 of them: a float, an integer, text above the cap, a group."
    folder, made = tmp_path_factory.mktemp("rows"), {}
    for times in (1, 8):
        made[times] = folder/f"{times}.parquet"
        with pq.ParquetWriter(
            made[times],
            pa.schema(
                [
                    ("x", pa.float64()),
                    ("i", pa.int64()),
                    ("word", pa.string()),
                    ("group", pa.int8()),
                    ("y", pa.float32()),
                ]
            ),
        ) as out:
            for k in range(times * 8):
                rng, n = np.random.default_rng(k), 37_500
                out.write_table(
                    pa.table(
                        {
                            "x": rng.normal(size=n),
                            "i": rng.integers(0, 10**12, n),
                            "word": pa.array(rng.integers(0, 10**6, n)).cast(pa.string()),
                            "group": pa.array(rng.integers(0, 5, n), pa.int8()),
                            "y": rng.random(n, np.float32),
                        },
                        schema=out.schema,
                    )
                )
    yield made
    for f in made.values(): f.unlink()


@pytest.mark.parametrize("what", ["profile", "loader"])
def test_memory_is_flat_as_rows_grow(files, what):
    "Eight times the rows, the same peak: within half of it and 60 MB, which allocators keep."
    (few, small), (many, large) = (peak(what, files[t]) for t in (1, 8))
    assert few >= 300_000 - 15 and many >= 2_400_000 - 15
    assert small > 10 and large <= 1.5 * small + 60, (what, small, large)
    print(f"{what}: {small:.0f} MB, {large:.0f} MB")


def test_ten_million_distinct_strings():
    """Counted as they come:

    distinct within 3 %, lengths and extremes exact, the profile as small as ever, also added from parts."""
    n, part = 10_000_000, 1_000_000
    words = (pa.table({"w": pa.array(np.arange(k, k + part)).cast(pa.string())}) for k in range(0, n, part))
    p = profile(words)
    assert p.rows == n and abs(p["w"].distinct / n - 1) <= .03 and len(p.to_bytes()) < 200_000
    assert p["w"].lengths == {d: 9 * 10 ** (d - 1) + (d == 1) for d in range(1, 8)}
    assert (p["w"].min, p["w"].max) == ("0", "9999999")
    assert all(low <= 1 <= high for _, low, high in p["w"].top(50))
    half = profile(pa.table({"w": pa.array(np.arange(part)).cast(pa.string())}))
    assert (half + p)["w"].distinct == p["w"].distinct  # nothing new came


def test_two_thousand_columns():
    "Their profile is one sum like any other, and stays small for each column."
    rng = np.random.default_rng(2)
    table = pa.table(
        {
            **{f"f{i}": rng.normal(size=3_000) for i in range(1_200)},
            **{f"i{i}": rng.integers(0, 50, 3_000) for i in range(500)},
            **{f"w{i}": pa.array(rng.integers(0, 2_000, 3_000)).cast(pa.string()) for i in range(300)},
        }
    )
    whole = profile(table)
    assert len(whole.columns) == 2_000 and profile(table.slice(0, 700)) + profile(table.slice(700)) == whole
    assert max(c.resolution for c in whole.columns.values()) <= .01
    back = type(whole).from_bytes(whole.to_bytes())
    assert back == whole and len(whole.to_bytes()) < 2_000 * 60_000
