"Cassandra 5: one real node for the module, killed and started again; rows are counted and compared."

import json
import random
import signal
import string
import subprocess
import threading
import time
import uuid
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pytest
from cassandra.concurrent import execute_concurrent_with_args
from conftest import SCALAI, here, scalai
from servers.java import Cassandra
from test_sources import halfway, no_secret

from scalai_nb.core.errors import BadRequest, ScalaiError, WorkFailed
from scalai_nb.data import cassandra as room
from scalai_nb.data import readers, source
from scalai_nb.data.cassandra_sink import write_rows
from scalai_nb.data.ingest import ingest
from scalai_nb.data.profile import profile
from scalai_nb.data.table import Table
from scalai_nb.loop.flights import flights as all_flights

pytestmark = pytest.mark.slow

PASSWORD, COUNT = "s3cret/of@ann", 24_000
COLUMNS = ["month", "day", "carrier", "flight", "dep_time", "arr_delay", "distance", "time_hour"]


def flights() -> pa.Table:
    few = all_flights().slice(0, COUNT).select(COLUMNS)
    at = few.column_names.index("time_hour")
    few = few.set_column(at, "time_hour", few["time_hour"].cast(pa.timestamp("us", "UTC")))
    return few.append_column("id", pa.array(range(COUNT), pa.int64()))


@pytest.fixture(scope="module")
def cassandra():
    with Cassandra(tombstone_warn_threshold=1_000, tombstone_failure_threshold=3_000) as server:
        session = server.session()
        for statement in (
            "CREATE KEYSPACE air WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
            "CREATE TABLE air.flights (month bigint, day bigint, id bigint, carrier text, flight bigint, dep_time"
            " bigint, arr_delay double, distance bigint, time_hour timestamp, PRIMARY KEY ((month, day), id))",
            f"CREATE ROLE ann WITH PASSWORD = '{PASSWORD}' AND LOGIN = true",
            "GRANT ALL ON KEYSPACE air TO ann",
            f"CREATE ROLE bob WITH PASSWORD = '{PASSWORD}' AND LOGIN = true",
        ):
            session.execute(statement)
        session.cluster.shutdown()
        assert write_rows(flights(), uri(server, "air/flights")) == COUNT
        yield server


@pytest.fixture
def session(cassandra):
    found = cassandra.session()
    yield found
    found.cluster.shutdown()


def uri(server, rest: str, user="ann", password=PASSWORD) -> str:
    return f"cassandra://{user}:{quote(password, safe='')}@127.0.0.1:{server.port}/{rest}"


def rows_of(table: pa.Table) -> list[dict]: return table.select(sorted(table.column_names)).sort_by("id").to_pylist()


