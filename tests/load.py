"""A closed loop of keep-alive connections that counts what became of every request it wrote.

`python tests/load.py URL BODY.json CONNECTIONS SECONDS` prints the counts as JSON.
"""
import asyncio
import json
import re
import sys
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

    @property
    def answered(self) -> int: return sum(n for what, n in self.counts.items() if what.isdigit())

    def quantile(self, q: float) -> float:  # milliseconds
        found = sorted(self.seconds)
        return 1000*found[int(q*(len(found) - 1))] if found else float("nan")

    def to_dict(self) -> dict:
        return {"counts": dict(self.counts), "versions": dict(self.versions), "answered": self.answered,
                "p50_ms": round(self.quantile(.5), 2), "p99_ms": round(self.quantile(.99), 2)}


async def _answer(reader) -> tuple[int, bytes]:  # status, head
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1]), head


async def _connection(host: str, port: int, message: bytes, end: float, load: Load):
    reader = writer = None
    while time.perf_counter() < end:
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
            writer.close()
            writer = None
            continue
        load.seconds.append(time.perf_counter() - start)
        load.counts[str(status)] += 1
        if version := re.search(rb"x-model-version: (\d+)", head): load.versions[version[1].decode()] += 1
        if b"connection: close" in head:
            writer.close()
            writer = None
    if writer is not None: writer.close()


async def generate(url: str, body: bytes, connections: int, seconds: float) -> Load:
    "Send a body over some connections, each waiting for its answer, for some seconds."
    parts, load = urlsplit(url), Load()
    message = (f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
               f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    end = time.perf_counter() + seconds
    await asyncio.gather(*(_connection(parts.hostname, parts.port, message, end, load) for _ in range(connections)))
    return load


if __name__ == "__main__":
    url, path, connections, seconds = sys.argv[1:5]
    import uvloop
    print(json.dumps(uvloop.run(generate(url, Path(path).read_bytes(), int(connections), float(seconds))).to_dict()))
