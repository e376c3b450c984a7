"""What only a GPU can show. Run by `make gpu`, which writes RESULTS.md; elsewhere each says why it was skipped."""
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from scalai_nb.core import device

pytestmark = pytest.mark.skipif(
    not device.available(), reason="no CUDA device with cuDF here: the GPU path is written, never run"
)


@pytest.fixture
def measured(record_property): return lambda **said: [record_property(k, v) for k, v in said.items()]


@pytest.fixture
def rows(flights):
    "The flights in the types that cuDF has."
    return flights.assign(time_hour=pd.to_datetime(flights["time_hour"]).dt.tz_localize(None).astype("datetime64[us]"))


def on_gpu(frame): return device.cudf().DataFrame.from_arrow(pa.Table.from_pandas(frame, preserve_index=False))


def best(fn, n=3):
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_profile(rows, measured):
    "The profile of the flights on cuDF has the digest of the one on pandas."
    from scalai_nb.data.profile import profile
    here, there = profile(rows), profile(on_gpu(rows))
    measured(digest=there.digest[:12])
    assert there == here


@pytest.mark.parametrize(
    "kind", ["float64", "float32", "int64", "uint64", "bool", "instant", "instant_ns", "span", "text", "list", "money"]
)
def test_hostile_values(kind, measured):
    "Hostile values of a type: the same digest on cuDF."
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
    from test_laws import SORTS, values

    from scalai_nb.data.profile import profile
    counted = []

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def law(data):
        n = data.draw(st.integers(0, 50))
        table = pa.table({"x": pa.array(data.draw(values(kind, n)), SORTS[kind][0])})
        counted.append(n)
        assert profile(device.cudf().DataFrame.from_arrow(table)).digest == profile(table).digest
    law()
    measured(type=kind, cases=len(counted))


def test_time_zones(flights, measured):
    "Times with a zone stay the same instants."
    from scalai_nb.data.profile import profile
    few = flights[["time_hour"]].head(5_000)
    assert profile(on_gpu(few))["time_hour"].min == profile(few)["time_hour"].min


def test_cluster(rows, measured):
    "A profile on LocalCUDACluster, dask-cudf partitions."
    from scalai_nb.core.cluster import cluster
    from scalai_nb.data.profile import profile
    lazy = device.dask_cudf().from_cudf(on_gpu(rows), npartitions=8)
    with cluster(kind="cuda") as client:
        measured(workers=len(client.scheduler_info()["workers"]))
        assert profile(lazy) == profile(rows)


def test_prep(rows, measured):
    "prep.transform of a cuDF frame equals that of pandas."
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    prep = Prep.fit(profile(rows), {"tailnum": "hash"}, target="arr_delay", exclude=["year"])
    frame = on_gpu(rows)
    np.testing.assert_array_equal(prep.transform(frame), prep.transform(rows))
    measured(rows_per_second=f"{len(rows) / best(lambda: prep.transform(frame)):,.0f}")


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_loader(tmp_path, rows, memory, measured):
    "The loader's batches are pinned, and their copies arrive whole."
    import pyarrow.dataset as ds
    import torch

    from scalai_nb.data.loader import Loader
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    rows[["dep_delay", "distance", "carrier", "month"]].to_parquet(tmp_path/"rows.parquet", row_group_size=20_000)
    prep = Prep.fit(profile(rows[["dep_delay", "distance", "carrier", "month"]]), target="month")
    loader, n = Loader(ds.dataset(tmp_path), prep, batch_size=4096, memory=memory), 0
    start = time.perf_counter()
    for x, y in loader:
        assert x.is_pinned() and y.is_pinned()
        there = x.to("cuda", non_blocking=True)
        n += len(y)
    torch.cuda.synchronize()
    measured(kept=memory > 0, rows_per_second=f"{n / (time.perf_counter() - start):,.0f}")
    assert torch.equal(there.cpu(), x)


@pytest.fixture
def digits():
    from sklearn.datasets import load_digits
    X, y = load_digits(return_X_y=True)
    return X.astype("float32"), (y % 2).astype("float32")


@pytest.mark.parametrize("ranks", [1, 2])
def test_fit(workspace, digits, ranks, measured):
    "fit learns on CUDA; with a GPU for each of two ranks, over NCCL."
    import torch

    from scalai_nb.training.fit import fit
    from scalai_nb.training.models import MLP
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"{torch.cuda.device_count()} GPU here, {ranks} ranks want one each")
    run = fit(MLP, digits, ranks=ranks, epochs=5, batch_size=128)
    measured(
        ranks=ranks,
        val_auc=round(run.metrics["val_auc"], 4),
        rows_per_second=f"{run.history[-1]['rows_per_second']:,.0f}",
    )
    assert run.metrics["val_auc"] > .9


def around():
    import torch
    import torch.distributed as dist
    x = torch.ones(1, device="cuda")
    dist.all_reduce(x)
    return dist.get_backend(), float(x)


