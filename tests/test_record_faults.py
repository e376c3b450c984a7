"""The record when its database is gone, damaged, locked, full, read-only or silent: a run says so or leaves its end
where the next start finds it."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from conftest import SCALAI, scalai, small_disk, until
from servers import Postgres
from test_jobs import write
from test_jobs_faults import WAITS, held
from test_schedule import effects, made, quick  # noqa: F401 (a fixture)

from scalai_nb.core.errors import Unreachable
from scalai_nb.core.settings import Settings
from scalai_nb.jobs import database as module
from scalai_nb.jobs.database import connect
from scalai_nb.jobs.identity import identity, is_local
from scalai_nb.jobs.job_run import JobRun
from scalai_nb.jobs.record import Record
from scalai_nb.jobs.schedule_store import ScheduleStore
from scalai_nb.jobs.scheduler import Scheduler

# A run in a process that is not patient, so that a test does not wait for half a minute.
ALONE = (
    "import sys\nfrom scalai_nb.jobs import database\ndatabase.RETRY_TIMEOUT = .3\nfrom scalai_nb.cli.main import"
    " main\nmain(sys.argv[1:])"
)
FLOW = '[[step]]\nname = "first"\nnotebook = "job.ipynb"\n[[step]]\nname = "second"\nnotebook = "after.ipynb"\n'


def impatient(*args, cwd, **more) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", ALONE, *args],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def files(workspace: Path) -> list[Path]:
    return [workspace/".scalai"/f"scalai.db{end}" for end in ("", "-wal", "-shm")]


def vanish(workspace: Path):
    for f in files(workspace): f.unlink(missing_ok=True)


def replace(workspace: Path):
    vanish(workspace)
    sqlite3.connect(files(workspace)[0]).close()
    files(workspace)[0].touch()


def spoil(workspace: Path):
    "As a bad disk does it: what the file says is nonsense."
    for f in files(workspace)[1:]: f.unlink(missing_ok=True)
    files(workspace)[0].write_bytes(b"nonsense" * 4096)


def shorten(workspace: Path):
    for f in files(workspace)[1:]: f.unlink(missing_ok=True)
    files(workspace)[0].write_bytes(b"")


@contextmanager
def afterwards(workspace: Path, damage):
    damage(workspace)
    yield
    if damage is spoil: vanish(workspace)  # as the message tells to


def locked(workspace: Path): return held(workspace)


def asked(workspace: Path, *args) -> dict:
    "What a process that never saw the old database finds."
    done = scalai("runs", *args, "--json", cwd=workspace)
    assert done.code == 0, done.out
    return done.doc


def damaged_meanwhile(workspace: Path, what: str, damage) -> tuple[subprocess.Popen, str, str]:
    write(workspace/"job.ipynb", *WAITS)
    write(workspace/"after.ipynb", "n = 1")
    (workspace/"flow.toml").write_text(FLOW)
    process = impatient("run", what, "--json", cwd=workspace)
    until((workspace/"began").exists)
    with locked(workspace) if damage is locked else afterwards(workspace, damage):
        (workspace/"go").touch()
        out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process, out, err


ALL = pytest.mark.parametrize(
    "damage",
    [
        pytest.param(f, marks=[pytest.mark.slow] if f is not vanish else [], id=f.__name__)
        for f in (vanish, replace, spoil, shorten, locked)
    ],
)


@ALL
def test_a_run_whose_record_is_damaged_meanwhile_is_in_the_next_record(workspace, damage):
    """Never a good end that is nowhere:

    the next look finds how it ended, and where the damage could be seen, the run said so."""
    process, out, err = damaged_meanwhile(workspace, "job.ipynb", damage)
    doc = json.loads(out)
    assert (process.returncode, doc["state"]) == (0, "succeeded"), err
    if damage not in (spoil, shorten): assert "how the run ended is kept in" in err
    found, = asked(workspace)["runs"]
    assert (found["id"], found["state"]) == (doc["id"], "succeeded")
    whole = asked(workspace, doc["id"])
    assert (
        whole["results"] == dict(n=1)
        and [h["state"] for h in whole["history"]] == ["queued", "running", "succeeded"]
        and [t["cell"] for t in whole["timings"]] == [0, 1, 2]
    )
    assert list((workspace/".scalai/unrecorded").glob("*")) == []


@pytest.mark.slow
@ALL
def test_a_workflow_whose_record_is_damaged_meanwhile_fails_or_is_in_the_next_record(workspace, damage):
    process, out, err = damaged_meanwhile(workspace, "flow.toml", damage)
    doc, found = json.loads(out), {r["name"]: r["state"] for r in asked(workspace, "--steps")["runs"]}
    if damage in (spoil, shorten):
        assert (process.returncode, doc["state"], found) == (
            0,
            "succeeded",
            dict(first="succeeded", second="succeeded", flow="succeeded"),
        )
    else:
        assert process.returncode == 3 and doc["error"]["kind"] in ("Unreachable", "Damaged"), doc
        assert (found["first"], found["flow"]) == ("succeeded", "failed")


@pytest.mark.parametrize(
    "damage, code",
    [
        (spoil, 2),
        *(pytest.param(f, code, marks=pytest.mark.slow) for f, code in ((shorten, 0), (vanish, 0), (locked, 3))),
    ],
    ids=["spoil", "shorten", "vanish", "locked"],
)
def test_a_record_that_is_damaged_before_the_run(workspace, damage, code):
    write(workspace/"job.ipynb", "n = 1", "open('began', 'w').close()")
    scalai("runs", cwd=workspace)
    with locked(workspace) if damage is locked else afterwards(workspace, damage):
        process = impatient("run", "job.ipynb", cwd=workspace)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, (workspace/"began").exists()) == (code, code == 0), err
    if code: assert len(err.splitlines()) == 2 and "record" in err.lower()
    else: assert [r["state"] for r in asked(workspace)["runs"]] == ["succeeded"]


@pytest.mark.slow
def test_a_new_database_takes_over_what_lies_beside_the_notebooks(workspace):
    write(workspace/"job.ipynb", "n = 1", "if n == 2: raise ValueError(n)")
    write(workspace/"after.ipynb", "n = 1")
    (workspace/"flow.toml").write_text(FLOW)
    for args in (("job.ipynb",), ("job.ipynb", "-p", "n=2"), ("flow.toml",), ("flow.toml",)):
        scalai("run", *args, cwd=workspace)
    documents = lambda: [
        {k: v for k, v in asked(workspace, r["id"]).items() if k != "history"}
        for r in asked(workspace, "--steps")["runs"]
    ]
    before = documents()
    vanish(workspace)
    assert documents() == before and len(before) == 8 and [r["state"] for r in before].count("skipped") == 2


def confined(script: str, cwd: Path, size: str = "4m") -> subprocess.CompletedProcess:
    "Run a script where the workspace's state is on a small disk."
    return subprocess.run(
        [*small_disk(cwd, size), "sh", "-ec", script], cwd=cwd, capture_output=True, text=True, timeout=120
    )


FULL = """import os
def fill():
    with open('.scalai/rest', 'wb', buffering=0) as f:
        try:
            while f.write(b'x' * 4096): pass
        except OSError: pass
