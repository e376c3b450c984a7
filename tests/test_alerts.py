"Alerts against real receivers: HTTP servers that answer, refuse and hang, a mail server, Debian's Alertmanager."
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import until
from servers import free_port, wait_for

from scalai_nb.core.alerts import Alert, Sender, open_cases, resume, send
from scalai_nb.core.settings import Settings

FAILED = Alert(
    "job failed", "nightly failed: no rows", "nightly", details=dict(attempts=2), run="20261125-020000-a1b2c3"
)


class Ear(http.server.ThreadingHTTPServer):
    "Keep what is sent, and answer with the status that the test sets."
    daemon_threads = True
    def __init__(self, *answers: int):
        self.heard, self.headers, self.answers, ear = [], [], list(answers), self
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                ear.headers.append(self.headers)
                ear.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(ear.answers.pop(0) if ear.answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()
            def log_message(self, *a): pass
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"


def told(root, **alerts) -> Settings: return Settings(root=root, alerts=alerts)


def test_one_that_hangs_and_one_that_refuses_do_not_keep_the_others(tmp_path, capfd):
    good, bad = Ear(), Ear(500, 500)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = told(
            tmp_path,
            webhook=good.url,
            slack=f"http://127.0.0.1:{silent.getsockname()[1]}/hunter2",
            alertmanager=bad.url,
            attempts=2,
            timeout=0.3,
            stdout=True,
        )
        done = send(FAILED, settings)
    assert (done["webhook"], done["stdout"], done["alertmanager"]) == (
        "",
        "",
        "127.0.0.1 answered 500",
    ) and "ReadTimeout" in done["slack"]
    assert (len(good.heard), len(bad.heard)) == (1, 2)
    out, err = capfd.readouterr()
    assert "nightly failed: no rows" in out and "hunter2" not in err and err.count("was not reached") == 2


def test_who_was_not_reached_is_told_next_time(tmp_path):
    good, bad = Ear(), Ear(404, 200)
    settings = told(tmp_path, webhook=good.url, slack=bad.url)
    assert send(FAILED, settings) == {"webhook": "", "slack": "127.0.0.1 answered 404"}
    assert send(FAILED, settings) == {"slack": ""} and send(FAILED, settings) == {}


def test_two_processes_tell_it_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    ear = Ear()
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: send(FAILED, told(tmp_path, webhook=ear.url)), range(8)))
    assert len(ear.heard) == 1 and sorted(map(len, done)) == [0]*7 + [1]


def crashed(settings: Settings, when: str):
    "A process that is killed while it tells: before the receiver got it, or after, before it was marked."
    from scalai_nb.core import alerts
    child = os.fork()
    if child: return os.waitpid(child, 0)
    def dying(alert, settings):
        if when == "after": alerts.webhook(alert, settings)
        os._exit(9)
    alerts.RECEIVERS["webhook"] = dying
    send(FAILED, settings)
    os._exit(0)


@pytest.mark.parametrize("when, copies", [("before", 1), ("after", 2)])
def test_a_crash_between_claim_and_mark_sends_it_again(tmp_path, when, copies):
    """At least once, under the same delivery, so that a receiver can tell; by the next alert, a look, or a scheduler's
    start."""
    other = Alert("late", "other", "other")
    for n, again in enumerate(
        [lambda s: send(FAILED, s), lambda s: send(other, s), resume, lambda s: Sender(s).close()]
    ):
        ear = Ear()
        settings = told(tmp_path/f"{n}", webhook=ear.url)
        crashed(settings, when)
        again(settings)
        mine = [h for h in ear.heard if h["key"] == FAILED.key]
        assert len(mine) == copies and len({h["delivery"] for h in mine}) == 1 and mine[0]["delivery"], (n, mine)
        assert [h["Idempotency-Key"] for h in ear.headers][:copies] == [mine[0]["delivery"]]*copies
        assert mine[-1]["summary"] == FAILED.summary and mine[-1]["at"] == FAILED.to_dict()["at"]
        assert send(FAILED, settings) == {} and [k for k, _ in open_cases(settings) if k == FAILED.key] == [FAILED.key]


def test_the_end_of_a_case_whose_beginning_was_lost(tmp_path):
    ear = Ear()
    settings = told(tmp_path, webhook=ear.url)
    crashed(settings, "before")
    assert send(FAILED.resolve("it works again"), settings) == {"webhook": ""}
    assert [h["resolved"] for h in ear.heard] == [False, True] and len({h["delivery"] for h in ear.heard}) == 2


def test_told_again_after_a_while(tmp_path):
    ear = Ear()
    settings = told(tmp_path, webhook=ear.url, repeat=0)
    assert send(FAILED, settings) == send(FAILED, settings) == {"webhook": ""} and len(ear.heard) == 2


def test_nothing_can_break_the_sender(tmp_path, capfd):
    "Settings that are wrong, a folder where nobody may write, a receiver whose address is missing."
    assert send(FAILED, told(tmp_path, webhook="nowhere")) == {}
    (tmp_path/"file").touch()
    ear = Ear()
    # it cannot be remembered, so it is told
    assert send(FAILED, Settings(root=tmp_path/"file", alerts=dict(webhook=ear.url))) == {"webhook": ""}
    assert "is not there" in send(FAILED, told(tmp_path, slack="env:NO_SUCH_THING"))["slack"]
    assert "Traceback" not in capfd.readouterr().err