def test_nccl(workspace, measured):
    "A launched rank talks NCCL on its own GPU."
    import torch

    from scalai_nb.core.cluster import cluster
    from scalai_nb.training.launch import launch
    ranks = min(2, torch.cuda.device_count())
    with cluster(kind="threads") as client: told = launch(around, ranks=ranks, client=client)
    measured(ranks=ranks)
    assert told == [("nccl", float(ranks))] * ranks


def test_int8_score(digits, measured):
    "An int8 graph scores alike through ONNX Runtime's CUDA provider."
    import onnxruntime

    from scalai_nb.compression.export import graph
    from scalai_nb.compression.quantize import quantize
    from scalai_nb.training.models import MLP
    from scalai_nb.training.onnx_session import cuda_is_there
    if not cuda_is_there(): pytest.skip("ONNX Runtime has no CUDA provider: pip install 'scalai-nb[serve-gpu]'")
    X, _ = digits
    proto = quantize(graph(MLP(X.shape[1]).eval(), X.shape[1]), X[:512]).SerializeToString()
    sessions = [
        onnxruntime.InferenceSession(proto, providers=[p]) for p in ("CPUExecutionProvider", "CUDAExecutionProvider")
    ]
    here, there = (s.run(None, {"features": X})[0] for s in sessions)
    assert sessions[1].get_providers()[0] == "CUDAExecutionProvider"
    measured(
        difference=float(np.abs(here - there).max()),
        rows_per_second=f"{len(X) / best(lambda: sessions[1].run(None, {'features': X})):,.0f}",
    )
    assert np.abs(here - there).max() < 1e-2


@pytest.mark.parametrize("rows_count", [1_000_000, 20_000_000])
def test_profile_bench(rows_count, measured):
    "Profile of a cuDF frame beside the same rows in pandas: 8 numeric columns, the data where each is at home."
    from scalai_nb.data.profile import profile
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            **{f"f{i}": rng.normal(size=rows_count) for i in range(4)},
            **{f"i{i}": rng.integers(0, 10 ** (i + 2), rows_count) for i in range(4)},
        }
    )
    frame = device.cudf().DataFrame.from_arrow(table)
    assert profile(frame).digest == profile(table).digest
    there, here = best(lambda: profile(frame)), best(lambda: profile(table))
    measured(
        rows=f"{rows_count:,}", gpu_seconds=round(there, 3), cpu_seconds=round(here, 3), times=round(here / there, 2)
    )


def test_serving_on_cuda(measured):
    "A CNN behind the HTTP service's session: rows a second on the GPU and on the CPU, the same answers."
    import torch

    from scalai_nb.compression import export as ex
    from scalai_nb.training.onnx_session import cuda_is_there, device_of, runtime
    if not cuda_is_there(): pytest.skip("ONNX Runtime has no CUDA provider: pip install 'scalai-nb[serve-gpu]'")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3),
                                torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                                torch.nn.Linear(64, 10)).eval()
    content = ex.finish(ex.graph(model, (3, 64, 64), "multiclass"), None, "multiclass").SerializeToString()
    sessions = {device: runtime(content, 0, "The CNN", device) for device in ("cpu", "cuda")}
    X = np.random.default_rng(0).random((1024, 3, 64, 64), np.float32)
    run = {device: lambda s=s: s.run(["score"], {"features": X})[0] for device, s in sessions.items()}
    assert device_of(sessions["cuda"]) == "cuda"
    np.testing.assert_allclose(run["cuda"](), run["cpu"](), atol=1e-4)
    measured(**{f"{device} rows/s": f"{len(X)/best(fn):,.0f}" for device, fn in run.items()})


def test_half_precision_on_cuda(measured):
    "A wide network in float16 and in float32 through the CUDA provider: milliseconds of 64 rows, and how far apart."
    import torch

    from scalai_nb.compression import export as ex
    from scalai_nb.compression.benchmark import timings
    from scalai_nb.compression.quantize import half_precision
    from scalai_nb.training.networks import TabularMLP
    from scalai_nb.training.onnx_session import cuda_is_there
    if not cuda_is_there(): pytest.skip("ONNX Runtime has no CUDA provider: pip install 'scalai-nb[serve-gpu]'")
    torch.manual_seed(0)
    graph = ex.graph(TabularMLP(200, hidden=(2048, 2048, 2048)).eval(), (200,), "binary")
    files = [ex.finish(g, None, "binary").SerializeToString() for g in (graph, half_precision(graph))]
    X = np.random.default_rng(0).normal(size=(64, 200)).astype(np.float32)
    took = timings(files, X, ((64, 1, 200),), device="cuda")
    whole, half = (ex.run_scores(ex.session(f, 1, "cuda"), {"features": X}) for f in files)
    measured(float32_ms=round(took[0][0]["p50_ms"], 3), float16_ms=round(took[1][0]["p50_ms"], 3),
             difference=float(np.abs(whole - half).max()))
    assert np.abs(whole - half).max() < 1e-2
