"Faults of tables: a killed ingest, two at once, hostile files; rows are counted every time."

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from scalai_nb.core.errors import ScalaiError
from scalai_nb.core.settings import Settings
from scalai_nb.data import delta, profile_store, source, text_files, uniqueness
from scalai_nb.data.contract import Contract
from scalai_nb.data.ingest import ingest
from scalai_nb.data.ingest_plan import unfinished
from scalai_nb.data.profile import profile
from scalai_nb.data.read_options import ReadOptions
from scalai_nb.data.rules import Rule
from scalai_nb.data.table import Table
from scalai_nb.data.write import write

KEY = ["year", "month", "day", "carrier", "flight", "origin", "sched_dep_time"]
CONTRACT = Contract({"arr_delay": Rule("float64", required=True), "time_hour": Rule("timestamp[us, UTC]")})

ONE = """
import os, sys
from scalai_nb.core import storage
from scalai_nb.data import delta, profile_store, ingest as room
from test_data import CONTRACT, KEY
point, when, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = 0
def deadly(fn):
    def call(*args, **kwargs):
        global seen
        seen += 1
        if seen == nth and when == "before": os.kill(os.getpid(), 9)
        out = fn(*args, **kwargs)
        if seen == nth and when == "after": os.kill(os.getpid(), 9)
        return out
    return call
for module in (delta, profile_store, room, storage):
    if hasattr(module, point): setattr(module, point, deadly(getattr(module, point)))
print(room.ingest(sys.argv[4], "flights", CONTRACT, key=KEY, period="month", fold=KEY).to_dict())
"""


