"""Keep-alive connections that count what became of every request they wrote.

`python tests/load.py URL BODY.json CONNECTIONS SECONDS [RATE]` prints the counts as JSON. Without a rate it is a
closed loop: each connection waits for its answer and sends again. With one, requests are sent at that rate a second,
whatever becomes of them, as long as a connection is free. SIGTERM ends it before its time, each connection with the
answer that it waits for.
"""
import asyncio
import json
import re
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Load:
    "What became of the requests."
    counts: Counter = field(default_factory=Counter)  # "200", "503", "lost", "refused"
    versions: Counter = field(default_factory=Counter)  # of the model, by the header of the answers
    seconds: list = field(default_factory=list)  # of each answer
    refusals: list = field(default_factory=list)  # seconds of each 503
    lost_ports: Counter = field(default_factory=Counter)  # of this side: where a request was lost, how often
    end: float = float("inf")  # by `time.perf_counter`: no request is sent after it
    late: int = 0  # requests of the rate's plan that had to be left out, because no connection was free

    @property
    def answered(self) -> int: return sum(n for what, n in self.counts.items() if what.isdigit())

    def quantile(self, q: float, seconds: list | None = None) -> float:  # milliseconds
        found = sorted(self.seconds if seconds is None else seconds)
        return 1000*found[int(q*(len(found) - 1))] if found else float("nan")

    def to_dict(self) -> dict:
        return {"counts": dict(self.counts), "versions": dict(self.versions), "answered": self.answered,
                "p50_ms": round(self.quantile(.5), 2), "p99_ms": round(self.quantile(.99), 2),
                "refused_p50_ms": round(self.quantile(.5, self.refusals), 2),
                "refused_p99_ms": round(self.quantile(.99, self.refusals), 2), "late": self.late,
                "lost_ports": dict(self.lost_ports)}

    def stop(self): self.end = 0


async def _answer(reader) -> tuple[int, bytes]:  # status, head
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1]), head


async def _connection(host: str, port: int, message: bytes, load: Load, plan: tuple | None = None):
    reader, writer, turn = None, None, 0
    while time.perf_counter() < load.end:
        if plan:  # first moment, seconds between two requests of this connection
            due = plan[0] + turn*plan[1]
            wait = due - time.perf_counter()
            if wait < -plan[1]:
                missed = int(-wait/plan[1])
                load.late, turn = load.late + missed, turn + missed
            elif wait > 0: await asyncio.sleep(wait)
            turn += 1
        if writer is None:
            try: reader, writer = await asyncio.open_connection(host, port)
            except OSError:
                load.counts["refused"] += 1
                await asyncio.sleep(.05)
                continue
        start = time.perf_counter()
        try:
            writer.write(message)
            status, head = await asyncio.wait_for(_answer(reader), 30)
        except (asyncio.IncompleteReadError, OSError, TimeoutError):
            load.counts["lost"] += 1
            load.lost_ports[writer.get_extra_info("sockname")[1]] += 1
            writer.close()
            writer = None
            continue
        load.seconds.append(time.perf_counter() - start)
        if status == 503: load.refusals.append(load.seconds[-1])
        load.counts[str(status)] += 1
        if version := re.search(rb"x-model-version: (\d+)", head): load.versions[version[1].decode()] += 1
        if b"connection: close" in head:
            writer.close()
            writer = None
    if writer is not None: writer.close()


async def generate(url: str, body: bytes, connections: int, seconds: float, rate: float | None = None) -> Load:
    "Send a body over some connections for some seconds: at a rate a second, or each when it has its answer."
    parts, load = urlsplit(url), Load(end=time.perf_counter() + seconds)
    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop)
    message = (f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
               f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    each = connections/rate if rate else 0.
    plans = [(time.perf_counter() + each*i/connections, each) if rate else None for i in range(connections)]
    await asyncio.gather(*(_connection(parts.hostname, parts.port, message, load, p) for p in plans))
    return load


if __name__ == "__main__":
    url, path, connections, seconds, *rate = sys.argv[1:6]
    import uvloop
    load = generate(url, Path(path).read_bytes(), int(connections), float(seconds), *map(float, rate))
    print(json.dumps(uvloop.run(load).to_dict()))
