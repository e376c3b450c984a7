"""The gateway with a real Voila behind it: the door, a notebook that fails, kernels that are counted, and an end that
leaves nothing."""

import asyncio
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import httpx
import nbformat
import psutil
import pytest
import websockets
from conftest import until

GOOD = "import ipywidgets\nipywidgets.IntSlider(value=42, description='answer')"
START = "from scalai_nb.dash.gateway import dash; dash(port=0)"
VIEWER = "the-eye-of-a-viewer"


class Dash:
    "`scalai dash` in a process of its own, as a person starts it."
    def __init__(
        self, root: Path, warm: int = 0, within: Sequence[str] = (), **apps: str
    ):  # within: a command that runs another one
        (root / "apps").mkdir(exist_ok=True)
        for name, source in apps.items():
            nb = nbformat.v4.new_notebook(
                cells=[
                    nbformat.v4.new_markdown_cell(f"# The {name} app\n> It is there."),
                    nbformat.v4.new_code_cell(source),
                ]
            )
            nbformat.write(nb, root / "apps" / f"{name}.ipynb")
        self.log = root / "dash.log"
        self.process = subprocess.Popen(
            [*within, sys.executable, "-c", START],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=os.environ | {"SCALAI_APPS__WARM": str(warm), "SCALAI_APPS__VIEWER_TOKEN": VIEWER},
        )
        self.link = self.process.stdout.readline().strip()
        self.url, self.token = self.link.split("/?token=")

    def __enter__(self): return self
    def __exit__(self, *_):
        if self.process.poll() is None: self.end()
    def client(self, **headers): return httpx.Client(base_url=self.url, headers=headers, timeout=90, trust_env=False)
    def visitor(self, token=None):
        return self.client(authorization=f"Bearer {token or self.token}", accept="text/html")
    def family(self): return psutil.Process(self.process.pid).children(recursive=True)
    def kernels(self):
        "Those that were forked, which bear the name of the process that forks, and those that started cold."
        forking = {p.pid for p in self.called("scalai_nb.jobs.forkserver")}
        return [p for p in self.called("scalai_nb.jobs.forkserver") if p.ppid() in forking] + self.called(
            "ipykernel_launcher"
        )
    def called(self, word):
        found = []
        for p in self.family():
            try:
                if word in " ".join(p.cmdline()): found.append(p)
            except psutil.NoSuchProcess:
                continue  # ended meanwhile
        return found
    def end(self, how=signal.SIGTERM):
        family = self.family()
        self.process.send_signal(how)
        self.process.wait(60)
        _, left = psutil.wait_procs(family, 30)
        return left


def snapshot(visitor, app, standing="new"):
    "Wait for an app's snapshot; what the gateway says of it."
    until(
        lambda: (a := visitor.get(f"/api/snapshots/{app}")).status_code == 200 and a.json()["standing"] == standing, 90
    )
    return visitor.get(f"/api/snapshots/{app}").json()


def kernel_of(page): return re.search(r'"kernelId": "([\w-]+)"', page.text)[1]


V1 = "v1.kernel.websocket.jupyter.org"


def channel(dash, page, session="1", **more):
    "The WebSocket that a rendered page opens."
    address = f"{dash.url.replace('http', 'ws')}/api/kernels/{kernel_of(page)}/channels?session_id={session}"
    return websockets.connect(address, **{"proxy": None, "max_size": None, "subprotocols": [V1]} | more)


def bearer(token): return {"additional_headers": {"authorization": f"Bearer {token}"}}


def frame(*parts: bytes, offsets: list[int] | None = None, count: int | None = None) -> bytes:
    "A message of the kernel protocol, version 1; its offsets may lie."
    true = list(accumulate(map(len, parts), initial=8 * (len(parts) + 2)))
    offsets = true if offsets is None else offsets
    return (
        struct.pack("<Q", len(offsets) if count is None else count)
        + struct.pack(f"<{len(offsets)}Q", *offsets)
        + b"".join(parts)
    )


def message(kind, content, channel="shell", **more) -> tuple[str, list[bytes]]:  # its id, its parts
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": kind,
        "username": "",
        "session": "1",
        "date": "",
        "version": "5.3",
    } | more
    return header["msg_id"], [channel.encode(), *(json.dumps(part).encode() for part in (header, {}, {}, content))]


async def say(ws, kind, content, channel="shell"):
    "A message as a page sends it."
    id, parts = message(kind, content, channel)
    await ws.send(frame(*parts))
    return id


