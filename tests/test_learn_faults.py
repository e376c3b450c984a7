"""What a training, an evaluation and a model file do with input that they cannot use.

They raise an error of two lines before anything starts, and load no file that was changed."""

import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from scalai_nb.compression.export import export, session
from scalai_nb.core.errors import BadRequest, WorkFailed
from scalai_nb.core.settings import Settings
from scalai_nb.data.prep import Prep
from scalai_nb.data.profile import profile
from scalai_nb.serving.score import Scorer, score
from scalai_nb.training import checkpoint
from scalai_nb.training.execution import clear_unfinished, unfinished
from scalai_nb.training.fit import fit
from scalai_nb.training.models import MLP
from scalai_nb.training.run import Run


@pytest.fixture
def settings(tmp_path): return Settings(root=tmp_path)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=400),
            "b": rng.normal(size=400),
            "c": rng.choice(list("xyz"), 400),
            "fold": np.arange(400) % 5,
        }
    )
    return frame.assign(y=frame.a + rng.logistic(size=400) > 0)


@pytest.fixture(scope="module")
def prep(rows): return Prep.fit(profile(rows.drop(columns="fold")), target="y")


@pytest.fixture(scope="module")
def xy(rows): return rows[["a", "b"]].to_numpy("f4"), rows.y.to_numpy()


@pytest.fixture(scope="module")
def run(rows, prep, tmp_path_factory):
    return fit(MLP, rows, prep, epochs=1, batch_size=64, settings=Settings(root=tmp_path_factory.mktemp("run")))


def two_lines(error, words):
    "What happened and what to do, each in a line that says something."
    assert words in str(error.value), str(error.value)
    assert error.value.message and error.value.hint and len(str(error.value).splitlines()) == 2, str(error.value)
    return True


TARGETS = [
    ("one class", lambda f: f.y | True, "The target 'y' is True in all rows that have it"),
    ("one class to learn from", lambda f: f.y & (f.fold == 0), "The target 'y' is False in all 320 rows to learn"),
    ("one number to learn from", lambda f: 3.5 + f.a*(f.fold == 0), "The target 'y' is 3.5 in all 320 rows to learn"),
    ("no value at all", lambda f: pd.Series([None] * len(f), dtype="boolean"), "'y' is missing in all 400 rows"),
    ("infinite", lambda f: np.where(f.y, np.inf, f.a), "targets in 'y' are infinite"),
    ("days", lambda f: pd.Timestamp(0) + pd.to_timedelta(f.index, "D"), "expected text, a boolean or a number"),
]


@pytest.mark.parametrize("make, words", [pytest.param(make, words, id=name) for name, make, words in TARGETS])
def test_a_target_that_cannot_be_learnt(rows, prep, settings, make, words):
    with pytest.raises(BadRequest) as error: fit(MLP, rows.assign(y=make(rows)), prep, settings=settings)
    assert two_lines(error, words) and not settings.path("fits").exists()


LEARNT = [
    ("some values", lambda f: f.y.astype("boolean").mask(f.a > 1), [False, True]),
    ("words", lambda f: np.where(f.y, "late", "not"), None),
    ("negative classes", lambda f: np.where(f.y, 1, -1), None),
    ("a class like a billion", lambda f: np.where(f.y, 10**9, 3), None),
    ("a class that nobody learnt", lambda f: np.where(f.fold == 0, 2, f.y.astype(int)), [0, 1, 2]),
]


@pytest.mark.parametrize("make, classes", [pytest.param(make, c, id=name) for name, make, c in LEARNT])
def test_a_target_that_can_be_learnt(rows, prep, settings, make, classes):
    made = make(rows)
    run = fit(MLP, rows.assign(y=made), prep, epochs=1, batch_size=64, settings=settings)
    expected = classes or sorted(set(made.tolist()), key=lambda c: (made == c).sum())[::-1]
    assert run.classes == expected and Run.load(run.path).classes == expected and np.isfinite(run.metrics["val_loss"])
    assert len(run.labels.decode(run.predict(rows[:3]).round() if len(expected) == 2 else [2, 2, 2])) == 3


def test_a_class_that_only_the_learnt_rows_have(rows, prep, settings):
    run = fit(
        MLP,
        rows.assign(y=np.where((rows.fold == 1) & (rows.a > 1), 2, rows.y.astype(int))),
        prep,
        epochs=1,
        batch_size=64,
        settings=settings,
    )
    assert run.task == "multiclass" and np.isfinite(run.metrics["val_loss"])
    told = run.evaluate(rows.assign(y=rows.y.astype(int)), importance=0)
    assert (
        [c["rows"] for c in told.classes] == [*np.bincount(rows.y), 0]
        and np.isnan(told.classes[2]["auc"][0])
        and len(told.roc[2]) == 0
    )
    assert (
        "is undefined" not in str(told)
        and "<svg" in told._repr_html_()
        and json.dumps(told.to_dict(), allow_nan=False)
    )


