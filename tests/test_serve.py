"Models over HTTP: what is answered, what is refused, and that nothing is lost when workers and versions come and go."
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
import torch
from conftest import ROOT, SCALAI, scalai, until
from load import generate

from scalai_nb.compression.export import Labels, export
from scalai_nb.core.settings import Settings
from scalai_nb.data.prep import Prep
from scalai_nb.data.profile import profile
from scalai_nb.data.table import Table
from scalai_nb.data.write import write
from scalai_nb.serving import server
from scalai_nb.serving.score import score
from scalai_nb.training.models import MLP
from scalai_nb.training.pointer import Pointer, pointer_path
from scalai_nb.training.registry import Registry
from scalai_nb.training.run import Run

MODELS = {"churn": ("binary", Labels(("no", "yes"))), "plan": ("multiclass", Labels(("basic", "max", "plus"))),
          "charge": ("regression", None)}
WIDTH = {"binary": 1, "multiclass": 3, "regression": 1}
KEY, LOAD = ["customer_id"], [sys.executable, str(ROOT/"tests"/"load.py")]
JSON, ARROW = "application/json", {"content-type": "application/vnd.apache.arrow.stream"}


def customers(rows: int = 1_500) -> pd.DataFrame:
    "Numbers, texts and times, each with missing values; keys with leading zeros."
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "customer_id": [f"{i:06}" for i in range(rows)], "tenure": rng.integers(0, 72, rows),
        "charge": rng.normal(60, 20, rows), "plan": rng.choice(["basic", "plus", "max"], rows),
        "region": rng.choice(["Köln", "🚀", "", "a"*40], rows),
        "since": pd.date_range("2020-01-01", periods=rows, freq="7h"), "member": rng.choice([True, False], rows),
        "tiny": rng.choice([1e-40, -1e-35, 0., 1e300, 5e-324], rows), "churn": rng.choice(["no", "yes"], rows)})
    frame.loc[::17, "charge"] = None
    frame.loc[::13, ["plan", "region"]] = None
    frame.loc[::11, "since"] = pd.NaT
    return frame


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "A workspace with a table and two versions of each of three models, the first of them champion."
    folder = tmp_path_factory.mktemp("made")
    settings, rows = Settings(root=folder), customers()
    write(rows, "customers", settings=settings)
    registry = Registry(settings)
    for name, (task, labels) in MODELS.items():
        known = [c for c in rows.columns if c not in ("customer_id", "churn", name)]
        prep = Prep.fit(profile(rows[known]))
        few = rows[known].head(3).to_json(orient="split", index=False, date_format="iso", date_unit="us")
        for n in (1, 2):
            torch.manual_seed(n)
            model = MLP(len(prep.features), outputs=WIDTH[task]).eval()
            run = Run(id=f"{name}{n}", model=model, prep=prep, target=name, task=task, example=json.loads(few),
                      data={"table": "customers", "version": 0, "rows": len(rows)})
            registry.register(name, export(run.model, prep, folder/f"{n}.onnx", task, target=name, labels=labels), run)
        registry.promote(name, 1, "first")
    for path, text in {"settings.ini": "[workspace]\nhome = .scalai\n",
                       "tables/customers.toml": f"key = {json.dumps(KEY)}\n",
                       "models/churn.toml": 'table = "customers"\ntarget = "churn"\n'}.items():
        (folder/path).parent.mkdir(exist_ok=True)
        (folder/path).write_text(text)
    return folder


@contextmanager
def serving(folder: Path, *words: str):
    "`scalai serve` in a workspace; its address and its process, which is ended in order."
    command = [SCALAI, "serve", *words, "--port", "0", "--json"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)["url"], process
    finally:
        process.send_signal(signal.SIGTERM) if process.poll() is None else None
        try: process.wait(60)
        except subprocess.TimeoutExpired: process.kill()


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for p in psutil.Process(process.pid).children():
        try: found += [p]*("serving.worker" in " ".join(p.cmdline()))
        except psutil.Error: continue  # it has just ended
    return found


