"Searches under faults: trials fail, workers die, callers are killed or interrupted; one seed gives the same trials."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import optuna
import psutil
import pytest
from conftest import left_over, scalai

from scalai_nb.core import events
from scalai_nb.core.cluster import cluster
from scalai_nb.core.errors import BadRequest, WorkFailed
from scalai_nb.core.settings import Settings
from scalai_nb.training.models import MLP
from scalai_nb.training.registry import Registry
from scalai_nb.training.search import search
from scalai_nb.training.search_log import SearchLog
from scalai_nb.training.search_run import SearchRun
from scalai_nb.training.search_space import choice, integer, log
from scalai_nb.training.study import Search

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    "A cluster of one worker process: what a search does is then the same each time."
    with cluster(Settings(root=tmp_path_factory.mktemp("one")), kind="processes", workers=1) as client: yield client


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    "One workspace for all that do not mind: MLflow makes its tables once."
    return Settings(root=tmp_path_factory.mktemp("searches"))


@pytest.fixture(scope="module")
def xy():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1_000, 6)).astype(np.float32)
    return X, X[:, 0] + X[:, 1] > 0


def small(features, width=4, depth=1): return MLP(features, (width,)*depth)


def told(found): return [(r["state"], r["value"], r["params"], r["epochs"]) for r in found.rows()]


class Touchy(MLP):
    "Cannot take a width of 7, which it says when it is first used in another process."
    def forward(self, x):
        if self.layers[0].out_features == 7 and os.getpid() != CALLER:
            raise ArithmeticError(f"seven is not for me, {os.getpid()}")
        return super().forward(x)


CALLER = os.getpid()


def touchy(features, width=4):
    if width == 5: raise ValueError("five neither")
    return Touchy(features, (width,))


def test_a_trial_that_raises_is_a_failed_trial(one, settings, xy):
    "In the network's making, in the training, by its loss: each has its reason, and the others go on."
    space = {"width": choice(4, 5, 7, 8), "lr": choice(.01, 1e30)}
    grid = lambda seed: optuna.samplers.GridSampler({"width": [4, 5, 7, 8], "lr": [.01, 1e30]}, seed=0)
    heard = []
    stop = events.subscribe(lambda topic, **e: heard.append(e), "search")
    found = search(
        touchy,
        xy,
        space=space,
        sampler=grid,
        trials=8,
        epochs=2,
        batch_size=256,
        pruner="none",
        client=one,
        settings=settings,
    )
    stop()
    rows = {(r["params"]["width"], r["params"]["lr"]): r for r in found.rows()}
    assert len(rows) == 8
    assert {k: r["state"] for k, r in rows.items()} == {
        (w, lr): "done" if w in (4, 8) and lr == 0.01 else "failed" for w in (4, 5, 7, 8) for lr in (0.01, 1e30)
    }
    assert rows[5, .01]["reason"] == "ValueError: five neither"
    assert rows[7, 0.01]["reason"].startswith("ArithmeticError: seven is not for me, ") and not rows[7, 0.01][
        "reason"
    ].endswith(str(CALLER))
    assert "loss became" in rows[4, 1e30]["reason"]
    assert found.best.model.layers[0].out_features in (4, 8)
    kept = {p.name for p in settings.path("fits").iterdir()}
    assert kept == {r["run"] for r in rows.values() if r["state"] == "done"}  # what came to nothing leaves nothing
    assert {"searching", "done"} == {e["state"] for e in heard} and {r["state"] for r in heard[-1]["rows"]} == {
        "done",
        "failed",
    }
    registry = Registry(settings)
    runs = registry.client.search_runs([registry.experiment], "tags.`scalai.state` = 'failed'")
    assert (
        len(runs) == 6
        and {r.info.status for r in runs} == {"FAILED"}
        and "ValueError: five neither" in {r.data.tags["scalai.reason"] for r in runs}
    )


