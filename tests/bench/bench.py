"""Side by side on one file in one run: `make bench-data`, or

    python tests/bench/bench.py profile merge --rows 5e6 --repeats 3 [--only scalai polars]

Each contender runs in a process of its own, in turn, as often as `--repeats` says, so that a busy minute falls on all.
The report, with commit, machine, versions and every repeat, goes to tests/bench/RESULTS.md; nobody types a figure
there. """

import argparse
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from measure import cost

RESULTS = HERE/"RESULTS.md"
PACKAGES = (
    "numpy",
    "pyarrow",
    "numba",
    "pandas",
    "polars",
    "duckdb",
    "clevercsv",
    "dask",
    "scikit-learn",
    "torch",
    "torchdata",
    "deltalake",
    "onnxruntime",
    "torch-pruning",
    "transformers",
    "confluent-kafka",
    "orjson",
)
TABLES = {
    "walks": (
        "Here of sixteen random walks in float64, hardly any value of which comes twice."
    ),  # of rows.py: `profile_walks` is the job `profile` on these rows
    "refusals": (
        "Here of the same walks under rules that refuse most rows (78 of 100 where there are 5,000,000), which a"
        " quarantine keeps as text."
    ),
    "readings": (
        "Here of sensors: three columns of text (40, 5,000 and 200,000 different) and seven noisy measurements in"
        " float64."
    ),
}
JOBS = (
    "profile",
    "profile_walks",
    "profile_readings",
    "growth",
    "ingest",
    "ingest_walks",
    "ingest_refusals",
    "ingest_readings",
    "merge",
    "prep",
    "loader",
    "wide",
)
LONG = ("growth", "wide")  # asked for by name
# of the report, in this order: models.py's, learn.py's, compress.py's, notebooks.py's, queued.py's, monitor.py's,
# dash.py's and wide.py's at the end
SECTIONS = (
    *JOBS,
    "serve",
    "sentences",
    "reading",
    "broken",
    "types",
    "tables",
    "late",
    "airtime",
    "pictures",
    "mlp",
    "cnn",
    "lost",
    "flights",
    "digits",
    "fashion",
    "minilm",
    "texts",
    "notebooks",
    "steps",
    "queue",
    "alarms",
    "power",
    "estimate",
    "cost",
    "loop",
    "dashboards",
    "drift",
    "stores",
)


