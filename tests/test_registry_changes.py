"Changes of the registry are whole: killed around every call, raced by processes, on a file and on MLflow's server."

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from servers import free_port
from test_registry import a_run, onnx_file

from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.training.registry import Registry
from scalai_nb.training.registry_lock import TURN, RegistryLock
from scalai_nb.training.version_store import INTENT


class Dying:
    "MLflow's client, whose process is killed before or after its n-th call, or the first of a name."
    def __init__(self, client, at: int | str, after: bool):
        self.client, self.at, self.after, self.done = client, at, after, 0

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.done += 1
            if self.at in (self.done, name) and not self.after: os._exit(9)
            try: return getattr(self.client, name)(*args, **kwargs)
            finally:  # also where it is refused, which may be expected
                if self.at in (self.done, name): os._exit(9)
        return call


def killed(settings: Settings, change, at: int | str, after: bool) -> bool:  # False: it ended before its n-th call
    "Make a change in a process of its own that is killed at one call."
    import mlflow  # noqa: F401 (once, for all children)
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9), code
        return code == 9
    try:
        registry = Registry(settings)
        registry.experiment
        registry.client = Dying(registry.client, at, after)
        change(registry)
        os._exit(0)
    except BaseException as e:
        print(repr(e), file=sys.stderr)
        os._exit(1)


def seen(registry: Registry) -> dict:
    "What everybody sees of the model, and what MLflow itself holds."
    found = {m["version"]: m for m in registry.list("late")}
    outcomes = {n: m["tags"].get("outcome") for n, m in found.items()}
    return {"aliases": {a: n for n, m in found.items() for a in m["aliases"]}, "outcomes": outcomes}


def sound(registry: Registry) -> dict:
    "Aliases and tags agree, and no intent is left."
    state = seen(registry)
    aliases, outcomes = state["aliases"], state["outcomes"]
    assert aliases["champion"] != aliases.get("previous"), state
    assert outcomes[aliases["champion"]] == "promoted", state
    assert aliases.get("challenger") not in (aliases["champion"], aliases.get("previous")), state
    if "challenger" in aliases: assert outcomes[aliases["challenger"]] is None, state
    return state


def raw(registry: Registry) -> dict[str, int]:
    model = registry.client.get_registered_model("late")
    assert INTENT not in model.tags
    return {a: int(v) for a, v in model.aliases.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "The second of three versions serves, the first is the one before, the third is the challenger."
    root = tmp_path_factory.mktemp("made")
    registry = Registry(Settings(root=root))
    for n in (1, 2, 3): registry.register("late", onnx_file(root/f"{n}.onnx", n), a_run(f"r{n}"))
    for n in (1, 2): registry.promote("late", n, f"better: {n}")
    assert raw(registry) == {"champion": 2, "previous": 1, "challenger": 3}
    return root


@pytest.fixture
def three(made, workspace) -> Registry:
    "A copy of it."
    shutil.copytree(made, workspace, dirs_exist_ok=True)
    return Registry()


CHANGES = {  # what is done, the aliases after it, the outcomes of the three versions
    "promote": (
        lambda r: r.promote("late", 3, "best"),
        {"champion": 3, "previous": 2},
        ("promoted", "promoted", "promoted"),
    ),
    "rollback": (
        lambda r: r.rollback("late", "worse"),
        {"champion": 1, "previous": 2, "challenger": 3},
        ("promoted", "retired", None),
    ),
    "keep": (
        lambda r: r.refuse("late", 3, "no better"),
        {"champion": 2, "previous": 1},
        ("promoted", "promoted", "refused"),
    ),
    "challenge": (lambda r: r.challenge("late", 1), {"champion": 2, "previous": 1, "challenger": 1}, None),
}


def copied(source: Path, target: Path):
    "A database over another that is in use, and has a log of its own: what a copy of its file would leave in force."
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new: old.backup(new)


def repeated_at(three: Registry, name: str, points) -> int:
    """Kill a change at some of its calls:

    what is seen is the state before or after, and repeating ends in the state after."""
    change, aliases, outcomes = CHANGES[name]
    outcomes = outcomes and dict(enumerate(outcomes, 1))
    store, kept, before, times = three.settings.path("mlflow.db"), three.settings.root/"kept.db", seen(three), 0
    copied(store, kept)
    for at, after in points:
        copied(kept, store)
        assert seen(three) == before
        if not killed(three.settings, change, at, after): break
        now = sound(three) if outcomes else seen(three)
        assert now in (before, {"aliases": aliases, "outcomes": outcomes or before["outcomes"]}), (at, after, now)
        change(three)
        assert raw(three) == aliases == seen(three)["aliases"], (at, after)
        if outcomes: assert sound(three)["outcomes"] == outcomes, (at, after)
        times += 1
    return times


def test_a_promotion_killed_between_its_aliases_is_finished_by_the_next_writer(three):
    "A few of the kill points, in a process of its own each; all of them in the slow form."
    points = [
        ("set_registered_model_tag", False),
        ("set_registered_model_tag", True),
        ("set_registered_model_alias", True),
    ]
    assert repeated_at(three, "promote", points) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CHANGES])