fill()"""


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_end(workspace):
    "Neither the record nor a file takes how it ended: the command fails and says so."
    write(workspace/"job.ipynb", "n = 1", FULL)
    (workspace/".scalai").mkdir()
    (workspace/"alone.py").write_text(ALONE)
    done = confined(f"{sys.executable} alone.py run job.ipynb --json > doc 2> said || echo $? > code", workspace)
    doc = json.loads((workspace/"doc").read_text())
    assert (done.returncode, (workspace / "code").read_text(), doc["state"]) == (0, "1\n", "failed"), (
        workspace / "said"
    ).read_text()
    assert doc["error"]["kind"] in ("NotRecorded", "DiskFull") and "Traceback" not in (workspace/"said").read_text()


@pytest.mark.slow
def test_a_disk_that_is_full_or_read_only_before_the_run(workspace):
    write(workspace/"job.ipynb", "n = 1", "open('began', 'w').close()")
    (workspace/".scalai").mkdir()
    (workspace/"alone.py").write_text(ALONE)
    run = f"{sys.executable} alone.py run job.ipynb > out 2> said || echo $? > code"
    confined(f"{SCALAI} runs > /dev/null\nhead -c 10000000 /dev/zero > .scalai/rest || true\n{run}", workspace)
    assert (
        (workspace / "code").read_text().strip() in "23"
        and len((workspace / "said").read_text().splitlines()) == 2
        and not (workspace / "began").exists()
    ), (workspace / "said").read_text()
    (workspace/"code").unlink()
    confined(f"{SCALAI} runs > /dev/null\nmount -o remount,ro .scalai\n{run}", workspace)
    assert (
        (workspace / "code").read_text().strip() in "23"
        and len((workspace / "said").read_text().splitlines()) == 2
        and not (workspace / "began").exists()
    ), (workspace / "said").read_text()


def test_what_was_kept_is_taken_back_once_by_many(workspace):
    record = Record(Settings.load())
    run = record.create(JobRun(name="kept", state="running", started=time.time()))
    run.state, run.seconds = "succeeded", 2.
    assert record._keep(run, {0: 1.5}) is None and record._mark(run.id) is None
    with ThreadPoolExecutor(8) as pool: list(pool.map(lambda _: Record(Settings.load()).runs(), range(8)))
    doc = record.document(record.get(run.id))
    assert (
        doc["state"] == "succeeded"
        and [h["state"] for h in doc["history"]] == ["running", "succeeded"]
        and doc["timings"] == [dict(cell=0, seconds=1.5)]
    )
    assert not list((workspace/".scalai/unrecorded").iterdir())


def test_a_scheduler_whose_database_is_damaged_ends_and_says_so(quick):
    table = ScheduleStore()
    table.put(made("s", parameters=dict(seconds=60)))
    table.trigger("s")
    ours = Scheduler(poll=.05, lease=2)
    threading.Thread(target=lambda: (until(lambda: effects(quick)), vanish(quick))).start()
    with pytest.raises(Unreachable, match="removed or replaced"): ours.run()
    (f, child), = ours.children.values()
    child.process.wait(10)
    assert child.kill_reason == "its lease could not be renewed"


# Two machines, two containers.

def test_another_container_s_process_is_never_taken_for_dead(quick, monkeypatch):
    "The same host name, the same process number: only its lease and its sign of life count."
    table, record = ScheduleStore(), Record()
    table.put(made("s"))
    table.trigger("s")
    theirs = f"{os.getpid()}:123:{'0'*8}-4026531836"
    f, = table.claim(table.clock(), f"{theirs}:abc", 1, [], 30)
    assert (f.host, is_local(theirs), is_local(identity())) == (socket.gethostname(), False, True)
    assert table.find_abandoned(table.clock(), "me", 30, {}) == []
    run = record.create(JobRun(name="there", state="running"))
    with record.db() as db: db.execute(module.RUNS.update().where(module.RUNS.c.id == run.id).values(process=theirs))
    assert record.get(run.id).state == "running"
    with record.db() as db:
        db.execute(module.RUNS.update().where(module.RUNS.c.id == run.id).values(beat=time.time() - 90))
    assert record.get(run.id).state == "lost"


CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--uts", "sh", "-c"]
TWO = """
import json, os, sys, time
from scalai_nb.jobs import worker
worker.Child.program = [sys.executable, "-S", "-E", "quick.py"]
from scalai_nb.jobs.identity import identity
from scalai_nb.jobs.scheduler import Scheduler
s = Scheduler(poll=.05, lease=20)
open(sys.argv[1], "w").write(f"{os.uname().nodename} {os.getpid()} {s.owner}")
while not os.path.exists("both"): time.sleep(.01)
s.run()
"""


@pytest.mark.slow
def test_two_schedulers_in_containers_of_one_name(quick):
    """Real process namespaces with one host name and equal process numbers:

    each start happens once, and neither takes the other's work."""
    probe = subprocess.run([*CONTAINER, "hostname box; hostname"], capture_output=True, text=True)
    if probe.stdout.strip() != "box": pytest.skip("this machine allows no process namespaces")
    table = ScheduleStore()
    for n in range(12):
        table.put(made(f"s{n}", parameters=dict(n=n, seconds=.5)))
        table.trigger(f"s{n}")
    both = [
        subprocess.Popen([*CONTAINER, f"hostname box; exec {sys.executable} -c '{TWO}' who{n}"], cwd=quick)
        for n in (1, 2)
    ]
    try:
        (name, pid, owner), (name2, pid2, owner2) = until(
            lambda: all(
                (quick / f"who{n}").exists() and len((quick / f"who{n}").read_text().split()) == 3 for n in (1, 2)
            )
            and [(quick / f"who{n}").read_text().split() for n in (1, 2)]
        )
        assert name == name2 == "box" and pid == pid2 and owner != owner2
        (quick/"both").touch()
        until(lambda: all(f.state == "succeeded" for f in table.firings()), 120)
    finally:
        for p in both:
            for c in psutil.Process(p.pid).children(recursive=True): c.kill()
            p.wait(30)
    assert sorted(p["n"] for p, _ in effects(quick)) == list(range(12)) and {f.attempt for f in table.firings()} == {1}


