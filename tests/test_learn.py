"Training under faults: ranks, workers and callers that die, stall or are interrupted; resumed weights to the bit."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from scalai_nb.core import events
from scalai_nb.core.cluster import cluster
from scalai_nb.core.errors import BadRequest, Cancelled, TimedOut, WorkFailed
from scalai_nb.core.settings import Settings
from scalai_nb.training import checkpoint
from scalai_nb.training.fit import fit
from scalai_nb.training.launch import RankLost, launch
from scalai_nb.training.models import MLP
from scalai_nb.training.run import Run

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "A cluster of two single-threaded worker processes."
    with cluster(Settings(root=tmp_path_factory.mktemp("two")), kind="processes", workers=2, default=False) as client:
        yield client


@pytest.fixture
def settings(tmp_path): return Settings(root=tmp_path)


@pytest.fixture(scope="module")
def xy():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6_000, 12)).astype(np.float32)
    return X, X[:, 0] + X[:, 1]*X[:, 2] + rng.logistic(size=len(X)) > 0


def weights(run): return {k: v.numpy().tobytes() for k, v in run.model.state_dict().items()}


def agents():
    "The processes of ranks that live now; those that end while we look are none."
    def is_one(p):
        try: return "scalai_nb.training.agent" in " ".join(p.cmdline())
        except psutil.NoSuchProcess: return False
    return [p for p in psutil.Process().children(recursive=True) if is_one(p)]


def gone(processes, seconds=60):
    "All have ended, soon: at once where nobody else works."
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def around(seconds=0.):
    "Where a rank runs: itself, its ancestors, its environment; after a barrier, so that all are there."
    import torch.distributed as dist
    dist.barrier()
    time.sleep(seconds)
    return os.getpid(), [p.pid for p in psutil.Process().parents()], dict(os.environ)


def stubborn(first):
    "Rank 1 does something to itself in its first life; the others wait for it in a barrier."
    import torch.distributed as dist
    if dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "1": first()
    dist.barrier()
    return os.environ["TORCHELASTIC_RESTART_COUNT"]


def kill_myself(): os.kill(os.getpid(), signal.SIGKILL)


def kill_my_worker():
    psutil.Process().parent().parent().kill()
    time.sleep(60)  # its agent ends us long before


def kill_my_agent():
    psutil.Process().parent().kill()
    time.sleep(60)


def sleep_long(): time.sleep(600)


def test_ranks_descend_from_the_dask_workers_that_the_settings_name(two, tmp_path):
    workers = set(two.run(os.getpid).values())
    told = launch(around, settings=Settings(root=tmp_path, cluster={"address": two.scheduler.address}))
    assert all(workers & set(parents) for _, parents, _ in told)
    assert len({(workers & set(parents)).pop() for _, parents, _ in told}) == 2  # one on each
    for pid, _, environ in told:
        assert "MALLOC_TRIM_THRESHOLD_" not in environ and environ["OMP_NUM_THREADS"] == "1"
        assert not psutil.pid_exists(pid)
    assert gone(agents())


@pytest.mark.slow
def test_two_ranks_on_one_single_threaded_worker(settings):
    with cluster(settings, kind="processes", workers=1) as client:
        assert len({pid for pid, *_ in launch(around, client=client)}) == 2


