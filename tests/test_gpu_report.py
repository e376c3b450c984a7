"`make gpu` where no GPU is: what it says, what it would run, and the page it would write."
import subprocess
import sys

import pytest
from conftest import ROOT

from scalai_nb.core import device

RUN = ROOT/"tests"/"gpu"/"run.py"

SUITE = '''
import pytest

def test_adds(record_property):
    "Adding works. The rest is detail"
    record_property("rows_per_second", "1,000")

def test_breaks():
    "A broken | path"
    assert 1 == 2, "one is not two"

def test_needs_more(): pytest.skip("1 GPU here, 2 ranks want one each")

@pytest.fixture
def absent(): raise OSError("no device")
def test_never_starts(absent): pass
'''

OTHER = '''
import pytest

@pytest.mark.parametrize("backend", ["pandas", "cudf"])
def test_on_both(backend): assert backend == "cudf"

def test_plain(): assert False, "has its own suite"
'''

DRIVE = '''
import sys; sys.path.insert(0, {folder!r})
import pytest, run
told = run.Told()
code = pytest.main(["-q", "-p", "no:cacheprovider", {suite!r}], plugins=[told])
print(run.text(told.rows, "One device", run.versions(), "python tests/gpu/run.py", "abc"))
sys.exit(int(code))
'''


def test_the_page_says_how_each_ended(tmp_path):
    suite = tmp_path/"gpu"/"test_suite.py"
    suite.parent.mkdir()
    suite.write_text(SUITE)
    (tmp_path/"test_other.py").write_text(OTHER)
    done = subprocess.run(
        [sys.executable, "-c", DRIVE.format(folder=str(RUN.parent), suite=str(tmp_path))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    page = done.stdout[done.stdout.index("# On a GPU"):]
    assert done.returncode == 1 and "2 passed, 2 failed, 1 skipped." in page, done.stdout + done.stderr
    lines = [
        [c.strip() for c in line.replace("\\|", "¦").strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ")
    ][1:]
    ended = {what: (outcome, note) for what, outcome, _, note in lines}
    assert ended["Adding works. The rest is detail"] == ("passed", "rows_per_second 1,000")
    # the pandas half, and what is not about GPUs, are left to the other suite
    assert ended["on both (cuDF)"][0] == "passed" and len(lines) == 5
    assert ended["A broken ¦ path"][0] == "failed" and "one is not two" in ended["A broken ¦ path"][1]
    assert ended["needs more"] == ("skipped", "1 GPU here, 2 ranks want one each")
    assert ended["never starts"][0] == "failed (setup)" and "no device" in ended["never starts"][1]
    assert all(float(line[2]) >= 0 for line in lines) and "numpy " in page and "commit abc" in page


@pytest.mark.skipif(device.available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_writes_nothing():
    before = (RUN.parent/"RESULTS.md").exists()
    done = subprocess.run([sys.executable, str(RUN)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 2
    assert (
        "no CUDA device" in done.stderr
        and "make gpu" in done.stderr
        and (RUN.parent / "RESULTS.md").exists() == before
    )


def test_everything_is_collected():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/gpu", "tests/test_backends.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    for what in (
        "test_profile",
        "test_hostile_values[uint64]",
        "test_cluster",
        "test_prep",
        "test_loader",
        "test_fit[2]",
        "test_nccl",
        "test_int8_score",
        "test_profile_bench[20000000]",
        "test_tables_are_equal[cudf]",
    ):
        assert what in done.stdout, done.stdout


def test_docs_do_not_say_more_than_was_run():
    "Until RESULTS.md is there, the GPU path is said to be written, never run."
    if (RUN.parent/"RESULTS.md").exists(): pytest.skip("it was run")
    for page in ("README.md", "nbs/core/12_device.ipynb"): assert "never run" in (ROOT/page).read_text(), page