# A server that says nothing.

class Hush:
    "A proxy before a server that can stop forwarding, its connections open."
    def __init__(self, port: int):
        self.to, self.quiet, self.server = port, threading.Event(), socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try: a, _ = self.server.accept()
            except OSError: return
            b = socket.create_connection(("127.0.0.1", self.to))
            for x, y in ((a, b), (b, a)): threading.Thread(target=self.pass_on, args=(x, y), daemon=True).start()

    def pass_on(self, x, y):
        try:
            while data := x.recv(65536):
                while self.quiet.is_set(): time.sleep(.01)
                y.sendall(data)
        except OSError: pass
        for s in (x, y): s.close()

    def __enter__(self): return self
    def __exit__(self, *_): self.server.close()


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server:
        server.connect().close()
        yield server


def behind(postgres, proxy) -> str: return postgres.uri().replace(f":{postgres.port}/", f":{proxy.port}/")


@contextmanager
def frozen(postgres, whole: bool = True):
    """Processes that serve a connection are stopped, and where it is the `whole` server, also the one that would start
    new ones."""
    server = psutil.Process(postgres.process.pid)
    stopped = [p for p in server.children() if "127.0.0.1" in " ".join(p.cmdline())] + [server]*whole
    assert len(stopped) > whole
    for p in stopped: p.suspend()
    try: yield
    finally:
        for p in stopped:
            try: p.resume()
            except psutil.NoSuchProcess: pass