@pytest.fixture(scope="module")
def service(made):
    "All three models, by two workers."
    with serving(made, "churn", "plan", "charge", "--workers", "2") as (url, process): yield url, process


@pytest.fixture
def own(made, tmp_path) -> Path:
    "A copy of the workspace, to be changed."
    return Path(shutil.copytree(made, tmp_path/"own"))


def documents(rows: pa.Table, inputs: list[str]) -> list[dict]:
    "Rows as a client would send them."
    text = lambda v: v.isoformat() if hasattr(v, "isoformat") else v
    return [{k: text(v) for k, v in row.items()} for row in rows.select(inputs).to_pylist()]


def inputs(folder: Path, name: str) -> list[str]:
    return [n for n, _ in Pointer.load(pointer_path(folder/".scalai", name)).find().inputs]


def stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer: writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def scored(made) -> dict:
    "What `scalai score` says of each model: an Arrow table."
    settings = Settings(root=made)
    for name in MODELS: score(name, "customers", f"{name}_scores", key=KEY, settings=settings)
    return {name: Table(f"{name}_scores", settings).arrow() for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_each_form_answers_what_score_writes_bit_for_bit(service, made, scored, name):
    url, rows = f"{service[0]}/models/{name}/predict", Table("customers", Settings(root=made)).arrow().slice(0, 200)
    want, known = scored[name].slice(0, 200), inputs(made, name)
    sent = documents(rows, [*KEY, *known]) if name == "churn" else documents(rows, known)
    found = httpx.post(url, json={"rows": sent}).json()
    assert [r["prediction"] for r in found["rows"]] == want["prediction"].to_pylist()
    if name == "churn": assert [r["customer_id"] for r in found["rows"]] == rows["customer_id"].to_pylist()
    columns = httpx.post(url, json={"columns": {c: [r[c] for r in sent] for c in known}}).json()["columns"]
    assert columns["prediction"] == want["prediction"].to_pylist()
    arrow = httpx.post(url, content=stream(rows.select(known)), headers=ARROW)
    table = pa.ipc.open_stream(arrow.content).read_all()
    assert table["prediction"].to_pylist() == want["prediction"].to_pylist()
    assert set(table["model_version"].to_pylist()) == {1}
    if name != "charge":
        assert [r["score"] for r in found["rows"]] == columns["score"] == want["score"].to_pylist()
        assert table["score"].to_pylist() == want["score"].to_pylist()
    if name == "plan":
        assert [r["scores"] for r in found["rows"]] == want["scores"].to_pylist() == table["scores"].to_pylist()
    text = rows.select(known).to_pandas().to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%S")
    lines = httpx.post(url, content=text.encode(), headers={"content-type": "text/csv"}).text.splitlines()
    position = lines[0].split(",").index("prediction")
    kind = (lambda v: np.float32(v)) if name == "charge" else str
    empty = [v is None for v in rows["region"].to_pylist()] if "region" in known else []
    same = [kind(line.split(",")[position]) == kind(w) for line, w in zip(lines[1:], want["prediction"].to_pylist())]
    assert all(s for s, v in zip(same, rows["region"].to_pylist()) if v != "")  # an empty cell is a missing value
    assert len(lines) == 201 and empty


def test_a_score_is_the_same_whatever_shares_its_batch(service, made, scored):
    "Requests of random sizes and forms at the same time, some of them wrong."
    url, known = f"{service[0]}/models/churn/predict", inputs(made, "churn")
    rows, want = Table("customers", Settings(root=made)).arrow(), scored["churn"]["score"].to_pylist()
    sent, rng = documents(rows, known), np.random.default_rng(1)
    starts, sizes = rng.integers(0, 1400, 150).tolist(), rng.choice([1, 1, 1, 2, 7, 60], 150).tolist()
    parts = [(a, a + n) for a, n in zip(starts, sizes)]

    def one(part, i):
        a, b = part
        if i % 7 == 0: return httpx.post(url, json={"rows": [*sent[a:b], {**sent[a], "tenure": "x"}]}, timeout=60)
        if i % 5 == 0:
            return httpx.post(url, content=stream(rows.slice(a, b - a).select(known)), timeout=60, headers=ARROW)
        return httpx.post(url, json={"rows": sent[a:b]}, timeout=60)

    with ThreadPoolExecutor(24) as pool: answers = list(pool.map(one, parts, range(len(parts))))
    for i, ((a, b), answer) in enumerate(zip(parts, answers)):
        if i % 7 == 0: assert (answer.status_code, answer.json()["error"]["row"]) == (422, b - a)
        elif i % 5 == 0: assert pa.ipc.open_stream(answer.content).read_all()["score"].to_pylist() == want[a:b]
        else: assert [r["score"] for r in answer.json()["rows"]] == want[a:b]


GOOD = {"tenure": 3, "charge": 10.5, "plan": "basic", "region": None, "since": "2024-05-01", "member": True, "tiny": 0}


@pytest.mark.parametrize(("body", "status", "kind", "message"), [
    (b"{nope", 400, "json", "not JSON"),
    (b"", 400, "json", "not JSON"),
    (b"\xff\xfe", 400, "json", "not JSON"),
    (b"[" * 100_000, 400, "json", "not JSON"),
    (b'{"rows": [{"tenure": NaN}]}', 400, "json", "not JSON"),
    (b'"rows"', 422, "document", "expected rows or columns"),
    (b"{}", 422, "document", "nothing"),
    (b'{"rows": [], "columns": {}}', 422, "document", "expected rows or columns"),
    (b'{"rows": {}}', 422, "document", "expected a list"),
    (b'{"rows": []}', 422, "empty", "no rows"),
    (b'{"columns": {"tenure": []}}', 422, "missing_column", "is missing"),
    (b'{"rows": [1]}', 422, "row", "expected an object"),
    ({"tenur": 3}, 422, "unknown_column", "Unknown column"),
    ({"tenure": "3"}, 422, "type", "expected a number"),
    ({"tenure": [3]}, 422, "type", "expected a number"),
    ({"plan": 3}, 422, "type", "expected a text"),
    ({"plan": {"a": {"a": 1}}}, 422, "type", "an object"),
    ({"since": 3}, 422, "type", "a time as text"),
    ({"since": "yesterday"}, 422, "type", "a time"),
    ({"customer_id": [1]}, 422, "type", "expected one value"),
    (b'{"rows": [' + json.dumps(GOOD).replace("10.5", "1e999").encode() + b"]}", 422, "not_finite", "finite"),
    (b'{"rows": [' + json.dumps(GOOD).replace("10.5", "9"*400).encode() + b"]}", 422, "not_finite", "finite"),
    (b'{"rows": [' + json.dumps(GOOD).replace('"basic"', '"\\ud800"').encode() + b"]}", 400, "json", "not JSON"),
    (b" "*(17*2**20), 413, "too_long", "bytes"),
], ids=lambda v: str(v)[:30])
def test_what_a_model_cannot_take_is_refused_by_name(service, body, status, kind, message):
    if isinstance(body, dict): body = json.dumps({"rows": [{**GOOD, **body}]}).encode()
    found = httpx.post(f"{service[0]}/models/churn/predict", content=body, headers={"content-type": JSON})
    error = found.json()["error"]
    assert (found.status_code, error["kind"]) == (status, kind) and message in error["message"], error
    assert set(error) == {"kind", "message", "hint", "row", "column"}


def test_near_misses_rows_and_columns_are_named(service):
    predict = f"{service[0]}/models/churn/predict"
    post = lambda *rows, **how: httpx.post(predict, json={"rows": list(rows)}, **how).json()
    error = post(GOOD, {**GOOD, "tenur": 1})["error"]
    assert (error["row"], error["column"], error["hint"]) == (1, "tenur", "Did you mean 'tenure'?")
    lacking = {k: v for k, v in GOOD.items() if k != "plan"}
    assert post(lacking)["error"]["message"] == "Column 'plan' is missing."
    some = post(GOOD, lacking, GOOD, params={"partial": "1"})
    assert [r and sorted(r) for r in some["rows"]] == [["prediction", "score"], None, ["prediction", "score"]]
    assert [e["row"] for e in some["errors"]] == [1] and some["rows"][0] == some["rows"][2]
    whole = post({**GOOD, "churn": "no", "customer_id": 5})  # a record of the table
    assert whole["rows"][0]["customer_id"] == 5
    lost = httpx.post(f"{service[0]}/models/churm/predict", json={})
    assert (lost.status_code, lost.json()["error"]["hint"]) == (404, "Did you mean 'churn'?")
    for path in ("/models/../../etc/passwd/predict", "/models/%2e%2e/x/predict", "/static/../worker.py"):
        assert httpx.post(service[0] + path, json={}).status_code == 404
    assert httpx.get(f"{service[0]}/models/churn/predict").headers["allow"] == "POST"


def test_a_slow_body_is_cut_and_a_client_that_is_gone_costs_nothing(own):
    (own/"settings.ini").write_text("[workspace]\nhome = .scalai\n[serve]\nbody_timeout = 0.5\n")
    with serving(own, "churn", "--workers", "1") as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as s:
            s.sendall(b"POST /models/churn/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            assert s.recv(100).startswith(b"HTTP/1.1 408")
        body = json.dumps({"rows": [GOOD]}).encode()
        for _ in range(20):
            with socket.create_connection((host, int(port))) as s:
                head = f"POST /models/churn/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                s.sendall(head.encode() + body)
        assert httpx.post(f"{url}/models/churn/predict", content=body).status_code == 200
        assert httpx.get(f"{url}/healthz").json()["in_flight"] == 0


def test_a_deadline_and_a_full_queue_are_told_apart(own):
    (own/"settings.ini").write_text("[workspace]\nhome = .scalai\n[serve]\nqueue = 50\n")
    with serving(own, "churn", "--workers", "1") as (url, _):
        predict, rows = f"{url}/models/churn/predict", {"rows": [GOOD]*40}
        assert httpx.post(predict, json=rows, headers={"x-deadline-ms": "soon"}).status_code == 400
        late = httpx.post(predict, json=rows, headers={"x-deadline-ms": "0.0001"})
        assert (late.status_code, late.json()["error"]["kind"]) == (504, "deadline")
        async def many():
            async with httpx.AsyncClient(limits=httpx.Limits(max_connections=60), timeout=60) as client:
                return await asyncio.gather(*(client.post(predict, json=rows) for _ in range(60)))
        answers = asyncio.run(many())
        codes = {a.status_code for a in answers}
        assert codes <= {200, 503} and 200 in codes
        assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 503)


def test_metrics_add_up_over_the_workers(made):
    with serving(made, "churn", "--workers", "2") as (url, process):
        post = lambda _: httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]*3}).status_code
        with ThreadPoolExecutor(8) as pool: assert set(pool.map(post, range(40))) == {200}
        httpx.post(f"{url}/models/churn/predict", json={})
        page = httpx.get(f"{url}/metrics").text
        value = lambda name: float(next(line for line in page.splitlines() if line.startswith(name)).split()[-1])
        assert value('scalai_serve_rows_total{model="churn",version="1"}') == 120
        assert value('scalai_serve_seconds_count{code="200",model="churn",version="1"}') == 40
        assert value('scalai_serve_seconds_count{code="422",model="churn",version="0"}') == 1
        assert until(lambda: "scalai_serve_workers 2.0" in httpx.get(f"{url}/metrics").text)