def small_pages(workspace, rows=10_000):
    (workspace/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[data]\nrows_per_part = {rows}\n")


def test_rows_come_whole_and_once(cassandra, workspace):
    at = uri(cassandra, "air/flights")
    done = ingest(at, "flights", key="id")
    assert (done.rows_in, done.rows_good, done.already) == (COUNT, COUNT, False)
    assert ingest(at, "flights", key="id").already and Table("flights").version == done.version
    assert rows_of(Table("flights").arrow()) == rows_of(flights())
    assert Table("flights").profile() == profile(at)
    frame = source.read(at, columns=["id", "carrier"])
    assert frame.npartitions == 8 and sorted(frame.id.compute()) == list(range(COUNT))
    assert max(t.num_rows for t in source.batches(at, rows=5_000)) < 5_000 + room.MOST
    no_secret(workspace, "s3cret")


def test_pieces_of_an_ingest_are_read_by_the_workers_of_a_cluster(cassandra, workspace):
    from distributed import Client
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as client:
        done = ingest(uri(cassandra, "air/flights"), "flights", key="id", client=client)
    assert done.rows_good == COUNT and rows_of(Table("flights").arrow()) == rows_of(flights())


def test_a_table_that_has_changed_is_another_batch(cassandra, workspace, session):
    session.execute("CREATE TABLE air.moving (id int PRIMARY KEY, n int)")
    at, hundred = uri(cassandra, "air/moving"), pa.array(range(100), pa.int32())
    write_rows(pa.table({"id": hundred, "n": hundred}), at)
    assert ingest(at, "moving", key="id").rows_good == 100
    session.execute("INSERT INTO air.moving (id, n) VALUES (100, 1)")
    more = ingest(at, "moving", key="id")
    assert (more.rows_good, more.rows_refused, Table("moving").rows) == (1, 100, 101)  # those of before are there
    session.execute("DELETE FROM air.moving WHERE id = 100")
    assert ingest(at, "moving", key="id").already  # the rows of the first batch again


def test_changed_between_plan_and_pass_is_refused(cassandra, workspace, session):
    small_pages(workspace)
    update = "UPDATE air.flights SET distance = {} WHERE month = 1 AND day = 1 AND id = 7"
    before = rows_of(flights())[7]["distance"]
    plan = room.state(uri(cassandra, "air/flights"))
    session.execute(update.format(-1))
    try:
        with pytest.raises(WorkFailed, match="has changed since the ingest was planned"):
            for _ in room.read(uri(cassandra, "air/flights"), **plan["options"]): pass
    finally: session.execute(update.format(before))
    assert sum(t.num_rows for t in room.read(uri(cassandra, "air/flights"), **plan["options"])) == COUNT


KINDS = {  # CQL → a random value as the driver takes it, and what Arrow then has
    "ascii": lambda r: (t := word(r, string.ascii_letters), t),
    "bigint": lambda r: (n := whole(r, 63), n),
    "blob": lambda r: (b := r.randbytes(r.randrange(9)), b),
    "boolean": lambda r: (b := r.random() < .5, b),
    "date": lambda r: (n := r.choice([whole(r, 31), 0, -1]), n),
    "decimal": lambda r: (d := Decimal(f"{whole(r, r.choice([5, 63, 200]))}E{r.randrange(-40, 40)}"), str(d)),
    "double": lambda r: (x := r.choice([r.gauss(0, 1e9), float("inf"), -0., 5e-324]), x),
    "duration": lambda r: (d := [(-1)**(s := r.randrange(2))*r.randrange(1 << 31), (-1)**s*r.randrange(1 << 31),
                                 (-1)**s*r.randrange(1 << 63)], d),
    "float": lambda r: (x := r.choice([.5, -1.25, float("-inf"), 2.**100]), x),
    "inet": lambda r: (a := r.choice(["1.2.3.4", "::1", "2001:db8::ff00:42:8329"]), a),
    "int": lambda r: (n := whole(r, 31), n),
    "smallint": lambda r: (n := whole(r, 15), n),
    "text": lambda r: (t := word(r, "aé日𝔸 \n'"), t),
    "time": lambda r: (n := r.randrange(86_400_000_000_000), n),
    "timestamp": lambda r: (n := r.choice([whole(r, 44), whole(r, 53), -1]), n),
    "timeuuid": lambda r: (u := uuid.uuid1(r.getrandbits(48), r.getrandbits(14)), str(u)),
    "tinyint": lambda r: (n := whole(r, 7), n),
    "uuid": lambda r: (u := uuid.UUID(int=r.getrandbits(128)), str(u)),
    "varint": lambda r: (n := whole(r, r.choice([7, 8, 63, 64, 400, 20_000])), str(Decimal(n))),
}


def whole(r: random.Random, bits: int) -> int:
    return r.choice([r.randrange(-1 << bits, 1 << bits), -1 << bits, (1 << bits) - 1])


def word(r: random.Random, letters: str) -> str: return "".join(r.choices(letters, k=r.randrange(6)))


def nested(r: random.Random, depth: int = 2) -> tuple:  # CQL, function of a value as in `KINDS`
    "A random type with types inside."
    if depth == 0: return r.choice([(k, f) for k, f in KINDS.items() if k != "duration"])
    shape = r.choice(["list", "set", "map", "tuple", "vector"])
    (a, make_a), (b, make_b) = nested(r, depth - 1), nested(r, depth - 1)
    many = lambda r, make: [make(r) for _ in range(r.randrange(1, 4))]
    if shape in ("list", "vector"):
        n = r.randrange(1, 4)
        items = (lambda r: [make_a(r) for _ in range(n)]) if shape == "vector" else lambda r: many(r, make_a)
        of = f"vector<{a}, {n}>" if shape == "vector" else f"frozen<list<{a}>>"
        return of, lambda r: tuple(map(list, zip(*items(r))))
    if shape == "set": return f"frozen<set<{a}>>", lambda r: ([(x := make_a(r))[0]], [x[1]])
    if shape == "map":
        def pair(r):
            (k, seen_k), (v, seen_v) = make_a(r), make_b(r)
            return [(k, v)], [{"key": seen_k, "value": seen_v}]
        return f"frozen<map<{a}, {b}>>", pair
    def two(r): (x, seen_x), (y, seen_y) = make_a(r), make_b(r); return (x, y), {"1": seen_x, "2": seen_y}
    return f"frozen<tuple<{a}, {b}>>", two


def given(value, cql: str):
    "As the driver takes it: its own classes for days, times and durations, pairs for maps whose keys have no hash."
    from cassandra.util import Date, Duration, OrderedMap, Time
    found = {"date": Date, "time": Time, "duration": lambda v: Duration(*v)}.get(cql)
    if found: return found(value)
    inner = cql.removeprefix("frozen<").removesuffix(">") if cql.startswith("frozen<") else cql
    if "<" not in inner: return value
    name, rest = inner.split("<", 1)
    parts = split_types(rest[:-1])
    if name == "map": return OrderedMap([(given(k, parts[0]), given(v, parts[1])) for k, v in value])
    if name == "tuple": return tuple(given(v, t) for v, t in zip(value, parts))
    return [given(v, parts[0]) for v in value]


def split_types(text: str) -> list[str]:
    out, depth = [""], 0
    for c in text:
        depth += (c == "<") - (c == ">")
        if c == "," and depth == 0: out.append("")
        else: out[-1] += c
    return [t.strip() for t in out]


def seen(values: pa.Array) -> list:
    "Days, times and moments as the numbers that they are."
    from scalai_nb.data.cassandra_sink import _plain
    plain = _plain(pa.chunked_array([values]) if isinstance(values, pa.Array) else values)
    return [[*v.values()] if isinstance(v, dict) and "nanoseconds" in v else v for v in plain]


def test_every_type_comes_back_as_the_driver_wrote_it(cassandra, session, rounds):
    "Random values, with the ends of each range, alone and inside one another; a null in each column."
    for n, r in enumerate(rounds.seeds(2, soak=20)):
        kinds = [*KINDS.items(), *(nested(r) for _ in range(12))]
        table, names = f"air.kinds{n}", [f"c{i}" for i in range(len(kinds))]
        session.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, "
                        + ", ".join(f"{c} {k}" for c, (k, _) in zip(names, kinds)) + ")")
        insert = session.prepare(f"INSERT INTO {table} (id, {', '.join(names)}) VALUES (?{', ?'*len(names)})")
        wanted = {}
        for i in range(60):
            pairs = [(None, None) if r.random() < .1 else make(r) for _, make in kinds]
            session.execute(insert, [i, *(v if v is None else given(v, k) for (v, _), (k, _) in zip(pairs, kinds))])
            wanted[i] = [s for _, s in pairs]
        rows = pa.concat_tables(source.batches(uri(cassandra, table.replace(".", "/"))))
        ids = rows["id"].to_pylist()
        for c, (kind, _), want in zip(names, kinds, zip(*(wanted[i] for i in ids))):
            assert seen(rows[c]) == [*want], kind
    rounds.note(values=60*(len(KINDS) + 12)*rounds.done, different=0)


