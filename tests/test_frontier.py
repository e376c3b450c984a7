"The search of compress: on workers as alone, within its minutes, for its budget."
import threading

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from scalai_nb.compression import benchmark
from scalai_nb.compression import export as ex
from scalai_nb.compression import frontier as fr
from scalai_nb.compression import recipes as rc
from scalai_nb.compression.benchmark import Candidate, Rows
from scalai_nb.compression.frontier import compress, load_frontier
from scalai_nb.compression.prune import tune
from scalai_nb.core.errors import BadRequest
from scalai_nb.training.run import Run


@pytest.fixture(scope="module")
def digits():
    "A small CNN that knows the digits, and their rows."
    from sklearn.datasets import load_digits
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = (X[order]/16).astype("f4").reshape(-1, 1, 8, 8), y[order]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
                          nn.Linear(32*16, 64), nn.ReLU(), nn.Linear(64, 10))
    tune(model, X[:1300], y[:1300], "multiclass", epochs=12, batch_size=64, lr=3e-3)
    run = Run(id="d", model=model.eval(), prep=None, target=None, task="multiclass")
    return run, Rows(X[:1300], y[:1300], X[1300:], y[1300:])


@pytest.fixture
def two_workers():
    "Two threads are two workers to Dask, in this process."
    from distributed import Client
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as client: yield client


@pytest.mark.slow
def test_workers_make_what_one_machine_makes(digits, tmp_path):
    """Processes that share nothing with this one:

    the same files to the byte; what one search has made, the other one finds finished."""
    from distributed import Client
    run, rows = digits
    recipes = ("int8", "pruned.75+distilled", "distilled.5+int8")
    compress(run, recipes=recipes, rows=rows, path=tmp_path/"here")
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        compress(run, recipes=recipes, rows=rows, path=tmp_path/"there", client=client)
        for recipe in ("float32", *recipes):
            file = f"{recipe.replace('+', '-')}.onnx"
            assert (tmp_path/"here"/file).read_bytes() == (tmp_path/"there"/file).read_bytes(), recipe
        before = {p: p.stat().st_mtime_ns for p in (tmp_path/"here").glob("*.onnx")}
        again = compress(run, recipes=recipes, rows=rows, path=tmp_path/"here", client=client)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert [c.recipe for c in again.candidates] == ["float32", "int8", "distilled.5+int8", "pruned.75+distilled"]


def test_measuring_waits_until_every_worker_is_done(digits, two_workers, tmp_path, monkeypatch):
    "No network is tuned while times are taken, and tasks of one process take turns."
    run, rows = digits
    busy, seen, alone = [0], [], threading.Lock()
    def taught(*a, **more):
        with alone: busy[0] += 1; seen.append(busy[0])
        try: return own(*a, **more)
        finally:
            with alone: busy[0] -= 1
    own, timings = rc._taught, benchmark.timings
    monkeypatch.setattr(rc, "_taught", taught)
    def timed(*a, **k): seen.append(f"timed, {busy[0]} tuned"); return timings(*a, **k)
    monkeypatch.setattr(benchmark, "timings", timed)
    compress(run, recipes=("pruned", "pruned.75", "distilled"), rows=rows, path=tmp_path, client=two_workers)
    assert set(seen[:-1]) == {1} and seen[-1] == "timed, 0 tuned" and len(seen) > 3


def test_a_worker_that_fails_is_heard(digits, two_workers, tmp_path, monkeypatch):
    run, rows = digits
    def broken(*a): raise ZeroDivisionError("in the tuning")
    monkeypatch.setitem(rc.NETWORKS, "pruned", broken)
    with pytest.raises(ZeroDivisionError, match="in the tuning"):
        compress(run, recipes=("pruned", "distilled"), rows=rows, path=tmp_path, client=two_workers)
    assert not (tmp_path/"frontier.json").exists()


