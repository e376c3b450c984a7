"""What is left of a service at eight times what it can answer, and while versions and workers come and go:

    python tests/bench/serve.py overload [--rounds 3] [--seconds 10] [--dry]

One worker, a network of 2048, 2048 and 1024 units, so that the model is what takes the time; a queue of 2,000 rows.
Requests of 100 rows as JSON. Its own maximum is a closed loop of 16 connections. Then an open loop sends eight times
as many requests a second over 256 connections, from two processes, whatever becomes of them. Goodput is answers of 200
a second. One-row requests fill no queue (each connection waits for its answer), so they are sent over 64 and over 512
connections. The load generator shares the machine's cores with the server: a busy machine shows in both.
"""
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import keep, stamp
from serve import HERE, cpu, server, tree, workspace

ROWS, TIMES, CONNECTIONS, PROCESSES = 100, 8, 256, 2
HIDDEN, QUEUE = (2048, 2048, 1024), 2_000


def flood(url: str, body: Path, connections: int, seconds: float, rate: float | None = None) -> list[dict]:
    "Load from one process, or at a rate from several."
    count = PROCESSES if rate else 1
    command = [sys.executable, str(HERE.parent/"load.py"), url, str(body), str(connections//count), str(seconds)]
    started = [subprocess.Popen([*command, *([str(rate/count)] if rate else [])], stdout=subprocess.PIPE, text=True)
               for _ in range(count)]
    return [json.loads(p.communicate()[0]) for p in started]


def overload(folder: Path, model: Path, seconds: float) -> dict:
    "One start of a server: its maximum, and what is left of it."
    with server("scalai serve", folder, model) as (process, url):
        body = folder/"many.json"
        flood(url, body, 16, 2)
        before = cpu(process.pid)
        own, = flood(url, body, 16, seconds)
        most, each = own["counts"]["200"]/seconds, (cpu(process.pid) - before)/own["answered"]
        before = cpu(process.pid)
        found = flood(url, body, CONNECTIONS, seconds, TIMES*most)
        used = (cpu(process.pid) - before)/seconds
        few, = flood(url, folder/"row.json", 64, seconds)
        many, = flood(url, folder/"row.json", 512, seconds)
    total = lambda *path: sum(f[path[0]].get(path[1], 0) if len(path) > 1 else f[path[0]] for f in found)
    return {"maximum": most, "cpu_ms": 1e3*each, "goodput": total("counts", "200")/seconds/most,
            "refused": total("counts", "503")/seconds,
            "offered": sum(sum(f["counts"].values()) for f in found)/seconds,
            "refused_p50_ms": max(f["refused_p50_ms"] for f in found),
            "refused_p99_ms": max(f["refused_p99_ms"] for f in found), "cores": used,
            "one_row": many["counts"]["200"]/few["counts"]["200"], "one_row_codes": many["counts"],
            "lost": total("counts", "lost") + total("counts", "refused"),
            "other": {k: v for f in found for k, v in f["counts"].items() if k not in ("200", "503")}}


def changes(folder: Path, model: Path, count: int = 20) -> dict:
    "Swaps and restarts under load of one-row requests."
    from scalai_nb.core.settings import Settings
    from scalai_nb.training.registry import Registry
    registry = Registry(Settings(root=folder))
    numbers = [v["version"] for v in registry.list("late")]
    with server("scalai serve", folder, model, workers=2) as (process, url):
        seconds = count*2 + 12
        command = [sys.executable, str(HERE.parent/"load.py"), url, str(folder/"row.json"), "32", str(seconds)]
        load, end = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), time.monotonic() + seconds - 5
        swaps = restarts = 0
        while time.monotonic() < end and (swaps < count or restarts < count):
            registry.promote("late", numbers[swaps % len(numbers)], "again")
            swaps += 1
            found = [p for p in tree(process.pid) if "serving.worker" in " ".join(p.cmdline())]
            if len(found) == 2 and restarts < count:
                found[restarts % 2].send_signal(signal.SIGTERM)
                restarts += 1
            time.sleep(1.6)
        done = json.loads(load.communicate()[0])
    return {"swaps": swaps, "restarts": restarts, "answered": done["answered"], "counts": done["counts"],
            "versions": done["versions"], "p99_ms": done["p99_ms"]}


def report(runs: list[dict], change: dict, command: str, busy: float) -> str:
    of = lambda key: statistics.median(r[key] for r in runs)
    said = lambda good: "reached" if good else "not reached"
    lost = sum(n for what, n in change["counts"].items() if what != "200")
    lines = ["## serve, overload", "",
             f"One worker, a network of {', '.join(map(str, HIDDEN))} units, a queue of {QUEUE:,} rows, {ROWS} rows "
             f"of thirteen columns a request. Maximum: a closed loop of 16 connections; then "
             f"{TIMES} × as many requests a second over {CONNECTIONS} connections from {PROCESSES} processes, on the "
             "same cores.", "",
             "| maximum, requests/s | CPU ms a request | offered, requests/s | goodput / maximum | 503 a second | "
             "time to a 503, p50 and p99 ms | cores used | no answer |", "|" + "---:|"*8]
    lines += [f"| {r['maximum']:,.0f} | {r['cpu_ms']:.2f} | {r['offered']:,.0f} | {r['goodput']:.2f} | "
              f"{r['refused']:,.0f} | {r['refused_p50_ms']:.1f}, {r['refused_p99_ms']:.1f} | {r['cores']:.2f} | "
              f"{r['lost']} |" for r in runs]
    return "\n".join([*lines, "",
        f"- must: goodput at {TIMES} × ≥ 90 % of its own maximum: {of('goodput'):.2f}, {said(of('goodput') >= .9)} "
        f"(aim .95: {said(of('goodput') >= .95)})",
        f"- 512 connections of one-row requests, against 64: {of('one_row'):.2f} of the answers a second",
        f"- must: time to a 503, p99 ≤ 50 ms: {of('refused_p99_ms'):.1f}, {said(of('refused_p99_ms') <= 50)}",
        f"- must: 0 of ≥ 100,000 lost or refused at 20 swaps and 20 restarts: {lost} of {change['answered'] + lost:,} "
        f"at {change['swaps']} and {change['restarts']}, "
        f"{said(not lost and change['answered'] >= 100_000 and min(change['swaps'], change['restarts']) >= 20)}",
        "", stamp(command, busy), ""])


def main(rounds: int, seconds: float, dry: bool):
    busy, runs = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = workspace(folder, 2, HIDDEN)
        (folder/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[serve]\nqueue = {QUEUE}\n")
        row = json.loads((folder/"row.json").read_text())["rows"]
        (folder/"many.json").write_text(json.dumps({"rows": row*ROWS}))
        for _ in range(rounds):
            runs.append(overload(folder, model, seconds))
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
        change = changes(folder, model)
        print(json.dumps(change), file=sys.stderr, flush=True)
    text = report(runs, change, f"python tests/bench/serve.py overload --rounds {rounds} --seconds {seconds:g}", busy)
    print(text)
    if not dry: keep(text.splitlines()[0], text)

