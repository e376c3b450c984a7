"""The long forms of the fault tests: `make soak` runs each with its full number of rounds and writes tests/soak/RESULTS.md.

A test takes the fixture `rounds` and asks it how often to repeat: `rounds(12, soak=200)` is 12 in `make test-slow` and 200 in `make soak`.
Each round has a seed of its own, `rounds.seeds(12, soak=200)`. `SCALAI_SEED` moves them all, and a failure prints the seed of its round.
What the test measured goes into the report: `rounds.note(lost=0, doubled=0)`.
"""
import json, os, platform, random, subprocess, sys, time
from pathlib import Path

import pytest

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
    request.node.user_properties.append(("soak", {"rounds": made.done, "seconds": round(time.monotonic() - began, 1), **made.found}))


class Report:
    "A pytest plugin that collects what each test with `rounds` found."
    def __init__(self): self.rows = []

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            found = dict(report.user_properties).get("soak")
            if found is not None: self.rows.append((report.nodeid, self.outcome, found))
        elif report.when == "call": self.outcome = report.outcome


def table(rows, seconds: float) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    dirty = "-dirty" if subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True).stdout.strip() else ""
    head = f"""# Soak

The fault tests with their full number of rounds. Written by `make soak`; seed {FIRST}; commit {commit}{dirty}; {time.strftime('%Y-%m-%d')}; {os.cpu_count()} cores,
{platform.machine()}, Python {platform.python_version()}; {seconds/60:.0f} minutes.

| test | outcome | rounds | seconds | found |
|---|---|---|---|---|
"""
    line = lambda name, outcome, f: (f"| {name.removeprefix('tests/')} | {outcome} | {f['rounds']:,} | {f['seconds']:,.0f} | "
                                     + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in f.items() if k not in ("rounds", "seconds")) + " |\n")
    return head + "".join(line(*r) for r in sorted(rows))


def main(*args) -> int:
    "Run every test that takes `rounds` in its long form, one after the other; write the report, also when some failed."
    os.environ["SCALAI_SOAK"] = "1"
    report, began = Report(), time.monotonic()
    code = pytest.main(["-q", "-m", "soak", "--timeout", "14400", "-p", "no:cacheprovider", *args], plugins=[report])
    REPORT.parent.mkdir(exist_ok=True)
    if not args and report.rows: REPORT.write_text(table(report.rows, time.monotonic() - began))
    else: print(json.dumps(report.rows, indent=1))
    return int(code)


if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
