"The registry from several processes, with hostile files, and with a server that is not there."
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch

from scalai_nb.cli.main import main
from scalai_nb.core.errors import BadRequest, Unreachable, WorkFailed
from scalai_nb.core.settings import Settings
from scalai_nb.data.prep import Prep
from scalai_nb.data.table import Table
from scalai_nb.data.write import write
from scalai_nb.training import checkpoint
from scalai_nb.training.fit import fit
from scalai_nb.training.models import MLP, rebuild
from scalai_nb.training.registry import Registry
from scalai_nb.training.run import Run


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    "MLflow takes seconds to make its tables; one empty database is enough."
    settings = Settings(root=tmp_path_factory.mktemp("empty"))
    assert Registry(settings).client and Registry(settings).list() == []
    return settings.path("mlflow.db")


@pytest.fixture
def opened(workspace, empty):
    (workspace/".scalai").mkdir()
    shutil.copy(empty, workspace/".scalai")
    return workspace


def a_run(id="ab12", seed=0):
    torch.manual_seed(seed)
    return Run(
        id=id,
        model=MLP(4, hidden=(8,)).eval(),
        prep=None,
        target="late",
        task="binary",
        history=[{"epoch": 1, "loss": 0.5}],
        metrics={"auc": 0.8},
    )


def onnx_file(path, n):
    "The smallest file that takes raw rows: n·x."
    from onnx import TensorProto, helper
    value = lambda name, kind: helper.make_tensor_value_info(name, kind, ["N"])
    nodes = [
        helper.make_node("Mul", ["x", "n"], ["y"]),
        helper.make_node("Cast", ["y"], ["score"], to=TensorProto.FLOAT),
    ]
    body = helper.make_graph(
        nodes,
        "times",
        [value("x", TensorProto.DOUBLE)],
        [value("score", TensorProto.FLOAT)],
        [helper.make_tensor("n", TensorProto.DOUBLE, [], [n])],
    )
    path.write_bytes(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )
    return path


def _registers(folder, n):
    os.chdir(folder)
    registry = Registry(Settings(root=Path(folder)))
    return registry.register("late", onnx_file(Path(folder)/f"{n}.onnx", n), a_run(f"run{n}", n))


def test_two_processes_open_a_new_workspace_at_once(workspace):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        versions = pool.starmap(_registers, [(str(workspace), 1), (str(workspace), 2)])
    assert sorted(versions) == [1, 2]
    assert {Registry().run(m["run"]).id for m in Registry().list("late")} == {"run1", "run2"}
    assert sorted(p.name for p in workspace.iterdir()) == [
        ".scalai",
        "1.onnx",
        "2.onnx",
        "settings.ini",
    ], "nothing may lie outside the workspace's state"


def test_a_copied_workspace_is_whole(workspace):
    """Its models are its own files, though the first folder is still there; what it adds lies in it; the first is not
    touched; and where neither was opened, MLflow's own tools find its files."""
    import mlflow
    from conftest import naming
    first, second = workspace/"a_%", workspace/"second one"
    first.mkdir()
    registry = Registry(Settings(root=first))
    registry.promote(
        "late", registry.register("late", onnx_file(workspace / "1.onnx", 1), a_run("run1", 1)), "the first"
    )
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*") if p.is_file() and ".lock" not in p.name}
    shutil.copytree(first, second)
    copied = Registry(Settings(root=second))
    assert copied.champion("late").path.is_relative_to(second) and copied.run("run1").path.is_relative_to(second)
    assert copied.promote(
        "late", copied.register("late", onnx_file(workspace / "2.onnx", 2), a_run("run2", 2)), "the next"
    ).path.is_relative_to(second)
    assert {p: p.stat().st_mtime_ns for p in before} == before and len(registry.list("late")) == 1
    assert naming(first, second) == []
    shutil.rmtree(first)
    assert copied.rollback("late") == 1 and copied.load("late").predict({"x": 2}) == [2] and not first.exists()
    mlflow.set_tracking_uri(copied.uri)
    try:
        assert mlflow.artifacts.download_artifacts(
            "models:/late@champion/card.json", tracking_uri=copied.uri
        ).startswith(str(second))
    finally:
        mlflow.set_tracking_uri(None)


class Bomb:
    def __reduce__(self): return os.mkdir, (os.environ["BOMB"],)


