"""Everything that needs a GPU, in one command: `make gpu`, or

    python tests/gpu/run.py [pytest's arguments, as -k profile]

Runs tests/gpu and the data room's tests on cuDF, then writes tests/gpu/RESULTS.md: what, how it ended, seconds,
what was measured; device and versions. Without a GPU it says so in two lines and exits with 2; nothing is written
then.
"""

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE/"RESULTS.md"
PACKAGES = (
    "cudf",
    "dask-cudf",
    "dask-cuda",
    "cupy",
    "torch",
    "onnxruntime-gpu",
    "onnxruntime",
    "dask",
    "pandas",
    "pyarrow",
    "numpy",
)


class Told:
    "A pytest plugin: what each test is about, how it ended, what it measured."
    def __init__(self): self.about, self.rows = {}, []

    def pytest_collection_modifyitems(self, items):
        of = lambda i: getattr(getattr(i, "callspec", None), "id", "").split("-")
        # the rest needs no GPU, and has its own suite
        items[:] = [i for i in items if "cudf" in of(i) or i.path.parent.name == "gpu"]
        for i in items: self.about[i.nodeid] = said(i.name, (i.obj.__doc__ or "").strip())

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.rows.append(row(self.about[report.nodeid], report))


def said(name: str, doc: str) -> str:
    "A test in words: the first line of its docstring, else its name."
    words = doc.split("\n")[0].rstrip(".") or name.removeprefix("test_").split("[")[0].replace("_", " ")
    return words + (" (cuDF)" if "[cudf" in name and "cuDF" not in words else "")


def row(about: str, report) -> tuple:  # what, outcome, seconds, measured or why not
    "A line of the table from a pytest report."
    measured = ", ".join(f"{k} {v}" for k, v in report.user_properties)
    if report.outcome == "failed":
        measured = str(getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longrepr)).splitlines()[
            0
        ][:120]
    if report.outcome == "skipped":
        measured = (
            report.longrepr[2].removeprefix("Skipped: ")
            if isinstance(report.longrepr, tuple)
            else str(report.longrepr)
        )
    return (
        about,
        (
            report.outcome
            if report.when == "call" or report.outcome == "skipped"
            else f"{report.outcome} ({report.when})"
        ),
        report.duration,
        measured,
    )


def text(rows: list[tuple], device: str, versions: str, command: str, commit: str) -> str:
    "The page: a summary, the table, where it was made."
    cell = lambda x: str(x).replace("|", "\\|").replace("\n", " ")
    count = lambda outcome: sum(r[1].startswith(outcome) for r in rows)
    lines = [
        "# On a GPU",
        "",
        "Written by `make gpu` (tests/gpu/run.py).",
        "",
        f"{count('passed')} passed, {count('failed')} failed, {count('skipped')} skipped.",
        "",
        "| what | outcome | seconds | measured |",
        "|---|---|---:|---|",
    ]
    lines += [
        f"| {cell(what)} | {outcome} | {seconds:.2f} | {cell(measured)} |" for what, outcome, seconds, measured in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            (
                f"`{command}`, commit {commit}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC. {device}. Python"
                f" {platform.python_version()}, {versions}."
            ),
            "",
        ]
    )


def devices() -> str:
    "The GPUs here, and their driver."
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
    )
    return "; ".join(x.strip() for x in asked.stdout.splitlines()) or "device unknown: nvidia-smi said nothing"


def versions() -> str:
    "Installed versions; RAPIDS packages carry the CUDA version in their name."
    found = []
    for p in PACKAGES:
        for name in (p, f"{p}-cu12", f"{p}-cu13", f"{p}-cuda12x", f"{p}-cuda13x"):
            try: found.append(f"{name} {version(name)}")
            except PackageNotFoundError: continue
    return ", ".join(found)


def main(args: list[str]) -> int:
    from scalai_nb.core import device
    if not device.available():
        print("There is no CUDA device with cuDF here: nothing was run, and nothing written.", file=sys.stderr)
        print(
            "On a machine with a GPU: pip install -e '.[dev,gpu-cu12]' (or gpu-cu13), then make gpu.", file=sys.stderr
        )
        return 2
    import pytest
    told = Told()
    code = int(pytest.main(["-q", "-p", "no:cacheprovider", str(HERE.parent), *args], plugins=[told]))
    git = lambda *a: subprocess.run(["git", *a], cwd=HERE, capture_output=True, text=True).stdout.strip()
    commit = git("rev-parse", "--short", "HEAD") + (
        " with uncommitted changes" if git("status", "--porcelain", "--", "../../scalai_nb") else ""
    )
    page = text(told.rows, devices(), versions(), " ".join(["python tests/gpu/run.py", *args]), commit)
    if told.rows: RESULTS.write_text(page)
    print(page)
    return code


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
