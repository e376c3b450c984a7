"The HTTP service in operation: hangs, long batches, workers that are gone, canary, shadow, access and overload."
import hashlib
import json
import signal
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import onnx.helper as helper
import psutil
import pyarrow as pa
import pytest
import test_serve
from conftest import scalai, until
from onnx import TensorProto, numpy_helper
from test_serve import ARROW, GOOD, serving, stream, workers

from scalai_nb.core.settings import Settings
from scalai_nb.data.hashing import hash64
from scalai_nb.training.pointer import Pointer, pointer_path
from scalai_nb.training.registry import Registry

made, own = test_serve.made, test_serve.own


def settings(folder: Path, **serve):
    lines = [f"{k} = {v}" for k, v in serve.items()]
    (folder/"settings.ini").write_text("\n".join(["[workspace]", "home = .scalai", "[serve]", *lines, ""]))


def metric(url: str, name: str) -> float | None:
    lines = [line for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines() if line.startswith(name)]
    return float(lines[0].split()[-1]) if lines else None


def slow_model(path: Path):
    "A file that multiplies matrices as often as the largest x of a batch says; its score is x."
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("MatMul", ["m", "w"], ["p"]), helper.make_node("Clip", ["p", "low", "high"], ["m_out"]),
         helper.make_node("Identity", ["go"], ["go_out"])], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("m", TensorProto.FLOAT, [512, 512])],
        [info("go_out", TensorProto.BOOL, []), info("m_out", TensorProto.FLOAT, [512, 512])])
    nodes = [helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
             helper.make_node("Cast", ["most"], ["times"], to=TensorProto.INT64),
             helper.make_node("Loop", ["times", "yes", "w"], ["last"], body=body),
             helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
             helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
             helper.make_node("Cast", ["x"], ["small"], to=TensorProto.FLOAT),
             helper.make_node("Add", ["small", "nothing"], ["score"])]
    known = {"w": np.full((512, 512), .001, np.float32), "yes": np.array(True), "zero": np.float32(0),
             "low": np.float32(-1), "high": np.float32(1)}
    graph = helper.make_graph(nodes, "slow", [info("x", TensorProto.DOUBLE, ["N"])],
                              [info("score", TensorProto.FLOAT, ["N"])],
                              [numpy_helper.from_array(np.asarray(v), k) for k, v in known.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def point_to_slow(folder: Path):
    "Let the champion be a slow version, as a promotion would."
    slow_model(folder/"slow.onnx")
    path = pointer_path(folder/".scalai", "churn")
    digest = hashlib.sha256((folder/"slow.onnx").read_bytes()).hexdigest()
    entry = {"version": 9, "path": "slow.onnx", "sha256": digest, "task": "regression", "inputs": [["x", "number"]],
             "classes": [], "threshold": .5, "table": "", "example": [{"x": 0}]}
    pointer = json.loads(path.read_text())
    path.write_text(json.dumps(pointer | {"aliases": {"champion": 9}, "versions": {"9": entry}}))


def times_for(url: str, seconds: float) -> int:
    "How often a slow version has to multiply to be busy for so long."
    start, each = time.perf_counter(), 200
    httpx.post(f"{url}/models/churn/predict", json={"rows": [{"x": each}]}, timeout=60).raise_for_status()
    return int(each*seconds/(time.perf_counter() - start))


@pytest.mark.parametrize("count", ["0", "-2"])
def test_workers_that_cannot_be_are_refused_in_settings_too(own, count):
    settings(own, workers=count)
    done = scalai("serve", "churn", "--port", "0", cwd=own)
    assert done.code == 2 and "workers" in done.err and len(done.err.strip().splitlines()) == 2, done.err


@pytest.mark.slow
def test_a_long_batch_is_no_hang_and_a_call_without_end_is(own):
    settings(own, hang=2, call_timeout=9)
    with serving(own, "churn", "--workers", "1") as (url, process):
        point_to_slow(own)
        predict = f"{url}/models/churn/predict"
        assert until(lambda: httpx.get(f"{url}/healthz").json()["models"]["churn"]["version"] == 9)
        times, (worker,) = times_for(url, 6), workers(process)
        with httpx.Client(timeout=90) as client:
            assert client.post(predict, json={"rows": [{"x": times}]}).json()["rows"] == [{"prediction": times}]
        assert [p.pid for p in workers(process)] == [worker.pid] and metric(url, "scalai_serve_restarts") == 0
        with httpx.Client(timeout=90) as client, pytest.raises(httpx.HTTPError):
            client.post(predict, json={"rows": [{"x": 20*times}]})
        assert until(lambda: workers(process) and workers(process)[0].pid != worker.pid)
        assert until(lambda: httpx.post(predict, json={"rows": [{"x": 0}]}).status_code == 200)
        assert metric(url, "scalai_serve_restarts") == 1


def test_nobody_waits_for_a_long_call_to_be_refused(own):
    "The queue is full of one row in a long call; health, refusals and new connections come before its end."
    settings(own, queue=1)
    with serving(own, "churn", "--workers", "1") as (url, process):
        point_to_slow(own)
        predict = f"{url}/models/churn/predict"
        assert until(lambda: httpx.get(f"{url}/healthz").json()["models"]["churn"]["version"] == 9)
        send = lambda times, path=predict: httpx.post(path, json={"rows": [{"x": times}]}, timeout=90)
        times = times_for(url, 5)  # and a pace that says that it is long
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(send, times)
            assert until(lambda: httpx.get(f"{url}/healthz").json()["models"]["churn"]["queued_rows"] == 1)
            refused, infer = send(1), send(1, f"{url}/v2/models/churn/infer")
            assert not long.done() and (refused.status_code, infer.status_code) == (503, 503)
            assert refused.json()["error"]["kind"] == "busy" and "rows are waiting" in infer.json()["error"]
            assert long.result().json()["rows"] == [{"prediction": times}]
        assert metric(url, 'scalai_serve_seconds_count{code="503",model="churn",version="0"}') == 2


def test_who_hangs_up_after_a_large_body_costs_no_call(own):
    "Its body came in full, and waited behind a long call; uvicorn would not read on by itself."
    with serving(own, "churn", "--workers", "1") as (url, process):
        point_to_slow(own)
        predict, (host, port) = f"{url}/models/churn/predict", url.removeprefix("http://").split(":")
        models = lambda: httpx.get(f"{url}/healthz").json()["models"]["churn"]
        assert until(lambda: models()["version"] == 9)
        times, name = times_for(url, 4), 'scalai_serve_rows_total{model="churn",version="9"}'
        body, before = json.dumps({"rows": [{"x": 1}]}).encode() + b" "*200_000, metric(url, name)
        head = f"POST {predict} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(httpx.post, predict, json={"rows": [{"x": times}]}, timeout=90)
            assert until(lambda: models()["queued_rows"] == 1)
            with ExitStack() as stack:
                gone = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(8)]
                for s in gone: s.sendall(head.encode())
                assert until(lambda: httpx.get(f"{url}/healthz").json()["in_flight"] == 9)
                for s in gone: s.sendall(body)
                assert until(lambda: models()["queued_rows"] == 9)
            assert long.result().status_code == 200
        assert until(lambda: metric(url, 'scalai_serve_seconds_count{code="499",model="churn",version="0"}') == 8)
        assert metric(url, name) == before + 1


def test_the_address_answers_while_no_worker_does(own):
    "Both are stopped, then killed: health says so, counts stay, the wait is short; then they are replaced."
    settings(own, hang=20)  # longer than what is asked of the parent takes on a busy machine
    with serving(own, "churn", "--workers", "2") as (url, process):
        predict = lambda: httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}, timeout=60)
        assert predict().status_code == 200
        ready = {"wanted": 2, "running": 2, "answering": 2, "restarts": 0, "reason": ""}
        assert until(lambda: httpx.get(f"{url}/healthz").json()["workers"] == ready)
        for p in workers(process): p.suspend()
        health = lambda: httpx.get(f"{url}/healthz", timeout=20)
        assert health().status_code == 503 and until(lambda: "2 of them hang" in health().json()["reason"])
        refused = predict()
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["kind"] == "no_worker"
        infer = httpx.post(f"{url}/v2/models/churn/infer", json={}, timeout=20).json()
        assert infer["error"].startswith("No worker answers.")  # as V2 has it
        assert metric(url, 'scalai_serve_seconds_count{code="503",model="churn",version="0"}') == 2
        assert metric(url, 'scalai_serve_rows_total{model="churn",version="1"}') == 1
        assert metric(url, "scalai_serve_workers_answering") == 0
        assert until(lambda: predict().status_code == 200)  # killed, and replaced
        assert until(lambda: httpx.get(f"{url}/healthz").json()["workers"]["answering"] == 2)
        assert metric(url, "scalai_serve_restarts") == 2
        assert {predict().status_code for _ in range(20)} == {200}


