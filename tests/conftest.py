"""What all tests share: a workspace of their own, the real flights, the command, the demo, and one suite on two
backends."""

import io
import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pytest
from soak import rounds  # noqa: F401 (a fixture)

from scalai_nb.core.lock import locked

ROOT = Path(__file__).resolve().parents[1]
SCALAI = Path(sys.executable).with_name("scalai")
# a shell starts what runs in its background without it, and tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = [
    "test_learn",
    "test_demo",
    "test_apps",
    "test_dash_faults",
    "test_lab",
    "test_browser",
    "test_cluster",
    "test_compress",
    "test_sources",
    "test_encoder",
]


def pytest_collection_modifyitems(items):
    """A file's tests run in one process (`--dist loadfile`), so that what it prepares is prepared once; those that
    take longest begin first, so that two processes end together."""
    for item in items:
        if "rounds" in item.fixturenames: item.add_marker("soak")
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def until(what, within: float = 60):  # seconds
    "Wait for something, and give it."
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(.02)
    return found


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    "An empty workspace, which is also the working directory."
    (tmp_path/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALAI_SETTINGS", raising=False)
    return tmp_path


@pytest.fixture
def warm(monkeypatch):
    "One process that forks the kernels of all workflows that a test runs, which would start one each."
    from scalai_nb.jobs.kernel_pool import KernelPool
    with KernelPool(("deltalake", "pyarrow", "scalai_nb.core.delta_log")) as pool:
        pool.connect(dict(os.environ), borrow=False)
        assert pool._usable(dict(os.environ)), pool.refused
        monkeypatch.setenv("SCALAI_WARM", pool.ready["path"])
        yield


@pytest.fixture
def one_thread():
    "Torch on one thread, as a busy machine has no more."
    from scalai_nb.training import threads
    with threads.one_thread(): yield


@pytest.fixture(scope="session")
def _flights() -> pd.DataFrame:
    from scalai_nb.loop.flights import flights
    return flights().to_pandas()


@pytest.fixture
def flights(_flights) -> pd.DataFrame:
    "The 336,776 flights of 2013, a copy of one's own."
    return _flights.copy()


class Backend:
    "pandas or cuDF: makes the frames that a data test is about, eager or lazy."
    def __init__(self, name: str): self.name = name
    def __repr__(self): return self.name

    def frame(self, rows):  # pandas frame
        if self.name == "pandas": return rows
        from scalai_nb.core import device
        return device.cudf().DataFrame.from_arrow(pa.Table.from_pandas(rows, preserve_index=False))

    def lazy(self, rows, npartitions: int):
        import dask.dataframe as dd
        if self.name == "pandas": return dd.from_pandas(rows, npartitions=npartitions)
        from scalai_nb.core import device
        return device.dask_cudf().from_cudf(self.frame(rows), npartitions=npartitions)

    def in_force(self):
        "Tables and sources give frames of this backend."
        import dask
        return dask.config.set({"dataframe.backend": self.name})


@pytest.fixture(params=["pandas", "cudf"])
def backend(request) -> Backend:
    "Every data test that takes frames runs on both; without a GPU the second says why it did not."
    if request.param == "cudf":
        from scalai_nb.core import device
        if not device.available(): pytest.skip("no CUDA device with cuDF here: the GPU path is written, never run")
    return Backend(request.param)


class Done:
    "What a command printed and how it ended."
    def __init__(self, code, out, err, seconds): self.code, self.out, self.err, self.seconds = code, out, err, seconds

    @property
    def doc(self): return json.loads(self.out, parse_constant=lambda c: pytest.fail(f"{c} is not strict JSON"))

    @property
    def lines(self): return [x for x in self.err.splitlines() if not x.startswith("… ")]  # but what is under way


def scalai(*args, cwd=None, timeout=600, **env) -> Done:
    "Run the installed command as a person does."
    start = time.monotonic()
    done = subprocess.run([str(SCALAI), *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=timeout,
                          env={k: v for k, v in os.environ.items() if k != "SCALAI_SETTINGS"} | env)
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def succeeded(*args, cwd=None, timeout=900) -> dict:
    "Run a command that has to succeed; its JSON."
    done = scalai(*args, "--json", cwd=cwd, timeout=timeout)
    assert done.code == 0, done.out[-3000:] + done.err[-3000:]
    return done.doc


class Heard(io.StringIO):
    """What a command prints, without the lines of threads that an earlier test left (an alert whose receiver never
    answers, say)."""
    def __init__(self):
        super().__init__()
        self.others = {t.ident for t in threading.enumerate()} - {threading.get_ident()}

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() in self.others else super().write(text)


def here(*args) -> Done:
    "The same command in this process and its folder, for what a process of its own would not show better."
    from scalai_nb.cli.main import main
    start, out, err = time.monotonic(), Heard(), Heard()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end: main([str(a) for a in args])
    return Done(end.value.code, out.getvalue(), err.getvalue(), time.monotonic() - start)


def started(*args) -> subprocess.Popen:
    "The installed command, while it runs."
    return subprocess.Popen([str(SCALAI), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_over(folder: Path) -> list[str]:
    "Processes that still work in a folder, or name it: nobody may be left after a command."
    found = []
    for p in psutil.process_iter(["pid", "cmdline"]):
        try:
            if p.pid != os.getpid() and (
                p.cwd().startswith(str(folder)) or str(folder) in " ".join(p.info["cmdline"] or [])
            ):
                found.append(f"{p.pid} {p.info['cmdline']}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def nobody_left(folder: Path, within: float = 30):
    until = time.monotonic() + within
    while (found := left_over(folder)) and time.monotonic() < until: time.sleep(.2)
    assert not found, "\n".join(found)


def small_disk(workspace: Path, size: str = "4m") -> list[str]:
    """A command that runs another one where the workspace's state is on a small disk of its own, in a namespace of its
    own."""
    (workspace/".scalai").mkdir(exist_ok=True)
    command = [
        "unshare",
        "-m",
        "sh",
        "-ec",
        f'mount -t tmpfs -o size={size} none "$0/.scalai"; exec "$@"',
        str(workspace),
    ]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode: pytest.skip(f"no small disk can be mounted here: {tried.stderr.strip()}")
    return command


def leaves(run: dict) -> list[dict]:
    "The notebooks of a workflow's document."
    return [leaf for s in run["steps"] for leaf in leaves(s)] if run.get("steps") else [run]


def once(tmp_path_factory, name: str, make):
    "What one process of a run makes in a folder of its own, all of them look at."
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: home = home.parent
    with locked(home/f"{name}.lock"):
        kept = home/f"{name}.pickle"
        if not kept.exists():
            shutil.rmtree(home/name, ignore_errors=True)
            kept.write_bytes(pickle.dumps(make(home/name)))
        return pickle.loads(kept.read_bytes())


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """One demo of three months that are alike, made once for all tests that look at it; they may read it, not change
    it."""
    def make(home):
        done = scalai("demo", home/"flights", "--months", 3, "--shuffle", 7, "--json", timeout=1500)
        assert done.code == 0, done.out[-2000:] + done.err[-4000:]
        # to be copied from, while the demo is run again
        done.folder, done.copy = home/"flights", shutil.copytree(home/"flights", home/"copy")
        return done
    return once(tmp_path_factory, "demo", make)


@pytest.fixture(scope="session")
def two_months(tmp_path_factory):
    """One demo of two months that are alike, for the slow tests, and the ancestors of each training process that was
    seen meanwhile."""
    def make(home):
        begun, told, ranks = started("demo", home/"flights", "--months", 2, "--shuffle", 7), [], {}
        root, ended = psutil.Process(begun.pid), threading.Thread(target=lambda: told.extend(begun.communicate()))
        ended.start()
        while ended.is_alive():
            try:
                for p in root.children(recursive=True):
                    if "scalai_nb.training.agent" in " ".join(p.cmdline()):
                        ranks[p.pid] = [" ".join(a.cmdline()) for a in p.parents()]
            except (psutil.NoSuchProcess, psutil.AccessDenied): pass
            time.sleep(.05)
        assert begun.returncode == 0, "".join(told)[-4000:]
        nobody_left(home)
        done = Done(0, *told, None)
        done.ranks, done.folder, done.copy = ranks, home/"flights", home/"flights"
        return done
    return once(tmp_path_factory, "two-months", make)


def own_copy(made: Done, to: Path):  # Settings
    "A copy of a demo's workspace that a test may change."
    from scalai_nb.core.settings import Settings
    from scalai_nb.training.registry import Registry
    shutil.copytree(made.copy, to)
    settings = Settings.load(to)
    assert Registry(settings).champion("late").path.is_relative_to(to)
    return settings


def naming(old: Path, root: Path) -> list[str]:  # files, and table.column of databases
    "What in a workspace names another folder, as a path or as a URI."
    words, found = {str(old), old.as_uri().removeprefix("file://")}, []
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        if file.suffix in (".db-wal", ".db-shm"): continue  # read with their database
        if not file.read_bytes()[:16].startswith(b"SQLite format 3"):
            if any(w.encode() in file.read_bytes() for w in words): found.append(str(file.relative_to(root)))
            continue
        with closing(sqlite3.connect(file)) as db:
            for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
                for _, column, *_ in db.execute(f'pragma table_info("{table}")').fetchall():
                    if any(
                        db.execute(
                            f'select 1 from "{table}" where instr(cast("{column}" as text), ?) limit 1', (w,)
                        ).fetchone()
                        for w in words
                    ):
                        found.append(f"{file.relative_to(root)}: {table}.{column}")
    return found