async def heard(ws, true, within=60):
    "The first message of which something is true."
    async with asyncio.timeout(within):
        while True:
            got = await ws.recv()
            n, = struct.unpack_from("<Q", got)
            parts = [got[a:b] for a, b in pairwise(struct.unpack_from(f"<{n}Q", got, 8))]
            names = ("header", "parent_header", "metadata", "content")
            found = dict(zip(names, map(json.loads, parts[1:5])), channel=parts[0].decode())
            if true(found | {"msg_type": found["header"]["msg_type"]}): return found


async def answers(ws, within=60):
    "A kernel that speaks."
    asked = await say(ws, "kernel_info_request", {})
    return await heard(
        ws, lambda m: m["parent_header"].get("msg_id") == asked and m["msg_type"] == "kernel_info_reply", within
    )


async def closed(ws, within=60) -> int:
    "How the other side ends a channel."
    async with asyncio.timeout(within):
        try:
            while True: await ws.recv()
        except websockets.ConnectionClosed: return ws.close_code


def test_door_and_end(workspace):
    "Every path wants the token, whatever is behind it; SIGTERM leaves no process."
    with Dash(workspace, good=GOOD) as dash:
        assert dash.link.count("token=") == 1
        with dash.client() as stranger:
            for path in [
                "/",
                "/apps/good",
                "/apps/none",
                "/voila/static/voila.js",
                "/voila/files/settings.ini",
                "/voila/tree",
                "/api/kernels",
                "/api/snapshots/good",
                "/front/x.js",
                "/metrics",
                "/voila/render/good.ipynb",
                "/%2e%2e/settings.ini",
                "/voila/static/..%2f..%2f..%2fetc/passwd",
                "/voila/static/%252e%252e/x",
                "/login/../apps/good",
                "//apps/good",
                "/healthz/",
            ]:
                answer = stranger.get(path)
                assert answer.status_code == 401 and "good" not in answer.text and "passwd" not in answer.text, path
                assert stranger.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
                assert stranger.get(path, headers={"accept": "text/html"}).headers["location"].startswith("/login")
            assert stranger.get("/healthz").json() == {"ok": True}
            assert "frame-ancestors 'none'" in stranger.get("/healthz").headers["content-security-policy"]
        with dash.client(accept="text/html") as person:
            entry = person.get(f"/apps/good?token={dash.token}")
            assert entry.status_code == 303 and entry.headers["location"] == "/apps/good"
            cookie = entry.headers["set-cookie"]
            assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and dash.token not in cookie
            assert "The good app" in person.get("/").text
        with dash.visitor() as visitor:
            first = visitor.get("/apps/good")  # at once, and what to run where nothing is
            assert first.status_code == 200 and "being made" in first.text and "scalai ingest FILE TABLE" in first.text
            page = visitor.get("/apps/good?live=1")
            assert (
                page.status_code == 200
                and "<title>The good app</title>" in page.text
                and "unsafe-eval" in page.headers["content-security-policy"]
            )
            assert 'scalai_dash_kernels{state="visited"} 1.0' in visitor.get("/metrics").text
            assert visitor.get("/voila/static/voila.js").status_code == 200
            for path in [
                "/apps/none",
                "/voila/files/settings.ini",
                "/voila/files/dash.log",
                "/voila/tree",
                "/voila/api/contents",
                "/voila/render/good.ipynb",
                "/api/kernels",
                "/voila/static/..%2f..%2f..%2fetc/passwd",
                "/voila/templates/scalai/static/..%2f..%2fconf.json",
                "/voila/templates/none/static/x",
            ]:
                assert visitor.get(path).status_code == 404, path
            # an unknown template would hang Voila
            assert visitor.get("/apps/good?template=none&theme=none").status_code == 200
        assert len(dash.kernels()) == 2
        assert dash.end() == []


def test_socket_is_behind_the_door(workspace):
    "A kernel's channel wants the token, and the cookie only counts from our own pages."
    async def status(dash, page, **headers):
        try:
            async with channel(dash, page, additional_headers=headers): return 101
        except websockets.InvalidStatus as e: return e.response.status_code
    async def killer(dash, page):  # 48 bytes that say to have 2^62 parts: Voila would read them for ever
        async with channel(dash, page, **bearer(dash.token)) as ws:
            await ws.send(frame(bytes(32), offsets=[0], count=2**62))
            return await closed(ws, 10)
    async def spoken(dash, page):  # the older protocol
        async with channel(dash, page, subprotocols=None, **bearer(dash.token)): return 101
    with Dash(workspace, good=GOOD) as dash, dash.visitor() as visitor:
        page = visitor.get("/apps/good?live=1")
        with dash.client(accept="text/html") as person:
            cookie = person.get(f"/?token={dash.token}").headers["set-cookie"].split(";")[0]
            own = person.get("/apps/good?live=1")
        ask = lambda **headers: asyncio.run(status(dash, page, **headers))
        assert ask() == 401 and ask(authorization="Bearer wrong") == 401
        assert ask(cookie=cookie) == 401 and ask(cookie=cookie, origin="http://evil.example") == 401
        assert asyncio.run(status(dash, own, cookie=cookie, origin=dash.url)) == 101
        assert ask(cookie=cookie, origin=dash.url) == 404  # the page of another session
        assert ask(authorization=f"Bearer {dash.token}") == 101
        assert ask(authorization=f"Bearer {VIEWER}") == 404  # an editor's page is not a viewer's
        assert asyncio.run(killer(dash, page)) == 1002
        assert ask(authorization=f"Bearer {dash.token}") == 101 and visitor.get("/apps/good?live=1").status_code == 200
        with pytest.raises(websockets.InvalidStatus, match="400"): asyncio.run(spoken(dash, page))
        page = re.sub(r'("kernelId": ")[\w-]+', r"\g<1>00000000-0000-0000-0000-000000000000", page.text)
        assert asyncio.run(status(dash, type("Page", (), {"text": page}), authorization=f"Bearer {dash.token}")) == 404


