"The gateway's own HTTP, byte by byte: what is malformed, smuggled, broken off, guessed or forged. No Voila behind it."
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from conftest import SCALAI, started, until

TOKEN, VIEWER = "the-pen-of-an-editor", "the-eye-of-a-viewer"
SERVE = """import asyncio, sys
from scalai_nb.core.settings import Settings
from scalai_nb.core.process import bind_port
from scalai_nb.dash.gateway import gateway, serve
from scalai_nb.dash.voila import Voila
class Asleep(Voila):
    async def __aenter__(self): return self
    async def __aexit__(self, *_): pass
settings = Settings.load()
with bind_port(0) as sock:
    tokens = {"editor": settings.apps.token, "viewer": settings.apps.viewer_token}
    app = gateway({}, tokens, settings, Asleep({}, settings))
    asyncio.run(serve(app, sock, lambda: print(sock.getsockname()[1], flush=True)))
"""


class Door:
    def __init__(self, root: Path, **apps):
        lines = {"token": TOKEN, "viewer_token": VIEWER, "warm": 0} | apps
        (root/"settings.ini").write_text("[apps]\n" + "".join(f"{k} = {v}\n" for k, v in lines.items()))
        self.log = root/"door.log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE], cwd=root, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True
        )
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self): return self
    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def client(self, **more):
        return httpx.Client(base_url=self.url, trust_env=False, headers={"accept": "text/html"}, **more)

    def raw(self, sent: bytes, within: float = 15) -> bytes:
        "All that comes back until the gateway closes."
        with socket.create_connection(("127.0.0.1", self.port), within) as s:
            s.sendall(sent.replace(b"HOST", f"127.0.0.1:{self.port}".encode()))
            return b"".join(iter(lambda: s.recv(65536), b""))


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    with Door(tmp_path_factory.mktemp("door")) as door: yield door


