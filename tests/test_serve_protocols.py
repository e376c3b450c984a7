"""One model through several protocols: the same scores to the bit, the clients of KServe, Triton and MLflow, a
table's contract on live rows, and bodies that lie about themselves."""
import gzip
import json
import random
import string
import struct
import subprocess
import threading
import time
from functools import cache
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
from conftest import scalai
from hypothesis import HealthCheck, given, settings, strategies
from servers import protocol_clients
from test_serve import (  # noqa: F401
    ARROW,
    GOOD,
    KEY,
    MODELS,
    documents,
    inputs,
    made,
    own,
    scored,
    service,
    serving,
    stream,
    workers,
)

from scalai_nb.core.settings import Settings
from scalai_nb.data.table import Table
from scalai_nb.training.registry import Registry

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

@cache
def client() -> httpx.Client: return httpx.Client(timeout=60)


def post(url: str, document: dict | bytes, **headers) -> httpx.Response:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return client().post(url, content=content, headers={"content-type": "application/json"} | headers)


def datatype(values: list) -> str:
    types = {type(v) for v in values if v is not None}
    names = {frozenset({bool}): "BOOL", frozenset({int}): "INT64", frozenset({str}): "BYTES"}
    return names.get(frozenset(types), "FP64")


def in_json(columns: dict[str, list], kinds: dict[str, str], **more) -> dict:
    types = {n: datatype(v) if kinds[n] == "number" else "BYTES" for n, v in columns.items()}
    return {"inputs": [{"name": n, "shape": [len(v)], "datatype": types[n], "data": v}
                       for n, v in columns.items()]} | more


def in_bytes(columns: dict[str, list], kinds: dict[str, str], **more) -> tuple[bytes, int]:
    "A request by the binary extension, and the length of its document."
    entries, parts = [], []
    def put(name: str, type: str, values: list, part: bytes) -> None:
        size = {"binary_data_size": len(part)}
        entries.append({"name": name, "shape": [len(values), 1], "datatype": type, "parameters": size})
        parts.append(part)
    for name, values in columns.items():
        if kinds[name] == "number": type = datatype(values) if None not in values else "FP64"
        else: type = "BYTES"
        if type == "BYTES":
            texts = [(v or "").encode() for v in values]
            put(name, type, values, b"".join(struct.pack("<I", len(t)) + t for t in texts))
            put(f"{name}__null", "BOOL", values, bytes(v is None for v in values))
        else:
            numpy = {"BOOL": "?", "INT64": "<i8", "FP64": "<f8"}[type]
            put(name, type, values, np.array([np.nan if v is None else v for v in values], numpy).tobytes())
    head = json.dumps({"inputs": entries} | more).encode()
    return head + b"".join(parts), len(head)


def outputs(answer: httpx.Response) -> dict[str, list]:
    "The outputs of an answer in JSON or in bytes."
    assert answer.status_code == 200, answer.text
    length = answer.headers.get("inference-header-content-length")
    document, at, found = json.loads(answer.content[:int(length) if length else None]), int(length or 0), {}
    for entry in document["outputs"]:
        if "data" in entry:
            found[entry["name"]] = np.array(entry["data"]).reshape(entry["shape"]).tolist()
            continue
        part = answer.content[at:at + entry["parameters"]["binary_data_size"]]
        at += len(part)
        if entry["datatype"] == "BYTES":
            values = []
            while part: values, part = [*values, part[4:4 + int.from_bytes(part[:4], "little")].decode()], part[
                4 + int.from_bytes(part[:4], "little"):]
        else: values = np.frombuffer(part, {"FP32": "<f4", "INT64": "<i8"}[entry["datatype"]]).reshape(
            entry["shape"]).tolist()
        found[entry["name"]] = values
    assert not length or at == len(answer.content)
    return found


# -- the same scores through every protocol --------------------------------------------------------------------------

text = strategies.text(strategies.characters(exclude_categories=("Cs",)), max_size=12) | strategies.sampled_from(
    ["basic", "plus", "max", "Köln", "🚀", "", "NaN", "NaT", "None", "null"])
number = strategies.none() | strategies.floats(allow_nan=False, allow_infinity=False) | strategies.integers(
    -2**53, 2**53) | strategies.sampled_from([0, -0., 1e-40, 5e-324, 1e300])
