"The loader's promises, on every number of ranks and at every place of a stop."
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalai_nb.core.errors import BadRequest
from scalai_nb.data.loader import Loader
from scalai_nb.data.prep import Prep
from scalai_nb.data.profile import profile


def seen(loader): return [[int(i) for i in y] for _, y in loader]


def arrays(n): return np.arange(n, dtype=np.float32)[:, None], np.arange(n)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(16, 3000), batch=st.sampled_from([16, 48, 64, 256, 4096]), seed=st.integers(0, 9),
       epoch=st.integers(0, 3))
def test_the_same_global_batches_for_any_ranks(rows, batch, seed, epoch):
    def run(ranks):
        out = []
        for r in range(ranks):
            loader = Loader(arrays(rows), batch_size=batch, rank=r, ranks=ranks, seed=seed)
            loader.set_epoch(epoch)
            out.append(seen(loader))
        return out
    one = run(1)[0]
    flat = [i for b in one for i in b]
    assert len(flat) == len(set(flat)) == rows // 16 * 16
    assert len(one) == Loader(arrays(rows), batch_size=batch).batches
    for ranks in (2, 4, 8, 16):
        parts = run(ranks)
        for k, b in enumerate(one):
            shares = [p[k] for p in parts]
            assert len({len(s) for s in shares}) == 1  # equal work, so that the mean of the ranks' means is the mean
            assert sorted(i for s in shares for i in s) == sorted(b)


def test_the_shuffle_is_global_and_new_each_epoch():
    loader, orders = Loader(arrays(16_000), batch_size=1600), []
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
    whole = Loader(arrays(1000), batch_size=144, seed=3)
    whole.set_epoch(2)
    want = seen(whole)
    halted = Loader(arrays(1000), batch_size=144, seed=3)
    halted.set_epoch(2)
    for k, _ in zip(range(stop), halted): pass
    state = halted.state_dict()
    parts = []
    for r in range(ranks):
        again = Loader(arrays(1000), batch_size=144, seed=3, rank=r, ranks=ranks)
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
    loaders = [Loader(t, prep, batch_size=160, rank=r, ranks=4) for r in range(4)]
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
            how = dict(rank=ranks - 1, ranks=ranks, filter=[("x", ">=", 1000.)], memory=memory)
            for x, y in Loader(t, prep, batch_size=256, **how):
                assert (x[:, 0].long() % 3 == y).all() and (x[:, 0] >= 1000).all()


@pytest.mark.parametrize("make, message", [
    (lambda t, p: Loader(t, p, target="lat"), "'lat'"),
    (lambda t, p: Loader(t, p, filter=[("x", "~", 1)]), "cannot be read"),
    (lambda t, p: Loader(t, None, target="late"), "need a prep"),
    (lambda t, p: Loader(t, p, ranks=32), "of 32"),
    (lambda t, p: Loader(t, p, batch_size=30, ranks=4), "batches of 30"),
    (lambda t, p: Loader(t, p, filter=[("x", "<", 3)]), "3 rows are too few"),
    (lambda t, p: Loader(t, p, target="word"), "'word' is string"),
    (lambda t, p: Loader(t, p, target="x"), "'x' is an input")])
def test_wrong_requests_are_two_lines(make, message):
    t = pa.table({"x": np.arange(64.), "word": ["a", "b"] * 32, "late": [True, False] * 32})
    with pytest.raises(BadRequest, match=message) as e: make(t, Prep.fit(profile(t), target="late", exclude=["word"]))
    assert e.value.hint


