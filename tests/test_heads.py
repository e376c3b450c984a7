"Whole heads go out of attention: which ones, how many, and that what is left is a network like any other."
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from scalai_nb.compression import export as ex
from scalai_nb.compression.benchmark import Rows
from scalai_nb.compression.frontier import compress
from scalai_nb.compression.prune import attentions, hidden, prune, sensitivity, tune
from scalai_nb.compression.quantize import weight_types
from scalai_nb.core.settings import Settings
from scalai_nb.training.encoder import Encoder
from scalai_nb.training.fit import fit
from scalai_nb.training.models import describe, rebuild
from scalai_nb.training.networks import FTTransformer
from scalai_nb.training.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")


def table(n=200, seed=1):
    "Two numbers and a category of five."
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.normal(size=(n, 2)), rng.integers(0, 5, n)]).astype(np.float32)


def texts(n=40, seed=1):
    "Numbers of word pieces, rows of several lengths."
    rng = np.random.default_rng(seed)
    return (rng.integers(1, 90, (n, 12))*(np.arange(12) < rng.integers(1, 13, (n, 1)))).astype(np.float32)


def seer(**more):
    torch.manual_seed(0)
    return FTTransformer(3, cardinalities=[0, 0, 5], **{"width": 16, "heads": 4, "hidden": (12, 12)} | more).eval()


def reader(**more):
    torch.manual_seed(0)
    return Encoder(90, **{"width": 16, "depth": 2, "heads": 4, "inner": 24, "length": 16} | more).eval()


class Glance(nn.Module):
    "Attention by the same names, of somebody who never heard of us."
    def __init__(self, width=8, heads=4):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.out((q@k.transpose(-1, -2)/q.shape[-1]**.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.glance, self.last = nn.Linear(3, 8), Glance(), nn.Linear(8, 1)

    def forward(self, x): return self.last(self.glance(self.up(x[:, None]*torch.ones(4, 1))).relu().mean(1))


KINDS = {"table": (seer, table, "binary"), "text": (reader, texts, "embedding")}


def out(model, X):
    with torch.inference_mode(): return model(torch.as_tensor(X)).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_torch_the_file_and_a_rebuilt_one_say_the_same(kind, tmp_path):
    "Also where one block has lost heads and the other has not."
    make, rows, loss = KINDS[kind]
    model, X = make(), rows()
    first = next(iter(attentions(model)))
    for small, heads in (
        (prune(model, 0.5, X.shape[1:]), [2, 2]),
        (prune(model, 0.75, X.shape[1:], only=(first,)), [1, 4]),
    ):
        assert small.config["heads"] == heads and small.config["head_width"] == 4
        again = rebuild(describe(small))
        again.load_state_dict(small.state_dict())
        assert np.array_equal(out(again.eval(), X), out(small, X)) and describe(again) == describe(small)
    file = ex.session(ex.export(small, None, tmp_path/"m.onnx", loss, shape=X.shape[1:]))
    assert ex.difference(file, small, None, X, loss)["max"] < 1e-5
    assert make().config["heads"] == model.config["heads"] == [4, 4]  # nothing happened to the model


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_say_nothing_go_first(kind, importance):
    "Heads 1 and 3 have no weights: without them the network says what it said, from the rows of 0 and 2."
    make, rows, loss = KINDS[kind]
    model, X = make(), rows()
    idle = np.isin(np.arange(16)//4, (1, 3))
    with torch.no_grad():
        for m in attentions(model).values():
            for part in (m.query, m.key, m.value): part.weight[idle], part.bias[idle] = 0, 0
            (m.join if kind == "table" else m.mix).weight[:, idle] = 0
    y = (X[:, 0] > 0).astype(np.float32) if kind == "table" else out(reader(depth=1), X)
    small = prune(model, .5, X.shape[1:], importance, (X, y), loss, only=tuple(attentions(model)))
    assert np.abs(out(small, X) - out(model, X)).max() < 1e-6
    for name, m in attentions(small).items():
        was = attentions(model)[name]
        for part in ("query", "key", "value"):
            assert torch.equal(getattr(m, part).weight, getattr(was, part).weight[~idle])


def test_a_head_stays_and_rounds_come_to_the_same_number():
    seen, X = [], table()
    def look(m): seen.append((m.config["heads"], m.config["hidden"]))
    small = prune(seer(), .75, (3,), rounds=3, after_round=look)
    assert seen == [([3, 3], [9, 9]), ([2, 2], [6, 6]), ([1, 1], [3, 3])] and np.isfinite(out(small, X)).all()
    assert prune(seer(), .99, (3,), only=("blocks.1",)).config["heads"] == [4, 1]
    assert prune(small, .9, (3,), only=("blocks.0",)).config["heads"] == [1, 1]
    assert prune(seer(), .1, (3,), only=("blocks.0",)).config["heads"] == [4, 4]  # the nearest whole number
    assert prune(seer(heads=[4, 2], head_width=4), .5, (3,)).config["heads"] == [2, 1]


def test_heads_of_a_network_that_names_nothing(tmp_path):
    torch.manual_seed(0)
    model, X = Foreign().eval(), table()
    assert hidden(model) == ["up", "glance", "glance.out"]
    small = prune(model, .5, (3,))
    assert (
        small.glance.heads == 2
        and small.glance.query.weight.shape == (4, 4)
        and small.glance.out.weight.shape == (4, 4)
    )
    assert (
        ex.difference(ex.session(ex.export(small, None, tmp_path / "m.onnx", shape=(3,))), small, None, X)["max"]
        < 1e-5
    )


def test_a_layer_alone(tmp_path):
    X = texts()
    found = sensitivity(reader(), X, out(reader(), X), "embedding", (.25, .75))
    assert {n: found.has(n) for n in found.losses} == {
        "layers.0": "4 heads",
        "layers.0.up": "24 units",
        "layers.1": "4 heads",
        "layers.1.up": "24 units",
    }
    assert abs(found.base) < 1e-5 and all(0 < a < b for a, b in found.losses.values())
    assert "layers.1, 4 heads" in found._repr_html_()


def test_kept_and_compressed(tmp_path):
    "A run whose network lost heads is saved, read back, pruned again and rounded."
    X = table(3_000)
    y = X[:, 0] + np.array([-2., 2., 0., -1., 1.], np.float32)[X[:, 2].astype(int)] > 0
    run = fit(seer(), (X, y), epochs=3, batch_size=64, lr=5e-3, ranks=1, settings=Settings(root=tmp_path))
    run.model = prune(run.model, .5, (3,), "taylor", (X[:500], y[:500].astype(np.float32)))
    tune(run.model, X[:2_000], y[:2_000].astype(np.float32), lr=3e-3, batch_size=64)
    run.save(tmp_path/"kept")
    back = Run.load(tmp_path/"kept")
    assert back.model.config["heads"] == [2, 2] and np.array_equal(back.predict(X), run.predict(X))
    f = compress(
        back,
        {"accuracy_drop": 0.05},
        ("pruned+int8",),
        rows=Rows(X[:2_000], y[:2_000].astype(np.float32), X[2_000:], y[2_000:]),
        path=tmp_path / "f",
    )
    assert f["pruned+int8"].parameters < f.base.parameters and f["pruned+int8"].accuracy > .75, f
    assert sum(t == "INT8" for t in weight_types(onnx.load(f["pruned+int8"].path)).values()) >= 10
    assert all(c.difference["max"] < 1e-4 for c in f.candidates if c.recipe == "float32")