moment = strategies.none() | strategies.datetimes().map(lambda t: t.isoformat()) | strategies.sampled_from(
    ["2024-05-01", "2024-05-01T00:00:00+02:00", "2024-05-01T12:30:00.123456Z"])
VALUES = {"tenure": strategies.integers(0, 80), "charge": number, "plan": strategies.none() | text,
          "region": strategies.none() | text, "since": moment, "member": strategies.none() | strategies.booleans(),
          "tiny": number, "churn": strategies.none() | text}


@pytest.mark.parametrize("name", MODELS)
@FEW
@given(data=strategies.data())
def test_every_protocol_gives_the_same_scores_bit_for_bit(service, made, name, data):  # noqa: F811
    known = inputs(made, name)
    kinds = dict(Registry(Settings(root=made)).pointer(name).find().inputs)
    rows = data.draw(strategies.lists(strategies.fixed_dictionaries({n: VALUES[n] for n in known}), min_size=1,
                                      max_size=6))
    base = f"{service[0]}/models/{name}"
    want = post(f"{base}/predict", {"rows": rows}).json()["rows"]
    columns = {n: [row[n] for row in rows] for n in known}
    body, length = in_bytes(columns, kinds, parameters={"binary_data_output": True})
    infer = f"{service[0]}/v2/models/{name}/infer"
    for found in (outputs(post(infer, in_json(columns, kinds))), outputs(post(
            f"{service[0]}/v2/models/{name}/versions/1/infer", body,
            **{"inference-header-content-length": str(length), "content-type": "application/octet-stream"}))):
        assert found["prediction"] == [row["prediction"] for row in want]
        if name != "charge": assert found["score"] == [row["score"] for row in want]
        if name == "plan": assert found["scores"] == [list(row["scores"].values()) for row in want]
    split = {"columns": known, "data": [[row[n] for n in known] for row in rows]}
    want_by_mlflow = post(f"{base}/predict", {"rows": [  # its client's word for a missing time
        row | ({"since": None} if row.get("since") == "NaT" else {}) for row in rows]}).json()["rows"]
    for document in ({"dataframe_split": split}, {"dataframe_records": rows}, {"instances": rows},
                     {"inputs": columns}):
        assert post(f"{base}/invocations", document).json() == {"predictions": want_by_mlflow}, document


def test_a_tables_rows_are_scored_as_scalai_score_does(service, made, scored):  # noqa: F811
    rows, known = Table("customers", Settings(root=made)).arrow().slice(0, 300), inputs(made, "churn")
    sent, want = documents(rows, [*KEY, *known]), scored["churn"].slice(0, 300)
    kinds = dict(Registry(Settings(root=made)).pointer("churn").find().inputs) | {"customer_id": "text"}
    columns = {n: [r[n] for r in sent] for n in [*KEY, *known]}
    body, length = in_bytes({n: v for n, v in columns.items()}, kinds)
    found = outputs(post(f"{service[0]}/v2/models/churn/infer", in_json(columns, kinds)))
    assert found["score"] == want["score"].to_pylist() and found["customer_id"] == columns["customer_id"]
    lean = {k: v for k, v in columns.items() if k != "customer_id"}
    body, length = in_bytes(lean, kinds)
    found = outputs(post(f"{service[0]}/v2/models/churn/infer", body,
                         **{"inference-header-content-length": str(length)}))
    assert found["score"] == want["score"].to_pylist() and found["prediction"] == want["prediction"].to_pylist()


# -- the Open Inference Protocol -------------------------------------------------------------------------------------