def test_a_worker_imports_no_frames_networks_or_registry(made, tmp_path, monkeypatch):
    "Asked of a real worker, after it has answered JSON, CSV and Arrow, and shown its pages."
    told = tmp_path/"modules.json"
    monkeypatch.setattr(server, "CODE", "import json, sys; from scalai_nb.serving.worker import main; main(); "
                                        f"open({str(told)!r}, 'w').write(json.dumps(sorted(sys.modules)))")
    settings = Settings(root=made)
    contract = {"mode": "report", "facts": {"plan": {"kind": "text", "pattern": "[a-z]+"}}}
    options = server.ModelOptions("churn", ("customer_id",), contract=contract)
    config = server.configuration([options], tmp_path, 1, settings)
    (tmp_path/"worker.json").write_text(json.dumps(config))
    (tmp_path/"metrics").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = server.start_child(tmp_path/"worker.json", listener, str(tmp_path/"metrics"), 1)
        child.control.setblocking(True)
        assert b"ready" in child.control.recv(100)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        predict, row = f"{url}/models/churn/predict", GOOD | {"region": "a", "customer_id": "1"}
        table = pa.Table.from_pylist([row])
        table = table.set_column(4, "since", pa.array([0], pa.timestamp("us")))
        assert httpx.post(predict, json={"rows": [GOOD]}).status_code == 200
        arrow = httpx.post(predict, content=stream(table), headers=ARROW)
        assert arrow.status_code == 200, arrow.text
        text = ",".join(GOOD) + "\n" + ",".join("" if v is None else str(v) for v in GOOD.values()) + "\n"
        assert httpx.post(predict, content=text.encode(), headers={"content-type": "text/csv"}).status_code == 200
        assert httpx.post(f"{url}/invocations", json={"inputs": [GOOD]}).status_code == 200
        tensors = [{"name": n, "shape": [1], "data": [GOOD[n]], "datatype": "BYTES" if n in ("plan", "region", "since")
                    else "BOOL" if n == "member" else "FP64"} for n in GOOD]
        infer = httpx.post(f"{url}/v2/models/churn/infer", json={"inputs": tensors})
        assert infer.status_code == 200, infer.text
        for page in ("/", "/models/churn", "/openapi.json", "/metrics", "/healthz", "/static/model.js", "/v2", "/ping",
                     "/version"):
            assert httpx.get(url + page).status_code == 200, page
        child.say("drain")
        assert child.process.wait(30) == 0
    heavy = {"torch", "pandas", "mlflow", "dask", "distributed", "numba", "deltalake", "sklearn", "lightgbm", "scipy",
             "onnx"}
    found = {m.partition(".")[0] for m in json.loads(told.read_text())}
    assert not found & heavy and "pyarrow" in found
    assert "scalai_nb.training.registry" not in json.loads(told.read_text())