def test_a_machine_that_stood_still_costs_no_worker(own):
    "Parent and workers are stopped together for longer than a hang may take, as where a laptop sleeps."
    settings(own, hang=3)
    with serving(own, "churn", "--workers", "2") as (url, process):
        predict = lambda: httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}, timeout=60)
        fleet = lambda: httpx.get(f"{url}/healthz", timeout=60).json()["workers"]
        assert predict().status_code == 200 and until(lambda: fleet()["answering"] == 2)
        before = {p.pid for p in workers(process)}
        everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for p in everybody: p.suspend()
        time.sleep(5)
        for p in everybody: p.resume()
        assert {predict().status_code for _ in range(20)} == {200}
        assert until(lambda: fleet()["answering"] == 2)
        assert fleet()["restarts"] == 0 and {p.pid for p in workers(process)} == before


def test_one_worker_that_is_killed_costs_no_refusal(own):
    "Connections wait for its successor."
    with serving(own, "churn", "--workers", "1") as (url, process):
        for _ in range(2):
            workers(process)[0].kill()
            assert httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}, timeout=20).status_code == 200
        assert until(lambda: metric(url, "scalai_serve_restarts") == 2)


def test_a_canary_is_sticky_by_key_and_a_shadow_answers_nobody(own):
    with open(own/"models/churn.toml", "a") as f: f.write("[serve]\ncanary = 0.3\n")
    keys = [f"{i:06}" for i in range(150)]
    want = {k: "2" if share < .3 else "1" for k, share in zip(keys, hash64(pa.array(keys))/2**64)}
    with serving(own, "churn", "--workers", "2") as (url, process):
        send = lambda rows, **more: httpx.post(f"{url}/models/churn/predict", json={"rows": rows}, timeout=30, **more)
        version = lambda key: send([GOOD | {"customer_id": key}]).headers["x-model-version"]
        assert {version(k) for k in keys[:20]} == {"1"}
        Registry(Settings(root=own)).set_trial("churn", "canary", 2)
        tried = lambda what: all(what in httpx.get(f"{url}/healthz").json()["models"]["churn"] for _ in range(20))
        assert until(lambda: tried("canary"))
        for _ in range(2):
            with ThreadPoolExecutor(8) as pool: assert dict(zip(keys, pool.map(version, keys))) == want
        one, two = (next(k for k in keys if want[k] == v) for v in ("1", "2"))
        both = send([GOOD | {"customer_id": k} for k in (two, one)])  # one answer, one version: that of the first key
        assert both.json()["model_version"] == 2 and len(both.json()["rows"]) == 2
        table = pa.Table.from_pylist([GOOD | {"region": "a", "customer_id": k} for k in (one, two)])
        table = table.set_column(4, "since", pa.array([0, 0], pa.timestamp("us")))
        arrow = httpx.post(f"{url}/models/churn/predict", content=stream(table), headers=ARROW)
        assert set(pa.ipc.open_stream(arrow.content).read_all()["model_version"].to_pylist()) == {1}
        unkeyed = [{send([GOOD | {"tenure": t}]).headers["x-model-version"] for _ in range(4)} for t in range(30)]
        assert {len(v) for v in unkeyed} == {1} and set.union(*unkeyed) == {"1", "2"}
        count = sum(v == "2" for v in want.values())*2 + 2 + 4*sum(v == {"2"} for v in unkeyed)
        assert metric(url, 'scalai_serve_rows_total{model="churn",version="2"}') == count
        Registry(Settings(root=own)).set_trial("churn", "canary", None)
        Registry(Settings(root=own)).set_trial("churn", "shadow", 2)
        assert until(lambda: tried("shadow") and not any("canary" in httpx.get(f"{url}/healthz").text for _ in "ab"))
        assert {version(k) for k in keys[:40]} == {"1"}
        name = 'scalai_serve_shadow_rows_total{model="churn",outcome="scored",version="2"}'
        assert until(lambda: metric(url, name) == 40), httpx.get(f"{url}/metrics", timeout=30).text
        assert metric(url, 'scalai_serve_rows_total{model="churn",version="2"}') == count  # as before


