"""HDFS of Hadoop 3.4, a NameNode and a DataNode: files, tables, and what their bad days do.

`here` is the command in this process, so that a test can shorten what it waits for."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import here, scalai
from file_stores import check_store, check_workspace
from servers.java import Hdfs as Server

from scalai_nb.core import events, hdfs
from scalai_nb.core.errors import Unreachable
from scalai_nb.core.storage import filesystem, read_bytes, write_atomic
from scalai_nb.data.ingest import ingest
from scalai_nb.data.table import Table
from scalai_nb.data.write import write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with Server() as running: yield running


@pytest.fixture
def kept(server, workspace, request, monkeypatch):
    "A workspace whose tables lie in a folder of the test's own: its URL."
    root = f"{server.root}/{request.node.name.split('[')[0]}"
    (workspace/"settings.ini").write_text(
        f"[workspace]\nhome = .scalai\n[data]\nstorage = {root}\nrows_per_part = 2000\n"
    )
    monkeypatch.setattr(hdfs, "PATIENCE", 300)  # however slow this machine starts its servers
    return root


def numbers(first: int, last: int, word="") -> pa.Table:
    return pa.table({"id": range(first, last), "word": [f"{word}{i}" for i in range(first, last)]})


def csv(place: str, rows: int):
    write_atomic(place, "id,word\n" + "".join(f"{i},w{i}\n" for i in range(rows)))


def ids(name: str) -> list[int]: return sorted(Table(name).arrow()["id"].to_pylist())


@contextmanager
def at_part(n: int, do):
    "Call `do` once, when an ingest has handed on its n-th part."
    seen = []
    def hear(topic, done=False, **_):
        if done: return
        seen.append(1)
        if len(seen) == n: do()
    silent = events.subscribe(hear, "ingest")
    try: yield
    finally: silent()


def two_lines(done, code: int, words: str):
    assert (done.code, len(done.lines)) == (code, 2) and words in done.err, (done.code, done.err)


def test_every_format_and_a_delta_table(server, workspace):
    check_store(f"{server.root}/data", workspace, {}, delta=True)


def test_a_workspace_whose_tables_lie_there(server, workspace):
    check_workspace(f"{server.root}/kept", workspace, {}, "no-secret-at-all")
    fs, path = filesystem(f"{server.root}/kept")
    assert not [f for f in fs.find(path) if f.endswith(".tmp")]


def test_files_are_seen_whole(server):
    fs, path = filesystem(f"{server.root}/whole")
    with fs.open(f"{path}/a.bin", "wb", block_size=1 << 20) as f:
        f.write(bytes(3 << 20))
        assert not fs.exists(f"{path}/a.bin")
    assert fs.size(f"{path}/a.bin") == 3 << 20 and len(fs.ls(path)) == 1
    with fs.open(f"{path}/a.bin") as f:
        f.seek(-5, 2)
        assert f.read() == bytes(5)
    write_atomic(f"{server.root}/whole/a.bin", "new")  # over one that is there
    assert read_bytes(f"{server.root}/whole/a.bin") == b"new" and fs.cat_file(f"{path}/a.bin", -2) == b"ew"


def wide(place: str, rows: int):
    "A Parquet file of a kilobyte a row, in row groups of 2,000 rows: more than is read ahead."
    text = pa.array([f"{i:06}".ljust(1000, "x") for i in range(rows)])
    fs, path = filesystem(place)
    with fs.open(path, "wb") as f:
        pq.write_table(pa.table({"id": range(rows), "word": text}), f, row_group_size=2000, compression="none",
                       use_dictionary=False)


@pytest.mark.parametrize("process, how", [("namenode", signal.SIGTERM), ("namenode", signal.SIGKILL),
                                          ("datanode", signal.SIGKILL)])
def test_a_server_that_comes_back_costs_a_pause(server, kept, process, how):
    wide(source := f"{kept}/{process}-{how}.parquet", 24_000)
    table, back = f"{process}_{how}", threading.Timer(1, server.start)
    def restart():
        server.stop(process, how)
        back.start()
    with at_part(3, restart): done = ingest(source, table, key="id")
    back.join()
    assert (done.rows_good, done.rows_refused) == (24_000, 0)
    assert ids(table) == list(range(24_000)) and ingest(source, table, key="id").already


def test_safe_mode_says_so(server, kept, monkeypatch):
    csv(f"{kept}/a.csv", 100)
    server.admin("-safemode", "enter")
    monkeypatch.setattr(hdfs, "PATIENCE", 1)
    try: two_lines(here("ingest", f"{kept}/a.csv", "numbers"), 3, "the NameNode is in safe mode")
    finally: server.admin("-safemode", "leave")
    two = here("ingest", f"{kept}/a.csv", "numbers")
    assert two.code == 0 and ids("numbers") == list(range(100))


@pytest.mark.parametrize("kind, quota", [("-setQuota", "5"), ("-setSpaceQuota", "500000")])
def test_a_quota_that_is_reached_leaves_the_table(server, kept, kind, quota):
    write(numbers(0, 100), "numbers")
    _, path = filesystem(kept)
    server.admin(kind, quota, path)
    csv_here = "more.csv"
    with open(csv_here, "w") as f: f.write("id,word\n100,x\n")
    try: two_lines(here("ingest", csv_here, "numbers"), 1, f"the quota of {path} is reached")
    finally: server.admin(kind.replace("set", "clr"), path)
    assert ids("numbers")[-1] == 99
    assert here("ingest", csv_here, "numbers").code == 0 and ids("numbers") == list(range(101))
    filesystem(kept)[0].rm(path, recursive=True)


def test_others_have_no_right(server, kept, workspace):
    write(numbers(0, 10), "numbers")
    csv(f"{kept}/mine.csv", 10)
    fs, path = filesystem(kept)
    fs.once(path, "set_permission", path, 0o700)
    for words in (["profile", f"{kept}/mine.csv"], ["profile", f"{kept}/*.csv"], ["profile", "numbers"],
                  ["ingest", f"{kept}/mine.csv", "numbers"]):
        done = scalai(*words, cwd=workspace, HADOOP_USER_NAME="other")
        assert done.code == 2 and len(done.lines) == 2 and "other" in done.err or "denied" in done.err, done.err
    assert ids("numbers") == list(range(10))


def test_without_a_datanode_it_is_said(server, kept, monkeypatch):
    csv(f"{kept}/a.csv", 100)
    server.kill("datanode")
    monkeypatch.setattr(hdfs, "PATIENCE", 1)
    monkeypatch.setattr(hdfs, "WITHIN", 5)
    try: two_lines(here("profile", f"{kept}/a.csv"), 3, "no DataNode answers")
    finally: server.start()
    assert here("profile", f"{kept}/a.csv").code == 0


@pytest.mark.parametrize("process", ["namenode", "datanode"])
def test_a_server_that_stands_still_is_left(server, kept, process, monkeypatch):
    "It takes what is asked and never answers."
    csv(f"{kept}/a.csv", 100)
    write(numbers(0, 10), process)
    fs, path = filesystem(f"{kept}/a.csv")
    for name, seconds in (("PATIENCE", 1), ("WITHIN", 2)): monkeypatch.setattr(hdfs, name, seconds)
    server.processes[process].send_signal(signal.SIGSTOP)
    try:
        for ask in (lambda: fs.cat_file(path), lambda: read_bytes(f"{kept}/a.csv"), Table(process).arrow):
            with pytest.raises(Unreachable): ask()
    finally: server.processes[process].send_signal(signal.SIGCONT)
    monkeypatch.setattr(hdfs, "PATIENCE", 300)
    assert len(fs.cat_file(path)) > 100 and ids(process) == list(range(10))


def test_a_wrong_address_is_said_at_once(server, workspace, monkeypatch):
    monkeypatch.setattr(hdfs, "WITHIN", 3)
    two_lines(here("profile", "hdfs://127.0.0.1:1/a.csv"), 3, "the NameNode does not answer")
    two_lines(here("profile", f"{server.root}/nothing.csv"), 2, "There is no file")


WRITER = """
import sys
import pyarrow as pa
from scalai_nb.data.write import write
who = int(sys.argv[1])
for n in range(4):
    first = who*1000 + n*100
    write(pa.table({"id": range(first, first + 100)}), "numbers", key="id", batch=f"{who}-{n}")
