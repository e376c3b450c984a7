"""Several writers on one store: processes in workspaces of their own with the same [data] storage, each stopped at
every step, continued in any order, killed. Nothing may be lost or there twice, and every reader sees a whole table."""

import os
import signal
import time
from pathlib import Path

import pytest
from writers import Nursery

CONTRACT = {"columns": {"id": {"type": "int64"}, "x": {"type": "float64"}}, "key": ["id"]}
FILES = {"a": range(40), "b": range(35, 65), "c": range(100, 130)}  # a and b share five keys


def bad(i: int) -> bool: return i % 7 == 0


def expected(*names: str) -> tuple[list[int], list[int]]:  # keys of good rows, of rejected ones
    good, refused = [], []
    for i in (i for n in names for i in FILES[n]): (refused if bad(i) or i in good else good).append(i)
    return sorted(good), sorted(refused)


class Store:
    "A store that several workspaces write to, and the files that they ingest."
    def __init__(self, folder: Path, nursery: Nursery, storage: str | None = None):
        self.folder, self.nursery, self.data = folder, nursery, {"storage": storage or str(folder/"store")}
        folder.mkdir(parents=True, exist_ok=True)
        for name, ids in FILES.items():
            (folder/f"{name}.csv").write_text("id,x\n" + "".join(f"{i},{'oops' if bad(i) else i}\n" for i in ids))

    def _how(self, workspace: str, file: str | None) -> dict:
        return dict(
            root=self.folder / workspace,
            data=self.data,
            **(dict(uri=str(self.folder / f"{file}.csv"), contract=CONTRACT) if file else {}),
        )

    def start(self, call: str, workspace: str, file: str | None = None, **more):
        return self.nursery.start(call, **self._how(workspace, file), **more)

    def __call__(self, call: str, workspace: str = "last", file: str | None = None, **more):
        return self.nursery(call, **self._how(workspace, file), **more)

    def holds(self, *names: str, raw: bool = True):
        """Each row of the files once:

        the good ones in the table, the others in quarantine; the profiles are those of the rows."""
        now = self("state")
        assert (now["good"], now["bad"]) == expected(*names)
        assert now["whole"] and sum(now["reasons"].values()) == len(now["bad"])
        if raw: assert now["raw"] == len(now["bad"])
        return now


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    with Nursery(tmp_path_factory.mktemp("nursery")/"n", os.environ.get("SCALAI_OTHER_CODE")) as made: yield made


@pytest.fixture
def store(tmp_path, nursery) -> Store: return Store(tmp_path, nursery)


def steps_of(store: Store, file: str = "a") -> list[str]:
    "The steps of an ingest that nobody disturbs."
    w, names = store.start("ingest", "first", file), []
    while not w.over:
        names.append(w.at)
        w.step()
    return names


