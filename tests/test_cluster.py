"""The main workflow on a Dask cluster of the user's; and a nanny that dies.

The cluster is a scheduler and two workers, as `dask scheduler` and `dask worker` start them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
from conftest import leaves, nobody_left, scalai

from scalai_nb.core.settings import Settings
from scalai_nb.loop.demo import workspace
from scalai_nb.training.fit import fit
from scalai_nb.training.models import MLP
from scalai_nb.training.run import Run

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    "Start processes of the `dask` command; whatever they are, they end with the module."
    home, started = tmp_path_factory.mktemp("dask"), []
    def start(*words):
        with open(home/"log", "a") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *map(str, words)],
                    cwd=home,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return psutil.Process(started[-1].pid)
    yield start, home
    family = [p for s in started for p in psutil.Process(s.pid).children(recursive=True) + [s]]
    for p in family: p.kill()
    for s in started: s.wait()
    psutil.wait_procs([p for p in family if isinstance(p, psutil.Process)], timeout=60)


@pytest.fixture(scope="module")
def served(dask):
    "A scheduler and two worker processes, each with its nanny; their client, and the nannies."
    from distributed import Client
    start, home = dask
    start("scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", home/"scheduler.json")
    nannies = [
        start(
            "worker",
            "--scheduler-file",
            home / "scheduler.json",
            "--host",
            "127.0.0.1",
            "--nthreads",
            1,
            "--no-dashboard",
            "--local-directory",
            home,
        )
        for _ in range(2)
    ]
    until = time.monotonic() + 120
    while not (home/"scheduler.json").exists(): assert time.sleep(.1) or time.monotonic() < until
    with Client(scheduler_file=str(home/"scheduler.json"), set_as_default=False, timeout=120) as client:
        client.wait_for_workers(2, timeout=120)
        yield client, nannies


def watch(dask_scheduler):
    "From now on the scheduler remembers which tasks it was given."
    from distributed.diagnostics.plugin import SchedulerPlugin
    class Seen(SchedulerPlugin):
        def __init__(self): self.keys = set()
        def transition(self, key, start, finish, *args, **kwargs): self.keys.add(str(key))
    dask_scheduler.add_plugin(Seen(), name="seen", idempotent=True)


def agents_left(client) -> dict:
    "By worker, the processes that it started and that still live."
    return client.run(
        lambda: [c.cmdline() for c in psutil.Process().children(recursive=True) if c.status() != "zombie"]
    )


ALONE = """
[[step]]
name = "prep"
notebook = "prep.ipynb"
parameters = { periods = "${ingest.train}" }

