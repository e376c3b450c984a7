"What happens to a table when a worker dies, the disk is full, or the source goes away, changes or is hostile."

import gzip
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SCALAI
from fsspec.implementations.memory import MemoryFileSystem
from test_data import CONTRACT, KEY, months, state, strays

from scalai_nb.core import events
from scalai_nb.core.cluster import cluster
from scalai_nb.core.errors import BadRequest, ScalaiError
from scalai_nb.core.settings import Settings
from scalai_nb.data import ingest as room
from scalai_nb.data import ingest_plan
from scalai_nb.data.contract import Contract
from scalai_nb.data.ingest import ingest
from scalai_nb.data.profile import profile
from scalai_nb.data.rules import Rule
from scalai_nb.data.table import Table
from scalai_nb.data.write import write

HOW = dict(key=KEY, period="month", fold=KEY)


def raw(flights, name="raw.parquet", rows=4000, group=500) -> str:
    "Flights as text in row groups, every 97th without a delay."
    some = flights.head(rows).astype({"arr_delay": object})
    some.loc[::97, "arr_delay"] = None
    pq.write_table(pa.Table.from_pandas(some.astype("string"), preserve_index=False), name, row_group_size=group)
    return name


def typed() -> Contract:
    numbers = dict.fromkeys(["year", "month", "day", "flight", "sched_dep_time", "distance"], Rule("int64"))
    return Contract({**numbers, **CONTRACT.columns})


def small(workspace) -> Settings: return Settings(root=workspace, data={"rows_per_part": 500})


def dies_once(flag: str):
    "Run in a worker: after its first file it is killed, once for all workers."
    from scalai_nb.data import delta
    write_file = delta.add_file
    def deadly(*args, **kw):
        out = write_file(*args, **kw)
        try: os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError: return out
        os.kill(os.getpid(), 9)
    delta.add_file = deadly


@pytest.mark.slow
def test_a_worker_dies_during_ingest(workspace, flights):
    "Pieces of a dead worker go to another; the table is the one that a calm ingest makes."
    file, calm = raw(flights), Settings(root=workspace/"calm")
    ingest(file, "flights", typed(), settings=calm, **HOW)
    told = []
    stop = events.subscribe(lambda topic, **e: told.append(e), "ingest")
    with cluster(kind="processes", workers=2) as client:
        client.run(dies_once, str(workspace/"died"))
        done = ingest(file, "flights", typed(), settings=small(workspace), client=client, **HOW)
        torn = bytearray(Path(file).read_bytes())
        torn[len(torn)//3:len(torn)//3 + 3000] = os.urandom(3000)
        Path("torn.parquet").write_bytes(torn)
        with pytest.raises(ScalaiError, match="torn.parquet (is damaged in row group|cannot be read)"):
            ingest("torn.parquet", "flights", typed(), settings=small(workspace), client=client, **HOW)
    stop()
    assert (workspace/"died").exists() and len([e for e in told if "rows_good" not in e]) >= 8 and done.rows_in == 4000
    mine, other = state(), Table("flights", calm)
    order = [(c, "ascending") for c in KEY]
    assert mine["rows"] == other.arrow().sort_by(order) and mine["profiles"] == {
        k: p.digest for k, p in other.profiles(("period", "fold")).items()
    }
    assert mine["reasons"] == other.quarantine.reasons() and not strays()
    assert not [*Path(Table("flights").path).glob(".*.tmp")]


@pytest.mark.slow
def test_a_worker_dies_during_write_and_profile(workspace, flights):
    import dask.dataframe as dd
    few = flights.head(4000)[["month", "carrier", "distance", "arr_delay", "flight"]]
    flag = str(workspace/"died-")
    def dies(rows, which):
        try: os.close(os.open(flag + which, os.O_CREAT | os.O_EXCL))
        except FileExistsError: return rows
        os.kill(os.getpid(), 9)
    with cluster(kind="processes", workers=2) as client:
        frame = dd.from_pandas(few, npartitions=6)
        told = []
        stop = events.subscribe(lambda topic, **e: told.append(e["part"].rows), "profile")
        assert profile(frame.map_partitions(dies, "profile", meta=few)).digest == profile(few).digest
        stop()
        assert Path(flag + "profile").exists() and sum(told) == 4000 and len(told) == 6
        client.run(dies_once, flag + "write")
        done = write(frame, "many", period="month")
    assert Path(flag + "write").exists() and done.rows_good == 4000
    assert Table("many").profile().digest == profile(few).digest == profile(Table("many").arrow()).digest
    assert len([*Path(Table("many").path).glob("*.parquet")]) == len(Table("many").delta().file_uris())


@pytest.mark.slow
def test_a_piece_that_kills_every_worker(workspace):
    "Dask gives it up after three more tries; the table is not made, nothing is left."
    from scalai_nb.data.partition import Pieces
    def read(piece, seen):
        if piece: os.kill(os.getpid(), 9)
        yield pa.table({"n": [1]})
    with cluster(kind="processes", workers=2) as client, pytest.raises(ScalaiError, match="died, several times") as e:
        write(
            Pieces([0, 1], read, client), "t", Contract({"n": Rule("int64")}), prepare=lambda rows: (rows, rows, None)
        )
    assert e.value.code == 1 and not Table("t").exists and not (workspace/".scalai/tables/t").exists()


FULL = """
import sys
from scalai_nb.core.errors import ScalaiError
from scalai_nb.data.ingest import ingest
from test_data import CONTRACT, KEY
try: ingest("2.csv", "flights", CONTRACT, key=KEY, period="month", fold=KEY)
except ScalaiError as e: print(e.message); sys.exit(e.code)
"""


def test_disk_full(workspace, flights):
    """No file may grow beyond a few kilobytes:

    two lines, the table as it was, nothing left; with room again it goes through."""
    months(flights, workspace)
    ingest("1.csv", "flights", CONTRACT, **HOW)
    before = state()
    def narrow(): resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    told = subprocess.run(
        [sys.executable, "-c", FULL],
        preexec_fn=narrow,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
            "PYTHONDONTWRITEBYTECODE": "1",  # Python 3.11 would keep half of a file, and the next process read it
        },
    )
    assert told.returncode == 1 and told.stdout.startswith("No room is left where table 'flights' lies"), told
    assert all(before[k] == state()[k] for k in before) and not strays()
    assert ingest("2.csv", "flights", CONTRACT, **HOW).rows_in == 3000


