"What the compress lessons do not show: networks besides an MLP, targets besides a yes or no, a run on a table."

import json
from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from torch import nn

from scalai_nb.compression import export as ex
from scalai_nb.compression.benchmark import Rows
from scalai_nb.compression.frontier import compress, load_frontier
from scalai_nb.compression.prune import held_loss, prune, tune
from scalai_nb.compression.quantize import quantize, weight_types
from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.training.models import MLP
from scalai_nb.training.networks import CNN, FTTransformer, ResidualMLP
from scalai_nb.training.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits
    X, y = load_digits(return_X_y=True)
    return (X/16).astype(np.float32), y.astype(np.int64)


class Small(nn.Module):
    "A network that nobody here knows, with convolutions and a skip."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Conv2d(16, 32, 3, padding=1),
        )
        self.out = nn.Linear(32*4, 10)

    def forward(self, x):
        x = self.a(x).relu()
        x = nn.functional.max_pool2d(x + self.b(x).relu(), 2)
        return self.out(nn.functional.max_pool2d(self.c(x).relu(), 2).flatten(1))


def test_images_of_ten_classes(digits, tmp_path):
    X, y = digits[0].reshape(-1, 1, 8, 8), digits[1]
    torch.manual_seed(0)
    model = Small()
    tune(model, X[:1500], y[:1500], "multiclass", epochs=8, batch_size=64, lr=3e-3)
    run = Run(id="d1", model=model.eval(), prep=None, target=None, task="multiclass")
    f = compress(
        run,
        {"accuracy_drop": 0.05},
        rows=Rows(X[:1500], y[:1500], X[1500:], y[1500:]),
        finetune_epochs=4,
        ratio=0.25,
        path=tmp_path,
    )
    assert f.base.accuracy > .85 and f["int8"].accuracy > f.base.accuracy - .02
    assert f["pruned"].size_bytes < .75*f.base.size_bytes and f["int8"].size_bytes < f["pruned"].size_bytes
    assert set(weight_types(onnx.load(f["pruned+int8"].path)).values()) == {"INT8"}
    s = ex.session(f["pruned"].path)
    p = ex.run_scores(s, {"features": X[1500:]})
    assert p.shape == (len(X) - 1500, 10) and np.allclose(p.sum(1), 1, atol=1e-5)


def test_regression(tmp_path):
    from sklearn.datasets import load_diabetes
    X, y = load_diabetes(return_X_y=True)
    X, y = (X*20).astype(np.float32), ((y - 150)/75).astype(np.float32)
    torch.manual_seed(0)
    model = MLP(10, hidden=(32, 32), dropout=0.)
    tune(model, X[:350], y[:350], "regression", epochs=40, batch_size=32, lr=3e-3)
    run = Run(id="r1", model=model.eval(), prep=None, target=None, task="regression")
    f = compress(run, rows=Rows(X[:350], y[:350], X[350:], y[350:]), recipes=("int8",), path=tmp_path)
    assert f.base.accuracy > .3 and abs(f["int8"].accuracy - f.base.accuracy) < .02
    assert f.base.accuracy_low < f.base.accuracy < f.base.accuracy_high and f.base.auc is None


def test_a_file_is_all_there_is(digits, tmp_path):
    "No weights beside the graph, also for a network that is large enough for the exporter to want to."
    path = ex.export(MLP(64, hidden=(1024, 512)), None, tmp_path/"model.onnx", shape=(64,))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert path.stat().st_size > 4*(64*1024 + 1024*512)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    one, many = (ex.run_scores(ex.session(path), {"features": digits[0][:n]}) for n in (1, 700))
    assert np.allclose(one, many[:1], atol=1e-6)


def test_training_and_dropout_leave_the_model_alone(digits):
    """Exporting or pruning a model changes neither its weights nor its mode, and no random numbers are drawn from the
    caller's generator."""
    X, y = digits[0], (digits[1] > 4).astype(np.float32)
    model = MLP(64, hidden=(32, 32)).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    ex.graph(model, 64)
    small = prune(model)
    tune(small, X, y)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_int8_of_weights_that_are_zero_or_huge(digits):
    "A dead unit has no scale of its own, and one huge weight spoils its own channel only."
    model = MLP(64, hidden=(32, 32, 32), dropout=0.).eval()
    with torch.no_grad():
        model.layers[3].weight[4] = 0
        model.layers[3].weight[5, 5] = 1e4
    half = ex.graph(model, 64)
    small = quantize(half, digits[0][:500])
    assert np.isfinite(ex.run_scores(ex.session(small.SerializeToString()), {"features": digits[0]})).all()


