"""Notebooks as jobs beside papermill, in one run: `make bench-jobs`, or

    python tests/bench/notebooks.py trivial imports large steps parallel --repeats 3 [--dry]

Whole commands, each from its start to its end, in turn, as often as `--repeats` says; `parallel` runs one workflow
with more and more steps at a time. The sections go to tests/bench/RESULTS.md as those of bench.py do.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bench import keep, stamp

BIN = Path(sys.executable).parent
JOBS = ("trivial", "imports", "large", "steps", "parallel")
STEPS = 200
SIDE = 6  # steps that do not wait for each other
IMPORTS = "import pandas as pd\nimport dask.dataframe as dd\nimport torch\n"
WORK = {
    "computes on all cores": (
        "import numpy as np\nx = np.random.default_rng(n).standard_normal((1500, 1500))\nfor _ in range(12): x ="
        " np.tanh(x @ x/40)"
    ),
    "computes on one core": "total = 0\nfor i in range(15_000_000): total += i % 7",
    "waits for others": "import time\ntime.sleep(1.5)",
}
LINES = "for i in range(1000): print(f'{i:04d}', 'x'*95)"  # 1,000 lines of 101 bytes


def notebook(path: Path, *cells: str):
    "A notebook from texts; the first is its parameters cell."
    cells = [
        dict(
            cell_type="code",
            id=f"c{i}",
            metadata=dict(tags=["parameters"] if i == 0 else []),
            source=text,
            outputs=[],
            execution_count=None,
        )
        for i, text in enumerate(cells)
    ]
    meta = dict(
        kernelspec=dict(name="python3", display_name="Python 3", language="python"), language_info=dict(name="python")
    )
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=meta, cells=cells)))


def workspace(folder: Path, warm: int = 0) -> Path:
    folder.mkdir()
    (folder/"settings.ini").write_text(f"[jobs]\nwarm = {warm}\n")
    notebook(folder/"trivial.ipynb", "n = 1", "print(n + 1)")
    notebook(
        folder / "imports.ipynb", "n = 1", IMPORTS, "print(pd.Series([1, 2]).sum(), dd.__name__, torch.ones(2).sum())"
    )
    notebook(folder/"large.ipynb", "n = 1", *[LINES]*100)
    return folder


def seconds(command: list, cwd: Path) -> float:
    "A whole command that must end well."
    began = time.perf_counter()
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-500:]}{done.stderr[-2000:]}"
        )
    return took


# papermill by default writes the notebook after each cell
ONCE = ["--no-request-save-on-cell-execute", "--autosave-cell-every", "0"]
def papermill(name: str, *more):
    return lambda at: seconds([BIN/"papermill", f"{name}.ipynb", "out.ipynb", "--no-progress-bar", *more], at)
def both(name: str, cold: Path) -> dict:
    return {
        "papermill": (papermill(name), cold),
        "papermill, saved once": (papermill(name, *ONCE), cold),
        "scalai": (scalai(name), cold),
    }
def scalai(name: str): return lambda at: seconds([BIN/"scalai", "run", f"{name}.ipynb", "-o", "out.ipynb"], at)


def rounds(who: dict, repeats: int, what: str) -> dict[str, list[float]]:
    "Every contender in turn."
    runs = {w: [] for w in who}
    for k in range(repeats):
        for w, (command, at) in who.items():
            runs[w].append(command(at))
            print(f"{what} {k + 1}/{repeats} {w}: {runs[w][-1]:.2f} s", file=sys.stderr, flush=True)
    return runs


def trivial(cold: Path, warm: Path, repeats: int) -> list:
    runs = rounds(both("trivial", cold), repeats, "trivial")
    return [("CLI, a trivial notebook", runs, .9, .5)]


def imports(cold: Path, warm: Path, repeats: int) -> list:
    scalai("imports")(warm)  # it starts the process that is kept
    runs = rounds(both("imports", cold) | {"scalai, warm": (scalai("imports"), warm)}, repeats, "imports")
    hot = runs.pop("scalai, warm")
    return [
        ("kernel with pandas, Dask and torch imported", runs, None, None),
        ("the same, warm", runs | {"scalai": hot}, 1.0, None),
    ]


def large(cold: Path, warm: Path, repeats: int) -> list:
    runs = rounds(both("large", cold), repeats, "large")
    seen = {
        w: read_during(command, cold)
        for w, command in (("papermill", papermill("large")), ("scalai", scalai("large")))
    }
    print(seen, file=sys.stderr)
    return [
        ("notebook of 100 cells with 10 MB of output", runs, 2.0, None),
        ("reads of it meanwhile that met a broken file", seen, 0, None),
    ]


def read_during(command, at: Path) -> tuple[int, int]:  # broken, all
    "Poll the notebooks that a command writes while it runs."
    for old in (at/"out.ipynb", at/".scalai"/"runs"):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    broken, reads, over = 0, 0, threading.Event()

    def look():
        nonlocal broken, reads
        while not over.wait(.02):
            for path in [at/"out.ipynb", *at.glob(".scalai/runs/*/notebook.ipynb")]:
                try: json.loads(path.read_text())
                except FileNotFoundError: continue
                except ValueError: broken += 1
                reads += 1
    reader = threading.Thread(target=look)
    reader.start()
    try: command(at)
    finally:
        over.set()
        reader.join()
    return broken, reads


def steps(cold: Path, warm: Path, repeats: int) -> list:
    "A workflow run once, by kernels out of one process, then again with nothing changed."
    (cold / "steps.toml").write_text(
        'warm = ["json"]\n'
        + "".join(
            f'[[step]]\nname = "s{i}"\nnotebook = "trivial.ipynb"\nparameters = {{ n = {i} }}\nneeds = []\n'
            for i in range(STEPS)
        )
    )
    first = seconds([BIN/"scalai", "run", "steps.toml"], cold)
    print(f"steps: the first run took {first:.1f} s", file=sys.stderr, flush=True)
    def again(at):
        began = time.perf_counter()
        done = subprocess.run([BIN/"scalai", "run", "steps.toml", "--json"], cwd=at, capture_output=True, text=True)
        took = time.perf_counter() - began
        assert [s["state"] for s in json.loads(done.stdout)["steps"]] == ["skipped"] * STEPS, (
            done.stdout[-500:] + done.stderr[-2000:]
        )
        return took
    return [
        (
            f"workflow of {STEPS} trivial steps, nothing changed: all skipped",
            rounds({"scalai": (again, cold)}, repeats, "steps"),
            2.0,
            None,
        )
    ]


def parallel(folder: Path, repeats: int) -> list[str]:  # lines of a table
    "Independent steps, with one and more at a time; the default is as many as cores."
    cores = len(os.sched_getaffinity(0))
    many, usual = sorted({1, cores, 2*cores}), cores
    runs = {(what, k): [] for what in WORK for k in many}
    for what, text in WORK.items(): notebook(folder/f"{what.replace(' ', '-')}.ipynb", "n = 1", text)
    for again in range(repeats):
        for what, k in runs:
            # nothing that ran before
            steps = [
                f'[[step]]\nname = "s{i}"\nnotebook = "{what.replace(" ", "-")}.ipynb"\nparameters = {{ n ='
                f' {1000*again + 10*k + i} }}\nneeds = []\n'
                for i in range(SIDE)
            ]
            (folder/"side.toml").write_text("".join(steps))
            runs[what, k].append(seconds([BIN/"scalai", "run", "side.toml", "--jobs", str(k)], folder))
            print(
                f"parallel {again + 1}/{repeats} {what}, {k} at a time: {runs[what, k][-1]:.2f} s",
                file=sys.stderr,
                flush=True,
            )
    mid = {at: statistics.median(r) for at, r in runs.items()}
    head = [
        f"| {SIDE} steps, each of which | "
        + " | ".join(f"{k} at a time" + " (default)" * (k == usual) for k in many)
        + " | every repeat, s |",
        "|---|" + "---:|" * len(many) + "---|",
    ]
    return head + [
        f"| {what} | "
        + " | ".join(f"{mid[what, k]:.2f} s" for k in many)
        + " | "
        + "; ".join(", ".join(f"{x:.2f}" for x in runs[what, k]) for k in many)
        + " |"
        for what in WORK
    ]


def row(what: str, runs: dict, must, share) -> str:
    "A line of the table; × is by the faster of papermill's two settings."
    if isinstance(runs["scalai"], tuple):
        said = {w: f"{b} of {n}" for w, (b, n) in runs.items()}
        return (
            f"| {what} | {said['papermill']} | | {said['scalai']} | | {must} |"
            f" {'yes' if runs['scalai'][0] == must else '**no**'} | |"
        )
    own, *others = (
        statistics.median(runs[w]) if w in runs else None for w in ("scalai", "papermill", "papermill, saved once")
    )
    other = min((o for o in others if o is not None), default=None)
    met = "" if must is None else "yes" if own <= must and (share is None or own <= share*other) else "**no**"
    words = "" if must is None else f"≤ {must:g} s" + (f", ≤ {share:g} ×" if share else "")
    shown = "; ".join(f"{w} {', '.join(f'{s:.2f}' for s in r)}" for w, r in runs.items())
    theirs = " | ".join("" if o is None else f"{o:.2f} s" for o in others)
    return (
        f"| {what} | {theirs} | {own:.2f} s | {'' if other is None else f'{own/other:.2f}'} | {words} | {met} |"
        f" {shown} |"
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("jobs", nargs="*", choices=[*JOBS, []], help=f"of {', '.join(JOBS)}; all by default")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    os.environ.pop("SCALAI_SETTINGS", None)
    from importlib.metadata import version
    load, jobs = os.getloadavg()[0], a.jobs or JOBS
    sections, command = {}, f"python tests/bench/notebooks.py {' '.join(jobs)} --repeats {a.repeats}"
    with tempfile.TemporaryDirectory() as d:
        cold, warm = workspace(Path(d)/"cold"), workspace(Path(d)/"warm", 1)
        try:
            if rows := [row(*r) for job in jobs if job != "parallel" for r in globals()[job](cold, warm, a.repeats)]:
                some = "" if {*JOBS} <= {*jobs} else f", {', '.join(j for j in jobs if j != 'parallel')} only"
                sections[f"## notebooks beside papermill {version('papermill')}{some}"] = [
                    (
                        "Whole commands in fresh workspaces, in turn; × is our median by the smaller of papermill's."
                        " Saved once: `--no-request-save-on-cell-execute --autosave-cell-every 0`; by default it"
                        " writes the notebook after each cell. The reader asks for the notebook fifty times a second,"
                        " in runs of their own."
                    ),
                    "",
                    "| | papermill | papermill, saved once | scalai | × | must | met | every repeat, s |",
                    "|---|---:|---:|---:|---:|---|---|---|",
                    *rows,
                ]
            if "parallel" in jobs:
                sections["## steps at a time"] = [
                    (
                        f"A workflow of {SIDE} steps that do not wait for each other, each a kernel of its own that is"
                        " started for it, by the number that may run at a time (`--jobs`, `[workflow] jobs`)."
                    ),
                    "",
                    *parallel(cold, a.repeats),
                ]
        finally:
            from scalai_nb.jobs.kernel_pool import release
            release(warm/".scalai")
    for title, lines in sections.items():
        text = "\n".join([title, "", *lines, "", stamp(command, load), ""])
        print(text)
        if not a.dry: keep(title, text)


if __name__ == "__main__": main()