@contextmanager
def silent(proxy):
    proxy.quiet.set()
    try: yield
    finally: proxy.quiet.clear()


@pytest.mark.slow
def test_a_statement_to_a_silent_server_ends(postgres):
    with Hush(postgres.port) as proxy:
        engine = connect.__wrapped__(behind(postgres, proxy), 2.)
        with engine.begin() as db:
            assert db.exec_driver_sql("SHOW statement_timeout").scalar() == "2s"
            assert db.exec_driver_sql("SELECT count(*) FROM generate_series(1, 100000)").scalar() == 100_000
        with engine.connect() as db:
            proxy.quiet.set()
            with pytest.raises(sa.exc.OperationalError, match="no answer within 2 s"): db.exec_driver_sql("SELECT 1")
        proxy.quiet.clear()
        with engine.begin() as db: assert db.exec_driver_sql("SELECT 1").scalar() == 1  # on a new connection
        with pytest.raises(sa.exc.OperationalError, match="statement timeout"), engine.begin() as db:
            db.exec_driver_sql("SELECT pg_sleep(30)")
        engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("silence", ["proxy", "server", "backends"])
def test_a_silent_database_stops_a_scheduler_s_work_before_its_lease_is_over(quick, postgres, silence):
    "Where only the processes of its connections hang, it renews by a new connection, and its work goes on."
    with Hush(postgres.port) as proxy:
        settings = Settings(root=quick, jobs=dict(database=behind(postgres, proxy), lease=8))
        table = ScheduleStore(settings)
        with table.engine.begin() as db:
            for t in ("schedules", "firings"): db.exec_driver_sql(f"DELETE FROM {t}")
        table.put(made("s", parameters=dict(until="go")))
        table.trigger("s")
        ours = Scheduler(settings, poll=.1)
        thread = threading.Thread(target=ours.run, daemon=True)
        thread.start()
        try:
            until(lambda: effects(quick))
            (f, child), = ours.children.values()
            time.sleep(1.5)  # it renews
            with silent(proxy) if silence == "proxy" else frozen(postgres, silence == "server"):
                before = time.monotonic()
                until(
                    lambda: child.process.poll() is not None or silence == "backends" and ours.beaten > before + 1, 60
                )
                assert time.monotonic() - ours.beaten < ours.lease, "the lease was over"
            assert child.process.poll() == (None if silence == "backends" else -signal.SIGKILL)
            (quick/"go").touch()
            until(lambda: [f.state for f in ScheduleStore(settings).firings()] == ["succeeded"], 120)
        finally:
            for _ in range(3): ours.stop()
            thread.join(60)
        times = 1 if silence == "backends" else 2
        assert len(effects(quick)) == times and ScheduleStore(settings).firings()[0].attempt == times


