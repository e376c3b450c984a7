"""Faults of the loop: a vanished champion, a killed retraining, a worse version, a shifted stream."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import nobody_left, own_copy, scalai, until
from test_alerts import Ear, Mail, alertmanager, post

from scalai_nb.core.settings import Settings
from scalai_nb.loop.decisions import decisions, record, settle
from scalai_nb.training.registry import Registry

pytestmark = pytest.mark.timeout(1800)  # the demo is made before, where many others work


@pytest.fixture
def loop(demo, tmp_path) -> Settings:
    "A copy of the demo's workspace: a model that serves, three months of flights, two decisions."
    return own_copy(demo, tmp_path/"d")


def another(settings: Settings, worse: bool = False) -> int:
    "A second version of the champion's model: as good as it, or one whose score is turned round."
    import uuid

    import onnx

    from scalai_nb.compression.export import sealed
    registry = Registry(settings)
    champion = registry.champion("late")
    graph = onnx.load(champion.path)
    if worse:  # the score, turned round
        name = graph.graph.output[0].name
        node = next(n for n in graph.graph.node if name in n.output)
        node.output[list(node.output).index(name)] = "right"
        graph.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1]), "one"))
        graph.graph.node.append(onnx.helper.make_node("Sub", ["one", "right"], [name]))
    graph.doc_string = uuid.uuid4().hex  # a version is known by its file's digest
    path = settings.path("another.onnx")
    path.write_bytes(sealed(graph))
    return registry.register("late", path, registry.run(champion.run_id), tags=champion.tags)


def test_a_champion_that_vanished_is_replaced_by_the_one_before(loop):
    from scalai_nb.loop.probation import restore, serving_version
    registry = Registry(loop)
    first, second = registry.champion("late").version, another(loop)
    record("late", "2013-12", "retrain", ["measured loss"], {}, [], first, "pending", loop)
    registry.promote("late", second, "promoted")
    settle("late", "2013-12", "promoted", second, "promoted", loop)
    registry.version("late", second).path.unlink()
    champion, gone = serving_version("late", loop)
    # a query changes nothing
    assert champion is None and "is gone" in gone and registry.list("late")[0]["aliases"] == ["champion"]
    found, said = restore("late", loop)
    assert (
        found.version == first == registry.champion("late").version
        and "is gone" in said
        and f"version {first} is back" in said
    )
    registry.promote("late", another(loop), "promoted")
    registry.client.delete_model_version("late", str(registry.champion("late").version))
    assert restore("late", loop)[0].version == first == serving_version("late", loop)[0].version


def test_where_no_champion_is_left_the_job_says_so(loop):
    """Files gone with the disk:

    scoring fails in two lines, the gate judges a challenger against the base rate, and nothing serves that does not
    stand."""
    registry = Registry(loop)
    champion = registry.champion("late")
    candidate = loop.root/"kept.onnx"
    shutil.copy(champion.path, candidate)
    for v in registry.list("late"): Path(v["path"]).unlink()
    done = scalai("run", "workflows/score.ipynb", "-p", "period=2013-03", "--json", cwd=loop.root)
    assert done.code == 1 and done.doc["error"]["kind"] == "WorkFailed" and "is gone" in done.doc["error"]["message"]
    gated = scalai(
        "run",
        "workflows/gate.ipynb",
        "-p",
        f"candidate={candidate}",
        "-p",
        f"run_id={champion.run_id}",
        "-p",
        "judged=2013-03",
        "--json",
        cwd=loop.root,
    )
    assert (
        gated.code == 0
        and gated.doc["results"]["passed"]
        and gated.doc["results"]["against"] == 0
        and "of the constant" in gated.doc["results"]["reason"]
    )


def test_a_version_that_does_worse_on_later_labels_is_rolled_back(loop):
    from scalai_nb.loop.probation import trial
    registry, log = Registry(loop), decisions(loop)
    assert all(
        "what version 1 learnt from (2013-01)" in d["against"] and "held out in training" in d["against"]
        for d in log
        if d["version_before"] == 1
    ), log
    first = registry.champion("late").version
    second = another(loop, worse=True)
    registry.promote("late", second, "promoted")
    settle("late", log[-2]["period"], "promoted", second, "promoted", loop)
    # the window that promoted it is no later one
    assert trial("late", log[-2]["period"], settings=loop)["outcome"] == ""
    done = trial("late", log[-1]["period"], settings=loop)
    assert done["outcome"] == "rolled_back" and registry.champion("late").version == first == done["version"], done
    entry = decisions(loop)[-1]
    assert (
        entry["outcome"] == "rolled_back"
        and entry["version_after"] == first
        and entry["trail"][-1]["evidence"]["low"] > 0
        and "later labels" in entry["reasons"][-1]
    )
    state = registry.list("late"), decisions(loop)
    assert trial("late", log[-1]["period"], settings=loop) == done
    assert (registry.list("late"), decisions(loop)) == state  # once


def test_a_shadow_steps_out_when_labels_allow(loop):
    from scalai_nb.loop.probation import trial
    registry, log = Registry(loop), decisions(loop)
    first, shadow = registry.champion("late").version, another(loop)
    settle("late", log[-2]["period"], "shadow", first, "undecided", loop, evidence={"version": shadow})
    done = trial("late", log[-1]["period"], settings=loop)  # as good as the champion, on all rows
    assert (
        done["outcome"] == "promoted"
        and registry.champion("late").version == shadow == decisions(loop)[-1]["version_after"]
    ), done
    bad = another(loop, worse=True)
    settle("late", log[-2]["period"], "shadow", shadow, "undecided", loop, by="again", evidence={"version": bad})
    done = trial("late", log[-1]["period"], settings=loop)
    assert (
        done["outcome"] == "refused"
        and registry.champion("late").version == shadow
        and registry.version("late", bad).aliases == ()
    ), done


RETRAIN = """
import sys
from scalai_nb.core.settings import Settings
from scalai_nb.loop.retrain import retrain
run = retrain("late", "2013-02", ["2013-01", "2013-02"], settings=Settings.load(sys.argv[1]), ranks=1)
print(run.state)
"""


@pytest.mark.slow
def test_a_retraining_killed_midway_leaves_the_champion_and_goes_on(two_months, tmp_path):
    from scalai_nb.jobs.record import Record
    from scalai_nb.loop.retrain import unfinished
    loop = own_copy(two_months, tmp_path/"d")
    before, versions = Registry(loop).champion("late").version, len(Registry(loop).list("late"))
    old = decisions(loop)[-1]
    # labels came
    record(
        "late", "2013-02", "retrain", ["measured loss"], {"labelled": 10**6}, old["reference"], before, "pending", loop
    )
    process = subprocess.Popen(
        [sys.executable, "-c", RETRAIN, str(loop.root)],
        cwd=loop.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(
        lambda: process.poll() is not None
        or any(Path(r.notebook).stem == "train" for r in Record(loop).runs(state="running", nested=True)),
        600,
    )
    assert process.poll() is None, "it ended before it was killed"
    assert unfinished("late", "2013-03", loop) == []  # it runs
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    nobody_left(loop.root, within=30)
    assert (
        Registry(loop).champion("late").version == before
        and len(Registry(loop).list("late")) == versions
        and decisions(loop)[-1]["outcome"] == "pending"
    )

    copy = loop.root.parent/"later"
    shutil.copytree(loop.root, copy)
    # nobody ran it again: the next window closes it
    assert unfinished("late", "2013-03", Settings.load(copy)) == ["2013-02"]
    assert (
        decisions(Settings.load(copy))[-1]["outcome"] == "failed"
        and "never ended" in decisions(Settings.load(copy))[-1]["reasons"][-1]
    )

    # somebody did
    done = subprocess.run(
        [sys.executable, "-c", RETRAIN, str(loop.root)], cwd=loop.root, capture_output=True, text=True
    )
    assert done.stdout.split()[-1] == "succeeded", done.stderr[-2000:]
    entry = decisions(loop)[-1]
    assert entry["outcome"] in ("promoted", "refused", "shadow") and entry["trail"][-1]["evidence"]["rows"] > 500
    assert Registry(loop).champion("late").version == entry["version_after"]


@pytest.mark.slow
def test_the_monitor_s_job_tells_an_alertmanager_and_by_mail(loop, tmp_path):
    "A month with a broken clock, then one as usual: the alarm arrives and is resolved, each told once to each."
    from email import message_from_bytes, policy

    import pyarrow.compute as pc

    from scalai_nb.data.table import Table
    from scalai_nb.data.write import write
    from scalai_nb.serving.score import score
    settings = Settings.load(loop.root)
    rows, mail, version = Table("features", settings).arrow(), Mail(), Registry(settings).champion("late").version
    usual = rows.drop_columns("fold").take(np.random.default_rng(0).permutation(rows.num_rows)[:20_000])
    put = lambda t, name, value: t.set_column(t.column_names.index(name), name, value)
    for period, minutes in (("2013-05", 60), ("2013-06", 0)):
        month = put(put(usual, "dep_delay", pc.add(usual["dep_delay"], minutes)), "period", [[period]*usual.num_rows])
        month = put(month, "flight_id", pc.binary_join_element_wise(period, month["flight_id"], "-"))
        write(
            month,
            "features",
            key=["flight_id"],
            fold=["flight_id"],
            period="period",
            batch=f"made {period}",
            settings=settings,
        )
        score(
            f"late@{version}",
            "features",
            where=[("period", "==", period)],
            label="late",
            key="flight_id",
            period=period,
            keep=["time_hour", "carrier", "origin"],
            settings=settings,
        )
    controller = post(mail)
    with alertmanager(tmp_path, ear := Ear()) as url:
        told = dict(
            SCALAI_ALERTS__ALERTMANAGER=url,
            SCALAI_ALERTS__EMAIL=f"smtp://127.0.0.1:{controller.port}",
            SCALAI_ALERTS__EMAIL_FROM="a@example.org",
            SCALAI_ALERTS__EMAIL_TO="b@example.org",
            SCALAI_MONITOR__RESOLVE_AFTER="1",
        )
        heard = lambda: [
            (h["status"], a["annotations"]["summary"])
            for h in ear.heard
            for a in h["alerts"]
            if a["labels"]["source"] == "features"
        ]
        try:
            for period, count in (("2013-05", 1), ("2013-06", 2)):
                done = scalai(
                    "run",
                    "workflows/monitor.ipynb",
                    "-p",
                    f"period={period}",
                    "-p",
                    f"version={version}",
                    "--json",
                    cwd=loop.root,
                    **told,
                )
                assert done.code == 0, done.out[-3000:]
                until(lambda: len(heard()) == count)
        finally:
            controller.stop()
    (opened, what), (over, end) = heard()
    assert (
        (opened, over) == ("firing", "resolved")
        and what.startswith("features 2013-05: ")
        and "dep_delay: " in what
        and "as usual for 1 window" in end
    ), heard()
    # a folded header unfolds with spaces of its own
    subjects = [" ".join(message_from_bytes(m.content, policy=policy.default)["Subject"].split()) for m in mail.mails]
    assert [s for s in subjects if " features: " in s] == [
        f"[warning] features: {what}"[:150].strip(),
        f"[resolved] features: {end}"[:150].strip(),
    ], subjects


@pytest.mark.slow
def test_the_closed_loop_regains_what_shifts_cost():
    "The bench's stream, one seed: the bounds are wider than the bench's own."
    sys.path.insert(0, str(Path(__file__).parent/"bench"))
    from closed import closed, year
    done = closed(year(), 0)
    assert done["regained"] > 0.85 and done["share"] < 0.4 and done["oracle"] > done["never"] + 0.01, {
        k: v for k, v in done.items() if k != "told"
    }
