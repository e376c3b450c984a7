"The law of prep on hostile rows, and its graph joined to a real network's."
import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_laws import SORTS, values

import scalai_nb as sn
from scalai_nb.compression.export import export
from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.data.prep import Prep
from scalai_nb.data.prep_onnx import feeds, inputs_of
from scalai_nb.data.profile import profile
from scalai_nb.serving.score import Scorer

WORDS = ["UA", "AA", "", " ", "Ω", "a\0b", "N/A", "null", "é" * 40, "<b>", "=1+1"]
numbers = st.one_of(
    st.none(),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e9 + 1, 1e308, -1e308, 5e-324]),
    st.floats(width=64),
    st.floats(-100, 100),
)
texts = st.one_of(st.none(), st.sampled_from(WORDS), st.text(max_size=5))
times = st.one_of(st.none(), st.integers(-2**62, 2**62), st.integers(0, 2 * 10**15))
flags = st.one_of(st.none(), st.booleans())
KINDS = {
    "standard": (pa.float64(), numbers),
    "log": (pa.float64(), numbers),
    "number": (pa.float64(), numbers),
    "quantile": (pa.float64(), numbers),
    "onehot": (pa.large_string(), texts),
    "code": (pa.large_string(), texts),
    "frequency": (pa.large_string(), texts),
    "hash": (pa.large_string(), texts),
    "dates": (pa.timestamp("us"), times),
    "flag": (pa.bool_(), flags),
    "small": (pa.float64(), st.one_of(st.none(), st.integers(-3, 3).map(float), numbers)),
    "few": (pa.float64(), st.one_of(st.none(), st.integers(-3, 3).map(float), numbers)),
}
STEPS = {"flag": "number", "small": "onehot", "few": "code"}


def rows(names, size):
    return st.fixed_dictionaries({n: st.lists(KINDS[n][1], min_size=size, max_size=size) for n in names})


@st.composite
def tables(draw):
    "Rows to fit on, rows to answer for: the second knows nothing of the first."
    names = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6, unique=True))
    made = [draw(st.integers(1, 12).flatmap(lambda n: rows(names, n))) for _ in range(2)]
    return [pa.table({n: pa.array(v, KINDS[n][0]) for n, v in t.items()}) for t in made]


def answer(prep, frame):
    session = onnxruntime.InferenceSession(prep.onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds(frame, prep.inputs))[0]


def fit(table):
    asked, left = {n: STEPS.get(n, n) for n in table.column_names}, {}
    p = profile(table)
    for n, step in asked.items():
        try: Prep.fit(p, {n: step}, exclude=[m for m in asked if m != n])
        except BadRequest: left[n] = "drop"  # nothing to learn: no value, no category
    return None if len(left) == len(asked) else Prep.fit(p, {**asked, **left})


def holds(prep, frame):
    want = prep.transform(frame)
    assert want.dtype == np.float32 and want.shape == (frame.num_rows, len(prep.features))
    assert np.isfinite(want).all()
    got = answer(prep, frame)
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.all(np.abs(got.astype(float) - want) <= 1e-6 * np.maximum(1, np.abs(want)))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables())
def test_the_graph_answers_what_transform_answers(pair):
    seen, new = pair
    prep = fit(seen)
    if prep is None: return
    holds(prep, seen)
    holds(prep, new)
    holds(Prep.from_json(prep.to_json()), new)


CLOTHES = [
    "float64",
    "float32",
    "float16",
    "int64",
    "int8",
    "uint64",
    "bool",
    "money",
    "wide",
    "date32",
    "date64",
    "time",
    "time_s",
    "span",
    "span_ms",
    "instant",
    "instant_s",
    "instant_ns",
    "zone",
    "utc",
    "text",
    "large",
]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_graph_answers_alike_in_every_type(data):
    """Numbers, decimals, dates, times with a zone, text:

    fitted on some rows, asked for others that lie far beyond them; by every step that fits the type."""
    kinds = data.draw(st.lists(st.sampled_from(CLOTHES), min_size=1, max_size=4, unique=True))
    seen, new = (
        pa.table({k: pa.array(data.draw(values(k, n)), SORTS[k][0]) for k in kinds})
        for n in data.draw(st.tuples(st.integers(1, 15), st.integers(1, 15)))
    )
    p, steps = profile(seen), {}
    for k in kinds:
        fitting = [s for s in STEPS_OF[p[k].kind] if fits(p, k, s)]
        steps[k] = data.draw(st.sampled_from(fitting)) if fitting else "drop"
    if set(steps.values()) == {"drop"}: return
    prep = Prep.fit(p, steps)
    holds(prep, seen)
    holds(prep, new)
    holds(prep, pa.concat_tables([new, pa.table({k: pa.nulls(2, SORTS[k][0]) for k in kinds})]))
    holds(Prep.from_json(prep.to_json()), new)