def test_a_promotion_is_followed_and_a_bad_file_is_not(own):
    registry = Registry(Settings(root=own))
    with serving(own, "churn", "--workers", "2") as (url, p):
        version = lambda: httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}).headers["x-model-version"]
        everywhere = lambda wanted: {version() for _ in range(8)} == {wanted}
        assert version() == "1"
        registry.promote("churn", 2, "better")
        assert until(lambda: everywhere("2"))
        registry.rollback("churn")
        assert until(lambda: everywhere("1"))
        file = registry.version("churn", 2).path
        content = file.read_bytes()
        file.write_bytes(content[:1000])
        pointer = json.loads((path := pointer_path(own/".scalai", "churn")).read_text())
        path.write_text(json.dumps(pointer | {"aliases": {"champion": 2}}))
        p.send_signal(signal.SIGHUP)
        error = until(lambda: httpx.get(f"{url}/healthz").json()["models"]["churn"]["error"])
        assert error["kind"] == "model_file" and everywhere("1")
        assert 'scalai_serve_swaps_total{model="churn",outcome="failed"}' in httpx.get(f"{url}/metrics").text
        path.write_text('{"name": "chu')
        p.send_signal(signal.SIGHUP)
        assert until(lambda: "whole pointer" in str(httpx.get(f"{url}/healthz").json()["models"]["churn"]["error"]))
        file.write_bytes(content)
        path.write_text(json.dumps(pointer | {"aliases": {"champion": 2}}))
        p.send_signal(signal.SIGHUP)
        assert until(lambda: everywhere("2"))