def test_the_aliases_of_trials_are_set_and_cleared(own):
    aliases = lambda: Pointer.load(pointer_path(own/".scalai", "churn")).aliases
    say = lambda *words: scalai("models", *words, cwd=own)
    assert say("alias", "churn", "canary", "2").code == 0 and aliases()["canary"] == 2
    assert say("alias", "churn", "shadow", "challenger").code == 0 and aliases()["shadow"] == 2
    assert say("alias", "churn", "shadow", "--remove").code == 0 and "shadow" not in aliases()
    for words, message in ((["champion", "2"], "Unknown alias"), (["canary", "1"], "is the champion"),
                           (["canary"], "Which version"), (["canary", "7"], "no version 7"),
                           (["canary", "2", "--remove"], "Which version")):
        done = say("alias", "churn", *words)
        assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 2, done.err
    assert say("alias", "chrun", "canary", "--remove").code == 2
    Registry(Settings(root=own)).promote("churn", 2, "better")
    assert aliases() == {"champion": 2, "previous": 1}
    Registry(Settings(root=own)).set_trial("churn", "shadow", 1)
    Registry(Settings(root=own)).refuse("churn", 1, "worse")
    assert aliases() == {"champion": 2, "previous": 1}


def certificate(folder: Path) -> str:
    "A certificate of this machine and its key, in the files that the settings name; its serial number."
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
                    str(folder/"tls.key"), "-out", str(folder/"tls.pem")], check=True, capture_output=True)
    return ssl.PEM_cert_to_DER_cert((folder/"tls.pem").read_text()).hex()


