"Parts of a model served apart, models that take arrays or pictures, and the device that they run on."
# ruff: noqa: F401
import asyncio
import base64
from functools import cache
from io import BytesIO

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import scalai
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightgbm.sklearn import LGBMClassifier
from PIL import Image
from test_serve import ARROW, GOOD, JSON, MODELS, customers, documents, inputs, made, own, scored, serving, stream
from test_serve_protocols import VALUES, post

from scalai_nb.compression import export as ex
from scalai_nb.compression.quantize import calibration, quantize
from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.data.model_inputs import READERS, value_feeds
from scalai_nb.data.prep import Prep
from scalai_nb.data.profile import profile
from scalai_nb.data.table import Table
from scalai_nb.training.ensemble import average
from scalai_nb.training.estimators import fit_estimator
from scalai_nb.training.graph_parts import graph_part
from scalai_nb.training.models import MLP
from scalai_nb.training.networks import fashion_mnist
from scalai_nb.training.onnx_session import CUDA, device_of, providers, runtime
from scalai_nb.training.registry import Registry
from scalai_nb.training.run import Run

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


# -- the cut ---------------------------------------------------------------------------------------------------------

@cache
def candidates() -> dict:
    "The same prep, with every kind of step, in front of a network, its int8 file, trees, and the mean of two."
    rows = customers(400)
    known = [c for c in rows.columns if c not in ("customer_id", "churn")]
    prep = Prep.fit(profile(rows[known]))
    X, y = np.asarray(prep.transform(rows[known]), np.float32), (rows.churn == "yes").to_numpy("float32")
    torch.manual_seed(0)
    network = MLP(len(prep.features)).eval()
    trees = fit_estimator(LGBMClassifier(n_estimators=20), X, y, X[:0], "binary")
    models = {"network": network, "trees": trees, "mean": average(network, trees, "binary")}
    graphs = {n: ex.graph(m, X.shape[1], "binary") for n, m in models.items()}
    graphs["int8"] = quantize(ex.graph(network, X.shape[1], "binary"), calibration(X))
    found = {}
    for name, half in graphs.items():
        whole = ex.sealed(ex.finish(half, prep, "binary"))
        found[name] = [runtime(c, 1, name) for c in (whole, graph_part(whole, "prep"), graph_part(whole, "model"))]
    return {"inputs": prep.inputs, **found}


@pytest.mark.parametrize("name", ["network", "trees", "mean", "int8"])
@FEW
@given(data=st.data())
def test_prep_and_then_model_give_what_the_whole_file_gives_bit_for_bit(name, data):
    known, (whole, prep, model) = candidates()["inputs"], candidates()[name]
    rows = data.draw(st.lists(st.tuples(*(VALUES[n].map(READERS[k]) for n, k in known)), min_size=1, max_size=70))
    feeds = value_feeds(rows, known)
    features = prep.run(["features"], feeds)[0]
    assert features.dtype == np.float32 and np.isfinite(features).all()
    score = model.run(["score"], {"features": features})[0]
    assert score.tobytes() == whole.run(["score"], feeds)[0].tobytes()


# -- over HTTP -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def parts(made):  # noqa: F811
    "The prep and the network of all models, each by a service of its own; their addresses."
    with serving(made, *MODELS, "--part", "prep", "--workers", "1") as (prep, _), \
         serving(made, *MODELS, "--part", "model", "--workers", "1") as (model, _): yield prep, model


