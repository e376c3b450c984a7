"""Windows of event time: any order of arrival, several writers, kills, a real Kafka broker."""
import json
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from conftest import until
from hypothesis import given
from hypothesis import strategies as st
from test_follow import SCALAI, broker, file, number, stop, topic  # noqa: F401 (a fixture)

from scalai_nb.core.settings import Settings
from scalai_nb.data.event_time import LATE, MICRO, EventTime, is_closed, late_rows, watermark
from scalai_nb.data.period import span
from scalai_nb.data.table import Table
from scalai_nb.data.write import write

BEGIN, LATENESS = datetime(2026, 3, 1, 5), 900  # seconds


def window(minute: float) -> str: return f"{BEGIN + timedelta(minutes=minute):%Y-%m-%dT%H}"


def micro(minute: float) -> int:
    return round((BEGIN + timedelta(minutes=minute)).replace(tzinfo=UTC).timestamp()*MICRO)


def arrived(batches: list[list[float]]) -> dict[str, int]:  # what a log says of batches of minutes
    log: dict[str, int] = {}
    for b in batches:
        log |= EventTime(LATENESS, Counter(map(window, b)), max(map(micro, b))).settle(log.get)[0]
    return log


def expected(batches: list[list[float]]) -> Counter:  # late rows of each window, by the definition
    found, high = Counter(), None
    for b in batches:
        if high is not None:
            found.update(w for w in map(window, b) if span(w)[1].timestamp()*MICRO <= high - LATENESS*MICRO)
        high = max([micro(m) for m in b] + [high or 0])
    return found


def split(rows: list, cuts: list[int]) -> list[list]:
    at = sorted({0, len(rows), *(c % len(rows) for c in cuts)})
    return [rows[a:b] for a, b in zip(at, at[1:])]


MINUTES = st.lists(st.floats(0, 600), min_size=1, max_size=60)


@given(MINUTES, st.lists(st.integers(0, 59), max_size=12), st.randoms(use_true_random=False))
def test_no_order_of_arrival_within_the_lateness_makes_a_row_late(minutes, cuts, r):
    order = sorted(minutes, key=lambda m: m + r.uniform(0, LATENESS/60))
    log = arrived(split(order, cuts))
    assert not [n for n in log if n.startswith(LATE)]
    assert log["watermark"] == max(map(micro, minutes)) - LATENESS*MICRO == arrived([minutes])["watermark"]


@given(MINUTES, st.lists(st.integers(0, 59), max_size=12))
def test_late_rows_of_any_order_are_those_of_windows_closed_before_their_batch(minutes, cuts):
    batches = split(minutes, cuts)
    log = arrived(batches)
    assert {n.removeprefix(LATE): k for n, k in log.items() if n.startswith(LATE)} == expected(batches)


def hourly(root) -> Settings: return Settings(root=root, monitor={"period": "hour"})


def rows(minutes: list[float]) -> pa.Table:
    return pa.table({"id": [round(m*1000) for m in minutes], "at": [BEGIN + timedelta(minutes=m) for m in minutes]})


def test_windows_of_a_stream_are_those_of_a_batch(tmp_path):
    r, settings = random.Random(1), hourly(tmp_path)
    minutes = [r.uniform(0, 200) for _ in range(400)]
    order = sorted(minutes, key=lambda m: m + r.uniform(0, LATENESS/60))
    for b in split(order, [r.randrange(400) for _ in range(6)]):
        assert write(rows(b), "stream", period="at", lateness=LATENESS, settings=settings).rows_late == 0
    write(rows(sorted(minutes)), "batch", period="at", settings=settings)
    digests = [{p: x.digest for p, x in Table(n, settings).profiles().items()} for n in ("stream", "batch")]
    assert digests[0] == digests[1] and len(digests[0]) == 4
    mark = watermark("stream", settings)
    assert [is_closed(p, mark) for p in digests[0]] == [True, True, True, False] and not late_rows("stream", settings)
    more = write(rows([10, 11, 199]), "stream", period="at", lateness=LATENESS, settings=settings)
    assert (more.rows_good, more.rows_late) == (3, 2) and late_rows("stream", settings) == {window(10): 2}
    assert Table("stream", settings).count() == 403