def test_counters_statics_user_types_and_numbers_as_asked(cassandra, session):
    session.execute("CREATE TYPE air.place (street text, nr int)")
    session.execute("CREATE TABLE air.more (p int, id int, s text static, at place, exact decimal, whole varint,"
                    " PRIMARY KEY (p, id)) WITH CLUSTERING ORDER BY (id DESC)")
    session.execute("CREATE TABLE air.counts (id int PRIMARY KEY, n counter)")
    session.execute("UPDATE air.counts SET n = n - 7 WHERE id = 1")
    session.execute("INSERT INTO air.more (p, id, s, at, exact, whole) VALUES (1, 1, 'all', {street: 'a', nr: 1},"
                    " -1.50, 12345678901234567890)")
    session.execute("INSERT INTO air.more (p, id) VALUES (1, 2)")
    session.execute("ALTER TYPE air.place ADD floor int")
    first, second = next(source.batches(uri(cassandra, "air/more"))).sort_by("id").to_pylist()
    assert first == {"p": 1, "id": 1, "s": "all", "at": {"street": "a", "nr": 1, "floor": None}, "exact": "-1.50",
                     "whole": "12345678901234567890"}
    assert second == dict.fromkeys(first) | {"p": 1, "id": 2, "s": "all"}
    exact = next(source.batches(uri(cassandra, "air/more?decimal=9,2&varint=20")))
    assert exact.schema.field("whole").type == pa.decimal128(20, 0)
    assert exact.sort_by("id")["exact"].to_pylist() == [Decimal("-1.50"), None]
    with pytest.raises(BadRequest, match="'exact': a decimal does not fit"):
        next(source.batches(uri(cassandra, "air/more?decimal=9,0")))
    assert next(source.batches(uri(cassandra, "air/counts"))).to_pylist() == [{"id": 1, "n": -7}]


