"Sources against real servers, named in each test: rows counted, memory measured, no password leaked."

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import servers
from conftest import here, scalai

from scalai_nb.core import events
from scalai_nb.core.errors import BadRequest, Unreachable, WorkFailed
from scalai_nb.data import readers, source
from scalai_nb.data.ingest import ingest
from scalai_nb.data.ingest_plan import unfinished
from scalai_nb.data.profile import profile
from scalai_nb.data.table import Table
from scalai_nb.loop.flights import flights as all_flights

pytestmark = pytest.mark.slow

PEAK = """
import resource, sys
from scalai_nb.data import source
from scalai_nb.data.profile import profile  # what it imports is no part of the rows
for uri in sys.argv[1:]:
    n = 0
    for t in source.batches(uri, rows=ROWS): n += t.num_rows; del t
    print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peaks(*uris, rows=50_000, env=None) -> list[tuple[int, int]]:
    "Rows read from each URI, one after another in one process, and its peak memory (MB) after each."
    done = subprocess.run(
        [sys.executable, "-c", PEAK.replace("ROWS", str(rows)), *uris],
        capture_output=True,
        text=True,
        env=os.environ | (env or {}),
    )
    assert done.returncode == 0, done.stderr
    return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]


def rows_of(name: str) -> pa.Table: return Table(name).arrow()


def no_secret(folder: Path, secret: str):
    "Nothing that is kept in a workspace holds a password."
    for f in folder.rglob("*"):
        if f.is_file(): assert secret.encode() not in f.read_bytes(), f


def same(table: pa.Table, other: pa.Table, key="id"):
    columns = sorted(other.column_names)
    assert (
        table.select(columns)
        .sort_by(key)
        .equals(other.select(columns).cast(table.select(columns).schema).sort_by(key))
    )


def numbered() -> pa.Table: return all_flights().append_column("id", pa.array(range(len(all_flights()))))


# PostgreSQL of Debian

@pytest.fixture(scope="module")
def postgres():
    with servers.Postgres() as server:
        import pyarrow.csv as pacsv
        text = pa.BufferOutputStream()
        pacsv.write_csv(numbered(), text, pacsv.WriteOptions(include_header=False))
        kinds = {pa.int64(): "bigint", pa.string(): "text", pa.float64(): "double precision"}
        with server.connect() as db:
            stated = ", ".join(
                f'"{f.name}" {"timestamptz" if f.name == "time_hour" else kinds[f.type]}' for f in numbered().schema
            )
            db.execute(f"CREATE TABLE flights ({stated}, PRIMARY KEY (id))")
            with db.cursor().copy("COPY flights FROM STDIN (FORMAT csv)") as copy:
                copy.write(text.getvalue().to_pybytes())
        yield server


def test_postgres_rows_come_whole_and_once(postgres, workspace):
    uri = postgres.uri("?table=flights")
    done = ingest(uri, "flights", key="id")
    assert (done.rows_in, done.rows_good, done.already) == (336_776, 336_776, False)
    assert ingest(uri, "flights", key="id").already and Table("flights").version == done.version
    had = rows_of("flights")
    assert had.schema.field("time_hour").type == pa.timestamp("us", "UTC")
    same(had.drop_columns("time_hour"), numbered().drop_columns("time_hour"))
    assert Table("flights").profile() == profile(uri)
    frame = source.read(uri, columns=["id", "carrier"], rows=50_000)
    assert frame.npartitions == 7 and frame.carrier.value_counts().compute().to_dict() == {
        x["values"]: x["counts"] for x in pc.value_counts(numbered()["carrier"]).to_pylist()
    }
    some = profile(
        postgres.uri("?query=SELECT carrier, arr_delay FROM flights WHERE month = 1 AND carrier LIKE 'U%25'")
    )
    assert (
        some.rows
        == pc.sum(pc.and_(pc.equal(numbered()["month"], 1), pc.starts_with(numbered()["carrier"], "U"))).as_py()
    )
    no_secret(workspace, "s3cret")


def test_postgres_types_keep_what_they_hold(postgres, workspace):
    with postgres.connect() as db:
        db.execute("CREATE TYPE mood AS ENUM ('calm')")
        db.execute(
            """CREATE TABLE kinds AS SELECT 9007199254740993::bigint AS big, 12.345::numeric(12,3) AS exact,
            1.5::numeric AS loose, true AS yes,
            date '2013-01-01' AS day,
            timestamptz '2013-01-01 10:00:00.123456+01' AS at, timestamp '2013-01-01 10:00' AS naive,
            '0a'::bytea AS raw,
            '{"a": 1}'::jsonb AS doc, 'calm'::mood AS mood, 'x'::char(3) AS padded, interval '1 day' AS span,
            inet '1.2.3.4' AS host,
            '6ecd8c99-4036-403d-bf84-cf8400f67836'::uuid AS id, ARRAY[1, 2] AS list,
            NULL::int AS nothing"""
        )
    t = pa.concat_tables(source.batches(postgres.uri("?table=public.kinds")))
    assert t.to_pylist()[0] | {"at": str(t["at"][0].as_py())} == {
        "big": 9007199254740993,
        "exact": __import__("decimal").Decimal("12.345"),
        "loose": 1.5,
        "yes": True,
        "day": __import__("datetime").date(2013, 1, 1),
        "at": "2013-01-01 09:00:00.123456+00:00",
        "naive": __import__("datetime").datetime(2013, 1, 1, 10),
        "raw": b"0a",
        "doc": '{"a": 1}',
        "mood": "calm",
        "padded": "x",
        "span": "1 day",
        "host": "1.2.3.4/32",
        "id": "6ecd8c99-4036-403d-bf84-cf8400f67836",
        "list": [1, 2],
        "nothing": None,
    }
    assert source.schema(postgres.uri("?table=kinds")) == t.schema and t.schema.field("exact").type == pa.decimal128(
        12, 3
    )


def test_postgres_ranges_cover_ties_and_nulls(postgres, workspace):
    "A key of times that repeats and is sometimes missing: every row once, by stream and by partition."
    with postgres.connect() as db:
        db.execute(
            "CREATE TABLE ticks AS SELECT i AS n, CASE WHEN i % 10 = 0 THEN NULL WHEN i < 6000 THEN timestamp"
            " '2013-01-01' ELSE timestamp '2013-01-01' + i * interval '1 second' END AS at FROM generate_series(1,"
            " 10000) i"
        )
        db.execute("CREATE TABLE none (n int, at timestamp)")
    uri = postgres.uri("?table=ticks&by=at")
    for numbers in (
        pa.concat_tables(source.batches(uri, rows=700))["n"].to_pylist(),
        source.read(uri, rows=700).n.compute().tolist(),
    ):
        assert sorted(numbers) == list(range(1, 10_001))
    assert max(t.num_rows for t in source.batches(uri, rows=700)) <= 6000
    empty = list(source.batches(postgres.uri("?table=none&by=at")))
    assert [t.num_rows for t in empty] == [0] and empty[0].column_names == ["n", "at"]
    with pytest.raises(BadRequest, match="holds no rows"): ingest(postgres.uri("?table=none"), "none")


def test_postgres_memory_does_not_grow_with_rows(postgres):
    query = "?query=SELECT i AS id, md5(i::text) AS word, random() AS x FROM generate_series(1, {}) i"
    (few, before), (many, after), (keyed, last) = peaks(
        postgres.uri(query.format(100_000)),
        postgres.uri(query.format(1_000_000)),
        postgres.uri(query.format(500_000) + "&by=id"),
    )
    assert (few, many, keyed) == (100_000, 1_000_000, 500_000)
    assert last - before < 60, (before, after, last)  # the rows are 50 MB in Arrow, and several times that as text


def halfway(do):
    "Call `do` once, when an ingest has handed on its second part."
    seen = []
    def hear(topic, rows=0, done=False, **_):
        if done: return
        seen.append(rows)
        if len(seen) == 2: do()
    return events.subscribe(hear, "ingest")


def test_postgres_restarts_midway_and_nothing_is_lost(postgres, workspace, monkeypatch):
    (workspace/"settings.ini").write_text("[workspace]\nhome = .scalai\n[data]\nrows_per_part = 40000\n")
    def restart():
        postgres.stop()
        threading.Timer(1.5, postgres.start).start()
    silent = halfway(restart)
    try: done = ingest(postgres.uri("?table=flights"), "flights", key="id")
    finally: silent()
    assert done.rows_good == 336_776 and done.rows_refused == 0
    same(rows_of("flights").drop_columns("time_hour"), numbered().drop_columns("time_hour"))


def test_postgres_gone_for_good_leaves_the_table_as_it_was(postgres, workspace, monkeypatch):
    (workspace/"settings.ini").write_text("[workspace]\nhome = .scalai\n[data]\nrows_per_part = 40000\n")
    monkeypatch.setattr(readers, "PATIENCE", 1)
    ingest(postgres.uri("?query=SELECT * FROM flights WHERE month = 1"), "flights", key="id")
    for asked in ("?table=flights", "?query=SELECT * FROM flights"):  # with a key, and without
        silent = halfway(postgres.stop)
        try:
            with pytest.raises(Unreachable, match="went away after") as told:
                ingest(postgres.uri(asked), "flights", key="id")
        finally:
            silent()
            postgres.start()
            postgres.connect().close()
        assert "s3cret" not in str(told.value) and len(str(told.value).splitlines()) == 2
        assert Table("flights").version == 0 and Table("flights").rows == 27_004
    assert [p.uri for p in unfinished()] and all("s3cret" not in p.uri for p in unfinished())
    whole = ingest(postgres.uri("?table=flights"), "flights", key="id")
    assert (whole.rows_good, whole.rows_refused) == (309_772, 27_004)  # January was there
    named = set(Table("flights").delta().file_uris())
    assert {str(f) for f in (workspace / ".scalai/tables/flights").rglob("*.parquet")} == {
        u.removeprefix("file://") for u in named
    }


def test_postgres_changed_between_plan_and_pass_is_refused(postgres, workspace, monkeypatch):
    from scalai_nb.data import ingest as room
    with postgres.connect() as db:
        db.execute("CREATE TABLE moving AS SELECT i AS id FROM generate_series(1, 1000) i")
        shape = room.raw_schema
        def late(*args): db.execute("UPDATE moving SET id = -1 WHERE id = 500"); return shape(*args)
        monkeypatch.setattr(room, "raw_schema", late)
        with pytest.raises(WorkFailed, match="has changed since"): ingest(postgres.uri("?table=moving"), "moving")
        assert not Table("moving").exists
        monkeypatch.setattr(room, "raw_schema", shape)
        assert ingest(postgres.uri("?table=moving"), "moving").rows_good == 1000


@pytest.mark.parametrize(
    "change, code, words",
    [
        ({"password": "wrong-one"}, 2, "password authentication failed"),
        ({"rest": "?table=flihgts"}, 2, "does not exist"),
        ({"rest": "?table=flights&by=idd"}, 2, "Did you mean 'id'?"),
        ({"rest": "?query=DELETE FROM flights RETURNING *"}, 2, ""),
        ({"rest": "?query=SELEC 1"}, 2, "syntax error"),
        ({"rest": ""}, 2, "neither a table nor a query"),
        ({"port": 1}, 3, "does not answer"),
        ({"rest": "?query=SELECT 1 AS a, 2 AS a"}, 2, "twice"),
    ],
)
def test_postgres_says_in_two_lines_what_is_wrong(postgres, workspace, change, code, words):
    port, postgres.port = postgres.port, change.get("port", postgres.port)
    try: done = here("ingest", postgres.uri(change.get("rest", "?table=flights"), change.get("password")), "flights")
    finally: postgres.port = port
    assert done.code == code and len(done.lines) == 2 and words in done.err, done.err
    assert not any(secret in done.out + done.err for secret in ("s3cret", "wrong-one"))
    with postgres.connect() as db: assert db.execute("SELECT count(*) FROM flights").fetchone() == (336_776,)


@pytest.mark.parametrize(
    "uri, module, extra",
    [
        ("postgresql://h/db?table=t", "adbc_driver_postgresql", "sql"),
        ("mongodb://h/db.c", "pymongo", "mongo"),
        ("kafka://h:1/t", "confluent_kafka", "kafka"),
        ("s3://b/x.csv", "s3fs", "aws"),
        ("gs://b/x.csv", "gcsfs", "gcp"),
        ("abfs://b/x.csv", "adlfs", "azure"),
    ],
)
def test_a_missing_driver_names_its_extra(workspace, uri, module, extra):
    code = (
        f"import sys; sys.modules['{module}'] = None; from scalai_nb.cli.main import main; sys.argv = ['scalai',"
        f" 'profile', '{uri}']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr.splitlines()[1] == f"pip install 'scalai-nb[{extra}]'"
        and len(done.stderr.splitlines()) == 2
    ), done.stderr


# MongoDB's protocol by SecantusDB

MONGO = ["carrier", "flight", "dep_time", "arr_delay", "distance", "time_hour"]


@pytest.fixture(scope="module")
def mongo():
    from pymongo import MongoClient
    with servers.mongo() as server:
        with MongoClient(f"mongodb://127.0.0.1:{server.port}") as client:
            client.air.command("createUser", "ann", pwd="s3cret", roles=["readWrite"])
            few = all_flights().slice(0, 2_500).select(MONGO).to_pylist()
            client.air.flights.insert_many(
                [
                    {"_id": i, "plane": {"carrier": d["carrier"], "flight": d["flight"]}}
                    | {n: v for n, v in d.items() if v is not None}
                    for i, d in enumerate(few)
                ]
            )
        server.stop()
        server.start("--auth")
        yield server


def mongo_uri(server, rest="air.flights") -> str: return f"mongodb://ann:s3cret@127.0.0.1:{server.port}/{rest}"


def test_mongo_documents_come_whole_and_once(mongo, workspace):
    uri = mongo_uri(mongo)
    assert [t.num_rows for t in source.batches(uri, rows=1000)] == [1000, 1000, 500]
    done = ingest(uri, "flights", key="_id")
    assert (done.rows_good, done.rows_refused) == (2_500, 0) and ingest(uri, "flights", key="_id").already
    had, want = rows_of("flights").sort_by("_id"), all_flights().slice(0, 2_500).select(MONGO)
    for n in want.column_names: assert had[n].combine_chunks().equals(want[n].combine_chunks().cast(had[n].type)), n
    assert had["plane"][0].as_py() == {"carrier": "UA", "flight": 1545}
    frame = source.read(uri, columns=["carrier"], rows=1000)
    assert frame.npartitions == 3 and frame.carrier.value_counts().compute().to_dict() == {
        x["values"]: x["counts"] for x in pc.value_counts(want["carrier"]).to_pylist()
    }
    assert rows_of("flights").column_names[:2] == ["_id", "plane"]
    no_secret(workspace, "s3cret")


def test_mongo_fields_are_all_found_whatever_their_types(mongo, workspace):
    from datetime import datetime

    import bson
    from pymongo import MongoClient
    with MongoClient(mongo_uri(mongo, "air")) as client:
        odd = client.air.odd
        odd.insert_many([{"_id": i, "n": i} for i in range(500)])
        odd.insert_many(
            [
                {"_id": "late", "n": 2.5, "word": 1},
                {
                    "_id": bson.ObjectId("6b06f2cfc1f298351926db77"),
                    "n": None,
                    "word": "x",
                    "at": datetime(2013, 1, 1, 10, 0, 0, 5000),
                    "list": [{"z": 1}, {"y": "a"}],
                    "exact": bson.Decimal128("1.5"),
                    "raw": b"12",
                    "yes": True,
                },
            ]
        )
        rows = [r for t in source.batches(mongo_uri(mongo, "air.odd"), rows=100) for r in t.to_pylist()]
        assert len(rows) == 502 and sum(r["n"] or 0 for r in rows) == sum(range(500)) + 2.5
        last = next(r for r in rows if r["_id"] == "6b06f2cfc1f298351926db77")
        assert last | {"at": last["at"].isoformat()} == {
            "_id": "6b06f2cfc1f298351926db77",
            "n": None,
            "word": "x",
            "at": "2013-01-01T10:00:00.005000+00:00",
            "list": [{"y": None, "z": 1}, {"y": "a", "z": None}],
            "exact": 1.5,
            "raw": b"12",
            "yes": True,
        }
        odd.insert_one({"_id": 1000, "n": {"deep": 1}})
        with pytest.raises(BadRequest, match="Field 'n' holds"): next(source.batches(mongo_uri(mongo, "air.odd")))
        assert next(source.batches(mongo_uri(mongo, "air.odd"), columns=["word"])).column_names == ["word"]


def test_mongo_changed_while_it_is_read_is_refused(mongo, workspace):
    from pymongo import MongoClient
    (workspace/"settings.ini").write_text("[workspace]\nhome = .scalai\n[data]\nrows_per_part = 500\n")
    with MongoClient(mongo_uri(mongo, "air")) as client:
        client.air.moving.insert_many([{"_id": i} for i in range(2000)])
        silent = halfway(lambda: client.air.moving.update_one({"_id": 3}, {"$set": {"late": True}}))
        try:
            with pytest.raises(WorkFailed, match="has changed since"): ingest(mongo_uri(mongo, "air.moving"), "moving")
        finally: silent()
        assert not Table("moving").exists and ingest(mongo_uri(mongo, "air.moving"), "moving").rows_good == 2000


def test_mongo_restarts_midway_and_nothing_is_lost(mongo, workspace):
    (workspace/"settings.ini").write_text("[workspace]\nhome = .scalai\n[data]\nrows_per_part = 500\n")
    def restart():
        mongo.stop()
        threading.Timer(1, mongo.start, ["--auth"]).start()
    silent = halfway(restart)
    try: done = ingest(mongo_uri(mongo), "flights", key="_id")
    finally: silent()
    assert (done.rows_good, done.rows_refused) == (2_500, 0)


def test_mongo_memory_does_not_grow_with_documents(mongo):
    from pymongo import MongoClient
    with MongoClient(mongo_uri(mongo, "air")) as client:
        for name, n in ("few", 1_000), ("many", 8_000):
            for at in range(0, n, 1_000):
                client.air[name].insert_many([{"_id": i, "text": f"{i:015000}"} for i in range(at, at + 1_000)])
    (few, before), (many, after) = peaks(mongo_uri(mongo, "air.few"), mongo_uri(mongo, "air.many"), rows=500)
    assert (few, many) == (1_000, 8_000) and after - before < 60, (before, after)  # the documents are 120 MB


@pytest.mark.parametrize(
    "uri, code, words",
    [
        ("mongodb://ann:wrong-one@127.0.0.1:{port}/air.flights", 2, "Check user, password"),
        ("mongodb://ann:s3cret@127.0.0.1:{port}/air.flihgts", 2, "Did you mean 'flights'?"),
        ("mongodb://ann:s3cret@127.0.0.1:{port}/air", 2, "names no collection"),
        ("mongodb://ann:s3cret@127.0.0.1:1/air.flights?serverSelectionTimeoutMS=300", 3, "does not answer"),
    ],
)
def test_mongo_says_in_two_lines_what_is_wrong(mongo, workspace, uri, code, words):
    done = here("ingest", uri.format(port=mongo.port), "flights")
    assert done.code == code and len(done.lines) == 2 and words in done.err, done.err
    assert not any(secret in done.out + done.err for secret in ("s3cret", "wrong-one"))


# Object stores: S3 by moto, Google's by fake-gcs-server, Azure's by Azurite

STORE = """
import json, sys, tempfile, time
from pathlib import Path
import pyarrow as pa, pyarrow.csv as pacsv, pyarrow.parquet as pq
from scalai_nb.core.storage import filesystem
from scalai_nb.data import source
from scalai_nb.data.ingest import ingest
from scalai_nb.data.profile import profile
from scalai_nb.loop.flights import month_rows
root, delta = sys.argv[1], sys.argv[2] == "delta"
fs, base = filesystem(root)
rows, out = month_rows(1), {}
def put(name, write, compression=None):
    with fs.open(f"{base}/{name}", "wb", compression=compression) as f: write(f)
