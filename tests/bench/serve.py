"""A model over HTTP beside an echo, a call a request, and other servers of models with their best settings: `make
bench-serve`, or

    python tests/bench/serve.py --rounds 5 [--seconds 4] [--only "scalai serve" granian …] [--dry]
    python tests/bench/serve.py overload [--rounds 3] [--seconds 10] [--dry]      tests/bench/overload.py

One JSON row a request over keep-alive connections, each waiting for its answer (tests/load.py, in a process of its
own). CPU is user and system time of all processes of a server, also of those that left its tree. A peer has an
environment of its own (environments.py; `SCALAI_PEERS` names a folder for them), made when it is first asked for; one
that cannot be installed or started is a row that says why. The section goes to tests/bench/RESULTS.md as those of
bench.py do."""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import keep, stamp
from contenders import (
    APPS,
    BENTOML,
    CONTENDERS,
    ECHO,
    GRANIAN,
    LITSERVE,
    MLSERVER,
    OURS,
    RAY,
    STARLETTE,
    UNSEEN,
    Start,
)

from scalai_nb.core.process import free_port

CONNECTIONS, ROWS = (64, 1), 10_000
MARK = "SCALAI_BENCH"  # in the environment of a server and of all that it starts
KNOWN = ["carrier", "origin", "dest", "distance", "sched_minute", "weekday", "dep_delay", "temp", "humid",
         "wind_speed", "precip", "pressure", "visib"]