def test_a_workspace_table_by_name(workspace, flights, backend):
    from scalai_nb.data.table import Table
    from scalai_nb.data.write import write
    rows = flights[["month", "day", "flight", "carrier", "dest", "dep_delay", "arr_delay"]]
    rows = rows.dropna(subset=["arr_delay"]).iloc[::40].reset_index(drop=True)
    rows["late"] = rows.pop("arr_delay") >= 15
    write(backend.frame(rows), "flights", period="month", fold=["month", "day", "flight"])
    table = Table("flights")
    training = sum(p for fold, p in table.profiles(by="fold").items() if int(fold) != 0)
    prep = Prep.fit(training, target="late", exclude=["month", "day", "flight", "fold"])
    where = [("fold", "!=", 0), ("month", "<=", 5)]
    loaders = [Loader(t, prep, batch_size=512, filter=where) for t in ("flights", table, table.arrow())]
    same = [torch.cat([x for x, _ in loader]) for loader in loaders]
    assert loaders[0].rows == len(table.arrow(filter=where)) > 1000
    assert torch.equal(same[0], same[1])
    assert torch.isfinite(same[0]).all()
    with pytest.raises(BadRequest, match="'lates'"): Loader("flights", prep, target="lates")
    with pytest.raises(BadRequest, match="flightz"): Loader("flightz", prep)
    with pytest.raises(BadRequest, match="months"): Loader("flights", prep, filter=[("months", "<=", 5)])


# A stored table that does not fit: the same promises, but for the shuffle, which is of windows.

def parquet(folder, rows, group, files=1):
    "Rows 0, 1, … in row groups of `group`, in several files."
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq
    for i, part in enumerate(np.array_split(np.arange(rows), files)):
        t = pa.table({"x": part.astype(float), "word": pa.array([f"w{j % 7}" for j in part]), "y": part})
        pq.write_table(t, folder/f"{i}.parquet", row_group_size=group)
    return ds.dataset(folder)


HUNDRED = pa.table({"x": np.arange(100.), "word": [f"w{j % 7}" for j in range(100)], "y": np.arange(100)})
PREP = Prep.fit(profile(HUNDRED), {"x": "number"}, target="y")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.integers(16, 2500), group=st.integers(3, 900), files=st.integers(1, 3),
       batch=st.sampled_from([16, 48, 64, 256, 1000]), memory=st.sampled_from([0, 6_000, 20_000]),
       seed=st.integers(0, 9), epoch=st.integers(0, 3), filtered=st.booleans(), stop=st.integers(0, 60))
def test_a_stream_keeps_the_promises(tmp_path_factory, rows, group, files, batch, memory, seed, epoch, filtered, stop):
    "The same global batches for any number of ranks, each row at most once, resumable at any batch."
    data = parquet(tmp_path_factory.mktemp("rows"), rows, group, files)
    where = [("word", "!=", "w3")] if filtered and rows > 30 else None
    wanted = {i for i in range(rows) if where is None or i % 7 != 3}
    def loader(**how):
        made = Loader(data, PREP, batch_size=batch, seed=seed, filter=where, memory=memory, **how)
        made.set_epoch(epoch)
        return made
    whole = loader()
    if whole.layout is None: return  # it fitted
    one = seen(whole)
    flat = [i for b in one for i in b]
    assert len(flat) == len(set(flat)) == len(wanted) // 16 * 16 and set(flat) <= wanted
    count, rest = divmod(len(flat), batch)
    assert [len(b) for b in one] == [batch] * count + [rest] * (rest > 0) and len(one) == whole.batches
    for ranks in (2, 4, 8, 16):
        if batch % ranks: continue
        for k, shares in enumerate(zip(*(seen(loader(rank=r, ranks=ranks)) for r in range(ranks)), strict=True)):
            assert sorted(i for s in shares for i in s) == sorted(one[k]) and len({len(s) for s in shares}) == 1
    halted = loader()
    for _ in zip(range(stop), halted): pass
    again = Loader(data, PREP, batch_size=batch, seed=seed, filter=where, memory=memory)
    again.load_state_dict(halted.state_dict())
    assert seen(again) == one[stop:]
    other = Loader(data, PREP, batch_size=batch, seed=seed + 1, filter=where, memory=memory)
    assert len(flat) < 50 or seen(other) != one
    in_order = [seen(loader(shuffle=False, rank=r, ranks=2)) for r in (0, 1)] if batch % 2 == 0 else []
    assert not in_order or sorted(i for part in in_order for b in part for i in b) == sorted(wanted)
    assert [i for b in seen(loader(shuffle=False)) for i in b] == sorted(wanted)


