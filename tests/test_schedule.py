"Schedules and the processes that run them: clocks that change, schedulers that die, and each start once."
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pyarrow as pa
import pytest
import sqlalchemy as sa
from conftest import here, nobody_left, scalai, until
from hypothesis import given
from hypothesis import settings as tuned
from hypothesis import strategies as st
from test_alerts import Ear
from test_jobs import started, write

from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.jobs import worker
from scalai_nb.jobs.firing_queue import FIRINGS
from scalai_nb.jobs.identity import identity
from scalai_nb.jobs.record import Record
from scalai_nb.jobs.schedule import Schedule, schedule
from scalai_nb.jobs.schedule_store import ScheduleStore
from scalai_nb.jobs.scheduler import Scheduler

# A job of a few milliseconds in the place of a notebook: what the scheduler starts is a process that reads what to do
# and says how it went.
QUICK = """
import ctypes, json, os, sys, time
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
given = json.load(sys.stdin)
p = given["parameters"]
with open("effects", "a") as f: f.write(json.dumps([p, os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
time.sleep(p.get("seconds", 0))
while "until" in p and not os.path.exists(p["until"]): time.sleep(.01)
state = p.get("state", "succeeded")
why = "" if state == "succeeded" else "it was told to"
print("scalai-dispatch " + json.dumps(dict(run=None, state=state, why=why)))
"""


@pytest.fixture
def quick(workspace, monkeypatch):
    (workspace/"quick.py").write_text(QUICK)
    monkeypatch.setattr(worker.Child, "program", [sys.executable, "-S", "-E", str(workspace/"quick.py")])
    return workspace


def effects(folder: Path) -> list:
    return [json.loads(line)
            for line in (folder/"effects").read_text().splitlines()] if (folder/"effects").exists() else []


def made(name, **given) -> Schedule:
    timed = {"cron", "every", "at", "on_table", "on_file"} & set(given)
    return schedule(dict(name=name, job="quick.ipynb") | ({} if timed else dict(cron="0 2 * * *")) | given)


class Clock:
    "A database's clock that a test moves."
    def __init__(self, monkeypatch, at: str):
        self.t = datetime.fromisoformat(at).timestamp()
        monkeypatch.setattr(ScheduleStore, "clock", lambda table: self.t)

    def to(self, at: str): self.t = datetime.fromisoformat(at).timestamp()


def turns(*schedulers, n: int = 3000) -> None:
    "Turn the loops until nobody has a child."
    for _ in range(n):
        started = [s.run_once()[0] for s in schedulers]
        if not any(started) and not any(s.children for s in schedulers): return
        for s in schedulers: s.sleep(.02)
    raise AssertionError("still running")


# --- when

ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu",
         "Africa/Casablanca", "UTC"]


@tuned(max_examples=60, deadline=None)
@given(st.sampled_from(ZONES), st.sets(st.integers(0, 59), min_size=1, max_size=3),
       st.sets(st.integers(0, 23), min_size=1, max_size=3), st.integers(0, 500_000))