def test_open_inference_says_what_there_is_and_what_is_wrong(service, made):  # noqa: F811
    get = lambda path: httpx.get(service[0] + path)
    assert get("/v2/health/live").json() == {"live": True} and get("/v2/health/ready").json() == {"ready": True}
    assert set(get("/v2").json()) == {"name", "version", "extensions"}
    assert get("/v2/models").json() == {"models": list(MODELS)}
    about = get("/v2/models/plan/versions/1").json()
    assert [t["name"] for t in about["inputs"]] == inputs(made, "plan") and about["versions"] == ["1"]
    assert about["outputs"] == [{"name": "prediction", "datatype": "BYTES", "shape": [-1]},
                                {"name": "score", "datatype": "FP32", "shape": [-1]},
                                {"name": "scores", "datatype": "FP32", "shape": [-1, 3]}]
    assert get("/v2/models/plan/ready").json() == get("/v2/models/plan/versions/1/ready").json()
    for path, hint in {"/v2/models/plam": "Did you mean 'plan'?",
                       "/v2/models/plan/versions/7": "Leave the version out",
                       "/v2/models/plan/versions/7/ready": "Leave the version out",
                       "/v2/models/../etc/passwd": "Predictions"}.items():
        found = httpx.request("GET", httpx.URL(service[0]).copy_with(raw_path=path.encode()))
        assert found.status_code == 404 and hint in found.json()["error"], found.text
        assert len(found.json()["error"].split("\n")) == 2
    assert get("/v2/models/plan/infer").status_code == 405
    other = post(f"{service[0]}/v2/models/plan/versions/2/infer", {"inputs": []})
    assert other.status_code == 404 and "has version 1 in service, not '2'" in other.json()["error"]
    kinds = dict(Registry(Settings(root=made)).pointer("churn").find().inputs)
    good = in_json({n: [GOOD[n]] for n in kinds}, kinds, id="mine")
    found = post(f"{service[0]}/v2/models/churn/infer", good | {"outputs": [{"name": "score"}]})
    assert found.json()["id"] == "mine" and [o["name"] for o in found.json()["outputs"]] == ["score"]
    assert found.headers["x-model-version"] == "1"
    wrong = post(f"{service[0]}/v2/models/churn/infer", good | {"outputs": [{"name": "scorr"}]})
    assert wrong.status_code == 422
    assert wrong.json() == {"error": 'There is no output "scorr".\nDid you mean \'score\'?'}


def test_a_version_that_a_path_names_answers_or_nobody_does(own):  # noqa: F811
    kinds = dict(Registry(Settings(root=own)).pointer("churn").find().inputs)
    body = json.dumps(in_json({n: [GOOD[n]] for n in kinds}, kinds)).encode()
    with serving(own, "churn", "--workers", "1") as (url, _):
        codes, stop = {}, threading.Event()
        def ask(version: int) -> None:
            while not stop.is_set():
                found = httpx.post(f"{url}/v2/models/churn/versions/{version}/infer", content=body)
                codes.setdefault(version, set()).add(found.status_code)
                if found.status_code == 200: assert found.json()["model_version"] == str(version)
        threads = [threading.Thread(target=ask, args=(v,)) for v in (1, 2)]
        for t in threads: t.start()
        for v in (2, 1): time.sleep(1.5), Registry(Settings(root=own)).promote("churn", v, "again")
        time.sleep(1.5)
        stop.set()
        for t in threads: t.join()
    assert codes == {1: {200, 404}, 2: {200, 404}}


# -- MLflow's clients ------------------------------------------------------------------------------------------------

def test_mlflows_own_clients_work(own, scored):  # noqa: F811
    "A frame with missing numbers, texts, times and flags; the server's own code answers the same probabilities."
    import mlflow.pyfunc
    from mlflow.deployments import get_deploy_client
    from mlflow.pyfunc.scoring_server import invocations
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient
    from mlflow.utils.proto_json_utils import dump_input_data
    rows, known = Table("customers", Settings(root=own)).arrow().slice(0, 200), inputs(own, "churn")
    frame, want = rows.select(known).to_pandas(), scored["churn"].slice(0, 200)
    assert frame["since"].isna().any() and frame["charge"].isna().any() and frame["plan"].isna().any()
    with serving(own, "churn", "--workers", "1") as (url, _):
        mlflows = ScoringServerClient("127.0.0.1", int(url.rpartition(":")[2]))
        mlflows.wait_server_ready()
        assert mlflows.get_version() == mlflow.__version__
        found = mlflows.invoke(frame).get_predictions()
        assert found["score"].tolist() == want["score"].to_pylist()
        assert found["prediction"].tolist() == want["prediction"].to_pylist()
        target = get_deploy_client(url)
        records = json.loads(frame.to_json(orient="records", date_format="iso", date_unit="us"))
        answer = target.predict(endpoint="churn", inputs={"dataframe_records": records})
        assert [p["score"] for p in answer["predictions"]] == want["score"].to_pylist()
        with pytest.raises(Exception, match="Unknown column .*tenur.*Did you mean 'tenure'"):
            mlflows.invoke(frame.rename(columns={"tenure": "tenur"}))
    version = Registry(Settings(root=own)).version("churn", 1)
    model = mlflow.pyfunc.load_model(str(version.path.parent))
    theirs = invocations(dump_input_data(frame), "application/json", model, model.metadata.get_input_schema())
    assert json.loads(theirs.response)["predictions"] == want["score"].to_pylist()


