"""Where a run's notebook goes: refused before anything starts, whole at every moment, and what the record names is
there."""
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from conftest import here, nobody_left, scalai, until
from test_jobs import mill, started, until_cell, write

from scalai_nb.core.settings import Settings
from scalai_nb.jobs.engine import run
from scalai_nb.jobs.parameters import load_notebook
from scalai_nb.jobs.record import Record

WORK = ("n = 1", "open('began', 'w').close()\nprint('first')", "import time\nfor i in range(600): time.sleep(.1)",
        "print('never')")


@pytest.fixture
def job(workspace) -> Path: return write(workspace/"in.ipynb", "n = 1", "print('here')")


def texts(path) -> str:
    return "".join("".join(o.get("text", "")) for c in load_notebook(path)["cells"] for o in c.get("outputs", ()))


def no_place(workspace: Path) -> dict[str, str]:
    "What is no place for a notebook, and the word that says why."
    os.mkfifo(workspace/"pipe")
    socket.socket(socket.AF_UNIX).bind(str(workspace/"sock"))
    (workspace/"locked.ipynb").write_text("{}")
    (workspace/"locked.ipynb").chmod(0o444)
    (workspace/"loop").symlink_to("loop2")
    (workspace/"loop2").symlink_to("loop")
    (workspace/"linked.ini").symlink_to("settings.ini")
    os.link(workspace/"settings.ini", workspace/"hard.ini")
    os.link(workspace/"in.ipynb", workspace/"same.ipynb")
    (workspace/"folder").mkdir()
    found = {"pipe": "FIFO", "sock": "socket", "locked.ipynb": "read-only", "loop": "links",
             "linked.ini": "own settings", "settings.ini": "own settings", "hard.ini": "own settings",
             "same.ipynb": "source itself", "folder": "folder", "new/": "folder",
             "nowhere/x.ipynb": "Nothing can be written", ".scalai/scalai.db": "own state",
             ".scalai/scalai.db-wal": "own state", ".scalai/runs/x.ipynb": "own state",
             "file://" + str(workspace/"settings.ini"): "own settings", "warp://x/y.ipynb": "no file system"}
    try: os.mknod(workspace/"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError: return found
    return found | {"null": "device"}


def test_what_is_no_place_for_a_notebook_is_refused_before_anything_starts(job, workspace):
    scalai("runs", cwd=workspace)
    for place, why in no_place(workspace).items():
        before = {p: (p.lstat().st_mode, p.lstat().st_ino, p.lstat().st_mtime_ns) for p in workspace.iterdir()
                  if p.name != ".scalai"}
        done = here("run", "in.ipynb", "-o", place)
        assert (done.code, done.out, len(done.lines)) == (2, "", 2), (place, done.err)
        assert why in done.err.replace("Too many levels of symbolic links", "links"), (place, done.err)
        assert before == {p: (p.lstat().st_mode, p.lstat().st_ino, p.lstat().st_mtime_ns) for p in workspace.iterdir()
                          if p.name != ".scalai"}, place
    assert Record(Settings.load()).runs() == [] and not list((workspace/".scalai/runs").glob("*"))


def test_a_file_of_somebody_else_stays_theirs(job, workspace):
    if os.getuid(): pytest.skip("only root can make a file of somebody else")
    (workspace/"theirs.ipynb").write_text("{}")
    (workspace/"theirs.ipynb").chmod(0o664)
    os.chown(workspace/"theirs.ipynb", 12345, 23456)
    assert run(job, output=workspace/"theirs.ipynb").ok
    found = (workspace/"theirs.ipynb").stat()
    assert (found.st_uid, found.st_gid,
            found.st_mode & 0o7777) == (12345, 23456, 0o664) and texts(workspace/"theirs.ipynb") == "here\n"


def test_links_and_modes(job, workspace):
    "A symbolic link is written through; the mode stays; other names of the same file keep what they had."
    (workspace/"real").mkdir()
    (workspace/"real/out.ipynb").write_text("{}")
    (workspace/"real/out.ipynb").chmod(0o640)
    (workspace/"link.ipynb").symlink_to("real/out.ipynb")
    os.link(workspace/"real/out.ipynb", workspace/"other.ipynb")
    assert run(job, output=workspace/"link.ipynb").output == str(workspace/"link.ipynb")
    assert (workspace/"link.ipynb").is_symlink() and texts(workspace/"real/out.ipynb") == "here\n"
    assert (workspace/"real/out.ipynb").stat().st_mode & 0o777 == 0o640
    assert (workspace/"other.ipynb").read_text() == "{}"
    (workspace/"dangling.ipynb").symlink_to("real/new.ipynb")
    assert run(job, output=workspace/"dangling.ipynb").ok and texts(workspace/"real/new.ipynb") == "here\n"
    assert sorted(p.name for p in (workspace/"real").iterdir()) == ["new.ipynb", "out.ipynb"]
    mill("in.ipynb", "link.ipynb", "-p", "n", "2")
    assert (workspace/"link.ipynb").is_symlink()
    assert load_notebook(workspace/"real/out.ipynb")["metadata"]["papermill"]["parameters"] == dict(n=2)


def test_after_a_kill_the_output_is_there_and_is_what_the_record_names(workspace):
    write(workspace/"in.ipynb", *WORK)
    process, record = started("run", "in.ipynb", "-o", "out.ipynb", cwd=workspace), Record(Settings.load())
    id = until_cell(record, 2)
    until(lambda: (workspace/"out.ipynb").exists() and "first" in texts(workspace/"out.ipynb"))
    process.kill()
    process.wait()
    nobody_left(workspace)
    gone = record.get(id)
    assert (gone.state, gone.output) == ("lost", str(workspace/"out.ipynb"))
    nbformat.validate(nb := nbformat.read(gone.output, as_version=4))
    assert nb.metadata.scalai["run"] == id
    assert sorted(p.name for p in workspace.iterdir()
                  if p.name.endswith((".tmp", ".ipynb"))) == ["in.ipynb", "out.ipynb"]


@pytest.mark.slow
def test_a_folder_that_vanishes_during_the_run_is_there_at_the_end(workspace):
    (workspace/"out").mkdir()
    path = write(workspace/"in.ipynb", "n = 1", "import shutil, time\nshutil.rmtree('out')\ntime.sleep(2.5)",
                 "print('here')")
    assert run(path, output=workspace/"out/x.ipynb").ok and texts(workspace/"out/x.ipynb") == "here\n"


def test_standard_output(job, workspace):
    done = scalai("run", "in.ipynb", "-o", "-", "-p", "n=2", cwd=workspace)
    assert done.code == 0 and json.loads(done.out)["metadata"]["scalai"]["state"] == "succeeded" and "here" in done.out
    assert "succeeded" in done.err
    nbformat.validate(nbformat.reads(done.out, 4))
    both = scalai("run", "in.ipynb", "-o", "-", "--json", cwd=workspace)
    assert "cells" in both.doc and json.loads(both.lines[-1])["state"] == "succeeded"
    wrong = scalai("run", "in.ipynb", "-o", "-", "-p", "m=2", "--json", cwd=workspace)
    assert (wrong.code, wrong.out, json.loads(wrong.err)["error"]["kind"]) == (2, "", "BadRequest")
    write(workspace/"bad.ipynb", "n = 1", "1/0")
    failed = scalai("run", "bad.ipynb", "-o", "-", cwd=workspace)
    assert failed.code == 1 and failed.doc["metadata"]["scalai"]["state"] == "failed"
    assert "ZeroDivisionError" in failed.err
    assert not (workspace/"-").exists()


@pytest.mark.slow
def test_two_documents_never_share_standard_output_with_a_large_cell(workspace, monkeypatch):
    "Links to outputs beside the notebook lead from the working directory."
    monkeypatch.setenv("SCALAI_JOBS__OUTPUT_LIMIT", "1000")
    write(workspace/"in.ipynb", "n = 1", "print('x'*5000)")
    done = scalai("run", "in.ipynb", "-o", "-", cwd=workspace)
    link = done.doc["cells"][1]["outputs"][0]["data"]["text/html"].split('href="')[1].split('"')[0]
    assert (workspace/link).read_text() == "x"*5000 + "\n"


class Store(BaseHTTPRequestHandler):
    "A store that takes what is put, unless it is told to refuse or to wait."
    held, refuses, waits = {}, False, None
    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.waits: self.waits.wait(60)
        if not self.refuses: self.held.setdefault(self.path, []).append(body)
        self.send_response(403 if self.refuses else 201)
        self.end_headers()
    def log_message(self, *_): pass


@pytest.fixture
def store():
    Store.held, Store.refuses, Store.waits = {}, False, None
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_holds_the_notebook_from_the_start(workspace, store):
    path = write(workspace/"in.ipynb", "n = 1", "print('here')")
    assert run(path, output=f"{store}/out.ipynb").output == f"{store}/out.ipynb"
    first, *_, last = [nbformat.reads(b.decode(), 4) for b in Store.held["/out.ipynb"]]
    assert (first.metadata.scalai["state"], last.metadata.scalai["state"],
            last.cells[1].outputs[0].text) == ("running", "succeeded", "here\n")


def test_a_url_that_takes_nothing_is_found_before_the_kernel_starts(workspace, store):
    write(workspace/"in.ipynb", "n = 1", "open('began', 'w').close()")
    Store.refuses = True
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for url in (f"{store}/out.ipynb", f"http://127.0.0.1:{nobody.getsockname()[1]}/out.ipynb"):
            done = here("run", "in.ipynb", "-o", url, "--json")
            assert (done.code, done.doc["state"], done.doc["error"]["kind"]) == (1, "failed", "OSError")
            assert f"{url} could not be written" in done.doc["error"]["message"]
            assert Record(Settings.load()).get("last").state == "failed" and load_notebook(done.doc["output"])
    assert not (workspace/"began").exists()


@pytest.mark.slow
def test_a_slow_store_holds_up_no_message(workspace, store, monkeypatch):
    from scalai_nb.jobs import output
    monkeypatch.setattr(output, "REMOTE", .2)
    path = write(
        workspace/"in.ipynb", "n = 1",
        "import time\nfor i in range(30):\n    print(i, flush=True)\n    time.sleep(.1)\nopen('done', 'w').close()"
    )
    over = threading.Event()
    def slow():
        until(lambda: Store.held)  # the first version
        Store.waits = over
        until((workspace/"done").exists)
        over.set()
    threading.Thread(target=slow).start()
    job = run(path, output=f"{store}/out.ipynb")
    assert job.ok and nbformat.reads(Store.held["/out.ipynb"][-1].decode(), 4).metadata.scalai["state"] == "succeeded"


@pytest.mark.slow
@pytest.mark.parametrize("every, inside", [(0, False), (1, True)])
def test_papermill_s_autosave_is_kept_to(workspace, every, inside):
    """Within a cell the notebook is written every so many seconds, or not at all once its beginning was written;
    between cells always."""
    write(workspace/"in.ipynb", "n = 1",
          "import time\nfor i in range(60):\n    print('said', i, flush=True)\n    time.sleep(.1)", "time.sleep(2)")
    seen, over = {}, threading.Event()
    def look():
        while not over.is_set():
            if Path("out.ipynb").exists():
                cell = load_notebook("out.ipynb")["cells"][1]
                seen[cell["metadata"]["papermill"]["status"]] = len("".join(
                                                                        cell["outputs"][0]["text"]
                                                                    ).splitlines()) if cell["outputs"] else 0
            time.sleep(.05)
    reader = threading.Thread(target=look)
    reader.start()
    try: assert mill("in.ipynb", "out.ipynb", "--autosave-cell-every", every).exit_code == 0
    finally:
        over.set()
        reader.join()
    assert seen["completed"] == 60 and (seen["running"] > 30) == inside, seen


def test_papermill_may_write_to_no_file(job, workspace):
    "A device, and a FIFO, stay what they are."
    os.mkfifo(workspace/"pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((workspace/"pipe").read_text()))
    reader.start()
    done = mill("in.ipynb", "pipe")
    reader.join(30)
    assert done.exit_code == 0 and json.loads(got[0])["cells"] and stat.S_ISFIFO((workspace/"pipe").stat().st_mode)
    refused = mill("in.ipynb", "settings.ini")
    assert refused.exit_code == 1 and "own settings" in str(refused.exception)
    assert (workspace/"settings.ini").read_text().startswith("[workspace]")


SLOW = ("n = 1", "print('a', flush=True)",
        "import time\nfor i in range(8):\n    print(i, flush=True)\n    time.sleep(.05)", "open('last', 'w').close()",
        "print('z')")


def consistent(folder: Path) -> str:
    "The record, the run's own log and the output tell one story; its state."
    record = Record(Settings.load(folder))
    runs, out = record.runs(), folder/"out.ipynb"
    if not runs:
        assert not out.exists()
        return "never began"
    run, = runs
    if run.output:
        nbformat.validate(nb := nbformat.read(run.output, as_version=4))
        assert nb.metadata.scalai["run"] == run.id
        states = [c.metadata.papermill["status"] for c in nb.cells]
        assert states == sorted(states, key=["completed", "failed", "running", "pending"].index)
        if run.ok:
            assert nb.metadata.scalai["state"] == "succeeded" and set(states) == {"completed"}
            assert "z" in texts(run.output)
        if run.output == str(out) and nb.metadata.scalai["state"] == "succeeded": assert (folder/"last").exists()
    if out.exists(): nbformat.validate(nbformat.read(out, as_version=4))
    assert run.state in ("succeeded", "lost") and record.events(run.id)[-1]["state"] == run.state
    assert [p.name for p in folder.iterdir() if p.name.endswith(".tmp")] == []
    return run.state


@pytest.mark.slow
def test_a_runner_killed_at_any_moment_leaves_output_and_record_consistent(tmp_path, rounds):
    "The moments cover all of a run: the length of an unbroken one is measured first."
    def folder(name):
        (made := tmp_path/name).mkdir()
        (made/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
        write(made/"in.ipynb", *SLOW)
        return made
    began = time.monotonic()
    assert scalai("run", "in.ipynb", "-o", "out.ipynb",
                  cwd=(whole := folder("whole"))).code == 0 and consistent(whole) == "succeeded"
    length, ends = time.monotonic() - began, []
    for n, rng in enumerate(rounds.seeds(8, soak=200)):
        process = started("run", "in.ipynb", "-o", "out.ipynb", cwd=(place := folder(f"kill-{n}")))
        try: process.communicate(timeout=rng.uniform(.1*length, 1.1*length))
        except subprocess.TimeoutExpired: process.send_signal(signal.SIGKILL)
        process.communicate()
        nobody_left(place)
        ends.append(consistent(place))
    rounds.note(**{state.replace(" ", "_"): ends.count(state) for state in ("succeeded", "lost", "never began")},
                inconsistent=0)
    assert "lost" in ends
