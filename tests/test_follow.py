"""Followers of folders and of a real Kafka broker: killed, stopped, beside another one, with the broker away."""
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from conftest import until

from scalai_nb.core.settings import Settings
from scalai_nb.data.table import Table

SCALAI = str(Path(sys.executable).with_name("scalai"))


def follower(folder: Path, uri: str, *options) -> subprocess.Popen:
    return subprocess.Popen([SCALAI, "ingest", uri, "trips", "--follow", *options], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stop(process: subprocess.Popen, how=signal.SIGTERM) -> tuple[str, str]:
    process.send_signal(how)
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def ids(folder: Path, refused: bool = False) -> list[int]:
    table = Table("trips", Settings(root=folder))
    if not table.exists: return []
    return sorted(i for t in table.batches(columns=["id"]) for i in t["id"].to_pylist())


def number(folder: Path) -> int:
    table = Table("trips", Settings(root=folder))
    return table.count() if table.exists else 0


def file(folder: Path, name: str, numbers, extra: str = ""):
    text = "id,minutes\n" + "".join(f"{i},{i/2}\n" for i in numbers) + extra
    (folder/f".{name}").write_text(text)
    (folder/f".{name}").rename(folder/name)


def test_files_that_come_are_rows_a_moment_later_and_none_comes_twice(tmp_path):
    (inbox := tmp_path/"inbox").mkdir()
    file(inbox, "a.csv", range(100))
    process = follower(tmp_path, "inbox/*.csv", "--metrics-port", "0")
    try:
        assert until(lambda: number(tmp_path) == 100)
        file(inbox, "b.csv", range(100, 200), "late,1\n")
        file(inbox, "c.csv", [7], "1,2,3,4\n2,3,4,5\n")
        (inbox/"d.csv").write_text("name\nold town\n")  # other columns: named, and no obstacle
        file(inbox, "e.csv", range(300, 310))
        assert until(lambda: number(tmp_path) >= 211)
    finally:
        process.kill()  # without a word
        process.communicate()
    again = follower(tmp_path, "inbox/*.csv")
    file(inbox, "f.csv", range(400, 405))
    try: assert until(lambda: number(tmp_path) >= 216)
    finally: out, err = stop(again, signal.SIGINT)
    assert ids(tmp_path) == sorted([*range(200), 7, *range(300, 310), *range(400, 405)])
    assert "5 rows" in out and "1 files could not be read" in out and "Traceback" not in err


def test_what_cannot_be_followed_is_refused_in_two_lines(tmp_path):
    for uri in ("postgresql://ann@127.0.0.1:1/air/trips", "mongodb://127.0.0.1:1/air.trips"):
        command = [SCALAI, "ingest", uri, "trips", "--follow"]
        said = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
        assert said.returncode == 2 and len(said.stderr.splitlines()) == 2, said
        assert "cannot be followed" in said.stderr


def test_a_followed_table_has_few_files_however_long_it_is_followed(tmp_path):
    "Between two joins come 10 batches; a join leaves a file a window. The hour at 5,000 rows a second: stores_hour."
    from scalai_nb.data.event_time import late_rows
    from scalai_nb.data.follow import Follow
    (inbox := tmp_path/"inbox").mkdir()
    settings = Settings(root=tmp_path, monitor={"period": "hour"})
    how, seen = dict(period="at", lateness=60, settle=0, together=10, settings=settings), []
    follow = Follow(f"{inbox}/*.csv", "trips", **how)
    for n in range(32):
        at = "".join(f"2026-03-01T{5 + n//20:02}:{n%20*3 + k:02}:00\n" for k in range(3))
        (inbox/f"{n:03}.csv").write_text(f"at\n{at}")
        assert follow.step().rows_good == 3
        if follow.joining: follow.joining.join()
        seen.append(len(Table("trips", settings).delta().file_uris()))
    assert max(seen) <= 10 + 3 and seen[-1] == 4, seen
    assert {p: x.rows for p, x in Table("trips", settings).profiles().items()} == {
        "2026-03-01T05": 60, "2026-03-01T06": 36}
    assert len(windows(settings)) <= 13 and not late_rows("trips", settings)


def message(i: int) -> bytes: return json.dumps({"id": i, "minutes": i/2}).encode()


@pytest.fixture(scope="module")
def broker():
    from servers.java import Kafka
    with Kafka() as server: yield server


def producer(broker):
    from confluent_kafka import Producer
    return Producer({"bootstrap.servers": broker.address, "linger.ms": 5, "log_level": 0,
                     "message.timeout.ms": 300_000})


def topic(broker, name: str, partitions: int = 2):
    from confluent_kafka.admin import AdminClient, NewTopic
    admin = AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
    admin.create_topics([NewTopic(name, partitions)])[name].result(30)
    return f"kafka://{broker.address}/{name}"


@pytest.mark.slow
def test_a_topic_is_followed_through_kills_of_follower_and_broker(broker, tmp_path, rounds):
    "Two followers at times; each message is a row once."
    uri, made, sent = topic(broker, "killed"), producer(broker), 0
    process = follower(tmp_path, uri)
    try:
        for n, rng in enumerate(rounds.seeds(4, soak=20)):
            if n % 4 == 3: assert until(lambda: number(tmp_path) >= sent, 120)  # it has met the broker
            for i in range(sent, sent + 500): made.produce("killed", message(i), partition=i % 2)
            made.flush(60)
            sent += 500
            time.sleep(rng.uniform(.2, 3))
            if n % 4 == 3:
                broker.kill()
                broker.start()
                continue
            other = follower(tmp_path, uri) if n % 2 else None
            process.kill()
            process.communicate()
            process = other or follower(tmp_path, uri)
        assert made.flush(120) == 0
        assert until(lambda: number(tmp_path) >= sent, 120)
        time.sleep(2)
    finally: out, err = stop(process)
    assert ids(tmp_path) == list(range(sent))
    rounds.note(rows=sent, lost=0, doubled=0)


@pytest.mark.slow
def test_a_stop_a_metric_and_few_files(broker, tmp_path):
    uri, made = topic(broker, "few"), producer(broker)
    process = follower(tmp_path, uri, "--metrics-port", "0")
    lines = iter(process.stderr.readline, "")
    try:
        for i in range(2_000): made.produce("few", message(i) if i % 100 else b"{broken", partition=i % 2)
        made.flush(60)
        assert until(lambda: number(tmp_path) == 1_980)
        where = next(m[0] for line in lines if (m := re.search(r"http://\S+/metrics", line)))
        shown = ['scalai_follow_rows_total{table="trips",to="quarantine"} 20.0',
                 'scalai_follow_lag{table="trips"} 0.0']
        assert until(lambda: all(line in httpx.get(where).text for line in shown))
    finally: stop(process)


@pytest.mark.slow
def test_joined_files_and_profiles_say_what_the_many_said(broker, tmp_path, monkeypatch):
    from scalai_nb.data.follow import Follow, join
    uri, made, settings = topic(broker, "joined"), producer(broker), Settings(root=tmp_path)
    follow = Follow(uri, "trips", limit=200, together=10_000, settings=settings)
    for i in range(1_000): made.produce("joined", message(i), partition=i % 2)
    made.flush(60)
    while follow.step(): pass
    table = Table("trips", settings)
    assert follow.did.batches == 5 and len(table.delta().file_uris()) == 5 and table.count() == 1_000
    whole, parts = table.profile(), len(windows(settings))
    join("trips", settings)
    assert len(table.delta().file_uris()) == 1 and len(windows(settings)) == 1 < parts
    for i in range(1_000, 1_100): made.produce("joined", message(i), partition=i % 2)
    made.flush(60)
    while follow.step(): pass
    join("trips", settings)
    assert Table("trips", settings).profile().rows == 1_100 and len(windows(settings)) == 1
    assert Table("trips", settings).profile(version=4).digest == whole.digest


def windows(settings: Settings) -> set[str]:
    from scalai_nb.core.delta_log import store
    from scalai_nb.data import delta
    return delta.current_files(store(settings, "windows"))


@pytest.mark.slow
def test_another_host_and_a_new_partition_bring_nothing_twice(broker, tmp_path):
    "Two workspaces fill one table; each looks when nothing is new, too."
    from confluent_kafka.admin import AdminClient, NewPartitions

    from scalai_nb.data import ingest as room
    from scalai_nb.data.follow import Follow
    uri, hosts = topic(broker, "shared", 1), []
    admin = AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
    def send(numbers, partition=0):
        made = producer(broker)  # a new one knows all partitions
        for i in numbers: made.produce("shared", message(i), partition=partition)
        assert made.flush(60) == 0
    for name in ("a", "b"):
        (tmp_path/name).mkdir()
        (tmp_path/name/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[data]\nstorage = {tmp_path}/store\n")
        hosts.append(Follow(uri, "trips", settings=Settings.load(tmp_path/name/"settings.ini")))
    a, b = hosts
    send(range(5))
    assert a.step().rows_good == 5 and b.step() is None and a.step() is None
    send(range(5, 9))
    assert b.step().rows_good == 4 and a.step() is None and b.step() is None
    send(range(9, 12))
    written, late = room.write, []
    def slow(*args, **kw):  # between the plan of a and its commit b is quicker, with a partition more
        if not late:
            late.append(admin.create_partitions([NewPartitions("shared", 2)])["shared"].result(30))
            assert until(lambda: len(admin.list_topics("shared", timeout=10).topics["shared"].partitions) == 2)
            send(range(12, 15), 1)
            assert b.step().rows_good == 6
        return written(*args, **kw)
    room.write = slow
    try: assert a.step() is None
    finally: room.write = written
    table = Table("trips", b.settings)
    assert sorted(i for t in table.batches(columns=["id"]) for i in t["id"].to_pylist()) == list(range(15))


@pytest.mark.slow
def test_offsets_without_messages_and_batches_of_broken_ones_stop_nothing(broker, tmp_path):
    from confluent_kafka import Producer

    from scalai_nb.data.follow import Follow
    uri, made, settings = topic(broker, "gaps", 1), producer(broker), Settings(root=tmp_path)
    follow = Follow(uri, "trips", key="id", limit=10, settings=settings)
    for i in range(5): made.produce("gaps", message(i))
    assert made.flush(60) == 0 and follow.step().rows_good == 5
    aborted = Producer({"bootstrap.servers": broker.address, "transactional.id": "gaps", "log_level": 0})
    aborted.init_transactions(30)
    aborted.begin_transaction()
    for i in range(100, 160): aborted.produce("gaps", message(i))
    aborted.flush(30)
    aborted.abort_transaction(30)
    for _ in range(12): made.produce("gaps", b"{broken")
    for i in range(5, 9): made.produce("gaps", message(i))
    assert made.flush(60) == 0
    assert until(lambda: follow.step() is None and follow.did.rows_good == 9)
    assert (follow.did.rows_refused, follow.did.lag) == (12, 0) and ids(tmp_path) == list(range(9))