def child(workspace: Path, *args, wait=True):
    "An ingest in a process of its own, which may be told where to die."
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    p = subprocess.Popen(
        [sys.executable, "-c", ONE, *map(str, args)],
        cwd=workspace,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not wait: return p
    out, err = p.communicate(timeout=120)
    return p.returncode, out, err


def months(flights, workspace, rows=3000):
    "Three files of real flights; the third repeats rows of the second."
    for m in (1, 2): flights[flights.month == m].head(rows).to_csv(workspace/f"{m}.csv", index=False)
    pd.concat([flights[flights.month == 3].head(rows), flights[flights.month == 2].head(50)]).to_csv(
        workspace / "3.csv", index=False
    )


def state() -> dict:
    "All that a reader can see of the table, and the files under it."
    t = Table("flights")
    rows = t.arrow().sort_by([(c, "ascending") for c in KEY])
    q = t.quarantine.arrow()
    raw = delta.open_table(t.quarantine.path).to_pyarrow_table()
    q = q.sort_by([(c, "ascending") for c in [*KEY, "_reason"]]).drop_columns("_batch")
    return {
        "rows": rows,
        "profiles": {k: p.digest for k, p in t.profiles(("period", "fold")).items()},
        "quarantine": q,
        "raw": raw.num_rows,
        "reasons": t.quarantine.reasons(),
    }


def strays() -> set:
    "Files that lie under a table or its quarantine and that no commit ever named."
    out = set()
    for place in (Table("flights").path, Table("flights").quarantine.path):
        actions = (
            json.loads(line) for log in Path(place).glob("_delta_log/*.json") for line in log.read_text().splitlines()
        )
        named = {"_delta_log", *(a["add"]["path"] for a in actions if "add" in a)}
        out |= {p.name for p in Path(place).iterdir() if p.name not in named}
    return out


# all files written; all but the table; everything
FEW = [("add_file", "after", 2), ("record", "after", 1), ("commit", "after", 3)]
MORE = [("add_file", "before", 1), ("add_file", "after", 1), ("commit", "before", 1), ("commit", "after", 1),
        ("record", "before", 1), ("commit", "before", 3), ("_sync", "before", 2), ("keep_plan", "after", 1)]


@pytest.mark.parametrize("point, when, nth", FEW + [pytest.param(*p, marks=pytest.mark.slow) for p in MORE])
def test_killed_and_again(workspace, flights, point, when, nth):
    "kill -9 at every joint of an ingest; the same call again gives the same table, nothing lost, nothing twice."
    months(flights, workspace)
    ingest("1.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    before = state()
    code, out, err = child(workspace, point, when, nth, "2.csv")
    assert code == -9, err
    if (point, when, nth) != ("commit", "after", 3):  # a reader sees nothing of the batch
        now = state()
        for what in ("rows", "profiles", "quarantine"): assert now[what] == before[what]
        assert [Path(p.uri).name for p in unfinished()] == ["2.csv"]
    again = ingest("2.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    assert again.already == ((point, when, nth) == ("commit", "after", 3))
    ends = state()
    assert again.rows_in == 3000 == again.rows_good + again.rows_refused and not strays() and unfinished() == []
    assert ends["raw"] == ends["quarantine"].num_rows == sum(ends["reasons"].values())
    assert len(ends["rows"]) + ends["raw"] == 6000
    assert Table("flights").profile().digest == profile(Table("flights").arrow()).digest
    raw = pd.concat([pd.read_csv(f"{m}.csv") for m in (1, 2)])
    assert (
        len(ends["rows"]) == raw.arr_delay.notna().sum()
        and pc.sum(ends["rows"]["distance"]).as_py() == raw[raw.arr_delay.notna()].distance.sum()
    )


def test_a_crash_whose_outcome_changes(workspace, flights):
    """What was refused before the crash need not be what is refused after it:

    another batch brought some of the keys meanwhile."""
    months(flights, workspace)
    assert child(workspace, "record", "after", 1, "3.csv")[0] != 0  # profiles and quarantine recorded, table not yet
    ingest("2.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    done = ingest("3.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    t, twice = Table("flights"), done.refused["key: duplicate"]
    assert 0 < twice <= 50 and done.rows_in == 3050
    assert t.profile().digest == profile(t.arrow()).digest and t.profile().rows == t.rows
    assert t.quarantine.reasons()["key: duplicate"] == twice and t.rows + t.quarantine.rows == 6050
    assert t.quarantine.rows == delta.open_table(t.quarantine.path).to_pyarrow_table().num_rows and not strays()


def test_keys_are_compared_out_of_memory(workspace, flights, monkeypatch):
    "Fifty keys may be held: the others lie on the disk by their hash, and what is found is what is found in memory."
    months(flights, workspace)
    pd.concat(
        [
            flights[flights.month == 3].head(900),
            flights[flights.month == 3].head(40),
            flights[flights.month == 2].head(50),
        ]
    ).to_parquet("again.parquet", row_group_size=300, index=False)
    settings, done, held, spills = Settings(root=workspace/"memory", data={"rows_per_part": 300}), {}, [], []
    for where in (settings, Settings(root=workspace/"disk", data={"rows_per_part": 300})):
        ingest("2.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY, settings=where)
        done[where.root.name] = ingest(
            "again.parquet",
            "flights",
            replace(CONTRACT, clean=({"deduplicate": {"key": KEY}},)),
            key=KEY,
            period="month",
            fold=KEY,
            settings=where,
        )
        if where is not settings: break
        true_add, true_spill = uniqueness.Repeats.add, uniqueness.Repeats._spill
        def add(self, rows, at): true_add(self, rows, at); held.append(self.rows)
        def spill(self): spills.append(self.rows); true_spill(self)
        (workspace/"spill").mkdir(); monkeypatch.setattr(tempfile, "tempdir", str(workspace/"spill"))
        monkeypatch.setattr(uniqueness, "HELD", 50)
        monkeypatch.setattr(uniqueness.Repeats, "add", add)
        monkeypatch.setattr(uniqueness.Repeats, "_spill", spill)
    a, b = (Table("flights", Settings(root=workspace/w)) for w in ("memory", "disk"))
    assert max(held) <= 50 and len(spills) > 4 and not list((workspace/"spill").iterdir())
    assert (
        done["disk"].refused == done["memory"].refused
        and done["disk"].refused["deduplicate: duplicate"] > 0 < done["disk"].refused["key: duplicate"]
    )
    order = [(c, "ascending") for c in KEY]
    assert (
        a.arrow().sort_by(order) == b.arrow().sort_by(order)
        and a.profile().digest == b.profile().digest == profile(b.arrow()).digest
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment(workspace, flights, seed):
    "kill -9 at random moments until an ingest gets through; the table is the one that it would have made undisturbed."
    import random
    import time
    months(flights, workspace)
    rng = random.Random(seed)
    for _ in range(4):
        p = child(workspace, "nothing", "ever", 0, "3.csv", wait=False)
        time.sleep(rng.uniform(.5, 4)); p.kill(); p.communicate()
    done = ingest("3.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    ends, settings = state(), Settings(root=workspace/"calm")
    ingest("3.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY, settings=settings)
    calm = Table("flights", settings)
    assert (
        done.rows_in == 3050 == calm.rows + calm.quarantine.rows
        and ends["raw"] == calm.quarantine.rows
        and not strays()
    )
    assert ends["rows"] == calm.arrow().sort_by([(c, "ascending") for c in KEY])
    assert ends["profiles"] == {k: p.digest for k, p in calm.profiles(("period", "fold")).items()}


def test_somebody_else_between_check_and_commit(workspace, flights, monkeypatch):
    "Keys are compared again when another writer commits after they were."
    months(flights, workspace)
    ingest("1.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    true, calls = profile_store.record, []
    def late(*args, **kwargs):
        out = true(*args, **kwargs)
        if not calls: calls.append(1); ingest("2.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
        return out
    monkeypatch.setattr(profile_store, "record", late)
    done = ingest("3.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    t = Table("flights")
    assert (
        done.refused["key: duplicate"] > 0
        and t.rows + t.quarantine.rows == 9050
        and len(state()["quarantine"]) == state()["raw"]
    )
    assert t.profile().digest == profile(t.arrow()).digest and not strays()


def test_two_at_once(workspace, flights):
    "Two ingests of one file: one brings it, the other says that it is there."
    months(flights, workspace)
    pair = [child(workspace, "nothing", "ever", 0, "1.csv", wait=False) for _ in range(2)]
    outs = [p.communicate(timeout=120) for p in pair]
    assert [p.returncode for p in pair] == [0, 0], outs
    assert sorted("'already': True" in out for out, _ in outs) == [False, True]
    assert Table("flights").rows + Table("flights").quarantine.rows == 3000 and not strays()


@pytest.mark.slow
def test_two_files_with_the_same_keys_at_once(workspace, flights):
    "Keys are compared with the very version that the commit follows."
    months(flights, workspace)
    pair = [child(workspace, "nothing", "ever", 0, f, wait=False) for f in ("2.csv", "3.csv")]
    outs = [p.communicate(timeout=120) for p in pair]
    assert [p.returncode for p in pair] == [0, 0], outs
    t = Table("flights")
    keys = t.arrow(columns=KEY)
    assert len(keys) == len(keys.group_by(KEY).aggregate([])) and t.rows + t.quarantine.rows == 6050
    assert t.profile().digest == profile(t.arrow()).digest


def test_nothing_half_written(workspace, flights):
    "A file that breaks in the middle leaves the table at its last good version, and no file behind."
    months(flights, workspace)
    ingest("1.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    before = state()
    frame = flights[flights.month == 4].head(2000)
    frame.to_parquet("good.parquet", row_group_size=500)
    content = bytearray(Path("good.parquet").read_bytes())
    content[len(content)//2:len(content)//2 + 2000] = os.urandom(2000)
    Path("torn.parquet").write_bytes(content)
    Path("cut.csv").write_bytes(Path("2.csv").read_bytes()[:9000] + b'"')
    Path("latin.csv").write_bytes(Path("2.csv").read_bytes().replace(b"EWR", "Zür".encode("latin-1")))
    for bad, read in {"torn.parquet": None, "latin.csv": ReadOptions(encoding="utf-8")}.items():
        with pytest.raises(ScalaiError) as e:
            ingest(bad, "flights", CONTRACT, key=KEY, period="month", fold=KEY, read=read)
        assert e.value.code == 2 and e.value.hint and bad in e.value.message, e.value
    after = state()
    assert all(before[k] == after[k] for k in before) and not strays()
    # its last line is refused, the others are rows like any
    cut = ingest("cut.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    assert cut.rows_in == len(Path("cut.csv").read_text().splitlines()) - 1 and any(
        r.startswith("line:") for r in cut.refused
    )


def test_small_parts_make_the_same_table(workspace, flights, monkeypatch):
    "However a file is cut, the table and its profiles are the same; keys across parts are found."
    months(flights, workspace)
    whole = ingest("3.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
    one = state()
    frame = pd.read_csv("3.csv", dtype=str, keep_default_na=False)
    twice = pd.concat([frame, frame.iloc[100:200]])
    twice.to_parquet("3.parquet", row_group_size=300, index=False)
    settings = Settings(root=workspace/"other", data={"rows_per_part": 300})
    parts = ingest(
        "3.parquet",
        "flights",
        Contract({**{c: Rule(text_files.csv_types("3.csv")[c].__str__()) for c in frame}, **CONTRACT.columns}),
        key=KEY,
        period="month",
        fold=KEY,
        settings=settings,
    )
    t = Table("flights", settings)
    assert parts.rows_in == whole.rows_in + 100 and parts.rows_good == whole.rows_good
    assert t.arrow().sort_by([(c, "ascending") for c in KEY]).select(one["rows"].column_names) == one["rows"]
    assert {k: p.digest for k, p in t.profiles(("period", "fold")).items()} == one["profiles"]


def test_changed_by_others(workspace, flights, backend):
    "Where somebody deleted rows with another tool, profiles say what is there, not what was."
    write(backend.frame(flights.head(2000)), "flights", period="month", fold=KEY)
    t = Table("flights")
    t.delta().delete("carrier = 'UA'")
    assert t.profile().digest == profile(t.arrow()).digest and t.profile().rows == t.rows < 2000


def test_formats(workspace, flights):
    "The same rows from every format."
    t = pa.Table.from_pandas(flights.head(1000).drop(columns="time_hour"), preserve_index=False)
    pq.write_table(t, "a.parquet")
    with pa.ipc.new_file("a.arrow", t.schema) as f: f.write_table(t)
    with pa.ipc.new_stream("b.arrow", t.schema) as f: f.write_table(t)
    t.to_pandas().to_json("a.jsonl", orient="records", lines=True)
    t.to_pandas().to_csv("a.csv", index=False)
    t.to_pandas().to_csv("a.csv.gz", index=False)
    t.to_pandas().to_csv("semi.csv", index=False, sep=";")
    write(t, "a")
    for uri in (
        "a.parquet",
        "a.arrow",
        "b.arrow",
        "a.jsonl",
        "a.csv",
        "a.csv.gz",
        "semi.csv",
        "a",
        "a@0",
        ".scalai/tables/a",
    ):
        rows = pa.concat_tables(source.batches(uri))
        assert (
            rows.num_rows == 1000
            and pc.sum(rows["dep_delay"]).as_py() == pc.sum(t["dep_delay"]).as_py()
            and rows["tailnum"].null_count == t["tailnum"].null_count
        ), uri
        frame = source.read(uri)
        assert len(frame) == 1000 and frame.distance.sum().compute() == pc.sum(t["distance"]).as_py(), uri


@pytest.mark.slow
def test_frames_of_a_cluster(workspace, flights, backend):
    "Partitions written by worker processes make the same profiles."
    from scalai_nb.core.cluster import cluster
    few = flights.head(4000)
    write(few, "one", period="month", fold=KEY)
    with cluster(kind="cuda" if backend.name == "cudf" else "processes", workers=2):
        done = write(backend.lazy(few, 4), "many", CONTRACT, key=KEY, period="month", fold=KEY)
    assert done.rows_in == 4000 and Table("many").profile().rows == done.rows_good
    good = few[few.arr_delay.notna()]
    write(
        good,
        "good",
        Contract({"time_hour": Rule("timestamp[us, UTC]"), "arr_delay": Rule("float64")}),
        period="month",
        fold=KEY,
    )
    assert {k: p.digest for k, p in Table("many").profiles().items()} == {
        k: p.digest for k, p in Table("good").profiles().items()
    }


def test_hostile_names_and_values(workspace):
    "HTML in names and values is shown as text."
    bad = pa.table({"<script>": ["<b>"], "n": ["x"]})
    done = write(bad, "t", Contract({"n": Rule("int64")}))
    assert done.refused == {"n: not an integer": 1} and done.rows_good == 0
    assert "<script>" not in Table("t")._repr_html_() and Table("t").quarantine.arrow()["<script>"][0].as_py() == "<b>"


LIVE = """
import time, pandas as pd, dask.dataframe as dd
from scalai_nb.core.cluster import cluster
from scalai_nb.data.profile import profile
frame = dd.from_pandas(pd.DataFrame({"<i>": range(6000)}), npartitions=6)
def slowly(rows): time.sleep(.4); return rows
with cluster(kind="%s", workers=2): p = profile(frame.map_partitions(slowly, meta=frame._meta))
print(p.digest)
"""


@pytest.mark.parametrize("kind", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_a_profile_fills_in_while_partitions_arrive(workspace, kind):
    "In a real kernel: each finished partition is drawn in the cell, also when workers are other processes."
    import re

    import nbformat
    from nbclient import NotebookClient
    pages = []

    class Watching(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] in ("display_data", "update_display_data"):
                pages.append(msg["content"]["data"].get("text/html", ""))
            return super().process_message(msg, cell, cell_index)

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LIVE % kind)])
    Watching(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(workspace)}}).execute()
    rows = [int(m[1].replace(",", "")) for p in pages if (m := re.search(r"\d of 6 partitions · ([\d,]+) rows", p))]
    assert len(set(rows)) >= 3 and rows == sorted(rows) and rows[-1] == 6000, rows
    assert (
        all("<i>" not in p for p in pages)
        and "&lt;i&gt;" in pages[0]
        and "<progress" in pages[0]
        and "<progress" not in pages[-1]
    )
    assert book.cells[0].outputs[-1]["text"].strip() == profile(pd.DataFrame({"<i>": range(6000)})).digest


def test_catalogue_and_retention_from_a_shell(workspace, flights):
    "Versions, what was refused and why, what changed, and what may go: words for people, one document for scripts."
    from conftest import here
    few = pd.concat([flights[flights.arr_delay.isna()].head(7), flights.head(200)])
    for i in range(2): write(few.head(100*(i + 1)), "flights", CONTRACT, period="month", mode="overwrite")
    shown = here("tables", "flights")
    assert (
        shown.code == 0 and "version 1" in shown.out and "arr_delay: null" in shown.out and "overwrite" in shown.out
    ), (shown.out + shown.err)
    doc = here("tables", "flights", "--json").doc
    assert (
        [v["version"] for v in doc["versions"]] == [1, 0]
        and sum(doc["reasons"].values()) == doc["refused"] > 0
        and doc["quarantine"][0]["_reason"] == "arr_delay: null"
    )
    said = here("tables", "flights", "--diff", 0, 1, "--json").doc["changes"]
    assert said[0].startswith(f"{Table('flights').count(0)} → {Table('flights').rows} rows (+")
    wrong = here("tables", "flights", "--diff", 0, 9)
    assert wrong.code == 2 and wrong.lines == ["scalai: flights has no version 9.", "It has versions 0 to 1."]
    assert here("gc", "--json").doc["files"] == 0
    gone = here("gc", "--days", 0, "--json").doc
    assert (
        gone["files"] == 1
        and gone["bytes"] > 1000
        and Table("flights").profile(version=0).rows < Table("flights").rows
    )


def test_an_ingest_that_rejects_every_row(workspace):
    "Exit 1; the rows are in quarantine; no table is made, no version either; once repaired they come in."
    from conftest import here
    Path("bad.csv").write_text("id,x\n1,a\n2,b\n")
    Contract({"id": Rule("int64"), "x": Rule("float64")}).save(Path("c.yaml"))
    for already in (False, True):
        done = here("ingest", "bad.csv", "t", "--contract", "c.yaml", "--json")
        assert (
            done.code == 1
            and done.doc["rows_refused"] == 2
            and done.doc["version"] is None
            and done.doc["already"] == already
        ), (done.out + done.err)
    t = Table("t")
    assert (
        not t.exists
        and not Path(t.path).exists()
        and unfinished() == []
        and here("tables", "--json").doc["tables"] == []
    )
    assert t.quarantine.arrow()["id"].to_pylist() == ["1", "2"] and here("quarantine", "t", "--json").doc[
        "reasons"
    ] == {"x: not a number": 2}
    assert here("gc", "--days", 0).code == 0 and t.quarantine.rows == 2
    Path("good.csv").write_text("id,x\n3,3\n")
    assert ingest("good.csv", "t", Contract.load("c.yaml")).version == 0 and t.quarantine.rows == 2
    Path("worse.csv").write_text("id,x\n4,d\n")
    assert here("ingest", "worse.csv", "t", "--contract", "c.yaml").code == 1 and (t.version, t.quarantine.rows) == (
        0,
        3,
    )
    rows = t.quarantine.arrow()
    back = t.quarantine.release(rows.set_column(rows.column_names.index("x"), "x", pa.array(["7"]*3)))
    assert (back.rows_good, t.rows, t.quarantine.rows) == (3, 4, 0)


def test_folds_for_a_table_that_has_none_are_refused(workspace):
    from conftest import here
    Path("a.csv").write_text("id\n1\n"); Path("b.csv").write_text("id\n2\n")
    assert here("ingest", "a.csv", "t").code == 0
    done = here("ingest", "b.csv", "t", "--fold", "id")
    assert done.code == 2 and len(done.lines) == 2 and "'t' has no folds" in done.err and Table("t").rows == 1


def test_a_release_whose_commit_went_through_keeps_its_list(workspace, monkeypatch):
    "An error after the commit (a full disk, a lost answer): the rows are back once, whatever is selected next."
    write(
        pa.table({"id": [1, 2, 3, 4], "x": ["1", "b", "c", "d"]}),
        "t",
        Contract({"id": Rule("int64"), "x": Rule("float64")}),
    )
    pen = Table("t").quarantine
    rows = pen.arrow().sort_by("id")
    rows = rows.set_column(rows.column_names.index("x"), "x", pa.array(["7"]*3))
    true = delta.try_commit
    def fails(*args):
        true(*args)
        if "tables" in args[0]: raise OSError("the answer was lost")
    monkeypatch.setattr(delta, "try_commit", fails)
    assert pen.release(rows.slice(0, 2)).rows_good == 2
    monkeypatch.setattr(delta, "try_commit", true)
    back = pen.release(rows)
    assert (back.rows_good, back.already) == (1, 2) and sorted(Table("t").arrow()["id"].to_pylist()) == [1, 2, 3, 4]


def test_replacing_periods_keeps_columns_that_others_added(workspace):
    "The first write of a table may replace periods; a later one of fewer columns takes none away."
    assert write(pa.table({"n": [1]}), "t", period="p", mode="replace-period").version == 0
    write(pa.table({"n": [2], "m": [5]}), "t", Contract({"m": Rule("int64")}), period="q")
    write(pa.table({"n": [3]}), "t", Contract({"m": Rule("int64")}), period="p", mode="replace-period")
    assert sorted(Table("t").arrow().select(["n", "m"]).to_pylist(), key=str) == [
        {"n": 2, "m": 5},
        {"n": 3, "m": None},
    ]


@pytest.mark.parametrize(("unit", "periods"), [("day", ["2024-03-01", "2024-03-02"]), ("week", ["2024-W09"])])
def test_a_time_column_falls_into_periods_of_the_settings_length(workspace, unit, periods):
    "`[monitor] period` decides how long a window is, whatever the column's zone."
    with (workspace/"settings.ini").open("a") as f: f.write(f"\n[monitor]\nperiod = {unit}\n")
    at = pa.array([1709272800 + 3600 * 12 * n for n in range(3)]).cast(pa.timestamp("s", "Asia/Tokyo"))
    write(pa.table({"at": at, "x": [1., 2., 3.]}), "visits", period="at")
    assert sorted(Table("visits").profiles(by="period")) == periods