def test_ranks_without_a_cluster_are_forked_from_one_agent_of_this_process(settings, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # as Dask's nanny exports it
    told = launch(around, ranks=3, settings=settings)
    agent, = {parents[0] for _, parents, _ in told}
    for pid, parents, environ in told:
        assert parents[1] == os.getpid() and not {pid, agent} & set(psutil.pids())
        assert "MALLOC_TRIM_THRESHOLD_" not in environ and environ["OMP_NUM_THREADS"] == "1"


def test_a_process_group_that_could_not_be_made_does_not_spoil_the_next():
    """In one process it would:

    a second init_process_group finds what the first left. Each attempt has fresh ranks, of the same agents."""
    from scalai_nb.training.launch import ProcessGroup
    with ProcessGroup(None, 2) as team:
        with pytest.raises(Exception, match="(?i)nccl|cuda") as error: team.run(around, backend="nccl")
        assert "Rank " in error.value.__notes__[0]
        one, two = team.run(around)
    assert one[0] != two[0] and one[1] == two[1]


def test_a_killed_rank_is_named_at_once(two):
    started = time.monotonic()
    with pytest.raises(RankLost, match="Rank 1 of 2 .* killed by SIGKILL"):
        launch(stubborn, kill_myself, client=two, timeout=3_600)
    assert time.monotonic() - started < 300 and gone(agents())  # not when the process group gives up


def test_the_end_of_a_rank_is_waited_for_when_another_tells_of_it():
    "A busy machine tells of a killed rank seconds after its neighbour saw the connection close."
    from scalai_nb.training.launch import _cause, _grace
    closed, slow = (
        ("raised", RuntimeError(text), "")
        for text in ("Connection closed by peer [127.0.0.1]:4711", "Timed out waiting 3000ms for recv")
    )
    assert _grace([closed]) > 10 and max(_grace([slow]), _grace([closed, slow]), _grace([closed, ("ended", -9)])) < 1
    where = dict.fromkeys(range(2), {"host": "here"})
    assert isinstance(_cause({0: closed, 1: ("ended", -9)}, where, {"ranks": 2, "timeout": 1}, {}), RankLost)


@pytest.mark.slow
def test_after_the_loss_of_an_agent_all_begin_again(two):
    assert launch(stubborn, kill_my_agent, client=two, restarts=1) == ["2", "2"]
    assert gone(agents())


def test_a_killed_agent_is_replaced_where_there_is_no_cluster(settings):
    assert launch(stubborn, kill_my_agent, settings=settings, restarts=1) == ["2", "2"]
    assert gone(agents())


@pytest.mark.slow
def test_a_silent_rank_is_named(two):
    with pytest.raises(TimedOut, match="Rank 1 kept the others waiting"):
        launch(stubborn, sleep_long, client=two, timeout=6)
    assert gone(agents())


def test_an_interrupt_stops_everything(two):
    def interrupt(rank, message): raise KeyboardInterrupt
    def talk():
        from scalai_nb.training.agent import report
        report("here")
        time.sleep(600)
    with pytest.raises(KeyboardInterrupt): launch(talk, client=two, on_report=interrupt)
    assert gone(agents())
    assert launch(around, client=two)  # and the cluster is as good as before


CALLER = """
import sys, time
from scalai_nb.core.settings import Settings
from scalai_nb.training.agent import report
from scalai_nb.training.launch import launch
def work():
    import os
    from scalai_nb.training.agent import report
    report(os.getpid())
    time.sleep(600)
if __name__ == "__main__":
    launch(work, settings=Settings(root=sys.argv[1]), on_report=lambda rank, pid: print(pid, flush=True))
"""


def test_nothing_outlives_a_killed_caller(tmp_path):
    (tmp_path/"caller.py").write_text(CALLER)
    with subprocess.Popen(
        [sys.executable, tmp_path / "caller.py", tmp_path], stdout=subprocess.PIPE, text=True
    ) as caller:
        ranks = [psutil.Process(int(caller.stdout.readline())) for _ in range(2)]
        family = psutil.Process(caller.pid).children(recursive=True)
        assert set(ranks) <= set(family)
        caller.kill()
    assert gone(family)


@pytest.mark.parametrize("ranks", [1, 2])
def test_resumed_weights_are_the_same_to_the_bit(two, settings, xy, ranks):
    how = dict(batch_size=256, ranks=ranks, seed=3, settings=settings, client=two, checkpoint_every=7)
    whole = fit(MLP, xy, epochs=2, **how)
    assert whole.history[0]["val_loss"] > whole.history[1]["val_loss"] and whole.metrics["val_auc"] > .6
    stopped = whole.path.with_name("stopped")
    state, own = checkpoint.load(whole.path/"checkpoints"/"step-00000035")  # in the middle of the second epoch
    assert state["batch"] and state["epoch"] == 1 and len(own) == ranks
    checkpoint.save(stopped/"checkpoints"/"step-00000035", state, own)
    rest = fit(MLP, xy, epochs=2, resume=stopped, **how)
    assert weights(rest) == weights(whole)
    assert [h["loss"] for h in rest.history] == [h["loss"] for h in whole.history]
    assert weights(Run.load(rest.path)) == weights(whole)


def mortal(step, end):
    """A network that in the first life of rank 1 ends it in that step; the checkpoint of step 10 takes longer than
    others are given to end, so that only who waits for it has it."""
    class Mortal(MLP):
        def forward(self, x):
            if self.training and not getattr(self, "step", 0):
                write = checkpoint.save
                checkpoint.save = lambda *what, step, **facts: [
                    time.sleep(3 * (step == 10)),
                    write(*what, step=step, **facts),
                ]
            self.step = getattr(self, "step", 0) + self.training
            if self.step == step and os.environ.get("RANK") == os.environ.get("TORCHELASTIC_RESTART_COUNT") == "1":
                end()
            return super().forward(x)
    return Mortal


LOSSES = dict(batch_size=256, ranks=2, epochs=2, checkpoint_every=5)


@pytest.fixture(scope="module")
def whole(two, xy, tmp_path_factory):
    return fit(MLP, xy, client=two, settings=Settings(root=tmp_path_factory.mktemp("whole")), **LOSSES)


@pytest.mark.parametrize(
    "seed, end",
    [
        (0, kill_myself),
        *(pytest.param(seed, end, marks=pytest.mark.slow) for seed, end in ((1, kill_my_worker), (None, kill_myself))),
    ],
)
def test_a_lost_rank_costs_one_interval_between_checkpoints_at_most(two, settings, xy, whole, seed, end):
    # 12: right after the step that waits for a checkpoint
    step, heard = 12 if seed is None else int(np.random.default_rng(seed).integers(8, 38)), []
    each, stop = [], events.subscribe(
        lambda topic, state, each_rank=(), **told: (heard.append(state), each.append(list(each_rank))), "fit"
    )
    try:
        run = fit(mortal(step, end), xy, client=two, settings=settings, **LOSSES)
    finally:
        stop()
    again, = (int(s.split()[-1]) for s in heard if s.startswith("resumed at step"))
    assert ["stopped, starting again", "lost, starting again"] in each and each[-1] == ["done", "done"]
    assert step - 1 - 5 <= again < step  # of the steps that had been done, those of one interval
    assert weights(run) == weights(whole) and [h["step"] for h in run.history] == [19, 38]
    assert not list(run.path.glob("checkpoints/.*")) and gone(agents())


def test_a_full_disk_ends_a_training_that_can_go_on(settings, xy):
    import resource
    how = dict(epochs=3, batch_size=256, settings=settings)
    whole = fit(MLP, xy, **how)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    def fill(topic, state, history=(), **told):
        if len(history) == 2:
            # no file may be larger: a full disk for weights only
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    stop = events.subscribe(fill, "fit")
    try:
        with pytest.raises(WorkFailed, match="cannot be written") as error: fit(MLP, xy, **how)
    finally:
        stop()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    broken, = (p for p in settings.path("fits").iterdir() if p != whole.path)
    newest = checkpoint.latest(broken/"checkpoints").name
    assert (
        newest in ("step-00000019", "step-00000038")
        and error.value.hint == f"Make room, then go on from {newest} with resume=."
    )
    assert not list(broken.glob("checkpoints/.*"))
    assert weights(fit(MLP, xy, resume=broken, **how)) == weights(whole)


def test_a_training_in_the_background_is_cancelled_and_resumed(settings, xy):
    how = dict(batch_size=256, settings=settings, checkpoint_every=5, seed=3)
    run = fit(MLP, xy, epochs=10_000, wait=False, **how)
    with pytest.raises(TimedOut, match="is still"): run.wait(.1)
    until = time.monotonic() + 240
    while len(run.history) < 2: assert time.sleep(.05) or time.monotonic() < until, run.state
    assert run.state == "training" and run.metrics["val_auc"] == run.history[-1]["val_auc"] and agents()
    assert run.cancel().state == "cancelled" and gone(agents())
    with pytest.raises(Cancelled): run.wait()
    assert not (run.path/"run.json").exists()
    done = len(checkpoint.load(checkpoint.latest(run.path/"checkpoints"))[0]["history"])
    rest = fit(MLP, xy, epochs=done + 1, resume=run, **how)
    assert (
        len(rest.history) == done + 1
        and Run.load(rest.path).state == "done"
        and not list(run.path.glob("checkpoints/.*"))
    )


def test_an_interrupted_wait_cancels_and_a_failure_arrives_there(settings, xy):
    X, y = xy
    with pytest.raises(WorkFailed, match="The loss became nan in epoch 1, batch 1 "):
        fit(MLP, (np.where(X > 1, np.float32(np.nan), X), y), settings=settings, wait=False).wait()
    run = fit(MLP, xy, epochs=10_000, batch_size=256, settings=settings, wait=False)
    def interrupt(topic, state, **told):
        if "history" in told and not interrupted: interrupted.append(os.kill(os.getpid(), signal.SIGINT))
    interrupted, stop = [], events.subscribe(interrupt, "fit")
    try:
        with pytest.raises(KeyboardInterrupt): run.wait()
    finally: stop()
    assert run.state == "cancelled" and gone(agents())


@pytest.mark.slow
def test_ranks_add_up_batches_and_stop_early(two, settings, xy):
    from scalai_nb.training.optimizer import Optimizer
    how = dict(
        batch_size=128,
        epochs=30,
        lr=0.02,
        early_stop=2,
        optimizer=Optimizer("sgd", accumulate=3, clip=1.0),
        schedule="constant",
        class_weight="balanced",
        settings=settings,
    )
    once = fit(MLP, xy, ranks=2, client=two, **how)
    assert len(once.history) < 30 and "brought no lower loss" in once.params["notes"][-1]
    assert once.metrics["val_loss"] == min(h["val_loss"] for h in once.history) < once.history[-1]["val_loss"]
    assert [h["step"] for h in once.history[:2]] == [13, 26]  # 38 batches, 3 to a step
    plain = lambda features: torch.nn.Linear(features, 1)  # no dropout: what one rank learns, two do
    alone, shared = (fit(plain, xy, ranks=n, client=two, **how | dict(epochs=2)) for n in (1, 2))
    assert np.allclose(alone.model.weight.detach(), shared.model.weight.detach(), atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_and_leaves_no_process(settings, xy):
    make = lambda features: torch.nn.Sequential(torch.nn.Linear(features, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    before = set(psutil.Process().children(recursive=True))
    plain, compiled = (fit(make, xy, batch_size=400, epochs=1, compile=c, settings=settings) for c in (False, True))
    assert abs(plain.metrics["val_loss"] - compiled.metrics["val_loss"]) < 1e-3
    assert set(compiled.model.state_dict()) == set(plain.model.state_dict())
    assert set(psutil.Process().children(recursive=True)) <= before


def known_by_heart(rows=6_000, groups=300):
    "Rows whose label is a coin thrown once for each group: only who has seen the group can know it."
    rng = np.random.default_rng(0)
    group, coin, place = rng.integers(0, groups, rows), rng.random(groups) > .5, rng.normal(size=(groups, 8))
    frame = pd.DataFrame(place[group] + .01*rng.normal(size=(rows, 8)), columns=list("abcdefgh"))
    return frame.assign(
        group=group,
        fold=rng.integers(0, 5, rows),
        at=pd.Timestamp("2013-01-01") + pd.to_timedelta(group, "h"),
        y=coin[group],
    )


@pytest.mark.slow
def test_what_is_kept_aside_cannot_leak(settings):
    """Leaks are planted:

    the same group, the same picture, the future on both sides. A split that parts them finds nothing to know."""
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    rows = known_by_heart()
    prep = Prep.fit(profile(rows), target="y", exclude=["group", "fold", "at"])
    how = dict(epochs=12, batch_size=128, lr=5e-3, settings=settings)
    auc = lambda given: fit(MLP, rows, prep, validation=given, **how).metrics["val_auc"]
    assert auc(("fold", 0)) > .9  # by row: what it knows by heart is rewarded
    assert abs(auc(("group", "fold", 0)) - .5) < .2 and abs(auc(("at", ">=", "2013-01-10")) - .5) < .2
    rng = np.random.default_rng(1)
    four_times = [np.concatenate([a]*4) for a in (rng.normal(size=(500, 8)).astype("f4"), rng.random(500) > .5)]
    noise = fit(MLP, tuple(four_times), **how | dict(epochs=30))
    assert noise.history[-1]["loss"] < .5 and abs(noise.metrics["val_auc"] - .5) < .25
    copies = rng.random(2_000) < .2  # a mask may part the copies: then the planted leak is one
    assert fit(MLP, tuple(four_times), validation=copies, **how | dict(epochs=30)).metrics["val_auc"] > .85


def test_a_prep_that_has_seen_what_is_kept_aside_is_told_of(settings, capsys):
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    rows = known_by_heart(600)
    fitted = lambda of: fit(
        MLP, rows, Prep.fit(profile(of), target="y", exclude=["group", "fold", "at"]), epochs=1, settings=settings
    ).params["notes"]
    assert not any("fitted on all" in note for note in fitted(rows[rows.fold != 0]))
    assert "fitted on all 600 rows" in fitted(rows)[0] and "fitted on all 600 rows" in capsys.readouterr().err


@pytest.mark.slow
def test_another_number_of_ranks_is_allowed_and_said(two, settings, xy):
    half = fit(MLP, xy, epochs=1, ranks=2, settings=settings, client=two)
    rest = fit(MLP, xy, epochs=2, ranks=1, settings=settings, resume=half)
    assert any("on 1 ranks instead of 2" in n for n in rest.params["notes"]) and len(rest.history) == 2


@pytest.mark.slow
def test_threads_of_this_process_can_host_ranks(settings):
    with cluster(settings, kind="threads") as client:
        told = launch(around, client=client)
    assert all(os.getpid() in parents for _, parents, _ in told) and gone(agents())


@pytest.mark.slow
def test_a_large_table_is_read_by_the_ranks_and_gives_the_same(two, settings, xy, monkeypatch):
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.table import Table
    from scalai_nb.data.write import write
    X, y = xy
    frame = pd.DataFrame(X[:, :3], columns=list("abc")).assign(late=y, id=np.arange(len(y)).astype(str))
    write(frame, "rows", key="id", fold="id", settings=settings)
    prep = Prep.fit(Table("rows", settings).profile(), target="late", exclude=["id", "fold"])
    how = dict(batch_size=512, epochs=1, where=[("a", "<", 1)], settings=settings)
    here = fit(MLP, "rows", prep, **how)
    monkeypatch.setattr("scalai_nb.training.input_rows.SMALL", 0)
    there = fit(MLP, "rows", prep, ranks=2, client=two, **how)
    assert here.data == there.data and here.data["rows"] + here.data["validation_rows"] == int((X[:, 0] < 1).sum())
    assert abs(here.history[0]["val_auc"] - there.history[0]["val_auc"]) < .02  # only dropout differs
    assert Run.load(there.path).predict(frame).tolist() == there.predict(frame).tolist()


def customers(rows=400):
    "Customers who leave when they pay much and call often; 30 days, three plans, and a number for each of them."
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "customer_id": rng.permutation(rows) + 10_000,
            "paid": rng.normal(size=rows),
            "calls": rng.normal(size=rows),
            "plan": rng.choice(["basic", "plus", "pro"], rows),
            "day": np.arange(rows)*30//rows,
        }
    )
    return frame.assign(left=np.where(frame.paid + frame.calls > 1, "yes", "no"))


QUICK = dict(epochs=8, batch_size=32, lr=5e-3)


def test_words_are_a_target_and_rows_without_one_are_left_out(settings, capsys):
    rows = customers()
    rows["left"] = rows.left.mask(rows.day % 7 == 0)
    run, lost = fit("auto", rows, target="left", settings=settings, **QUICK), int(rows.left.isna().sum())
    assert (run.task, run.classes) == ("binary", ["no", "yes"]) and run.metrics["val_auc"] > .9
    assert run.data["rows"] + run.data["validation_rows"] == len(rows) - lost
    assert f"{lost} rows without 'left' are not learnt from" in run.params["notes"]
    assert f"{lost} rows without 'left'" in capsys.readouterr().err
    assert run.evaluate(rows, importance=0).rows == len(rows) - lost
    with pytest.raises(BadRequest, match="has a class 'maybe' that the model does not know"):
        run.evaluate(rows.assign(left="maybe"))


@pytest.mark.parametrize("unit", [1e6, 1e-6])
def test_a_number_of_any_size_is_learnt_in_its_own_unit(settings, unit):
    rows = customers().drop(columns="left")
    rows = rows.assign(price=unit*(1 + .2*rows.paid - .1*rows.calls))
    run = fit("auto", rows, target="price", settings=settings, **QUICK | dict(epochs=20))
    assert run.task == "regression" and run.metrics["val_r2"] > .8 and run.metrics["val_rmse"] < .15*unit, run.metrics
    far = run.predict(rows.assign(paid=rows.paid*100))
    assert rows.price.min()*.999 <= far.min() and far.max() <= rows.price.max()*1.001
    assert np.array_equal(Run.load(run.path).predict(rows), run.predict(rows))


def test_classes_are_whole_numbers_with_gaps(settings):
    rows = customers()
    grade = np.select([rows.paid > .5, rows.paid > -.5], [40, 20], 10)
    run = fit("auto", rows.assign(left=grade), target="left", settings=settings, **QUICK)
    assert (run.task, run.classes) == ("multiclass", [10, 20, 40]) and run.metrics["val_accuracy"] > .8
    said = run.labels.decode(run.predict(rows).argmax(1)).to_numpy()
    assert set(said) == {10, 20, 40} and (said == grade).mean() > .8


def test_the_positive_class_is_the_one_that_is_named(settings):
    rows = customers()
    yes, no = (fit("auto", rows, target="left", positive=p, settings=settings, **QUICK) for p in ("yes", "no"))
    assert (yes.classes, no.classes) == (["no", "yes"], ["yes", "no"])
    left = (rows.left == "yes").to_numpy()
    assert yes.predict(rows)[left].mean() > .7 and no.predict(rows)[left].mean() < .3
    with pytest.raises(BadRequest, match="Did you mean 'yes'"):
        fit("auto", rows, target="left", positive="yess", settings=settings)


@pytest.mark.parametrize("validation", [.2, ("day", .2)], ids=["rows", "days"])
def test_a_share_that_is_held_out_is_recorded_and_repeated(settings, validation):
    rows = customers()
    run = fit("auto", rows, target="left", validation=validation, settings=settings, **QUICK | dict(epochs=2))
    assert .1 < run.data["validation_rows"]/len(rows) < .3
    assert run.data["folds"] == (["day", ">=", 24] if validation != .2 else [list(rows.columns), "share", .2])
    assert weights(Run.load(run.path).repeat(rows)) == weights(run)
    with pytest.raises(BadRequest, match="These rows are not those"): run.repeat(rows[::-1])


def test_a_share_of_arrays_is_repeated(settings, xy):
    X, y = xy[0][:400], np.where(xy[1][:400], "up", "down")
    run = fit(MLP, (X, y), validation=.2, settings=settings, **QUICK | dict(epochs=1))
    assert run.data["folds"] == .2 and set(run.classes) == {"up", "down"}
    assert weights(Run.load(run.path).repeat((X, y))) == weights(run)


@pytest.mark.parametrize("day, words", [(0, "has 1 value, at"), ((np.arange(400) > 20)*1, "has 2 values, at none")])
def test_a_time_that_does_not_part_the_rows_is_refused(settings, day, words):
    with pytest.raises(BadRequest, match=words) as error:
        fit("auto", customers().assign(day=day), target="left", validation=("day", .2), settings=settings)
    assert "Split by another column, or by a share: .2." in error.value.hint and not settings.path("fits").exists()


def test_an_identifier_is_no_feature_and_that_is_noted(settings):
    run = fit("auto", customers(), target="left", settings=settings, **QUICK | dict(epochs=1))
    assert "customer_id" not in run.prep.steps and "paid" in run.prep.steps
    assert "columns left out: customer_id (an identifier)" in run.params["notes"]


def test_classes_are_weighed_by_their_words(settings):
    rows, how = customers(), dict(target="left", settings=settings, **QUICK)
    plain, heavy = fit("auto", rows, **how), fit("auto", rows, class_weight={"yes": 9, "no": 1}, **how)
    assert heavy.params["class_weight"] == [1., 9.] and heavy.predict(rows).mean() > plain.predict(rows).mean() + .03
    with pytest.raises(BadRequest, match="does not fit classes no, yes"):
        fit("auto", rows, class_weight={"yes": 9}, **how)


def test_weights_of_classes_go_with_their_words_when_a_run_is_repeated(settings):
    "Here the class 1 has the number 0."
    rows = customers().assign(left=lambda f: (f.left == "yes").astype(int))
    how = dict(target="left", positive=0, settings=settings)
    run = fit("auto", rows, class_weight={1: 9, 0: 1}, **how, **QUICK | dict(epochs=1))
    assert (run.classes, run.params["class_weight"]) == ([1, 0], [9., 1.])
    again = Run.load(run.path).repeat(rows)
    assert again.params["class_weight"] == [9., 1.] and weights(again) == weights(run)


FOREST, TREES = "sklearn.ensemble:RandomForestClassifier", "lightgbm.sklearn:LGBMClassifier"


@pytest.mark.parametrize("network", [FOREST, TREES])
def test_an_estimator_knows_a_class_that_only_held_out_rows_have(settings, network):
    rows = customers()
    rows["left"] = np.where(rows.day >= 28, "who knows", np.where(rows.paid > 1, "soon", rows.left))
    run = fit(network, rows, target="left", validation=("day", ">=", 24), settings=settings)
    assert run.classes == ["no", "soon", "who knows", "yes"] and "= who knows" in run.params["notes"][-1]
    assert (run.predict(rows)[:, 2] < 1e-9).all() and 0 < run.metrics["val_accuracy"] < 1
    assert run.evaluate(rows, importance=0).classes[2]["recall"][0] == 0


def estimator(name):
    import lightgbm
    from sklearn import ensemble
    if "Forest" in name: return getattr(ensemble, name)(20)
    return getattr(lightgbm, name)(n_estimators=20, verbose=-1, deterministic=True, force_row_wise=True, n_jobs=1)


@pytest.mark.parametrize("name", [f"{a}{b}" for a in ("RandomForest", "LGBM") for b in ("Classifier", "Regressor")])
def test_the_exported_file_answers_as_the_estimator(settings, name):
    "From raw rows, a plan that nobody knows and a hole among them."
    from scalai_nb.compression.export import export, feeds_of, run_scores, session
    made, target = estimator(name), "left" if "Classifier" in name else "price"
    rows = customers().assign(price=lambda f: 100 + 20*f.paid - f.calls**2)
    rows = rows.drop(columns="price" if target == "left" else "left")
    run = fit(made, rows, target=target, validation=("day", ">=", 24), settings=settings)
    learnt, codes = rows[rows.day < 24], [i for i, n in enumerate(run.prep.cardinalities) if n]
    more = {"categorical_feature": codes} if "LGBM" in name else {}
    y = run.labels.encode(learnt[target])
    made.set_params(random_state=0).fit(run.prep.transform(learnt), y if target == "price" else y.astype(int), **more)
    rows.loc[0, "plan"], rows.loc[1, "paid"] = "unheard of", np.nan
    X = run.prep.transform(rows)
    want = made.predict(X) if target == "price" else made.predict_proba(X)[:, 1]
    file = session(export(run.model, run.prep, settings.root/"model.onnx", run.task, rows=rows))
    largest = max(1., np.abs(want).max())
    assert np.abs(run.predict(rows) - want).max() <= 1e-5*largest
    assert np.abs(run_scores(file, feeds_of(file, rows)).reshape(-1) - want).max() <= 1e-5*largest
    assert np.array_equal(Run.load(run.path).predict(rows), run.predict(rows))


@pytest.mark.parametrize(
    "network, target, options, words",
    [
        ("lightgbm.sklearn:LGBMRegressor", "left", {}, "LGBMRegressor does not fit a binary target"),
        (FOREST, "paid", {}, "RandomForestClassifier does not fit a regression target"),
        ("sklearn.svm:LinearSVC", "left", {}, "LinearSVC gives no probabilities"),
        ("sklearn.ensemble:RandomForst", "left", {}, "RandomForst' cannot be imported"),
        (FOREST, "left", dict(class_weight="balanced"), "class_weight= is for networks"),
        (FOREST, "left", dict(resume="."), "there is nothing to resume"),
        (FOREST, "left", dict(epochs=0), "epochs=0 is not possible"),
        (FOREST, "left", dict(task="binry"), "Did you mean 'binary'"),
    ],
)
def test_an_estimator_that_is_not_possible_is_refused_in_two_lines(settings, network, target, options, words):
    with pytest.raises(BadRequest, match=words) as error:
        fit(network, customers(), target=target, settings=settings, **options)
    assert error.value.hint and len(str(error.value).splitlines()) == 2 and not settings.path("fits").exists()


def test_an_estimator_is_compressed_to_itself_and_is_not_repeated(settings):
    from scalai_nb.compression.frontier import compress
    from scalai_nb.compression.recipes import usual_recipes
    from scalai_nb.data.write import write
    write(customers(), "customers", key="customer_id", fold="customer_id", settings=settings)
    run = fit(TREES, "customers", target="left", settings=settings)
    found = compress(run, {"accuracy_drop": .01}, settings=settings)
    assert [c.recipe for c in found.candidates] == ["float32"] and found.best().recipe == "float32"
    assert found.left_out == dict.fromkeys(set(usual_recipes()) - {"float32"}, "LGBMClassifier is left as it is")
    assert "is left as it is" in found._repr_html_()
    with pytest.raises(BadRequest, match="is of an estimator, LGBMClassifier"): run.repeat()


RANKED = {"left": "auc", "level": "accuracy", "price": "r2"}
WORDS = ["quiet room with a view of the lake", "the heating was broken all week", "old beds, and nobody came"]


def guests() -> pd.DataFrame:
    "Customers with a free text and a time, both with holes; a price, and a class that only the last days have."
    rows = customers()
    rows["review"] = [None if i % 17 == 0 else f"{i} {WORDS[i % 3]}" for i in range(len(rows))]
    rows["joined"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rows.day*31, "h")
    rows.loc[::19, "joined"] = pd.NaT
    rows["price"] = 100 + 20*rows.paid - rows.calls**2
    rows["level"] = np.where(rows.day >= 28, "who knows", np.where(rows.paid > 1, "soon", rows.left))
    return rows


@pytest.mark.parametrize("target", ["left", "level", "price"])
def test_the_mean_of_network_and_trees_is_a_run_and_a_file_like_others(settings, target):
    "From raw rows, a plan that nobody knows and holes among them, and whatever rows come with one."
    from scalai_nb.compression.export import feeds_of, run_scores, session
    from scalai_nb.compression.frontier import compress
    from scalai_nb.data.write import write
    from scalai_nb.loop.model_file import Model
    from scalai_nb.loop.training import pretrained_weights, train
    from scalai_nb.training.registry import Registry
    rows = guests()
    write(rows, "guests", key="customer_id", settings=settings)
    others = [c for c in ("left", "level", "price", "customer_id") if c != target]
    model = Model(name="guest", table="guests", target=target, ignore=others,
                  train={"epochs": 2, "validation": ["day", ">=", 24]})
    found = train(model, settings)
    network, trees, mean = found.runs
    figure = mean.metrics[f"val_{RANKED[target]}"]
    assert mean.network == f"mean of TabularMLP and {trees.network}" and f"{figure:.4f}" in found.why
    assert set(mean.metrics) == set(trees.metrics) and mean.prep.features == trees.prep.features
    rows.loc[0, ["plan", "review", "paid"]] = ["unheard of", None, np.nan]
    weight = mean.params["weight"]
    want = weight*network.predict(rows) + (1 - weight)*trees.predict(rows)
    near = lambda a: np.abs(a - want).max() <= 1e-5*max(1., np.abs(want).max())
    assert near(mean.predict(rows)) and np.array_equal(Run.load(mean.path).predict(rows), mean.predict(rows))
    if target == "level": assert mean.classes[2] == "who knows" and (mean.predict(rows)[:, 2] < .4).all()

    registry = Registry(settings)
    kept = registry.run(registry.log(mean))
    frontier = compress(kept, {"accuracy_drop": .01}, settings=settings)
    assert [c.recipe for c in frontier.candidates] == ["float32"] and set(frontier.left_out.values()) == {
        f"{mean.network} is left as it is"}
    version = registry.register("guest", frontier.best().path, kept)
    registry.promote("guest", version, "the only one")
    champion = registry.champion("guest")
    assert near(champion.predict(rows))
    file = session(champion.path)
    one, many = (run_scores(file, feeds_of(file, rows[:40]), batch) for batch in (1, 40))
    assert np.abs(one - many).max() <= 1e-6*max(1., np.abs(many).max())
    assert kept.evaluate(settings=settings, importance=0).rows == mean.data["validation_rows"]
    with pytest.raises(BadRequest, match=f"is the mean of the runs {network.id} and {trees.id}"): kept.repeat()
    weights = {n.removeprefix("network."): w for n, w in network.model.state_dict().items()}
    again = pretrained_weights("guest@champion", settings)
    assert list(again) == list(weights) and all(bool((again[n] == w).all()) for n, w in weights.items())


def test_there_is_no_mean_without_a_baseline_or_with_other_features(settings):
    from scalai_nb.data.write import write
    from scalai_nb.loop.model_file import Model
    from scalai_nb.loop.training import train
    write(customers(), "customers", key="customer_id", settings=settings)
    model = Model(name="left", table="customers", target="left", train={"epochs": 1, "baseline": False})
    alone = train(model, settings)
    assert [alone.trees, alone.mean] == [None, None] and "mean" not in alone.why and len(alone.runs) == 1
    onehot = train(model.model_copy(update={"train": model.train.model_copy(
        update={"baseline": True, "network": "MLP"})}), settings)
    assert onehot.mean is None and len(onehot.runs) == 2
    (note,) = (n for n in onehot.notes if n.startswith("the mean"))
    assert note == "the mean with gradient boosting is left out: MLP and LGBMClassifier learnt different features."


CELL = """
import numpy as np, torch
from torch import nn
from scalai_nb.core.settings import Settings
from scalai_nb.training.fit import fit

class Own(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features, self.layer = features, nn.Linear(features, 1)
    def forward(self, x): return self.layer(x)

X = np.random.default_rng(0).normal(size=(2000, 5)).astype("float32")
y = X[:, 0] > 0
"""


@pytest.mark.slow
def test_a_model_of_a_notebook_cell_trains_on_ranks_and_an_interrupt_stops_it(tmp_path):
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(cwd=str(tmp_path), startup_timeout=120)
    def run(code):
        reply = client.execute_interactive(
            code,
            timeout=240,
            output_hook=lambda m: m["content"].get("name") == "stdout" and said.append(m["content"]["text"]),
        )
        return reply["content"]
    said = []
    try:
        assert run(CELL)["status"] == "ok"
        done = run(
            "run = fit(Own, (X, y), ranks=2, epochs=2, batch_size=128, lr=.05); print(run.metrics['val_auc'],"
            " run.path)"
        )
        assert done["status"] == "ok", done
        auc, path = said[-1].split()
        assert float(auc) > .9
        described = json.loads((Path(path)/"run.json").read_text())["model"]
        assert described["config"] == {"features": 5} and "class Own" in described["source"]
        kernel = psutil.Process(manager.provisioner.pid)
        # A kernel answers a failed request and then, for a moment, aborts whatever arrives: what follows is asked to
        # run all the same.
        asked = client.execute("fit(Own, (X, y), ranks=2, epochs=100_000, batch_size=128)", stop_on_error=False)
        until = time.monotonic() + 120
        while len(list(tmp_path.glob(".scalai/fits/*/checkpoints/step-*/manifest.json"))) < 3:
            assert time.sleep(.2) or time.monotonic() < until
        family = [p for p in kernel.children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())]
        assert len([p for p in family if "training.agent" in " ".join(p.cmdline())]) == 3  # an agent, two ranks
        manager.interrupt_kernel()
        assert gone(family), [p.cmdline() for p in family if p.is_running()]
        while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked: pass
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert run("print('still here')")["status"] == "ok" and said[-1] == "still here\n"
        assert run("run = fit(Own, (X, y), ranks=2, epochs=100_000, batch_size=128, wait=False)")["status"] == "ok"
        assert run("import time\nwhile not run.history: time.sleep(.1)")["status"] == "ok"
        family = kernel.children(recursive=True)
        assert len([p for p in family if "training.agent" in " ".join(p.cmdline())]) == 3
        kernel.kill()
        assert gone(family), [p.cmdline() for p in family if p.is_running()]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
