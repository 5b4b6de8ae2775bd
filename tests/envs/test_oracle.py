import dataclasses

import numpy as np
import pytest

from tgcvg_jax import envs
from tgcvg_jax.envs import oracle
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import UserError


def episode(task, steps, action_scale=1.0):
    env = envs.make(task)
    rng = np.random.default_rng(0)
    rows = []
    observation, _ = env.reset(seed=0)
    for _ in range(steps):
        action = action_scale * rng.uniform(-1, 1, task.action_dim)
        next_observation, reward, terminated, *_ = env.step(action)
        rows.append((observation, action, next_observation, reward))
        observation = next_observation
        if terminated:
            observation, _ = env.reset()
    env.close()
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_equals_the_live_environment(name):
    task = TASKS[f"{name}-medium-v2"]
    observation, action, next_observation, reward = episode(task, 100, action_scale=1.3)
    truth, true_reward, valid = oracle.one_step(task, observation, action)
    assert valid.sum() > 10  # random actions bring Walker2d's feet to the limit often
    np.testing.assert_allclose(truth[valid], next_observation[valid], atol=1e-6)
    np.testing.assert_allclose(true_reward[valid], reward[valid], atol=1e-6)


def test_rows_do_not_depend_on_each_other():
    task = TASKS["hopper-medium-v2"]
    observation, action, *_ = episode(task, 20)
    forward = oracle.one_step(task, observation, action)
    backward = oracle.one_step(task, observation[::-1], action[::-1])
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a, b[::-1])


def test_unknowable_rows_are_masked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = TASKS["walker2d-medium-v2"]
    observation = np.repeat(episode(task, 1)[0], 6, axis=0)
    action = np.zeros((6, 6))
    observation[1, -1] = 10.0  # clipped
    observation[2, 8] = -10.0
    observation[3, 0] = np.nan
    action[4, 0] = np.inf
    observation[5, 0] = 1e12  # the simulation diverges
    truth, reward, valid = oracle.one_step(task, observation, action)
    np.testing.assert_array_equal(valid, [True, False, False, False, False, False])
    assert np.isfinite(truth[0]).all() and np.isnan(truth[1:]).all() and np.isnan(reward[1:]).all()
    assert not list(tmp_path.iterdir())  # no MuJoCo log


def test_halfcheetah_shows_all_velocities():
    task = TASKS["halfcheetah-medium-v2"]
    observation = episode(task, 1)[0]
    observation[0, -1] = 15.0
    assert oracle.one_step(task, observation, np.zeros((1, 6)))[2].all()


def test_dynamics_error_of_known_errors():
    task = TASKS["hopper-medium-v2"]
    observation, action, next_observation, reward = episode(task, 30)
    observation[0, -1] = 10.0
    scale = np.full(11, 0.5)
    wrong = next_observation.copy()
    wrong[:, 2] += 0.5  # one unit in one of 11 dimensions
    error = oracle.dynamics_error(task, observation, action, wrong, reward + 0.25, scale)
    assert error["num_masked"] >= 1 and error["num_rows"] == 30 - error["num_masked"]
    np.testing.assert_allclose(error["rms"], np.sqrt(1 / 11), atol=1e-5)
    np.testing.assert_allclose(error["rms_per_dimension"], np.eye(11)[2], atol=1e-5)
    np.testing.assert_allclose(error["median"], 0.0, atol=1e-5)
    np.testing.assert_allclose(error["reward_rms"], 0.25, atol=1e-5)

    still = oracle.dynamics_error(task, observation, action, observation, reward, scale)
    assert still["rms"] == still["no_change_rms"] == error["no_change_rms"] > 0.1
    assert still["median"] == still["no_change_median"]


def test_dynamics_error_without_rows_is_nan():
    task = TASKS["hopper-medium-v2"]
    observation = np.full((2, 11), 10.0)
    error = oracle.dynamics_error(task, observation, np.zeros((2, 3)), observation, np.zeros(2))
    assert error["num_rows"] == 0 and error["num_masked"] == 2 and np.isnan(error["rms"])
    per_dimension = error["rms_per_dimension"]
    assert per_dimension.shape == (11,) and np.isnan(per_dimension).all()


def test_other_environments_have_no_oracle():
    task = dataclasses.replace(TASKS["hopper-medium-v2"], environment="InvertedPendulum-v4")
    with pytest.raises(UserError, match="no one-step oracle"):
        oracle.one_step(task, np.zeros((1, 11)), np.zeros((1, 3)))