def workspace(folder: Path, versions: int = 1, hidden: tuple = (256, 256, 128)) -> Path:
    "A workspace with a network over thirteen columns of real flights, as large as the demo's; it has learnt nothing."
    import pyarrow as pa
    import torch

    from scalai_nb.compression.export import Labels, export
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    from scalai_nb.loop.flights import month_rows, weather
    from scalai_nb.training.models import MLP
    from scalai_nb.training.registry import Registry
    from scalai_nb.training.run import Run
    air = weather().drop_columns(["year", "month", "day", "hour"])
    rows = month_rows(1).join(air, ["origin", "time_hour"]).to_pandas()
    rows["sched_minute"] = rows["sched_dep_time"]//100*60 + rows["sched_dep_time"] % 100
    rows["weekday"] = rows["day"] % 7
    rows = pa.Table.from_pandas(rows[KNOWN], preserve_index=False)
    settings, prep = Settings(root=folder), Prep.fit(profile(rows))
    registry = Registry(settings)
    for number in range(versions, 0, -1):
        torch.manual_seed(number)
        network = MLP(len(prep.features), hidden).eval()
        run = Run(id=f"late{number}", model=network, prep=prep, target="late", task="binary",
                  example={"columns": KNOWN, "data": [list(rows.slice(0, 1).to_pylist()[0].values())]})
        path = export(run.model, prep, folder/"late.onnx", target="late", labels=Labels(("no", "yes")))
        registry.promote("late", registry.register("late", path, run), "to be measured")
    (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    (folder/"row.json").write_text(json.dumps({"rows": rows.slice(0, 1).to_pylist()}))
    many = pa.concat_tables([rows]*(ROWS//len(rows) + 1)).slice(0, ROWS).combine_chunks()
    with pa.ipc.new_stream(folder/"rows.arrow", many.schema) as writer: writer.write_table(many)
    return path


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark: found.append(process)
    return found


marks: dict[int, str] = {}  # process id of a server → its mark
spent: dict[int, dict[psutil.Process, float]] = {}  # process id of a server → CPU seconds of each of its processes


def tree(pid: int) -> list[psutil.Process]:
    "A server's processes: its children's children too, and those that no longer have it for a parent."
    found = dict.fromkeys([psutil.Process(pid), *marked(marks[pid])])
    for process in list(found):
        with suppress(psutil.Error): found |= dict.fromkeys(process.children(recursive=True))
    return list(found)


def cpu(pid: int) -> float:
    "CPU seconds of a server's processes so far, with those of processes that have ended."
    known = spent.setdefault(pid, {})
    for process in tree(pid):
        with suppress(psutil.Error): known[process] = sum(process.cpu_times()[:2])
    return sum(known.values())


@contextmanager
def server(name: str, folder: Path, model: Path, workers: int = 1):
    "A server that answers; its process, its address. The body that it takes is body.json."
    contender, port, mark = CONTENDERS[name], free_port(), secrets.token_hex(8)
    start = Start(contender.python(), port, folder, workers)
    env = os.environ | {"OMP_NUM_THREADS": "1", "MODEL": str(model), "PYTHONPATH": str(APPS), MARK: mark}
    env |= {"PATH": f"{start.python.parent}:{os.environ['PATH']}", "SERVED": str(folder)} | contender.env
    contender.prepare(start, env)
    row = json.loads((folder/"row.json").read_text())["rows"][0]
    (folder/"body.json").write_text(json.dumps(contender.body(row)))
    with open(folder/"log.txt", "w") as log:
        process = subprocess.Popen(list(map(str, contender.command(start))), cwd=folder, env=env, stdout=log,
                                   stderr=log)
    marks[process.pid] = mark
    try:
        url = f"http://127.0.0.1:{port}{contender.path}"
        answer = wait_for_answer(process, url, folder)
        assert name == ECHO or expected(row, model) in floats(answer), f"{name} answers {answer}"
        yield process, url
    finally: end(process)


def wait_for_answer(process: subprocess.Popen, url: str, folder: Path) -> dict:
    body, end, last = (folder/"body.json").read_bytes(), time.monotonic() + 180, ""
    while process.poll() is None and time.monotonic() < end:
        try:
            answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=30)
            if answer.status_code == 200: return answer.json()
            last = answer.text[:200]
        except httpx.HTTPError: pass
        time.sleep(.02)
    log = (folder/"log.txt").read_text(errors="replace").strip().splitlines()
    last = last or (log or ["it wrote nothing"])[-1][:300]
    raise RuntimeError(f"it did not answer: {last}")


def end(process: subprocess.Popen):
    "By SIGTERM, and what is left after a while by SIGKILL, each by its id."
    if process.poll() is None: process.terminate()
    with suppress(subprocess.TimeoutExpired): process.wait(60)
    left = marked(marks[process.pid])
    for p in left:
        with suppress(psutil.Error): p.terminate()
    for p in psutil.wait_procs(left, 10)[1]:
        with suppress(psutil.Error): p.kill()
    process.wait()


def expected(row: dict, model: Path) -> float:
    "The score of a row, to six digits."
    os.environ["MODEL"] = str(model)
    if str(APPS) not in sys.path: sys.path.append(str(APPS))
    from common import predict
    return round(predict([row])[0], 6)


def floats(answer) -> set[float]:
    "The numbers of a JSON document, to six digits."
    if isinstance(answer, float): return {round(answer, 6)}
    if isinstance(answer, dict): answer = list(answer.values())
    return {x for part in answer for x in floats(part)} if isinstance(answer, list) else set()


def load(url: str, folder: Path, connections: int, seconds: float) -> dict:
    command = [sys.executable, str(HERE.parent/"load.py"), url, str(folder/"body.json"), str(connections),
               str(seconds)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def wait_for_observer(folder: Path):
    "Starting it is not part of what a request costs."
    from scalai_nb.core.settings import Settings
    from scalai_nb.serving.live import services
    end = time.monotonic() + 90
    while not any(not s.ended and s.ledger["models"]["late"]["rows"] for s in services(Settings(root=folder))[:1]):
        assert time.monotonic() < end, "no observer came"
        time.sleep(.2)


def lost_at_end(process: subprocess.Popen, url: str, folder: Path, connections: int = 32) -> int:
    "Requests that were written and had no answer because the server was told to end."
    command = [sys.executable, str(HERE.parent/"load.py"), url, str(folder/"body.json"), str(connections), "4"]
    busy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(1.5)
    process.terminate()
    counts = json.loads(busy.communicate()[0])["counts"]
    return sum(n for what, n in counts.items() if what not in ("200", "refused"))


def measure(name: str, folder: Path, model: Path, seconds: float) -> dict:
    "One start of a server: what it costs at each number of connections."
    with server(name, folder, model) as (process, url):
        found = {"ready": cpu(process.pid)}
        load(url, folder, CONNECTIONS[0], 1)
        if name == OURS: wait_for_observer(folder)
        for connections in CONNECTIONS:
            before = cpu(process.pid)
            done = load(url, folder, connections, seconds)
            counts = done["counts"]
            good = counts.pop("200", 0)
            if not good: raise RuntimeError(f"no answer at {connections} connections: {counts}")
            found[connections] = {"cpu": 1e6*(cpu(process.pid) - before)/good, "p50": done["p50_ms"],
                                  "p99": done["p99_ms"], "rate": good/seconds, "lost": sum(counts.values())}
        found["pss"] = sum(p.memory_full_info().pss for p in tree(process.pid))/1e6
        if name in (OURS, UNSEEN): found |= own(process, url, folder)
        found["lost_at_end"] = lost_at_end(process, url, folder)
    return found


def own(process: subprocess.Popen, url: str, folder: Path) -> dict:
    "What only ours is asked: a worker's memory, a large Arrow body."
    workers = [p for p in tree(process.pid) if "serving.worker" in " ".join(p.cmdline())]
    body, kind = (folder/"rows.arrow").read_bytes(), {"content-type": "application/vnd.apache.arrow.stream"}
    found = {"worker": max(p.memory_full_info().pss for p in workers)/1e6}
    httpx.post(url, content=body, headers=kind, timeout=60).raise_for_status()
    before = cpu(process.pid)
    for _ in range(10): httpx.post(url, content=body, headers=kind, timeout=60).raise_for_status()
    return found | {"arrow": 1e6*(cpu(process.pid) - before)/(10*ROWS)}


HEAD = (
    "Thirteen columns of a flight to a score: a network of 256, 256 and 128 units behind its prep, one ONNX file. One "
    "worker process each, one thread in ONNX Runtime, no log of requests. Each looks at the values' types; the echo "
    "only reads and writes the JSON. `scalai serve` also counts, profiles and looks for another version. Batches are "
    "of up to 64 rows. CPU and memory (PSS) are of all processes of a server. Lost: requests without an answer of 200 "
    "while nothing happened; and, of 32 connections, those that were written and had none when the server got SIGTERM."
)


def report(runs: dict, failed: dict, command: str, busy: float) -> str:
    of = lambda name, *path: statistics.median(_at(r, path) for r in runs[name])
    lines = ["## serve, one JSON row a request", "", HEAD, "",
             "| | CPU µs, 64 connections | × | requests/s | p50 ms | p99 ms | CPU µs, 1 connection | p50 ms | lost "
             "| lost at SIGTERM | PSS, MB | CPU s to ready | every repeat, CPU µs at 64 |",
             "|---|" + "---:|"*11 + "---|"]
    for name in CONTENDERS:
        if name in failed: lines.append(f"| {name} | not measured: {failed[name]} |" + " |"*11)
        if not runs.get(name): continue
        ratio = of(name, 64, "cpu")/of(OURS, 64, "cpu") if runs.get(OURS) else float("nan")
        lines.append(
            f"| {name} | {of(name, 64, 'cpu'):,.0f} | {ratio:.2f} | {of(name, 64, 'rate'):,.0f} "
            f"| {of(name, 64, 'p50'):.1f} | {of(name, 64, 'p99'):.1f} | {of(name, 1, 'cpu'):,.0f} "
            f"| {of(name, 1, 'p50'):.2f} | {sum(r[c]['lost'] for r in runs[name] for c in CONNECTIONS)} "
            f"| {', '.join(str(r['lost_at_end']) for r in runs[name])} | {of(name, 'pss'):,.0f} "
            f"| {of(name, 'ready'):.2f} | {', '.join(format(r[64]['cpu'], ',.0f') for r in runs[name])} |")
    return "\n".join([*lines, "", *(targets(of, runs) if runs.get(OURS) else []), "", stamp(command, busy), ""])


def _at(value, path):
    for key in path: value = value[key]
    return value


BATCHING = {GRANIAN: (1.2, "1.2 ×"), MLSERVER: (1/7, "1/7"), LITSERVE: (1/15, "1/15"), BENTOML: (1/15, "1/15"),
            RAY: (1/40, "1/40")}  # ours at most, of their CPU


def said(good: bool) -> str: return "reached" if good else "not reached"


def targets(of, runs: dict) -> list[str]:
    "What issue 16 asks for; a line where all that it compares was measured."
    ours, found = of(OURS, 64, "cpu"), []
    if runs.get(STARLETTE) and runs.get(ECHO):
        echo, peer = of(ECHO, 64, "cpu"), of(STARLETTE, 64, "cpu")
        found.append(
            f"- must: ≤ 90 CPU µs a request at 64 connections: {ours:.0f}, {said(ours <= 90)}; ≤ ½ of Starlette: "
            f"{ours/peer:.2f}, {said(ours <= peer/2)}; aim ≤ 1.5 × the echo: {ours/echo:.2f}, "
            f"{said(ours <= 1.5*echo)}")
    for name, (most, words) in BATCHING.items():
        if not runs.get(name): continue
        share = ours/of(name, 64, "cpu")
        found.append(f"- must: ≤ {words} of {name}: {share:.3f}, {said(share <= most)}"
                     + f" (aim 1 ×: {said(share <= 1)})"*(name == GRANIAN))
    if runs.get(UNSEEN):
        unseen = of(UNSEEN, 64, "cpu")
        share = (ours - unseen)/ours
        found.append(f"- must: observation ≤ 15 % of the CPU at 64 connections: {ours:.0f} against {unseen:.0f}, "
                     f"{share:.0%}, {said(share <= .15)} (aim 8 %: {said(share <= .08)})")
    if runs.get(STARLETTE):
        p50 = of(OURS, 1, "p50")/of(STARLETTE, 1, "p50")
        found.append(f"- must: p50 at one connection ≤ 1.1 × Starlette: {p50:.2f}, {said(p50 <= 1.1)} "
                     f"(aim 1.0: {said(p50 <= 1)})")
    return [*found, *own_targets(of)]


def own_targets(of) -> list[str]:
    pss, ready, arrow = of(OURS, "worker"), of(OURS, "ready"), of(OURS, "arrow")
    return [
        f"- must: Arrow body of {ROWS:,} rows ≤ 12 CPU µs a row: {arrow:.1f}, {said(arrow <= 12)} "
        f"(aim 7: {said(arrow <= 7)})",
        f"- must: CPU to ready ≤ 1.5 s: {ready:.2f}, {said(ready <= 1.5)} (aim .8: {said(ready <= .8)}); PSS of a "
        f"worker ≤ 100 MB: {pss:.0f}, {said(pss <= 100)} (aim 70: {said(pss <= 70)})"]


def rounds(names: list[str], count: int, seconds: float) -> tuple[dict, dict]:  # runs, why one could not be measured
    "Each in turn, so that a busy minute falls on all; one that fails twice in a row is not asked again."
    runs, failed = {name: [] for name in names}, {}
    with tempfile.TemporaryDirectory() as folder:
        model = workspace(Path(folder))
        for _ in range(count):
            for name in names:
                if name in failed: continue
                for attempt in range(2):
                    try: runs[name].append(measure(name, Path(folder), model, seconds))
                    except (RuntimeError, subprocess.CalledProcessError) as e:
                        if name in (OURS, UNSEEN): raise
                        failed[name] = " ".join(str(e).replace("|", "/").split())
                        print(name, failed[name], file=sys.stderr, flush=True)
                        continue
                    failed.pop(name, None)
                    print(name, json.dumps(runs[name][-1]), file=sys.stderr, flush=True)
                    break
    return runs, failed


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("what", nargs="?", choices=["requests", "overload"], default="requests")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=4)
    p.add_argument("--only", nargs="+", default=[""], help="contenders whose names begin so")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    os.environ.pop("SCALAI_SETTINGS", None)
    if a.what == "overload":
        import overload
        return overload.main(a.rounds, a.seconds, a.dry)
    busy = os.getloadavg()[0]
    runs, failed = rounds([n for n in CONTENDERS if n.startswith(tuple(a.only))], a.rounds, a.seconds)
    text = report(runs, failed, f"python tests/bench/serve.py --rounds {a.rounds} --seconds {a.seconds:g}", busy)
    print(text)
    if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