NUMBERS = [
    (dict(lr=float("nan")), "lr=nan"),
    (dict(lr="fast"), "lr='fast'"),
    (dict(lr=None), "lr=None"),
    (dict(epochs=0), "epochs=0 is not possible"),
    (dict(epochs=1.5), "epochs=1.5"),
    (dict(batch_size=0), "batch_size=0 is not possible"),
    (dict(batch_size=None), "batch_size=None"),
    (dict(ranks=-1), "-1 ranks cannot share"),
    (dict(ranks=2.0), "2.0 ranks cannot share"),
    (dict(ranks=16, batch_size=8), "16 ranks cannot share a batch of 8 rows"),
    (dict(seed=-1), "seed=-1"),
    (dict(seed=2**70), "is not possible"),
    (dict(restarts=-1), "restarts=-1"),
    (dict(timeout=0), "timeout=0"),
    (dict(client=3), "is not a Dask client"),
    (dict(metrics=["auc"]), "metrics=['auc']"),
    (dict(resume="nowhere/run"), "There is no run in nowhere"),
    (dict(class_weight={0: -1.0, 1: 1.0}), "does not fit classes False, True"),
    (dict(class_weight={0: "a", 1: 1.0}), "does not fit classes False, True"),
    (dict(where=[("q", "<", 1)]), "No match for FieldRef.Name(q)"),
    (dict(where="a < 1"), "This filter cannot be read"),
    (dict(where=[("a", ">", 99)]), "0 rows are left"),
    (dict(target="q"), "These rows have no column 'q'"),
    (dict(validation=7), "Validation by 7"),
]


@pytest.mark.parametrize("how, words", NUMBERS, ids=[str(how) for how, _ in NUMBERS])
def test_a_training_that_is_not_possible(rows, prep, settings, how, words):
    with pytest.raises(BadRequest) as error: fit(MLP, rows, prep, settings=settings, **how)
    assert two_lines(error, words) and not settings.path("fits").exists()


TABLES = [
    (lambda f, X, y: (f[:0],), "0 rows are left to learn from"),
    (lambda f, X, y: (f.drop(columns="y"),), "no column 'y'"),
    (lambda f, X, y: (f.drop(columns="a"),), "no column 'a'"),
    (lambda f, X, y: (f.assign(a=f.c),), "Column 'a' is"),
    (lambda f, X, y: (pd.concat([f, f[["a"]]], axis=1),), "Column 'a' is there 2 times"),
    (lambda f, X, y: ("flihgts",), "There is no table 'flihgts'"),
    (lambda f, X, y: (None,), "NoneType is not rows"),
    (lambda f, X, y: ((X, y[:9]),), "X has 400 rows and y has 9"),
    (lambda f, X, y: ((X.tolist(), y.tolist()),), "A tuple of list, list is not rows"),
    (lambda f, X, y: ((X,),), "A tuple of ndarray is not rows"),
    (lambda f, X, y: ((X, y[:, None]),), "The target has shape (400, 1)"),
    (lambda f, X, y: ((X[:17], y[:17]),), "rows are left to learn from"),
]


@pytest.mark.parametrize("make, words", TABLES, ids=[words for _, words in TABLES])
def test_rows_that_cannot_be_learnt_from(rows, prep, xy, settings, make, words):
    given, = make(rows, *xy)
    with pytest.raises(BadRequest) as error:
        fit(MLP, given, None if isinstance(given, tuple) else prep, settings=settings)
    assert two_lines(error, words) and not settings.path("fits").exists()


def test_a_table_smaller_than_a_batch_is_one_batch(xy, settings):
    run = fit(MLP, xy, batch_size=100_000, epochs=2, settings=settings)
    assert [h["step"] for h in run.history] == [1, 2] and run.data["rows"] + run.data["validation_rows"] == 400


def test_the_batch_of_a_loss_that_is_no_number_is_named(xy, settings):
    "The steps before it are kept, so that a training can go on from them."
    X, y = xy[0].copy(), xy[1]
    X[3] = np.inf  # met in the middle of the epoch
    with pytest.raises(WorkFailed) as error:
        fit(MLP, (X, y), validation=None, batch_size=40, checkpoint_every=1, settings=settings)
    assert two_lines(error, "The loss became nan in epoch 1, batch ")
    batch = int(str(error.value).split("batch ")[1].split()[0])
    folder, = settings.path("fits").iterdir()
    kept = checkpoint.latest(folder/"checkpoints")
    assert (
        batch > 1
        and kept.name == f"step-{batch - 1:08d}"
        and all(torch.isfinite(v).all() for v in checkpoint.load(kept)[0]["model"].values())
    )