STEPS_OF = {
    "number": ["standard", "log", "number", "quantile", "onehot"],
    "boolean": ["standard", "number"],
    "time": ["dates"],
    "text": ["onehot", "frequency", "hash"],
    "null": [],
}


def fits(p, name, step):
    try: return bool(Prep.fit(p.select([name]), {name: step}))
    except BadRequest: return False  # no value, or too many categories


def test_no_rows():
    t = pa.table({"x": [1., 2., None], "c": ["a", "b", None], "t": pa.array([1, 2, None], pa.timestamp("us"))})
    prep = Prep.fit(profile(t), {"x": "standard", "c": "onehot"})
    assert prep.transform(t.slice(0, 0)).shape == (0, len(prep.features))
    assert answer(prep, t.slice(0, 0)).shape == (0, len(prep.features))


def test_frames_of_every_kind_answer_alike(backend):
    t = pa.table(
        {
            "x": [1.0, None, 3.0],
            "n": [1, None, 3],
            "c": ["a", None, ""],
            "b": [True, None, False],
            "t": pa.array([0, None, 10**15], pa.timestamp("us", "America/New_York")),
            "d": pa.array([0, None, 9000], pa.date32()),
        }
    )
    prep = Prep.fit(profile(t), {"c": "onehot"})
    want = prep.transform(t)
    batches = t.to_batches()
    frames = [
        t.to_pandas(),
        t.to_pandas(types_mapper=pd.ArrowDtype),
        batches[0],
        t.to_pylist()
        and {c: t[c].to_pylist() for c in ("x", "n", "c", "b")}
        | {"t": t["t"].combine_chunks(), "d": t["d"].combine_chunks()},
        t.set_column(2, "c", t["c"].dictionary_encode()),
        pa.concat_tables([t.slice(0, 1), t.slice(1)]),
        t.to_pandas().astype({"c": "category"}),
    ]
    if backend.name == "cudf":
        # cuDF has no dates without a time
        frames = [backend.frame(t.drop_columns("d").to_pandas().assign(d=t["d"].cast(pa.timestamp("s")).to_pandas()))]
    for f in frames: np.testing.assert_array_equal(prep.transform(f), want)