def test_a_partition_is_asked_for_alone(cassandra):
    at = uri(cassandra, "air/flights?where=month = 1 AND day IN (2, 3)")
    rows = pa.concat_tables(source.batches(at))
    want = [x for x in rows_of(flights()) if x["month"] == 1 and x["day"] in (2, 3)]
    assert rows_of(rows) == want and len(want) > 1_000
    with room.opened(at) as store: assert store.spans(256) == [[None, None]]
    fewer = uri(cassandra, "air/flights?where=month = 1 AND day = 2 AND id < 900")
    ids = next(source.batches(fewer))["id"].to_pylist()
    assert {x["id"] for x in want if x["day"] == 2 and x["id"] < 900} == set(ids)
    rest = source.batches(uri(cassandra, "air/flights?where=carrier = 'UA' ALLOW FILTERING"))
    assert sum(t.num_rows for t in rest) == sum(x["carrier"] == "UA" for x in rows_of(flights()))


def test_pages_have_the_weight_that_is_asked_for(cassandra, session):
    "A wide partition of 3,000 rows, ten of 300 times the size of the others."
    session.execute("CREATE TABLE air.wide (p int, id int, note text, PRIMARY KEY (p, id))")
    notes = ["x"*(30_000 if i % 300 == 7 else 100) for i in range(3_000)]
    write_rows(pa.table({"p": [1]*3_000, "id": range(3_000), "note": notes}), uri(cassandra, "air/wide"))
    with room.opened(uri(cassandra, "air/wide?page=100000")) as store:
        pages = [page for _, page, _ in store.pages([store.select()])]
    assert sum(p.rows for p in pages) == 3_000 and len(pages) > 5
    assert max(len(p.data) for p in pages) < 400_000  # where heavy rows come after light ones
    assert sum(t.num_rows for t in source.batches(uri(cassandra, "air/wide?page=100000"))) == 3_000


def test_tombstones_and_no_rows(cassandra, workspace, session):
    session.execute("CREATE TABLE air.gone (p int, id int, n int, PRIMARY KEY (p, id))")
    at = uri(cassandra, "air/gone")
    (none,) = source.batches(at)
    assert none.num_rows == 0 and none.column_names == ["p", "id", "n"]
    with pytest.raises(BadRequest, match="holds no rows"): ingest(at, "gone")
    write_rows(pa.table({"p": [1]*5_000, "id": range(5_000), "n": [0]*5_000}), at)
    gone = session.prepare("DELETE FROM air.gone WHERE p = 1 AND id = ?")
    execute_concurrent_with_args(session, gone, [(i,) for i in range(0, 2_000, 2)])
    assert sum(t.num_rows for t in source.batches(at)) == 4_000
    execute_concurrent_with_args(session, gone, [(i,) for i in range(4_900)])
    with pytest.raises(WorkFailed, match="more tombstones than") as told: ingest(at, "gone")
    assert len(str(told.value).splitlines()) == 2 and not Table("gone").exists


