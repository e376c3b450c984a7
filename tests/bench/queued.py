"""What a scheduler costs beside the jobs it runs: `make bench-jobs`, or

    python tests/bench/queued.py process notebook --repeats 3 [--dry]

Fifty jobs wait in the queue and are run one after another; the same processes are then started by hand, one after
another. The difference, per job, is the scheduler's: its transactions, the start it decides on, the end it notices.
The section goes to tests/bench/RESULTS.md as those of bench.py do.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bench import keep, stamp

JOBS = 50
DONE = (
    "import json, sys; json.load(sys.stdin); print('scalai-dispatch ' + json.dumps(dict(run=None, state='succeeded',"
    " why='')))"
)
KINDS = {"process": "a process that ends at once", "notebook": "a notebook of one cell"}


def prepared(folder: Path, kind: str):  # settings
    "A workspace with its notebook, and what a child is."
    from scalai_nb.core.settings import Settings
    from scalai_nb.jobs.worker import Child
    cell = dict(
        cell_type="code", id="c0", metadata=dict(tags=["parameters"]), source="n = 1", outputs=[], execution_count=None
    )
    (folder / "job.ipynb").write_text(
        json.dumps(
            dict(
                nbformat=4,
                nbformat_minor=5,
                metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")),
                cells=[cell],
            )
        )
    )
    Child.program = (
        [sys.executable, "-S", "-E", "-c", DONE]
        if kind == "process"
        else [sys.executable, "-P", "-m", "scalai_nb.jobs.worker"]
    )
    return Settings(root=folder)


def queued(folder: Path, kind: str) -> tuple[float, float]:  # seconds, and CPU seconds of this process
    "Fifty starts by the scheduler."
    from scalai_nb.jobs.schedule import schedule
    from scalai_nb.jobs.schedule_store import ScheduleStore
    from scalai_nb.jobs.scheduler import Scheduler
    settings = prepared(folder, kind)
    table = ScheduleStore(settings)
    for n in range(JOBS):
        table.put(schedule(dict(name=f"s{n}", job="job.ipynb", cron="0 0 1 1 *")))
        table.trigger(f"s{n}")
    scheduler, began, cpu = Scheduler(settings, slots=1), time.perf_counter(), time.process_time()
    ended = scheduler.run(once=True)
    took = time.perf_counter() - began, time.process_time() - cpu
    assert [f.state for f in ended] == ["succeeded"]*JOBS, ended
    return took


def alone(folder: Path, kind: str) -> float:  # seconds
    "The same processes without one."
    from scalai_nb.jobs.worker import Child, outcome
    settings, began = prepared(folder, kind), time.perf_counter()
    for _ in range(JOBS):
        child = Child(settings.root/"job.ipynb", {}, settings.root)
        child.process.wait()
        assert outcome(child)["state"] == "succeeded"
        child.close()
    return time.perf_counter() - began


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("kinds", nargs="*", choices=[*KINDS, []], help=f"of {', '.join(KINDS)}; all by default")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    a.kinds = a.kinds or list(KINDS)
    load, runs = os.getloadavg()[0], {k: [] for k in a.kinds}
    for k in range(a.repeats):
        for kind in a.kinds:
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                runs[kind].append((*queued(Path(one), kind), alone(Path(other), kind)))
            print(
                f"{kind} {k + 1}/{a.repeats}: {runs[kind][-1][0]:.2f} s queued, {runs[kind][-1][2]:.2f} s alone",
                file=sys.stderr,
                flush=True,
            )
    lines = [
        "| job | queued, s | alone, s | scheduler, ms a job | its CPU, ms a job | every repeat, ms a job |",
        "|---|---:|---:|---:|---:|---|",
    ]
    over = {kind: [1000*(q - alone)/JOBS for q, _, alone in r] for kind, r in runs.items()}
    for kind, r in runs.items():
        mid = [statistics.median(x[i] for x in r) for i in range(3)]
        lines.append(
            f"| {KINDS[kind]} | {mid[0]:.2f} | {mid[2]:.2f} | {statistics.median(over[kind]):.1f} |"
            f" {1000*mid[1]/JOBS:.1f} | {', '.join(f'{x:.1f}' for x in over[kind])} |"
        )
    worst = max(statistics.median(x) for x in over.values())
    told = f"- must: ≤ 50 ms of scheduler a job: {worst:.0f} ms, {'reached' if worst <= 50 else 'not reached'}"
    command = f"python tests/bench/queued.py {' '.join(a.kinds)} --repeats {a.repeats}"
    text = "\n".join(
        [
            f"## queue, {JOBS} jobs",
            "",
            (
                "Fifty jobs that wait in the queue of one scheduler with one slot, beside the same processes started"
                " one after another by hand."
            ),
            "",
            *lines,
            "",
            told,
            "",
            stamp(command, load),
            "",
        ]
    )
    print(text)
    if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
