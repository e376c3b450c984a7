"""What may go wrong around the dashboards: hostile paths, a viewer who forges, a crowd, kernels that die, clients that
dawdle."""

import asyncio
import random
import re
import socket
import time
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from conftest import until
from test_browser import Visit, chromium  # noqa: F401 (a fixture)
from test_dash import GOOD, VIEWER, Dash, answers, bearer, channel, closed, kernel_of, say

pytestmark = pytest.mark.slow

CLIMB = [
    "../",
    "..\\",
    "%2e%2e/",
    "%2e%2e%2f",
    "..%2f",
    "..%5c",
    "%2e%2e%5c",
    "%252e%252e%252f",
    "..%252f",
    "..%c0%af",
    "%c0%ae%c0%ae/",
    "..%e0%80%af",
    "..;/",
    ".%00./",
    "..%00/",
    "%uff0e%uff0e/",
    "....//",
    "/",
    "//",
]
ROOMS = [
    "",
    "/",
    "/voila/static/",
    "/voila/templates/",
    "/voila/templates/scalai/static/",
    "/voila/labextensions/",
    "/voila/files/",
    "/voila/render/",
    "/apps/",
    "/api/snapshots/",
    "/api/kernels/",
    "/login/",
    "/healthz/",
]


def raw(dash, target, token="") -> tuple[int, bytes]:
    "A request whose target nobody tidies up on the way."
    host = urlsplit(dash.url).netloc
    with socket.create_connection(tuple(host.split(":")), 60) as s:
        s.sendall(
            f"GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection:"
            f" close\r\n{f'authorization: Bearer {token}' if token else 'x: y'}\r\n\r\n".encode("latin-1")
        )
        said = b"".join(iter(lambda: s.recv(65536), b""))
    return int(said.split(b" ", 2)[1]), said


def test_no_path_leads_out(workspace):
    "Every way to write `..`, before every room, with a token and without one."
    (workspace / "secret.txt").write_text("the-secret-itself")
    with Dash(workspace, good=GOOD) as dash, dash.visitor() as visitor:
        until(lambda: visitor.get("/voila/static/voila.js").status_code == 200, 60)  # Voila stands behind the door
        tried = 0
        for room in ROOMS:
            for climb in CLIMB:
                for place in ("secret.txt", "etc/passwd", "settings.ini"):
                    wanted = room + climb * (1 if climb in ("/", "//") else 7) + place
                    for target in (wanted, f"http://127.0.0.1{wanted}" if wanted.startswith("/") else f"/{wanted}"):
                        for token in ("", dash.token):
                            status, said = raw(dash, target, token)
                            assert status in ((400, 401) if not token else (400, 404, 405)), (target, status)
                            assert (
                                b"the-secret-itself" not in said
                                and b"root:" not in said
                                and b"[workspace]" not in said
                            ), target
                            tried += 1
        assert tried > 2000
        assert visitor.get("/healthz").status_code == 200


PROMOTE = """import ipywidgets
from pathlib import Path
from scalai_nb.core.auth import editors_only, visitor
button = ipywidgets.Button(description=visitor().role)
def press(_):
    Path("pressed.txt").write_text("yes")
    Path("promoted.txt").write_text(editors_only("promote a model").role)
button.on_click(press)
button"""