@pytest.mark.parametrize("rest, change, code, words", [
    ("air/flights", {"password": "wrong-one"}, 2, "user or password is wrong"),
    ("air/flights", {"user": "bob"}, 2, "no SELECT permission"),
    ("ari/flights", {}, 2, "Did you mean 'air'?"),
    ("air/flihgts", {}, 2, "Did you mean 'flights'?"),
    ("air", {}, 2, "names no table"),
    ("air/flights?consistency=QUORAM", {}, 2, "Did you mean 'QUORUM'?"),
    ("air/flights?consistency=THREE", {}, 3, "too few replicas answered"),
    ("air/flights?where=carrier = 'UA'", {}, 2, "names the whole partition key"),
    ("air/flights?where=month = ", {}, 2, "where="),
    ("air/flights?pages=7", {}, 2, "Did you mean 'page'?"),
    ("air/flights", {"port": 1}, 3, "does not answer"),
])
def test_says_in_two_lines_what_is_wrong(cassandra, workspace, rest, change, code, words):
    port, cassandra.port = cassandra.port, change.pop("port", cassandra.port)
    try: done = here("ingest", uri(cassandra, rest, **change), "flights")
    finally: cassandra.port = port
    assert done.code == code and len(done.lines) == 2 and words in done.err, done.err
    assert not any(secret in done.out + done.err for secret in ("s3cret", "wrong-one"))
    assert not Table("flights").exists


def restarted(server): server.kill(); threading.Timer(.5, server.start).start()


def test_node_killed_in_a_read_and_back(cassandra, workspace, monkeypatch):
    small_pages(workspace, 4_000)
    monkeypatch.setattr(readers, "PATIENCE", 120)
    monkeypatch.setattr(room, "LANES", 2)
    silent = halfway(lambda: restarted(cassandra))
    try: done = ingest(uri(cassandra, "air/flights?page=20000"), "flights", key="id")
    finally: silent()
    assert (done.rows_good, done.rows_refused) == (COUNT, 0)
    assert rows_of(Table("flights").arrow()) == rows_of(flights())


@pytest.mark.parametrize("change, words", [
    ("ALTER TABLE air.{} ADD more int", "column 'more' has changed"),
    ("ALTER TABLE air.{} DROP n", "name n |a type has changed"),
    ("DROP TABLE air.{}", "the table has gone|unconfigured table|does not exist"),
])
def test_schema_changed_in_a_read(cassandra, session, change, words):
    table = f"shape_{uuid.uuid4().hex[:8]}"
    session.execute(f"CREATE TABLE air.{table} (id int PRIMARY KEY, n int)")
    write_rows(pa.table({"id": range(2_000), "n": [0]*2_000}), uri(cassandra, f"air/{table}"))
    reading = source.batches(uri(cassandra, f"air/{table}?page=1000"), rows=100)
    next(reading)
    session.execute(change.format(table))
    with pytest.raises(WorkFailed, match=words) as told:
        for _ in reading: pass
    assert "since the read began" in str(told.value) and len(str(told.value).splitlines()) == 2


def test_ingest_killed_and_done_again(cassandra, workspace, rounds):
    "SIGKILL at any moment of an ingest; the next one brings every row once."
    small_pages(workspace)
    at, lost = uri(cassandra, "air/flights"), 0
    for n, r in enumerate(rounds.seeds(2, soak=20)):
        ingesting = subprocess.Popen([SCALAI, "ingest", at, f"flights{n}", "--key", "id"], stderr=subprocess.PIPE)
        place = workspace/".scalai"/"ingest"
        until = time.monotonic() + 60
        while ingesting.poll() is None and time.monotonic() < until and len([*place.glob("*.json")]) <= n:
            time.sleep(.02)
        time.sleep(r.random()*2)
        ingesting.kill()
        ingesting.communicate()
        done = ingest(at, f"flights{n}", key="id")
        assert done.rows_refused == 0 and rows_of(Table(f"flights{n}").arrow()) == rows_of(flights())
    rounds.note(lost=lost, doubled=0)
    no_secret(workspace, "s3cret")


def test_stopped_by_hand_leaves_no_noise(cassandra, workspace):
    "Ctrl-C within the read: exit 130, nothing of the driver on the terminal."
    small_pages(workspace)
    asked = [SCALAI, "ingest", uri(cassandra, "air/flights?page=3000"), "flights", "--key", "id"]
    reading = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while reading.poll() is None and time.monotonic() < until and not [*(workspace/".scalai").glob("ingest/*.json")]:
        time.sleep(.02)
    reading.send_signal(signal.SIGINT)
    _, said = reading.communicate(timeout=60)
    assert reading.returncode == 130 and "Traceback" not in said and "cassandra.c" not in said, said
    assert "s3cret" not in said
    done = scalai("ingest", uri(cassandra, "air/flights"), "flights", "--key", "id", cwd=workspace)
    assert done.code == 0 and f"{COUNT:,} of {COUNT:,} rows kept" in done.out, done.err
    assert "cassandra.c" not in done.err