def test_bad_requests_write_nothing(digits, tmp_path):
    run = Run(id="x", model=MLP(64), prep=None, target=None, task="binary")
    rows = Rows(digits[0][:100], np.zeros(100, np.float32), digits[0][100:200], np.zeros(100, np.float32))
    for bad in (
        dict(recipes=("int9",)),
        dict(budget={"acuracy_drop": 1}),
        dict(budget={"latency_ms": -1}),
        dict(recipes=("int8+pruned",)),
        dict(recipes=("pruned.0",)),
        dict(timeout=-1),
        dict(timeout="ten"),
        dict(budget=[0.01]),
        dict(recipes=(None,)),
        dict(recipes="int8"),
        dict(ratio=2),
        dict(width=float("nan")),
        dict(finetune_epochs=0),
    ):
        with pytest.raises(BadRequest): compress(run, rows=rows, path=tmp_path/"out", **bad)
    with pytest.raises(BadRequest, match="no run"): compress("flights", rows=rows, path=tmp_path/"out")
    with pytest.raises(BadRequest, match="no rows"): compress(run, rows=3, path=tmp_path/"out")
    with pytest.raises(BadRequest, match="rows in memory"):
        compress(run, path=tmp_path/"out", settings=Settings(root=tmp_path))
    with pytest.raises(BadRequest, match="no validation rows"):
        Rows(digits[0], digits[1], digits[0][:0], digits[1][:0])
    assert not (tmp_path/"out").exists()


@pytest.fixture
def trained(workspace, flights, request):
    "A run on a table of three months; of fewer rows where a test asks for them."
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.table import Table
    from scalai_nb.data.write import write
    from scalai_nb.training.fit import fit
    rows = (
        flights.loc[
            flights["month"].le(3), ["month", "carrier", "origin", "dest", "distance", "dep_delay", "arr_delay"]
        ]
        .dropna(subset=["arr_delay"])
        .sample(getattr(request, "param", 16_000), random_state=0)
    )
    rows["id"] = [f"f{i}" for i in range(len(rows))]
    rows["late"] = rows.pop("arr_delay") >= 15
    write(rows, "features", fold="id")
    table = Table("features")
    training = sum(p for fold, p in table.profiles(by="fold").items() if fold != 0)
    prep = Prep.fit(training, target="late", exclude=("id", "month", "fold"))
    return fit(MLP(len(prep.features)), "features", prep, target="late", epochs=2, batch_size=256, ranks=1)