def test_each_row_group_is_decoded_once_an_epoch(tmp_path, monkeypatch):
    "By one rank, but for those on the border of two."
    from scalai_nb.data.shuffle import Stream
    data, read, counted = parquet(tmp_path, 40_000, 700, 3), Stream.read, []
    monkeypatch.setattr(Stream, "read", lambda self, i: counted.append(i) or read(self, i))
    for ranks, most in ((1, 0), (2, 1), (4, 3), (8, 7)):
        for epoch in range(2):
            counted.clear()
            for r in range(ranks):
                loader = Loader(data, PREP, batch_size=1024, rank=r, ranks=ranks, memory=0)
                loader.set_epoch(epoch)
                for _ in loader: pass
            assert set(counted) == set(range(60)) and len(counted) - 60 <= most, (ranks, len(counted))
    counted.clear()
    loader = Loader(data, PREP, batch_size=1024, memory=0)
    loader.load_state_dict({**loader.state_dict(), "position": 38})
    assert len(list(loader)) == 2 and len(counted) < 30  # what is gone is not decoded to get there


def test_how_far_a_streams_shuffle_reaches(tmp_path):
    """Measured, since it is not global:

    a batch of a table sorted by x comes from 16 stretches of it; larger windows reach further."""
    data = parquet(tmp_path, 160_000, 500)
    def spread(memory):
        loader = Loader(data, PREP, batch_size=1600, memory=memory)
        loader.set_epoch(1)
        means = [np.mean(b) / 160_000 for b in seen(loader)]
        return np.std(means)
    narrow, wide = spread(0), spread(60_000 * 4 * len(PREP.features))
    ideal = 1 / np.sqrt(12 * 1600)  # of 1,600 rows drawn from all
    assert wide < 6 * ideal and narrow < 4 * 1 / np.sqrt(12 * 16)  # 16 stretches at the least


def test_positions_of_other_layouts_are_refused(tmp_path):
    data = parquet(tmp_path, 2000, 300)
    state = Loader(data, PREP, memory=0).state_dict()
    with pytest.raises(BadRequest, match="layout"): Loader(data, PREP).load_state_dict(state)
    with pytest.raises(BadRequest, match="layout"): Loader(data, PREP, memory=20_000).load_state_dict(state)
    Loader(data, PREP, memory=0, ranks=4).load_state_dict(state)


def test_wrong_streams_are_two_lines(tmp_path):
    import pyarrow.dataset as ds
    import pyarrow.feather as feather
    data = parquet(tmp_path, 2000, 300)
    with pytest.raises(BadRequest, match="'why'"): Loader(data, PREP, target="why", memory=0)
    with pytest.raises(BadRequest, match="months"): Loader(data, PREP, filter=[("months", "<", 3)], memory=0)
    with pytest.raises(BadRequest, match="5 rows are too few"): Loader(data, PREP, filter=[("y", "<", 5)], memory=0)
    (tmp_path/"feather").mkdir()
    feather.write_feather(data.to_table(), tmp_path/"feather"/"a.feather")
    with pytest.raises(BadRequest, match="Only Parquet") as e:
        Loader(ds.dataset(tmp_path/"feather", format="feather"), PREP, memory=0)
    assert e.value.hint
    holes = data.to_table().append_column("gain", pa.array([None] + [1.] * 1999))
    import pyarrow.parquet as pq
    (tmp_path/"holes").mkdir()
    pq.write_table(holes, tmp_path/"holes"/"a.parquet", row_group_size=300)
    with pytest.raises(BadRequest, match="1 of .* rows have no 'gain'"):
        list(Loader(ds.dataset(tmp_path/"holes"), PREP, target="gain", memory=0))


def test_a_workspace_table_streams_by_period_and_fold(workspace, flights):
    from scalai_nb.data.table import Table
    from scalai_nb.data.write import write
    rows = flights[["month", "day", "flight", "carrier", "dep_delay"]].iloc[::20].reset_index(drop=True)
    write(rows, "flights", period="month", fold=["month", "day", "flight"])
    prep = Prep.fit(Table("flights").profile(), target="flight", exclude=["fold", "day"])
    where = [("fold", "!=", 0), ("month", "<=", 5)]
    how = dict(batch_size=512, filter=where, shuffle=False)
    kept, streamed = (Loader("flights", prep, memory=m, **how) for m in (1 << 30, 0))
    assert kept.layout is None and streamed.layout and kept.rows == streamed.rows > 1000
    for (a, b), (c, d) in zip(kept, streamed, strict=True): assert torch.equal(a, c) and torch.equal(b, d)