JUDGED = [
    (lambda f: f[:0], "There are no rows to judge by"),
    (lambda f: f.drop(columns="a"), "Unknown column 'a'"),
    (lambda f: f.drop(columns="y"), "Unknown column 'y'"),
    (lambda f: f.assign(y=2), "'y' has a class 2 that the model does not know"),
    (lambda f: f.assign(y=f.a), "'y' has a class 0.12"),
    (lambda f: f.assign(a=f.c), "Column 'a' is"),
    (lambda f: "rows.csv", "str is not rows"),
    (lambda f: (f.a, f.y), "tuple is not rows"),
]


@pytest.mark.parametrize("make, words", JUDGED, ids=[words for _, words in JUDGED])
def test_rows_that_a_run_cannot_be_judged_by(run, rows, make, words):
    with pytest.raises(BadRequest) as error: run.evaluate(make(rows))
    assert two_lines(error, words)


def test_one_class_is_judged_as_far_as_it_can_be(run, rows):
    told = run.evaluate(rows.assign(y=True), by="c")
    assert (
        "auc is undefined" in str(told)
        and told.measures["accuracy"][1] < told.measures["accuracy"][2]
        and not told.importance
        and not len(told.roc[1])
    )
    assert "NaN" not in json.dumps(told.to_dict()) and "nan" not in told._repr_html_()


def test_arrays_that_a_run_cannot_take(xy, settings):
    run = fit(MLP, xy, epochs=1, settings=settings)
    for given, words in (
        (xy[0].astype(str), "is not rows of numbers"),
        (xy[0][:, :1], "MLP cannot take rows of shape (1,)"),
        (None, "is not rows of numbers"),
    ):
        with pytest.raises(BadRequest) as error: run.predict(given)
        assert two_lines(error, words)
    with pytest.raises(BadRequest) as error: run.evaluate((np.full_like(xy[0], np.nan), xy[1]))
    assert two_lines(error, "The run says no number of 400 of 400 rows")


def test_a_loaded_run_judges_the_rows_it_kept_aside(rows, prep, settings):
    "Its filter comes back from JSON, which has no tuples."
    from scalai_nb.data.write import write
    write(rows.drop(columns="fold").assign(id=rows.index.astype(str)), "rows", key="id", fold="id", settings=settings)
    fitted = fit(MLP, "rows", prep, epochs=1, where=[("a", "<", 1)], settings=settings)
    told = Run.load(fitted.path).evaluate(importance=0, settings=settings)
    assert (
        told.rows == fitted.data["validation_rows"] and abs(told.measures["auc"][0] - fitted.metrics["val_auc"]) < 1e-6
    )


def changes(content, rng):
    "What may happen to a file: a bit turned, somewhere; an end cut off; nothing left; something after the end."
    at = int(rng.integers(len(content)))
    yield content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1:]
    yield content[:at]
    yield b""
    yield content + b"\0"


def test_no_changed_checkpoint_is_gone_on_from(xy, settings):
    how = dict(batch_size=100, settings=settings)
    run = fit(MLP, xy, epochs=1, **how)
    folder, rng = checkpoint.latest(run.path/"checkpoints"), np.random.default_rng(0)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for content in changes(whole, rng):
            if file.name == "manifest.json" and content.rstrip(b"\0 \n") == whole: continue
            file.write_bytes(content)
            with pytest.raises(BadRequest) as error: fit(MLP, xy, epochs=2, resume=run, **how)
            assert two_lines(error, "it was changed or cut short" if file.name != "manifest.json" else "manifest in")
        file.write_bytes(whole)
    assert len(fit(MLP, xy, epochs=2, resume=run, **how).history) == 2


def test_no_changed_model_file_is_opened(run, rows, settings, tmp_path):
    path, rng, wanted = export(run.model, run.prep, tmp_path/"model.onnx"), np.random.default_rng(0), run.predict(rows)
    whole = path.read_bytes()
    assert np.allclose(Scorer(path).score(rows), wanted, atol=1e-5)
    for content in (c for _ in range(8) for c in changes(whole, rng)):
        path.write_bytes(content)
        for use in (session, Scorer, lambda p: score(p, rows, settings=settings)):
            with pytest.raises(BadRequest) as error: use(path)
            assert two_lines(error, "model.onnx is not ")
    assert not settings.path("tables", "scores").exists()


def test_no_changed_run_is_loaded(run):
    rng = np.random.default_rng(0)
    for name in ("model.safetensors", "prep.json"):
        file = run.path/name
        whole = file.read_bytes()
        for content in changes(whole, rng):
            file.write_bytes(content)
            with pytest.raises(BadRequest) as error: Run.load(run.path)
            assert two_lines(error, f"{name} is not what run.json says")
        file.write_bytes(whole)
    assert Run.load(run.path).predict is not None