def test_a_writer_that_goes_on_after_another_committed_the_same_batch(tmp_path, nursery):
    "Stopped at one of twelve steps while another workspace ingests the same file from its first step to its last."
    steps = steps_of(Store(tmp_path/"calm", nursery))
    for at in range(1, len(steps) + 1, max(1, len(steps)//12)):
        store = Store(tmp_path/str(at), nursery)
        slow = store.start("ingest", "one", "a").run_to(at)
        quick = store("ingest", "two", "a")
        done = slow.run().done
        assert "error" not in done, (at, steps[at - 1], done)
        assert (
            sorted([quick["already"], done["already"]]) == [False, True]
            and done["rows_good"] == quick["rows_good"] == 34
        )
        store.holds("a")
        assert store("ingest", "one", "a")["already"]


def test_writers_of_different_files_at_once_both_land(tmp_path, nursery):
    for at in (8, 14, 22, 30, 38, 46):
        store = Store(tmp_path/str(at), nursery)
        slow = store.start("ingest", "one", "a").run_to(at)
        quick = store("ingest", "two", "b")
        done = slow.run().done
        assert "error" not in done and done["rows_good"] + quick["rows_good"] == len(expected("a", "b")[0]), (at, done)
        store.holds("a", "b")


def test_gc_takes_nothing_of_an_ingest_at_work(tmp_path, nursery):
    "gc --days 0 at each step of an ingest, which then goes on: the table has all of it."
    steps = steps_of(Store(tmp_path/"calm", nursery))
    store = Store(tmp_path/"busy", nursery)
    store("ingest", "first", "c")
    writer = store.start("ingest", "one", "a")
    while not writer.over:
        if "open_table" not in (writer.at or ""): store("gc", "two")
        writer.step()
    assert len(steps) > 20 and "error" not in writer.done
    store.holds("a", "c")


def interleaved(rng, store: Store) -> tuple[int, int]:  # kills, steps
    """Writers, perhaps a gc among them, in an order and with deaths that a seed decides; then every file again,
    undisturbed."""
    if rng.random() < .5: store("ingest", "first", "c")
    writers = [store.start("ingest", "one", "a"), store.start("ingest", "two", "a")]
    if rng.random() < .6: writers.append(store.start("ingest", rng.choice(["two", "three"]), "b"))
    if rng.random() < .4: writers.append(store.start("gc", "three"))
    mortal, kills, steps = rng.choice([0, .01, .05]), 0, 0
    while alive := [w for w in writers if not w.over]:
        w = rng.choice(alive)
        if rng.random() < mortal:
            w.kill()
            kills += 1
        for _ in range(rng.choice([1, 1, 3, 10, 30])):
            if w.over: break
            w.step()
            steps += 1
    for w in writers: assert w.done is None or "error" not in w.done, w.done
    for file in rng.sample("abc", 3):
        store("ingest", rng.choice(["one", "two", "three"]), file)
        if rng.random() < .3: store("gc", "one")
    return kills, steps


def test_other_rows_rejected_for_the_same_reasons(store):
    """Killed after its quarantine's commit, the table overwritten, the batch again:

    as many rows are rejected for the same reason, but others."""
    (store.folder/"d.csv").write_text("id,x\n1,1\n2,2\n")
    store("overwrite", "one", ids=[1], contract=CONTRACT)
    writer = store.start("ingest", "one", "d")
    while writer.at != "before record": writer.step()
    writer.kill()
    store("overwrite", "two", ids=[2], contract=CONTRACT)
    assert store("ingest", "one", "d")["refused"] == {"key: duplicate": 1}
    now = store("state")
    assert now["good"] == [1, 2] and now["bad"] == [2] and now["raw"] == 1 and now["whole"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "abfs"])
def test_two_workspaces_on_a_store(tmp_path, kind):
    """On S3's and Azure's protocols:

    killed at ten points, and stopped there while another workspace ingests the same file."""
    import test_sources
    with test_sources.store(kind) as (root, env, _), Nursery(
        tmp_path / "n", os.environ.get("SCALAI_OTHER_CODE"), **env
    ) as nursery:
        steps = steps_of(Store(tmp_path/"calm", nursery, f"{root}/calm"))
        for at in range(4, len(steps), len(steps)//10):
            store = Store(tmp_path/str(at), nursery, f"{root}/{at}")
            stopped, killed = (
                store.start("ingest", "one", "a").run_to(at),
                store.start("ingest", "two", "a").run_to(at).kill(),
            )
            quick, _other = store("ingest", "three", "a"), store("ingest", "three", "b")
            done = stopped.run().done
            assert "error" not in done, (at, done)
            # the second may need fewer steps, and end before it is killed
            finished = [d for d in (killed.done, quick, done) if d]
            assert sum(not d["already"] for d in finished) == 1, (at, finished)
            store.holds("a", "b", raw=False)
            assert store("gc", "two")["files"] >= 0 and store("ingest", "two", "a")["already"]
            store.holds("a", "b", raw=False)


@pytest.mark.slow
def test_any_order_and_any_death(tmp_path, nursery, rounds):
    deaths = total = 0
    for i, rng in enumerate(rounds.seeds(10, soak=200)):
        store = Store(tmp_path/str(i), nursery)
        kills, steps = interleaved(rng, store)
        store.holds("a", "b", "c", raw=False)
        deaths, total = deaths + kills, total + steps
    rounds.note(lost=0, doubled=0, kills=deaths, steps=total)


def test_a_stopped_process_goes_on_after_others_committed(store):
    "SIGSTOP and SIGCONT of a process that runs freely, at a moment that nobody chose."
    slow = store.start("ingest", "one", "a").run_to(20)
    slow.go.write(b"f")
    time.sleep(.02)
    slow.signal(signal.SIGSTOP)
    quick, other = store("ingest", "two", "a"), store("ingest", "two", "b")
    slow.signal(signal.SIGCONT)
    slow.listen()
    assert slow.over and "error" not in slow.done and "error" not in other
    assert sorted([quick["already"], slow.done["already"]]) == [False, True]
    store.holds("a", "b")


def test_two_workspaces_release_the_same_rows_at_once(tmp_path, nursery):
    "Repaired rows come back once, wherever the one that was slower stood."
    for at in (6, 14, 22, 30, 40):
        store = Store(tmp_path/str(at), nursery)
        store("ingest", "one", "a")
        slow = store.start("release", "one").run_to(at)
        quick = store("release", "two")
        done = slow.run().done
        assert "error" not in done, (at, done)
        now = store("state")
        assert now["good"] == list(FILES["a"]) and now["bad"] == [] and now["whole"], (at, now["good"])
        assert quick["rows_good"] == 6 and (done["rows_good"], done["already"]) == (0, 6)


def test_files_that_waited_longer_than_a_vacuum_are_not_committed(store):
    """The fence:

    a writer that stood still for weeks finds that its files may be gone, and says so; the table stays whole."""
    store("ingest", "first", "c")
    slow = store.start("ingest", "one", "a", ago=30*86_400)
    while slow.at != "before try_commit": slow.step()
    place = Path(store.data["storage"])/"tables"/"t"
    weeks = os.stat(place).st_mtime - 30*86_400
    for f in [*place.glob("*.parquet"), *Path(store.data["storage"]).glob("quarantine/t/*.parquet")]:
        os.utime(f, (weeks, weeks))
    assert store("gc", "two")["files"] > 0
    done = slow.run().done
    assert done["code"] == 1 and "was taken away meanwhile" in done["error"], done
    store.holds("c")
    assert store("ingest", "one", "a")["rows_good"] == 34
    store.holds("a", "c")
