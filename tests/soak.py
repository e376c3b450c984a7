"""The long forms of the fault tests: `make soak` runs each with its full number of rounds and writes
tests/soak/RESULTS.md.

A test takes the fixture `rounds` and asks it how often to repeat: `rounds(12, soak=200)` is 12 in `make test-slow` and
200 in `make soak`. Each round has a seed of its own, `rounds.seeds(12, soak=200)`. `SCALAI_SEED` moves them all, and a
failure prints the seed of its round. What the test measured goes into the report: `rounds.note(lost=0, doubled=0)`.
"""

import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scalai_nb.core.lock import locked
from scalai_nb.core.storage import write_atomic

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT/"tests"/"soak"/"RESULTS.md"
LONG = bool(os.environ.get("SCALAI_SOAK"))
FIRST = int(os.environ.get("SCALAI_SEED", "20130101"))


class Rounds:
    "How often a fault test repeats, with which seeds, and what it found."
    def __init__(self, request): self.request, self.done, self.found = request, 0, {}

    def __call__(self, sample: int, *, soak: int) -> int:
        self.done = soak if LONG else sample
        return self.done

    def seeds(self, sample: int, *, soak: int):
        "One random generator a round; the round's seed is printed, so that pytest shows it where the test fails."
        for n in range(self(sample, soak=soak)):
            seed = FIRST + n
            print(f"round {n} of {self.done}, seed {seed}")
            yield random.Random(seed)

    def note(self, **found): self.found |= found


@pytest.fixture
def rounds(request):
    made = Rounds(request)
    began = time.monotonic()
    yield made
    request.node.user_properties.append(
        ("soak", {"rounds": made.done, "seconds": round(time.monotonic() - began, 1), **made.found})
    )


class Report:
    "A pytest plugin that collects what each test with `rounds` found."
    def __init__(self): self.rows = []

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            found = dict(report.user_properties).get("soak")
            if found is not None: self.rows.append((report.nodeid, self.outcome, found))
        elif report.when == "call":
            self.outcome = report.outcome


HEAD = """# Soak

The fault tests with their full number of rounds, each at the commit of its row. Written by `make soak`, or for some of
them by `python tests/soak.py FILE[::TEST] …`.

| test | outcome | rounds | seconds | found | commit, seed, machine |
|---|---|---|---|---|---|
"""


def line(name: str, outcome: str, found: dict, stamp: str) -> str:
    told = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in found.items() if k not in ("rounds", "seconds"))
    return (
        f"| {name.removeprefix('tests/')} | {outcome} | {'of '*(outcome != 'passed')}{found['rounds']:,} |"
        f" {found['seconds']:,.0f} | {told} | {stamp} |"
    )


def write(rows: list[tuple]):
    "The report, the rows of tests that did not run now as they were."
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    commit = git("rev-parse", "--short", "HEAD") + "-dirty" * bool(
        git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{REPORT.relative_to(ROOT)}")
    )
    stamp = (
        f"{commit}, {FIRST}, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.machine()}, Python"
        f" {platform.python_version()}"
    )
    REPORT.parent.mkdir(exist_ok=True)
    with locked(REPORT.with_suffix(".lock"), remove=True):
        lines = (
            {at.split(" | ")[0]: at for at in REPORT.read_text().splitlines() if at.startswith("| test_")}
            if REPORT.exists()
            else {}
        )
        lines |= {at.split(" | ")[0]: at for at in (line(*r, stamp) for r in rows)}
        write_atomic(REPORT, HEAD + "".join(f"{at}\n" for _, at in sorted(lines.items())))


def main(*args) -> int:
    """Run every test that takes `rounds` in its long form, one after the other, or those that are named; write the
    report, also when some failed."""
    os.environ["SCALAI_SOAK"] = "1"
    report = Report()
    code = pytest.main(["-q", "-m", "soak", "--timeout", "14400", "-p", "no:cacheprovider", *args], plugins=[report])
    if report.rows: write(report.rows)
    return int(code)


if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