def test_what_training_never_saw_gets_a_defined_answer():
    t = pa.table({"x": [1., 2., 3.] * 10, "c": ["a", "b", "c"] * 10})
    prep = Prep.fit(profile(t))
    assert prep.features == ["x", "c=a", "c=b", "c=c"]  # no flag whose weight would have learnt nothing
    got = prep.transform({"x": [None, np.nan, np.inf, -np.inf, 99.], "c": [None, "", "z", "a", "b"]})
    median, most, least = prep.transform({"x": [2., 3., 1.], "c": ["a"] * 3})[:, 0]
    np.testing.assert_array_equal(got[:, 0], [median, median, most, least, most])
    np.testing.assert_array_equal(got[:, 1:], [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    "frame, message", [({"x": [1.0]}, "'c' is missing"), ({"x": ["one"], "c": ["a"]}, "'x' is string")]
)
def test_wrong_rows_say_which_column(frame, message):
    prep = Prep.fit(profile(pa.table({"x": [1., 2.], "c": ["a", "b"]})))
    for ask in (prep.transform, lambda f: feeds(f, prep.inputs)):
        with pytest.raises(BadRequest, match=message): ask(frame)


def test_columns_may_be_called_as_what_a_file_answers(tmp_path):
    rng = np.random.default_rng(0)
    rows = pa.table({"score": rng.normal(size=400), "features": rng.normal(size=400), "model/x": rng.normal(size=400),
                     "label": rng.choice(["a", "b", None], 400)})
    rows = rows.append_column("y", pa.array(np.asarray(rows["score"]) > 0))
    run = sn.fit("auto", rows, target="y", epochs=1, settings=Settings(root=tmp_path))
    scorer = Scorer(export(run.model, run.prep, tmp_path/"model.onnx"))
    assert scorer.columns == ["score", "features", "model/x", "label"]
    assert np.abs(scorer.score(rows) - np.asarray(run.predict(rows))).max() < 1e-5


def test_flights_joined_to_a_network(flights, tmp_path):
    import onnx
    import torch
    names = [
        "month",
        "carrier",
        "origin",
        "dest",
        "tailnum",
        "distance",
        "sched_dep_time",
        "dep_delay",
        "air_time",
        "time_hour",
    ]
    some = pa.Table.from_pandas(flights[names].iloc[::20], preserve_index=False)
    prep = Prep.fit(profile(some), {"month": "onehot", "air_time": "quantile"})
    net = torch.nn.Sequential(
        torch.nn.Linear(len(prep.features), 16), torch.nn.ReLU(), torch.nn.Linear(16, 1), torch.nn.Sigmoid()
    ).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        net,
        (torch.zeros(2, len(prep.features)),),
        path,
        input_names=["x"],
        output_names=["score"],
        opset_version=18,
        dynamic_shapes=({0: torch.export.Dim("N")},),
        external_data=False,
        verbose=False,
    )
    model, front = onnx.load(path), prep.onnx()
    assert front.ByteSize() < 12_000
    model.ir_version = front.ir_version
    whole = onnx.compose.merge_models(front, model, io_map=[("features", "x")])
    onnx.checker.check_model(whole)
    session = onnxruntime.InferenceSession(whole.SerializeToString())
    assert inputs_of(session) == inputs_of(whole) == prep.inputs
    rows = pa.concat_tables([some.slice(0, 500), pa.table({n: pa.nulls(3, some.schema.field(n).type) for n in names})])
    got = session.run(None, feeds(rows, prep.inputs))[0]
    with torch.no_grad(): want = net(torch.from_numpy(prep.transform(rows))).numpy()
    assert np.abs(got - want).max() <= 1e-5


def test_fitted_from_parts_or_from_the_whole(flights):
    t = pa.Table.from_pandas(
        flights[["month", "carrier", "dest", "tailnum", "dep_delay", "air_time", "time_hour"]].iloc[::7],
        preserve_index=False,
    )
    parts = sum(profile(t.slice(i, 5000)) for i in range(0, t.num_rows, 5000))
    whole, steps = profile(t), {"air_time": "quantile", "month": "onehot"}
    a, b = Prep.fit(parts, steps), Prep.fit(whole, steps)
    assert a.features == b.features and a.digest == b.digest
    np.testing.assert_allclose(a.transform(t), b.transform(t), atol=1e-6)


def test_numbers_in_other_clothes():
    from datetime import time, timedelta
    from decimal import Decimal
    t = pa.table(
        {
            "price": pa.array([Decimal("1.25"), None, Decimal("-3.5")], pa.decimal128(7, 2)),
            "waited": pa.array([timedelta(seconds=90), None, timedelta(0)]),
            "at": pa.array([time(6), None, time(23, 59)]),
            "big": pa.array([2**63 - 1, None, -(2**63)], pa.int64()),
            "count": pa.array([0, None, 2**64 - 1], pa.uint64()),
        }
    )
    prep = Prep.fit(profile(t), {n: "standard" for n in t.column_names})
    holds(prep, t)
    assert prep.steps["waited"].center == 45.


def test_texts_too_long_to_name_share_a_feature():
    long = ["x" * 2000 + c for c in "ab"]
    t = pa.table({"c": [*long, "short"] * 10})
    prep = Prep.fit(profile(t), {"c": "onehot"})
    assert prep.features == ["c=short", "c__other"]
    holds(prep, t)


def test_bytes_are_left_out():
    t = pa.table({"raw": [b"\xff", b"a"] * 9, "x": np.arange(18.)})
    assert Prep.fit(profile(t)).dropped == {"raw": "binary values"}
    with pytest.raises(BadRequest, match="'raw' holds binary"): Prep.fit(profile(t), {"raw": "onehot"})
