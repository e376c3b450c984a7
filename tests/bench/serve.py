"""A model over HTTP beside an echo and beside ONNX Runtime behind Starlette: `make bench-serve`, or

    python tests/bench/serve.py --rounds 5 [--seconds 4] [--dry]
    python tests/bench/serve.py overload [--rounds 3] [--seconds 10] [--dry]      tests/bench/overload.py

One JSON row a request over keep-alive connections, each waiting for its answer (tests/load.py, in a process of its
own). CPU is user and system time of the server's whole process tree. The section goes to tests/bench/RESULTS.md as
those of bench.py do.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import keep, stamp

from scalai_nb.core.process import free_port

CONNECTIONS, ROWS = (64, 1), 10_000
UNSEEN = ", not observed"  # without live windows: what observing costs is the difference
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


def tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def cpu(pid: int) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in tree(pid))


@contextmanager
def server(name: str, folder: Path, model: Path, workers: int = 1):
    "A server that answers; its process, its address."
    port = free_port()
    words = ["--port", str(port), "--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "error"]
    uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE)]
    command, path = {
        "uvicorn echo": ([*uvicorn, "serve_peers:echo", *words], "/predict"),
        "Starlette, a call a request": ([*uvicorn, "serve_peers:starlette", *words], "/predict"),
        "scalai serve": ([Path(sys.executable).with_name("scalai"), "serve", "late", "--port", str(port), "--workers",
                          str(workers)], "/models/late/predict"),
    }[name.removesuffix(UNSEEN)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MODEL": str(model)}
    env |= {"SCALAI_SERVE__FLUSH": "2"}  # often enough that a measurement has it
    if name.endswith(UNSEEN): env["SCALAI_SERVE__OBSERVE"] = "false"
    with open(folder/"log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        url, body, end = f"http://127.0.0.1:{port}{path}", (folder/"row.json").read_bytes(), time.monotonic() + 120
        while True:
            try:
                if httpx.post(url, content=body).status_code == 200: break
            except httpx.HTTPError: time.sleep(.02)
            assert process.poll() is None and time.monotonic() < end, (folder/"log.txt").read_text()
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def load(url: str, folder: Path, connections: int, seconds: float) -> dict:
    command = [sys.executable, str(HERE.parent/"load.py"), url, str(folder/"row.json"), str(connections), str(seconds)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert set(found["counts"]) == {"200"}, found
    return found


def wait_for_observer(folder: Path):
    "Starting it is not part of what a request costs."
    from scalai_nb.core.settings import Settings
    from scalai_nb.serving.live import services
    end = time.monotonic() + 90
    while not any(not s.ended and s.ledger["models"]["late"]["rows"] for s in services(Settings(root=folder))[:1]):
        assert time.monotonic() < end, "no observer came"
        time.sleep(.2)


def measure(name: str, folder: Path, model: Path, seconds: float) -> dict:
    "One start of a server: what it costs at each number of connections."
    with server(name, folder, model) as (process, url):
        found = {"ready": cpu(process.pid)}
        load(url, folder, 8, 1)
        if name == "scalai serve": wait_for_observer(folder)
        for connections in CONNECTIONS:
            before = cpu(process.pid)
            done = load(url, folder, connections, seconds)
            found[connections] = {"cpu": 1e6*(cpu(process.pid) - before)/done["answered"], "p50": done["p50_ms"],
                                  "p99": done["p99_ms"], "rate": done["answered"]/seconds}
        answering = [p for p in tree(process.pid) if "serving.observer" not in " ".join(p.cmdline())]
        found["pss"] = max(p.memory_full_info().pss for p in answering[-1:])/1e6
        if name.startswith("scalai serve"):
            body, kind = (folder/"rows.arrow").read_bytes(), {"content-type": "application/vnd.apache.arrow.stream"}
            httpx.post(url, content=body, headers=kind, timeout=60).raise_for_status()
            before = cpu(process.pid)
            for _ in range(10): httpx.post(url, content=body, headers=kind, timeout=60).raise_for_status()
            found["arrow"] = 1e6*(cpu(process.pid) - before)/(10*ROWS)
    return found


NAMES = ("uvicorn echo", "Starlette, a call a request", "scalai serve", "scalai serve" + UNSEEN)


def report(runs: dict, command: str, busy: float) -> str:
    of = lambda name, *path: statistics.median(_at(r, path) for r in runs[name])
    lines = ["## serve, one JSON row a request", "",
             "Thirteen columns of a flight to a score: a network of 256, 256 and 128 units behind its prep, one ONNX "
             "file. One worker process each, one thread in ONNX Runtime. `scalai serve` checks the rows, counts and "
             "looks for another version meanwhile; the echo only reads and writes the JSON.", "",
             "| | CPU µs, 64 connections | × | requests/s | p50 ms | p99 ms | CPU µs, 1 connection | p50 ms "
             "| PSS of a worker, MB | CPU s to ready | every repeat, CPU µs at 64 |", "|---|" + "---:|"*9 + "---|"]
    for name in NAMES:
        lines.append(
            f"| {name} | {of(name, 64, 'cpu'):.0f} | {of(name, 64, 'cpu')/of('scalai serve', 64, 'cpu'):.2f} "
            f"| {of(name, 64, 'rate'):,.0f} | {of(name, 64, 'p50'):.1f} | {of(name, 64, 'p99'):.1f} "
            f"| {of(name, 1, 'cpu'):.0f} | {of(name, 1, 'p50'):.2f} | {of(name, 'pss'):.0f} | {of(name, 'ready'):.2f} "
            f"| {', '.join(format(r[64]['cpu'], '.0f') for r in runs[name])} |")
    return "\n".join([*lines, "", *targets(of), "", stamp(command, busy), ""])


def _at(value, path):
    for key in path: value = value[key]
    return value


def targets(of) -> list[str]:
    "What issue 16 asks for."
    ours, echo, peer = (of(n, 64, "cpu") for n in ("scalai serve", "uvicorn echo", "Starlette, a call a request"))
    said = lambda good: "reached" if good else "not reached"
    p50 = of("scalai serve", 1, "p50")/of("Starlette, a call a request", 1, "p50")
    unseen = of("scalai serve" + UNSEEN, 64, "cpu")
    share = (ours - unseen)/ours
    pss, ready, arrow = of("scalai serve", "pss"), of("scalai serve", "ready"), of("scalai serve", "arrow")
    return [
        f"- must: ≤ 90 CPU µs a request at 64 connections: {ours:.0f}, {said(ours <= 90)}; ≤ ½ of Starlette: "
        f"{ours/peer:.2f}, {said(ours <= peer/2)}; aim ≤ 1.5 × the echo: {ours/echo:.2f}, {said(ours <= 1.5*echo)}",
        f"- must: observation ≤ 15 % of the CPU at 64 connections: {ours:.0f} against {unseen:.0f}, {share:.0%}, "
        f"{said(share <= .15)} (aim 8 %: {said(share <= .08)})",
        f"- must: p50 at one connection ≤ 1.1 × Starlette: {p50:.2f}, {said(p50 <= 1.1)} (aim 1.0: {said(p50 <= 1)})",
        f"- must: Arrow body of {ROWS:,} rows ≤ 12 CPU µs a row: {arrow:.1f}, {said(arrow <= 12)} "
        f"(aim 7: {said(arrow <= 7)})",
        f"- must: CPU to ready ≤ 1.5 s: {ready:.2f}, {said(ready <= 1.5)} (aim .8: {said(ready <= .8)}); PSS of a "
        f"worker ≤ 100 MB: {pss:.0f}, {said(pss <= 100)} (aim 70: {said(pss <= 70)})"]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", nargs="?", choices=["requests", "overload"], default="requests")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=4)
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    os.environ.pop("SCALAI_SETTINGS", None)
    if a.what == "overload":
        import overload
        return overload.main(a.rounds, a.seconds, a.dry)
    busy, runs = os.getloadavg()[0], {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        model = workspace(Path(folder))
        for _ in range(a.rounds):
            for name in NAMES:
                runs[name].append(measure(name, Path(folder), model, a.seconds))
                print(name, json.dumps(runs[name][-1]), file=sys.stderr, flush=True)
    text = report(runs, f"python tests/bench/serve.py --rounds {a.rounds} --seconds {a.seconds:g}", busy)
    print(text)
    if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