def test_writers_at_once_count_each_late_row_once(tmp_path):
    settings, done = hourly(tmp_path), []
    write(rows([0, 300]), "trips", period="at", lateness=LATENESS, settings=settings)
    def run(first):
        for i in range(4):
            minutes = [first + i, first + i + .5, 301 + i]
            done.append(write(rows(minutes), "trips", period="at", lateness=LATENESS, settings=settings))
    threads = [threading.Thread(target=run, args=(60*k,)) for k in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sum(d.rows_late for d in done) == 24
    assert late_rows("trips", settings) == {window(60*k): 8 for k in range(3)}
    assert watermark("trips", settings) == micro(304)/MICRO - LATENESS == max(d.watermark for d in done)


def test_a_batch_that_comes_again_is_counted_once_and_says_the_same(tmp_path):
    settings = hourly(tmp_path)
    write(rows([0, 300]), "trips", period="at", lateness=LATENESS, settings=settings)
    first, again = (write(rows([1, 2]), "trips", period="at", batch="b", lateness=LATENESS, settings=settings)
                    for _ in range(2))
    assert (first.rows_late, first.already) == (2, False) and (again.rows_late, again.already) == (2, True)
    assert first.watermark == again.watermark and late_rows("trips", settings) == {window(1): 2}


def test_lateness_without_times_is_refused_in_two_lines(tmp_path):
    (inbox := tmp_path/"inbox").mkdir()
    file(inbox, "a.csv", range(10))
    command = [SCALAI, "ingest", "inbox/*.csv", "trips", "--lateness", "60"]
    for more in (["--follow"], ["--period", "id"]):
        said = subprocess.run([*command, *more], cwd=tmp_path, text=True, capture_output=True, timeout=60)
        lines = [line for line in said.stderr.splitlines() if not line.startswith("… ")]  # of progress
        assert said.returncode == 2 and len(lines) == 2, said
        assert "Lateness needs a column of times" in said.stderr


def described(folder, source: str):
    (folder/"tables").mkdir()
    (folder/"trips.yaml").write_text("columns:\n  id: {type: int64}\n  at: {type: timestamp}\n")
    (folder/"tables"/"trips.toml").write_text(
        f'source = "{source}"\ncontract = "trips.yaml"\ntime = "at"\nperiod = "hour"\nlateness = {LATENESS}\n')


def by_its_file(folder) -> subprocess.Popen:
    return subprocess.Popen([SCALAI, "ingest", "trips", "--follow"], cwd=folder, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


@pytest.mark.slow
def test_late_rows_count_once_through_kills(tmp_path, rounds):
    "A file is a batch, in the order of names: so many rows are late, however often the follower is killed."
    described(tmp_path, "inbox/*.csv")
    (inbox := tmp_path/"inbox").mkdir()
    r, batches = random.Random(3), []
    for n in range(24): batches.append([r.uniform(10*n - 60, 10*n + 10) for _ in range(20)])
    process = by_its_file(tmp_path)
    for n, b in enumerate(batches):
        times = [f"{BEGIN + timedelta(minutes=m):%Y-%m-%dT%H:%M:%S.%f}" for m in b]
        (tmp_path/"part").write_text("id,at\n" + "".join(f"{i},{at}\n" for i, at in enumerate(times)))
        (tmp_path/"part").rename(inbox/f"{n:03}.csv")
        if n % 6 == 5:
            time.sleep(r.uniform(.5, 4))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            process = by_its_file(tmp_path)
    try: assert until(lambda: number(tmp_path) == 480, 120)
    finally: stop(process)
    settings = Settings(root=tmp_path)
    assert late_rows("trips", settings) == dict(expected(batches)) and sum(expected(batches).values()) > 20
    rounds.note(rows=480, late=sum(expected(batches).values()), kills=4)


@pytest.mark.slow
def test_a_topic_with_late_rows(broker, tmp_path):  # noqa: F811 (a fixture)
    from confluent_kafka import Producer
    described(tmp_path, topic(broker, "events"))
    sent = 0
    made = Producer({"bootstrap.servers": broker.address, "log_level": 0})
    def send(*minutes):
        nonlocal sent
        for m in minutes:
            at = (BEGIN + timedelta(minutes=m)).isoformat()
            made.produce("events", json.dumps({"id": sent, "at": at}).encode(), partition=sent % 2)
            sent += 1
        assert made.flush(60) == 0
        assert until(lambda: number(tmp_path) == sent, 60)
    process = by_its_file(tmp_path)
    try:
        send(10, 5, 58, 70)
        send(59, 57, 74)  # an hour and fourteen minutes less a quarter of an hour: the first window is open
        send(59, 80)
        send(58, 61, 59, 50_000_000)  # closed; in a hundred years
        send(82)
    finally: out, _ = stop(process)
    settings = Settings(root=tmp_path)
    assert late_rows("trips", settings) == {window(58): 2} and watermark("trips", settings) == micro(67)/MICRO
    assert "2 late" in out and "1 ahead of the clock" in out


def test_a_table_that_is_filled_without_a_lateness_again_has_no_open_window(tmp_path):
    "Its newest window would otherwise never be looked at again."
    settings = Settings(root=tmp_path, monitor={"period": "hour"})
    rows = lambda *minutes: pa.table({"at": [BEGIN + timedelta(minutes=m) for m in minutes]})
    write(rows(0, 80), "trips", period="at", lateness=LATENESS, settings=settings)
    assert watermark("trips", settings) == pytest.approx(micro(80)/MICRO - LATENESS)
    write(rows(200), "trips", period="at", settings=settings)
    assert watermark("trips", settings) is None
    write(rows(10, 210), "trips", period="at", lateness=LATENESS, settings=settings)  # 5 o'clock had closed before
    assert watermark("trips", settings) == pytest.approx(micro(210)/MICRO - LATENESS)
    assert late_rows("trips", settings) == {window(10): 1}


def test_a_follower_waits_where_closing_meets_a_store_that_is_away(tmp_path, monkeypatch):
    from scalai_nb.core.errors import Unreachable
    from scalai_nb.data import follow as module
    (tmp_path/"inbox").mkdir()
    (tmp_path/"inbox"/"a.csv").write_text("at\n2026-03-01T05:00:00\n2026-03-01T06:10:00\n")
    made = module.Follow("inbox/*.csv", "trips", period="at", lateness=60, settle=0,
                         settings=Settings(root=tmp_path, monitor={"period": "hour"}))
    made.uri = str(tmp_path/"inbox"/"*.csv")
    assert made.step().rows_good == 2
    made.moved = made.checked = time.time() - 1000
    def away(*_): raise Unreachable("the store is away", "wait")
    monkeypatch.setattr(module, "watermark", away)
    assert made.step() is None and made.did.waiting == "the store is away"
    monkeypatch.undo()
    assert made.step() is None and made.did.waiting == "" and time.time() - made.moved < 60  # it waits anew