def test_training_learns_from_a_stream_as_from_memory(workspace, monkeypatch):
    "fit over a stored table that does not fit: the same rows, as good a model; validation rows are streamed, too."
    from functools import partialmethod

    from scalai_nb.data.shuffle import Stream
    from scalai_nb.data.table import Table
    from scalai_nb.data.write import write
    from scalai_nb.training.fit import fit
    from scalai_nb.training.models import MLP
    rng, n, read = np.random.default_rng(0), 6000, []
    x = rng.normal(size=(n, 3))
    late = x[:, 0] + .3 * rng.normal(size=n) > 0
    write(pa.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "id": np.arange(n), "late": late}), "rows", fold="id")
    prep = Prep.fit(Table("rows").profile(), target="late", exclude=["id", "fold"])
    kept = fit(MLP, "rows", prep, epochs=2, batch_size=256, where=[("b", "<", 1)])
    monkeypatch.setattr("scalai_nb.training.input_rows.SMALL", 0)
    monkeypatch.setattr(Loader, "__init__", partialmethod(Loader.__init__, memory=0))
    whole = Stream.read
    monkeypatch.setattr(Stream, "read", lambda self, i: read.append(i) or whole(self, i))
    streamed = fit(MLP, "rows", prep, epochs=2, batch_size=256, where=[("b", "<", 1)])
    auc, auc_streamed = kept.metrics["val_auc"], streamed.metrics["val_auc"]
    assert read and kept.data == streamed.data and abs(auc - auc_streamed) < .02 < auc - .9


# The thread that makes batches in advance.

def working(): return [t for t in threading.enumerate() if t.name.startswith("loader")]


@pytest.mark.parametrize("end", ["break", "error", "whole", "collected"])
@pytest.mark.parametrize("kind", ["kept", "streamed"])
def test_the_thread_ends_with_its_reader(tmp_path, end, kind):
    memory = 0 if kind == "streamed" else 1 << 30
    loader = Loader(parquet(tmp_path, 3000, 100), PREP, batch_size=64, memory=memory, prefetch=3)
    if end == "break":
        for _ in loader:
            assert len(working()) == 1
            break
    elif end == "error":
        with pytest.raises(ZeroDivisionError):
            for _ in loader: 1 / 0
    elif end == "whole": assert len(list(loader)) == loader.batches
    else:
        going = iter(loader)
        next(going)
        assert working()
        del going
    assert not working()


def test_an_error_in_the_thread_reaches_the_reader(monkeypatch):
    def broken(self, first):
        yield torch.zeros(1, 1), torch.zeros(1)
        raise OSError("the disk is gone")
    monkeypatch.setattr(Loader, "_from", broken)
    with pytest.raises(OSError, match="the disk is gone"): list(Loader(arrays(64)))
    assert not working()


def test_at_most_so_many_in_advance():
    for ahead in (0, 1, 3):
        loader, made = Loader(arrays(1600), batch_size=16, prefetch=ahead), []
        whole = loader._from
        loader._from = lambda first: (made.append(1) or b for b in whole(first))
        for k, _ in enumerate(loader):
            if k == 20: break
        assert len(made) <= 21 + ahead and loader.position == 21
        assert ahead or len(made) == 21


ABANDONED = """
import numpy as np
from scalai_nb.data.loader import Loader
going = iter(Loader((np.zeros((100_000, 4)), np.zeros(100_000)), batch_size=16))
next(going)
print("left")
"""


def test_python_ends_although_an_epoch_was_not_finished():
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "left", "")


def test_with_a_gpu_batches_are_pinned_on_this_ranks_device(monkeypatch):
    "Without one here: what torch is asked for, in which thread."
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    def note(what, value): asked.append((what, value, threading.current_thread().name))
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: note("device", d))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: note("pin", len(self)) or self)
    batches = list(Loader(arrays(64), batch_size=32))
    assert asked[0][:2] == ("device", 3) and [a[:2] for a in asked[1:]] == [("pin", 32)] * 4
    assert len(batches) == 2 and all(a[2].startswith("loader") for a in asked)
