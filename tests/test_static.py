"""Each script and style sheet of the package alone in a real Chromium: no gateway, no kernel, only what the page asks
for is answered."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from test_browser import chromium, drawn  # noqa: F401 (a fixture)

from scalai_nb.core.resources import static_text
from scalai_nb.dash import frontend, pages, snapshot
from scalai_nb.dash.apps import App
from scalai_nb.dash.auth import policy
from scalai_nb.dash.frames import join_message, split_message

pytestmark = pytest.mark.slow  # a browser
HOST = "dash.test"
KERNEL = "00000000-0000-4000-8000-000000000000"


class Stage:
    "A page of one host whose answers a test gives: path -> (status, text) or a function that makes them."
    def __init__(self, chromium, html: str, kind: str = "live", **answers):
        self.answers = {"/": (200, html)} | {f"/{path}": answer for path, answer in answers.items()}
        self.kind, self.asked, self.sockets, self.sent, self.problems = kind, [], [], [], []
        self.page = chromium.new_context(viewport={"width": 800, "height": 600}).new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console", lambda m: self.problems.append(m.text) if "Content Security Policy" in m.text else None
        )
        self.page.route("**/*", self.answer)
        self.page.route_web_socket("**/*", self.socket)
        self.page.clock.install()
        self.page.goto(f"http://{HOST}/")

    def answer(self, route):
        path = "/" + route.request.url.split("/", 3)[3]
        self.asked.append(path)
        found = self.answers.get(path.partition("?")[0], (404, ""))
        found = found() if callable(found) else found
        if found is None: return route.abort()
        status, text = found
        script = path.endswith(".js")
        route.fulfill(
            status=status,
            body=text,
            content_type=(
                "text/javascript" if script else "application/json" if path.startswith("/api/") else "text/html"
            ),
            headers=policy(HOST, self.kind) | {"cache-control": "no-store"},
        )

    def socket(self, ws):
        self.sockets.append(ws)
        # a method of a list cannot carry what Playwright attaches
        ws.on_message(lambda message: self.sent.append(message))

    def __enter__(self): return self
    def __exit__(self, kind, *_):
        self.page.context.close()
        assert kind or not self.problems, self.problems

    def until(self, true, seconds=10):
        for _ in range(seconds * 20):
            if true(): return
            self.page.wait_for_timeout(50)
        assert true()


def test_every_style_sheet_is_understood(chromium):
    "A rule that Chromium drops is a rule that was mistyped."
    files = sorted((ROOT/"scalai_nb").glob("*/static/*.css"))
    assert len(files) >= 7
    page = chromium.new_page()
    for file in files:
        page.set_content(f"<style>{file.read_text()}</style>")
        count = page.evaluate("""() => {
            const rules = list => [...list].flatMap(rule => [rule, ...rules(rule.cssRules ?? [])]);
            return rules(document.styleSheets[0].cssRules).length;
        }""")
        assert count == file.read_text().count("{"), file
    page.close()


def test_home_marks_what_was_clicked(chromium):
    """The script of the home page is the one that its security policy lets through, and an inline one of somebody else
    is not."""
    app = SimpleNamespace(name="drift", title="Drift", summary="What moved")
    html = pages.home_page("w", [app]).replace("</main>", "<script>document.title = 'forged'</script></main>")
    with Stage(chromium, html, "own", **{"apps/drift": (204, "")}) as stage:
        card = stage.page.locator("a.app")
        card.click()
        stage.until(lambda: card.get_attribute("class") == "app opening" and "/apps/drift" in stage.asked)
        # back from the page
        stage.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
        assert card.get_attribute("class") == "app" and stage.page.title() == "Dashboards · w"
        assert len(stage.problems) == 1 and "Content Security Policy" in stage.problems.pop()


def test_snapshot_says_how_old_it_is(chromium):
    "New, out of date, not to be asked, replaced; and the live page's scripts are fetched meanwhile."
    says = {"made": 1000.5, "standing": "new", "says": "", "live": ["/front/x.js"]}
    html = snapshot.page(
        App("drift", Path("drift.ipynb"), "Drift", ""),
        snapshot.Snapshot("drift", 1000.5, "s", "<p>All is well</p>"),
        "new",
    )
    replies = {"now": lambda: (200, json.dumps(says))}
    with Stage(
        chromium, html, "paper", **{"api/snapshots/drift": lambda: replies["now"](), "front/x.js": (200, "")}
    ) as stage:
        asof = stage.page.locator("#asof")
        def later(words, kind):
            stage.page.clock.run_for(3100)
            stage.until(lambda: words in asof.inner_text() and asof.get_attribute("class") == kind)
        later("As of 1970-01-01 00:16:40 UTC.", "new")
        stage.until(lambda: "/front/x.js" in stage.asked)
        says |= {"standing": "old", "says": snapshot.STATUS_TEXT["old"]}
        later("Out of date", "old")
        replies["now"] = lambda: (503, "")
        stage.page.clock.run_for(3100)
        stage.page.wait_for_timeout(300)
        assert "Out of date" in asof.inner_text()  # once may be a restart
        later("do not answer", "unknown")
        replies["now"] = lambda: (200, json.dumps(says | {"made": 2000.5}))
        later("newer page", "old")
        stage.page.locator("a.live").evaluate(
            "a => { a.addEventListener('click', e => e.preventDefault()); a.click() }"
        )
        assert stage.page.locator("a.live").inner_text() == "Opening…"
        stage.answers["/"] = 200, "<h1>anew</h1>"
        stage.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
        stage.page.locator("h1", has_text="anew").wait_for()


def test_live_page_keeps_its_address_and_says_when_it_is_lost(chromium):
    html = (
        f'<script>{static_text("dash", "live.js")}</script><div id="scalai-lost" style="display:'
        ' none">lost</div><main></main>'
    )
    alive = {"status": 200}
    with Stage(chromium, html, **{f"api/kernels/{KERNEL}": lambda: (alive["status"], "{}")}) as stage:
        page = stage.page
        page.evaluate("""document.querySelector('main').innerHTML = '<i hidden data-link="?window=2013-06"></i>'""")
        stage.until(lambda: page.url.endswith("/?window=2013-06"))
        page.evaluate("document.querySelector('[data-link]').dataset.link = '?window=2013-07'")
        stage.until(lambda: page.url.endswith("/?window=2013-07"))
        def close():
            page.evaluate(
                f"window.s = new WebSocket('ws://{HOST}/api/kernels/{KERNEL}/channels'); s.onopen = () => s.close();"
                " s.onclose = () => { window.over = (window.over ?? 0) + 1 }"
            )
            n = len(stage.sockets)
            stage.until(lambda: page.evaluate("window.over ?? 0") >= n)
            page.clock.run_for(1100)
            page.wait_for_timeout(300)
        close()
        assert page.locator("#scalai-lost").is_hidden()  # its kernel lives: the channel comes back
        alive["status"] = 404
        page.evaluate("dispatchEvent(new Event('beforeunload'))")
        close()
        assert page.locator("#scalai-lost").is_hidden()  # another page is on its way
        page.clock.run_for(66_000)
        page.locator("#scalai-lost").wait_for(state="visible")  # and did not come


def message(channel: str, kind: str, content: dict, parent: str = "") -> bytes:
    "What a kernel sends."
    parts = {"msg_id": "k", "msg_type": kind}, {"msg_id": parent}, {}, content
    return join_message([channel.encode(), *(json.dumps(part).encode() for part in parts)])


def output(**data) -> str:
    "An output as Voila's template writes it."
    return (
        '<div><script'
        ' type="application/vnd.voila.cell-output+json">'
        f'{json.dumps({"data": data}).replace("<", chr(92) + "u003c")}</script></div>'
    )


FRONT = {
    "front/own.js": (200, frontend.SCRIPT),
    "front/base.js": (200, "define(() => ({ load_ipython_extension: async () => { window.started = true } }))"),
    "front/pictures.js": (200, "define(['@jupyter-widgets/base'], base => ({ drawn: Boolean(base) }))"),
}


def live_page(*outputs: str, states: str = "") -> str:
    offered = {frontend.CORE: "/front/base.js", "pictures": "/front/pictures.js"}
    return (
        '<!DOCTYPE html><html><head><script id="jupyter-config-data" type="application/json">{"kernelId":'
        f' "{KERNEL}"}}</script><script id="offered" type="application/json">{json.dumps(offered)}</script><script'
        ' defer src="/front/own.js"></script></head><body><div id="rendered_cells" style="display:'
        f' none">{"".join(outputs)}</div><template id="voila"><script src="/voila/voila.js"></script><link'
        f' rel="stylesheet" href="/x.css"></template>{states}</body></html>'
    )


def test_front_end_shows_outputs_and_asks_for_the_widgets(chromium):
    """Text, pictures and HTML at once; one message that asks the kernel for its widgets' state; what comes back goes
    to its comm."""
    outputs = [
        output(**{"text/html": "<b id=here>42</b>", "text/plain": "x"}),
        output(**{"text/plain": "<i>plain</i>"}),
        output(**{"image/png": base64.b64encode(b"no picture").decode()}),
    ]
    with Stage(chromium, live_page(*outputs), **FRONT) as stage:
        assert (
            stage.page.locator("#here").inner_text() == "42"
            and stage.page.locator("pre").inner_text() == "<i>plain</i>"
        )
        assert (
            stage.page.locator(".shown img").get_attribute("src").startswith("data:image/png;base64,")
            and stage.page.locator("#rendered_cells").is_visible()
        )
        stage.until(lambda: len(stage.sent) == 2)
        assert f"/api/kernels/{KERNEL}/channels?session_id=" in stage.sockets[0].url
        opened, asked = (
            [json.loads(part) if i else part for i, part in enumerate(split_message(m))] for m in stage.sent
        )
        assert (
            opened[0] == b"shell"
            and opened[1]["msg_type"] == "comm_open"
            and opened[4]["target_name"] == "jupyter.widget.control"
            and opened[3] == {"version": "1.0.0"}
        )
        assert (
            asked[4]["data"] == {"method": "request_states"}
            and asked[4]["comm_id"] == opened[4]["comm_id"]
            and asked[1]["session"] in stage.sockets[0].url
        )
        stage.page.evaluate(
            """() => { const { comm_manager } = Jupyter.notebook.kernel;
            window.heard = [];
            comm_manager.register_target('mine', (comm, m) => {
              heard.push(m.content.data); comm.on_msg(m => heard.push([m.content.data, m.buffers.length])) }) }"""
        )
        stage.sockets[0].send(message("iopub", "comm_open", {"comm_id": "c", "target_name": "mine", "data": {"a": 1}}))
        stage.sockets[0].send(message("iopub", "comm_msg", {"comm_id": "c", "data": {"b": 2}}))
        stage.page.wait_for_timeout(200)
        stage.sockets[0].send(
            message(
                "iopub",
                "comm_msg",
                {"comm_id": opened[4]["comm_id"], "data": {"method": "update_states", "states": {}}},
            )
        )
        stage.until(lambda: stage.page.evaluate("heard") == [{"a": 1}, [{"b": 2}, 0]])
        stage.page.evaluate("dispatchEvent(new Event('pagehide'))")
        stage.until(lambda: f"/voila/api/shutdown/{KERNEL}" in stage.asked)


def test_front_end_takes_the_states_of_the_page(chromium):
    """Its channel is the one that is open already, nothing is asked again, and a library that is used is fetched and
    loaded by its name."""
    first = message(
        "iopub",
        "comm_msg",
        {
            "comm_id": "c",
            "data": {
                "method": "update_states",
                "states": {
                    "m": {"model_module": "pictures", "model_name": "Picture", "state": {"_view_module": "pictures"}}
                },
            },
        },
    )
    states = (
        '<script id="states" type="text/plain"'
        f' data-session="0123456789abcdef">{base64.b64encode(first).decode()}</script>'
    )
    with Stage(chromium, live_page(states=states), **FRONT) as stage:
        stage.until(lambda: stage.sockets and stage.page.evaluate("window.started === true"))
        assert stage.sockets[0].url.endswith("session_id=0123456789abcdef") and stage.sent == []
        assert stage.page.evaluate("new Promise(done => require(['pictures'], p => done(p.drawn)))")
        assert stage.page.evaluate("document.documentElement.className") == "" and "/voila/voila.js" not in stage.asked


@pytest.mark.parametrize(
    "reason", ["an output of text/markdown", "a widget of a library that is not here", "asked for"]
)
def test_front_end_leaves_a_page_to_voila(chromium, reason):
    """What it cannot draw is Voila's, in place:

    its scripts and styles come in their order, and what stood there is gone."""
    outputs = [output(**{"text/html": "<b id=here>42</b>"})] + (
        [output(**{"text/markdown": "**a**", "text/plain": "a"})] if "markdown" in reason else []
    )
    answers = FRONT | {"voila/voila.js": (200, "window.voila = typeof window.Jupyter"), "x.css": (200, "")}
    with Stage(chromium, live_page(*outputs), **answers) as stage:
        if reason == "asked for": stage.page.goto(f"http://{HOST}/?front=voila")
        if "library" in reason:
            stage.until(lambda: len(stage.sent) == 2)
            comm = json.loads(split_message(stage.sent[1])[4])["comm_id"]
            stage.page.wait_for_timeout(200)
            widget = {"model_module": "strange", "model_name": "Thing", "state": {}}
            stage.sockets[0].send(
                message(
                    "iopub",
                    "comm_msg",
                    {"comm_id": comm, "data": {"method": "update_states", "states": {"m": widget}}},
                )
            )
        stage.until(lambda: stage.page.evaluate("window.voila") == "undefined")
        assert (
            stage.page.evaluate("document.documentElement.className") == "voila"
            and not stage.page.locator(".shown").count()
        )
        assert stage.page.locator("head link[rel=stylesheet]").get_attribute("href") == "/x.css"


def test_a_figure_is_saved_as_it_is_seen(chromium):
    "Twice as wide as it is shown, with its legend, under its own name; a button without a figure does nothing."
    import matplotlib.image

    from scalai_nb.view.style import CSS, download, key
    svg = (
        '<div class="paper" style="width: 300px; height: 100px"><svg width="300" height="100"><rect x="100"'
        ' width="100" height="100" class="bar"></rect></svg></div>'
    )
    body = f'{download("none", {"x": [1]})}{key({"this": "rgb(0, 0, 255)"})}{svg}{download("a <b>", {"x": [1]})}'
    with Stage(
        chromium, f'<style>.bar {{ fill: rgb(255, 0, 0) }}</style>{CSS}<div class="scalai">{body}</div>', "paper"
    ) as stage:
        stage.page.get_by_label("Download none as PNG").click()
        with stage.page.expect_download() as got: stage.page.get_by_label("Download a <b> as PNG").click()
        assert got.value.suggested_filename == "a_b.png" and drawn(got.value.path())[0] == 600
        pixels = (matplotlib.image.imread(got.value.path())[:, :, :3] * 255).round().astype(int)
        # styled by the page
        assert pixels[-100, 300].tolist() == [255, 0, 0] and pixels[-100, 50].tolist() == [255, 255, 255]
        assert (pixels.reshape(-1, 3) == [0, 0, 255]).all(1).any()  # the legend
