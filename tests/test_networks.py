"What the lesson on networks does not show: every shape of row, the whole of compress, several ranks, torch.compile."
import shutil

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LinearRegression

from scalai_nb.compression import export as ex
from scalai_nb.compression.benchmark import Rows
from scalai_nb.compression.frontier import compress
from scalai_nb.compression.prune import prune, tune
from scalai_nb.compression.quantize import quantize, weight_types
from scalai_nb.core.settings import Settings
from scalai_nb.data.prep import Prep
from scalai_nb.data.profile import profile
from scalai_nb.training.fit import fit
from scalai_nb.training.models import describe, rebuild
from scalai_nb.training.networks import CNN, FTTransformer, ResidualMLP, TabularMLP
from scalai_nb.training.run import Run

TABULAR = [
    lambda **k: ResidualMLP(width=16, hidden=(24, 8), **k),
    lambda **k: FTTransformer(width=16, hidden=(24, 8), **k),
    lambda **k: TabularMLP(hidden=(24, 8), **k),
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows():
    "Late by dest: what a category says, and what a number says."
    rng = np.random.default_rng(0)
    x, c, d = rng.normal(size=4000), rng.integers(0, 12, 4000), rng.integers(0, 3, 4000)
    late = x + np.array([-2., 2.])[c % 2] + rng.logistic(size=4000)/2 > 0
    return pa.table(
        {
            "x": x,
            "z": rng.normal(size=4000),
            "dest": [f"D{i}" for i in c],
            "weekday": d,
            "late": late,
            "fold": np.arange(4000) % 5,
        }
    )


@pytest.fixture(scope="module")
def prep(rows):
    return Prep.fit(
        profile(rows.filter(pa.compute.field("fold") != 0)),
        {"dest": "code", "weekday": "code"},
        "late",
        exclude=["fold"],
    )


def filled(model, seed=0):
    "Weights and statistics that are not those of a fresh network."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(
                    torch.rand(value.shape, generator=g) * 0.5 + 0.1
                    if "running_var" in name
                    else torch.randn(value.shape, generator=g) * 0.3
                )
    return model.eval()


@pytest.mark.parametrize("make", TABULAR)
@pytest.mark.parametrize(
    "cardinalities, outputs", [(None, 1), ([0, 5, 3, 0], 4), ([4, 7], 1)], ids=["numbers", "both", "categories"]
)
def test_torch_and_onnx_alike_when_pruned(make, cardinalities, outputs, tmp_path):
    sizes = cardinalities or [0, 0, 0]
    loss, rng = "binary" if outputs == 1 else "multiclass", np.random.default_rng(1)
    X = np.stack([rng.integers(0, n, 50) if n else rng.normal(size=50) for n in sizes], 1).astype(np.float32)
    model = filled(make(features=len(sizes), outputs=outputs, cardinalities=cardinalities))
    small = prune(model, .5, (len(sizes),))
    assert small.config["hidden"] == [12, 4] and small.config["cardinalities"] == sizes
    again = rebuild(describe(small))
    again.load_state_dict(small.state_dict())
    with torch.no_grad(): assert torch.equal(again.eval()(torch.tensor(X)), small(torch.tensor(X)))
    file = ex.session(ex.export(small, None, tmp_path/"m.onnx", loss, shape=(len(sizes),)))
    assert ex.difference(file, small, None, X, loss)["max"] < 1e-5


def test_categories_are_learnt(rows, prep, tmp_path):
    "The category decides; a network that could not see it would stay far below."
    settings = Settings(root=tmp_path)
    for make in (ResidualMLP, FTTransformer, TabularMLP):
        run = fit(make, rows, prep, epochs=4, batch_size=64, lr=3e-3, ranks=1, settings=settings)
        assert run.model.columns.cardinalities == prep.cardinalities and sorted(prep.cardinalities) == [0, 0, 4, 13]
        assert run.metrics["val_auc"] > .93, (make, run.metrics)
        back = Run.load(run.path)
        np.testing.assert_array_equal(back.predict(rows), run.predict(rows))


def test_compressed_with_its_prep(rows, prep, tmp_path):
    "One file each: raw rows in; pruned and in int8 it still knows what the categories say."
    aside = pa.compute.equal(rows["fold"], 0)
    learn, keep = rows.filter(pa.compute.invert(aside)), rows.filter(aside)
    run = fit(ResidualMLP, rows, prep, epochs=3, batch_size=64, lr=3e-3, ranks=1, settings=Settings(root=tmp_path))
    truth = lambda t: t["late"].to_numpy(zero_copy_only=False).astype(np.float32)
    f = compress(
        run,
        {"accuracy_drop": 0.05},
        rows=Rows(prep.transform(learn), truth(learn), keep, truth(keep)),
        recipes=("int8", "pruned+int8"),
        path=tmp_path / "f",
    )
    assert [c.recipe for c in f.candidates] == ["float32", "int8", "pruned+int8"]
    assert min(c.auc for c in f.candidates) > .9
    assert f["pruned+int8"].size_bytes < .5*f.base.size_bytes
    assert {i.name for i in ex.session(f["int8"].path).get_inputs()} == {"x", "z", "dest", "dest__null", "weekday"}


@pytest.mark.slow
def test_int8_of_a_transformer(rows, prep, tmp_path):
    run = fit(FTTransformer, rows, prep, epochs=3, batch_size=64, lr=3e-3, ranks=1, settings=Settings(root=tmp_path))
    X = prep.transform(rows)
    whole, some = ex.graph(run.model, X.shape[1]), X[:512]
    small = quantize(whole, some)
    want, got = (ex.run_scores(ex.session(p.SerializeToString()), {"features": X}) for p in (whole, small))
    assert np.abs(got - want).mean() < .03
    assert sum(t == "INT8" for t in weight_types(small).values()) >= 10


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits
    X, y = load_digits(return_X_y=True)
    return X.reshape(-1, 1, 8, 8).astype(np.float32), y.astype(np.int64)


def test_a_cnn_compressed(digits, tmp_path):
    X, y = digits
    torch.manual_seed(0)
    model = CNN((1, 8, 8), 10, (16, 32, 32), (1, 1, 2))
    # 1,351 rows to learn from: the last batch would have one
    tune(model, X[:1501], y[:1501], "multiclass", epochs=8, batch_size=75, lr=5e-3)
    f = compress(
        Run(id="c", model=model.eval(), prep=None, target=None, task="multiclass"),
        {"accuracy_drop": 0.05},
        recipes=("pruned+int8",),
        rows=Rows(X[:1500], y[:1500], X[1500:], y[1500:]),
        finetune_epochs=20,
        ratio=0.25,
        path=tmp_path,
    )
    assert f.base.accuracy > .85 and f["pruned+int8"].accuracy > .75
    # of the pixels; the others are in the convolutions
    assert [n.op_type for n in onnx.load(f.base.path).graph.node].count("BatchNormalization") == 1
    assert set(weight_types(onnx.load(f["pruned+int8"].path)).values()) == {"INT8"}


@pytest.mark.slow
def test_two_ranks_twice_the_same(rows, prep, tmp_path):
    "To the bit, batch norm's statistics too."
    settings = Settings(root=tmp_path)
    whole = fit(ResidualMLP, rows, prep, epochs=2, batch_size=256, ranks=2, settings=settings)
    again = fit(ResidualMLP, rows, prep, epochs=2, batch_size=256, ranks=2, settings=settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled(rows, prep, tmp_path):
    """Batches of one size, which divide the 3,200 rows to learn from and the 800 to judge by:

    another size is compiled anew."""
    for kind in (ResidualMLP, FTTransformer):
        # a compiled one draws otherwise
        make = lambda features, cardinalities: kind(
            features, cardinalities=cardinalities, width=16, hidden=(24,), dropout=0.0
        )
        plain, quick = (
            fit(
                make,
                rows,
                prep,
                epochs=1,
                batch_size=400,
                lr=3e-3,
                ranks=1,
                compile=c,
                settings=Settings(root=tmp_path),
            )
            for c in (False, True)
        )
        assert abs(plain.metrics["val_loss"] - quick.metrics["val_loss"]) < 1e-3


def test_where_rows_move_on_the_default_is_not_below_a_linear_model(tmp_path):
    "After two epochs already: it begins where a linear model ends."
    rng, n = np.random.default_rng(0), 3_000
    moved = np.linspace(0, 1, n)
    rows = pd.DataFrame({"day": np.arange(n), "price": moved + rng.normal(size=n), "shop": rng.choice(list("abc"), n)})
    rows["sold"] = 3*rows.price + 2.*(rows["shop"] == "a") + rng.normal(size=n)*.5
    settings = Settings(root=tmp_path)
    run = fit("auto", rows.head(2_400), target="sold", validation=("day", .2), epochs=2, settings=settings)
    later = rows.tail(600)
    plain = pd.get_dummies(rows.drop(columns=["sold", "day"]), dtype=float)
    linear = LinearRegression().fit(plain.head(2_400), rows.sold.head(2_400))
    r2 = lambda found: 1 - float(np.mean((found - later.sold) ** 2) / np.var(later.sold))
    assert r2(run.predict(later.drop(columns="sold"))) > r2(linear.predict(plain.tail(600))) - .02
    assert float(run.model.network.linear.slopes.abs().sum()) > 0
