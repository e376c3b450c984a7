"""A shuffled epoch of batches of 4,096 rows × 20 floats from Parquet, as torch tensors, in one thread: the median of
epochs 2 to 4. `streamed` is the same loader with memory for a window of a tenth of the features: decoded and prepared
again every epoch; `rowgroups` is a hand-written reader that shuffles row groups, and rows inside each, and reads again
every epoch; `nodes` is torchdata.nodes over it; `gather` has everything in memory, the most that a true global shuffle
can reach; `rows_one_by_one` is a Dataset that gives single rows."""

import time

from rows import CACHE

CONTENDERS = ("scalai", "streamed", "rowgroups", "nodes", "gather", "rows_one_by_one")
BATCH, EPOCHS, WIDTH, GROUP = 4096, 4, 20, 65_536


def prepare(rows):
    path = CACHE/f"floats-{rows}.parquet"
    if not path.exists():
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq
        CACHE.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(5)
        pq.write_table(
            pa.table(
                {
                    **{f"x{i}": rng.normal(size=rows).astype("f4") for i in range(WIDTH)},
                    "y": (rng.random(rows) < 0.2).astype("f4"),
                }
            ),
            path,
            row_group_size=GROUP,
            use_dictionary=False,
        )
    return path


def _timed(epochs):
    "Seconds of a later epoch (median), and of the first, which may have to read everything."
    import statistics

    import torch
    torch.set_num_threads(1)
    rows, total, seconds, now = 0, 0.0, [], time.perf_counter()
    for batches in epochs:
        for x, y in batches:
            assert x.dtype == torch.float32 and x.shape[1] == WIDTH
            rows += len(x); total += float(y[0])
        seconds.append(time.perf_counter() - now)
        now = time.perf_counter()
    return {"seconds": statistics.median(seconds[1:] or seconds), "said": [rows // len(seconds), seconds[0]]}


def _loader(file, rows, **how):
    from scalai_nb.data.loader import Loader
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    p = profile(file)
    prep = Prep.fit(p, {n: "number" for n in p.columns if n != "y"}, target="y")
    def epochs():
        loader = Loader(rows(), prep, batch_size=BATCH, **how)
        for e in range(EPOCHS):
            loader.set_epoch(e)
            yield loader
    return _timed(epochs())


def scalai(file):
    import pyarrow.parquet as pq
    return _loader(file, lambda: pq.read_table(file))


def streamed(file):
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq
    return _loader(file, lambda: ds.dataset(file), memory=pq.read_metadata(file).num_rows * WIDTH * 4 // 10)


def _groups(file, epoch):
    "Batches from row groups in random order, rows shuffled inside."
    import numpy as np
    import pyarrow.parquet as pq
    import torch
    f, rng, names = pq.ParquetFile(file), np.random.default_rng(epoch), [f"x{i}" for i in range(WIDTH)]
    for g in rng.permutation(f.num_row_groups):
        t = f.read_row_group(int(g), use_threads=False)
        x = torch.from_numpy(np.stack([t[n].to_numpy() for n in names], 1))
        y = torch.from_numpy(t["y"].to_numpy().copy())
        order = torch.from_numpy(rng.permutation(len(y)))
        for k in range(0, len(y), BATCH): yield x[order[k:k + BATCH]], y[order[k:k + BATCH]]


def rowgroups(file): return _timed(_groups(file, e) for e in range(EPOCHS))


def nodes(file):
    from torchdata.nodes import IterableWrapper, Prefetcher
    from torchdata.nodes import Loader as NodeLoader
    return _timed(NodeLoader(Prefetcher(IterableWrapper(_groups(file, e)), 2)) for e in range(EPOCHS))


def _memory(file):
    import numpy as np
    import pyarrow.parquet as pq
    import torch
    t = pq.read_table(file)
    return torch.from_numpy(np.stack([t[f"x{i}"].to_numpy() for i in range(WIDTH)], 1)), torch.from_numpy(
        t["y"].to_numpy().copy()
    )


def gather(file):
    import torch
    def epochs():
        x, y = _memory(file)
        def batches(e):
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(e))
            for k in range(0, len(y), BATCH):
                yield x.index_select(0, order[k:k + BATCH]), y.index_select(0, order[k:k + BATCH])
        for e in range(EPOCHS): yield batches(e)
    return _timed(epochs())


def rows_one_by_one(file):
    "A Dataset that gives a row, as most tutorials have it; one epoch."
    from torch.utils.data import DataLoader, TensorDataset
    return _timed([DataLoader(TensorDataset(*_memory(file)), BATCH, shuffle=True)])


def check(answers):
    rows = answers["gather"][0] if "gather" in answers else answers["scalai"][0]
    for who, (n, _) in answers.items():
        assert 0 <= rows - n < 16, (who, n, rows)  # the last rows that 16 shards cannot share are left out


def targets(rows, cost):
    own = cost["scalai"]["seconds"]
    rate = lambda w: f"{rows / cost[w]['seconds'] / 1e6:.2f} M rows/s"
    said = [f"scalai {rate('scalai')}" + "".join(f", {w} {rate(w)}" for w in cost if w != "scalai")]
    for word, w in (
        ("must: 1.0 × the hand-written reader", "rowgroups"),
        ("aim: a plain gather from memory", "gather"),
    ):
        if w in cost:
            said.append(
                f"{word}: {cost[w]['seconds'] / own:.2f} ×,"
                f" {'reached' if own <= cost[w]['seconds'] else 'not reached'}"
            )
    return said