GET, POST = b"GET / HTTP/1.1\r\nhost: HOST\r\n", b"POST /login HTTP/1.1\r\nhost: HOST\r\n"
SMUGGLED = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: HOST\r\nconnection: close\r\n\r\n"
MALFORMED = {
    "host": b"GET / HTTP/1.1\r\nhost: [::\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nx: y\r\n\r\n",
    "two hosts": GET + b"host: other\r\n\r\n",
    "host with a blank": b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nhost: a/b?c\r\n\r\n",
    "origin": GET + b"origin: http://[\r\n\r\n",
    "origin with a port that is none": GET + b"origin: http://a:b\r\n\r\n",
    "socket's origin": GET.replace(b"/ ", b"/api/kernels/x/channels ") + b"origin: http://[::\r\n\r\n",
    "length and chunks": POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + SMUGGLED,
    "chunks and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\ntoken=" + SMUGGLED,
    "length": POST + b"content-length: 5x\r\n\r\n",
    "negative length": POST + b"content-length: -5\r\n\r\n",
    "other coding": POST + b"transfer-encoding: xchunked\r\n\r\n" + SMUGGLED,
    "two codings": POST + b"transfer-encoding: chunked, identity\r\n\r\n" + SMUGGLED,
    "chunk size": POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
    "negative chunk": POST + b"transfer-encoding: chunked\r\n\r\n-1\r\n\r\n",
    "endless chunk": POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n\r\n",
    "header name": GET + b"a b: c\r\n\r\n",
    "header without a colon": GET + b"abc\r\n\r\n",
    "bare line feed in a value": GET + b"x: a\x00b\r\n\r\n",
    "huge header": GET + b"x: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": GET + b"x: y\r\n" * 30_000 + b"\r\n",
    "method": b"\x16\x03\x01 / HTTP/1.1\r\nhost: HOST\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_refused_and_its_connection_closed(door, name):
    "One answer of the 4xx or 501 kind, no second one for what was smuggled behind it, and no traceback."
    try: said = door.raw(MALFORMED[name])
    except ConnectionResetError: said = b"HTTP/1.1 400 (reset while we still sent)"
    assert (
        re.match(rb"HTTP/1.1 (400|401|413|431|501) ", said) and said.count(b"HTTP/1.1") == 1 and b'"ok"' not in said
    ), said[:300]
    if name not in ("chunk size", "negative chunk", "endless chunk"): assert b" 401 " not in said[:20], said[:100]
    assert "Traceback" not in door.log.read_text()


def test_no_header_can_be_written_through_a_path(door):
    said = door.raw(
        f"GET /apps/%0d%0aset-cookie:%20a=b?token={TOKEN}&x=%0d%0aevil:1 HTTP/1.1\r\nhost: HOST\r\nconnection:"
        " close\r\n\r\n".encode()
    )
    head = said.split(b"\r\n\r\n")[0].lower().split(b"\r\n")
    assert said.startswith(b"HTTP/1.1 303") and not any(
        line.startswith((b"set-cookie: a=b", b"evil")) for line in head
    ), head
    assert f"token={TOKEN}".encode() not in said


def test_a_client_that_leaves_is_one_line(door):
    before = door.log.read_text()
    with socket.create_connection(("127.0.0.1", door.port)) as s:
        s.sendall(POST.replace(b"HOST", f"127.0.0.1:{door.port}".encode()) + b"content-length: 100\r\n\r\ntoken=")
    new = until(lambda: door.log.read_text()[len(before):], 15)
    time.sleep(.3)
    new = door.log.read_text()[len(before):]
    assert new.count("\n") == 1 and "client left" in new, new


def test_guessing_is_slowed_down_by_address_also_behind_the_proxy(tmp_path):
    with Door(tmp_path, proxy="127.0.0.1") as door, door.client() as anybody:
        guess = lambda address, token="no": anybody.post(
            "/login", data={"token": token}, headers={"x-forwarded-for": address}
        ).status_code
        assert {guess("203.0.113.1") for _ in range(30)} == {401}
        late = anybody.post("/login", data={"token": TOKEN}, headers={"x-forwarded-for": "203.0.113.1"})
        assert (
            late.status_code == 429 and int(late.headers["retry-after"]) <= 2 and "too many wrong tokens" in late.text
        )
        assert guess("203.0.113.2") == 401 and guess("203.0.113.2", TOKEN) == 303
        assert guess("203.0.113.1, 203.0.113.3") == 401  # what the proxy itself says counts
        assert door.log.read_text().count("too many wrong tokens") == 1
        until(lambda: guess("203.0.113.1", TOKEN) == 303, 15)


def test_a_session_ends_by_itself_and_by_its_visitor(tmp_path):
    "The cookie is one session's; logged out, a copy of it is worth nothing, and after its hours neither."
    with Door(tmp_path, session=8/3600) as door:
        with door.client() as one, door.client() as two:
            came = one.get("/apps/none?window=2013-06")
            assert came.status_code == 303 and came.headers["location"] == "/login?next=/apps/none%3Fwindow%3D2013-06"
            assert 'value="/apps/none?window=2013-06"' in one.get(came.headers["location"]).text
            entry = one.post("/login", data={"token": VIEWER, "next": "/apps/none?window=2013-06"})
            assert (
                entry.headers["location"] == "/apps/none?window=2013-06"
                and "Max-Age=8;" in entry.headers["set-cookie"]
            )
            for evil in ("//evil.example", "/\\evil.example", "/%5cevil", "https://evil.example", "/%2f/evil"):
                assert one.post("/login", data={"token": VIEWER, "next": evil}).headers["location"] == "/"
            two.get(f"/?token={VIEWER}")
            assert [c.get("/").status_code for c in (one, two)] == [200, 200] and dict(one.cookies) != dict(
                two.cookies
            )
            assert "Log out" in one.get("/").text
            copy, cookie = dict(one.cookies), dict(two.cookies)
            assert one.post("/logout").status_code == 401  # another site's form brings no origin of ours
            out = one.post("/logout", headers={"origin": door.url})
            assert out.status_code == 303 and out.headers["location"] == "/login"
            assert (
                httpx.get(door.url, cookies=copy, trust_env=False).status_code == 401
                and two.get("/").status_code == 200
            )
            time.sleep(8)
            assert httpx.get(door.url, cookies=cookie, trust_env=False).status_code == 401


def test_a_short_token_is_refused_at_the_start(workspace):
    (workspace/"settings.ini").write_text("[apps]\ntoken = short-token-123\n")
    done = subprocess.run(
        [SCALAI, "dash", "--no-browser", "--port", "0"], cwd=workspace, capture_output=True, text=True, timeout=60
    )
    assert (
        done.returncode == 2
        and len(done.stderr.strip().splitlines()) == 2
        and "16 characters" in done.stderr
        and "short-token" not in done.stderr + done.stdout
    )


def test_the_token_is_in_no_process_list(workspace, monkeypatch):
    "The browser is given a private file that leads to the link, and the file is gone at the end."
    (workspace/"browser").write_text('#!/bin/sh\necho "$1" > opened.txt\nexec sleep 5\n')
    (workspace/"browser").chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{workspace}/browser %s &")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(workspace/"runtime"))
    (workspace/"settings.ini").write_text(f"[apps]\ntoken = {TOKEN}\nviewer_token = {VIEWER}\nwarm = 0\n")
    process = started("dash", "--port", "0")
    try:
        assert f"?token={TOKEN}" in process.stdout.readline()
        opened = until(lambda: (workspace/"opened.txt").exists() and (workspace/"opened.txt").read_text().strip(), 30)
        file = Path(opened.removeprefix("file://"))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and f"/?token={TOKEN}" in file.read_text()
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            try: assert TOKEN.encode() not in line.read_bytes(), line
            except OSError: continue
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert not file.exists()
