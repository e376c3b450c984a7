"""The sum of 1,000 profiles of 20 columns (1,000 rows each: flights, and four columns of random floats), and its
digest."""

import time

from rows import CACHE, flights

CONTENDERS, GROWS, ROWS = ("scalai",), False, 1_000_000


def prepare(rows):
    folder = CACHE/"profiles"
    if not (folder/"done").exists():
        import numpy as np
        import pyarrow.parquet as pq

        from scalai_nb.data.profile import profile
        folder.mkdir(parents=True, exist_ok=True)
        table, rng = pq.read_table(flights(rows)), np.random.default_rng(7)
        for i, x in enumerate(
            (
                rng.normal(size=rows),
                rng.standard_cauchy(rows),
                rng.lognormal(0, 3, rows),
                rng.uniform(1e9, 1e9 + 1, rows),
            )
        ):
            table = table.append_column(f"x{i}", [x])
        for i in range(1000): profile(table.slice(i * rows // 1000, rows // 1000)).save(folder/f"{i}.profile")
        (folder/"done").touch()
    return folder


def scalai(folder):
    from pathlib import Path

    from scalai_nb.data.profile import Profile, total
    parts = [Profile.load(Path(folder)/f"{i}.profile") for i in range(1000)]
    (parts[0] + parts[1]).digest  # compiled code is loaded
    start = time.perf_counter()
    whole = total(parts)
    digest = whole.digest
    return {"seconds": time.perf_counter() - start, "said": [whole.rows, len(whole.columns), digest]}


def check(answers): assert answers["scalai"][:2] == [1_000_000, 20]


def targets(rows, cost):
    return [
        f"must: below 2 s: {cost['scalai']['seconds']:.2f} s,"
        f" {'reached' if cost['scalai']['seconds'] < 2 else 'not reached'}"
    ]
