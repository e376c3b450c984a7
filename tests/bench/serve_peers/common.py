"""The model as every peer of `scalai serve` has it: the same file in ONNX Runtime on one thread, and the same look at
each value's type.

The modules of this folder run in the peers' own environments, which have nothing of scalai_nb."""
import math
import os

import numpy as np
import onnxruntime

MAX_BATCH = 64  # rows: the connections of the load


def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


SESSION = session()
KINDS = {"tensor(double)": "number", "tensor(string)": "text"}
INPUTS = {i.name: KINDS[i.type] for i in SESSION.get_inputs() if i.type in KINDS}  # no masks of missing texts


def check(row: dict) -> dict:
    "Raise `ValueError` where a column is missing or a value has another type than the model takes."
    if type(row) is not dict: raise ValueError("an object is expected")
    for name, kind in INPUTS.items():
        if name not in row: raise ValueError(f"{name} is missing")
        value = row[name]
        if value is None or type(value) is str and kind == "text": continue
        if kind == "text" or type(value) not in (int, float): raise ValueError(f"{name}: a {kind} is expected")
    return row


def feeds(rows: list[dict]) -> dict:
    found = {}
    for name, kind in INPUTS.items():
        values = [row[name] for row in rows]
        if kind == "number": found[name] = np.array([math.nan if v is None else v for v in values], np.float64)
        else:
            found[name] = np.array(["" if v is None else v for v in values], object)
            found[f"{name}__null"] = np.array([v is None for v in values])
    return found


def predict(rows: list[dict]) -> list[float]:
    "Score rows that `check` has seen."
    return SESSION.run(["score"], feeds(rows))[0].tolist()