def test_a_sender_that_closes_does_not_wait_for_ever(tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sender = Sender(told(tmp_path, webhook=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=30))
        began = time.monotonic()
        for n in range(3): sender.send(Alert("late", f"late {n}", f"s{n}"))
        assert time.monotonic() - began < 20  # handing on does not wait
        sender.close(within=.2)
        assert time.monotonic() - began < 25 and "2 alerts were not sent" in capfd.readouterr().err
    sender.thread.join(30)
    assert not sender.thread.is_alive()
    assert "late 1" not in capfd.readouterr().err  # what was given up is not tried later


class Mail:
    "What a mail server was given."
    def __init__(self): self.mails = []
    async def handle_DATA(self, server, session, envelope):
        self.mails.append(envelope)
        return "250 taken"


def post(handler, **how):
    from aiosmtpd.controller import Controller
    controller = Controller(handler, hostname="127.0.0.1", port=free_port(), **how)
    controller.start()
    return controller


def test_mail_arrives_and_its_password_is_a_reference(tmp_path, monkeypatch):
    from email import message_from_bytes, policy

    from aiosmtpd.smtp import AuthResult, LoginPassword
    mail, seen = Mail(), []

    def login(server, session, envelope, mechanism, data):
        seen.append(data)
        return AuthResult(success=data == LoginPassword(b"ann", b"hunter2"), handled=False)
    controller = post(mail, authenticator=login, auth_require_tls=False, auth_required=True)
    monkeypatch.setenv("MAIL_PASSWORD", "hunter2")
    settings = told(
        tmp_path,
        email=f"smtp://ann@127.0.0.1:{controller.port}",
        email_from="scalai@example.org",
        email_to="bea@example.org, cem@example.org",
        email_password="env:MAIL_PASSWORD",
    )
    try:
        assert send(FAILED, settings) == {"email": ""}
        monkeypatch.setenv("MAIL_PASSWORD", "wrong")
        # by PLAIN and by LOGIN; a refused login is not tried again
        assert (
            send(FAILED.resolve("nightly works again"), settings) == {"email": "the mail server answered 535"}
            and len(seen) == 3
        )
    finally:
        controller.stop()
    envelope, = mail.mails
    text = message_from_bytes(envelope.content, policy=policy.default)
    assert (
        envelope.rcpt_tos == ["bea@example.org", "cem@example.org"]
        and text["Subject"] == "[error] nightly: nightly failed: no rows"
        and "attempts: 2" in text.get_content()
    )


def test_a_mail_server_that_hangs_or_is_busy(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        how = dict(
            email=f"smtp://127.0.0.1:{silent.getsockname()[1]}",
            email_from="a@example.org",
            email_to="b@example.org",
            timeout=0.3,
            attempts=1,
        )
        assert send(FAILED, told(tmp_path, **how))["email"] == "SMTPServerDisconnected"  # smtplib's word for it

    class Busy(Mail):
        async def handle_RCPT(self, server, session, envelope, address, options):
            if len(self.mails) == 0 and not getattr(self, "asked", False):
                self.asked = True
                return "451 later"
            envelope.rcpt_tos.append(address)
            return "250 taken"
    busy = Busy()
    controller = post(busy)
    try:
        done = send(
            FAILED, told(tmp_path, **how | dict(email=f"smtp://127.0.0.1:{controller.port}", timeout=5, attempts=2))
        )
    finally:
        controller.stop()
    assert done == {"email": ""} and len(busy.mails) == 1


@contextmanager
def alertmanager(folder: Path, ear: Ear):  # its base URL
    "Debian's Alertmanager, which tells an ear at once."
    import httpx
    program = shutil.which("prometheus-alertmanager")
    assert program, "Alertmanager is not installed: apt-get install prometheus-alertmanager"
    port, config = free_port(), folder/"am.yml"
    config.write_text(
        "route: {receiver: ear, group_by: ['...'], group_wait: 0s, group_interval: 1s}\nreceivers: [{name: ear,"
        f" webhook_configs: [{{url: '{ear.url}', send_resolved: true}}]}}]\n"
    )
    with subprocess.Popen(
        [
            program,
            f"--config.file={config}",
            f"--storage.path={folder}/am",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for(port, process)
            until(lambda: httpx.get(f"http://127.0.0.1:{port}/api/v2/alerts").status_code == 200)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.slow
def test_debian_s_alertmanager_opens_and_resolves(tmp_path):
    import httpx
    with alertmanager(tmp_path, ear := Ear()) as url:
        settings, open_ = told(tmp_path, alertmanager=url), lambda: httpx.get(f"{url}/api/v2/alerts").json()
        assert send(FAILED, settings) == {"alertmanager": ""}
        one, = open_()
        assert (
            one["labels"]["alertname"],
            one["labels"]["source"],
            one["annotations"]["summary"],
            one["status"]["state"] != "suppressed",
        ) == ("job failed", "nightly", FAILED.summary, True)
        assert send(FAILED.resolve("nightly works again"), settings) == {"alertmanager": ""}
        until(lambda: [h["status"] for h in ear.heard] == ["firing", "resolved"])
        assert open_() == []