def test_minutes_hold_making_and_measuring(digits, tmp_path, monkeypatch):
    "What measuring will take is kept back: with less left than that, nothing is begun."
    run, rows = digits
    monkeypatch.setattr(rc, "seconds_to_measure", lambda path, rows: 1500.)
    # room for two to be measured, and ten minutes to make them
    f = compress(run, recipes=("int8", "pruned", "distilled"), rows=rows, path=tmp_path, timeout=3600)
    assert [c.recipe for c in f.candidates] == ["float32", "int8"] and set(f.left_out) == {"pruned", "distilled"}
    assert f.seconds["given"] == 3600 and f.seconds["making"] + f.seconds["measuring"] < 3600
    assert "of 3600 s given" in str(f)
    assert load_frontier(tmp_path).seconds == f.seconds


def test_timings_end_with_the_time(digits, tmp_path):
    file = ex.export(digits[0].model, None, tmp_path/"m.onnx", "multiclass", (1, 8, 8))
    assert [t["calls"] for t in benchmark.timings([file], digits[1].raw, ((1, 1, 30),), turns=15, until=0.)[0]] == [2]
    assert [t["calls"] for t in benchmark.timings([file], digits[1].raw, ((1, 1, 30),), turns=15)[0]] == [30]


@pytest.mark.slow
def test_the_search_finds_its_own_shares(digits, tmp_path):
    """No recipe is named:

    the shares tried close in on what the budget allows, and the best is much smaller and keeps within it."""
    run, rows = digits
    f = compress(run, {"accuracy_drop": .02}, rows=rows, path=tmp_path, timeout=600, finetune_epochs=6)
    tried = [c.recipe for c in f.candidates if c.recipe.startswith("pruned") and c.recipe.endswith("distilled+int8")]
    shares = sorted(float(recipe.split("+")[0].removeprefix("pruned")) for recipe in tried)
    assert {.5, .75} < set(shares) and not f.left_out, (shares, f.left_out)
    best = f.best()
    assert best.accuracy >= f.base.accuracy - .02 and f.base.size_bytes/best.size_bytes > 4, f
    again = compress(run, {"accuracy_drop": .02}, rows=rows, path=tmp_path, timeout=600, finetune_epochs=6)
    assert [c.recipe for c in again.candidates] == [c.recipe for c in f.candidates]


def test_files_answer_with_names(digits, tmp_path):
    "The label beside the scores, in float and in int8, for one row and many; other names are another file."
    run, rows = digits
    names = ex.Labels(tuple("zero one two three four five six seven eight nine".split()))
    f = compress(run, recipes=("int8",), rows=rows, path=tmp_path, labels=names)
    for c in f.candidates:
        served = ex.session(c.path)
        for n in (1, 77):
            label, score = served.run(["label", "score"], {"features": rows.raw[:n]})
            assert list(label) == [names.names[k] for k in score.argmax(1)] and score.shape == (n, 10)
        told = ex.facts(served)
        assert told["labels"]["names"] == list(names.names)
        assert told["signature"] == ex.signature(served) == f.signature
        assert told["difference"] == c.difference and 0 <= c.difference["mean"] <= c.difference["max"]
    before = (tmp_path/"int8.onnx").read_bytes()
    compress(run, recipes=("int8",), rows=rows, path=tmp_path)
    assert (tmp_path/"int8.onnx").read_bytes() != before
    assert ex.signature(ex.session(tmp_path/"int8.onnx"))["outputs"]["label"]["type"] == "int64"
    with pytest.raises(BadRequest, match="10 classes cannot have 2 names"):
        compress(run, recipes=("int8",), rows=rows, path=tmp_path/"new", labels=ex.Labels(("a", "b")))


