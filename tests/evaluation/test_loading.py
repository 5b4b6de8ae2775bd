import dataclasses

import gymnasium
import jax
import numpy as np
import pytest

from tgcvg_jax import config as config_lib
from tgcvg_jax import training
from tgcvg_jax.checkpoint import Checkpointer
from tgcvg_jax.evaluation import loading, rollout
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.models import MODELS
from tgcvg_jax.types import Source, UserError

SEEDS = [3, 7]


@pytest.fixture(scope="module")
def full_task(task):
    """With everything that a task may have."""
    return dataclasses.replace(
        task, environment="InvertedPendulum-v4", observation_dim=4, action_dim=1, min_score=0.0,
        max_score=10.0, sources=(Source("d4rl", "a.hdf5", "b/a.hdf5"),), family="toy-medium",
    )  # fmt: skip


def save(folder, task, kind, config):
    """Checkpoints as an app writes them, of an untrained learner."""
    learner = (LEARNERS | MODELS)[kind].make(task, config)
    state = training.init(learner, learner.prepare(loading.data.blank(task)), SEEDS)
    metadata = {
        "kind": kind,
        "task": config_lib.to_dict(task),
        "config": config_lib.to_dict(config),
        "seeds": SEEDS,
        "data": "none",
    }
    Checkpointer(folder, metadata).save(12, state)
    return state


@pytest.mark.parametrize("kind", ["dt", "any_step_dynamics"])
def test_comes_back_as_it_was(full_task, configs, tmp_path, kind):
    state = save(tmp_path / "run", full_task, kind, configs[kind])
    for folder in (tmp_path / "run", str(tmp_path / "run" / "12")):
        found = loading.load(folder)
        assert (found.task, found.kind, found.config) == (full_task, kind, configs[kind])
        assert found.seeds == SEEDS
        for a, b in zip(jax.tree.leaves(found.state), jax.tree.leaves(state), strict=True):
            if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(a, b)


def test_what_is_loaded_acts_and_is_scored(full_task, configs, tmp_path):
    save(tmp_path, full_task, "td3_bc", configs["td3_bc"])
    trained = loading.load(tmp_path)
    policy = trained.learner.policy
    result = rollout.evaluate(policy, trained.state, trained.task, episodes=1)
    assert result.normalized_score.shape == (2,)

    state = training.select_seed(trained.state, 1)
    env = gymnasium.make(trained.task.environment)
    observation, _ = env.reset(seed=0)
    reward, total, done = 0.0, 0.0, False
    carry = policy.init(state, 1)
    for _ in range(trained.task.episode_length):
        action, carry = policy.act(
            state, carry, np.float32([observation]), np.float32([reward]), jax.random.key(0), True
        )
        # The task's actions are in [-1, 1], the environment's in [-3, 3].
        observation, reward, done, _, _ = env.step(3.0 * np.asarray(action[0]))
        total += reward
        if done:
            break
    assert total == result.returns[1, 0]

    for wrong in (state, {"a": np.zeros((2, 3)), "b": np.zeros((3, 3))}):
        with pytest.raises(UserError, match="leading axis of seeds"):
            rollout.evaluate(policy, wrong, trained.task, episodes=1)


def test_given_data_makes_the_shapes(full_task, configs, tmp_path):
    save(tmp_path, full_task, "bc", configs["bc"])
    blank = loading.data.blank(full_task, size=100)
    assert loading.load(tmp_path, blank).kind == "bc"


def test_nothing_to_load(full_task, configs, tmp_path):
    with pytest.raises(UserError, match="no checkpoint here"):
        loading.load(tmp_path)
    config = configs["bc"]
    learner = LEARNERS["bc"].make(full_task, config)
    state = training.init(learner, learner.prepare(loading.data.blank(full_task)), SEEDS)
    Checkpointer(tmp_path / "old", {"kind": "gone"}).save(1, state)
    with pytest.raises(UserError, match="'gone' is no model of this version"):
        loading.load(tmp_path / "old")
