"""Tables on each kind of store, and on a disk: two writers at once, writers that are killed, and answers of the
store that are refusals, late, or lost.

S3 is moto, and SeaweedFS, which takes conditional writes; Azure is Azurite."""

import json
import os
import random as chance
import subprocess
import sys
import time

import pytest
import servers
from file_stores import store

pytestmark = pytest.mark.slow
BUILT = pytest.mark.skipif(not (servers.weed_home()/"weed").exists(),
                           reason="SeaweedFS is not built: PYTHONPATH=tests python -m servers --seaweed")
KINDS = ["disk", "s3", pytest.param("seaweed", marks=BUILT), "abfs"]

WRITER = """
import sys
import pyarrow as pa
from scalai_nb.data.write import write
who = int(sys.argv[1])
for n in range(int(sys.argv[2])):
    first = who*1000 + n*100
    write(pa.table({"id": range(first, first + 100)}), "numbers", key="id", batch=f"{who}-{n}")
"""

LOOK = """
import json
from scalai_nb.data.table import Table
t = Table("numbers")
print(json.dumps([sorted(t.arrow()["id"].to_pylist()), t.profile().rows, t.version]))
"""


@pytest.fixture(scope="module", params=KINDS)
def there(request, tmp_path_factory):
    "A store: its root, the environment for it, and what stands between it and its clients."
    if request.param == "disk": yield str(tmp_path_factory.mktemp("disk")), {}, None; return
    with store(request.param) as (root, env, _):
        port = next(int(v.rsplit(":", 1)[1]) for n, v in env.items() if n in ("AWS_ENDPOINT_URL",
                                                                              "AZURITE_BLOB_STORAGE_URL"))
        with servers.Between(port) as between:
            moved = {n: v.replace(f"127.0.0.1:{port}", f"127.0.0.1:{between.port}") for n, v in env.items()}
            yield root, moved, between


@pytest.fixture
def run(there, workspace, request):
    "Start a program in a workspace whose tables lie on the store, in a folder of the test's own."
    root, env, _ = there
    (workspace/"settings.ini").write_text(
        f"[workspace]\nhome = .scalai\n[data]\nstorage = {root}/{request.node.name.split('[')[0]}\n"
    )
    return lambda code, *args: subprocess.Popen([sys.executable, "-c", code, *map(str, args)], text=True,
                                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | env)


def ended(process) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return out


def ids(run) -> list[int]:
    had, counted, _ = json.loads(ended(run(LOOK)))
    assert counted == len(had)
    return had


def test_two_writers_of_one_table(run):
    for p in [run(WRITER, who, 2) for who in (0, 1)]: ended(p)
    assert ids(run) == [*range(200), *range(1000, 1200)]


def test_writers_that_are_killed_lose_and_double_nothing(run, rounds):
    for n, random in enumerate(rounds.seeds(1, soak=20)):
        begun = run(WRITER, n, 3)
        time.sleep(random.uniform(1, 3))
        begun.kill()
        begun.communicate()
        ended(run(WRITER, n, 3))
        assert ids(run) == [1000*k + i for k in range(n + 1) for i in range(300)]
    rounds.note(lost=0, doubled=0)


@pytest.mark.parametrize("there", KINDS[1:], indirect=True, scope="module")
def test_a_store_that_refuses_is_late_and_loses_answers(run, there):
    "Each kind of fault among the requests of a writer, at places that a seed draws."
    between = there[2]
    at = chance.Random(20130101).sample(range(between.seen, between.seen + 60), 9)
    between.faults = dict(zip(at, ["refused", "lost", "late"]*3))
    ended(run(WRITER, 0, 3))
    assert len(between.faults) < 9
    between.faults = {}
    assert ids(run) == list(range(300))