def test_a_viewers_page_cannot_do_what_an_editors_can(workspace):
    """A forged press on the button of a viewer's own page reaches the kernel, and the kernel refuses; nobody runs code
    over the channel."""
    async def press(dash, token):
        with dash.visitor(token) as visitor: page = await asyncio.to_thread(visitor.get, "/apps/promote?live=1")
        button = re.search(r'"model_id": "(\w+)"', page.text)[1]
        for name in ("pressed.txt", "promoted.txt"): (workspace / name).unlink(missing_ok=True)
        async with channel(dash, page, **bearer(token)) as ws:
            await answers(ws)
            await say(ws, "comm_msg", {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}})
            while not (workspace / "pressed.txt").exists(): await asyncio.sleep(.05)
            await say(
                ws,
                "execute_request",
                {
                    "code": "open('ran.txt', 'w').close()",
                    "silent": False,
                    "store_history": False,
                    "user_expressions": {},
                    "allow_stdin": False,
                    "stop_on_error": True,
                },
            )
            assert await closed(ws) == 1008
        return (workspace / "promoted.txt").exists(), (workspace / "ran.txt").exists(), page
    with Dash(workspace, promote=PROMOTE) as dash:
        assert asyncio.run(press(dash, VIEWER))[:2] == (False, False)
        *done, page = asyncio.run(press(dash, dash.token))
        assert done == [True, False] and (workspace / "promoted.txt").read_text() == "editor"
        with dash.visitor(VIEWER) as viewer:  # nor can a viewer touch an editor's page
            assert viewer.get(f"/api/kernels/{kernel_of(page)}").status_code == 404
            assert (
                viewer.post(f"/voila/api/shutdown/{kernel_of(page)}").status_code == 204 and len(dash.kernels()) == 2
            )
            snapshots = viewer.post("/api/snapshots/promote")
            assert snapshots.status_code == 403 and "Location" not in snapshots.headers


def test_two_hundred_visitors_at_eight_kernels(workspace):
    """All come at once; each waits its turn, gets a page whose kernel answers, and leaves.

    Never more kernels than eight."""
    (workspace / "settings.ini").write_text("[apps]\nkernels = 8\n")
    served, most = [], [0]
    async def visit(dash, n):
        async with httpx.AsyncClient(
            base_url=dash.url,
            headers={"accept": "text/html", "origin": dash.url},
            timeout=120,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        ) as me:
            await me.get("/", params={"token": dash.token})  # all have the same token, each a session
            cookie = "; ".join(f"{k}={v}" for k, v in me.cookies.items())
            while (page := await me.get("/apps/good?live=1")).status_code == 503:
                before = re.search(r"(\d+) (?:person is|people are) before you", page.text)
                assert before or "You are next" in page.text
                # who is far behind asks less often
                await asyncio.sleep(random.uniform(.5, 1.) + min(2.5, int(before[1])/20 if before else 0))
            assert page.status_code == 200, page.text[:300]
            async with channel(dash, page, additional_headers={"cookie": cookie}, origin=dash.url) as ws:
                await answers(ws, 60)
            if n % 2:
                # the others just close their tabs
                assert (await me.post(f"/voila/api/shutdown/{kernel_of(page)}")).status_code == 204
            served.append(n)
    async def watch(dash):
        while True:
            most[0] = max(most[0], await asyncio.to_thread(lambda: len(dash.kernels())))
            await asyncio.sleep(.5)
    async def crowd(dash):
        watcher = asyncio.create_task(watch(dash))
        await asyncio.gather(*(visit(dash, n) for n in range(200)))
        watcher.cancel()
    with Dash(workspace, good=GOOD) as dash:
        asyncio.run(crowd(dash))
        assert sorted(served) == list(range(200)) and 1 < most[0] <= 8, most
        until(lambda: not dash.kernels())
        assert "failed" not in dash.log.read_text()
        assert dash.end() == []


def test_a_kernel_killed_under_its_visitor(workspace):
    "Its page is told, its place is free, the next page works; a page kept ready whose kernel died is given to nobody."
    async def killed(dash, visitor):
        page = await asyncio.to_thread(visitor.get, "/apps/good?live=1")
        async with channel(dash, page, **bearer(dash.token)) as ws:
            await answers(ws)
            for kernel in dash.kernels(): kernel.kill()  # this one and the one kept ready
            assert await closed(ws) == 1012
        assert visitor.get(f"/api/kernels/{kernel_of(page)}").status_code == 404
        again = await asyncio.to_thread(visitor.get, "/apps/good?live=1")
        async with channel(dash, again, **bearer(dash.token)) as ws: await answers(ws)
    with Dash(workspace, warm=1, good=GOOD) as dash, dash.visitor() as visitor:
        until(lambda: 'state="ready"} 1.0' in visitor.get("/metrics").text, 90)
        asyncio.run(killed(dash, visitor))