@pytest.mark.parametrize("name", MODELS)
def test_two_services_answer_what_score_writes_bit_for_bit(parts, made, scored, name):  # noqa: F811
    prep, model = (f"{url}/models/{name}/predict" for url in parts)
    rows = Table("customers", Settings(root=made)).arrow().slice(0, 300)
    known, want = inputs(made, name), scored[name].slice(0, 300)
    if name == "churn": known = ["customer_id", *known]
    features = httpx.post(prep, content=stream(rows.select(known)), headers=ARROW)
    assert features.status_code == 200, features.text
    table = pa.ipc.open_stream(features.content).read_all()
    assert table.column_names == ["customer_id"]*(name == "churn") + ["features", "model_version"]
    done = pa.ipc.open_stream(httpx.post(model, content=features.content, headers=ARROW).content).read_all()
    sent = httpx.post(prep, json={"rows": documents(rows, known)}).json()
    assert np.array_equal(np.float32([r["features"] for r in sent["rows"]]), np.float32(table["features"].to_pylist()))
    said = httpx.post(model, json=sent).json()
    columns = httpx.post(prep, json={"columns": {c: [r[c] for r in documents(rows, known)] for c in known}}).json()
    by_column = httpx.post(model, json=columns).json()["columns"]
    assert done["prediction"].to_pylist() == want["prediction"].to_pylist() == by_column["prediction"]
    assert [r["prediction"] for r in said["rows"]] == want["prediction"].to_pylist()
    if name != "charge": assert done["score"].to_pylist() == want["score"].to_pylist() == by_column["score"]
    if name == "churn": assert [r["customer_id"] for r in said["rows"]] == rows["customer_id"].to_pylist()


def test_a_part_describes_and_checks_itself(parts):
    prep, model = (f"{url}/models/churn" for url in parts)
    row = GOOD
    features = post(f"{prep}/predict", {"rows": [row]}).json()["rows"][0]["features"]
    for url, body, message in (
            (prep, {"rows": [row | {"tenure": "3"}]}, "expected a number"),
            (prep, {"rows": [{"features": features}]}, 'Unknown column "features"'),
            (model, {"rows": [row]}, "Column 'features' is missing"),
            (model, {"rows": [{"feature": features}]}, 'Did you mean \'features\'?'),
            (model, {"rows": [{"features": features[:-1]}]}, f"expected {len(features)} numbers"),
            (model, {"rows": [{"features": [None, *features[1:]]}]}, f"expected {len(features)} numbers"),
            (model, {"rows": [{"features": features}, {"features": "x"}]}, f'"x", expected {len(features)} numbers')):
        answer = post(f"{url}/predict", body)
        assert answer.status_code == 422 and message in answer.text.replace('\\"', '"'), answer.text
    assert post(f"{model}/predict", b"a,b", **{"content-type": "text/csv"}).status_code == 415
    some = post(f"{model}/predict?partial=1", {"rows": [{"features": features}, {"features": []}]}).json()
    assert some["rows"][0]["prediction"] in ("no", "yes") and some["rows"][1] is None and some["errors"][0]["row"] == 1
    for url, said in ((prep, "answers features"), (model, "takes the features")):
        assert said in httpx.get(url).text
        document = httpx.get(url.replace("/models/churn", "/openapi.json")).json()
        assert [p for p in document["paths"] if "churn" in p] == ["/models/churn/predict"]
        assert httpx.post(url.replace("/models/", "/v2/models/") + "/infer", json={}).status_code == 404
        example = document["paths"]["/models/churn/predict"]["post"]["requestBody"]["content"][JSON]["example"]
        assert post(f"{url}/predict", example).status_code == 200


def test_features_of_one_version_are_never_scored_by_another(own):  # noqa: F811
    Registry(Settings(root=own)).set_trial("churn", "canary", 2)
    (own/"models"/"churn.toml").write_text('table = "customers"\ntarget = "churn"\n[serve]\ncanary = 0.5\n')
    one = ("churn", "--workers", "1")
    with serving(own, *one, "--part", "prep") as (prep, _), serving(own, *one, "--part", "model") as (model, _), \
         serving(own, *one) as (whole, _):
        versions = set()
        for i in range(12):
            rows = {"rows": [GOOD | {"customer_id": f"{i:06}"}]}
            features = post(f"{prep}/models/churn/predict", rows)
            done, want = (post(f"{url}/models/churn/predict", body).json() for url, body in (
                (model, features.content), (whole, rows)))
            assert (done["model_version"], done["rows"]) == (want["model_version"], want["rows"])
            versions.add(done["model_version"])
        assert versions == {1, 2}
        other = features.json() | {"model_version": 3}
        refused = post(f"{model}/models/churn/predict", other)
        assert (refused.status_code, refused.json()["error"]["kind"]) == (409, "version")


