"The gateway with a real Voila behind it: the door, a notebook that fails, kernels that are counted, and an end that leaves nothing."
import asyncio, re, signal, subprocess, sys, time
from pathlib import Path

import httpx, nbformat, psutil, pytest, websockets

from conftest import until

GOOD = "import ipywidgets\nipywidgets.IntSlider(value=42, description='answer')"
START = "from scalai_nb.dash.gateway import dash; dash(port=0)"


class Dash:
    "`scalai dash` in a process of its own, as a person starts it."
    def __init__(self, root: Path, **apps: str):
        (root / "apps").mkdir(exist_ok=True)
        for name, source in apps.items():
            nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# The {name} app\n> It is there."), nbformat.v4.new_code_cell(source)])
            nbformat.write(nb, root / "apps" / f"{name}.ipynb")
        self.log = root / "dash.log"
        self.process = subprocess.Popen([sys.executable, "-c", START], cwd=root, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True)
        self.link = self.process.stdout.readline().strip()
        self.url, self.token = self.link.split("/?token=")

    def __enter__(self): return self
    def __exit__(self, *_):
        if self.process.poll() is None: self.end()
    def client(self, **headers): return httpx.Client(base_url=self.url, headers=headers, timeout=90, trust_env=False)
    def visitor(self): return self.client(authorization=f"Bearer {self.token}", accept="text/html")
    def family(self): return psutil.Process(self.process.pid).children(recursive=True)
    def kernels(self): return self.called("ipykernel_launcher")
    def called(self, word):
        found = []
        for p in self.family():
            try:
                if word in " ".join(p.cmdline()): found.append(p)
            except psutil.NoSuchProcess: continue  # ended meanwhile
        return found
    def end(self, how=signal.SIGTERM):
        family = self.family()
        self.process.send_signal(how)
        self.process.wait(20)
        _, left = psutil.wait_procs(family, 10)
        return left


def snapshot(visitor, app, standing="new"):
    "Wait for an app's snapshot; what the gateway says of it."
    until(lambda: (a := visitor.get(f"/api/snapshots/{app}")).status_code == 200 and a.json()["standing"] == standing, 90)
    return visitor.get(f"/api/snapshots/{app}").json()


def channel(dash, page, **more):
    "The WebSocket that a rendered page opens."
    kernel = re.search(r'"kernelId": "([\w-]+)"', page.text)[1]
    return websockets.connect(f"{dash.url.replace('http', 'ws')}/api/kernels/{kernel}/channels?session_id=1", proxy=None, **more)


def test_door_and_end(workspace):
    "Every path wants the token, whatever is behind it; SIGTERM leaves no process."
    with Dash(workspace, good=GOOD) as dash:
        assert dash.link.count("token=") == 1
        with dash.client() as stranger:
            for path in ["/", "/apps/good", "/apps/none", "/voila/static/voila.js", "/voila/files/settings.ini", "/voila/tree", "/api/kernels", "/api/snapshots/good", "/voila/render/good.ipynb",
                         "/%2e%2e/settings.ini", "/voila/static/..%2f..%2f..%2fetc/passwd", "/voila/static/%252e%252e/x", "/login/../apps/good", "//apps/good", "/healthz/"]:
                answer = stranger.get(path)
                assert answer.status_code == 401 and "good" not in answer.text and "passwd" not in answer.text, path
                assert stranger.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
                assert stranger.get(path, headers={"accept": "text/html"}).headers["location"] == "/login"
            assert stranger.get("/healthz").json() == {"ok": True}
            assert "frame-ancestors 'none'" in stranger.get("/healthz").headers["content-security-policy"]
        with dash.client(accept="text/html") as person:
            entry = person.get(f"/apps/good?token={dash.token}")
            assert entry.status_code == 303 and entry.headers["location"] == "/apps/good"
            cookie = entry.headers["set-cookie"]
            assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and dash.token not in cookie
            assert "The good app" in person.get("/").text
        with dash.visitor() as visitor:
            page = visitor.get("/apps/good")
            assert page.status_code == 200 and "<title>The good app</title>" in page.text
            assert visitor.get("/voila/static/voila.js").status_code == 200
            for path in ["/apps/none", "/voila/files/settings.ini", "/voila/files/dash.log", "/voila/tree", "/voila/api/contents", "/voila/render/good.ipynb", "/api/kernels", "/voila/static/..%2f..%2f..%2fetc/passwd",
                         "/voila/templates/scalai/static/..%2f..%2fconf.json", "/voila/templates/none/static/x"]:
                assert visitor.get(path).status_code == 404, path
            assert visitor.get("/apps/good?template=none&theme=none").status_code == 200  # an unknown template would hang Voila
        assert len(dash.kernels()) == 2
        assert dash.end() == []