put("a.csv", lambda f: pacsv.write_csv(rows, f)); put("a.csv.gz", lambda f: pacsv.write_csv(rows, f), "gzip")
put("a.parquet", lambda f: pq.write_table(rows, f, row_group_size=10_000))
def ipc(f):
    with pa.ipc.new_file(f, rows.schema) as w: w.write_table(rows)
put("a.arrow", ipc)
put("a.jsonl", lambda f: f.writelines((json.dumps(r) + chr(10)).encode() for r in rows.to_pylist()))
put("bad.csv", lambda f: f.write(b"a,b\\n1,2\\n3\\n")); put("empty.csv", lambda f: None)
for name in ("a.csv", "a.csv.gz", "a.parquet", "a.arrow", "a.jsonl"):
    again = lambda: ingest(f"{root}/{name}", "t" + str(len(out)),
                           key=["carrier", "flight", "origin", "day", "sched_dep_time"])
    done = again()
    assert again().already
    out[name] = [done.rows_good, done.rows_refused, len(source.read(f"{root}/{name}", rows=10_000))]
out["a.*"] = profile(f"{root}/a.p*").rows
bad = ingest(f"{root}/bad.csv", "bad"); out["bad.csv"] = [bad.rows_good, bad.rows_refused]
if delta:
    import deltalake
    deltalake.write_deltalake(f"{root}/delta", rows)
    out["delta"] = [ingest(f"{root}/delta", "copy").rows_good, len(source.read(f"{root}/delta"))]
