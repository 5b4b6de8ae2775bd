"""The generator beside what is recorded from the same rows, as its run used it."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data.dataset import make_dataset
from tgcvg_jax.data.synthetic import COLUMNS
from tgcvg_jax.evaluation import generators, loading, measures, replay, segments
from tgcvg_jax.metrics import METRICS
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import Learner, Policy, UserError

HOPPER = TASKS["hopper-medium-v2"]
HORIZON = 8


def write(path, dataset, segment_length):
    """Its transitions as a synthetic file."""
    rows = jax.tree.map(np.asarray, dataset.transition)
    ends = np.arange(dataset.size) % segment_length == segment_length - 1
    terminals = rows.discount == 0
    fields = (rows.observation, rows.action, rows.reward, rows.next_observation, terminals,
              ends & ~terminals, np.arange(len(ends)), rows.reward)  # fmt: skip
    with h5py.File(path, "w") as f:
        for name, values in zip(COLUMNS, fields, strict=True):
            f[name] = values


@pytest.fixture(scope="module")
def inputs(recorded, tmp_path_factory):
    """The first two episodes are cut off before their fall."""
    rows = jax.tree.map(np.array, recorded.transition)
    ends = rows.discount == 0
    falls = np.flatnonzero(ends)[:2]
    ends[falls - 1] = True
    rows, ends = jax.tree.map(lambda x: np.delete(x, falls, axis=0), (rows, ends))
    rows.observation[ends.argmax() + 3, -1] = 9.95  # may have been clipped
    dataset = make_dataset(HOPPER, rows, ends)
    path = tmp_path_factory.mktemp("generators") / "made.hdf5"
    write(path, dataset, HORIZON)
    return measures.prepare(
        HOPPER, dataset, path, num_transitions=1000, num_segments=60, novelty_rows=10,
        novelty_subset=10, seed=1,
    )  # fmt: skip


def test_starts_have_a_recorded_outcome(inputs):
    assert inputs.horizon == HORIZON and inputs.processes == 1
    rows = inputs.original
    remaining = np.asarray(inputs.dataset.remaining)
    found = segments.outcomes(HOPPER, inputs.dataset, HORIZON)
    clipped = segments.is_clipped(HOPPER, rows.observation)
    expected, returns, survived = [], [], []
    for i in range(len(remaining)):
        future = range(i, i + min(remaining[i], HORIZON))
        over = any(rows.discount[t] == 0 for t in future)
        if not clipped[i] and (len(future) == HORIZON or over):
            expected.append(i)
            returns.append(sum(rows.reward[t] for t in future))
            survived.append(not over)
    np.testing.assert_array_equal(found, expected)
    assert clipped.any() and 0 < np.mean(survived) < 1
    assert len(found) < len(remaining) - clipped.sum()  # some are censored
    outcome = segments.recorded_outcome(inputs.dataset, found, HORIZON)
    np.testing.assert_allclose(outcome[0], returns, rtol=1e-6)
    np.testing.assert_array_equal(outcome[1], survived)


def test_a_policy_that_acts_as_recorded_does_as_well(inputs, original):
    """It looks up what was done in the nearest recorded state."""

    def act(state, carry, observation, previous_reward, key, deterministic):
        observations, actions = state
        distance = jnp.sum(jnp.square(observations - observation[:, None]), axis=-1)
        return actions[jnp.argmin(distance, axis=1)], carry

    state = (original.observation, original.action)
    policy = generators.Generator(Policy(act), jax.tree.map(jnp.asarray, state), {})
    found = measures.generator(inputs, policy)["metrics"]
    assert set(found) <= set(METRICS)
    assert found["generator_starts"] == {"original": 60, "synthetic": 60}
    for name in ("generator_return", "generator_survival"):
        assert found[name]["synthetic"] == pytest.approx(found[name]["original"], rel=1e-3)
    assert 0 < found["generator_survival"]["original"] < 1

    still = policy._replace(state=(state[0], np.zeros_like(state[1])))
    other = measures.generator(inputs, still)["metrics"]
    assert other["generator_return"]["original"] == found["generator_return"]["original"]
    assert other["generator_return"]["synthetic"] != found["generator_return"]["synthetic"]


def test_the_policy_is_told_what_it_was_told_when_it_generated(inputs, monkeypatch):
    told = {}

    def closed_loop(policy, state, task, start, length, history, mask, **rest):
        told.update(rest, start=start, length=length, history=history, mask=mask)
        nothing = np.zeros((len(start), 1))
        return replay.Replay(nothing[..., None], nothing, nothing[:, 0] == 0, nothing[:, 0] == 0)

    monkeypatch.setattr(measures.replay_lib, "closed_loop", closed_loop)
    primed = Policy(None, prime=lambda *_: None)
    policy = generators.Generator(primed, None, {}, 3, deterministic=True, return_factor=1.5)
    measures.generator(inputs, policy)
    rows = segments.find_rows(inputs.original.observation, told["start"])
    assert told["deterministic"] and (told["length"] == HORIZON).all()
    assert len(set(rows)) == 60 and told["mask"].shape == (60, 3) and not told["mask"].all()
    earlier = [
        sum(inputs.original.reward[i - k] for k in (1, 2, 3) if told["mask"][n, -k])
        for n, i in enumerate(rows)
    ]
    target = 1.5 * np.asarray(inputs.dataset.return_to_go)[rows]
    np.testing.assert_allclose(told["target_return"], target + earlier, rtol=1e-5)
    last = told["mask"][:, -1]
    np.testing.assert_array_equal(
        told["history"].action[last, -1], inputs.original.action[rows - 1][last]
    )
    for alone in (policy._replace(history=0), policy._replace(policy=Policy(None))):
        measures.generator(inputs, alone)
        assert told["history"] is None and told["mask"] is None
        np.testing.assert_allclose(told["target_return"], target, rtol=1e-5)


def test_no_start_has_a_recorded_outcome(inputs):
    whole = jax.tree.map(np.array, inputs.dataset.transition)
    whole.discount[:] = 1.0
    cut_off = make_dataset(HOPPER, whole, np.asarray(inputs.dataset.remaining) == 1)
    long = inputs._replace(dataset=cut_off, lengths=np.array([10_000]))
    found = measures.generator(long, generators.Generator(Policy(None), None, {}))
    assert found == {"metrics": {"generator_starts": {"original": 0, "synthetic": 0}}}


# Which policy.


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 3


class State(NamedTuple):
    step: jax.Array
    key: jax.Array
    weights: jax.Array


def trained(weights):
    keys = jax.random.split(jax.random.key(0), 2)
    state = State(jnp.array([10, 10]), keys, jnp.asarray(weights))
    learner = Learner(None, None, None, None, policy=Policy(None))
    return loading.Trained(HOPPER, "bc", Config(), learner, state, [4, 7])


def test_one_seed_and_its_checksum():
    both = [generators.make(trained([[1.0], [2.0]]), seed) for seed in (4, 7)]
    assert [float(g.state.weights[0]) for g in both] == [1.0, 2.0]
    same = {"kind": "bc", "step": 10, "config": {"width": 3}}
    assert both[1].about == {**same, "seed": 7, "crc32": both[1].about["crc32"]}
    assert generators.make(trained([[1.0], [2.0]])).about == both[0].about
    changed = generators.make(trained([[1.0], [2.5]]), 7, history=4)
    assert changed.about["crc32"] != both[1].about["crc32"] and changed.history == 4
    with pytest.raises(UserError, match=r"seed 5, but its checkpoint has \[4, 7\]"):
        generators.make(trained([[1.0], [2.0]]), 5)


def test_what_a_run_has_recorded():
    own = Path("runs/hopper/mine/policy")
    assert generators.recorded({}, own) == (own, None)
    assert generators.recorded({"models_from": None}, own) == (own, None)
    other = {"models_from": {"policy": "other"}}
    assert generators.recorded(other, own) == (Path("runs/hopper/other/policy"), None)
    learner = {"generator": {"folder": "/a/dt", "seed": 3}}
    assert generators.recorded(learner, own) == (Path("/a/dt"), 3)
    assert generators.recorded({"generator": {"seed": 3}}, own) == (own, None)

    config = {"policy": {"context_length": 5}, "deterministic_policy": True, "return_factor": 1.2}
    usage = {"history": 4, "deterministic": True, "return_factor": 1.2}
    assert generators.usage({"config": config}) == usage
    assert generators.usage({}) == generators.usage({"config": {"policy": None}}) == {}