def test_kept_ready_until_the_workspace_changes(workspace):
    "A page that waits is handed over at once, to its own role; one that shows yesterday is not."
    from scalai_nb.core.settings import Settings
    from scalai_nb.loop import decisions
    ready = lambda visitor: 'state="ready"} 1.0' in visitor.get("/metrics").text
    warm = lambda visitor: float(
        re.search(
            r'page_seconds_count{answer="warm"} (\S+)',
            visitor.get("/metrics").text + 'page_seconds_count{answer="warm"} 0',
        )[1]
    )
    with Dash(
        workspace,
        warm=1,
        when=(
            "import ipywidgets\nfrom pathlib import Path\nipywidgets.HTML(Path('said.txt').read_text() if"
            " Path('said.txt').exists() else 'one')"
        ),
    ) as dash, dash.visitor() as visitor:
        until(lambda: ready(visitor), 90)
        assert visitor.get("/apps/when?live=1").status_code == 200 and warm(visitor) == 1
        with dash.visitor(VIEWER) as viewer:
            assert viewer.get("/apps/when?live=1").status_code == 200 and warm(visitor) == 1
        assert visitor.get("/apps/when?window=2013-06").status_code == 200 and warm(visitor) == 1
        until(lambda: ready(visitor), 60)
        before = {p.pid for p in dash.kernels()}
        decisions.record("late", "2013-06", "keep", [], {}, ["2013-01"], 1, settings=Settings.load(workspace))
        # another one waits in its place
        until(lambda: ready(visitor) and {p.pid for p in dash.kernels()} - before, 60)
        assert dash.end() == []


def test_a_page_left_alone_is_closed(workspace):
    "Nobody does anything with it for as long as `[apps] idle` says: its socket closes, its kernel ends."
    (workspace / "settings.ini").write_text("[apps]\nidle = 3\n")
    async def alone(dash, visitor):
        page = await asyncio.to_thread(visitor.get, "/apps/good?live=1")
        async with channel(dash, page, **bearer(dash.token)) as ws:
            await answers(ws)
            assert await closed(ws) == 1012
    with Dash(workspace, good=GOOD) as dash, dash.visitor() as visitor:
        asyncio.run(alone(dash, visitor))
        until(lambda: not dash.kernels())


LOUD = """import asyncio, ipywidgets
text = ipywidgets.HTML("here")
async def shout():
    while True:
        text.value = str(len(text.value)) + "x" * 500_000
        await asyncio.sleep(.02)
shouting = asyncio.get_running_loop().create_task(shout())
text"""


def test_slow_clients_hold_nobody_up(workspace):
    "Requests that never end and a page that never reads: others are served, and the gateway does not fill up."
    with Dash(workspace, loud=LOUD, good=GOOD) as dash, dash.visitor() as visitor:
        host, port = urlsplit(dash.url).netloc.split(":")
        page = visitor.get("/apps/loud?live=1")
        slow = [socket.create_connection((host, int(port))) for _ in range(60)]
        for n, s in enumerate(slow):
            s.sendall(
                [
                    b"GET /apps/good HTTP/1.1\r\nhost: x\r\n",
                    f"POST /login HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: 4000\r\n\r\ntoken=".encode(),
                ][n % 2]
            )
        deaf = socket.create_connection((host, int(port)))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(
            (
                f"GET /api/kernels/{kernel_of(page)}/channels?session_id=1 HTTP/1.1\r\nhost:"
                f" {host}:{port}\r\nauthorization: Bearer {dash.token}\r\nupgrade: websocket\r\nconnection:"
                " upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key:"
                " dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: v1.kernel.websocket.jupyter.org\r\n\r\n"
            ).encode()
        )
        assert deaf.recv(12) == b"HTTP/1.1 101"
        process, taken = psutil.Process(dash.process.pid), []
        before = process.memory_info().rss
        for _ in range(10):
            taken.append(visitor.get("/", timeout=20).elapsed.total_seconds())
            time.sleep(.5)
        assert visitor.get("/apps/good?live=1").status_code == 200
        assert process.memory_info().rss - before < 150e6, (before, process.memory_info().rss)
        slow[1].settimeout(90)
        assert slow[1].recv(12) == b"HTTP/1.1 408"  # a form that does not arrive
        slow[0].settimeout(90)
        assert slow[0].recv(12) == b""  # a header that does not end
        for s in (*slow, deaf): s.close()
        until(lambda: len(dash.kernels()) <= 1)
        assert dash.end() == []


