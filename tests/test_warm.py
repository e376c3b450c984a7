"""Kernels forked from a process that is kept beside a workspace: as a fresh start would be, this user's only, and gone
when they should be."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import nobody_left
from test_hostile import kept, none_sleep  # noqa: F401
from test_jobs import started, until_cell, write

from scalai_nb.core.settings import Settings
from scalai_nb.jobs import kernel_pool
from scalai_nb.jobs.engine import run
from scalai_nb.jobs.identity import identity, is_alive
from scalai_nb.jobs.record import Record

ASK = """import os, sys
from scalai_nb.jobs.result import result
import numpy as np
result(parent=os.getppid(), pid=os.getpid(), cwd=os.getcwd(), warm=sys.argv[0] == 'kernel',
       said=os.environ.get('SAID'), run=os.environ['SCALAI_RUN'], r=np.random.rand(),
       modules=sorted(set(sys.modules) & {'mailbox', 'wave'}))"""


@pytest.fixture
def space(workspace, kept):
    "A workspace that keeps one process."
    (workspace/"settings.ini").write_text("[jobs]\nwarm = 1\n")
    return workspace


def warmly(path: Path, tries: int = 5):
    "A run out of the kept process: on a busy machine the first ones may start cold meanwhile."
    for _ in range(tries):
        if (job := run(path)).results["warm"]: return job
    raise AssertionError(f"{path} never ran out of a kept process")


def room_of(space: Path) -> Path:
    "The folder of its one kept process, beside the workspace or, where that path is too long for a socket, elsewhere."
    return next(
        r
        for f in kernel_pool._folders(space / ".scalai")
        if f.is_dir()
        for r in f.iterdir()
        if (r / "home").exists() and (r / "home").read_text() == str(space / ".scalai")
    )


def servers(folder: Path) -> list[psutil.Process]:
    "The kept processes of a workspace; a fork of one has its command line, and its parent."
    found = []
    for p in psutil.process_iter(["cmdline"]):
        try:
            if (
                "--keep" in (p.info["cmdline"] or [])
                and str(folder) in " ".join(p.info["cmdline"])
                and "--keep" not in p.parent().cmdline()
            ):
                found.append(p)
        except (psutil.Error, AttributeError):
            continue
    return found


def test_the_next_run_is_forked_and_as_fresh_as_the_first(space, monkeypatch):
    path = write(space/"in.ipynb", "n = 1", ASK, "import wave")
    monkeypatch.setenv("SAID", "one")
    a = warmly(path)
    monkeypatch.setenv("SAID", "two")
    b = warmly(path)
    server, = servers(space)
    assert [(j.state, j.results["warm"], j.results["parent"], j.results["cwd"]) for j in (a, b)] == [
        ("succeeded", True, server.pid, str(space))
    ] * 2
    assert (a.results["said"], b.results["said"], a.results["run"], b.results["run"]) == ("one", "two", a.id, b.id)
    assert (
        a.results["r"] != b.results["r"] and a.results["pid"] != b.results["pid"] and b.results["modules"] == ["wave"]
    )
    assert oct(Path(server.cmdline()[-3]).stat().st_mode & 0o777) == "0o700"


def test_other_imports_and_another_environment_have_their_own_and_the_oldest_ends(space, monkeypatch):
    a = warmly(write(space/"a.ipynb", "n = 1", ASK))
    b = warmly(write(space/"b.ipynb", "n = 1", ASK, "import mailbox"))
    assert a.results["parent"] != b.results["parent"] and b.results["modules"] == ["mailbox"]
    until = time.monotonic() + 60
    while len(servers(space)) > 1 and time.monotonic() < until: time.sleep(.1)
    assert [p.pid for p in servers(space)] == [b.results["parent"]]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run(space/"b.ipynb").results["parent"] != b.results["parent"]


def test_zero_is_off_and_a_job_starts_none_of_its_own(space):
    write(space/"inner.ipynb", "n = 1", ASK)
    outer = write(
        space / "outer.ipynb",
        "n = 1",
        "from scalai_nb.jobs.engine import run\nfrom scalai_nb.jobs.result import"
        " result\nresult(inner=run('inner.ipynb').results)",
    )
    (space/"settings.ini").write_text("[jobs]\nwarm = 0\n")
    assert run(space/"inner.ipynb").results["warm"] is False and not servers(space)
    (space/"settings.ini").write_text("[jobs]\nwarm = 1\n")
    inner = run(outer).results["inner"]
    # from the one that its own kernel came from
    assert inner["warm"] is True and [p.pid for p in servers(space)] == [inner["parent"]]


def test_imports_that_start_a_thread_or_a_changed_source_fall_back(space, monkeypatch):
    lib = space/"lib"
    lib.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(lib), os.environ.get("PYTHONPATH")])))
    (lib / "restless.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    assert run(write(space/"a.ipynb", "n = 1", ASK, "import restless")).results["warm"] is False
    (lib/"edited.py").write_text("value = 1")
    path = write(space/"b.ipynb", "n = 1", ASK + "\nimport edited\nresult(value=edited.value)")
    a = warmly(path)
    (lib/"edited.py").write_text("value = 22")
    assert run(path).results["value"] == 22
    b = warmly(path)
    assert (a.results["value"], b.results["value"], b.results["warm"]) == (1, 22, True) and a.results[
        "parent"
    ] != b.results["parent"]


def test_a_killed_engine_takes_its_forked_kernel_along(space):
    write(
        space / "busy.ipynb",
        "n = 60",
        "import subprocess\nsubprocess.Popen(['sleep', '300'], start_new_session=True)\nprint('here', flush=True)",
        "sum(range(10**11))",
    )
    process, record = started("run", "busy.ipynb", cwd=space), Record(Settings.load())
    id = until_cell(record, 2)
    server, = servers(space)
    process.kill()
    process.wait()
    none_sleep(space)
    assert record.get(id).state == "lost" and server.is_running()
    assert run(space/"busy.ipynb", timeout=2).state == "timed_out" and servers(space) == [server]


def test_a_killed_server_is_a_kernel_that_died_and_the_next_run_has_another(space):
    write(
        space / "slow.ipynb",
        "seconds = 60",
        "print('about to sleep', flush=True)",
        "import time\nfor i in range(10*seconds): time.sleep(.1)",
    )
    process, record = started("run", "slow.ipynb", "--json", cwd=space), Record(Settings.load())
    until_cell(record, 2)
    servers(space)[0].kill()
    doc = json.loads(process.communicate(timeout=60)[0])
    assert (doc["state"], doc["error"]["cell"]) == ("kernel_died", 2)
    warmly(write(space/"in.ipynb", "n = 1", ASK))


def test_runs_at_once_share_one(space):
    write(space/"in.ipynb", "n = 1", ASK, "import time\ntime.sleep(1)")
    docs = [
        json.loads(p.communicate(timeout=120)[0])
        for p in [started("run", "in.ipynb", "--json", cwd=space) for _ in range(3)]
    ]
    assert [d["state"] for d in docs] == ["succeeded"]*3 and len(servers(space)) == 1
    assert {d["results"]["parent"] for d in docs if d["results"]["warm"]} == {servers(space)[0].pid}


def test_it_ends_when_idle_and_with_its_workspace(space, monkeypatch):
    import shutil
    path = write(space/"in.ipynb", "n = 1", ASK)
    monkeypatch.setattr(kernel_pool, "IDLE_TIMEOUT", 1.)
    first = warmly(path)
    def gone(who, within=60):
        until = time.monotonic() + within
        while is_alive(who) and time.monotonic() < until: time.sleep(.1)
        return not is_alive(who)
    server = identity(servers(space)[0].pid) if servers(space) else None
    assert first.results["warm"] and (server is None or gone(server))
    monkeypatch.setattr(kernel_pool, "IDLE_TIMEOUT", 900.)
    warmly(path)
    server = identity(servers(space)[0].pid)
    shutil.rmtree(space/".scalai")
    assert gone(server)


def test_a_folder_that_others_may_enter_is_not_used(space):
    path = write(space/"in.ipynb", "n = 1", ASK)
    warmly(path)
    room = room_of(space)
    kernel_pool.release(space/".scalai")
    nobody_left(space, 15)
    room.mkdir(mode=0o755)
    job = run(path)
    assert job.state == "succeeded" and not (room/"warm").exists()
    for other in (
        p
        for p in Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp"), f"scalai-{os.getuid()}").glob("*")
        if (p / "home").exists() and (p / "home").read_text() == str(space / ".scalai")
    ):
        assert oct(other.stat().st_mode & 0o777) == "0o700"


def reachable(python: str) -> bool:
    try: return subprocess.run([python, "-c", "pass"], user=65534, group=65534, capture_output=True).returncode == 0
    except OSError: return False


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else for a moment")
def test_another_user_is_refused(space):
    "Also where the folder would let him in."
    warmly(write(space/"in.ipynb", "n = 1", ASK))
    room = room_of(space)
    for folder in (room, *list(room.parents)[:6]):
        if folder != Path("/"): folder.chmod(folder.stat().st_mode | 0o055)
    (room/"warm").chmod(0o777)
    asked = (
        "import socket, sys\ns ="
        " socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.settimeout(5)\nprint(repr(s.recv(100)))"
    )
    python = next((p for p in (sys.executable, "/usr/bin/python3") if reachable(p)), None)
    if python is None: pytest.skip("this Python lies where nobody else may go, and the system has none")
    done = subprocess.run(
        [python, "-c", asked, str(room / "warm")], capture_output=True, text=True, user=65534, group=65534
    )
    assert done.stdout == "b''\n" or "ConnectionReset" in done.stderr, done