def test_due_times_increase_and_are_what_the_wall_clock_says(zone, minutes, hours, start):
    what = made("s", cron=f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *", zone=zone)
    after, tz = 1_400_000_000 + 1000.*start, ZoneInfo(zone)  # 2014 to 2030
    last, times = after, what.times(after)
    for _ in range(12):
        t = next(times)
        assert t > last
        wall, before = datetime.fromtimestamp(t, tz), datetime.fromtimestamp(t - 60, tz)
        gap = wall.utcoffset() > before.utcoffset()  # the clocks went forward at this very moment
        assert gap or wall.minute in minutes and wall.hour in hours
        assert not wall.fold or gap  # of two, the first
        # none is left out: each wall time between the two is due, or is not there
        day = datetime.fromtimestamp(last, tz).replace(tzinfo=None)
        for h in hours:
            for m in minutes:
                for days in (0, 1):
                    w = (day + timedelta(days=days)).replace(hour=h, minute=m, second=0, microsecond=0, tzinfo=tz)
                    there = w.astimezone(UTC).astimezone(tz)
                    if there == w and there.replace(tzinfo=None) == w.replace(tzinfo=None):
                        assert not last < w.timestamp() < t
        last = t


@pytest.mark.parametrize("zone", ZONES)
def test_each_day_of_a_year_runs_once(zone):
    for hour in (0, 2, 3):
        times, tz = made("s", cron=f"30 {hour} * * *",
                         zone=zone).times(datetime(2017, 1, 1, tzinfo=ZoneInfo(zone)).timestamp()), ZoneInfo(zone)
        days = [datetime.fromtimestamp(next(times), tz).date() for _ in range(365)]
        assert len(set(days)) == 365 and (days[-1] - days[0]).days == 364


# --- once

def test_two_schedulers_start_each_of_thirty_once(quick):
    table = ScheduleStore()
    for n in range(30):
        table.put(made(f"s{n}", parameters=dict(n=n)))
        table.trigger(f"s{n}")
    both = [Scheduler(slots=2, poll=.05) for _ in range(2)]
    threads = [threading.Thread(target=s.run, args=(True,)) for s in both]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert sorted(p["n"] for p, _ in effects(quick)) == list(range(30))
    assert all(s.ended for s in both) and Counter(f.state for s in both for f in s.ended) == {"succeeded": 30}


def test_a_killed_scheduler_takes_its_runs_along_and_another_does_them(workspace):
    """Real processes:

    the run of a scheduler that is killed is lost, its kernel is gone, and the next scheduler runs it again at once."""
    write(workspace/"slow.ipynb", "n = 1", "import os, time\nfirst = not os.path.exists('began')\n"
                                           "open('began', 'a').write('x')\n"
                                           "if first: time.sleep(60)", "open('effect', 'a').write('x')")
    table = ScheduleStore()
    table.put(made("slow", job="slow.ipynb").check(table.settings))
    table.trigger("slow")
    process = started("scheduler", cwd=workspace)
    try: until((workspace/"began").exists, 120)
    finally:
        process.kill()
        process.wait()
    nobody_left(workspace)
    done = scalai("scheduler", "--once", "--json", cwd=workspace)
    firing, = done.doc["firings"]
    assert (done.code, firing["state"], firing["attempt"],
            (workspace/"effect").read_text()) == (0, "succeeded", 2, "x")
    assert [r.state for r in Record().runs()] == ["succeeded", "lost"]


def test_sigterm_waits_for_what_runs_and_starts_nothing_new(workspace):
    write(workspace/"slow.ipynb", "n = 1", "import time\nopen('began', 'a').write('x')\ntime.sleep(2)")
    table = ScheduleStore()
    for name in ("a", "b"):
        table.put(made(name, job="slow.ipynb"))
        table.trigger(name)
    process = started("scheduler", "--slots", "1", "--json", cwd=workspace)
    try:
        until((workspace/"began").exists, 120)
        process.send_signal(signal.SIGTERM)
        doc = json.loads(process.communicate(timeout=60)[0])
    finally: process.kill()
    assert (process.returncode, [f["state"] for f in doc["firings"]],
            [f.state for f in table.firings()]) == (0, ["succeeded"], ["queued", "succeeded"])
    nobody_left(workspace)


def test_a_run_that_was_taken_over_is_killed_where_it_was(quick):
    table = ScheduleStore()
    table.put(made("s", parameters=dict(seconds=60)))
    table.trigger("s")
    ours = Scheduler()
    ours.run_once()
    (f, child), = ours.children.values()
    with table.engine.begin() as db: db.execute(FIRINGS.update().values(owner=f"{identity()}:elsewhere"))
    ours.beaten = 0.
    turns(ours)
    assert child.poll() == -signal.SIGKILL and ours.ended == [] and table.firings()[0].state == "running"


def test_without_a_lease_nothing_runs_on(quick):
    table = ScheduleStore()
    table.put(made("s", parameters=dict(seconds=60)))
    table.trigger("s")
    ours = Scheduler(poll=.01)
    ours.run_once()
    (f, child), = ours.children.values()
    gone = sa.exc.OperationalError("SELECT", {}, Exception("the server closed the connection"))
    ours.wait_for_database(gone)
    assert child.poll() is None
    ours.beaten -= ours.lease
    ours.wait_for_database(gone)
    turns(ours)
    assert child.poll() == -signal.SIGKILL


def test_once_gives_up_where_the_database_stays_away(quick, monkeypatch):
    from scalai_nb.core.errors import Unreachable
    ours = Scheduler(poll=.01)
    def gone(table): raise sa.exc.OperationalError("SELECT", {}, Exception("the server closed the connection"))
    monkeypatch.setattr(ScheduleStore, "clock", gone)
    with pytest.raises(Unreachable, match="does not answer") as e: ours.run(once=True)
    assert e.value.code == 3 and ours.troubles == 6


def test_a_locked_database_is_waited_for(quick):
    import sqlite3
    table = ScheduleStore()
    table.put(made("s"))
    table.trigger("s")
    ours, lock = Scheduler(), sqlite3.connect(Settings.load().path("scalai.db"), isolation_level=None,
                                              check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    threading.Timer(.5, lock.execute, ["COMMIT"]).start()
    turns(ours)
    assert [f.state for f in ours.ended] == ["succeeded"]


# --- bad days

def missed(policy: str, monkeypatch, **more) -> list[tuple[str, str]]:
    clock = Clock(monkeypatch, "2026-06-01T12:00Z")
    table = ScheduleStore()
    table.put(made("s", cron="0 * * * *", catch_up=policy, parameters=dict(due="${due}"), **more))
    clock.to("2026-06-01T16:20Z")
    ours = Scheduler()
    turns(ours)
    clock.to("2026-06-01T17:00Z")
    turns(ours)
    return [(f.due, f.state) for f in reversed(table.firings())]


@pytest.mark.parametrize("policy, hours", [("none", [17]), ("last", [16, 17]), ("all", [13, 14, 15, 16, 17])])
def test_missed_starts_follow_the_policy(policy, hours, quick, monkeypatch):
    states = missed(policy, monkeypatch)
    assert [datetime.fromtimestamp(t, UTC).hour for t, s in states if s == "succeeded"] == hours
    assert [p["due"] for p, _ in effects(quick)] == [f"2026-06-01T{h}:00:00+00:00" for h in hours]
    assert [datetime.fromtimestamp(t, UTC).hour for t, s in states
            if s == "skipped"] == ([16] if policy == "none" else [])


def test_all_means_at_most_so_many(quick, monkeypatch):
    assert [datetime.fromtimestamp(t, UTC).hour for t, _ in missed("all", monkeypatch, backlog=2)] == [15, 16, 17]


@pytest.mark.parametrize("policy, states",
                         [("skip", ["succeeded", "skipped"]), ("queue", ["succeeded", "succeeded"]),
                          ("cancel", ["cancelled", "succeeded"])])
def test_overlaps_follow_the_policy(policy, states, quick, monkeypatch):
    clock = Clock(monkeypatch, "2026-06-01T12:59:59Z")
    table = ScheduleStore()
    table.put(made("s", cron="0 * * * *", overlap=policy, parameters=dict(until="go")))
    ours = Scheduler()
    clock.to("2026-06-01T13:00:01Z")
    ours.run_once()
    until(lambda: effects(quick))
    table.put(made("s", cron="0 * * * *", overlap=policy))  # what comes next does not wait
    clock.to("2026-06-01T14:00:01Z")
    ours.run_once()
    assert len(ours.children) == 1
    if policy != "cancel": (quick/"go").touch()
    ours.beaten = 0.
    turns(ours)
    assert [f.state for f in reversed(table.firings())] == states


def test_a_clock_that_jumps_makes_nothing_twice_and_leaves_nothing_out(quick, monkeypatch):
    clock = Clock(monkeypatch, "2026-06-01T12:30Z")
    table, ours = ScheduleStore(), Scheduler()
    table.put(made("s", cron="0 * * * *", parameters=dict(due="${due}")))
    for at in ("2026-06-01T13:00:01Z", "2026-06-01T12:59:00Z", "2026-06-01T13:00:02Z",  # back over a start
               "2027-06-01T13:00:02Z", "2026-06-01T13:30:00Z", "2026-06-01T14:00:01Z"):  # a year ahead for a moment
        clock.to(at)
        turns(ours)
    assert [p["due"][:13] for p, _ in effects(quick)] == ["2026-06-01T13", "2027-06-01T13", "2026-06-01T14"]


def test_retries_then_failure_and_recovery_are_told(quick, monkeypatch):
    clock, ear = Clock(monkeypatch, "2026-06-01T12:30Z"), Ear()
    settings = Settings(root=quick, alerts=dict(webhook=ear.url))
    table, ours = ScheduleStore(settings), Scheduler(settings)
    table.put(made("s", cron="0 * * * *", retries=1, backoff=60, parameters=dict(state="failed")))
    clock.to("2026-06-01T13:00:01Z")
    turns(ours)
    assert [(f.state, f.attempt, f.at - clock.t) for f in table.firings()] == [("queued", 2, 60)] and not ear.heard
    clock.t += 61
    turns(ours)
    table.put(made("s", cron="0 * * * *"))
    clock.to("2026-06-01T14:00:01Z")
    turns(ours)
    ours.sender.close()
    assert [f.state for f in table.firings()] == ["succeeded", "failed"]
    assert [(h["what"], h["resolved"], h["summary"]) for h in ear.heard] == [
        ("job failed", False, "s failed: it was told to"), ("job failed", True, "s works again")
    ]
    assert ear.heard[0]["details"]["attempts"] == 2


def test_what_is_late_is_told_once_and_resolved_by_its_end(quick, monkeypatch):
    clock, ear = Clock(monkeypatch, "2026-06-01T12:30Z"), Ear()
    settings = Settings(root=quick, alerts=dict(webhook=ear.url))
    table, ours, other = ScheduleStore(settings), Scheduler(settings, slots=1), Scheduler(settings, slots=1)
    table.put(made("long", cron="0 * * * *", group="g", parameters=dict(until="go")))
    table.put(made("waits", cron="1 * * * *", group="g", late=60))
    clock.to("2026-06-01T13:00:30Z")
    ours.run_once()
    for at in ("2026-06-01T13:01:30Z", "2026-06-01T13:02:30Z", "2026-06-01T13:03:00Z"):
        clock.to(at)
        other.run_once(), ours.run_once()
    (quick/"go").touch()
    turns(ours, other)
    for s in (ours, other): s.sender.close()
    assert [(h["what"], h["key"], h["resolved"]) for h in ear.heard] == [
        ("job late", "job late/waits/2026-06-01T13:01:00Z", False),
        ("job late", "job late/waits/2026-06-01T13:01:00Z", True)
    ]


def test_what_was_missed_is_over_when_it_next_starts_in_time(quick, monkeypatch):
    clock, ear = Clock(monkeypatch, "2026-06-01T12:00Z"), Ear()
    settings = Settings(root=quick, alerts=dict(webhook=ear.url))
    table, ours = ScheduleStore(settings), Scheduler(settings)
    table.put(made("s", cron="0 * * * *", catch_up="none"))
    clock.to("2026-06-01T16:20Z")
    turns(ours)
    table.trigger("s")
    turns(ours)
    # a start by hand does not say that the schedule works
    assert [f.late for f in table.firings() if f.state == "skipped"] == [True]
    for at in ("2026-06-01T17:00Z", "2026-06-01T18:00Z"):
        clock.to(at)
        turns(ours)
    ours.sender.close()
    key = "job late/s/2026-06-01T16:00:00Z"
    assert [(h["key"], h["resolved"]) for h in ear.heard] == [(key, False), (key, True)]


# --- limits

def test_gpus_are_given_to_one_at_a_time(quick):
    "Pretended ones: what a job sees is what it was given, also by two schedulers on one host."
    table = ScheduleStore()
    for name, gpus in (("a", 1), ("b", 2), ("c", 1), ("none", 0)):
        table.put(made(name, gpus=gpus, parameters=dict(name=name, seconds=.3)))
        table.trigger(name)
        time.sleep(.005)  # the order in which they wait
    both = [Scheduler(slots=4, gpus=[0, 1]) for _ in range(2)]
    for s in both: s.run_once()
    held = [(f.schedule, f.gpus) for s in both for f, _ in s.children.values()]
    assert sorted(held) == [("a", [0]), ("c", [1]), ("none", [])]  # b wants both, and waits
    turns(*both)
    assert {p["name"]: seen for p, seen in effects(quick)} == {"a": "0", "b": "0,1", "c": "1", "none": ""}


def test_a_group_has_its_limit(quick):
    table = ScheduleStore()
    for n in range(3):
        table.put(made(f"s{n}", group="warehouse", limit=2, parameters=dict(seconds=.2)))
        table.trigger(f"s{n}")
    both = [Scheduler(slots=4) for _ in range(2)]
    for s in both: s.run_once()
    assert sum(len(s.children) for s in both) == 2
    turns(*both)
    assert len(effects(quick)) == 3


# --- tables, metrics, the command

def test_a_new_version_of_a_table_starts_one_run(quick):
    from deltalake import DeltaTable, write_deltalake
    place = str(Settings.load().path("tables", "features"))
    Path(place).parent.mkdir(parents=True)
    write_deltalake(place, pa.table(dict(n=[1])))
    table = ScheduleStore()
    table.put(made("score", on_table="features", every=1, parameters=dict(version="${version}")))
    both = [Scheduler() for _ in range(2)]

    def look():
        for s in both:
            s.looks.clear()
            s.run_once(once=True)
        turns(*both)
    look()
    assert effects(quick) == []
    write_deltalake(place, pa.table(dict(n=[2])), mode="append")
    look(), look()
    DeltaTable(place).optimize.compact()
    look()
    assert [p["version"] for p, _ in effects(quick)] == [1]


def looked(*schedulers) -> None:
    "All look at their stores at the same time, and run what they find."
    threads = [threading.Thread(target=s.check_stores, args=(s.table.clock(), True)) for s in schedulers]
    for s in schedulers: s.looks.clear()
    for t in threads: t.start()
    for t in threads: t.join(60)
    turns(*schedulers)


def test_each_new_file_runs_once_though_two_look(quick, monkeypatch):
    clock, table, inbox = Clock(monkeypatch, "2026-06-01T12:00Z"), ScheduleStore(), quick/"inbox"
    inbox.mkdir()
    (inbox/"old.csv").write_text("x")
    table.put(made("load", on_file="inbox/*.csv", settle=10, backlog=1, parameters=dict(file="${file}")))
    both = [Scheduler(slots=2) for _ in range(2)]
    for n in range(12): (inbox/f"{n}.csv").write_text("x" * n)
    (inbox/"notes.txt").write_text("no table")
    looked(*both)
    assert effects(quick) == []  # somebody may still write to them
    slow = open(inbox/"slow.csv", "w")
    for _ in range(4):
        clock.t += 6
        print("more", file=slow, flush=True)
        looked(*both)
    assert sorted(p["file"] for p, _ in effects(quick)) == sorted(f"inbox/{n}.csv" for n in range(12))
    slow.close()
    (inbox/"3.csv").write_text("another content")
    for _ in range(3):
        clock.t += 10
        looked(*both)
    assert sorted(p["file"] for p, _ in effects(quick)[12:]) == ["inbox/3.csv", "inbox/slow.csv"]
    later = Scheduler()  # one that was not there
    clock.t += 1000
    looked(later)
    assert len(effects(quick)) == 14 and Counter(f.state for f in table.firings()) == {"succeeded": 14}


def test_files_that_came_while_nobody_looked_run_and_paused_ones_do_not(quick, monkeypatch):
    clock, table, inbox = Clock(monkeypatch, "2026-06-01T12:00Z"), ScheduleStore(), quick/"inbox"
    inbox.mkdir()
    table.put(made("load", on_file="inbox/*.csv", settle=1, parameters=dict(file="${file}", state="failed")))
    def come(name):
        (inbox/name).write_text(name)
        for _ in range(2):
            clock.t += 86_400
            looked(Scheduler())
    come("a.csv"), come("b.csv")  # a day without a scheduler, and a failure that has no retries
    table.pause("load")
    come("c.csv")
    table.pause("load", False)
    come("d.csv")
    assert [p["file"] for p, _ in effects(quick)] == [f"inbox/{n}.csv" for n in "abd"]
    with pytest.raises(BadRequest, match="-p file=PATH"): table.trigger("load")


def test_a_store_that_hangs_holds_nobody_up(quick, monkeypatch):
    from scalai_nb.jobs import scheduler
    over = threading.Event()
    monkeypatch.setattr(scheduler, "commits", lambda *a: over.wait(60) and [])
    table = ScheduleStore()
    table.put(made("s"))
    table.trigger("s")
    table.put(made("score", on_table="features"))
    ours = Scheduler()
    turns(ours)
    over.set()
    assert [f.state for f in ours.ended] == ["succeeded"]


def test_metrics_are_scraped(quick):
    from scalai_nb.core.metrics import serve
    table = ScheduleStore()
    for name, state in (("scraped", "succeeded"), ("scraped2", "failed")):
        table.put(made(name, parameters=dict(state=state)))
        table.trigger(name)
    server, ours = serve(0), Scheduler(slots=1)
    def scraped():
        return dict(line.rsplit(" ", 1) for line in httpx.get(server.url).text.splitlines()
                    if not line.startswith("#"))
    try:
        ours.run_once()
        now = scraped()
        assert (now["scalai_scheduler_queued"], now["scalai_scheduler_running"]) == ("1.0", "1.0")
        turns(ours)
        now = scraped()
        assert (now["scalai_scheduler_queued"], now["scalai_scheduler_running"]) == ("0.0", "0.0")
        assert now['scalai_scheduler_ended_total{schedule="scraped",state="succeeded"}'] == "1.0"
        assert now['scalai_scheduler_ended_total{schedule="scraped2",state="failed"}'] == "1.0"
        for what in ("lateness", "run"):
            assert now[f'scalai_scheduler_{what}_seconds_count{{schedule="scraped"}}'] == "1.0"
    finally: server.close()


def test_paused_ones_rest_and_resumed_ones_make_nothing_up(quick, monkeypatch):
    clock = Clock(monkeypatch, "2026-06-01T12:30Z")
    table, ours = ScheduleStore(), Scheduler()
    table.put(made("s", cron="0 * * * *", catch_up="all"))
    table.pause("s")
    clock.to("2026-06-01T15:30Z")
    turns(ours)
    table.pause("s", False)
    turns(ours)
    assert table.firings() == []
    clock.to("2026-06-01T16:00:01Z")
    turns(ours)
    assert [f.key for f in table.firings()] == ["2026-06-01T16:00:00Z"]


def test_a_file_is_the_truth_about_its_schedules(workspace):
    write(workspace/"a.ipynb", "n = 1")
    file = workspace/"schedules.toml"
    def lines(*names):
        file.write_text("".join(f'[[schedule]]\nname = "{n}"\njob = "a.ipynb"\nevery = "{e}"\n' for n, e in names))
    def applied(): return scalai_here("schedule", "apply", "schedules.toml", "--json")["schedules"]
    scalai_here("schedule", "add", "mine", "a.ipynb", "--every", "1h", "--json")
    lines(("one", "1h"), ("two", "2h"))
    assert applied() == dict(one="added", two="added") and applied() == dict(one="unchanged", two="unchanged")
    lines(("two", "3h"), ("three", "1d"))
    assert applied() == dict(two="changed", three="added", one="removed")
    lines(("mine", "1h"))
    with pytest.raises(BadRequest, match="made by hand"): ScheduleStore().apply([made("mine")], str(file))
    assert [s["name"] for s in ScheduleStore().overview()] == ["mine", "three", "two"]


def scalai_here(*argv) -> dict:
    "The command in this process: its document."
    done = here(*argv)
    assert done.code == 0, done.out + done.err
    return done.doc


def test_the_systemd_unit_is_one(workspace):
    import shutil
    import subprocess
    text = scalai_here("scheduler", "unit", "--json")["unit"]
    (workspace/"scalai.service").write_text(text)
    assert shutil.which("systemd-analyze"), "systemd is not installed: apt-get install systemd"
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
                           str(workspace/"scalai.service")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- slow

RUN = """
import sys
from scalai_nb.jobs.worker import Child
from scalai_nb.jobs.scheduler import Scheduler
Child.program = [sys.executable, "-S", "-E", sys.argv[1]]
Scheduler(slots=2, poll=.1).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_thirty_starts_two_schedulers_one_killed_at_a_random_moment(seed, quick):
    """Real schedulers:

    whichever is killed when, each due start ends well once, only what the killed one ran begins twice, and nobody
    is left."""
    import subprocess
    table, chance = ScheduleStore(), random.Random(seed)
    for n in range(30):
        table.put(made(f"s{n}", parameters=dict(n=n, seconds=.15)))
        table.trigger(f"s{n}")
    both = [subprocess.Popen([sys.executable, "-c", RUN, quick/"quick.py"], cwd=quick) for _ in range(2)]
    try:
        target = chance.randint(3, 20)
        until(lambda: len(effects(quick)) >= target, 120)
        time.sleep(chance.uniform(0, .3))
        both[0].kill()
        both[0].wait()
        until(lambda: Counter(f.state for f in table.firings()) == {"succeeded": 30}, 120)
        both[1].send_signal(signal.SIGTERM)
        assert both[1].wait(60) == 0
    finally:
        for p in both:
            p.kill()
            p.wait()
    nobody_left(quick)
    begun = Counter(p["n"] for p, _ in effects(quick))
    twice = {n for n, k in begun.items() if k > 1}
    assert set(begun) == set(range(30)) and max(begun.values()) <= 2 and len(twice) <= 2, begun
    assert twice <= {int(f.schedule[1:]) for f in table.firings() if f.attempt == 2}


@pytest.mark.slow
def test_postgresql_serves_several_and_may_go_and_come_back(quick):
    from servers import Postgres
    server = Postgres()
    try:
        server.connect().close()
        settings = Settings(root=quick,
                            jobs=dict(database=server.uri().replace("postgresql://", "postgresql+psycopg://"),
                                      lease=30))
        table = ScheduleStore(settings)
        for n in range(30):
            table.put(made(f"s{n}", parameters=dict(n=n, seconds=.05)))
            table.trigger(f"s{n}")
        both = [Scheduler(settings, slots=2, poll=.1) for _ in range(2)]
        threads = [threading.Thread(target=s.run) for s in both]
        for t in threads: t.start()
        until(lambda: len(effects(quick)) >= 8)
        server.stop()
        time.sleep(1)
        server.start()
        def over():
            try: return Counter(f.state for f in table.firings()) == {"succeeded": 30}
            except sa.exc.DBAPIError: return False
        until(over, 120)
        for s in both: s.stop()
        for t in threads: t.join(60)
        assert sorted(p["n"] for p, _ in effects(quick)) == list(range(30))
    finally: server.stop()
