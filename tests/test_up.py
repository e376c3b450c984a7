"All services of a workspace on one machine: `scalai up`, and when it starts and stops replicas."
import random

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scalai_nb.deploy.scaling import DOWN, TOLERANCE, UP, Scaler, desired_replicas

REPLICAS, LOAD = st.integers(1, 50), st.floats(0, 1e6)
SIMULATED = hypothesis_settings(deadline=None, max_examples=50)
TARGET, BOUNDS = st.floats(.5, 5_000), st.lists(st.integers(1, 50), min_size=2, max_size=2).map(sorted)


@given(REPLICAS, LOAD, TARGET, BOUNDS)
def test_the_formula_stays_between_its_bounds_and_within_its_tolerance_changes_nothing(current, metric, target, bounds):
    wanted = desired_replicas(current, metric, target, *bounds)
    assert bounds[0] <= wanted <= bounds[1]
    if abs(metric/target - 1) <= TOLERANCE: assert wanted == min(max(current, bounds[0]), bounds[1])


@given(REPLICAS, LOAD, LOAD, TARGET, BOUNDS)
def test_the_formula_never_wants_fewer_for_a_higher_load(current, one, other, target, bounds):
    few, many = (desired_replicas(current, metric, target, *bounds) for metric in sorted((one, other)))
    assert few <= many


def simulated(loads, target: float, minimum: int, maximum: int, start: int, step: float) -> list[tuple[float, int]]:
    "Replicas over time, of loads that come one a look."
    seconds, replicas, found = 0., start, []
    scaler = Scaler(target, minimum, maximum, clock=lambda: seconds)
    for look, load in enumerate(loads):
        seconds = look*step
        replicas = scaler(replicas, load/replicas)
        found.append((seconds, replicas))
    return found


@SIMULATED
@given(LOAD, TARGET, BOUNDS, REPLICAS, st.sampled_from([.25, .5, 1.]), st.floats(0, .04), st.integers(0, 2**32))
def test_a_constant_load_changes_the_direction_once_at_most_in_two_minutes(load, target, bounds, start, step, noise,
                                                                           seed):
    "Also one that trembles within the tolerance."
    uniform = random.Random(seed).uniform
    loads = [load*(1 + uniform(-noise, noise)) for _ in range(int(120/step))]
    found = simulated(loads, target, *bounds, start, step)
    assert all(bounds[0] <= n <= bounds[1] for _, n in found)
    moves = [b - a for (_, a), (_, b) in zip(found, found[1:], strict=False) if a != b]
    assert sum((a > 0) != (b > 0) for a, b in zip(moves, moves[1:], strict=False)) <= 1, moves


@SIMULATED
@given(st.integers(2, 20), st.sampled_from([.25, .5, 1.]), st.integers(1, 30))
def test_replicas_come_after_two_seconds_and_go_after_sixty(most, step, high):
    "High load for so many seconds, and none after it."
    before, during, after = (int(s/step) for s in (10, high, 80))
    found = simulated([0]*before + [1e9]*during + [0]*after, 100, 1, most, 1, step)
    above = [when for when, n in found if n > 1]
    if high < UP: assert not above
    if high > UP + step:
        assert above[0] == 10 + UP and found[before + during][1] == most
        assert above[-1] + step == 10 + high + DOWN and found[-1][1] == 1