for wrong in ("a.csw", "empty.csv", "nothing/*.csv"):
    try: ingest(f"{root}/{wrong}", "none")
    except Exception as e: out[wrong] = [type(e).__name__, str(e)]
print(json.dumps(out))
"""


def check_store(root: str, workspace: Path, env: dict, delta=False):
    done = subprocess.run(
        [sys.executable, "-c", STORE, root, "delta" if delta else "no"],
        capture_output=True,
        text=True,
        cwd=workspace,
        env=os.environ | env,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    for name in ("a.csv", "a.csv.gz", "a.parquet", "a.arrow", "a.jsonl"):
        assert said[name] == [27_004, 0, 27_004], (name, said)
    assert (
        said["a.*"] == 27_004 and said["bad.csv"] == [1, 1] and (not delta or said["delta"] == [27_004, 27_004])
    ), said
    assert (
        said["a.csw"] == ["BadRequest", f"There is no file {root}/a.csw.\nDid you mean 'a.csv'?"]
        and said["empty.csv"][1].startswith(f"{root}/empty.csv is empty")
        and "There is no file" in said["nothing/*.csv"][1]
    ), said


def says(code: int, words: str, uri: str, workspace: Path, **env):
    done = scalai("ingest", uri, "t", cwd=workspace, **env)
    assert done.code == code and len(done.lines) == 2 and words in done.err, done.err


@contextmanager
def store(kind: str):
    "A store with an empty bucket `air`: its root, what the environment must say, and the secret in it."
    if kind == "s3":
        import boto3
        with servers.s3() as server:
            env = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
                "AWS_ACCESS_KEY_ID": "ann",
                "AWS_SECRET_ACCESS_KEY": "s3cret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ALLOW_HTTP": "true",
            }
            boto3.client(
                "s3",
                endpoint_url=env["AWS_ENDPOINT_URL"],
                aws_access_key_id="ann",
                aws_secret_access_key="s3cret",
                region_name="us-east-1",
            ).create_bucket(Bucket="air")
            yield "s3://air", env, "s3cret"
    elif kind == "gs":
        import httpx
        with servers.gcs() as server:
            env = {
                "STORAGE_EMULATOR_HOST": (url := f"http://127.0.0.1:{server.port}"),
                "FSSPEC_GS_TOKEN": "anon",
                "FSSPEC_GCS_TOKEN": "anon",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            }
            assert httpx.post(f"{url}/storage/v1/b?project=p", json={"name": "air"}).status_code == 200
            yield "gs://air", env, "anon-is-no-secret"
    else:
        from azure.storage.blob import BlobServiceClient
        with servers.azurite() as server:
            # Azurite's, published
            key, url = (
                "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
                f"http://127.0.0.1:{server.port}",
            )
            env = {
                "AZURE_STORAGE_CONNECTION_STRING": (
                    f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={key};"
                    f"BlobEndpoint={url}/devstoreaccount1;"
                ),  # for fsspec; the others for delta-rs
                "AZURE_STORAGE_ACCOUNT_NAME": "devstoreaccount1",
                "AZURE_STORAGE_ACCOUNT_KEY": key,
                "AZURE_STORAGE_USE_EMULATOR": "true",
                "AZURITE_BLOB_STORAGE_URL": url,
            }
            BlobServiceClient.from_connection_string(env["AZURE_STORAGE_CONNECTION_STRING"]).create_container("air")
            yield "abfs://air", env, key


@pytest.mark.parametrize("kind", ["s3", "gs", "abfs"])
def test_every_format_on_a_store(workspace, kind):
    with store(kind) as (root, env, secret):
        # delta-rs writes by Google's XML API, which fake-gcs-server does not speak
        check_store(f"{root}/data", workspace, env, delta=kind != "gs")
        no_secret(workspace, secret)
        if kind == "s3": says(2, "There is no file", "s3://nowhere/x.csv", workspace, **env)
    if kind == "s3":
        says(3, "the store does not answer", "s3://air/data/a.csv", workspace, **env | {"AWS_MAX_ATTEMPTS": "1"})


KEPT = """
import pyarrow as pa, pyarrow.parquet as pq
from concurrent.futures import ThreadPoolExecutor
from scalai_nb.core.errors import BadRequest
from scalai_nb.data.contract import Contract
from scalai_nb.data.rules import Rule
from scalai_nb.data.ingest import ingest
from scalai_nb.data.profile import profile
from scalai_nb.data.retention import gc
from scalai_nb.data.table import Table
from scalai_nb.data.write import write
from scalai_nb.loop.flights import month_rows
how = dict(contract=Contract({"dep_delay": Rule("int64", max=300)}), period="month", fold=["flight"],
           key=["carrier", "flight", "origin", "month", "day", "sched_dep_time"])
