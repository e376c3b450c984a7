"""nginx and HAProxy, configured by `scalai deploy`, in front of real services: nothing is lost when one is killed,
ends, hangs or is replaced."""
import json
import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import SCALAI, scalai, until
from test_serve import GOOD, LOAD, made  # noqa: F401

START = {"nginx": ["nginx", "-p", ".", "-c", "nginx.conf", "-g", "daemon off;"],
         "haproxy": ["haproxy", "-W", "-f", "haproxy.cfg"]}
# nginx before 1.27.4 closes idle connections of clients then, one of which may be about to send
RELOAD = {"haproxy": signal.SIGUSR2}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in found: s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in found]


class Replica:
    "`scalai serve churn` on a port of its own, which can be killed, ended, stopped and started again."
    def __init__(self, folder: Path, port: int): self.folder, self.port = folder, port

    def start(self):
        env = os.environ | {"OMP_NUM_THREADS": "1", "SCALAI_SERVE__OBSERVE": "false"}
        command = [SCALAI, "serve", "churn", "--workers", "1", "--port", str(self.port), "--json"]
        self.process = subprocess.Popen(command, cwd=self.folder, env=env, stdout=subprocess.PIPE, text=True)

    def ready(self): assert self.process.stdout.readline()

    def family(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def end(self, how: int = signal.SIGTERM):
        for p in self.family() if how == signal.SIGKILL else [self.process]:
            with suppress(psutil.Error): p.send_signal(how)
        self.process.wait(60)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None: self.end(signal.SIGKILL)


@contextmanager
def proxy(kind: str, folder: Path):
    assert shutil.which(kind), f"{kind} is not installed: apt-get install nginx-light haproxy"
    process = subprocess.Popen(START[kind], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: yield process
    finally:
        process.terminate()
        process.wait(30)


class Client:
    "Requests one after another on several connections, until it is ended."
    def __init__(self, url: str, body: Path, connections: int):
        self.process = subprocess.Popen([*LOAD, f"{url}/models/churn/predict", str(body), str(connections), "86400"],
                                        stdout=subprocess.PIPE, text=True)

    def end(self) -> dict:
        self.process.terminate()
        return json.loads(self.process.communicate()[0])


def goes_on(url: str, replicas: list[Replica], more: int = 50):
    "Wait until each of some replicas has scored more rows."
    def rows(replica):
        text = httpx.get(f"http://127.0.0.1:{replica.port}/metrics", timeout=30).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if line.startswith("scalai_serve_rows_total"))
    before = [rows(r) for r in replicas]
    assert until(lambda: all(rows(r) >= b + more for r, b in zip(replicas, before)))


def faults(url: str, three: list[Replica], reload):
    "Three SIGKILLs, one of a whole service, a SIGSTOP, the proxy's reload, and two SIGTERMs in a rolling swap."
    first, second, third = three
    first.end(signal.SIGKILL)
    goes_on(url, [second, third])
    first.start()
    stopped = second.family()  # while one is not there, another hangs
    for p in stopped: p.suspend()
    goes_on(url, [third])
    for p in stopped: p.resume()
    first.ready()
    for replica in (second, third):  # its parent starts another worker
        next(p for p in replica.family() if "serving.worker" in " ".join(p.cmdline())).kill()
        goes_on(url, [first, replica])
    reload()
    for replica in (second, third):
        replica.end()
        replica.start()
        replica.ready()
        goes_on(url, [replica])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_no_request_is_lost_behind_a_proxy(kind, made, tmp_path, rounds):  # noqa: F811
    *ports, front, dash = free_ports(5)
    (tmp_path/"row.json").write_text(json.dumps({"rows": [GOOD]}))
    addresses = ",".join(f"127.0.0.1:{p}" for p in ports)
    done = scalai("deploy", kind, "--out", tmp_path, "--replicas", addresses, "--dash-port", dash, "--patience", 5,
                  cwd=made, SCALAI_SERVE__PORT=str(front))
    assert done.code == 0, done.err
    url = f"http://127.0.0.1:{front}"
    with ExitStack() as stack:
        three = [stack.enter_context(Replica(made, p)) for p in ports]
        for replica in three: replica.ready()
        process = stack.enter_context(proxy(kind, tmp_path))
        assert until(lambda: socket.socket().connect_ex(("127.0.0.1", front)) == 0)
        client = Client(url, tmp_path/"row.json", 8)
        try:
            for _ in range(rounds(1, soak=6)):
                faults(url, three, lambda: process.send_signal(RELOAD[kind]) if kind in RELOAD else None)
        finally: found = client.end()
    rounds.note(requests=found["answered"], failed=found["answered"] - found["counts"].get("200", 0))
    assert set(found["counts"]) == {"200"} and found["counts"]["200"] > 300, found