@pytest.mark.slow
def test_all_trials_fail(one, settings, xy):
    with pytest.raises(
        WorkFailed,
        match=(
            r"None of 3 trials ended well; 3 failed with: ArithmeticError: seven is not for me,"
            r" \d+\nSearch.open\('y-\w+'\).trials has all reasons."
        ),
    ):
        search(
            touchy,
            xy,
            space={"width": choice(7), "lr": log(1e-3, 1e-2)},
            trials=3,
            epochs=1,
            batch_size=256,
            client=one,
            settings=settings,
        )
    assert list(Search.open(settings=settings).trials["state"]) == ["failed"]*3
    assert (
        "failed" in str(Search.open(settings=settings)) and "<svg" not in Search.open(settings=settings)._repr_html_()
    )
    with pytest.raises(BadRequest, match="No trial of y-.* is done yet"): Search.open(settings=settings).best


class Slow(MLP):
    "Takes its time, on the one thread that Dask gives its worker."
    def forward(self, x):
        import torch
        if self.training:
            assert torch.get_num_threads() == 1
            time.sleep(.04)
        return super().forward(x)


def slow(features, width=4): return Slow(features, (width,))


HOW = dict(space={"lr": log(1e-3, 1.), "width": integer(2, 8)}, trials=5, epochs=6, batch_size=256)


def hunt(folder: Path, xy, **more):
    "The search that is killed: on a cluster of its own, of one worker."
    return search(slow, xy, settings=Settings(root=folder, cluster={"workers": 1}), **HOW | more)