pq.write_table(month_rows(1), "january.parquet")
done, t = ingest("january.parquet", "flights", **how), Table("flights")
assert (done.rows_good, done.rows_refused) == (26_979, 25)
assert ingest("january.parquet", "flights", **how).already and t.version == 0
with ThreadPoolExecutor(2) as pool:  # at once: the store decides who is first
    two = list(pool.map(lambda m: write(month_rows(m), "flights", batch=f"m{m}", **how), (2, 3)))
assert sorted(w.version for w in two) == [1, 2] and t.rows == done.rows_good + sum(w.rows_good for w in two)
assert len(t.frame()) == t.rows == t.profile().rows and len(t.profiles()) == 3
assert t.profile(version=0) == profile(t.arrow(version=0))
bad = t.quarantine.arrow()
repaired = bad.set_column(bad.column_names.index("dep_delay"), "dep_delay", pa.array(["300"]*len(bad)))
back = t.quarantine.release(repaired)
assert (back.rows_good, back.rows_refused, t.quarantine.rows) == (115, 0, 0)
assert t.diff(0)[0].startswith("26,979 → 80,789 rows")
before = t.profile()
assert t.compact() > 0 and sum(f.files for f in gc(days=0)) > 0 and gc(days=0)[0].files == 0
assert t.profile() == before == profile(t.arrow()) and t.sample(3).shape == (3, 20)
try: t.arrow(version=0)
except BadRequest as e: assert "taken away by a vacuum" in str(e)
else: raise AssertionError("the files are gone")
print("kept")
"""


@pytest.mark.parametrize("kind", ["s3", "abfs"])
def test_a_workspace_whose_tables_lie_on_a_store(workspace, kind):
    "[data] storage is a URL: ingest, two writers at once, quarantine and release, versions, compaction, retention."
    with store(kind) as (root, env, secret):
        (workspace/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[data]\nstorage = {root}/mine\n")
        done = subprocess.run(
            [sys.executable, "-c", KEPT],
            capture_output=True,
            text=True,
            cwd=workspace,
            env=os.environ | env,
            timeout=240,
        )
        assert done.returncode == 0 and done.stdout.endswith("kept\n"), done.stderr[-3000:]
        shown = scalai("tables", cwd=workspace, **env)
        assert "80,789 rows" in shown.out and not (workspace/".scalai/tables").exists()
        no_secret(workspace, secret)


LARGE = """
import sys
import numpy as np, pyarrow as pa, pyarrow.csv as pacsv, pyarrow.parquet as pq
from scalai_nb.core.storage import filesystem
fs, base = filesystem(sys.argv[1])
def rows(n): return pa.table({f"x{i}": np.random.default_rng(i).normal(size=n) for i in range(6)})
for name, n in ("few", 100_000), ("many", 1_500_000):
    with fs.open(f"{base}/{name}.parquet", "wb") as f: pq.write_table(rows(n), f, row_group_size=50_000)
for name, n in ("few", 200_000), ("many", 1_400_000):
    with fs.open(f"{base}/{name}.csv", "wb") as f: pacsv.write_csv(rows(n), f)
"""


@pytest.mark.parametrize("kind", ["s3", "gs", "abfs"])
def test_memory_does_not_grow_with_what_lies_on_a_store(kind):
    "70 MB as Parquet against 5, 165 MB as CSV against 23: more than the 16 MB in which its types are found."
    with store(kind) as (root, env, _):
        subprocess.run([sys.executable, "-c", LARGE, f"{root}/large"], check=True, env=os.environ | env, timeout=240)
        # Arrow reads eight blocks of 8 MB ahead
        for suffix, many, bound in ("parquet", 1_500_000, 50), ("csv", 1_400_000, 150):
            (_, before), (n, after) = peaks(f"{root}/large/few.{suffix}", f"{root}/large/many.{suffix}", env=env)
            assert n == many and after - before < bound, (suffix, before, after)  # MB