def test_tls_is_read_anew_and_files_that_do_not_fit_change_nothing(own):
    settings(own, cert="tls.pem", key="tls.key", hang=5)
    done = scalai("serve", "churn", "--port", "0", cwd=own)
    assert done.code == 2 and "[serve] cert" in done.err and len(done.err.strip().splitlines()) == 2, done.err
    first = certificate(own)
    with serving(own, "churn", "--workers", "2") as (url, process):
        assert url.startswith("https://")
        port = int(url.rsplit(":", 1)[1])
        shown = lambda: ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port), timeout=20)).hex()
        trust = ssl.create_default_context(cafile=str(own/"tls.pem"))
        with httpx.Client(verify=trust) as client:
            found = client.post(f"{url}/models/churn/predict", json={"rows": [GOOD]*30})
            assert found.status_code == 200 and len(found.json()["rows"]) == 30 and "server" not in found.headers
        with pytest.raises(httpx.HTTPError): httpx.get(url.replace("https", "http") + "/healthz")
        assert shown() == first
        (own/"tls.key").write_text("no key")
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert {shown() for _ in range(6)} == {first}
        second = certificate(own)
        process.send_signal(signal.SIGHUP)
        assert until(lambda: {shown() for _ in range(6)} == {second}) and second != first
        for p in workers(process): p.suspend()
        trust = ssl.create_default_context(cafile=str(own/"tls.pem"))
        assert httpx.get(f"{url}/healthz", verify=trust, timeout=20).status_code == 503  # the parent speaks TLS, too


def raw(url: str, message: bytes, timeout: float = 15) -> bytes:
    "What a server answers to bytes, until it closes the connection or says no more for a second."
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as s:
        s.sendall(message)
        found = b""
        try:
            while part := s.recv(65_536):
                found += part
                s.settimeout(1)
        except TimeoutError: pass
        return found


BODY = json.dumps({"rows": [GOOD]}).encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def address(made):
    with serving(made, "churn", "--workers", "1") as (url, _): yield url


@pytest.mark.parametrize("head", [
    LENGTH + b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\n" + LENGTH, LENGTH + LENGTH,
    LENGTH + b"Content-Length: 3\r\n", b"Content-Length: 3, 3\r\n", b"Content-Length: +3\r\n",
    b"Content-Length: 0x3\r\n",
    b"Content-Length: -3\r\n", b"Content-Length: \r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length : 3\r\n", b"X-A: a\r\n b\r\n" + LENGTH, b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n", b"X-A: a\n" + LENGTH, b"X-A: a\x00b\r\n" + LENGTH, b"Host: y\r\n" + LENGTH,
    b"Connection: upgrade\r\nUpgrade: h2c\r\n" + LENGTH,
], ids=lambda v: v.decode("latin-1")[:50])
def test_what_two_servers_could_read_differently_is_refused(address, head):
    "One 400, then the connection ends: what follows is not taken for another request."
    start = b"POST /models/churn/predict HTTP/1.1\r\nHost: x\r\n"
    for body in (BODY, CHUNKED):
        found = raw(address, start + head + b"\r\n" + body + SMUGGLED)
        assert found.startswith(b"HTTP/1.1 400 ") and found.count(b"HTTP/1.1 ") == 1, found
        assert b"server:" not in found.lower() and b"uvicorn" not in found.lower()
        wrong = json.loads(found.partition(b"\r\n\r\n")[2])["error"]
        assert wrong["kind"] == "http" and ("an upgrade to 'h2c'" in wrong["message"]) == (b"h2c" in head)


