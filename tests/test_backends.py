"""The data tests that take frames, on pandas and cuDF; without a GPU, on a stand-in for a cuDF frame."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from scalai_nb.core import device
from scalai_nb.core.errors import BadRequest
from scalai_nb.data.contract import Contract
from scalai_nb.data.hashing import fold
from scalai_nb.data.loader import Loader
from scalai_nb.data.prep import Prep
from scalai_nb.data.profile import profile
from scalai_nb.data.rules import Rule
from scalai_nb.data.table import Table
from scalai_nb.data.write import write

PLAIN = ["month", "day", "dep_delay", "arr_delay", "carrier", "flight", "tailnum", "origin", "distance", "time_hour"]


@pytest.fixture
def rows(flights):
    "Flights in the types that both backends have: no zone, no dates without time."
    some = flights[PLAIN].iloc[::25].reset_index(drop=True)
    return some.assign(time_hour=pd.to_datetime(some["time_hour"]).dt.tz_localize(None).astype("datetime64[us]"))


def test_profiles_are_equal(backend, rows):
    whole = profile(rows)
    odd = backend.frame(rows).iloc[100:]  # its index is no range from 0, and no column
    assert profile(backend.frame(rows)) == whole and profile(backend.frame(rows.iloc[:100])) + profile(odd) == whole
    assert set(profile(odd).columns) == set(rows)
    assert sum(profile(backend.frame(rows), by="carrier").values()) == whole
    assert (
        profile(backend.lazy(rows, 5)) == whole == sum(profile(backend.lazy(rows, 3), by=["month", "origin"]).values())
    )
    assert profile(backend.frame(rows), columns=["carrier", "distance"]) == whole.select(["carrier", "distance"])


def test_folds_are_equal(backend, rows):
    key = ["month", "day", "carrier", "flight", "origin"]
    assert (fold(backend.frame(rows), key) == fold(rows, key)).all()


def test_libcudf_hashes_text_alike():
    "The GPU's XXH64 and ours, by the same seed: neither ever copies text to the other's memory."
    if not device.available(): pytest.skip("no GPU with cuDF here")
    import pylibcudf as plc

    from scalai_nb.data.hashing import SEED, hash64, mix
    rng = np.random.default_rng(0)
    texts = pa.array(["", "Zürich", "JFK", *("".join(map(chr, rng.integers(32, 0x2fff, n))) for n in range(200))])
    there = plc.hashing.xxhash_64(plc.Table([plc.Column.from_arrow(texts)]), SEED["bytes"]).to_arrow()
    assert (mix(there.to_numpy().view("u8"), "bytes") == hash64(texts)).all()


def test_contracts_refuse_the_same(backend, rows):
    contract = Contract(
        {"arr_delay": Rule("float64", required=True), "distance": Rule("int64", max=2000)}, extra="keep"
    )
    here, there = contract.check(rows), contract.check(backend.frame(rows))
    assert here.reasons == there.reasons and sum(here.reasons.values()) > 0 and len(here.good) == len(there.good)


def test_tables_are_equal(workspace, backend, rows):
    from scalai_nb.data.source import read
    contract = Contract({"arr_delay": Rule("float64", required=True)}, extra="keep")
    for i, frame in enumerate((backend.frame(rows), backend.lazy(rows, 4))):
        done = write(frame, f"t{i}", contract, period="month", fold=["month", "day", "carrier", "flight"])
        assert done.rows_in == len(rows) == done.rows_good + done.rows_refused
        assert Table(f"t{i}").profile() == profile(Table(f"t{i}").arrow())
    assert Table("t0").profile() == Table("t1").profile()
    rows.to_parquet("rows.parquet")
    with backend.in_force():
        back, raw = Table("t0").frame(), read("rows.parquet")
        assert device.is_cudf(back) == device.is_cudf(raw) == (backend.name == "cudf")
        assert profile(back) == Table("t0").profile() and profile(raw) == profile(rows)
        assert float(back.distance.sum().compute()) == float(rows[rows.arr_delay.notna()].distance.sum())


def test_features_are_equal(backend, rows):
    prep = Prep.fit(profile(rows), {"tailnum": "hash", "distance": "quantile"}, target="flight", exclude=["arr_delay"])
    want = prep.transform(rows)
    np.testing.assert_array_equal(prep.transform(backend.frame(rows)), want)
    np.testing.assert_array_equal(prep.transform(backend.frame(rows).iloc[500:]), want[500:])
    x, y = next(iter(Loader(backend.frame(rows), prep, batch_size=256, filter=[("month", "<=", 6)])))
    want, _ = next(iter(Loader(rows, prep, batch_size=256, filter=[("month", "<=", 6)])))
    assert (x.cpu() == want.cpu()).all() and len(y) == 256


# Without a GPU: frames that answer as cuDF's do, and refuse everything else.

class DataFrame:
    """The part of cuDF's frame that is relied on (RAPIDS 26.10):

    columns, selection, and Arrow, with an index that would come along as a column."""
    __module__ = "cudf.core.dataframe"
    def __init__(self, table): self.table, self.columns = table, pd.Index(table.column_names)
    def __len__(self): return len(self.table)

    def __getitem__(self, names):
        if isinstance(names, str): return Series(self.table[names])
        return DataFrame(self.table.select(names))

    def to_arrow(self, preserve_index=None):
        return (
            self.table
            if preserve_index is False
            else self.table.append_column("index", pa.array(range(7, 7 + len(self.table))))
        )


class Series:
    __module__ = "cudf.core.series"
    def __init__(self, column): self.column = column
    def to_arrow(self): return self.column.combine_chunks()


def stand_in(rows): return DataFrame(pa.Table.from_pandas(rows, preserve_index=False))


def test_what_a_cudf_frame_is_asked_for(workspace, rows):
    frame, whole = stand_in(rows), profile(rows)
    assert device.is_cudf(frame) and profile(frame) == whole
    assert sum(profile(frame, by="carrier").values()) == whole and profile(frame, columns=["carrier"]) == whole.select(
        ["carrier"]
    )
    assert (fold(frame, ["day", "flight"]) == fold(rows, ["day", "flight"])).all()
    prep = Prep.fit(whole, target="flight", exclude=["arr_delay"])
    np.testing.assert_array_equal(prep.transform(frame), prep.transform(rows))
    assert Loader(frame, prep, batch_size=64, filter=[("month", "==", 1)]).rows == (rows["month"] == 1).sum()
    contract = Contract({"arr_delay": Rule("float64", required=True)}, extra="keep")
    assert contract.check(frame).reasons == contract.check(rows).reasons
    assert write(frame, "t", contract).rows_in == len(rows) and set(Table("t").profile().columns) == set(rows)


def test_a_backend_that_is_not_here_is_asked_for_in_vain(workspace, rows):
    import dask
    if device.available(): pytest.skip("there is a GPU here")
    write(rows.head(10), "t")
    for ask in (lambda: Table("t").frame(), device.cudf, device.dask_cuda):
        with dask.config.set({"dataframe.backend": "cudf"}), pytest.raises(BadRequest, match="no CUDA device") as e:
            ask()
        assert "gpu-cu12" in e.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "dask",
        "read_all",
        "arrow",
        "versions",
        "to_arrow",
        "npartitions",
        "column_names",
        "schema",
        "to_table",
        "dataset",
        "columns",
        "iloc",
        "index",
    ],
)
def test_columns_may_be_called_as_methods_are(name):
    "What a frame is, is asked of its class: a column of that name is a column."
    frame = pd.DataFrame(
        {name: np.arange(40.0), "versions" if name != "versions" else "arrow": np.arange(40.0), "y": np.arange(40) % 2}
    )
    table = pa.Table.from_pandas(frame)
    p = profile(frame)
    assert p == profile(table)
    prep = Prep.fit(p, target="y")
    np.testing.assert_array_equal(prep.transform(frame), prep.transform(table))
    assert len(Contract.infer(p).check(frame).good) == 40 and Loader(frame, prep, batch_size=16).rows == 40
    assert (fold(frame, name) == fold(table, name)).all()
