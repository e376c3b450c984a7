"""Kafka 4: what a bad day of a cluster does to an ingest, on a real broker.

The mock cluster of the driver is in the notebook only."""

import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import count

import pyarrow as pa
import pytest
from conftest import here, until
from servers.java import Kafka
from test_sources import halfway, no_secret, peaks, rows_of

from scalai_nb.core.errors import BadRequest, WorkFailed
from scalai_nb.data import kafka, readers, source
from scalai_nb.data.ingest import ingest, unfinished
from scalai_nb.data.table import Table

pytestmark = pytest.mark.slow
SMALL = (  # little is read ahead
    "?queued.max.messages.kbytes=200&message.max.bytes=50000&fetch.message.max.bytes=50000&fetch.max.bytes=60000"
)
numbers = count()


@pytest.fixture(scope="module")
def broker():
    with Kafka(log_cleaner_backoff_ms=200, log_retention_check_interval_ms=1000, group_min_session_timeout_ms=1000,
               transaction_state_log_num_partitions=2, offsets_topic_num_partitions=2) as server: yield server


@pytest.fixture
def admin(broker):
    from confluent_kafka.admin import AdminClient
    return AdminClient({"bootstrap.servers": broker.address, "log_level": 0})


@pytest.fixture
def topic(admin):
    "Make a topic of a name of its own."
    from confluent_kafka.admin import NewTopic
    def make(partitions=3, name=None, **config):
        name = name or f"topic{next(numbers)}"
        config = {k.replace("_", "."): str(v) for k, v in config.items()}
        def made():  # a name whose topic is being deleted is refused for a moment
            try: admin.create_topics([NewTopic(name, partitions, config=config)])[name].result(10); return True
            except Exception as e:
                if e.args[0].name() != "TOPIC_ALREADY_EXISTS": raise
        until(made)
        until(lambda: len(admin.list_topics(name, timeout=10).topics[name].partitions) == partitions)
        return name
    return make


def record(i: int) -> bytes: return json.dumps({"id": i, "x": i/2, "word": f"{i:0100}"}).encode()


def send(broker, topic: str, values, partitions=3, **settings):  # (partition, value); a number is a row
    from confluent_kafka import Producer
    producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 20, "log_level": 0} | settings)
    for n, v in enumerate(values):
        value = record(v) if isinstance(v, int) else v
        while True:
            try: producer.produce(topic, value, partition=(v if isinstance(v, int) else n) % partitions); break
            except BufferError: producer.poll(.1)
    assert producer.flush(30) == 0


def ids(table: str) -> list[int]: return sorted(rows_of(table)["id"].to_pylist())


