"The loader's promises, on every number of ranks and at every place of a stop."
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from scalai_nb.core.errors import BadRequest
from scalai_nb.data.loader import Loader
from scalai_nb.data.prep import Prep
from scalai_nb.data.profile import profile

import torch


def seen(loader): return [[int(i) for i in y] for _, y in loader]


def arrays(n): return np.arange(n, dtype=np.float32)[:, None], np.arange(n)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(16, 3000), batch=st.sampled_from([16, 48, 64, 256, 4096]), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_the_same_global_batches_for_any_ranks(rows, batch, seed, epoch):
    def run(ranks):
        out = []
        for r in range(ranks):
            loader = Loader(arrays(rows), batch=batch, rank=r, ranks=ranks, seed=seed)
            loader.set_epoch(epoch)
            out.append(seen(loader))
        return out
    one = run(1)[0]
    flat = [i for b in one for i in b]
    assert len(flat) == len(set(flat)) == rows // 16 * 16
    assert len(one) == Loader(arrays(rows), batch=batch).batches
    for ranks in (2, 4, 8, 16):
        parts = run(ranks)
        for k, b in enumerate(one):
            shares = [p[k] for p in parts]
            assert len({len(s) for s in shares}) == 1  # equal work, so that the mean of the ranks' means is the mean
            assert sorted(i for s in shares for i in s) == sorted(b)


def test_the_shuffle_is_global_and_new_each_epoch():
    loader, orders = Loader(arrays(16_000), batch=1600), []
    for e in range(3):
        loader.set_epoch(e)
        orders.append([i for b in seen(loader) for i in b])
        means = [np.mean(b) for b in seen(loader)]
        assert np.std(means) < 3 * 16_000 / np.sqrt(12 * 1600)  # each batch spans the whole table
    assert orders[0] != orders[1] != orders[2]
    first = np.corrcoef(orders[0], np.arange(len(orders[0])))[0, 1]
    assert abs(first) < .03


@pytest.mark.parametrize("stop", [0, 1, 5, 7])
@pytest.mark.parametrize("ranks", [1, 4])
def test_resumes_at_any_batch(stop, ranks):
    whole = Loader(arrays(1000), batch=144, seed=3)
    whole.set_epoch(2)
    want = seen(whole)
    halted = Loader(arrays(1000), batch=144, seed=3)
    halted.set_epoch(2)
    for k, _ in zip(range(stop), halted): pass
    state = halted.state_dict()
    parts = []
    for r in range(ranks):
        again = Loader(arrays(1000), batch=144, seed=3, rank=r, ranks=ranks)
        again.load_state_dict(state)
        again.set_epoch(2)  # a training loop says so again: not a reason to start over
        parts.append(seen(again))
        again.set_epoch(3)
        assert len(seen(again)) == 7
    for k, b in enumerate(want[stop:]): assert sorted(i for p in parts for i in p[k]) == sorted(b)
    assert all(len(p) == len(want) - stop for p in parts)


def test_a_rank_transforms_its_own_rows_once(monkeypatch):
    t = pa.table({"x": np.arange(1600.), "c": ["a", "b"] * 800, "late": [True, False] * 800})
    prep, counted = Prep.fit(profile(t), target="late"), []
    whole = Prep.transform
    monkeypatch.setattr(Prep, "transform", lambda self, frame: counted.append(frame.num_rows) or whole(self, frame))
    loaders = [Loader(t, prep, batch=160, rank=r, ranks=4) for r in range(4)]
    for loader in loaders:
        for e in range(3):
            loader.set_epoch(e)
            for _ in loader: pass
    assert counted == [400] * 4


def test_features_and_labels_stay_together():
    t = pa.table({"x": np.arange(4000.), "late": np.arange(4000) % 3})
    prep = Prep.fit(profile(t), {"x": "number"}, target="late")
    for ranks in (1, 2):
        for memory in (1 << 30, 0):
            for x, y in Loader(t, prep, batch=256, rank=ranks - 1, ranks=ranks, filter=[("x", ">=", 1000.)], memory=memory):
                assert (x[:, 0].long() % 3 == y).all() and (x[:, 0] >= 1000).all()


@pytest.mark.parametrize("make, message", [
    (lambda t, p: Loader(t, p, target="lat"), "'lat'"),
    (lambda t, p: Loader(t, p, filter=[("x", "~", 1)]), "cannot be read"),
    (lambda t, p: Loader(t, None, target="late"), "need a prep"),
    (lambda t, p: Loader(t, p, ranks=32), "of 32"),
    (lambda t, p: Loader(t, p, batch=30, ranks=4), "batches of 30"),
    (lambda t, p: Loader(t, p, filter=[("x", "<", 3)]), "3 rows are too few"),
    (lambda t, p: Loader(t, p, target="word"), "'word' is string"),
    (lambda t, p: Loader(t, p, target="x"), "'x' is an input")])
def test_wrong_requests_are_two_lines(make, message):
    t = pa.table({"x": np.arange(64.), "word": ["a", "b"] * 32, "late": [True, False] * 32})
    with pytest.raises(BadRequest, match=message) as e: make(t, Prep.fit(profile(t), target="late", exclude=["word"]))
    assert e.value.hint


def test_a_workspace_table_by_name(workspace, flights):
    from scalai_nb.data.table import Table, write
    rows = flights[["month", "day", "flight", "carrier", "dest", "dep_delay", "arr_delay"]].dropna(subset=["arr_delay"]).iloc[::40].reset_index(drop=True)
    rows["late"] = rows.pop("arr_delay") >= 15
    write(rows, "flights", period="month", fold=["month", "day", "flight"])
    table = Table("flights")
    training = sum(p for fold, p in table.profiles(by="fold").items() if int(fold) != 0)
    prep = Prep.fit(training, target="late", exclude=["month", "day", "flight", "fold"])
    where = [("fold", "!=", 0), ("month", "<=", 5)]
    loaders = [Loader(t, prep, batch=512, filter=where) for t in ("flights", table, table.arrow())]
    same = [torch.cat([x for x, _ in loader]) for loader in loaders]
    assert loaders[0].rows == len(table.arrow(filter=where)) > 1000
    assert torch.equal(same[0], same[1])
    assert torch.isfinite(same[0]).all()
    with pytest.raises(BadRequest, match="'lates'"): Loader("flights", prep, target="lates")
    with pytest.raises(BadRequest, match="flightz"): Loader("flightz", prep)
    with pytest.raises(BadRequest, match="months"): Loader("flights", prep, filter=[("months", "<=", 5)])