def test_killed_at_every_statement_and_repeated(three, name, rounds):
    every = [(n, after) for n in range(1, 40) for after in (False, True)]
    step = 1 if rounds(1, soak=len(every)) > 1 else 3
    done = repeated_at(three, name, every[::step])
    assert done >= (12 if step == 1 else 4)
    rounds.done = done
    rounds.note(lost=0)


@pytest.mark.slow
def test_a_registration_killed_at_every_statement_leaves_one_version_and_its_challenger(three, rounds):
    root, store, kept, before = (
        three.settings.root,
        three.settings.path("mlflow.db"),
        three.settings.root / "kept.db",
        seen(three),
    )
    copied(store, kept)
    file, run, done = onnx_file(root/"4.onnx", 4), a_run("r4"), 0
    every = [(n, after) for n in range(1, 60) for after in (False, True)]
    for at, after in every[::1 if rounds(1, soak=len(every)) > 1 else 5]:
        copied(kept, store)
        assert seen(three) == before
        if not killed(three.settings, lambda r: r.register("late", file, run), at, after): break
        sound(three)
        assert three.register("late", file, run) == 4
        assert raw(three) == {"champion": 2, "previous": 1, "challenger": 4}, (at, after)
        assert len(three.list("late")) == 4, (at, after)
        assert three.version("late", 4).predict({"x": 2}) == [8]
        done += 1
    assert done >= 4
    rounds.done = done
    rounds.note(lost=0)


def test_a_challenger_is_set_until_it_is_decided_upon(three):
    root = three.settings.root
    assert three.register("late", onnx_file(root/"3.onnx", 3), a_run("r3")) == 3 and raw(three)["challenger"] == 3
    three.refuse("late", 3, "worse")
    three.register("late", onnx_file(root/"3.onnx", 3), a_run("r3"))  # refused already
    assert "challenger" not in raw(three)
    assert three.register("late", onnx_file(root/"4.onnx", 4), a_run("r4")) == 4 and raw(three)["challenger"] == 4
    with pytest.raises(BadRequest, match="cannot name a model"):
        three.register(f"{TURN}late.1", root/"4.onnx", a_run("r5"))


def test_a_rollback_that_is_repeated_brings_no_retired_version_back(three):
    assert three.rollback("late", "worse") == three.rollback("late", "worse") == 1
    assert raw(three) == {"champion": 1, "previous": 2, "challenger": 3} and sound(three)["outcomes"][2] == "retired"
    assert three.rollback("late", "the first got worse", version=2) == 2 and raw(three)["previous"] == 1
    assert sound(three)["outcomes"] == {1: "retired", 2: "promoted", 3: None}