def test_a_broken_notebook_is_an_error(workspace):
    "500 with a number for the reader, the reason under it in the log, and no kernel left behind."
    with Dash(workspace, bad="flights = {}\nflights['dep_delay']") as dash, dash.visitor() as visitor:
        page = visitor.get("/apps/bad?live=1")
        number = re.search(r"under (\w{8})", page.text)[1]
        assert page.status_code == 500 and "KeyError" not in page.text and "dep_delay" not in page.text
        line = next(text for text in dash.log.read_text().splitlines() if number in text)
        assert "KeyError" in line and "dep_delay" in line
        until(lambda: not dash.kernels())
        # once its snapshot was tried, without asking for the live page too
        until(lambda: (again := visitor.get("/apps/bad")).status_code == 500 and "KeyError" not in again.text, 60)


def test_every_route_asks_who_you_are(workspace):
    """Whatever the gateway serves, now or later:

    nothing without a token, nothing of an editor's with a viewer's, from a trusted proxy by name."""
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from scalai_nb.core.settings import Settings
    from scalai_nb.dash.gateway import gateway
    from scalai_nb.dash.voila import Voila
    class Asleep(Voila):
        async def __aenter__(self): return self
        async def __aexit__(self, *_): pass
    settings = Settings(root=workspace, apps={"warm": 0, "proxy": "10.0.0.0/8", "editors": "ann"})
    app = gateway({}, {"editor": "pen", "viewer": "eye"}, settings, Asleep({}, settings))
    paths = [
        (method, re.sub(r"{\w+(:\w+)?}", "x", r.path))
        for r in app.routes
        if isinstance(r, Route)
        for method in r.methods
    ]
    paths += [(method, "/none") for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")]
    assert len(paths) > 15
    ask = lambda door, method, path, **headers: door.request(method, path, headers=headers).status_code
    with TestClient(app, base_url="http://dash.example", follow_redirects=False, client=("192.168.0.1", 1)) as door:
        for tried, (method, path) in enumerate(paths):
            if path == "/healthz": continue
            # an address may only guess so often
            stranger = TestClient(
                app, base_url="http://dash.example", follow_redirects=False, client=(f"192.168.1.{tried}", 1)
            )
            for headers in (
                {},
                {"authorization": "Bearer no"},
                {"cookie": "scalai-80=no"},
                {"x-forwarded-user": "ann"},
            ):
                assert ask(stranger, method, path, **headers) == 401, (method, path, headers)
            if method not in ("GET", "HEAD") and path not in ("/voila/api/shutdown/x", "/logout"):
                assert ask(door, method, path, authorization="Bearer eye") == 403, (method, path)
                assert ask(door, method, path, authorization="Bearer pen") in (404, 405), (method, path)
        cookie = door.get("/?token=pen").headers["set-cookie"].split(";")[0]
        assert [
            ask(door, "POST", "/api/snapshots/x", cookie=cookie, **o)
            for o in ({}, {"origin": "http://evil.example"}, {"origin": "http://dash.example"})
        ] == [401, 401, 404]
        assert ask(door, "POST", "/login", origin="http://evil.example") == 401
    trusted = TestClient(app, base_url="http://10.0.0.1", follow_redirects=False, client=("10.0.0.7", 1))
    said = {"x-forwarded-host": "dash.example", "x-forwarded-proto": "https"}
    for name, status in (("ann", 404), ("bob", 403)):
        assert ask(trusted, "GET", "/", **said, **{"x-forwarded-user": name}) == 200
        assert (
            ask(
                trusted,
                "POST",
                "/api/snapshots/x",
                **said,
                origin="https://dash.example",
                **{"x-forwarded-user": name},
            )
            == status
        )
        assert (
            ask(
                trusted,
                "POST",
                "/api/snapshots/x",
                **said,
                origin="https://evil.example",
                **{"x-forwarded-user": name},
            )
            == 401
        )
    assert "Secure" in trusted.get("/?token=pen", headers=said).headers["set-cookie"]


PAPER = """from pathlib import Path
from scalai_nb.view.style import View, headline, html
View([html(headline("good", "The window says " + Path("said.txt").read_text(), {}))])"""


@pytest.mark.slow
def test_snapshot_first(workspace):
    """Made before anybody comes, behind the token, served without a kernel; made anew when the workspace changes; a
    failing one leaves the old one, marked."""
    from scalai_nb.core.settings import Settings
    from scalai_nb.loop import decisions
    (workspace / "said.txt").write_text("one")
    with Dash(workspace, paper=PAPER) as dash, dash.visitor() as visitor, dash.client() as stranger:
        first = snapshot(visitor, "paper")
        assert (
            stranger.get("/api/snapshots/paper").status_code == 401
            and visitor.get("/api/snapshots/none").status_code == 404
        )
        times = []
        for _ in range(30):
            start = time.perf_counter()
            page = visitor.get("/apps/paper")
            times.append(time.perf_counter() - start)
        assert "The window says one" in page.text and "As of 20" in page.text and "changed since" not in page.text
        assert sorted(times)[5] < .15 and not dash.kernels(), times
        assert "The window says one" in visitor.get("/").text
        (workspace / "said.txt").write_text("two")
        decisions.record("late", "2013-06", "keep", [], {}, ["2013-01"], 1, settings=Settings.load(workspace))
        until(lambda: "The window says two" in visitor.get("/apps/paper").text, 60)
        assert snapshot(visitor, "paper")["made"] > first["made"]
        (workspace / "said.txt").unlink()
        decisions.record("late", "2013-07", "keep", [], {}, ["2013-01"], 1, settings=Settings.load(workspace))
        until(lambda: "could not be made" in visitor.get("/apps/paper").text, 60)
        assert "The window says two" in visitor.get("/apps/paper").text
        assert "FileNotFoundError" in dash.log.read_text()
        assert dash.end() == []


@pytest.mark.slow
def test_kernels_are_counted_and_end_with_their_visitor(workspace):
    "At the cap people wait; when a page closes, its kernel ends and the next one gets in."
    (workspace / "settings.ini").write_text("[apps]\nkernels = 1\n")
    async def visit(dash, visitor, other):
        page = await asyncio.to_thread(visitor.get, "/apps/good?live=1")
        async with channel(dash, page, **bearer(dash.token)):
            mine = await asyncio.to_thread(visitor.get, "/apps/good?live=1")
            assert (
                mine.status_code == 429
                and "You have the live page" in mine.text
                and 'http-equiv="refresh"' in mine.text
            )
            full = await asyncio.to_thread(other.get, "/apps/good?live=1")
            assert full.status_code == 503 and full.headers["retry-after"] and 'http-equiv="refresh"' in full.text
            assert len(dash.kernels()) == 1
    with Dash(workspace, good=GOOD) as dash, dash.visitor() as visitor, dash.visitor(VIEWER) as other:
        asyncio.run(visit(dash, visitor, other))
        until(lambda: visitor.get("/apps/good?live=1").status_code == 200, 60)  # the one who left makes room
        first = dash.kernels()
        assert len(first) == 1


@pytest.mark.slow
def test_voila_killed_and_gateway_killed(workspace):
    "A Voila that dies is started again; a gateway that is killed takes Voila and the kernels with it."
    with Dash(workspace, good=GOOD) as dash, dash.visitor() as visitor:
        assert visitor.get("/apps/good?live=1").status_code == 200
        voila = dash.called("scalai_nb.dash.voila_server")[0]
        voila.kill()
        until(lambda: visitor.get("/apps/good?live=1").status_code == 200, 60)
        assert dash.kernels()
        assert dash.end(signal.SIGKILL) == []


def test_request_errors_are_two_lines(workspace):
    "A port in use and an unknown app: two lines, exit code 2, nothing started."
    with Dash(workspace, good=GOOD) as dash:
        port = dash.url.rsplit(":", 1)[1]
        for words, told in (["dash", "--no-browser", "--port", port], "in use"), (
            ["dash", "--no-browser", "goood"],
            "good",
        ):
            ended = subprocess.run(
                [str(Path(sys.executable).with_name("scalai")), *words],
                cwd=workspace,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert (
                ended.returncode == 2
                and len(ended.stderr.strip().splitlines()) == 2
                and told in ended.stderr
                and not ended.stdout
            ), ended