@pytest.mark.slow
def test_tables_that_are_gone_from_postgresql_during_a_run(workspace, postgres, monkeypatch):
    monkeypatch.setenv("SCALAI_JOBS__DATABASE", postgres.uri())
    write(workspace/"job.ipynb", *WAITS)
    Record(Settings.load())
    process = impatient("run", "job.ipynb", "--json", cwd=workspace)
    until((workspace/"began").exists)
    with postgres.connect() as db: db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    (workspace/"go").touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "how the run ended is kept in" in err and "Traceback" not in err, err
    connect.cache_clear()
    assert Record(Settings.load()).get(json.loads(out)["id"]).state == "succeeded"


@pytest.mark.slow
def test_a_silent_postgresql_before_and_at_the_end_of_a_run(workspace, postgres, monkeypatch):
    with Hush(postgres.port) as proxy:
        monkeypatch.setenv("SCALAI_JOBS__DATABASE", behind(postgres, proxy))
        monkeypatch.setenv("SCALAI_JOBS__LEASE", "3")
        write(workspace/"job.ipynb", *WAITS)
        Record(Settings.load())
        process = impatient("run", "job.ipynb", "--json", cwd=workspace)
        until((workspace/"began").exists)
        proxy.quiet.set()
        (workspace/"go").touch()
        out, err = process.communicate(timeout=120)
        assert (process.returncode, json.loads(out)["state"]) == (
            0,
            "succeeded",
        ) and "how the run ended is kept in" in err, err
        (workspace/"began").unlink()
        refused = impatient("run", "job.ipynb", cwd=workspace)
        _, err = refused.communicate(timeout=120)
        assert refused.returncode == 3 and "does not answer" in err and not (workspace/"began").exists()
        proxy.quiet.clear()
        assert Record(Settings.load()).get(json.loads(out)["id"]).state == "succeeded"