def test_plain_heads_are_served_and_others_are_not(address):
    start = b"POST /models/churn/predict HTTP/1.1\r\nHost: x\r\n"
    both = raw(address, start + LENGTH + b"\r\n" + BODY + start + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED)
    assert both.count(b"HTTP/1.1 200 ") == 2, both
    assert raw(address, start.replace(b"1.1", b"1.0") + LENGTH + b"\r\n" + BODY).startswith(b"HTTP/1.1 200 ")
    for message in (start.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
                    start.replace(b"1.1", b"2.0") + LENGTH + b"\r\n" + BODY,
                    start.replace(b"Host: x\r\n", b"") + LENGTH + b"\r\n" + BODY,
                    start.replace(b"\r\n", b"\n") + LENGTH + b"\r\n" + BODY, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"):
        assert raw(address, message).startswith(b"HTTP/1.1 400 "), message
    for path in (b"/models/../../etc/passwd", b"/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd/predict", b"/models//predict",
                 b"/models/churn%00/predict", b"/static/..%2fworker.py", b"/static/../../worker.py",
                 b"//etc/passwd", b"/models/..\\..\\x/predict"):
        for method in (b"GET", b"POST"):
            found = raw(address, method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert found.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")) and b"root:" not in found, (path, found)


def test_connections_that_take_their_time_are_cut(own):
    settings(own, body_timeout=1)
    with serving(own, "churn", "--workers", "1") as (url, _):
        host, port = url.removeprefix("http://").split(":")
        start = b"POST /models/churn/predict HTTP/1.1\r\nHost: x\r\n"
        raw_refused = b"POST /nothing HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n{"
        for sent in (b"POS", start, b"\r\n", raw_refused):
            with socket.create_connection((host, int(port)), timeout=20) as s:
                s.sendall(sent)
                began, data = time.monotonic(), b""
                try:
                    while part := s.recv(65_536):
                        data += part
                        s.sendall(b" ")  # a byte now and then does not help
                except OSError: pass
                assert time.monotonic() - began < 8, sent
                assert data.startswith(b"HTTP/1.1 404 ") if sent is raw_refused else not data
        with socket.create_connection((host, int(port)), timeout=20) as s:  # an idle connection is no slow one
            s.sendall(start + LENGTH + b"\r\n" + BODY)
            assert s.recv(65_536).startswith(b"HTTP/1.1 200 ")
            time.sleep(2.5)
            s.sendall(start + LENGTH + b"\r\n" + BODY)
            assert s.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_clients_are_limited_by_name_over_all_workers(own):
    made = {name: scalai("serve", "--new-token", name, "--json", cwd=own).doc for name in ("web", "night")}
    settings(own, tokens=", ".join(m["entry"] for m in made.values()), client_rate=10, client_rows=50,
             origins="https://shop.example")
    with serving(own, "churn", "--workers", "2") as (url, _), httpx.Client(timeout=30) as client:
        def send(name, rows=1, **headers):
            return client.post(f"{url}/models/churn/predict", json={"rows": [GOOD]*rows},
                               headers={"authorization": f"Bearer {made[name]['token']}", **headers})
        with ThreadPoolExecutor(8) as pool: answers = list(pool.map(lambda _: send("web"), range(200)))
        codes = [a.status_code for a in answers]
        assert set(codes) == {200, 429} and codes.count(200) >= 10, codes
        assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)
        pinned = lambda _: client.post(f"{url}/v2/models/churn/versions/1/infer", json={"inputs": []},
                                       headers={"authorization": f"Bearer {made['web']['token']}"})
        with ThreadPoolExecutor(8) as pool: found = list(pool.map(pinned, range(200)))
        limited = [r for r in found if r.status_code == 429]  # by whatever path, in the form that it has
        assert limited and all(r.json()["error"].startswith("The client sends more than") for r in limited)
        page = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {made['web']['token']}"}).text
        counted = 'scalai_serve_seconds_count{code="429",model="churn",version="0"} '
        count = codes.count(429) + len(limited)
        assert [line for line in page.splitlines() if line.startswith(counted)] == [f"{counted}{count:.1f}"]
        assert send("night").status_code == 200  # another client is as it was
        assert (send("night", 51).status_code, send("night", 50).status_code) == (413, 200)
        assert "access-control-allow-origin" not in send("night").headers
        ours = send("night", origin="https://shop.example")
        assert ours.headers["access-control-allow-origin"] == "https://shop.example"
        assert "access-control-allow-origin" not in send("night", origin="https://evil.example").headers
        ask = {"origin": "https://shop.example", "access-control-request-method": "POST"}
        asked = httpx.options(f"{url}/models/churn/predict", headers=ask)
        assert asked.status_code == 204 and "authorization" in asked.headers["access-control-allow-headers"]
        assert httpx.options(f"{url}/models/churn/predict", headers=ask | {"origin": "https://x"}).status_code == 401