def module(job: str):
    """The job's file:

    a function for each contender, `prepare(rows)` for what they read, `check(answers)` that all did the same,
    `clear(rows)` where it is too large to keep."""
    name, _, table = job.partition("_")
    spec = importlib.util.spec_from_file_location(name, HERE/"jobs"/f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    if table:
        made.prepare, made.__doc__ = (
            lambda rows: getattr(importlib.import_module("rows"), table)(rows)
        ), f"{made.__doc__.strip()} {TABLES[table]}"
    return made


def once(job: str, who: str, given: str) -> dict:
    """One contender, once:

    what it cost and what it said. `seconds` is of the whole process, or of the work itself where the job times
    itself."""
    # compiled modules are kept, as where a person works
    c = cost(
        [sys.executable, str(HERE / "bench.py"), "--child", job, who, given], timeout=3600, PYTHONDONTWRITEBYTECODE=""
    )
    said = json.loads(c.out.splitlines()[-1])
    return {
        "seconds": said["seconds"] if "seconds" in said else c.wall,
        "wall": c.wall,
        "cpu": c.cpu,
        "peak": c.peak,
        "said": said.get("said"),
    }


def rounds(job: str, given: str, who: list[str], repeats: int, warmup: int) -> dict:
    "Every contender in turn, `repeats` times, after `warmup` times that are not counted."
    for k in range(1 - warmup, repeats + 1):
        if k <= 1: runs = {w: [] for w in who}
        for w in who:
            runs[w].append(once(job, w, given))
            print(
                f"{job} {k}/{repeats} {w}: {runs[w][-1]['seconds']:.2f} s, {runs[w][-1]['cpu']:.2f} CPU s,"
                f" {runs[w][-1]['peak']:.0f} MB",
                file=sys.stderr,
                flush=True,
            )
    return runs


def median(runs, what): return statistics.median(r[what] for r in runs)


def section(job, m, count, runs, command, load) -> str:
    "A Markdown section: medians, ratios to this workbench, every repeat."
    own = runs["scalai"]
    lines = [
        f"## {job}, {count:,} rows",
        "",
        m.__doc__.strip(),
        "",
        "| | seconds | × | CPU s | × | peak MB | × | every repeat, s; CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    names = getattr(m, "NAMES", {})
    for w, r in runs.items():
        ratio = [median(r, x) / median(own, x) for x in ("seconds", "cpu", "peak")]
        lines.append(
            f"| {names.get(w, w)} | {median(r, 'seconds'):.3g} | {ratio[0]:.2f} | {median(r, 'cpu'):.3g} |"
            f" {ratio[1]:.2f} | {median(r, 'peak'):.0f} | {ratio[2]:.2f} |"
            f" {', '.join(format(x['seconds'], '.3g') for x in r)}; {', '.join(format(x['cpu'], '.3g') for x in r)} |"
        )
    lines += [
        "",
        *[
            f"- {t}"
            for t in m.targets(
                count, {w: {x: median(r, x) for x in ("seconds", "cpu", "peak")} for w, r in runs.items()}
            )
        ],
        "",
        stamp(command, load),
        "",
    ]
    return "\n".join(lines)


def stamp(command: str, load: float) -> str:
    "What was measured, where and how."
    git = lambda *a: subprocess.run(["git", *a], cwd=HERE, capture_output=True, text=True).stdout.strip()
    commit = git("rev-parse", "--short", "HEAD") + (
        " with uncommitted changes" if git("status", "--porcelain", "--", "../../scalai_nb") else ""
    )
    have = []
    for p in PACKAGES:
        try: have.append(f"{p} {version(p)}")
        except PackageNotFoundError: continue
    cpu = (
        next(
            (
                x.split(":")[1].strip()
                for x in Path("/proc/cpuinfo").read_text().splitlines()
                if x.startswith("model name")
            ),
            platform.machine(),
        )
        if Path("/proc/cpuinfo").exists()
        else platform.machine()
    )
    busy = f"{load:.1f} processes wanted a core when it began" + (
        ": **a busy machine that others used at the same time**, seconds are not comparable between sections, CPU"
        " seconds nearly"
        if load > 1
        else ""
    )
    return (
        f"`{command}`, commit {commit}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, Python"
        f" {platform.python_version()}, {os.cpu_count()} × {cpu}, {psutil.virtual_memory().total / 1e9:.0f} GB;"
        f" {busy}. {', '.join(have)}."
    )


def keep_row(title: str, about: str, found: dict, measured: str, dry: bool):
    "Print a section of one row, and put it into RESULTS.md unless it is a dry run; `measured` is from `stamp`."
    text = "\n".join([title, "", about.split("\n\n")[2].replace("\n", " "), "", f"| {' | '.join(found)} |",
                      "|---:"*len(found) + "|", f"| {' | '.join(map(str, found.values()))} |", "", measured, ""])
    print(text)
    if not dry: keep(title, text)


def keep(title: str, text: str):
    "Put a section into RESULTS.md in place of the one of the same title."
    head = (
        "# What was measured\n\nWritten by `tests/bench/bench.py`; × is how many times as much as scalai. Memory is"
        " the peak of the resident set, summed over the processes of the tree.\n\n"
    )
    old = RESULTS.read_text() if RESULTS.exists() else head
    parts = re.split(r"(?m)^(?=## )", old)
    sections = {p.splitlines()[0]: p for p in parts[1:]}
    sections[title] = text + "\n"
    RESULTS.write_text(
        head
        + "".join(
            sections[k]
            for k in sorted(
                sections,
                key=lambda k: (
                    SECTIONS.index(re.match(r"## (\w+)", k)[1]),
                    int((re.search(r"([\d,]+) rows", k) or "00")[1].replace(",", "")),
                    k,
                ),
            )
        )
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument(
        "jobs", nargs="*", choices=[*JOBS, []], help=f"of {', '.join(JOBS)}; all but {' and '.join(LONG)} by default"
    )
    p.add_argument("--rows", type=lambda x: int(float(x)), nargs="+", default=[1_000_000])
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--warmup", type=int, default=1, help="rounds before them that are not counted")
    p.add_argument("--only", nargs="+", default=None, help="these contenders")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    for job in a.jobs or [j for j in JOBS if j not in LONG]:
        m = module(job)
        for count in a.rows if getattr(m, "GROWS", True) else [m.ROWS]:
            who = [w for w in m.CONTENDERS if a.only is None or w in {*a.only, "scalai"}]
            load, given = os.getloadavg()[0], str(m.prepare(count))
            runs = rounds(job, given, who, a.repeats, a.warmup)
            m.check({w: r[-1]["said"] for w, r in runs.items()})
            if hasattr(m, "clear"): m.clear(count)
            command = f"python tests/bench/bench.py {job} --rows {count} --repeats {a.repeats} --warmup {a.warmup}" + (
                f" --only {' '.join(a.only)}" if a.only else ""
            )
            text = section(job, m, count, runs, command, load)
            print(text)
            if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, job, who, given = sys.argv
        m = module(job)
        print(json.dumps(getattr(m, who)(given)))
    else: main()