def begun(folder: Path) -> subprocess.Popen:
    "It, in a process of its own."
    code = (
        "import sys, numpy as np, test_search as t; x = np.load('x.npz'); from pathlib import Path\nif __name__ =="
        " '__main__': t.hunt(Path.cwd(), (x['X'], x['y']))"
    )
    (folder/"hunt.py").write_text(code)
    return subprocess.Popen(
        [sys.executable, "hunt.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])},
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process, folder: Path, ready, seconds=500):
    "Wait until the study says so, as whoever looks on sees it."
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        assert process.poll() is None, process.stderr.read()
        if (folder/".scalai/searches/studies.db").exists():
            try: rows = Search.open(settings=Settings(root=folder)).rows()
            except BadRequest: rows = []
            if ready(rows): return rows
        time.sleep(.05)
    raise AssertionError("nothing happened")


def working(rows): return [r["trial"] for r in rows if r["state"] == "running" and r["epochs"] >= 1]


@pytest.mark.slow
def test_a_killed_search_ends_as_an_unbroken_one(one, tmp_path, xy):
    calm = search(slow, xy, client=one, settings=Settings(root=tmp_path/"calm"), **HOW)
    folder = tmp_path/"torn"
    folder.mkdir()
    np.savez(folder/"x.npz", X=xy[0], y=xy[1])
    process = begun(folder)
    until(process, folder, working)
    with pytest.raises(BadRequest, match="under way in another process"): hunt(folder, xy)
    before = until(process, folder, lambda rows: len(working(rows)) == 1 and len(rows) > 1)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL and gone(folder)
    done = hunt(folder, xy)
    assert told(done) == told(calm) and done.name == calm.name
    assert done.best.predict(xy[0]).tobytes() == calm.best.predict(xy[0]).tobytes()
    kept = {r["trial"]: r["seconds"] for r in before if r["seconds"]}
    assert kept and kept == {n: r["seconds"] for n, r in enumerate(done.rows()) if n in kept}  # not trained again
    registry = Registry(Settings(root=folder))
    runs = registry.client.search_runs([registry.experiment])
    assert len(runs) == 6 and {r.info.status for r in runs} <= {"FINISHED", "KILLED"}


class Killed(BaseException): "As a SIGKILL at that statement."


@pytest.mark.parametrize("at", ["before anything is written", "before the study has it"])
def test_a_trial_that_was_to_be_pruned_is_pruned_by_the_next_call(one, tmp_path, xy, monkeypatch, at):
    """Killed after its last report, or after MLflow had its end:

    no epoch more is trained than by an unbroken search, and MLflow says what the study says."""
    how = dict(space={"lr": log(1e-4, 1.), "width": integer(2, 8)}, trials=6, epochs=3, batch_size=256, client=one)
    calm = search(small, xy, settings=Settings(root=tmp_path/"calm"), **how)
    assert "pruned" in {state for state, *_ in told(calm)}
    end, write, torn = SearchRun.end, SearchLog.write, Settings(root=tmp_path/"torn")
    def killed_at_once(self, number, state, *args, **more):
        if state == "pruned": raise Killed
        return end(self, number, state, *args, **more)
    def killed_after(self, number, going, state, reason):
        write(self, number, going, state, reason)
        if state == "pruned": raise Killed
    with monkeypatch.context() as m:
        (
            m.setattr(SearchRun, "end", killed_at_once)
            if at.startswith("before anything")
            else m.setattr(SearchLog, "write", killed_after)
        )
        with pytest.raises(Killed): search(small, xy, settings=torn, **how)
    assert not agents() and told(search(small, xy, settings=torn, **how)) == told(calm)
    registry = Registry(torn)
    runs = registry.client.search_runs([registry.experiment])
    assert sorted(r.info.status for r in runs) == sorted(
        ["FINISHED", *({"done": "FINISHED", "pruned": "KILLED"}[state] for state, *_ in told(calm))]
    )


def test_no_search_runs_in_mlflow_when_none_does(one, settings, xy):
    "Of a killed search the next one says so; one that was killed after its last trial is finished by the next call."
    from scalai_nb.core.lock import claim
    registry, how = Registry(settings), dict(
        space={"lr": log(1e-3, 1.0)}, trials=1, epochs=1, batch_size=256, client=one, settings=settings
    )
    dead, alive = (
        registry.client.create_run(
            registry.experiment, tags={"scalai.search": name, "scalai.role": "search"}
        ).info.run_id
        for name in ("dead", "alive")
    )
    held = claim(settings.path("searches", "alive.lock"))
    found = search(small, xy, name="mine", **how)
    held.close()
    status = lambda at: registry.client.get_run(at).info.status
    mine = registry.client.search_runs(
        [registry.experiment], "tags.`scalai.search` = 'mine' and tags.`scalai.role` = 'search'"
    )[0].info.run_id
    assert (status(dead), status(alive), status(mine)) == ("KILLED", "RUNNING", "FINISHED")
    registry.client.update_run(mine, "RUNNING")
    found.study.set_user_attr("closed", "")  # as a kill after the last trial leaves both
    search(small, xy, name="mine", **how)
    assert status(mine) == "FINISHED"


def gone(folder: Path, seconds=90):
    over = time.monotonic() + seconds
    while left_over(folder) and time.monotonic() < over: time.sleep(.2)
    return not left_over(folder)


@pytest.mark.slow
def test_a_worker_dies_in_the_middle_of_a_trial(settings, xy):
    "Its trial is tried again on another worker, from its checkpoint; the other trial does not notice."
    heard, killed = [], []
    with cluster(settings, kind="processes", workers=2) as two:
        def listen(topic, rows, **e):
            heard.append({r["trial"]: dict(r) for r in rows})
            if not killed and sum(r["state"] == "running" and r["epochs"] >= 2 for r in rows) == 2:
                killed.append(two.run(os.getpid, workers=[list(two.scheduler_info(n_workers=-1)["workers"])[0]]))
                os.kill(next(iter(killed[0].values())), signal.SIGKILL)
        stop = events.subscribe(listen, "search")
        found = search(slow, xy, client=two, settings=settings, pruner="none", **HOW)
        stop()
        assert not agents()
    assert killed and [r["state"] for r in found.rows()] == ["done"]*5 and all(r["epochs"] == 6 for r in found.rows())
    assert any("is gone" in r["reason"] for rows in heard for r in rows.values())
    assert all([h["epoch"] for h in found.run(n).history] == list(range(1, 7)) for n in range(5))


def test_an_interrupt_and_later_calls(one, settings, xy):
    """What was interrupted waits, and goes on first; then trials are added.

    With a space that is a function, and hyperband."""
    def space(trial):
        depth = trial.suggest_int("depth", 1, 2)
        return {
            "depth": depth,
            "width": trial.suggest_int("width", 2, 8) if depth == 1 else 3,
            "lr": trial.suggest_float("lr", 1e-3, 1.0, log=True),
        }
    how = dict(
        space=space, epochs=4, batch_size=256, pruner="hyperband", metric="val_auc", client=one, settings=settings
    )
    def press(topic, rows, **e):
        if len(rows) == 2 and working(rows): signal.raise_signal(signal.SIGINT)
    stop = events.subscribe(press, "search")
    with pytest.raises(KeyboardInterrupt): search(small, xy, trials=3, **how)
    stop()
    assert not agents()
    before = Search.open(settings=settings).rows()
    # nobody works on it, and it says so
    assert [r["state"] for r in before][1] == "waiting" and before[1]["epochs"] >= 1
    found = search(small, xy, trials=6, **how)
    rows = found.rows()
    assert (
        len(rows) == 6
        and (rows[0], rows[1]["params"]) == (before[0], before[1]["params"])
        and {r["state"] for r in rows} <= {"done", "pruned"}
    )
    assert found.best.metrics["val_auc"] == max(r["value"] for r in rows if r["state"] == "done")
    assert all(
        set(r["params"]) == {"depth", "width", "lr"} and (r["params"]["width"] == 3 or r["params"]["depth"] == 1)
        for r in rows
    )
    assert found.resume().rows() == rows  # there was nothing to do
    text = str(found)
    assert found._repr_html_().count("<polyline") == 6 and "What matters" in text and len(text.splitlines()) == 9


def agents():
    "The processes of trials that live now."
    return [
        p
        for p in psutil.Process().children(recursive=True)
        if p.status() != psutil.STATUS_ZOMBIE and "launch import agent" in " ".join(p.cmdline())
    ]


@pytest.mark.slow
def test_the_job(workspace):
    "Searches flights on a small budget."
    from scalai_nb.data.write import write
    from scalai_nb.loop.flights import month_rows
    rows = month_rows(1).slice(0, 4_000).to_pandas().dropna(subset="arr_delay")
    rows["late"], rows["id"], rows["period"] = rows.arr_delay >= 15, rows.index.astype(str), "2013-01"
    write(
        rows[["id", "carrier", "dest", "distance", "sched_dep_time", "dep_delay", "late", "period"]],
        "features",
        key="id",
        fold="id",
        period="period",
    )
    (workspace/"models").mkdir(exist_ok=True)
    (workspace/"models"/"late.toml").write_text(
        'table = "features"\ntarget = "late"\nignore = ["id", "period"]\n[train]\nvalidation = ["fold", 0]\n'
    )
    job = Path(__file__).parents[1]/"workflows/search.ipynb"
    done = scalai("run", job, "-p", "trials=4", "-p", "epochs=2", "--json", cwd=workspace)
    assert done.code == 0, done.out + done.err
    told = done.doc["results"]
    assert told["trials"] == 4 and told["val_auc"] > .8 and set(told["parameters"]) == {"lr", "width", "dropout"}
    assert (
        "<polyline" in Path(done.doc["output"]).read_text()
        and Registry().run(told["run_id"]).metrics["val_auc"] == told["val_auc"]
    )
    assert Search.open(told["search"]).best.id == Registry().run(told["run_id"]).id and left_over(workspace) == []