def test_a_version_by_its_number_stays(own):
    with serving(own, "churn@2", "--workers", "1") as (url, _):
        predict = lambda: httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}).json()["model_version"]
        assert predict() == 2
        Registry(Settings(root=own)).refuse("churn", 2, "worse")
        time.sleep(1.5)
        assert predict() == 2


@pytest.mark.parametrize(("words", "message"), [
    (["chrun"], "Did you mean 'churn'?"), (["churn@7"], "no version 7"), (["churn@canary"], "called 'canary'"),
    (["churn", "churn@2"], "named twice"), (["churn", "--workers", "0"], "is not possible"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_what_cannot_be_served_is_refused_in_two_lines(made, words, message):
    done = scalai("serve", *words, "--port", "0", cwd=made)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 2, done.err


def test_a_port_in_use_and_a_file_that_is_broken_from_the_start(own):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = scalai("serve", "churn", "--port", str(taken.getsockname()[1]), cwd=own)
    assert done.code == 2 and "is in use" in done.err and len(done.err.strip().splitlines()) == 2
    Registry(Settings(root=own)).version("churn", 1).path.write_bytes(b"half")
    done = scalai("serve", "churn", "--port", "0", "--workers", "1", cwd=own)
    assert done.code == 1 and "not the one that was registered" in done.err, done.err


def test_a_killed_worker_is_replaced_and_orphans_end(made):
    with serving(made, "churn", "--workers", "2") as (url, process):
        before = {p.pid for p in workers(process)}
        os.kill(min(before), signal.SIGKILL)
        assert until(lambda: len(workers(process)) == 2 and {p.pid for p in workers(process)} != before)
        assert until(lambda: "scalai_serve_workers 2.0" in httpx.get(f"{url}/metrics").text)
        assert httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}).status_code == 200
        time.sleep(2)
        assert "scalai_serve_restarts 1.0" in httpx.get(f"{url}/metrics").text  # the other one was left alone
        orphans = workers(process)
        process.kill()
        process.wait()
        assert until(lambda: not any(p.is_running() and p.status() != "zombie" for p in orphans))


def test_ctrl_c_answers_what_was_accepted(made):
    with serving(made, "churn", "--workers", "2") as (url, process):
        async def go():
            body = json.dumps({"rows": [GOOD]}).encode()
            task = asyncio.ensure_future(generate(f"{url}/models/churn/predict", body, 16, 2.5))
            await asyncio.sleep(1.5)
            process.send_signal(signal.SIGINT)
            return await task
        load = asyncio.run(go())
        assert process.wait(30) == 0 and not load.counts["lost"] and load.counts["200"] > 100, load.to_dict()


@pytest.mark.slow
def test_nothing_is_lost_through_swaps_and_restarts_under_load(own, tmp_path):
    registry, seconds = Registry(Settings(root=own)), 60
    (tmp_path/"row.json").write_text(json.dumps({"rows": [GOOD]}))
    with serving(own, "churn", "--workers", "2") as (url, process):
        command = [*LOAD, f"{url}/models/churn/predict", str(tmp_path/"row.json")]
        load = subprocess.Popen([*command, "32", str(seconds)], stdout=subprocess.PIPE, text=True)
        end, swaps, restarts = time.monotonic() + seconds - 8, 0, 0
        while time.monotonic() < end:
            registry.promote("churn", 2 - swaps % 2, "again")
            swaps += 1
            time.sleep(1)
            if len(workers(process)) == 2:
                workers(process)[restarts % 2].send_signal(signal.SIGTERM)
                restarts += 1
            time.sleep(1)
        found = json.loads(load.communicate()[0])
    print(found, swaps, restarts)
    assert set(found["counts"]) == {"200"} and set(found["versions"]) == {"1", "2"}, (found, swaps, restarts)
    assert swaps >= 15 and restarts >= 10


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(made):
    with serving(made, "churn", "--workers", "2") as (url, process):
        hung, other = workers(process)
        hung.suspend()
        assert until(lambda: hung.pid not in {p.pid for p in workers(process)}, 60)
        assert until(lambda: len(workers(process)) == 2) and other.pid in {p.pid for p in workers(process)}
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


@pytest.mark.slow
def test_only_what_a_killed_worker_held_is_lost(made, tmp_path):
    (tmp_path/"row.json").write_text(json.dumps({"rows": [GOOD]}))
    with serving(made, "churn", "--workers", "2") as (url, process):
        command = [*LOAD, f"{url}/models/churn/predict", str(tmp_path/"row.json")]
        load = subprocess.Popen([*command, "16", "15"], stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            time.sleep(3)
            workers(process)[0].kill()
        found = json.loads(load.communicate()[0])
    assert set(found["counts"]) <= {"200", "lost"} and found["counts"].get("lost", 0) <= 3*16, found


def test_the_client_gives_back_what_it_was_given(service, made, scored):
    import scalai_nb as sn
    rows = Table("customers", Settings(root=made)).arrow().slice(0, 20)
    want = scored["churn"]["score"].to_pylist()[:20]
    known = [*KEY, *inputs(made, "churn")]
    with sn.Client(service[0]) as client:
        sent = documents(rows, known)
        assert [r["score"] for r in client.predict("churn", sent)] == want
        assert client.predict("churn", sent[0])["score"] == want[0]
        assert client.predict("churn", {c: [r[c] for r in sent] for c in known})["score"] == want
        frame = rows.select(known).to_pandas().set_index(pd.Index(range(5, 25)))
        found = client.predict("churn", frame)
        assert found["score"].tolist() == want and found.index.equals(frame.index)
        table = client.predict("churn", rows.select(known))
        assert table["customer_id"].to_pylist() == rows["customer_id"].to_pylist()
        with pytest.raises(sn.ScalaiError, match="Row 1: Unknown column"): client.predict("churn", [sent[0], {"a": 1}])
        assert client.health()["models"]["churn"]["version"] == 1


def test_a_hostile_arrow_stream_hurts_nobody(service, made):
    "Cut, flipped and compressed streams; a long text behind many indices."
    rows = Table("customers", Settings(root=made)).arrow().slice(0, 50).select(inputs(made, "churn"))
    rows = rows.combine_chunks()
    good, rng = stream(rows), np.random.default_rng(0)
    post = lambda body: httpx.post(f"{service[0]}/models/churn/predict", content=body, headers=ARROW, timeout=60)
    codes = set()
    for i in range(150):
        body = bytearray(good[:rng.integers(len(good))] if i % 3 == 0 else good)
        for at in rng.integers(0, max(1, len(body)), 3): body[at:at + 1] = bytes([int(rng.integers(256))])
        codes.add(post(bytes(body)).status_code)
    assert codes <= {200, 400, 413, 415, 422}, codes
    long = pa.DictionaryArray.from_arrays(pa.array([0]*90_000, pa.int8()), pa.array(["x"*1_000_000]))
    many = {n: pa.nulls(90_000, rows.schema.field(n).type) for n in rows.column_names}
    assert post(stream(pa.table(many | {"region": long}))).status_code == 200
    assert len({p.pid for p in workers(service[1])}) == 2 and post(good).status_code == 200
    assert httpx.get(f"{service[0]}/metrics").text.count("scalai_serve_restarts 0.0") == 1


def test_an_arrow_key_is_one_value_as_in_json(service, made):
    "What JSON could not bring is a clear 422; single rows of it may be refused next to answered ones."
    rows = Table("customers", Settings(root=made)).arrow().slice(0, 3).select(inputs(made, "churn"))
    def post(key: pa.Array, query: str = "", table: pa.Table = rows) -> httpx.Response:
        body = stream(table.append_column("customer_id", key))
        return httpx.post(f"{service[0]}/models/churn/predict{query}", content=body, headers=ARROW, timeout=60)
    far = pa.array([0, 2**60, None], pa.timestamp("s"))
    zoned = far.cast(pa.timestamp("s", "UTC"))
    for key in (pa.array([{"a": 1}]*3), pa.array([[1]]*3), pa.array([b"x"]*3), far, zoned):
        found = post(key)
        assert (found.status_code, found.json()["error"]["column"]) == (422, "customer_id"), found.text
    some = pa.ipc.open_stream(post(far, "?partial=1").content).read_all()
    assert some["prediction"].is_valid().to_pylist() == [True, False, True] and "years 1" in some["error"][1].as_py()
    since = rows.set_column(rows.column_names.index("since"), "since", far)
    assert post(pa.array(["a", "b", "c"]), table=since).json()["error"]["column"] == "since"
    good = post(pa.array([2**64 - 1, 1, None], pa.uint64()))
    assert pa.ipc.open_stream(good.content).read_all()["customer_id"].to_pylist() == [2**64 - 1, 1, None]


def test_the_pointer_file_is_part_of_a_change(own, monkeypatch):
    "A disk that is full leaves the change unfinished; whoever changes the model next finishes both."
    from scalai_nb.training import version_store
    settings, path = Settings(root=own), pointer_path(own/".scalai", "churn")

    def full(*_): raise OSError(28, "No space left on device", str(path))
    with monkeypatch.context() as patched:
        patched.setattr(version_store, "write_atomic", full)
        with pytest.raises(OSError): Registry(settings).promote("churn", 2, "better")
    assert Pointer.load(path).aliases["champion"] == 1
    with Registry(settings).changing("churn"): pass
    assert Pointer.load(path).aliases == {"champion": 2, "previous": 1}
    moved = shutil.move(own, own.with_name("elsewhere"))  # it serves from where it is
    with serving(Path(moved), "churn", "--workers", "1") as (url, _):
        assert httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}).json()["model_version"] == 2