def test_closed_tabs_leave_nothing_beyond_the_pool(workspace):
    "Five tabs are closed without a word; soon there is only what is kept ready."
    (workspace / "settings.ini").write_text("[apps]\nkernels = 10\n")
    async def tabs(dash, visitor):
        pages = [await asyncio.to_thread(visitor.get, "/apps/good?live=1") for _ in range(5)]
        sockets = [await channel(dash, p, **bearer(dash.token)) for p in pages]
        await asyncio.gather(*map(answers, sockets))
        for ws in sockets: ws.transport.abort()
    with Dash(workspace, warm=1, good=GOOD) as dash, dash.visitor() as visitor:
        asyncio.run(tabs(dash, visitor))
        until(lambda: len(dash.kernels()) == 1)  # ten seconds where nobody else works


STRANGE = """import ipywidgets
slider, said = ipywidgets.IntSlider(max=9, description='number'), ipywidgets.Output()
slider.observe(lambda change: said.append_stdout(f"now {change.new} "), "value")
ipywidgets.VBox([slider, said])"""
PLAIN = """import ipywidgets
slider, said = ipywidgets.IntSlider(max=9, description='number'), ipywidgets.HTML()
slider.observe(lambda change: setattr(said, "value", f"now {change.new} "), "value")
ipywidgets.VBox([slider, said])"""


def test_each_page_gets_the_front_end_that_it_needs(chromium, workspace):
    """Ours where it draws everything, Voila's where a widget asks for it; a control answers on both, and nobody
    complains."""
    with Dash(workspace, plain=PLAIN, strange=STRANGE) as dash:
        for app, asks in (("plain", False), ("strange", True), ("plain", True)):
            with Visit(chromium, dash) as visit:
                with visit.page.expect_response(re.compile("/front/")) as script:
                    visit.page.goto(f"{dash.url}/apps/{app}?live=1{'&front=voila' if asks and app == 'plain' else ''}")
                assert "immutable" in script.value.headers["cache-control"]
                visit.page.locator(".widget-slider .noUi-handle").focus()
                visit.page.keyboard.press("ArrowRight")
                visit.page.get_by_text("now 1").wait_for()
                assert visit.page.evaluate("document.documentElement.classList.contains('voila')") == asks


TICKS = """import ipywidgets, threading, time
from pathlib import Path
said = ipywidgets.HTML("before")
def later():
    while not Path("tell.txt").exists(): time.sleep(.05)
    said.value = "meanwhile"
    while not Path("again.txt").exists(): time.sleep(.05)
    said.value = "afterwards"
threading.Thread(target=later, daemon=True).start()
said"""


def test_what_a_kernel_says_before_its_page_is_opened_is_not_lost(chromium, workspace):
    """The page was made with its states in it and asks for none; what changed while it waited is on it, and what
    changes later comes."""
    with Dash(workspace, warm=1, ticks=TICKS) as dash, dash.visitor() as visitor:
        until(lambda: 'kernels{state="ready"} 1.0' in visitor.get("/metrics").text, 60)
        (workspace / "tell.txt").touch()
        time.sleep(1)  # of the page's wait
        with Visit(chromium, dash) as visit:
            sent = []
            visit.page.on("websocket", lambda ws: ws.on("framesent", lambda said: sent.append(said)))
            with visit.page.expect_response(re.compile("/apps/ticks")) as page:
                visit.page.goto(f"{dash.url}/apps/ticks?live=1")
            assert 'id="states"' in page.value.text()
            visit.page.get_by_text("meanwhile", exact=True).and_(visit.page.locator(".live *")).wait_for()
            assert not any(b"request_states" in (s if isinstance(s, bytes) else s.encode()) for s in sent) and sent
            (workspace / "again.txt").touch()
            visit.page.get_by_text("afterwards", exact=True).and_(visit.page.locator(".live *")).wait_for()