WORK = """
import sys, numpy as np
from scalai_nb.core.settings import Settings
from scalai_nb.training.fit import fit
from scalai_nb.training.models import MLP
if __name__ == "__main__":
    X = np.random.default_rng(0).normal(size=(6_000, 12)).astype("float32")
    fit(MLP, (X, X[:, 0] > 0), epochs=2, batch_size=256, checkpoint_every=1, seed=3, ranks=int(sys.argv[2]),
        settings=Settings(root=sys.argv[1]), resume=sys.argv[3] if len(sys.argv) > 3 else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed, ranks", [(0, 1), (2, 2)])
def test_a_killed_training_goes_on_from_a_whole_checkpoint(tmp_path, seed, ranks):
    """It writes one after each step and is killed at random.

    Nothing of it lives on, nothing half-written is loaded, and in the end the weights are those of an unbroken run."""
    def start(place, *more):
        return subprocess.Popen(
            [sys.executable, tmp_path / "work.py", tmp_path / place, str(ranks), *more],
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
        )
    def written():
        return max(
            (
                int(p.parent.name[5:])
                for p in (tmp_path / "broken").glob(".scalai/fits/*/checkpoints/step-*/manifest.json")
            ),
            default=0,
        )
    (tmp_path/"work.py").write_text(WORK)
    rng, until = np.random.default_rng(seed), time.monotonic() + 240
    killed, step = start("broken"), int(rng.integers(2, 30))
    while written() < step: assert time.sleep(.001) or killed.poll() is None and time.monotonic() < until
    time.sleep(float(rng.random())*.02)  # somewhere in a step, or in a checkpoint
    family = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    assert len(family) >= (ranks > 1)*3 and not psutil.wait_procs(family, timeout=60)[1]  # an agent and its ranks
    folder, = (tmp_path/"broken").glob(".scalai/fits/*")
    assert (
        not (folder / "run.json").exists()
        and step <= checkpoint.load(checkpoint.latest(folder / "checkpoints"))[0]["step"] < 38
    )
    assert start("broken", str(folder)).wait(240) == start("whole").wait(240) == 0
    broken, whole = Run.load(folder), Run.load(*(tmp_path/"whole").glob(".scalai/fits/*"))
    assert [h["step"] for h in broken.history] == [h["step"] for h in whole.history] == [19, 38]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, broken.model.state_dict()[name]), name
    assert not list(folder.glob("checkpoints/.*"))


def test_a_run_is_trained_by_one_process_at_a_time(xy, settings):
    """The second resume of a run is refused before anything is written; when the first has ended, or was killed, the
    next goes on."""
    def stops(y, score): raise ArithmeticError("after the first epoch")
    with pytest.raises(ArithmeticError):
        fit(MLP, xy, epochs=2, batch_size=64, checkpoint_every=2, metrics={"stops": stops}, settings=settings)
    folder, = settings.path("fits").iterdir()
    code = (
        f"import sys, time; from scalai_nb.core.lock import claim; held = claim({str(folder/'.lock')!r});"
        " print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(BadRequest) as said: fit(MLP, xy, epochs=2, batch_size=64, settings=settings, resume=folder)
    two_lines(said, "is being trained by another process")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before and unfinished(settings) == []
    other.kill()
    other.wait()
    first = fit(MLP, xy, epochs=2, batch_size=64, settings=settings, resume=folder, wait=False)
    with pytest.raises(BadRequest, match="is being trained by another process"):
        fit(MLP, xy, epochs=2, batch_size=64, settings=settings, resume=first)
    assert any("resumed at step" in note for note in first.wait().params["notes"])


def test_what_a_killed_training_left_is_found_and_goes_after_a_while(xy, settings):
    "Its folder can be gone on with until gc takes it; what is complete, or is being worked on, stays."
    from scalai_nb.core.lock import claim
    def stops(y, score): raise ArithmeticError("after the first epoch")
    done = fit(MLP, xy, epochs=1, batch_size=64, settings=settings)
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            fit(MLP, xy, epochs=2, batch_size=64, checkpoint_every=2, metrics={"stops": stops}, settings=settings)
    a, b = unfinished(settings)
    held = claim(b/".lock")
    assert unfinished(settings) == [a] and clear_unfinished(settings, 1).files == 0
    counted = clear_unfinished(settings, 0, dry=True)
    assert counted.files > 2 and a.exists() and clear_unfinished(settings, 0) == counted
    assert not a.exists() and b.exists() and (done.path/"run.json").exists()
    held.close()
    assert clear_unfinished(settings, 0).files and not b.exists()