# Rows to Cassandra

def test_rows_are_written_by_key_and_again(cassandra, session, monkeypatch):
    "The node is killed within a write; what was written before is written again, and each row is there once."
    session.execute("CREATE TABLE air.features (p int, id int, x double, tags list<text>, at timestamp,"
                    " PRIMARY KEY (p, id))")
    rows = pa.table({
        "p": pa.array([i//50 for i in range(8_000)], pa.int32()), "id": pa.array(range(8_000), pa.int32()),
        "x": [None if i % 7 == 0 else i/3 for i in range(8_000)], "tags": [["a", str(i)] for i in range(8_000)],
        "at": pa.array([datetime(1960, 1, 1, tzinfo=timezone.utc) + timedelta(hours=i) for i in range(8_000)],
                       pa.timestamp("us", "UTC")),
    })
    at = uri(cassandra, "air/features")
    older = rows.set_column(2, "x", pa.array([-1.]*len(rows)))
    assert write_rows(older.slice(0, 4_000), at) == 4_000
    monkeypatch.setattr(readers, "PATIENCE", 120)
    def parts():
        yield rows.slice(0, 3_000)
        restarted(cassandra)
        yield rows.slice(3_000)
    assert write_rows(parts(), at) == 8_000
    back = pa.concat_tables(source.batches(at)).sort_by("id").select(rows.column_names)
    assert back.to_pylist() == rows.to_pylist()  # nulls too, where there was -1


@pytest.mark.parametrize("rows, words", [
    (pa.table({"p": [1]}), "key column 'id' is not in the rows"),
    (pa.table({"p": [1], "id": [1], "xx": [1.]}), "Did you mean 'x'?"),
    (pa.table({"p": [1], "id": [None]}), "'id' is null in 1 rows"),
    (pa.table({"p": [1 << 40], "id": [1]}), "'p' does not fit int"),
    (pa.table({"p": [1], "id": [1], "at": [datetime(2026, 1, 1, 0, 0, 0, 1)]}), "'at' does not fit timestamp"),
])
def test_rows_that_cannot_be_written(cassandra, rows, words):
    with pytest.raises(ScalaiError) as told: write_rows(rows, uri(cassandra, "air/features"))
    assert words in str(told.value) and len(str(told.value).splitlines()) == 2


def test_scores_go_where_an_application_looks_them_up(cassandra, workspace, session):
    import torch

    from scalai_nb.compression.export import export
    from scalai_nb.data.prep import Prep
    from scalai_nb.training.models import MLP
    frame = pd.DataFrame({"id": range(500), "distance": [float(i) for i in range(500)]})
    prep = Prep.fit(profile(frame[["distance"]]))
    torch.manual_seed(0)
    export(MLP(len(prep.features)).eval(), prep, workspace/"late.onnx", target="late")
    frame.to_csv(workspace/"rows.csv", index=False)
    session.execute("CREATE TABLE air.scores (id bigint PRIMARY KEY, score float, prediction boolean,"
                    " model_version int)")
    asked = ("score", "late.onnx", "rows.csv", "--to", uri(cassandra, "air/scores"), "--json")
    done = here(*asked)
    assert done.code == 2 and json.loads(done.out)["error"]["message"].endswith("'id' is not in the rows."), done.out
    assert not Table("scores").exists
    for already in False, True:
        done = here(*asked, "--key", "id")
        assert done.code == 0 and (done.doc["sent"], done.doc["already"]) == (500, already), done.out + done.err
    wanted = Table("scores").arrow(columns=["id", "score", "prediction"]).sort_by("id").to_pylist()
    back = pa.concat_tables(source.batches(uri(cassandra, "air/scores"), columns=["id", "score", "prediction"]))
    assert back.sort_by("id").to_pylist() == wanted


def test_far_days_are_no_python_dates(cassandra, session):
    session.execute("CREATE TABLE air.days (id int PRIMARY KEY, d date)")
    session.execute("INSERT INTO air.days (id, d) VALUES (1, '1969-12-31')")
    assert next(source.batches(uri(cassandra, "air/days")))["d"].to_pylist() == [date(1969, 12, 31)]
