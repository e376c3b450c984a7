"What a notebook's cell and a terminal show of every public object: short, narrow, and a table where there is one."
import re

import numpy as np
import pytest
from conftest import own_copy

import scalai_nb as sn
from scalai_nb.core.resources import shipped

LINES, COLUMNS = 10, 100
HTML = 400_000  # characters; a notebook with a few of them still opens at once


def objects(settings) -> dict:
    "One of each kind that a user meets, made from a workspace of the demo."
    from scalai_nb.data.loader import Loader
    from scalai_nb.jobs.record import Record
    from scalai_nb.loop.gate import gate
    from scalai_nb.monitor.thresholds import Policy
    from scalai_nb.training.comparison import compare_models
    from scalai_nb.training.split import Split
    flights, registry = sn.Table("flights", settings), sn.Registry(settings)
    profile, version = flights.profile(), registry.champion("late")
    windows = list(flights.profiles(by="period").values())
    run = registry.run(version.run_id)
    rows = sn.Table("features", settings).to_pandas().head(2000)
    rng = np.random.default_rng(0)
    late = rng.random(1000) < .3
    contract = sn.Contract.infer(profile)
    return {
        "Settings": settings,
        "Table": flights,
        "Quarantine": flights.quarantine,
        "Profile": profile,
        "Column": profile["dep_delay"],
        "Contract": contract,
        "Checked": contract.check(flights.head(500)),
        "Written": sn.write(rows, "copied", settings=settings),
        "Prep": run.prep,
        "Split": Split("fold", "==", 0),
        "Loader": Loader(rows, run.prep),
        "Run": run,
        "Evaluation": run.evaluate(rows),
        "Registry": registry,
        "ModelVersion": version,
        "ModelComparison": compare_models(registry, "late@champion", "late@champion", rows),
        "Policy": Policy(),
        "Report": sn.compare(windows[0], windows[-1]),
        "Verdict": gate(rng.random(1000), late, rng.random(1000)),
        "Workflow": sn.Workflow.load(shipped("workflows")/"loop.toml"),
        "JobRun": Record(settings).runs()[0],
    }


def test_every_public_object_is_shown_in_ten_lines_and_as_html(demo, tmp_path):
    wrong = []
    for name, thing in objects(own_copy(demo, tmp_path/"copy")).items():
        lines = repr(thing).splitlines()
        if type(thing).__name__ != name: wrong.append(f"{name} is a {type(thing).__name__}")
        if len(lines) > LINES or max(map(len, lines)) > COLUMNS:
            wrong.append(f"{name}: {len(lines)} lines, {max(map(len, lines))} columns")
        if re.search(r" object at 0x|<scalai_nb", repr(thing)): wrong.append(f"{name} has no repr of its own")
        page = thing._repr_html_() if hasattr(thing, "_repr_html_") else ""
        if not page.lstrip().startswith("<") or len(page) > HTML:
            wrong.append(f"{name}: {len(page)} characters of HTML")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("name", "ours"), [("to_df", "to_pandas()"), ("collect", "arrow()"), ("to_dask", "frame()")])
def test_an_attribute_of_another_library_is_answered_with_ours(workspace, name, ours):
    with pytest.raises(AttributeError) as caught: getattr(sn.Table("none"), name)
    assert str(caught.value) == f"Table has no {name}; use {ours}"