@pytest.mark.parametrize(
    "what, why", [("unlink", "vanished while it was read"), ("grow", "changed while it was read")]
)
def test_source_goes_away_midway(workspace, flights, monkeypatch, what, why):
    file = raw(flights)
    ingest(file, "flights", typed(), settings=small(workspace), **HOW)
    before, true, seen = state(), room.source.batches, []
    late = raw(flights.tail(3000), "late.parquet")
    def batches(*args, **kw):
        for t in true(*args, **kw):
            yield t
            seen.append(len(t))
            if len(seen) == 2 and what == "unlink": os.unlink(late)
            if len(seen) == 2 and what == "grow":
                with open(late, "ab") as f: f.write(b"more")
    monkeypatch.setattr(room.source, "batches", batches)
    with pytest.raises(BadRequest, match=why): ingest(late, "flights", typed(), settings=small(workspace), **HOW)
    assert all(before[k] == state()[k] for k in before) and not strays()


def test_schema_changes_between_files(workspace):
    "Other columns refuse the batch; other types go to quarantine; both say where."
    Path("a1.csv").write_text("id,n\n1,10\n"); Path("a2.csv").write_text("id,m\n2,20\n")
    with pytest.raises(BadRequest, match="a2.csv has other columns than .*a1.csv: 'm'"): ingest("a*.csv", "t")
    assert not Table("t").exists
    pq.write_table(pa.table({"id": [1, 2], "n": [1, 2]}), "b1.parquet")
    pq.write_table(pa.table({"id": [3, 4], "n": [3.0, 0.5]}), "b2.parquet")
    done = ingest("b*.parquet", "t")
    assert (done.rows_good, done.refused) == (3, {"n: not an integer": 1}) and Table("t").quarantine.arrow()[
        "n"
    ].to_pylist() == ["0.5"]
    wide = ingest("b2.parquet", "t", Contract(evolve=("widen",)))
    assert wide.rows_good == 2 and sorted(Table("t").arrow()["n"].to_pylist()) == [.5, 1, 2, 3, 3]
    with pytest.raises(BadRequest, match="Column 'n' is"):
        write(
            __import__("dask.dataframe").dataframe.from_map(
                lambda x: pd.DataFrame({"n": [x]}), [1, "x"], meta=pd.DataFrame({"n": [1]})
            ),
            "u",
        )