def test_a_run_on_a_table(trained, workspace):
    from scalai_nb.data.table import Table
    f = compress(trained, {"accuracy_drop": .01})
    assert {c.recipe for c in f.candidates} == {"float32", "int8", "pruned", "pruned+int8"}
    assert f.best() is not None and f["int8"].size_bytes <= .35*f.base.size_bytes
    assert f.base.auc > .85
    for c in f.candidates:
        names = {i.name for i in onnx.load(c.path).graph.input}
        assert {"carrier", "origin", "dest", "distance", "dep_delay"} <= names, names
    assert set(weight_types(onnx.load(f["int8"].path)).values()) == {"INT8"}
    for c in f.candidates:
        session, rows = ex.session(c.path), Table("features").arrow().slice(0, 6).to_pandas().assign(
            dep_delay=lambda t: t["dep_delay"].where(t.index < 5, 1e6)
        )
        alone = np.concatenate([ex.run_scores(session, ex.feeds_of(session, rows[i:i + 1])) for i in range(6)])
        assert np.abs(ex.run_scores(session, ex.feeds_of(session, rows)) - alone).max() < 1e-6, c.recipe
    doc = json.loads(json.dumps(load_frontier(workspace/".scalai"/"frontiers"/trained.id).to_dict()))
    assert {"recipe", "accuracy", "accuracy_low", "accuracy_high", "latency_ms", "size_bytes", "path"} <= set(
        doc["best"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("trained", [4_000], indirect=True)
def test_the_job_and_the_command_name_the_classes(trained, workspace):
    "What their files answer with, and from which score on."
    from pathlib import Path

    from conftest import scalai

    from scalai_nb.training.registry import Registry
    job, rows, few = (
        Path(__file__).parents[1] / "workflows/compress.ipynb",
        trained.example,
        {"names": ["on time", "late"], "threshold": 0.3},
    )
    version = Registry().register("late", ex.export(trained.model, trained.prep, workspace/"late.onnx"), trained)
    (workspace/"models").mkdir(exist_ok=True)
    (workspace/"models"/"late.toml").write_text('table = "features"\ntarget = "late"\n')
    done = scalai(
        "run",
        job,
        "-p",
        f'run_ids=["{trained.id}"]',
        "-p",
        'labels=["on time", "late"]',
        "-p",
        "threshold=.3",
        "--json",
        cwd=workspace,
    )
    assert done.code == 0, done.out + done.err
    best, frontier = done.doc["results"], load_frontier(workspace/".scalai"/"frontiers"/trained.id)
    before = {c.path: Path(c.path).stat().st_mtime_ns for c in frontier.candidates}
    again = scalai(
        "compress",
        f"late@{version}",
        "--budget",
        "accuracy_drop=.01",
        "--label",
        "on time",
        "--label",
        "late",
        "--threshold",
        ".3",
        "--json",
        cwd=workspace,
    )
    assert again.code == 0, again.out + again.err
    assert {c["path"]: Path(c["path"]).stat().st_mtime_ns for c in again.doc["candidates"]} == before  # the same files
    served = ex.session(best["candidate"])
    label, score = served.run(
        ["label", "score"], ex.feeds_of(served, pd.DataFrame(rows["data"], columns=rows["columns"]))
    )
    assert ex.facts(served)["labels"] == few and list(label) == [few["names"][int(s > .3)] for s in score]
    wrong = scalai("compress", f"late@{version}", "--label", "late", cwd=workspace)
    assert wrong.code == 2 and wrong.lines[0] == "scalai: 2 classes cannot have 1 name.", wrong.err


def test_nonsense_stays_nonsense(trained, workspace):
    """A model that has learnt shuffled labels is not repaired by tuning its smaller forms; rows come from a table that
    is named."""
    import pyarrow as pa

    from scalai_nb.data.table import Table
    from scalai_nb.training.fit import fit
    rows = Table("features").arrow()
    mixed = np.random.default_rng(0).permutation(rows["late"].to_numpy(zero_copy_only=False))
    run = fit(
        MLP(len(trained.prep.features)),
        rows.set_column(rows.column_names.index("late"), "late", pa.array(mixed)),
        trained.prep,
        target="late",
        epochs=1,
        batch_size=512,
        ranks=1,
    )
    with pytest.raises(BadRequest, match="rows in memory"): compress(run)
    f = compress(run, table="features", recipes=("pruned+int8", "distilled"))
    assert trained.metrics["val_auc"] > 0.85 and all(c.auc < 0.75 for c in f.candidates), [
        (c.recipe, c.auc) for c in f.candidates
    ]


def test_nulls_and_strangers_score_alike(trained, flights, tmp_path):
    "Prep and torch on one side, the exported file on the other."
    path = ex.export(trained.model, trained.prep, tmp_path/"late.onnx", trained.task)
    odd = flights.loc[flights["month"].eq(9), ["carrier", "origin", "dest", "distance", "dep_delay"]].head(3000).copy()
    odd["distance"] = odd["distance"].astype(float)
    odd.iloc[::3, odd.columns.get_loc("dep_delay")] = None
    odd.iloc[::4, odd.columns.get_loc("carrier")] = None
    odd.iloc[1::4, odd.columns.get_loc("dest")] = "nowhere"
    odd.iloc[::11, odd.columns.get_loc("distance")] = np.inf
    got = ex.run_scores(ex.session(path), ex.feeds_of(ex.session(path), odd))
    assert np.abs(got - trained.predict(odd)).max() < 1e-5
    same = pd.DataFrame(odd).sample(frac=1, random_state=1)
    assert np.allclose(
        got,
        pd.Series(ex.run_scores(ex.session(path), ex.feeds_of(ex.session(path), same)), same.index).loc[odd.index],
        atol=1e-6,
    )


@pytest.mark.parametrize("trained", [4_000], indirect=True)
def test_twice_the_same(trained, tmp_path):
    "The same run and seed give the same files to the byte."
    for name in "ab": compress(trained, recipes=("int8", "pruned+int8"), path=tmp_path/name)
    for recipe in ("float32", "int8", "pruned-int8"):
        assert (tmp_path/"a"/f"{recipe}.onnx").read_bytes() == (tmp_path/"b"/f"{recipe}.onnx").read_bytes(), recipe
    assert held_loss(trained.model, np.zeros((10, len(trained.prep.features))), np.zeros(10)) > 0


KILLED = """
import os, signal, sys
import numpy as np, torch
from pathlib import Path
from scalai_nb.compression import export as ex, frontier as fr
from scalai_nb.compression.benchmark import Rows
from scalai_nb.training.run import Run
from scalai_nb.training.models import MLP
from scalai_nb.training.networks import CNN, FTTransformer, ResidualMLP
write, left = ex.write, [int(sys.argv[2])]
def then_die(proto, path):
    done = write(proto, path)
    left[0] -= 1
    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
    return done
ex.write = then_die
from sklearn.datasets import load_digits
X, y = load_digits(return_X_y=True)
X, y = (X/16).astype("f4"), (y > 4).astype("f4")
torch.manual_seed(0); torch.set_num_threads(1)
run = Run(id="k", model=MLP(64, (32, 32)).eval(), prep=None, target=None, task="binary")
rows = Rows(X[:1500], y[:1500], X[1500:], y[1500:])
recipes = ("int8", "pruned", "pruned+int8")
"""


@pytest.mark.slow
def test_a_killed_search_goes_on(tmp_path):
    "SIGKILL after the second file: the finished ones stay as they are, and all end as in a search that nobody killed."
    import signal
    import subprocess
    import sys
    call = "\nfr.compress(run, rows=rows, recipes=recipes, path=Path(sys.argv[1]))"
    dead = subprocess.run(
        [sys.executable, "-c", KILLED + call, str(tmp_path / "a"), "2"], capture_output=True, text=True
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert {p.name for p in (tmp_path/"a").iterdir()} == {"float32.onnx", "int8.onnx"}
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/"a").iterdir()}
    (tmp_path/"a"/"pruned.onnx").write_bytes(b"half a file")
    for name in "ab":
        done = subprocess.run(
            [sys.executable, "-c", KILLED + call, str(tmp_path / name), "99"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for recipe in ("float32", "int8", "pruned", "pruned-int8"):
        assert (tmp_path/"a"/f"{recipe}.onnx").read_bytes() == (tmp_path/"b"/f"{recipe}.onnx").read_bytes(), recipe
    f = load_frontier(tmp_path/"a")
    assert [c.recipe for c in f.candidates] == ["float32", "int8", "pruned", "pruned+int8"]


def test_other_rows_or_weights_are_another_search(digits):
    "A finished file is taken for what it is only where model, rows and settings are the same."
    from scalai_nb.compression.recipes import Request, content
    X, y = digits[0], (digits[1] > 4).astype(np.float32)
    run = Run(id="x", model=MLP(64, (32, 32)).eval(), prep=None, target=None, task="binary")
    def key(n=1500, **other):
        return content(replace(Request.from_run(run, Rows(X[:n], y[:n], X[1500:], y[1500:])), **other))
    same = key()
    assert (
        same == key() == key(limit={"auc_drop": 0.5})
        and len({same, key(1499), key(seed=1), key(task="regression")}) == 4
    )
    with torch.no_grad(): run.model.layers[0].bias[3] += 1e-3
    assert key() != same


def test_time_that_is_over_makes_nothing_more(digits, tmp_path, monkeypatch):
    "What is being tuned when the minutes are over is left out, and what was made before is measured."
    import time

    from scalai_nb.compression import recipes
    X, y = digits[0], (digits[1] > 4).astype(np.float32)
    run = Run(id="x", model=MLP(64, (32, 32)).eval(), prep=None, target=None, task="binary")
    pruned = recipes.NETWORKS["pruned"]
    monkeypatch.setitem(
        recipes.NETWORKS, "pruned", lambda *a: (setattr(recipes.time, "monotonic", lambda: 1e12), pruned(*a))[1]
    )
    monkeypatch.setattr(recipes.time, "monotonic", time.monotonic)   # restored afterwards
    f = compress(
        run,
        rows=Rows(X[:1500], y[:1500], X[1500:], y[1500:]),
        recipes=("distilled", "pruned", "int8"),
        path=tmp_path,
        timeout=3600,
    )
    assert [c.recipe for c in f.candidates] == ["float32", "int8"]
    assert "tuned" in f.left_out["pruned"] and "begun" in f.left_out["distilled"]
    assert "left out" in str(f) and load_frontier(tmp_path).left_out == f.left_out


def test_int8_that_loses_too_much_is_mended(digits, tmp_path):
    """A few huge units:

    layers are spared, their weights too where those cannot be rounded, and a network tuned under the rounding joins
    the candidates."""
    X, y = digits
    torch.manual_seed(0)
    model = MLP(64, (32, 32, 32), outputs=10, dropout=0.)
    tune(model, X[:1500], y[:1500], "multiclass", epochs=20, batch_size=64, lr=3e-3)
    with torch.no_grad():
        for p in (model.layers[3].weight, model.layers[3].bias): p[:6] *= 300
        model.layers[6].weight[:, :6] /= 300
    run = Run(id="h", model=model.eval(), prep=None, target=None, task="multiclass")
    f = compress(
        run,
        {"accuracy_drop": 0.02},
        rows=Rows(X[:1500], y[:1500], X[1500:], y[1500:]),
        recipes=("int8",),
        finetune_epochs=100,
        path=tmp_path,
    )
    assert [c.recipe for c in f.candidates] == ["float32", "int8", "aware+int8"]
    float_weights = [e["layer"] for e in f["int8"].layers if e["weights"] == "float"]
    assert float_weights == ["layers.6"] and f["int8"].accuracy > f.base.accuracy - .03
    held = onnx.load(f["int8"].path)
    assert {n: t for n, t in weight_types(held).items() if t != "INT8"} == {"model.layers.6.weight": "FLOAT"}
    aware = f["aware+int8"]
    assert {e["weights"] for e in aware.layers} == {"int8"} and aware.accuracy > f.base.accuracy - .03
    assert set(weight_types(onnx.load(aware.path)).values()) == {"INT8"}
    assert [e["own"] for e in f["int8"].layers] == sorted((e["own"] for e in f["int8"].layers), reverse=True)


def test_the_interval_decides_what_is_called_a_loss(tmp_path):
    "On 60 rows a point is noise, on 600,000 it is a loss; the words are those."
    from scalai_nb.compression.benchmark import Candidate
    from scalai_nb.compression.frontier import Frontier, alike
    from scalai_nb.core.stats import wilson
    for n, known in ((60, True), (600_000, False)):
        base, c = (
            Candidate(r, a, *wilson(round(a * n), n), None, ms, 1000, "")
            for r, a, ms in (("float32", 0.90, 2.0), ("int8", 0.89, 1.0))
        )
        f = Frontier(base, [base, c], {"accuracy_drop": .02}, n)
        assert alike(c, base) is known and ("neither loss nor gain" in f.why) is known
        assert ("neither" in f._repr_html_().split("<p>")[0]) is known and (" loss<" in f._repr_html_()) is not known


def test_words_together(digits, tmp_path):
    """Networks are made once for all recipes that share them, a share behind a word holds, and every combination is
    int8 to the last weight."""
    X, y = digits[0].reshape(-1, 1, 8, 8), digits[1]
    torch.manual_seed(0)
    model = Small()
    tune(model, X[:1500], y[:1500], "multiclass", epochs=4, batch_size=64, lr=3e-3)
    run = Run(id="w", model=model.eval(), prep=None, target=None, task="multiclass")
    recipes = ("pruned.75+int8", "pruned+dynamic", "pruned.75+distilled+int8", "dynamic")
    f = compress(run, rows=Rows(X[:1500], y[:1500], X[1500:], y[1500:]), recipes=recipes, path=tmp_path)
    assert {c.recipe for c in f.candidates} == {"float32", *recipes}
    assert f["pruned.75+int8"].parameters < f["pruned+dynamic"].parameters < f["dynamic"].parameters
    for r in recipes: assert set(weight_types(onnx.load(f[r].path)).values()) == {"INT8"}, r
    assert all(c.difference["max"] < 1e-5 for c in f.candidates if c.recipe == "float32")
    for c in f.candidates:
        assert (
            max(
                np.abs(a - b).max()
                for a, b in alone_and_beside(ex.session(c.path), X[1500:], np.random.default_rng(0))
            )
            < 1e-6
        ), c.recipe


class Tokens(nn.Module):
    "Linear layers over a sequence: the exporter writes MatMul where an MLP has Gemm."
    def __init__(self):
        super().__init__()
        self.up, self.mix, self.out = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x): return self.out(self.mix(self.up(x.reshape(-1, 8, 8)).relu()).relu().mean(1))


def test_layers_over_a_sequence(digits):
    from scalai_nb.compression.quantize import calibration, dynamic, layer_errors
    half, X = ex.graph(Tokens(), 64), digits[0]
    small = quantize(half, calibration(X, 500), exact=())
    errors = layer_errors(half, small, X[:200])
    assert len(errors) == 3 and all(0 < e["own"] < .05 and e["sums"] == "int8" for e in errors), errors
    for g in (small, dynamic(half)): assert set(weight_types(g).values()) == {"INT8"}
    assert (
        np.abs(
            ex.run_scores(ex.session(small.SerializeToString()), {"features": X})
            - ex.run_scores(ex.session(half.SerializeToString()), {"features": X})
        ).max()
        < 0.02
    )


NETWORKS = {  # name -> (network, shape of one example, loss)
    "MLP": (lambda: MLP(12, hidden=(64, 64, 32)), (12,), "binary"),
    "classes": (lambda: MLP(12, hidden=(64, 32), outputs=5), (12,), "multiclass"),
    "number": (lambda: MLP(12, hidden=(32, 32)), (12,), "regression"),
    "one layer": (lambda: nn.Linear(12, 1), (12,), "binary"),
    "ResidualMLP": (lambda: ResidualMLP(12, cardinalities=[0]*10 + [7, 4]), (12,), "binary"),
    "FTTransformer": (lambda: FTTransformer(12, cardinalities=[0]*10 + [7, 4]), (12,), "binary"),
    "CNN": (lambda: CNN((1, 8, 8), channels=(8, 16, 16), strides=(1, 2, 1)), (1, 8, 8), "multiclass"),
    "Small": (Small, (1, 8, 8), "multiclass"),
    "Tokens": (lambda: Tokens(), (64,), "binary"),
}


def examples(rng, n: int, shape: tuple) -> np.ndarray:  # rows of features; of twelve columns the last two are codes
    X = rng.normal(size=(n, *shape)).astype(np.float32)
    if shape == (12,): X[:, 10:] = np.stack([rng.integers(0, 7, n), rng.integers(0, 4, n)], 1)
    return X


def alone_and_beside(session, X: np.ndarray, rng, codes: bool = False):
    "The scores of some rows alone, and as they are in batches of several sizes whose last row is extreme."
    alone = ex.run_scores(session, {"features": X[:24]}, batch=1)
    for batch in (2, 7, 25):
        for i in range(0, 24, batch - 1):
            rows = X[i:min(i + batch - 1, 24)]
            extreme = X[rng.integers(len(X))][None]*10**rng.uniform(1, 6)
            if codes: extreme[:, 10:] = X[:1, 10:]
            yield alone[i : i + len(rows)], session.run(
                ["score"], {"features": np.concatenate([rows, extreme.astype(np.float32)])}
            )[0][: len(rows)]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_scores_alone_as_in_any_batch(name):
    "In every recipe's numbers, whatever row lies next to it, and were it a million times as large."
    from scalai_nb.compression.recipes import Request, quantize_graph
    make, shape, loss = NETWORKS[name]
    torch.manual_seed(0)
    rng, graph = np.random.default_rng(0), ex.graph(make(), shape, loss)
    X = examples(rng, 400, shape)
    y = (
        rng.normal(size=400).astype(np.float32)
        if loss == "regression"
        else rng.integers(0, 5 if loss == "multiclass" else 2, 400)
    )
    for numbers in ("float32", "int8", "dynamic"):
        small, _ = quantize_graph(graph, numbers, Request("x", None, None, None, Rows(X, y, X, y), loss))
        gaps = [
            np.abs(a - b).max()
            for a, b in alone_and_beside(ex.session(small.SerializeToString()), X, rng, shape == (12,))
        ]
        assert max(gaps) <= 1e-6, (name, numbers, max(gaps))