def test_socket_is_behind_the_door(workspace):
    "A kernel's channel wants the token, and the cookie only counts from our own pages."
    async def status(dash, page, **headers):
        try:
            async with channel(dash, page, additional_headers=headers): return 101
        except websockets.InvalidStatus as e: return e.response.status_code
    with Dash(workspace, good=GOOD) as dash, dash.visitor() as visitor:
        page = visitor.get("/apps/good")
        with dash.client(accept="text/html") as person: cookie = person.get(f"/?token={dash.token}").headers["set-cookie"].split(";")[0]
        ask = lambda **headers: asyncio.run(status(dash, page, **headers))
        assert ask() == 401 and ask(authorization="Bearer wrong") == 401
        assert ask(cookie=cookie) == 401 and ask(cookie=cookie, origin="http://evil.example") == 401
        assert ask(cookie=cookie, origin=dash.url) == 101
        assert ask(authorization=f"Bearer {dash.token}") == 101
        page = re.sub(r'("kernelId": ")[\w-]+', r"\g<1>00000000-0000-0000-0000-000000000000", page.text)
        assert asyncio.run(status(dash, type("Page", (), {"text": page}), authorization=f"Bearer {dash.token}")) == 404


def test_a_broken_notebook_is_an_error(workspace):
    "500 with a number for the reader, the reason under it in the log, and no kernel left behind."
    with Dash(workspace, bad="flights = {}\nflights['dep_delay']") as dash, dash.visitor() as visitor:
        page = visitor.get("/apps/bad")
        number = re.search(r"under (\w{8})", page.text)[1]
        assert page.status_code == 500 and "KeyError" not in page.text and "dep_delay" not in page.text
        line = next(text for text in dash.log.read_text().splitlines() if number in text)
        assert "KeyError" in line and "dep_delay" in line
        until(lambda: not dash.kernels(), 20)


PAPER = """from pathlib import Path
from scalai_nb.view.style import View, headline, html
View([html(headline("good", "The window says " + Path("said.txt").read_text(), {}))])"""


@pytest.mark.slow
def test_snapshot_first(workspace):
    "Made before anybody comes, behind the token, served without a kernel; made anew when the workspace changes; a failing one leaves the old one, marked."
    from scalai_nb.loop import decisions
    from scalai_nb.core.settings import Settings
    (workspace / "said.txt").write_text("one")
    with Dash(workspace, paper=PAPER) as dash, dash.visitor() as visitor, dash.client() as stranger:
        first = snapshot(visitor, "paper")
        assert stranger.get("/api/snapshots/paper").status_code == 401 and visitor.get("/api/snapshots/none").status_code == 404
        times = []
        for _ in range(30):
            start = time.perf_counter()
            page = visitor.get("/apps/paper")
            times.append(time.perf_counter() - start)
        assert "The window says one" in page.text and "As of 20" in page.text and "changed since" not in page.text
        assert sorted(times)[15] < .15 and not dash.kernels(), times
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
    async def visit(dash, visitor):
        page = await asyncio.to_thread(visitor.get, "/apps/good")
        async with channel(dash, page, additional_headers={"authorization": f"Bearer {dash.token}"}):
            full = await asyncio.to_thread(visitor.get, "/apps/good")
            assert full.status_code == 503 and full.headers["retry-after"] and 'http-equiv="refresh"' in full.text
            assert len(dash.kernels()) == 1
    with Dash(workspace, good=GOOD) as dash, dash.visitor() as visitor:
        asyncio.run(visit(dash, visitor))
        assert visitor.get("/apps/good").status_code == 200  # the one who left makes room at once
        first = dash.kernels()
        assert len(first) == 1


@pytest.mark.slow
def test_voila_killed_and_gateway_killed(workspace):
    "A Voila that dies is started again; a gateway that is killed takes Voila and the kernels with it."
    with Dash(workspace, good=GOOD) as dash, dash.visitor() as visitor:
        assert visitor.get("/apps/good").status_code == 200
        voila = dash.called("scalai_nb.dash.voila")[0]
        voila.kill()
        until(lambda: visitor.get("/apps/good").status_code == 200, 60)
        assert dash.kernels()
        assert dash.end(signal.SIGKILL) == []


def test_request_errors_are_two_lines(workspace):
    "A port in use and an unknown app: two lines, exit code 2, nothing started."
    with Dash(workspace, good=GOOD) as dash:
        port = dash.url.rsplit(":", 1)[1]
        for words, told in (["dash", "--no-browser", "--port", port], "in use"), (["dash", "--no-browser", "goood"], "good"):
            ended = subprocess.run([str(Path(sys.executable).with_name("scalai")), *words], cwd=workspace, capture_output=True, text=True, timeout=60)
            assert ended.returncode == 2 and len(ended.stderr.strip().splitlines()) == 2 and told in ended.stderr and not ended.stdout, ended