def test_int8_is_held_to_the_auc_that_is_bounded(tmp_path):
    "Accuracy on few late rows hides what AUC shows: a bound of AUC spares layers where one of accuracy does not."
    torch.manual_seed(0)
    X = np.random.default_rng(0).normal(size=(4000, 8)).astype("f4")
    y = (X[:, 0] + X[:, 1] > 2.3).astype("f4")   # one in twenty
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    tune(model, X[:3000], y[:3000], epochs=20, batch_size=64, lr=3e-3)
    with torch.no_grad():
        for p in (model[2].weight, model[2].bias): p[:4] *= 3000
        model[4].weight[:, :4] /= 3000
    run = Run(id="a", model=model.eval(), prep=None, target=None, task="binary")
    rows = Rows(X[:3000], y[:3000], X[3000:], y[3000:])
    f = compress(run, {"auc_drop": .005}, recipes=("int8",), rows=rows, path=tmp_path)
    assert f.base.auc_low < f.base.auc < f.base.auc_high and f.base.auc > .9
    assert f["int8"].auc > f.base.auc - .02 and f.best() is not None and f.best().auc >= f.base.auc - .005
    with pytest.raises(BadRequest, match="no AUC to bound"):
        other = Run(id="r", model=model, prep=None, target=None, task="regression")
        compress(other, {"auc_drop": .01}, rows=rows, path=tmp_path/"r")
    assert set(onnx.load(f["int8"].path).graph.output[i].name for i in (0, 1)) == {"score", "label"}


def held(recipe, accuracy, auc, ms, half=.01):  # a candidate of a binary model, with intervals
    return Candidate(recipe, accuracy, accuracy - half, accuracy + half, auc, ms, 1000, "", auc - half, auc + half)


def test_a_loss_of_auc_is_a_loss():
    """Where few rows are positive, accuracy hardly moves while the order of the rows is lost:

    what bounds accuracy bounds AUC, and no word says otherwise."""
    base, close, lost = held("float32", .95, .90, 3.), held("int8", .949, .897, 2.), held("pruned", .95, .86, 1.)
    f = fr.Frontier(base, [base, close, lost], {"accuracy_drop": .01}, 1000)
    assert f.best().recipe == "int8" and "auc_drop ≤ 0.01" in f.why
    assert f.why.endswith("accuracy -0.10 points, AUC -0.0030, inside the intervals: neither loss nor gain.")
    assert f.best({"accuracy_drop": .01, "auc_drop": .05}).recipe == "pruned"   # who bounds it says how much may go
    assert f.why.endswith("accuracy +0.00 points (inside the interval), AUC -0.0400 (a loss).")
    assert "neither" not in f.why
    assert f.best({"latency_ms": 1.5}).recipe == "pruned" and "neither" not in f.why
    row = next(line.split("</tr>")[0] for line in f._repr_html_().split("<tr") if "pruned" in line and "<td" in line)
    assert "neither" not in row and "-0.0400" not in row and "0.8600 loss" in row
    assert f.best({"accuracy_drop": .0001}).recipe == "float32"
    wide = [Candidate(c.recipe, c.accuracy, .8, .99, c.auc, c.latency_ms, 1000, "", .7, .99) for c in (base, lost)]
    few = fr.Frontier(wide[0], wide, {"auc_drop": .05}, 40)   # so few rows that the interval holds nearly everything
    assert few.best().recipe == "pruned"
    assert "neither" not in few.why and "neither" not in few._repr_html_().split("<p>")[0]


def test_a_network_that_lost_its_order_is_not_the_best(tmp_path):
    """A real one:

    one row in forty is positive. A student of a few units calls nearly all rows negative, which costs little
    accuracy, and no longer ranks them."""
    torch.manual_seed(0)
    X = np.random.default_rng(0).normal(size=(6000, 8)).astype("f4")
    y = (X[:, 0]*X[:, 1] + X[:, 2] > 2.6).astype("f4")
    model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
    tune(model, X[:3000], y[:3000], epochs=25, batch_size=64, lr=3e-3)
    run = Run(id="a", model=model.eval(), prep=None, target=None, task="binary")
    rows = Rows(X[:3000], y[:3000], X[3000:], y[3000:])
    f = compress(run, {"accuracy_drop": .3}, recipes=("distilled.1",), rows=rows, path=tmp_path)
    lost = f["distilled.1"]
    assert f.base.accuracy - lost.accuracy <= .3 < f.base.auc - lost.auc, f
    assert f.best().recipe == "float32" and "auc_drop ≤ 0.3" in f.why
    wide = {"accuracy_drop": .3, "auc_drop": 1., "loss_rise": 9}
    assert (lost.latency_ms > f.base.latency_ms or f.best(wide) is lost
            and "neither" not in f.why and "(a loss)" in f.why)
