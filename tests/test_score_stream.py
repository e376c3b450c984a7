"A topic scored into another: each message has one answer, through kills of scorers and of the broker."
import json
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import until
from test_follow import SCALAI, broker, producer, stop, topic  # noqa: F401
from test_serve import GOOD, made, own  # noqa: F401

from scalai_nb.core.settings import Settings
from scalai_nb.serving.body import Signature
from scalai_nb.serving.loaded_model import LoadedModel
from scalai_nb.training.pointer import Pointer, pointer_path


def scorer(folder: Path, source: str, sink: str) -> subprocess.Popen:
    command = [SCALAI, "score", "churn", source, sink, "--follow", "--key", "customer"]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def committed(broker, name: str) -> list[tuple[str, dict]]:  # where a message came from, its answer
    "All answers that a reader of committed transactions sees."
    from confluent_kafka import Consumer, KafkaError, TopicPartition
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "reader", "enable.partition.eof": True,
                         "isolation.level": "read_committed", "log_level": 0, "enable.auto.commit": False})
    partitions = consumer.list_topics(name, timeout=20).topics[name].partitions
    consumer.assign([TopicPartition(name, p, 0) for p in partitions])
    found, ended, end = [], set(), time.monotonic() + 60
    while len(ended) < len(partitions):
        assert time.monotonic() < end, "a transaction is still open"
        for m in consumer.consume(1_000, .2):
            if m.error() and m.error().code() == KafkaError._PARTITION_EOF: ended.add(m.partition())
            elif not m.error(): found.append((dict(m.headers())["source"].decode(), json.loads(m.value())))
    consumer.close()
    return found


def rows(numbers):
    for i in numbers: yield i, (json.dumps(GOOD | {"tenure": i, "customer": i}) if i % 50 else "{broken").encode()


@pytest.mark.slow
def test_each_message_has_one_answer_through_kills(own, broker, rounds):  # noqa: F811
    source, sink = topic(broker, "customers", 4), topic(broker, "answers", 3)
    client, sent, processes = producer(broker), 0, [scorer(own, source, sink)]
    try:
        for n, rng in enumerate(rounds.seeds(4, soak=10)):
            if n % 4 == 3: assert until(lambda: len(committed(broker, "answers")) >= sent, 180)  # they have met it
            for i, message in rows(range(sent, sent + 400)): client.produce("customers", message, partition=i % 4)
            client.flush(60)
            sent += 400
            time.sleep(rng.uniform(.5, 3))
            if n % 4 == 3:
                broker.kill()
                broker.start()
                continue
            if n % 2: processes.append(scorer(own, source, sink))  # next to the one that is killed
            processes[0].kill()
            processes.pop(0).communicate()
            if not processes: processes.append(scorer(own, source, sink))
        assert client.flush(120) == 0
        def done():
            assert (ended := [p for p in processes if p.poll() is not None]) == [], ended[0].communicate()
            return len(committed(broker, "answers")) >= sent
        assert until(done, 180)
        time.sleep(1)
        found = committed(broker, "answers")
    finally:
        for p in processes: stop(p)
    origins = Counter(origin for origin, _ in found)
    assert len(origins) == sent and set(origins.values()) == {1}, origins.most_common(3)
    wrong = [a for _, a in found if "error" in a]
    assert len(wrong) == sent//50 and {a["error"]["kind"] for a in wrong} == {"json"}
    model = LoadedModel("churn", Pointer.load(pointer_path(own/".scalai", "churn")).find(), own)
    for answer in [a for _, a in found if "error" not in a][:50]:
        row = Signature(model.inputs).row({n: (GOOD | {"tenure": answer["customer"]})[n] for n, _ in model.inputs})
        assert answer["score"] == pytest.approx(float(model.scores_of_values([row])[0]), abs=1e-6)
        assert answer["model_version"] == 1
    rounds.note(messages=sent, lost=0, doubled=0)


@pytest.mark.slow
def test_a_promoted_version_answers_what_comes_next(own, broker):  # noqa: F811
    from scalai_nb.training.registry import Registry
    source, sink = topic(broker, "swapped", 1), topic(broker, "swapped-answers", 1)
    client, process = producer(broker), scorer(own, source, sink)
    try:
        client.produce("swapped", next(iter(rows([1])))[1]); client.flush(30)
        assert until(lambda: len(committed(broker, "swapped-answers")) == 1)
        Registry(Settings(root=own)).promote("churn", 2, "better")
        client.produce("swapped", next(iter(rows([2])))[1]); client.flush(30)
        assert until(lambda: len(committed(broker, "swapped-answers")) == 2)
    finally: out, _ = stop(process)
    assert [a["model_version"] for _, a in committed(broker, "swapped-answers")] == [1, 2]
    assert "churn@2: 2 scored" in out


def test_what_cannot_be_scored_is_refused_in_two_lines(made, tmp_path):  # noqa: F811
    for uris, words in ((["kafka://a:1/x"], "needs a topic"), (["kafka://a:1/x", "scores"], "names no topic"),
                        (["kafka://a:1/x", "kafka://b:1/y"], "not one cluster"),
                        (["kafka://a:1/x", "kafka://a:1/x"], "where the rows come from"),
                        (["customers", "kafka://a:1/x"], "names no topic")):
        said = subprocess.run([SCALAI, "score", "churn", *uris, "--follow"], cwd=made,
                              text=True, capture_output=True)
        assert said.returncode == 2 and len(said.stderr.splitlines()) == 2 and words in said.stderr, said