def test_nothing_is_unpickled(opened, monkeypatch):
    "Pickles planted among a model's files lie there unopened; one in the place of the weights is refused."
    monkeypatch.setenv("BOMB", str(opened/"exploded"))
    registry = Registry()
    v = registry.register("late", onnx_file(opened/"a.onnx", 1), a_run())
    folder = registry.version("late", v).path.parent
    for name in ("model.pkl", "data.pkl", "python_model.pkl", "MLmodel"):
        (folder/name).write_bytes(pickle.dumps(Bomb()))
    flavour = "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n    model_path: model.pkl\n"
    (folder/"MLmodel").write_text(flavour)
    (folder/"model.pkl").write_bytes(cloudpickle.dumps(Bomb()))
    assert registry.resolve("late@1").version == 1 and registry.load("late@1").predict({"x": 2}) == [2]
    run = folder.parents[1]/"run"
    for name in ("model.pkl", "MLmodel"): shutil.copy(folder/name, run)
    assert registry.run("ab12").id == "ab12"
    (run/"model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadRequest, match="changed or cut short"): registry.run("ab12")
    (folder/"model.onnx").write_bytes(pickle.dumps(Bomb()))
    for opening in (registry.resolve, registry.load):
        with pytest.raises(WorkFailed, match="not the one that was registered"): opening("late@1")
    assert not (opened/"exploded").exists()


def flipped(file: Path):
    "One bit of a file, in its middle, the other way; gives the way back."
    before = file.read_bytes()
    file.write_bytes(before[:len(before)//2] + bytes([before[len(before)//2] ^ 1]) + before[len(before)//2 + 1:])
    return lambda: file.write_bytes(before)


def with_network(run):
    "A run whose class is known here, as to somebody who typed it in."
    return Run.load(run.path, type(rebuild(json.loads((run.path/"run.json").read_text())["model"], run_source=True)))


ROWS = 1_500


def rows_of(seed, start=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=ROWS)
    return pd.DataFrame(
        {
            "id": [str(start + i) for i in range(ROWS)],
            "x": np.where(rng.random(ROWS) < 0.05, np.nan, x),
            "c": rng.choice(list("abc"), ROWS),
            "late": x + rng.logistic(size=ROWS) / 2 > 0.3,
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, empty):
    """A workspace with a table under a contract, two runs of a class of a notebook's own, both registered, and a newer
    version of the table."""
    from scalai_nb.compression.export import export
    folder = tmp_path_factory.mktemp("trained")
    (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    (folder/".scalai").mkdir()
    shutil.copy(empty, folder/".scalai")
    script = folder/"notebook.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, folder], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    script.unlink()
    settings, told = Settings(root=folder), json.loads(done.stdout.splitlines()[-1])
    write(rows_of(1, ROWS), "rows", key="id", fold="id", settings=settings)
    for n, run in enumerate(told):
        found = with_network(Registry(settings).run(run))
        Registry(settings).register(
            "late",
            export(found.model, found.prep, folder / f"{n}.onnx"),
            found,
            {"latency_ms": 0.1 + n},
            {"recipe": "float32"},
        )
    Registry(settings).promote("late", 1, "the first")
    return folder, told


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, %r)
import torch
from torch import nn
from scalai_nb.core.settings import Settings
from scalai_nb.data.contract import Contract
from scalai_nb.data.prep import Prep
from scalai_nb.data.table import Table
from scalai_nb.data.write import write
from scalai_nb.training.fit import fit
from scalai_nb.training.registry import Registry
from test_registry import rows_of

HIDDEN = 8

class Gate(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.open, self.value = nn.Linear(features, HIDDEN), nn.Linear(features, HIDDEN)
        self.drop, self.last = nn.Dropout(.1), nn.Linear(HIDDEN, 1)
    def forward(self, x): return self.last(self.drop(self.open(x).sigmoid()*self.value(x)))

if __name__ == "__main__":
    settings = Settings(root=Path(sys.argv[1]))
    Path(settings.root/"contract.yaml").write_text(
        "columns: {id: {type: text}, x: {type: float64, max: 99}, c: {type: text}, late: {type: boolean}}"
    )
    contract = Contract.load(settings.root/"contract.yaml")
    write(rows_of(0), "rows", contract=contract, key="id", fold="id", settings=settings)
    prep = Prep.fit(Table("rows", settings).profile(fold=[1, 2, 3, 4]), target="late", exclude=["id", "fold"])
    how = dict(batch_size=128, lr=1e-2, ranks=1, settings=settings)
    runs = [fit(Gate, "rows", prep, epochs=epochs, **how) for epochs in (4, 5)]
    for run in runs: Registry(settings).log(run)
    print(json.dumps([run.id for run in runs]))
""" % str(Path(__file__).parent)


@pytest.fixture
def there(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    monkeypatch.delenv("SCALAI_SETTINGS", raising=False)
    return trained


def test_a_run_of_another_process_is_repeated_to_the_bit(there, capsys):
    "Trained by a script that is gone, on a version that is no longer the newest, by a class that no module has."
    registry = Registry()
    run = registry.run(there[1][0])
    assert Table("rows").version == 1 and run.data["version"] == 0
    with pytest.raises(BadRequest, match="Gate of __main__ cannot be imported here"): run.predict(rows_of(2))
    again = run.repeat()
    assert again.data["version"] == 0 and again.history[-1]["val_loss"] == run.history[-1]["val_loss"]
    assert (again.path/"model.safetensors").read_bytes() == (run.path/"model.safetensors").read_bytes()
    assert f"the same weights as run {run.id}, to the bit" in capsys.readouterr().err
    other = registry.run(there[1][0])
    facts = json.loads((other.path/"run.json").read_text())
    facts["code"] |= {"commit": "ab12", "packages": facts["code"]["packages"] | {"torch": "0.1"}}
    moved = there[0]/"moved"
    shutil.copytree(other.path, moved)
    (moved/"run.json").write_text(json.dumps(facts))
    notes = Run.load(moved).repeat().params["notes"]
    assert any(n.startswith("commit was ab12") for n in notes) and any("torch 0.1 →" in n for n in notes), notes


def test_what_each_run_left_in_the_record(there):
    registry = Registry()
    at = registry.find_run(there[1][0])
    assert {
        "table": "rows",
        "version": "0",
        "folds": "['fold', 0]",
        "seed": "0",
        "epochs": "4",
        "batch_size": "128",
        "lr": "0.01",
    }.items() <= at.data.params.items()
    assert [m.step for m in registry.client.get_metric_history(at.info.run_id, "val_loss")] == [1, 2, 3, 4]
    assert at.inputs.dataset_inputs[0].dataset.name == "rows" and "mlflow.source.git.commit" in at.data.tags
    folder = registry.local(f"{at.info.artifact_uri}/run")
    assert sorted(f.name for f in folder.iterdir()) == [
        "contract.json",
        "environment.txt",
        "initial.safetensors",
        "model.py",
        "model.safetensors",
        "prep.json",
        "profile.arrow",
        "run.json",
    ]
    assert json.loads((folder/"contract.json").read_text())["columns"]["x"]["max"] == 99
    assert (
        "HIDDEN = 8" in (folder / "model.py").read_text()
        and f"torch=={torch.__version__.split('+')[0]}" in (folder / "environment.txt").read_text()
    )
    learnt = Table("rows").profile(fold=[1, 2, 3, 4], version=0)
    assert (
        registry.profile(there[1][0]) == learnt.select(["x", "c", "late"])
        and learnt.rows == registry.run(there[1][0]).data["rows"]
    )


def test_a_record_that_was_changed_is_neither_read_nor_run(there, monkeypatch):
    "Recorded source is code: whoever changes it in the store is found out before it runs."
    registry = Registry()
    run = registry.run(there[1][1])
    bomb, file = there[0]/"exploded", run.path/"run.json"
    before = file.read_text()
    facts = json.loads(before)
    facts["model"]["definition"] += f"\nimport os; os.mkdir({str(bomb)!r})\n"
    file.write_text(json.dumps(facts))
    with pytest.raises(BadRequest, match="run.json is not what was logged"): registry.run(there[1][1])
    file.write_text(before)
    for name in ("model.safetensors", "initial.safetensors", "prep.json"):
        back = flipped(run.path/name)
        for opening in (lambda: registry.run(there[1][1]), run.repeat):
            with pytest.raises(BadRequest, match=f"{name} is not what run.json says") as e: opening()
            assert len(str(e.value).splitlines()) == 2
        back()
    found = registry.resolve("late@2")
    for name in ("prep.json", "card.json"):
        back = flipped(found.path.parent/name)
        with pytest.raises(WorkFailed, match="not the one that was registered"):
            found.prep if name == "prep.json" else found.card
        back()
    assert registry.run(there[1][1]).id == there[1][1] and not bomb.exists()


def test_what_cannot_be_repeated_says_why(there, tmp_path):
    settings = Settings(root=tmp_path)
    write(rows_of(0), "rows", key="id", fold="id", settings=settings)
    prep = Prep.fit(Table("rows", settings).profile(fold=[1, 2, 3, 4]), target="late", exclude=["id", "fold"])
    how = dict(epochs=1, batch_size=128, settings=settings)
    run, framed = fit(MLP, "rows", prep, **how), fit(MLP, rows_of(0), prep, validation=None, **how)
    assert framed.repeat(rows_of(0), settings=settings).params["notes"][-1].endswith("to the bit")
    assert (framed.path/"profile.arrow").is_file()
    with pytest.raises(BadRequest, match="in memory, which it does not keep"): framed.repeat(settings=settings)
    with pytest.raises(BadRequest, match="their digest is"): framed.repeat(rows_of(1), settings=settings)
    (run.path/"initial.safetensors").rename(run.path/"hidden")
    with pytest.raises(BadRequest, match="initial.safetensors is not what"): run.repeat(settings=settings)
    (run.path/"hidden").rename(run.path/"initial.safetensors")
    write(rows_of(1), "rows", key="id", fold="id", mode="overwrite", settings=settings)
    Table("rows", settings).delta().vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(BadRequest, match="version 0 of rows were taken away by a vacuum") as e:
        run.repeat(settings=settings)
    assert len(str(e.value).splitlines()) == 2
    shutil.rmtree(Table("rows", settings).path)
    with pytest.raises(BadRequest, match="There is no table 'rows'"): run.repeat(settings=settings)
    write(rows_of(0), "rows", key="id", fold="id", settings=settings)
    with pytest.raises(BadRequest, match="it was made anew"): run.repeat(settings=settings)


def test_a_checkpoint_reads_tensors_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path/"exploded"))
    X = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    run = fit(MLP, (X, X[:, 0] > 0), epochs=2, batch_size=64, settings=Settings(root=tmp_path))
    step = checkpoint.latest(run.path/"checkpoints")
    for name in ("state.pkl", "optimizer.pt", "manifest.pkl"): (step/name).write_bytes(cloudpickle.dumps(Bomb()))
    assert run.best().metrics
    back = flipped(step/"state.safetensors")
    with pytest.raises(BadRequest, match="changed or cut short"): checkpoint.load(step)
    back()
    (step/"state.json").write_bytes(cloudpickle.dumps(Bomb()))
    with pytest.raises(BadRequest, match="changed or cut short"):
        fit(MLP, (X, X[:, 0] > 0), epochs=3, batch_size=64, resume=run, settings=Settings(root=tmp_path))
    assert not (tmp_path/"exploded").exists()


def test_rows_of_every_kind_get_the_same_answer(there, backend):
    "Eager and lazy; a lazy frame is not read before it is computed, there in processes that are not ours."
    registry, rows = Registry(), rows_of(3).drop(columns="late")
    found = registry.load("late@champion")
    run = with_network(registry.run(found.run_id))
    for model in (found, run):
        whole = model.predict(backend.frame(rows))
        assert whole.shape == (ROWS,) and whole.dtype == np.float32
        lazy = model.predict(backend.lazy(rows, 3))
        assert lazy.npartitions == 3 and hasattr(type(lazy), "dask")
        assert np.allclose(np.asarray(lazy.compute(scheduler="sync").to_numpy()), whole, atol=1e-6)
        one = {k: None if v != v else v for k, v in rows.iloc[0].to_dict().items()}
        assert np.allclose(model.predict(one), whole[:1], atol=1e-6) and np.allclose(
            model.predict([one, one]), whole[[0, 0]], atol=1e-6
        )
        with pytest.raises(BadRequest, match="The rows lack x, c"): model.predict(backend.lazy(rows[["id"]], 2))
    assert np.allclose(found.predict(rows), run.predict(rows), atol=1e-5)
    if backend.name == "pandas":
        assert np.allclose(
            found.predict(backend.lazy(rows, 2)).compute(scheduler="processes", num_workers=1), whole, atol=1e-5
        )


def test_mlflow_knows_what_a_version_takes(there):
    import mlflow.pyfunc
    from mlflow.models import Model
    folder = Registry().resolve("late").path.parent
    told = Model.load(str(folder/"MLmodel"))
    assert [(c.name, c.type.name) for c in told.signature.inputs] == [("x", "double"), ("c", "string")]
    example = told.load_input_example(str(folder))
    assert len(example) == 5 and list(example.columns) == ["x", "c"]
    assert np.allclose(
        mlflow.pyfunc.load_model(str(folder)).predict(example), Registry().load("late").predict(example)
    )


def test_the_models_verbs(there, capsys):
    def said(*words):
        with pytest.raises(SystemExit) as e: main(["models", *words, "--json"])
        return e.value.code, json.loads(capsys.readouterr().out)
    assert [(m["version"], m["aliases"]) for m in said("list")[1]["models"]] == [
        (2, ["challenger"]),
        (1, ["champion"]),
    ]
    shown = said("show", "late@challenger")[1]
    assert (
        shown["version"] == 2
        and shown["training"]["data"]["version"] == 0
        and shown["training"]["params"]["epochs"] == 5
    )
    code, found = said("compare", "late", "late@challenger")
    assert (
        code == 0
        and found["differs"]["epochs"] == [4, 5]
        and found["sizes"]["parameters trained"][0] > 0
        and found["recorded"]["latency_ms"] == [0.1, 1.1]
    )
    for m in found["metrics"].values():
        value, low, high = m["difference"]
        assert low <= value <= high and m["said"] == ("neither" if low <= 0 <= high else "gain" if low > 0 else "loss")
    assert found["rows"] == Table("rows").arrow(version=0, filter=[("fold", "==", 0)]).num_rows
    assert said("compare", "late@1", "late@2", "--on", "rows")[1]["rows"] == 2*ROWS
    code, error = said("compare", "late", "lates")
    assert code == 2 and error["error"]["message"] == "There is no model 'lates'."
    assert said("promote", "late", "2")[1]["version"] == 2 and said("show", "late")[1]["aliases"] == ["champion"]
    assert said("promote", "late", "2", "--challenger")[0] == 2
    assert said("rollback", "late")[1]["version"] == 1
    assert said("promote", "late", "2", "--challenger")[1]["alias"] == "challenger"


@pytest.mark.slow
def test_ranks_are_repeated_too(there, tmp_path):
    settings = Settings(root=tmp_path)
    write(rows_of(0), "rows", key="id", fold="id", settings=settings)
    prep = Prep.fit(Table("rows", settings).profile(fold=[1, 2, 3, 4]), target="late", exclude=["id", "fold"])
    run = fit(
        MLP, "rows", prep, epochs=2, batch_size=128, ranks=2, class_weight="balanced", early_stop=1, settings=settings
    )
    write(rows_of(1, ROWS), "rows", key="id", fold="id", settings=settings)
    again = Run.load(run.path).repeat(settings=settings)
    assert again.ranks == 2 and again.params["notes"][-1] == f"the same weights as run {run.id}, to the bit"


def test_a_log_that_was_cut_short_is_made_again(opened, monkeypatch):
    registry, run = Registry(), a_run()
    monkeypatch.setattr(Run, "save", lambda self, folder: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError): registry.log(run)
    monkeypatch.undo()
    monkeypatch.chdir(opened)
    at = registry.log(run)
    assert registry.run("ab12").id == "ab12" and registry.client.get_run(at).info.status == "FINISHED"


def test_why_each_version_serves_or_not(opened):
    registry = Registry()
    for n in (1, 2, 3):
        assert registry.register("late", onnx_file(opened/"m.onnx", n), a_run(f"r{n}")) == n
    registry.promote("late", 1, "the first")
    registry.refuse("late", 2, "AUC 0.02 lower on June")
    registry.promote("late", 3, "better on July")
    assert registry.promote("late", 3, "again").version == 3, "promoting the champion changes nothing"
    found = {m["version"]: m for m in registry.list("late")}
    assert found[2]["tags"] == {"outcome": "refused", "reason": "AUC 0.02 lower on June"}
    assert (
        found[3]["aliases"] == ["champion"]
        and found[1]["aliases"] == ["previous"]
        and found[3]["tags"]["reason"] == "better on July"
    )
    assert registry.rollback("late") == 1 and registry.champion("late").version == 1
    with pytest.raises(BadRequest, match="no version 9"): registry.promote("late", 9, "")
    with pytest.raises(BadRequest, match="no model 'never'"): registry.rollback("never")


def test_a_server_that_is_gone(workspace):
    with pytest.raises(Unreachable, match="cannot be opened"):
        Registry(Settings(root=workspace, tracking={"uri": "http://127.0.0.1:9"})).list()


def test_a_service_starts_by_its_pointer_where_the_registry_cannot_be_asked(tmp_path, monkeypatch):
    "Without MLflow in its image, with a tracking server that is away, or where it may not write."
    import builtins

    from scalai_nb.core.errors import BadRequest
    from scalai_nb.training.pointer import Pointer, pointer_path
    settings = Settings(root=tmp_path, tracking={"uri": "http://127.0.0.1:9"})
    real = builtins.__import__
    def without_mlflow(name, *args, **kwargs):
        if name.split(".")[0] == "mlflow": raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without_mlflow)
    with pytest.raises(ModuleNotFoundError): Registry(settings).pointer("late")  # no file either
    path = pointer_path(settings.home, "late")
    path.parent.mkdir(parents=True)
    path.write_text(Pointer("late", {}, {}).to_json())
    assert Registry(settings).pointer("late").name == "late"
    monkeypatch.undo()
    own = Settings(root=tmp_path)
    with pytest.raises(BadRequest): Registry(own).pointer("late")  # a registry that answers does not know it