"""


def run(code: str, *args, **env) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=os.environ | env)


def test_two_writers_of_one_table(kept):
    both = [run(WRITER, who) for who in (0, 1)]
    for p in both: assert p.communicate(timeout=600)[1] == "" and p.returncode == 0
    assert ids("numbers") == [*range(400), *range(1000, 1400)] and Table("numbers").profile().rows == 800
    assert Table("numbers").version == 7


HA = """
import deltalake
from scalai_nb.core.storage import filesystem
fs, path = filesystem("hdfs://Prod/ha/a.csv")
fs2, base = filesystem("hdfs:///ha")
print(fs.cat_file(path).decode(), fs.unstrip_protocol(path), fs2.ls(base, detail=False)[0],
      deltalake.DeltaTable("hdfs://Prod/ha/t").version())
"""


def test_a_nameservice_of_two_namenodes_reaches_the_one_that_answers(server, workspace):
    "The configuration of a pair; only one of its addresses is a NameNode here, the other nobody's."
    import deltalake
    write_atomic(f"{server.root}/ha/a.csv", "1")
    deltalake.write_deltalake(f"{server.root}/ha/t", numbers(0, 3))
    (workspace/"conf").mkdir()
    pair = {"dfs.nameservices": "Prod", "dfs.ha.namenodes.Prod": "a,b", "fs.defaultFS": "hdfs://Prod",
            "dfs.namenode.rpc-address.Prod.a": "127.0.0.1:1", "dfs.namenode.rpc-address.Prod.b": server.address}
    (workspace/"conf/core-site.xml").write_text("<configuration>" + "".join(
        f"<property><name>{k}</name><value>{v}</value></property>" for k, v in pair.items()) + "</configuration>")
    out, err = run(HA, HADOOP_CONF_DIR=str(workspace/"conf")).communicate(timeout=120)
    assert out.split() == ["1", "hdfs://Prod/ha/a.csv", "/ha/a.csv", "0"], err


INGEST = """
import sys
from scalai_nb.core import hdfs
from scalai_nb.data.ingest import ingest
hdfs.PATIENCE = 300
ingest(sys.argv[1], "numbers", key="id")
"""


def test_killed_ingests_and_namenodes_lose_and_double_nothing(server, kept, rounds):
    "Each round kills the ingest and the NameNode at a random moment, and runs the ingest again to its end."
    lost = doubled = killed = rows = 0
    for random in rounds.seeds(2, soak=20):
        first, rows = rows, rows + 5000
        write_atomic(source := f"{kept}/{first}.csv",
                     "id,word\n" + "".join(f"{i},w{i}\n" for i in range(first, rows)))
        begun = run(INGEST, source)
        time.sleep(random.uniform(1.5, 5))
        server.kill("namenode")
        back = threading.Timer(random.uniform(0, 1), server.start)
        back.start()
        time.sleep(random.uniform(0, 3))
        killed += begun.poll() is None
        begun.kill()
        begun.communicate()
        back.join()
        ended = run(INGEST, source)
        assert ended.communicate(timeout=600)[1] == "" and ended.returncode == 0
        had = ids("numbers")
        lost, doubled = lost + rows - len(set(had)), doubled + len(had) - len(set(had))
        assert had == list(range(rows)) and Table("numbers").profile().rows == rows
    rounds.note(ingests_killed=killed, lost=lost, doubled=doubled)