@pytest.mark.parametrize(("file", "line", "message"), [
    ("settings.ini", "[serve]\nworker = 2\n", "Did you mean 'workers'?"),
    ("settings.ini", "[serve]\nqueue = 0\n", "greater than or equal to 1"),
    ("models/churn.toml", "[serve]\nmax_batches = 2\n", "Did you mean 'max_batch'?"),
    ("models/churn.toml", "[serve]\nwait_ms = -1\n", "greater than or equal to 0"),
], ids=lambda v: v.split("\n")[1] if "\n" in v else "")
def test_keys_that_cannot_be_meant_are_refused(own, file, line, message):
    with open(own/file, "a") as f: f.write(line)
    done = scalai("serve", "churn", "--port", "0", cwd=own)
    assert done.code == 2 and message in done.err, done.err


def test_clients_bring_tokens_that_the_settings_know_by_digest(own):
    import scalai_nb as sn
    made = scalai("serve", "--new-token", "web", "--json", cwd=own).doc
    (own/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[serve]\ntokens = {made['entry']}\n")
    assert made["token"] not in (own/"settings.ini").read_text()
    with serving(own, "churn", "--workers", "1") as (url, _):
        predict = lambda **headers: httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}, headers=headers)
        assert predict().status_code == predict(authorization="Bearer x").status_code == 401
        assert predict().headers["www-authenticate"].startswith("Basic")
        assert predict(authorization=f"Bearer {made['token']}").status_code == 200
        assert httpx.get(f"{url}/models/churn", auth=("me", made["token"])).status_code == 200
        assert [httpx.get(url + path).status_code for path in ("/healthz", "/metrics", "/", "/openapi.json")] == [
            200, 401, 401, 401]
        assert sn.Client(url, token=made["token"]).predict("churn", [GOOD])
        with pytest.raises(sn.ScalaiError, match="no token"): sn.Client(url).predict("churn", [GOOD])
    (own/"settings.ini").write_text("[workspace]\nhome = .scalai\n[serve]\ntokens = web:secret\n")
    done = scalai("serve", "churn", "--port", "0", cwd=own)
    assert done.code == 2 and "--new-token" in done.err and "secret" not in done.err