[[step]]
name = "train"
notebook = "train.ipynb"
parameters = { periods = "${ingest.train}", prep = "${prep.prep}", ranks = "${ranks}" }
"""


def whole(folder: Path, **env) -> dict:
    "The main workflow on two months, from the files of flights to the scores of the month that follows."
    workspace(folder)
    return ran(folder, "flights.toml", **env)


def as_far_as_the_model(folder: Path, **env) -> dict:
    "The same as far as its results do not hang on measured times, by which the served candidate is chosen."
    file = workspace(folder).root/"workflows"/"flights.toml"
    file.with_name("alone.toml").write_text(file.read_text().split('[[step]]\nname = "model"')[0] + ALONE)
    return ran(folder, "alone.toml", **env)


def ran(folder: Path, name: str, **env) -> dict:
    "What has to be equal wherever it was made, and how the steps ended."
    # months that are alike: none is trained for
    done = scalai("run", f"workflows/{name}", "-p", "months=2", "-p", "shuffle=7", "--json", cwd=folder, **env)
    assert done.code == 0, done.out[-2000:] + done.err[-3000:]
    from scalai_nb.data.table import Table
    settings = Settings.load(folder)
    learnt = [["scalai_period", "in", ["2013-01"]]]
    (run,) = (r for r in map(Run.load, settings.path("fits").iterdir()) if r.data["where"] == learnt)
    return {
        "steps": [s["name"].split("[")[0] for s in done.doc["steps"]],
        "states": {leaf["state"] for leaf in leaves(done.doc)},
        "scored": Table("scores", settings).rows if Table("scores", settings).exists else 0,
        "ranks": run.ranks,
        "must": {
            "profiles": {
                name: {k: p.digest for k, p in Table(name, settings).profiles(by="period").items()}
                for name in ("flights", "features")
            },
            "history": [{k: v for k, v in h.items() if "second" not in k} for h in run.history],
            "weights": {k: v.numpy().tobytes() for k, v in run.model.state_dict().items()},
        },
    }


def test_the_main_workflow_on_two_dask_workers_gives_what_it_gives_alone(served, tmp_path):
    client, _ = served
    client.run_on_scheduler(watch)
    there = whole(tmp_path/"there", SCALAI_CLUSTER__KIND="address", SCALAI_CLUSTER__ADDRESS=client.scheduler.address)
    keys = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins["seen"].keys))
    # the ranks' agents, and the join
    assert sum(k.startswith("agent-") for k in keys) >= 2 and not all(k.startswith("agent-") for k in keys)
    assert (
        there["steps"] == ["ingest", "join", "profile", "model", "month"]
        and there["states"] <= {"succeeded", "skipped"}
        and there["scored"] > 20_000
    )
    here = as_far_as_the_model(tmp_path/"here", SCALAI_CLUSTER__KIND="threads")
    # that one did without
    assert len(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins["seen"].keys))) == len(keys)
    assert there["ranks"] == here["ranks"] == 2 and here["states"] == {"succeeded"}
    for what, value in here["must"].items(): assert there["must"][what] == value, what
    assert list(agents_left(client).values()) == [[], []]
    nobody_left(tmp_path)


def mortal(folder: Path, step: int):
    "In the first life of rank 1 its worker's nanny dies in that step, as by the kernel's hand."
    class Mortal(MLP):
        def forward(self, x):
            self.step = getattr(self, "step", 0) + self.training
            if self.step == step and os.environ.get("RANK") == os.environ.get("TORCHELASTIC_RESTART_COUNT") == "1":
                nanny = next(p for p in psutil.Process().parents() if "-m dask worker" in " ".join(p.cmdline()))
                (folder/"killed").write_text(str(nanny.pid))
                os.kill(nanny.pid, signal.SIGKILL)
                time.sleep(60)  # worker, agent and rank follow it long before
            return super().forward(x)
    return Mortal


def test_a_killed_nanny_takes_its_rank_along_and_the_training_goes_on(served, dask, tmp_path):
    client, nannies = served
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4_000, 8)).astype("f4")
    how = dict(batch_size=256, ranks=2, epochs=2, checkpoint_every=4, settings=Settings(root=tmp_path), client=client)
    whole = fit(MLP, (X, X[:, 0] > 0), **how)
    step = int(np.random.default_rng(0).integers(5, 22))
    run = fit(mortal(tmp_path, step), (X, X[:, 0] > 0), **how)
    assert int((tmp_path/"killed").read_text()) in {n.pid for n in nannies}
    again, = (int(note.split()[-1]) for note in run.params["notes"] if note.startswith("resumed at step"))
    assert step - 1 - 4 <= again < step and run.history[-1]["step"] == whole.history[-1]["step"]
    assert {k: v.numpy().tobytes() for k, v in run.model.state_dict().items()} == {
        k: v.numpy().tobytes() for k, v in whole.model.state_dict().items()
    }
    assert list(agents_left(client).values()) == [[]]  # one worker is left, on which both ranks went on
    assert not list(run.path.glob("checkpoints/.*"))


@pytest.mark.parametrize("when", ["after the last step", "in the middle"])
def test_a_killed_scheduler_costs_no_finished_training(dask, tmp_path, monkeypatch, when):
    """What the ranks have done is kept.

    Without its workers, too, a training ends with what happened and how it goes on, and goes on without a cluster."""
    import dask as config
    from distributed import Client

    from scalai_nb.core import events
    from scalai_nb.core.errors import Unreachable
    from scalai_nb.training.launch import ProcessGroup
    start, _ = dask
    scheduler = start(
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        0,
        "--no-dashboard",
        "--scheduler-file",
        tmp_path / "scheduler.json",
    )
    workers = [
        start(
            "worker",
            "--scheduler-file",
            tmp_path / "scheduler.json",
            "--host",
            "127.0.0.1",
            "--nthreads",
            1,
            "--no-dashboard",
            "--local-directory",
            tmp_path,
        )
        for _ in range(2)
    ]
    until = time.monotonic() + 120
    while not (tmp_path/"scheduler.json").exists(): assert time.sleep(.1) or time.monotonic() < until
    monkeypatch.setitem(config.config.config["distributed"]["comm"]["timeouts"], "connect", "2s")
    X = np.random.default_rng(0).normal(size=(4_000, 8)).astype("float32")
    how, close = (
        dict(epochs=3, batch_size=256, checkpoint_every=2, ranks=2, settings=Settings(root=tmp_path)),
        ProcessGroup.close,
    )
    def kill(client):
        scheduler.kill()
        until = time.monotonic() + 90
        while client.status != "closed": assert time.sleep(.1) or time.monotonic() < until
    with Client(scheduler_file=str(tmp_path/"scheduler.json"), set_as_default=False, timeout=120) as client:
        client.wait_for_workers(2, timeout=120)
        client._timeout = 3  # seconds that it looks for its scheduler, before it closes itself
        if when == "after the last step":
            monkeypatch.setattr(ProcessGroup, "close", lambda group: (kill(client), close(group))[1])
            run = fit(MLP, (X, X[:, 0] > 0), client=client, **how)
            assert Run.load(run.path).history == run.history and len(run.history) == 3
        else:
            def all_killed(topic, **e):
                if not e.get("history"): return
                for p in (
                    scheduler,
                    *(c for w in workers if w.is_running() for c in (w, *w.children(recursive=True))),
                ):
                    if p.is_running(): p.kill()
            stop = events.subscribe(all_killed, "fit")
            try:
                with pytest.raises(Unreachable, match="scheduler is gone") as said:
                    fit(MLP, (X, X[:, 0] > 0), client=client, **how)
            finally:
                stop()
            assert "resume=" in said.value.hint
            folder, = Settings(root=tmp_path).path("fits").iterdir()
            run = fit(MLP, (X, X[:, 0] > 0), resume=folder, **how | {"ranks": 1})
            assert len(run.history) == 3 and any("resumed at step" in note for note in run.params["notes"])
