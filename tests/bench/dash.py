"""The dashboards beside Voila alone, as eight visitors meet them: `make bench-dash`, or

    python tests/bench/dash.py --rounds 5 [--visitors 8] [--tabs 50] [--dry]

One workspace as the loop leaves it (twelve windows of real flights), the same apps behind `scalai dash`, behind
`voila` as it comes, and behind `voila` with kernels that have run the page before it is asked for (`preheat_kernel`, a
pool of as many), in turn; as many visits of each, after as many to warm up. Visitors are real Chromiums, each with a
profile of its own that has been here twice (from the third visit on a browser keeps a script as it was compiled); each
comes at a moment of its own within two seconds. The section goes to tests/bench/RESULTS.md as those of bench.py do.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import keep, stamp

from scalai_nb.dash.frames import V1, join_message

VISITORS, TABS, POOL, SPREAD, WARMING, NEVER = 8, 50, 8, 2., 2, 90_000
# and no route of Playwright's, which would switch the cache off
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync".split()
    + ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
)
SMALL = (
    "import ipywidgets\nslider, said = ipywidgets.IntSlider(max=10_000),"
    " ipywidgets.HTML('<b>0</b>')\nslider.observe(lambda change: setattr(said, 'value', f'<b>{change.new}</b>'),"
    " 'value')\nslider"
)
# Milliseconds from the start of the navigation to the first frame that shows it.
SEEN = """(() => {
  const parts = {paint: '.scalai .headline', live: '.scalai .widget-dropdown select'};
  const visible = part => part && part.getBoundingClientRect().height
    && part.checkVisibility({visibilityProperty: true});
  const look = () => {
    for (const [name, part] of Object.entries(parts)) {
      const key = 'seen_' + name;
      if (visible(document.querySelector(part)) && !window[key])
        requestAnimationFrame(() => { window[key] = window[key] || performance.now() });
    }
    if (!window.seen_paint || !window.seen_live) requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})()"""
# A page of Voila leaves its kernel behind when it is closed; its own address for ending it is asked before.
ENDED = """async () => {
  const told = document.getElementById('jupyter-config-data'), {kernelId} = JSON.parse(told ? told.textContent : '{}');
  document.cookie = '_xsrf=aabbccddeeff0011; path=/'  // the page sets none, and a POST needs one
  const headers = {'X-XSRFToken': 'aabbccddeeff0011'}
  return kernelId && (await fetch(`/voila/api/shutdown/${kernelId}`, {method: 'POST', headers})).status }"""
BYTES = """() => { const until = window.seen_paint, n = performance.getEntriesByType('navigation')[0]
  const before = performance.getEntriesByType('resource').filter(r => r.responseEnd <= until);
  return before.reduce((sum, r) => sum + r.transferSize, n.transferSize) }"""


def p95(values): return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


class Server:
    "A process that serves a folder's apps."
    def __init__(self, root: Path): self.root, self.log = root, open(root / f"{self.name.replace(' ', '-')}.log", "w")
    def begin(self, command, **env):
        self.process = subprocess.Popen(
            [str(c) for c in command],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
            env=os.environ | env,
        )
    def __enter__(self): return self
    def __exit__(self, *_):
        import psutil
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        for p in psutil.wait_procs(family, 20)[1]: p.kill()
        self.log.close()
    def kernels(self) -> int:
        "Processes that are kernels: started by name, or forked by the process that bears another."
        import psutil
        family = {p.pid: p for p in psutil.Process(self.process.pid).children(recursive=True)}
        def command(p):
            try: return " ".join(p.cmdline())
            except psutil.NoSuchProcess: return ""
        said = {pid: command(p) for pid, p in family.items()}
        return sum(
            "ipykernel_launcher" in c
            or "jobs.forkserver" in c
            and "jobs.forkserver" in said.get(family[pid].ppid(), "")
            for pid, c in said.items()
        )


class Scalai(Server):
    name = "scalai dash"
    def __init__(self, root, kernels, warm):
        super().__init__(root)
        self.warm = warm
        self.begin(
            [Path(sys.executable).with_name("scalai"), "dash", "--no-browser", "--port", 0],
            SCALAI_APPS__KERNELS=str(kernels),
            SCALAI_APPS__WARM=str(warm),
        )
        self.enter = self.process.stdout.readline().strip()
        self.url, self.token = self.enter.split("/?token=")
        self.headers = {"authorization": f"Bearer {self.token}"}
    def paint(self, app): return f"{self.url}/apps/{app}"
    def live(self, app): return f"{self.url}/apps/{app}?live=1"
    async def leave(self, page): await page.goto("about:blank", timeout=180_000)

    def settle(self, *apps, within=300):
        "Until every snapshot is new and, for the app last asked for, the pool is full."
        import httpx
        with httpx.Client(base_url=self.url, headers=self.headers, trust_env=False, timeout=30) as me:
            end = time.monotonic() + within
            while not (
                all(
                    (a := me.get(f"/api/snapshots/{x}")).status_code == 200 and a.json()["standing"] == "new"
                    for x in apps
                )
                and f'kernels{{state="ready"}} {self.warm:.1f}' in me.get("/metrics").text
            ):
                assert time.monotonic() < end, me.get("/metrics").text[-3000:]
                time.sleep(.2)


class Voila(Server):
    name, options = "Voila", []
    enter = None
    headers = {}
    def __init__(self, root, *_):
        super().__init__(root)
        from scalai_nb.core.process import free_port
        self.url = f"http://127.0.0.1:{free_port()}"
        self.begin(
            [
                Path(sys.executable).with_name("voila"),
                "apps",
                "--no-browser",
                f"--port={self.url.rsplit(':', 1)[1]}",
                "--template=lab",
                "--Voila.log_level=ERROR",
                *self.options,
            ],
            SCALAI_SETTINGS=str(root / "settings.ini"),
        )
        self.settle()
    def paint(self, app): return f"{self.url}/voila/render/{app}.ipynb"
    live = paint
    async def leave(self, page):
        "Voila keeps a kernel for every page that was closed: it is ended, so that later visits do not pay for it."
        status = await page.evaluate(ENDED)
        assert status in (204, None), f"Voila ended no kernel: {status}"
        await page.goto("about:blank", timeout=180_000)

    def settle(self, *_, within=300):
        "Until it answers and its kernels have nothing left to compute: the pool is full."
        import httpx
        import psutil
        end, calm, before = time.monotonic() + within, 0, None
        while calm < 3:
            assert time.monotonic() < end, "Voila's pool was not full in time"
            time.sleep(.5)
            try: httpx.get(f"{self.url}/voila/static/voila.js", trust_env=False, timeout=30).raise_for_status()
            except httpx.HTTPError: continue
            try:
                me = psutil.Process(self.process.pid)
                now = sum(sum(p.cpu_times()[:2]) for p in me.children(recursive=True) or [me])
            except psutil.NoSuchProcess:
                continue
            calm, before = calm + 1 if before is not None and abs(now - before) < .1 else 0, now


class Preheated(Voila):
    name = "Voila, preheat_kernel"
    def __init__(self, root, kernels, pool):
        others = [
            f"--VoilaKernelManager.preheat_denylist={p.name}"
            for p in (root / "apps").glob("*.ipynb")
            if p.stem not in ("drift", "small")
        ]
        self.options = ["--preheat_kernel=True", f"--pool_size={pool}", *others]  # of the two pages that are visited
        super().__init__(root)


async def visitors(server, app: str, rounds: int) -> dict[str, list[float]]:
    """Eight people:

    the page that opens first, then the live one, then a control of it, round after round. Milliseconds, and bytes."""
    from playwright.async_api import async_playwright
    got = {"paint": [], "live": [], "control": [], "bytes": [], "opened": [], "alone": [], "first": [], "new": []}
    path = (
        os.environ.get("CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    async with async_playwright() as driver, contextlib.AsyncExitStack() as homes:
        async def person():
            context = await driver.chromium.launch_persistent_context(
                homes.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)),
                executable_path=path,
                args=FLAGS,
                viewport={"width": 1280, "height": 900},
            )
            homes.push_async_callback(context.close)
            page = context.pages[0]
            await page.add_init_script(SEEN)
            if server.enter: await page.goto(server.enter)
            return page
        async def look(page, what, url, late):
            await asyncio.sleep(late)
            await page.goto(url, wait_until="commit", timeout=180_000)
            seen = "seen_paint" if what in ("paint", "opened") else "seen_live"
            # not wait_for_function: a snapshot's policy allows no eval
            got[what].append(
                await page.evaluate(
                    "async ([name, most]) => { while (!window[name] && performance.now() < most) await new"
                    " Promise(requestAnimationFrame); return window[name] ?? most }",
                    [seen, NEVER],
                )
            )
        async def turn(page, late):
            "The window before the newest, chosen on the live page: until the page has drawn what is said of it."
            await asyncio.sleep(late)
            took = await page.evaluate(
                """async never => {
              const choices = [...document.querySelectorAll('.scalai select')];
              const choice = choices.find(s => /Window/.test(s.closest('.widget-dropdown').innerText));
              if (!choice) return 0  // never drawn
              const to = choice.options[1 + Math.floor(Math.random() * 4)].value, begun = performance.now();
              const said = () => [...document.querySelectorAll('.scalai h2')].map(h => h.innerText).join();
              const before = said(); choice.value = to; choice.dispatchEvent(new Event('change', {bubbles: true}))
              const took = () => performance.now() - begun
              while (said() === before && took() < never) await new Promise(requestAnimationFrame)
              return Math.min(took(), never) }""",
                NEVER,
            )
            if took: got["control"].append(took)
        people = [await person() for _ in range(VISITORS)]
        lates = lambda: random.sample([SPREAD * i / VISITORS for i in range(VISITORS)], VISITORS)
        for n in range(1 - WARMING, rounds + 1):
            if n == 1: got = {k: [] for k in got}  # the caches are filled
            server.settle(app)
            await asyncio.gather(*(look(p, "paint", server.paint(app), late) for p, late in zip(people, lates())))
            got["bytes"] += [await p.evaluate(BYTES) for p in people]
            if not server.enter:  # its first page is the live one, with a kernel of its own
                await asyncio.gather(*(server.leave(p) for p in people))
                server.settle(app)
            await asyncio.gather(*(look(p, "live", server.live(app), late) for p, late in zip(people, lates())))
            await asyncio.gather(*(turn(p, late) for p, late in zip(people, lates())))
            await asyncio.gather(*(server.leave(p) for p in people))
            server.settle(app)
            for p in people[: max(1, VISITORS // 2)]:
                if server.enter:
                    await p.goto(server.paint(app))  # whoever asks for the live page has its first one before him
                await look(p, "alone", server.live(app), 1)
                got["first"].append(
                    await p.evaluate("() => performance.getEntriesByType('navigation')[0].responseEnd")
                )
                await server.leave(p)
            print(
                f"{server.name} {n}/{rounds}: "
                + ", ".join(f"{k} {max(v[-VISITORS:]):.0f}" for k, v in got.items() if v),
                file=sys.stderr,
                flush=True,
            )
        got["bytes"] = []
        for _ in range(3):  # nothing in their caches
            new = await person()
            await look(new, "opened", server.paint(app), 3)  # a browser that has just started has other things to do
            got["bytes"].append(await new.evaluate(BYTES))
            server.settle(app)
            await look(new, "new", server.live(app), 1)
            await new.context.close()
    return got


class Tab:
    "A live page as its browser sees it, without the browser."
    def __init__(self, server, text: str):
        import websockets
        self.kernel, self.models = re.search(r'"kernelId": "([\w-]+)"', text)[1], re.findall(
            r'"model_id": "(\w+)"', text
        )
        self.connecting = websockets.connect(
            f"{server.url.replace('http', 'ws')}/api/kernels/{self.kernel}/channels?session_id=1",
            proxy=None,
            additional_headers=server.headers,
            max_size=None,
            open_timeout=120,
            subprotocols=[V1],
        )
    async def say(self, kind, content):
        id = uuid.uuid4().hex
        header = {"msg_id": id, "msg_type": kind, "username": "", "session": "1", "date": "", "version": "5.3"}
        await self.ws.send(
            join_message([b"shell", *(json.dumps(part).encode() for part in (header, {}, {}, content))])
        )
        return id
    async def open(self):
        "Until its kernel has said what widgets there are."
        self.ws = await self.connecting
        asked = await self.say("comm_info_request", {"target_name": "jupyter.widget"})
        while f'"{asked}"' not in (m := str(await self.ws.recv())) or '"comm_info_reply"' not in m: continue
        return self
    async def slide(self, value):
        "Until what the slider changes has changed."
        await self.say(
            "comm_msg",
            {"comm_id": self.models[0], "data": {"method": "update", "state": {"value": value}, "buffer_paths": []}},
        )
        while f"<b>{value}</b>" not in str(await self.ws.recv()): continue


async def at_once(server, app: str, rounds: int) -> dict[str, list[float]]:
    """The server's share, without a browser:

    eight ask at the same moment, until their page is whole and its kernel has answered; then each slides, every
    half second."""
    import httpx
    got = {"whole": [], "slide": []}
    async def one(client):
        began = time.perf_counter()
        page = (await client.get(server.live(app), timeout=120)).raise_for_status()
        try: tab = await asyncio.wait_for(Tab(server, page.text).open(), NEVER / 1000)
        except TimeoutError:  # its kernel never answered
            got["whole"].append(NEVER)
            return
        got["whole"].append(1000 * (time.perf_counter() - began))
        if app == "small":
            for value in range(1, 11):
                await asyncio.sleep(random.uniform(.3, .7))
                began = time.perf_counter()
                await tab.slide(value)
                got["slide"].append(1000 * (time.perf_counter() - began))
        await tab.ws.close()
    async with httpx.AsyncClient(headers=server.headers, trust_env=False) as client:
        for n in range(rounds + 1):
            if n == 1: got = {k: [] for k in got}  # the first round told the pool what is asked for
            await asyncio.to_thread(server.settle)
            await asyncio.gather(*(one(client) for _ in range(VISITORS)))
            print(
                f"{server.name} {app} {n}/{rounds}: " + ", ".join(f"{k} {max(v):.0f}" for k, v in got.items() if v),
                file=sys.stderr,
                flush=True,
            )
    return got


async def closed(server) -> tuple[int, int]:
    "Fifty tabs are opened and closed without a word: kernels before, and ten seconds after."
    import httpx
    gate = asyncio.Semaphore(4)
    async with httpx.AsyncClient(headers=server.headers, trust_env=False) as client:
        async def tab():
            async with gate:
                return await Tab(
                    server, (await client.get(server.live("small"), timeout=120)).raise_for_status().text
                ).open()
        tabs = await asyncio.gather(*(tab() for _ in range(TABS)))
    there = server.kernels()
    for t in tabs: t.ws.transport.abort()
    await asyncio.sleep(10)
    return there, server.kernels()


def workspace(root: Path):
    "Twelve windows of flights, the apps, and a small one."
    from watched import watched
    root.mkdir()
    watched(root)
    shutil.copytree(HERE.parents[1] / "apps", root / "apps")
    cell = lambda kind, text: dict(
        cell_type=kind,
        id=uuid.uuid4().hex[:8],
        metadata={},
        source=text,
        **(dict(outputs=[], execution_count=None) if kind == "code" else {}),
    )
    book = dict(
        nbformat=4,
        nbformat_minor=5,
        metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")),
        cells=[cell("markdown", "# Small"), cell("code", SMALL), cell("code", "said")],
    )
    (root / "apps" / "small.ipynb").write_text(json.dumps(book))


def measure(kind, root: Path, rounds: int) -> dict:
    "All of one contender."
    got = {}
    with kind(root, 3 * POOL, POOL) as server: got |= asyncio.run(visitors(server, "drift", rounds))
    with kind(root, 3 * POOL, POOL) as server: got["whole"] = asyncio.run(at_once(server, "drift", rounds))["whole"]
    with kind(root, 3 * POOL, POOL) as server: got["slide"] = asyncio.run(at_once(server, "small", rounds))["slide"]
    with kind(root, 2 * TABS + 2, 2) as server: got["tabs"] = asyncio.run(closed(server))
    return got


ROWS = {
    "paint": ("first meaningful paint: the headline is drawn, in Chromium", 150, 50),
    "opened": ("the same, a visitor whose browser has never been here", 150, 50),
    "live": ("live page ready: its controls are drawn, in Chromium", 500, 300),
    "alone": ("the same, one visitor after the other, a second between them", 500, 300),
    "first": ("of that, until the last byte of the page", 500, 300),
    "new": ("the same, a visitor whose browser has never been here", 500, 300),
    "whole": ("the same, server only: page whole and kernel answering, eight at the same moment", 500, 300),
    "control": ("a control of the live page: another window chosen and drawn, in Chromium", 300, 100),
    "slide": ("live control round trip, server only: a slider's change comes back", 300, 100),
}


def report(runs: dict, command: str, load: float) -> str:
    "The section."
    mine, others = runs["scalai dash"], {k: v for k, v in runs.items() if k != "scalai dash"}
    lines = [
        (
            f"| p95, ms | {' | '.join(others)} | scalai dash | visits of each | must | met | aim | met | median of"
            " scalai dash |"
        ),
        f"|---|{'---:|' * (len(runs) + 1)}---|---:|---|---:|---:|",
    ]
    yes = lambda ok: "yes" if ok else "**no**"
    shown = lambda values, f: " | ".join(f(v) for v in values)
    for key, (what, must, aim) in ROWS.items():
        n = min(len(r[key]) for r in runs.values())  # of each as many, the last ones
        at = {k: r[key][-n:] if n else [] for k, r in runs.items()}
        own = p95(at["scalai dash"]) if n else None
        middle = f"{statistics.median(at['scalai dash']):.0f}" if n else ""
        cells = shown(at.values(), lambda v: f"{p95(v):.0f}" if v else "not run")
        lines.append(
            f"| {what} | {cells} | {n} | ≤ {must} | {yes(own <= must) if n else ''} | ≤ {aim} |"
            f" {yes(own <= aim) if n else ''} | {middle} |"
        )
    kb = {k: r["bytes"][0] / 1000 for k, r in (others | {"scalai dash": mine}).items()}
    own = kb["scalai dash"]
    lines.append(
        f"| kB until the first meaningful paint, nothing cached | {shown(kb.values(), '{:.0f}'.format)} | 1 | ≤ 500 |"
        f" {yes(own <= 500)} | ≤ 150 | {yes(own <= 150)} | |"
    )
    left, own = [r["tabs"][1] for r in others.values()], mine["tabs"][1]
    lines.append(
        f"| kernels left 10 s after {TABS} visitors closed their tabs | {shown(left, str)} | {own}, of which 2 are the"
        f" pool | 1 | 0 beyond it | {yes(own <= 2)} | | | |"
    )
    n = len(mine["paint"])
    told = (
        f"{VISITORS} visitors, {n} visits of each kind: Chromiums with profiles of their own that have been here"
        f" {WARMING} times, each arriving at a moment of its own within {SPREAD:.0f} s, on the {os.cpu_count()} cores"
        f" that also serve, so that {VISITORS} browser pages, their kernels and the server wait for each other; the"
        f" rows that say server only leave the browser out. A pool of {POOL} pages, full before each round. Voila is"
        " `voila` on the same apps without any of this, as it comes, and with `--preheat_kernel=True"
        f" --pool_size={POOL}` for the pages that are visited, its pool full before each round, too; the kernels that"
        " its visitors leave are ended after each round, which Voila does not do by itself. A page that is"
        f" not drawn after {NEVER // 1000} s counts as that. Voila has no first page but the live one."
    )
    return "\n".join(
        [
            "## dashboards beside Voila alone" + f", {VISITORS} visitors" * (VISITORS != 8),
            "",
            told,
            "",
            *lines,
            "",
            stamp(command, load),
            "",
        ]
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    global VISITORS, TABS, POOL
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--visitors", type=int, default=VISITORS, help="at a time, and pages in the pool")
    p.add_argument("--tabs", type=int, default=TABS, help="that are opened and closed")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    os.environ.pop("SCALAI_SETTINGS", None)
    VISITORS, TABS, POOL = a.visitors, a.tabs, a.visitors
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "w"
        workspace(root)
        runs = {kind.name: measure(kind, root, a.rounds) for kind in (Voila, Preheated, Scalai)}
    text = report(
        runs, f"python tests/bench/dash.py --rounds {a.rounds} --visitors {a.visitors} --tabs {a.tabs}", load
    )
    print(text)
    if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