@pytest.mark.parametrize(("words", "message"), [(["churn", "--part", "perp"], "Did you mean 'prep'?")], ids=str)
def test_a_part_that_is_not_there_is_refused_in_two_lines(made, words, message):  # noqa: F811
    done = scalai("serve", *words, "--port", "0", cwd=made)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 2, done.err


# -- pictures --------------------------------------------------------------------------------------------------------

NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    sink = BytesIO()
    Image.fromarray(pixels).save(sink, kind, quality=95)
    return sink.getvalue()


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    "A CNN of Fashion-MNIST's shape behind `scalai serve`; its address, the test pictures, and what the file says."
    folder, (X, _) = tmp_path_factory.mktemp("clothes"), fashion_mnist("test")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.MaxPool2d(4),
        torch.nn.Flatten(), torch.nn.Linear(8*49, 10)).eval()
    run = Run(id="cnn", model=model, prep=None, target=None, task="multiclass")
    registry = Registry(Settings(root=folder))
    path = ex.export(model, None, folder/"cnn.onnx", "multiclass", (1, 28, 28), labels=ex.Labels(NAMES))
    registry.promote("clothes", registry.register("clothes", path, run), "first")
    (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n[serve]\nflush = 0.5\n")
    pictures = X[:64].reshape(-1, 28, 28)
    features = (pictures[:, None].astype("f4")/255).astype("f4")
    with serving(folder, "clothes", "--workers", "1") as (url, _):
        yield url, pictures, ex.run_scores(ex.session(path), {"features": features}, 1), folder


def test_a_picture_is_answered_in_every_form(clothes):
    url, pictures, want, _ = clothes
    predict = f"{url}/models/clothes/predict"
    scores = lambda answer: np.float32([list(r["scores"].values()) for r in answer.json()["rows"]])
    png = [encoded(p) for p in pictures]
    one = httpx.post(predict, content=png[3], headers={"content-type": "image/png"})
    assert one.status_code == 200, one.text
    assert np.array_equal(scores(one), want[3:4]) and one.json()["rows"][0]["prediction"] == NAMES[want[3].argmax()]
    jpeg = encoded(pictures[3], "JPEG")
    again = (np.asarray(Image.open(BytesIO(jpeg)))[None].astype("f4")/255).tolist()
    assert np.array_equal(scores(httpx.post(predict, content=jpeg, headers={"content-type": "image/jpeg"})),
                          scores(post(predict, {"rows": [{"features": again}]})))
    several = httpx.post(predict, files=[("picture", (f"{i}.png", p, "image/png")) for i, p in enumerate(png)])
    assert [r["file"] for r in several.json()["rows"]] == [f"{i}.png" for i in range(64)]
    in_json = post(predict, {"rows": [{"features": base64.b64encode(content).decode()} for content in png]})
    arrays = (pictures[:, None].astype("f4")/255).astype("f4")
    tensor = pa.table({"features": pa.FixedShapeTensorArray.from_numpy_ndarray(arrays)})
    for answer in (several, in_json, post(predict, {"rows": [{"features": a.tolist()} for a in arrays]})):
        assert np.array_equal(scores(answer), want), answer.text[:300]
    for table in (tensor, pa.table({"features": pa.array(png, pa.binary())})):
        done = pa.ipc.open_stream(httpx.post(predict, content=stream(table), headers=ARROW).content).read_all()
        assert np.array_equal(np.float32([list(s.values()) for s in done["scores"].to_pylist()]), want)


def test_one_bad_picture_never_fails_its_neighbours(clothes):
    "A bomb, a cut file, a text, a wide and a coloured one, among good ones, in one form and at the same time."
    url, pictures, want, _ = clothes
    predict, good = f"{url}/models/clothes/predict", [encoded(p) for p in pictures[:6]]
    bad = {"bomb": encoded(np.zeros((5000, 5000), np.uint8)), "cut": good[0][:-40], "text": b"no picture",
           "empty": b"", "wide": encoded(np.zeros((28, 29), np.uint8)),
           "colour": encoded(np.zeros((28, 28, 3), np.uint8))}
    mixed = [pair for pair in zip([(f"{i}", g) for i, g in enumerate(good)], bad.items())]
    form = [("picture", (name, content, "image/png")) for pair in mixed for name, content in pair]
    answer = httpx.post(predict, files=form)
    assert answer.status_code == 200, answer.text
    rows, errors = answer.json()["rows"], answer.json()["errors"]
    assert [r["file"] for r in rows[::2]] == [str(i) for i in range(6)] and rows[1::2] == [None]*6
    assert np.array_equal(np.float32([list(r["scores"].values()) for r in rows[::2]]), want[:6])
    said = {name: e["message"] for name, e in zip(bad, errors)}
    assert "has 5000 × 5000" in said["bomb"] and "has 29 × 28" in said["wide"] and "of mode RGB" in said["colour"]
    assert all("can be read" in said[n] for n in ("cut", "text", "empty")), said

    async def together():
        async with httpx.AsyncClient(timeout=60) as client:
            sent = [client.post(predict, content=c, headers={"content-type": "image/png"})
                    for pair in mixed for _, c in pair]
            return await asyncio.gather(*sent)
    answers = asyncio.run(together())
    assert [a.status_code for a in answers] == [200, 422]*6
    assert all(set(a.json()["error"]) == {"kind", "message", "hint", "row", "column"} for a in answers[1::2])
    for kind, content, status in (("image/gif", good[0], 415), ("image/jpeg", good[0], 422),
                                  ("multipart/form-data; boundary=x", b"--x", 400), ("text/csv", b"a", 415)):
        assert httpx.post(predict, content=content, headers={"content-type": kind}).status_code == status


def test_pictures_have_a_page_an_openapi_and_a_client(clothes):
    import scalai_nb as sn
    url, pictures, want, _ = clothes
    page = httpx.get(f"{url}/models/clothes").text
    assert "28 × 28 pixels, 1 channel" in page and "--data-binary @picture.png" in page and 'type="file"' in page
    operation = httpx.get(f"{url}/openapi.json").json()["paths"]["/models/clothes/predict"]["post"]
    content = {*operation["requestBody"]["content"]}
    assert {"image/png", "image/jpeg", "multipart/form-data", JSON} < content and "text/csv" not in content
    assert sn.Client(url).predict("clothes", encoded(pictures[5]))["prediction"] == NAMES[want[5].argmax()]
    refused = scalai("serve", "clothes", "--part", "prep", "--port", "0", cwd=clothes[3])
    assert refused.code == 2 and "no border" in refused.err and len(refused.err.strip().splitlines()) == 2, refused.err


# -- the device ------------------------------------------------------------------------------------------------------

def test_the_device_is_chosen_by_what_is_there_and_refused_by_name(made, tmp_path, monkeypatch):  # noqa: F811
    "Without a GPU: auto is the CPU, cuda is refused before anything starts; a provider that does not start is none."
    import onnxruntime as ort
    content = Registry(Settings(root=made)).version("churn", 1).path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
        assert providers("auto") == providers("cpu") == ["CPUExecutionProvider"]
        assert device_of(runtime(content, 1, "", "auto")) == "cpu"
        with pytest.raises(BadRequest, match="is not installed"): runtime(content, 1, "", "cuda")
    if CUDA in ort.get_available_providers(): return
    with monkeypatch.context() as patch:
        patch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
        assert [p[0] for p in providers("auto")[:-1]] == [CUDA] == [p[0] for p in providers("cuda")[:-1]]
        assert providers("cpu") == ["CPUExecutionProvider"]
        assert device_of(runtime(content, 1, "", "auto")) == "cpu"
        with pytest.raises(BadRequest, match="does not start here"): runtime(content, 1, "", "cuda")
    done = scalai("serve", "churn", "--port", "0", cwd=made, SCALAI_SERVE__DEVICE="cuda")
    assert done.code == 2 and "The device is cuda" in done.err and len(done.err.strip().splitlines()) == 2, done.err