class Counted(MemoryFileSystem):
    "A store that remembers which bytes were asked for."
    protocol, asked = "counted", []
    @classmethod
    def _strip_protocol(cls, path): return super()._strip_protocol(str(path).replace("counted://", "memory://"))

    def cat_file(self, path, start=None, end=None, **kw):
        Counted.asked.append((start or 0, self.size(path) if end is None else end))
        return super().cat_file(path, start=start, end=end, **kw)

    def _open(self, path, mode="rb", **kw):
        f = super()._open(path, mode, **kw)
        class Seen(io.RawIOBase):
            def readable(self): return True
            def seekable(self): return True
            def seek(self, *args): return f.seek(*args)
            def tell(self): return f.tell()
            def read(self, n=-1): at = f.tell(); out = f.read(n); Counted.asked.append((at, at + len(out))); return out
        return Seen() if mode == "rb" else f


def test_each_row_group_is_read_once(workspace, flights):
    """What a counting file system sees of an ingest:

    each row group's bytes asked for once, the file's end, where the footer is, a few times, and nothing else; again,
    for what is there already, once more."""
    fsspec.register_implementation("counted", Counted, clobber=True)
    fs, raw_file = Counted(), Path(raw(flights, rows=20_000, group=5000))
    fs.pipe_file("/once.parquet", raw_file.read_bytes())
    size, meta, settings = (
        raw_file.stat().st_size,
        pq.read_metadata(raw_file),
        Settings(root=workspace, data={"rows_per_part": 5000}),
    )
    spans = room.columnar.group_bytes(meta, size)
    inside = [(a, min(b, size - 8 - meta.serialized_size)) for a, b in spans]  # without the footer
    overlaps = lambda x, y: min(x[1], y[1]) > max(x[0], y[0])
    def groups() -> list[int]:  # how often some of each row group's bytes were asked for
        asked, Counted.asked = Counted.asked, []
        return [sum(overlaps(x, y) for x in asked) for y in inside]
    Counted.asked = []
    try:
        done = ingest("counted://once.parquet", "flights", typed(), settings=settings, **HOW)
        assert done.rows_in == 20_000 and groups()[:3] == [1]*3  # the last one is in the file's end
        assert ingest("counted://once.parquet", "flights", typed(), settings=settings, **HOW).already
        assert groups()[:3] == [1]*3
    finally:
        fs.rm("/once.parquet")


def test_other_rows_under_the_same_footer(workspace):
    """A file that was mended in place, so that its name, size and footer are as they were:

    its rows are other rows, and come in."""
    def file(middle):
        pq.write_table(pa.table({"n": [1, *middle, 9]}), "n.parquet", use_dictionary=False, compression="none")
    file((2, 3)); first, footer = ingest("n.parquet", "t"), ingest_plan.footer_hash("n.parquet")
    file((3, 2)); assert ingest_plan.footer_hash("n.parquet") == footer
    second = ingest("n.parquet", "t")
    assert (
        not second.already
        and second.batch != first.batch
        and Table("t").rows == 8
        and ingest("n.parquet", "t").already
    )
    file((2, 3)); assert ingest("n.parquet", "t").already and Table("t").arrow()["n"].to_pylist().count(2) == 2


BOUNDED = """
import resource, sys, time
from scalai_nb.core.errors import ScalaiError
from scalai_nb.data.ingest import ingest
import scalai_nb.data.table, pyarrow.csv, pyarrow.parquet
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
try: print("in", ingest(sys.argv[1], "t").rows_in)
except ScalaiError as e: print("refused", e.message)
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(more//1024, "MB", round(time.monotonic() - start, 1), "s")
"""


def bounded(file: str) -> tuple[str, int]:  # what became of it, megabytes
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, file],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    said, cost = done.stdout.splitlines()
    return said, int(cost.split()[0])


def test_hostile_files_are_bounded(workspace):
    """A hundred thousand columns, and files of kilobytes that unpack to gigabytes:

    refused in bounded memory, or taken in parts."""
    names = [f"c{i}" for i in range(100_000)]
    Path("wide.csv").write_text(",".join(names) + "\n" + ",".join(["1"]*len(names)) + "\n")
    said, megabytes = bounded("wide.csv")
    assert said.startswith("refused") and "100,000 columns; at most 10,000" in said and megabytes < 300, (
        said,
        megabytes,
    )
    pq.write_table(pa.table({c: [1] for c in names[:20_000]}), "wide.parquet")
    said, megabytes = bounded("wide.parquet")
    assert said.startswith("refused") and "20,000 columns" in said and megabytes < 500, (said, megabytes)
    with gzip.open("line.csv.gz", "wb", 1) as f:
        f.write(b"a,b\n")
        for _ in range(64): f.write(b"0"*(1 << 24))  # 1 GiB without an end of line
    assert Path("line.csv.gz").stat().st_size < 8e6
    said, megabytes = bounded("line.csv.gz")
    assert said.startswith("refused") and megabytes < 300, (said, megabytes)