def small_parts(workspace, rows: int):
    (workspace/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[data]\nrows_per_part = {rows}\n")


KILLED = """
import os, sys
from scalai_nb.core import events
from scalai_nb.data.ingest import ingest
seen = []
def hear(topic, **_):
    seen.append(topic)
    if len(seen) == int(sys.argv[2]): os.kill(os.getpid(), 9)
events.subscribe(hear, "ingest")
ingest(sys.argv[1], "flights")
"""


# Exactly once

def test_an_ingest_that_is_killed_loses_and_doubles_nothing(broker, topic, workspace, rounds):
    small_parts(workspace, 3000)
    uri, sent = broker.uri(name := topic()) + SMALL.replace("200", "2000"), 0
    for rng in rounds.seeds(3, soak=20):
        more = list(range(sent, sent := sent + 9000))
        values = [b"late" if v % 1000 == 0 else v for v in more]
        send(broker, name, values)
        killed = subprocess.run([sys.executable, "-c", KILLED, uri, str(rng.randrange(1, 4))], capture_output=True,
                                text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(unfinished()) == 1
        if rng.random() < .7: ingest(uri, "flights")  # the plan's end stands; what comes later is for the next
    while not ingest(uri, "flights").already: pass
    both = []
    send(broker, name, range(sent, sent + 30))
    two = [threading.Thread(target=lambda: both.append(ingest(uri, "flights"))) for _ in range(2)]
    for t in two: t.start()
    for t in two: t.join()
    assert sorted(d.already for d in both) == [False, True] and {d.rows_good for d in both} == {30}
    assert ids("flights") == [i for i in range(sent + 30) if i % 1000 or i >= sent]
    lines = Table("flights").quarantine.arrow()["_line"].to_pylist()
    assert len(lines) == len({*lines}) == sent//1000 and unfinished() == []
    rounds.note(lost=0, doubled=0)


def test_a_broker_that_is_killed_midway_loses_nothing(broker, topic, workspace, rounds):
    small_parts(workspace, 1000)
    uri, sent = broker.uri(name := topic()) + SMALL, 0
    for rng in rounds.seeds(1, soak=20):
        send(broker, name, range(sent, sent := sent + 12_000))
        def restart(pause=rng.random()):
            broker.kill()
            threading.Timer(pause, broker.start).start()
        silent = halfway(restart)
        try: done = ingest(uri, "flights", key="id")
        finally: silent()
        until(lambda: "broker" in broker.processes)
        assert (done.rows_good, done.rows_refused) == (12_000, 0)
    assert ids("flights") == list(range(sent))
    rounds.note(lost=0, doubled=0)


def test_memory_does_not_grow_with_messages(broker, topic):
    send(broker, few := topic(), range(20_000))
    send(broker, many := topic(), range(200_000))
    (less, before), (more, after) = peaks(broker.uri(few), broker.uri(many))
    assert (less, more) == (20_000, 200_000) and after - before < 80, (before, after)


# Transactions

def test_only_committed_transactions_are_read(broker, topic, workspace):
    from confluent_kafka import Producer
    uri = broker.uri(name := topic(1))
    def transaction(id: str, rows, end=None):
        producer = Producer({"bootstrap.servers": broker.address, "transactional.id": f"{name}-{id}", "log_level": 0})
        producer.init_transactions(20)
        producer.begin_transaction()
        for i in rows: producer.produce(name, record(i), partition=0)
        producer.flush(20)
        if end: getattr(producer, end)(20)
        return producer
    transaction("a", range(100), "commit_transaction")
    transaction("b", range(1000, 1100), "abort_transaction")
    assert ingest(uri, "flights").rows_in == 100
    still = transaction("c", range(100, 150))  # not ended yet
    transaction("d", range(150, 200), "commit_transaction")  # behind it, so it waits, too
    transaction("e", range(2000, 2010), "abort_transaction")
    assert ingest(uri, "flights").already
    still.commit_transaction(20)
    assert ingest(uri, "flights").rows_in == 100 and ids("flights") == list(range(200))
    transaction("f", range(3000, 3010), "abort_transaction")
    assert ingest(uri, "flights").already  # only marks are new
    send(broker, name, [200], 1)
    assert ingest(uri, "flights").rows_in == 1 and ids("flights") == list(range(201))


# Consumer groups

GROUP = """
import sys
from confluent_kafka import Consumer
c = Consumer({"bootstrap.servers": sys.argv[1], "group.id": "scalai-nb", "auto.offset.reset": "earliest",
              "session.timeout.ms": 1500, "heartbeat.interval.ms": 300, "log_level": 0})
c.subscribe([sys.argv[2]], on_assign=lambda c, p: print(len(p), flush=True))
while True: c.poll(.2)
"""


def test_a_group_that_loses_a_member_changes_nothing(broker, topic, workspace):
    "The reader takes its partitions itself; those of a group of the same name may move as they like."
    small_parts(workspace, 2000)
    send(broker, name := topic(4), range(20_000), 4)
    def member():
        p = subprocess.Popen([sys.executable, "-c", GROUP, broker.address, name], stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        return p
    members = [member(), member()]
    silent = halfway(members[0].kill)
    try: done = ingest(broker.uri(name) + SMALL, "flights", key="id")
    finally:
        silent()
        for m in members: m.kill(); m.wait(); m.stdout.close()
    assert done.rows_good == 20_000 and ids("flights") == list(range(20_000))


# What the broker drops

def drop(admin, topic: str, partition: int, before: int):
    from confluent_kafka import TopicPartition
    for f in admin.delete_records([TopicPartition(topic, partition, before)]).values(): f.result(10)


def test_dropped_messages_are_counted_and_never_skipped(broker, topic, admin, workspace):
    uri = broker.uri(name := topic(2))
    send(broker, name, range(1000), 2)
    assert ingest(uri, "flights").rows_in == 1000
    send(broker, name, range(1000, 2000), 2)
    drop(admin, name, 0, 520)
    drop(admin, name, 1, 503)
    said = here("ingest", uri, "flights")
    assert (said.code, len(said.lines)) == (1, 2), said.err
    assert "23 messages were dropped" in said.err and "offsets 500 to 519 of partition 0 and 1 more" in said.err
    assert "from=earliest" in said.lines[1] and Table("flights").rows == 1000
    assert ingest(uri + "?from=earliest", "flights").rows_in == 977
    assert ingest(uri, "flights").already and len(ids("flights")) == len({*ids("flights")}) == 1977


def test_messages_dropped_after_the_plan_are_counted(broker, topic, admin, workspace, monkeypatch):
    monkeypatch.setattr(readers, "PATIENCE", 10)
    small_parts(workspace, 1000)
    uri = broker.uri(name := topic(1))
    send(broker, name, range(3000), 1)
    killed = subprocess.run([sys.executable, "-c", KILLED, uri, "1"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    drop(admin, name, 0, 1500)
    done = ingest(uri, "flights")  # nothing of it was in the table: a new plan begins at what is there
    assert done.rows_in == 1500 and ids("flights") == list(range(1500, 3000))
    with pytest.raises(WorkFailed, match="1,500 offsets from 0 on are no longer kept"):
        list(kafka.read(uri, offsets={"0": [0, 3000]}, shape=pa.schema([("id", pa.int64())])))


def test_what_compaction_leaves_is_read(broker, topic, workspace):
    "Offsets with nothing behind them are no loss: the topic keeps only the last message of a key."
    from confluent_kafka import Producer
    name = topic(1, cleanup_policy="compact", segment_ms=100, min_cleanable_dirty_ratio=.01,
                 min_compaction_lag_ms=0, delete_retention_ms=100)
    uri, producer = broker.uri(name), Producer({"bootstrap.servers": broker.address, "log_level": 0})
    for i in range(500): producer.produce(name, record(i), key=f"{i % 10}", partition=0)
    producer.produce(name, None, key="3", partition=0)  # a tombstone
    producer.flush(20)
    done = ingest(uri, "flights")
    assert (done.rows_in, done.refused) == (501, {"message: no value": 1})
    time.sleep(.3)
    def again(at=count(500)):
        producer.produce(name, record(i := next(at)), key=f"{i % 10}", partition=0)
        producer.flush(20)
        return sum(t.num_rows for t in source.batches(uri, bad=[])) < 100
    until(again)
    there = [i for t in source.batches(uri, bad=[]) for i in t["id"].to_pylist() if i >= 500]
    assert ingest(uri, "flights").rows_good == len(there) and ids("flights") == [*range(500), *there]


# Topics that change

def delete(admin, name: str):
    admin.delete_topics([name])[name].result(10)
    until(lambda: name not in admin.list_topics(timeout=10).topics)


@pytest.mark.parametrize("size", [50, 500])  # shorter than what was read, and longer
def test_a_topic_made_anew_is_another_one(broker, topic, admin, workspace, size):
    uri = broker.uri(name := topic(1))
    send(broker, name, range(200), 1)
    assert ingest(uri, "flights").rows_in == 200
    delete(admin, name)
    topic(1, name)
    send(broker, name, range(1000, 1000 + size), 1)
    said = here("ingest", uri, "flights")
    assert (said.code, len(said.lines)) == (1, 2) and "is another topic of the same name" in said.err, said.err
    assert ids("flights") == list(range(200))
    assert ingest(uri, "others").rows_in == size
    assert ingest(uri + "?from=earliest", "flights").rows_in == size
    assert ids("flights") == [*range(200), *range(1000, 1000 + size)] and ingest(uri, "flights").already


def test_a_topic_made_anew_after_the_plan_is_noticed(broker, topic, admin, workspace):
    uri = broker.uri(name := topic(1))
    send(broker, name, range(200), 1)
    plan = kafka.state(uri)["options"]
    delete(admin, name)
    topic(1, name)
    send(broker, name, range(300), 1)
    with pytest.raises(WorkFailed, match="was made anew since the plan"): list(kafka.read(uri, **plan))
    delete(admin, name)
    with pytest.raises(BadRequest, match="there is no topic"): list(kafka.read(uri, **plan))


def test_partitions_that_are_added_are_read_from_their_start(broker, topic, admin, workspace):
    from confluent_kafka.admin import NewPartitions
    small_parts(workspace, 1000)
    uri = broker.uri(name := topic(2)) + SMALL
    send(broker, name, range(5000), 2)
    def add():
        admin.create_partitions([NewPartitions(name, 5)])[name].result(10)
        until(lambda: len(admin.list_topics(name, timeout=10).topics[name].partitions) == 5)
        send(broker, name, range(5000, 6000), 5)
    silent = halfway(add)
    try: done = ingest(uri, "flights")
    finally: silent()
    assert done.rows_in == 5000 and ids("flights") == list(range(5000))
    assert ingest(uri, "flights").rows_in == 1000 and ids("flights") == list(range(6000))


# Messages

def test_broken_messages_go_to_quarantine_with_their_offsets(broker, topic, workspace):
    uri = broker.uri(name := topic(1))
    values = list(range(20_000))
    values[15_000:15_004] = [b"late", b'{"id": "word"}', b'{"id": 1, "new": 2}', None]
    send(broker, name, values, 1)
    with pytest.raises(BadRequest, match="partition 0, offset 15000: no JSON"):
        sum(t.num_rows for t in source.batches(uri))
    done = ingest(uri, "flights", key="id")
    assert (done.rows_in, done.rows_good) == (20_000, 19_996) and sorted(done.refused.values()) == [1, 1, 1, 1]
    assert sorted(Table("flights").quarantine.arrow()["_line"].to_pylist()) == [f"0:{15_000 + i}" for i in range(4)]
    for bad, words in (
        (uri + "s", f"Did you mean {name!r}?"),
        ("kafka://ann:s3cret@127.0.0.1:1/t?security.protocol=SASL_PLAINTEXT", "does not answer"),
        (uri + "?no.such=1", "No such configuration property"),
        (uri + "?metadata=offest", "Did you mean 'offset'?"),
    ):
        said = here("profile", bad)
        assert said.code == (3 if "answer" in words else 2) and len(said.lines) == 2, said.err
        assert words in said.err and "s3cret" not in said.err


def test_a_message_larger_than_the_reader_takes_is_named(broker, topic, workspace, monkeypatch):
    monkeypatch.setattr(readers, "PATIENCE", 5)
    name = topic(1, max_message_bytes=6_000_000)
    large = json.dumps({"id": 2, "word": "x"*3_000_000}).encode()
    send(broker, name, [b'{"id": 1, "word": "a"}', large, b'{"id": 3, "word": "a"}'], 1,
         **{"message.max.bytes": 6_000_000})
    assert ingest(broker.uri(name), "flights").rows_good == 3  # of the driver's own accord up to 100 MB
    said = here("profile", broker.uri(name) + "?receive.message.max.bytes=1000000&fetch.max.bytes=900000"
                "&message.max.bytes=900000")
    assert (said.code, len(said.lines)) == (2, 2) and "larger than the reader takes" in said.err, said.err


def test_keys_times_and_headers_are_columns(broker, topic, workspace):
    from confluent_kafka import Producer
    producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})
    name = topic(1)
    for i in range(4):
        producer.produce(name, b'{"n": %d}' % i if i != 2 else b"late", key=None if i == 1 else f"k{i}", partition=0,
                         timestamp=1_356_998_400_000 + i, headers=[("by", b"app"), ("by", None)] if i == 3 else None)
    producer.produce(name, b'{"n": 4}', key=b"\xff", partition=0)
    producer.flush(20)
    done = ingest(broker.uri(name) + "?metadata=key,timestamp,headers,partition,offset", "flights")
    assert done.refused == {"message: no JSON": 1, "message: key is not UTF-8": 1}
    rows = rows_of("flights").sort_by("n").to_pylist()
    assert [(r["n"], r["kafka_key"], r["kafka_partition"], r["kafka_offset"]) for r in rows] == [
        (0, "k0", 0, 0), (1, None, 0, 1), (3, "k3", 0, 3)]
    assert str(rows[0]["kafka_timestamp"]) == "2013-01-01 00:00:00+00:00"
    assert [r["kafka_headers"] for r in rows] == ["[]", "[]", '[["by", "app"], ["by", null]]']


SCHEMA = {"type": "record", "name": "row", "fields": [{"name": "id", "type": "long"},
          {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}


def avro(i: int) -> bytes:
    import fastavro
    fastavro.schemaless_writer(out := BytesIO(), SCHEMA, {"id": i, "at": 1_356_998_400_000 + i})
    return out.getvalue()


@pytest.fixture
def registry():
    "What Confluent's registry answers for a number; user and password wanted."
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers.get("Authorization") == "Basic YW5uOnMzY3JldA=="  # ann:s3cret
            self.send_response((200 if self.path == "/schemas/ids/7" else 404) if known else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"schema": json.dumps(SCHEMA)}).encode())
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}&registry_user=ann&registry_password=s3cret"
    server.shutdown()
    server.server_close()


def test_avro_by_a_file_and_by_a_registry(broker, topic, workspace, registry):
    (workspace/"row.avsc").write_text(json.dumps(SCHEMA))
    send(broker, plain := topic(1), [avro(i) if i != 50 else b"\xff" for i in range(100)], 1)
    done = ingest(broker.uri(plain) + f"?value=avro&schema={workspace/'row.avsc'}", "plain")
    assert (done.rows_good, done.refused) == (99, {"message: no record of the schema": 1})
    assert Table("plain").quarantine.arrow()["_line"].to_pylist() == ["0:50"]
    assert rows_of("plain").schema.field("at").type == pa.timestamp("us", "UTC")
    frame = lambda number, value: b"\0" + number.to_bytes(4, "big") + value
    values = [frame(9 if i == 20 else 7, avro(i)) if i != 50 else b"\0" for i in range(100)]
    send(broker, framed := topic(1), values, 1)
    uri = broker.uri(framed) + "?value=avro&registry="
    done = ingest(uri + registry, "framed")
    assert done.rows_good == 98
    assert sorted(Table("framed").quarantine.arrow()["_line"].to_pylist()) == ["0:20", "0:50"]
    said = here("ingest", uri + registry.replace("s3cret", "wr0ng"), "other")
    assert (said.code, len(said.lines)) == (2, 2) and "401" in said.err, said.err
    assert "s3cret" not in said.err and "wr0ng" not in said.err
    no_secret(workspace, "s3cret")


def test_protobuf(broker, topic, workspace):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="row.proto", package="air", syntax="proto3")
    row = file.message_type.add(name="Row")
    row.field.add(name="id", number=1, type=field.TYPE_INT64, label=field.LABEL_OPTIONAL)
    row.field.add(name="word", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    (workspace/"row.desc").write_bytes(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("air.Row"))
    values = [made(id=i, word="x").SerializeToString() if i != 50 else b"\xff" for i in range(100)]
    send(broker, name := topic(1), values, 1)
    done = ingest(broker.uri(name) + f"?value=protobuf&schema={workspace/'row.desc'}&message=air.Row", "flights")
    assert (done.rows_good, done.refused) == (99, {"message: no air.Row": 1})
    assert Table("flights").quarantine.arrow()["_line"].to_pylist() == ["0:50"]
    assert ids("flights") == [i for i in range(100) if i != 50]


# Logins

def test_a_login_over_tls(broker, topic, workspace):
    send(broker, name := topic(1), range(100), 1)
    assert ingest(broker.login_uri(name), "flights").rows_good == 100
    assert ingest(broker.login_uri(name), "flights").already
    no_secret(workspace, "s3cret")


@pytest.mark.parametrize("how, words", [
    ({"password": "wr0ng"}, "user, password"),
    ({"authority": "other.pem"}, "ssl.ca.location"),
    ({"authority": "no.pem"}, "ssl.ca.location"),
])
def test_a_login_that_is_refused_says_so_in_two_lines(broker, topic, workspace, how, words):
    said = here("ingest", broker.login_uri(topic(1), **how), "flights")
    assert (said.code, len(said.lines)) == (2, 2) and words in said.lines[1], said.err
    assert "s3cret" not in said.out + said.err and "wr0ng" not in said.out + said.err
    assert not Table("flights").exists
