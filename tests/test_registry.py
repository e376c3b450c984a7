"The registry from several processes, with hostile files, and with a server that is not there."
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from scalai_nb.core.errors import BadRequest, ScalaiError, Unreachable, WorkFailed
from scalai_nb.core.settings import Settings
from scalai_nb.learn.fit import Run
from scalai_nb.learn.models import MLP
from scalai_nb.learn.registry import Registry


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    "MLflow takes seconds to make its tables; one empty database is enough."
    settings = Settings(root=tmp_path_factory.mktemp("empty"))
    assert Registry(settings).list() == []
    return settings.path("mlflow.db")


@pytest.fixture
def opened(workspace, empty):
    (workspace/".scalai").mkdir()
    shutil.copy(empty, workspace/".scalai")
    return workspace


def a_run(id="ab12", seed=0):
    torch.manual_seed(seed)
    return Run(id=id, model=MLP(4, hidden=(8,)).eval(), prep=None, target="late", loss="binary", history=[{"epoch": 1, "loss": .5}], metrics={"auc": .8})


def _registers(folder, n):
    os.chdir(folder)
    registry = Registry(Settings(root=Path(folder)))
    file = Path(folder)/f"{n}.onnx"
    file.write_bytes(b"graph %d" % n)
    return registry.register("late", file, a_run(f"run{n}", n))


def test_two_processes_open_a_new_workspace_at_once(workspace):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        versions = pool.starmap(_registers, [(str(workspace), 1), (str(workspace), 2)])
    assert sorted(versions) == [1, 2]
    assert {Registry().run(m["run"]).id for m in Registry().list("late")} == {"run1", "run2"}
    assert sorted(p.name for p in workspace.iterdir()) == [".scalai", "1.onnx", "2.onnx", "settings.ini"], "nothing may lie outside the workspace's state"


class Bomb:
    def __reduce__(self): return os.mkdir, (os.environ["BOMB"],)


def test_nothing_is_unpickled(opened, monkeypatch):
    "Pickles planted among a model's files lie there unopened; one in the place of the weights is refused."
    monkeypatch.setenv("BOMB", str(opened/"exploded"))
    registry = Registry()
    (opened/"a.onnx").write_bytes(b"graph")
    v = registry.register("late", opened/"a.onnx", a_run())
    folder = registry.version("late", v).path.parent
    for name in ("model.pkl", "data.pkl", "python_model.pkl", "MLmodel"): (folder/name).write_bytes(pickle.dumps(Bomb()))
    assert registry.resolve("late@1").version == 1
    run = folder.parents[1]/"run"
    assert registry.run("ab12").id == "ab12"
    (run/"model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ScalaiError): registry.run("ab12")
    (folder/"model.onnx").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WorkFailed, match="not the one that was registered"): registry.resolve("late@1")
    assert not (opened/"exploded").exists()


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
        (opened/"m.onnx").write_bytes(b"graph %d" % n)
        assert registry.register("late", opened/"m.onnx", a_run(f"r{n}")) == n
    registry.promote("late", 1, "the first")
    registry.keep("late", 2, "AUC 0.02 lower on June")
    registry.promote("late", 3, "better on July")
    assert registry.promote("late", 3, "again").version == 3, "promoting the champion changes nothing"
    found = {m["version"]: m for m in registry.list("late")}
    assert found[2]["tags"] == {"outcome": "refused", "reason": "AUC 0.02 lower on June"}
    assert found[3]["aliases"] == ["champion"] and found[1]["aliases"] == ["previous"] and found[3]["tags"]["reason"] == "better on July"
    assert registry.rollback("late") == 1 and registry.champion("late").version == 1
    with pytest.raises(BadRequest, match="no version 9"): registry.promote("late", 9, "")
    with pytest.raises(BadRequest, match="no model 'never'"): registry.rollback("never")


def test_a_server_that_is_gone(workspace):
    with pytest.raises(Unreachable, match="cannot be opened"): Registry(Settings(root=workspace, tracking={"uri": "http://127.0.0.1:9"})).list()