@pytest.mark.slow
def test_a_bomb_of_good_rows_is_taken_in_parts(workspace):
    with gzip.open("rows.csv.gz", "wb", 1) as f:
        f.write(b"a,b\n")
        for _ in range(40): f.write(b"1,xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"*100_000)
    said, megabytes = bounded("rows.csv.gz")
    assert said == "in 4000000" and megabytes < 900, (said, megabytes)


def test_formulas_html_and_escapes_are_shown_as_text(workspace):
    "Wherever a hostile name or value is shown, it is text: in a notebook, in a terminal, in a reason."
    evil, formula, ansi = "<img src=x onerror=alert(1)>", "=cmd|' /C calc'!A0", "\x1b[2J\x1b]0;owned\x07"
    Path("evil.csv").write_text(f'"{evil}",f,n\n"{evil}",{formula},1\n{ansi},"{formula}",x\n')
    done = ingest("evil.csv", "t", Contract({"n": Rule("int64")}))
    assert (done.rows_good, done.refused) == (1, {"n: not an integer": 1})
    t = Table("t")
    shown = [
        done._repr_html_(),
        t._repr_html_(),
        t.profile()._repr_html_(),
        t.quarantine._repr_html_() if hasattr(t.quarantine, "_repr_html_") else "",
    ]
    assert not [s for s in shown if "<img" in s] and "&lt;img" in shown[2]
    assert t.arrow()["f"].to_pylist() == [formula]  # kept as it came
    for verb in (["tables", "t"], ["profile", "t"], ["tables", "t", "--diff", "0", "0"]):
        out = subprocess.run([SCALAI, *verb], capture_output=True, text=True)
        assert out.returncode == 0 and "\x1b" not in out.stdout and "\x07" not in out.stdout, out


def folder_of(place: Path) -> dict: return {p.name: p.read_text() for p in place.iterdir()}


def killed_at(nth: int, do) -> bool:  # whether it lived so long
    """Run in a fork, which is killed before its nth line of the storage module or call of the system, whichever comes:

    every system call is one of them."""
    if pid := os.fork(): return os.waitpid(pid, 0)[1] == 9
    seen, file = 0, "core/storage.py"
    def count():
        nonlocal seen
        seen += 1
        if seen == nth: os.kill(os.getpid(), 9)
    def lines(frame, event, arg):
        if event == "line": count()
        return lines
    def calls(frame, event, arg):
        if event == "c_call" and arg.__module__ == "posix": count()
    sys.settrace(lambda frame, event, arg: lines if frame.f_code.co_filename.endswith(file) else None)
    sys.setprofile(calls)
    try: do()
    finally:
        sys.settrace(None); sys.setprofile(None)
        os._exit(0)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_that_is_published_anew_is_never_gone(tmp_path, monkeypatch, exchange):
    """Killed at every statement:

    the path holds the whole old folder or the whole new one, and the next one goes through."""
    from scalai_nb.core import storage
    if not exchange: monkeypatch.setattr(storage, "_can_exchange", lambda path: False)
    elif sys.platform.startswith("linux"):
        assert storage._can_exchange(tmp_path/"x") or pytest.skip("this file system cannot exchange")
    place = tmp_path/"folder"
    def put(text):
        with storage.publish(place) as new:
            new.mkdir()
            for name in "ab": (new/name).write_text(text)
    put("0")
    nth = before = 0
    while True:
        nth += 1
        old, new = folder_of(place), {"a": str(nth), "b": str(nth)}
        lived = not killed_at(nth, lambda: put(str(nth)))
        assert folder_of(place) in (old, new), nth
        before += folder_of(place) == old
        if lived: break
    print(nth, before)
    assert nth > 60 and 30 < before < nth - 1  # some deaths came before the change, some after
    put("end")
    assert folder_of(place) == {"a": "end", "b": "end"} and place.is_symlink() != exchange
