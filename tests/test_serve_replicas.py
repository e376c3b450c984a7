"Several services behind one address: what is passed on, and that nothing is lost when one dies or hangs."
import json
import subprocess
import time
from contextlib import ExitStack

import httpx
import psutil
import pytest
from conftest import scalai, until
from test_serve import GOOD, LOAD, made, serving  # noqa: F401
from test_serve_operations import metric


def address(url: str) -> str: return url.removeprefix("http://")


def family(process: subprocess.Popen) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def test_a_front_passes_on_what_it_gets_and_answers_for_all(made, tmp_path):  # noqa: F811
    "Also with a replica that is not there, which costs no answer."
    (tmp_path/"settings.ini").write_text("")
    with serving(made, "churn", "--workers", "1") as (url, _), \
         serving(tmp_path, "--replicas", f"127.0.0.1:9,{address(url)}") as (front, process):
        own, through = (httpx.post(f"{u}/models/churn/predict", json={"rows": [GOOD]}) for u in (url, front))
        assert through.status_code == 200 and through.json()["rows"] == own.json()["rows"]
        assert through.headers["x-model-version"] == "1"
        bad = httpx.post(f"{front}/models/churn/predict", json={"rows": [GOOD | {"charge": "x"}]},
                         headers={"x-request-id": "mine"})
        assert bad.status_code == 422 and bad.json()["request_id"] == bad.headers["x-request-id"] == "mine"
        csv = httpx.post(f"{front}/models/churn/predict?partial=1", content="x\n1\n",
                         headers={"content-type": "text/csv"})
        assert csv.status_code == 422
        for path in ("/openapi.json", "/models/churn", "/v2/models/churn"):
            assert httpx.get(front + path).text == httpx.get(url + path).text.replace(address(url), address(front))
        head = httpx.head(f"{front}/openapi.json")
        assert head.status_code == 200 and int(head.headers["content-length"]) > 100
        assert httpx.get(f"{front}/nothing").status_code == 404
        health = httpx.get(f"{front}/healthz").json()
        assert [r["up"] for r in health["replicas"]] == [False, True] and health["status"] == "ok"
        assert metric(front, f'scalai_front_replica_up{{replica="{address(url)}"}}') == 1
        assert metric(front, 'scalai_front_seconds_count{code="422"}') == 2
    assert process.returncode == 0


@pytest.mark.parametrize(("words", "message"), [
    (["--replicas", "here"], "--replicas has 'here', expected HOST:PORT."),
    (["churn", "--replicas", "a:1"], "--replicas and the model 'churn' are not possible together."),
    (["--replicas", "@none"], "--replicas cannot read none: No such file or directory."),
    (["--replicas", "a:1,a:1"], "--replicas names a:1 twice.")], ids=str)
def test_a_front_that_cannot_be_is_refused_in_two_lines(tmp_path, words, message):
    done = scalai("serve", *words, cwd=tmp_path)
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 2, done.err


@pytest.mark.slow
def test_one_replica_is_killed_and_one_hangs_and_nothing_is_lost(made, tmp_path):  # noqa: F811
    (tmp_path/"settings.ini").write_text("")
    (tmp_path/"row.json").write_text(json.dumps({"rows": [GOOD]}))
    with ExitStack() as stack:
        three = [stack.enter_context(serving(made, "churn", "--workers", "1")) for _ in range(3)]
        replicas = ",".join(address(url) for url, _ in three)
        front, _ = stack.enter_context(serving(tmp_path, "--replicas", replicas))
        states = lambda: [(r["up"], r["ejections"]) for r in httpx.get(f"{front}/healthz").json()["replicas"]]
        command = [*LOAD, f"{front}/models/churn/predict", str(tmp_path/"row.json"), "16", "86400"]
        load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert until(lambda: min(r["answered"] for r in httpx.get(f"{front}/healthz").json()["replicas"]) > 100)
            for p in reversed(family(three[0][1])): p.kill()
            assert until(lambda: states()[0] == (False, 1))
            stopped = family(three[1][1])
            for p in stopped: p.suspend()
            assert until(lambda: states()[1] == (False, 1))
            before = httpx.get(f"{front}/healthz").json()["replicas"][2]["answered"]
            assert until(lambda: httpx.get(f"{front}/healthz").json()["replicas"][2]["answered"] > before + 100)
            for p in stopped: p.resume()
            assert until(lambda: states()[1][0])
            time.sleep(1)
        finally:
            load.terminate()
            found = json.loads(load.communicate()[0])
        assert set(found["counts"]) == {"200"} and found["counts"]["200"] > 300, found
        assert httpx.get(f"{front}/healthz").json()["retries"] >= 1