def test_several_models_are_named_where_mlflow_expects_one(service):  # noqa: F811
    found = post(f"{service[0]}/invocations", {"inputs": [GOOD]})
    assert (found.status_code, found.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    assert found.json()["message"].split("\n") == ["3 models are served here: churn, plan, charge.",
                                                   "Post to the path of one: /models/churn/invocations"]
    assert post(f"{service[0]}/models/churn/invocations", {"inputs": [GOOD]}).status_code == 200
    assert post(f"{service[0]}/endpoints/churn/invocations", {"inputs": GOOD}).status_code == 200
    wrong = post(f"{service[0]}/models/churn/invocations", {"inputs": [GOOD | {"tenure": "x"}]})
    assert wrong.json() == {"error_code": "BAD_REQUEST", "message":
                            "Row 0: Column 'tenure' has \"x\", expected a number.\n"
                            "Send it without quotes, and null where it is missing."}
    for body in (b'{"inputs": [{"tenure": Infinity}]}', b"[NaN" + b"["*10_000, b'{"inputs": NaN}', b"NaN",
                 b'"\\ud800 NaN"'):
        assert post(f"{service[0]}/models/churn/invocations", body).status_code in (400, 422)


# -- the table's contract --------------------------------------------------------------------------------------------

CONTRACT = """contract: 1
columns:
  customer_id: {type: string, required: true}
  tenure: {type: int64, required: true, min: 0, max: 72}
  charge: {type: float64, max: 200}
  plan: {type: string, categories: [basic, plus, max]}
  region: {type: string, pattern: "[^!]*", max_length: 40}
  since: {type: "timestamp[us]", min: "2019-01-01"}
  member: {type: bool}
"""


def under_contract(folder: Path, mode: str) -> None:
    (folder/"contract.yaml").write_text(CONTRACT)
    (folder/"tables/customers.toml").write_text(f"key = {json.dumps(KEY)}\ncontract = \"contract.yaml\"\n")
    with open(folder/"models/churn.toml", "a") as f: f.write(f'[serve]\ncontract = "{mode}"\n')


BROKEN = {"tenure": [(99, "above 72"), (-1, "below 0"), (None, "null"), (2.5, "not an integer")],
          "charge": [(200.5, "above 200")], "plan": [("gold", "unknown value")],
          "region": [("a!", "does not match [^!]*"), ("a"*41, "longer than 40")],
          "since": [("2018-12-31", "below 2019-01-01")], "member": [(2, "not true or false")]}


def test_a_contract_refuses_by_row_and_column_in_every_protocol(own):  # noqa: F811
    under_contract(own, "refuse")
    kinds = dict(Registry(Settings(root=own)).pointer("churn").find().inputs)
    with serving(own, "churn", "--workers", "1") as (url, _):
        for column, values in BROKEN.items():
            for value, _ in values:
                rows = [GOOD, GOOD | {column: value}]
                found = post(f"{url}/models/churn/predict", {"rows": rows})
                error = found.json()["error"]
                assert (found.status_code, error["kind"]) == (422, "contract")
                assert (error["row"], error["column"]) == (1, column)
                part = post(f"{url}/models/churn/predict?partial=1", {"rows": rows}).json()
                assert part["rows"][1] is None and part["errors"][0]["message"] == error["message"]
                numbers = [r | {"member": int(r["member"])} for r in rows]  # a tensor has one type
                columns = {n: [r[n] for r in numbers] for n in kinds}
                by = post(f"{url}/v2/models/churn/infer", in_json(columns, kinds))
                assert by.status_code == 422 and by.json()["error"] == f"Row 1: {error['message']}\n{error['hint']}"
                by = post(f"{url}/invocations?partial=1", {"inputs": rows})
                assert (by.status_code, by.json()["message"].split("\n")[0]) == (422, f"Row 1: {error['message']}")
        assert post(f"{url}/models/churn/predict", {"rows": [GOOD]}).status_code == 200
        assert post(f"{url}/models/churn/predict", b'{"rows": [%s]}' % json.dumps(GOOD).replace(
            "10.5", "1e999").encode()).json()["error"]["kind"] == "not_finite"
        table = pa.table({n: pa.array([GOOD[n], GOOD[n]]) for n in GOOD if n not in ("since", "tenure", "region")})
        table = table.append_column("since", pa.array([0, 2**40*1500], pa.timestamp("us"))).append_column(
            "tenure", pa.array([1., float("nan")])).append_column("region", pa.nulls(2, pa.string()))
        table = table.append_column("customer_id", pa.array(["a", "b"]))
        every = httpx.post(f"{url}/models/churn/predict", content=stream(table), headers=ARROW)
        assert every.status_code == 422 and every.json()["error"]["row"] == 0, every.text
        table = pa.concat_tables([table, table.slice(1).set_column(
            table.schema.get_field_index("tenure"), "tenure", pa.array([3.]))])
        some = httpx.post(f"{url}/models/churn/predict?partial=1", content=stream(table), headers=ARROW)
        answer = pa.ipc.open_stream(some.content).read_all()
        assert answer["customer_id"].to_pylist() == [None, None, "b"] and answer["error"][2].as_py() is None
        assert "Column 'since' has 1970-01-01T00:00:00, the contract expects at least 2019-01-01." == answer[
            "error"][0].as_py()


def test_a_contract_reports_in_a_header_and_in_prometheus(own):  # noqa: F811
    under_contract(own, "report")
    with serving(own, "churn", "--workers", "2") as (url, _):
        rows = [GOOD | {column: value} for column, values in BROKEN.items() for value, _ in values]
        found = post(f"{url}/models/churn/predict", {"rows": [*rows, GOOD]})
        want = {column: dict.fromkeys([reason for _, reason in values], 1) for column, values in BROKEN.items()}
        assert found.status_code == 200 and json.loads(found.headers["x-contract-violations"]) == want
        assert "x-contract-violations" not in post(f"{url}/models/churn/predict", {"rows": [GOOD]}).headers
        for path, body in {"/invocations": {"inputs": rows[:1]}}.items():
            assert json.loads(post(url + path, body).headers["x-contract-violations"]) == {"tenure": {"above 72": 1}}
        page = httpx.get(f"{url}/metrics").text
        counts = {line.split('column="')[1].split('"')[0]: float(line.split()[-1]) for line in page.splitlines()
                  if line.startswith("scalai_serve_contract_violations_total{")}
        assert counts == {c: len(v) + (c == "tenure") for c, v in BROKEN.items()}


def test_a_contract_that_is_not_there_is_refused_in_two_lines(own):  # noqa: F811
    with open(own/"models/churn.toml", "a") as f: f.write('[serve]\ncontract = "report"\n')
    done = scalai("serve", "churn", "--port", "0", cwd=own)
    assert done.code == 2 and "has no contract" in done.err and len(done.err.strip().splitlines()) == 2, done.err
    (own/"models/churn.toml").write_text('table = "customers"\ntarget = "churn"\n[serve]\ncontract = "strict"\n')
    done = scalai("serve", "churn", "--port", "0", cwd=own)
    assert done.code == 2 and "'off', 'report' or 'refuse'" in done.err, done.err


# -- bodies that lie -------------------------------------------------------------------------------------------------

def lies(rng: random.Random, body: bytes, length: int) -> tuple[bytes, str]:
    "A good binary request, spoilt: lengths, sizes, shapes, names, bytes cut or flipped."
    head, rest = json.loads(body[:length]), body[length:]
    entry = rng.choice(head["inputs"])
    wild = rng.choice([-1, 0, 1, 2**31, 2**63, 2**64, 1e300, 0.5, None, True, "3", [], {}, [[[]]], "\u0000", "x"*5000,
                       10**40])
    kind = rng.randrange(9)
    if kind == 0: entry["parameters"] = {"binary_data_size": wild}
    elif kind == 1: entry["shape"] = rng.choice([wild, [wild], [1, wild], [wild, 1], []])
    elif kind == 2: entry[rng.choice(["name", "datatype", "data", "parameters"])] = wild
    elif kind == 3: head["inputs"] = rng.choice([wild, [wild], head["inputs"]*2, head["inputs"][1:], []])
    elif kind == 4: head[rng.choice(["id", "outputs", "parameters"])] = rng.choice([wild, [wild], {"a": wild}])
    elif kind == 5: rest = rest[:rng.randrange(len(rest))]
    elif kind == 6: rest += rng.randbytes(rng.randrange(1, 50))
    elif kind == 7:
        flipped = bytearray(rest)
        for _ in range(4): flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        rest = bytes(flipped)
    content = json.dumps(head).encode()
    sent = str(len(content))
    if kind == 8:
        sent = rng.choice(["-1", "0", "1", str(len(content) - 1), str(len(content) + len(rest) + 1), "9"*4000, "1e3",
                           "0x10", "1 4", "+5", "".join(rng.choices(string.printable[:94], k=5))])
    return content + rest, sent


def test_bodies_that_lie_are_refused_and_hurt_nobody(service, made, rounds):  # noqa: F811
    "4xx in two lines; memory stays flat, and requests next to them are answered as ever."
    kinds = dict(Registry(Settings(root=made)).pointer("churn").find().inputs)
    rows = documents(Table("customers", Settings(root=made)).arrow().slice(0, 20), list(kinds))
    columns = {n: [r[n] for r in rows] for n in kinds}
    body, length = in_bytes(columns, kinds)
    infer, plain = f"{service[0]}/v2/models/churn/infer", f"{service[0]}/models/churn/predict"
    want, count = post(plain, {"rows": rows}).json()["rows"], rounds(400, soak=20_000)
    stop, wrong = threading.Event(), []

    def neighbour() -> None:
        with httpx.Client(timeout=60) as http:
            while not stop.is_set():
                found = http.post(plain, json={"rows": rows})
                if found.status_code != 200 or found.json()["rows"] != want: wrong.append(found.text[:300])
                time.sleep(.005)
    thread = threading.Thread(target=neighbour)
    memory = lambda: max(p.memory_info().rss for p in workers(service[1]))
    thread.start()
    pids, codes, before = {p.pid for p in workers(service[1])}, {}, memory()
    try:
        for i in range(count):
            content, sent = lies(random.Random(i), body, length)
            found = post(infer, content, **{"inference-header-content-length": sent.encode()})
            codes[found.status_code] = codes.get(found.status_code, 0) + 1
            assert found.status_code in (200, 400, 413, 422), (i, found.status_code, found.text)
            if found.status_code != 200: assert len(found.json()["error"].split("\n")) == 2, (i, found.text)
        bomb = gzip.compress(b" "*200_000_000, 9)
        for path in ("/v2/models/churn/infer", "/models/churn/invocations", "/models/churn/predict"):
            assert post(service[0] + path, bomb, **{"content-encoding": "gzip"}).status_code == 415
        deep = b'{"inputs": ' + b"["*5_000_000 + b"]"*5_000_000 + b"}"
        for path in ("/v2/models/churn/infer", "/models/churn/invocations"):
            found = post(service[0] + path, deep)
            assert found.status_code == 400, found.text
        huge = {"inputs": [{"name": n, "shape": [2**62], "datatype": "FP64", "data": []} for n in kinds]}
        assert post(infer, huge).status_code == 413
        texts = struct.pack("<I", 2**32 - 1)*4
        entry = {"name": "plan", "shape": [4], "datatype": "BYTES", "parameters": {"binary_data_size": len(texts)}}
        head = json.dumps({"inputs": [entry]}).encode()
        assert post(infer, head + texts, **{"inference-header-content-length": str(len(head))}).status_code == 400
    finally:
        stop.set()
        thread.join()
    assert not wrong, wrong[:3]
    assert {p.pid for p in workers(service[1])} == pids and memory() - before < 120e6, (before, memory())
    assert sum(codes.values()) == count and codes.get(200, 0) < count/3, codes


# -- other clients, each in an environment of its own ----------------------------------------------------------------

CLIENTS = '''
import asyncio, json, sys
import numpy as np
import tritonclient.http as triton
from kserve import InferenceRESTClient, RESTConfig, InferRequest, InferInput
url, sent = sys.argv[1], json.load(open(sys.argv[2]))
columns, kinds, found = sent["columns"], sent["kinds"], {}
client = triton.InferenceServerClient(url.removeprefix("http://"))
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("churn")
assert client.is_model_ready("churn", "1") and not client.is_model_ready("churn", "9")
assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
about = client.get_model_metadata("churn", "1")
assert {t["name"] for t in about["inputs"]} == set(columns), about


def arrays():
    for name, values in columns.items():
        if kinds[name] == "number":
            yield name, "FP64", np.array([np.nan if v is None else float(v) for v in values])
        else:
            yield name, "BYTES", np.array(["" if v is None else v for v in values], object)
            yield name + "__null", "BOOL", np.array([v is None for v in values])


for binary in (True, False):
    tensors = []
    for name, kind, values in arrays():
        tensor = triton.InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values, binary_data=binary)
        tensors.append(tensor)
    wanted = [triton.InferRequestedOutput(n, binary_data=binary) for n in ("prediction", "score")]
    answer = client.infer("churn", tensors, outputs=wanted if not binary else None, request_id="7", model_version="1")
    assert answer.get_response()["id"] == "7" and answer.get_response()["model_version"] == "1"
    words = [v.decode() if isinstance(v, bytes) else v for v in answer.as_numpy("prediction").tolist()]
    found[f"triton {binary}"] = [words, answer.as_numpy("score").tolist()]
try: client.infer("churn", tensors[1:])
except triton.InferenceServerException as e: found["triton error"] = e.message()


async def kserve():
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await rest.is_server_live(url) and await rest.is_server_ready(url)
    assert await rest.is_model_ready(url, "churn")
    for binary in (True, False):
        inputs = []
        for name, kind, values in arrays():
            tensor = InferInput(name, list(values.shape), kind)
            tensor.set_data_from_numpy(values, binary_data=binary)
            inputs.append(tensor)
        answer = await rest.infer(url, InferRequest(model_name="churn", infer_inputs=inputs), model_name="churn")
        get = lambda n: answer.get_output_by_name(n).as_numpy().tolist()
        words = [v.decode() if isinstance(v, bytes) else v for v in get("prediction")]
        found[f"kserve {binary}"] = [words, get("score")]
    try: await rest.infer(url, InferRequest(model_name="churn", infer_inputs=inputs[1:]), model_name="churn")
    except Exception as e: found["kserve error"] = str(e)
asyncio.run(kserve())
print(json.dumps(found))
'''


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_tritons_and_kserves_clients_work(service, made, scored, tmp_path):  # noqa: F811
    kinds = dict(Registry(Settings(root=made)).pointer("churn").find().inputs)
    rows = documents(Table("customers", Settings(root=made)).arrow().slice(0, 200), list(kinds))
    sent = {"kinds": kinds, "columns": {n: [r[n] for r in rows] for n in kinds}}
    (tmp_path/"sent.json").write_text(json.dumps(sent))
    done = subprocess.run([protocol_clients()/"python", "-c", CLIENTS, service[0], tmp_path/"sent.json"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, want = json.loads(done.stdout.splitlines()[-1]), scored["churn"].slice(0, 200)
    for name in ("triton True", "triton False", "kserve True", "kserve False"):
        assert found[name] == [want["prediction"].to_pylist(), want["score"].to_pylist()], name
    first = next(iter(kinds))
    assert f"Column '{first}' is missing." in found["triton error"] and f"Column '{first}' is missing." in found[
        "kserve error"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("names", [["churn"], list(MODELS)], ids=len)
def test_schemathesis_finds_no_answer_that_the_openapi_does_not_know(made, names, tmp_path, rounds):  # noqa: F811
    """Each path, each content type; no 5xx but a full queue's and a deadline's, and every answer matches its schema,
    status and content type."""
    config = tmp_path/"schemathesis.toml"
    config.write_text('[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504]\n')
    with serving(made, *names, "--workers", "2") as (url, process):
        pids = {p.pid for p in workers(process)}
        checks = ("not_a_server_error", "status_code_conformance", "content_type_conformance",
                  "response_schema_conformance", "unsupported_method")
        command = [protocol_clients()/"schemathesis", "--config-file", config, "run", f"{url}/openapi.json",
                   "--checks", ",".join(checks), "--phases", "examples,coverage,fuzzing", "--max-examples",
                   str(rounds(30, soak=2_000)), "--seed", "1", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1100, cwd=made)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert {p.pid for p in workers(process)} == pids
        assert post(f"{url}/models/churn/predict", {"rows": [GOOD]}).status_code == 200
    print(done.stdout[-1500:])