def test_an_intent_about_a_version_that_is_gone_is_undone(three):
    "Killed after the intent was written; then somebody deleted the version that it promotes."
    assert killed(three.settings, CHANGES["promote"][0], "set_registered_model_tag", True)
    assert seen(three)["aliases"]["champion"] == 3
    three.client.delete_model_version("late", "3")
    three.promote("late", 1, "what is left")
    assert raw(three) == {"champion": 1, "previous": 2}


def races(uri: str, root: str, number: int, start, done):
    "A process that promotes one version, each time both are told to."
    os.chdir(root)
    registry = Registry(Settings(root=Path(root), tracking=dict(uri=uri)))
    while start.get():
        try: done.put(registry.promote("late", number, f"round of {number}").version)
        except BaseException as e: done.put(repr(e))


@contextmanager
def racers(settings: Settings, numbers):
    context = multiprocessing.get_context("spawn")
    start, done = [context.Queue() for _ in numbers], context.Queue()
    work = lambda n, q: context.Process(target=races, args=(settings.tracking.uri, str(settings.root), n, q, done))
    team = [work(n, q) for n, q in zip(numbers, start)]
    for p in team: p.start()
    try: yield lambda: ([q.put(True) for q in start], [done.get(timeout=120) for _ in numbers])[1]
    finally:
        for q in start: q.put(False)
        for p in team: p.join(30)


def raced(registry: Registry, times: int):
    "Two promotions at once are one after the other: the loser of the race is the version before."
    with racers(registry.settings, (2, 3)) as race:
        for _ in range(times):
            registry.promote("late", 1, "start")
            assert sorted(race()) == [2, 3]
            aliases = raw(registry)
            assert {aliases["champion"], aliases["previous"]} == {2, 3} and "challenger" not in aliases, aliases
            sound(registry)


@pytest.mark.slow
def test_two_processes_promote_at_once(three, rounds):
    raced(three, rounds(8, soak=200))
    rounds.note(lost=0)


@pytest.fixture
def server(tmp_path):
    "MLflow's own server."
    port, log = free_port(), open(tmp_path/"server.log", "w")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
               "--artifacts-destination", str(tmp_path/"server-artifacts")]
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=quiet)
    import httpx
    try:
        end = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200: break
            except httpx.HTTPError: pass
            assert process.poll() is None and time.monotonic() < end, (tmp_path/"server.log").read_text()[-2000:]
            time.sleep(.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.mark.slow
def test_hosts_that_share_a_server_take_turns(server, workspace, rounds, monkeypatch):
    "Nobody shares a lock file: raced, killed in its turn, and stopped for longer than the lease."
    registry = Registry(Settings(root=workspace, tracking=dict(uri=server)))
    for n in (1, 2, 3): registry.register("late", onnx_file(workspace/f"{n}.onnx", n), a_run(f"r{n}"))
    registry.promote("late", 1, "first")
    raced(registry, rounds(3, soak=50))
    assert [m["name"] for m in registry.list()] == ["late"]*3
    assert len(RegistryLock(registry.client, "late").turns()) == 1

    monkeypatch.setattr(RegistryLock.__init__, "__defaults__", (2.,))  # seconds of the lease
    registry.promote("late", 1, "start")
    before = seen(registry)["aliases"]
    for at, after in [(n, a) for n in range(3, 40) for a in (False, True)][::1 if rounds.done > 3 else 9]:
        if not killed(registry.settings, lambda r: r.promote("late", 2, "best"), at, after): break
        assert seen(registry)["aliases"] in (before, {"champion": 2, "previous": before["champion"]})
        registry.promote("late", 2, "best")
        assert raw(registry) == {"champion": 2, "previous": 1}
        registry.promote("late", 1, "start")
        before = seen(registry)["aliases"]

    with pytest.raises(Exception, match="no sign of life from this process"), RegistryLock(
        registry.client, "late"
    ) as turn:
        turn.over.set()  # as a process that is stopped: it shows no sign of life
        time.sleep(2.5)
        other = threading.Thread(target=registry.promote, args=("late", 3, "meanwhile"))
        other.start()
        other.join(30)
        assert raw(registry)["champion"] == 3
        turn.check()
    rounds.note(lost=0)
