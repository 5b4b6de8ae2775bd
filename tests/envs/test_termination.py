import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import data, envs
from tgcvg_jax.envs import termination
from tgcvg_jax.tasks import TASKS

IDS = (
    "Hopper-v4", "Hopper-v5", "tgcvg/Hopper-v2", "tgcvg-minari/Hopper-v5",
    "Walker2d-v4", "Walker2d-v5", "tgcvg/Walker2d-v2", "HalfCheetah-v5", "tgcvg/HalfCheetah-v2",
)  # fmt: skip


def task_of(environment, kwargs=""):
    name = environment.split("/")[-1].split("-")[0].lower()
    task = TASKS[f"{name}-medium-v2"]
    task = dataclasses.replace(task, environment=environment, environment_kwargs=kwargs)
    if "exclude" in kwargs:  # x is observed too
        task = dataclasses.replace(task, observation_dim=task.observation_dim + 1)
    return task


def step_from_random_states(task, count=300):
    """Next observations [N, S] and `terminated` [N] of states around upright, many fallen."""
    env = envs.make(task)
    env.reset(seed=0)
    simulator, rng = env.unwrapped, np.random.default_rng(0)
    seen, ended = [], []
    for _ in range(count):
        qpos = simulator.init_qpos + rng.normal(size=simulator.model.nq) * 0.3
        qpos[2] = rng.normal() * (0.15 if "Hopper" in task.environment else 0.8)
        qpos[-1] += 200.0 * (rng.random() < 0.1)  # only Hopper minds
        simulator.set_state(qpos, rng.normal(size=simulator.model.nv) * 2.0)
        observation, _, terminated, *_ = simulator.step(rng.uniform(-1, 1, task.action_dim))
        seen.append(observation)
        ended.append(terminated)
    env.close()
    return np.array(seen), np.array(ended)


@pytest.mark.parametrize("environment", IDS)
def test_equals_the_simulator(environment):
    task = task_of(environment)
    observation, ended = step_from_random_states(task)
    rule = termination.rule(task)
    answer = rule(observation)
    assert isinstance(answer, np.ndarray) and answer.dtype == bool
    np.testing.assert_array_equal(answer, ended)
    if "HalfCheetah" not in environment:
        assert 30 < ended.sum() < 270
    batched = jax.jit(rule)(jnp.asarray(observation).reshape(3, -1, observation.shape[1]))
    assert batched.dtype == bool
    np.testing.assert_array_equal(batched.ravel(), ended)  # none so near to a bound


@pytest.mark.parametrize(
    "kwargs",
    [
        '{"exclude_current_positions_from_observation": false}',
        '{"healthy_z_range": [1.0, 1.3], "healthy_angle_range": [-0.05, 0.1]}',
        '{"terminate_when_unhealthy": false}',
    ],
)
@pytest.mark.parametrize("environment", ["tgcvg-minari/Hopper-v5", "Walker2d-v4"])
def test_arguments_count(environment, kwargs):
    task = task_of(environment, kwargs)
    observation, ended = step_from_random_states(task, 150)
    np.testing.assert_array_equal(termination.rule(task)(observation), ended)
    assert ended.any() != ("unhealthy" in kwargs)


def test_what_is_not_finite_has_ended():
    observation = np.zeros((5, 11))
    observation[:, 0] = 1.25
    observation[1, 0] = np.inf
    observation[2, 4] = np.nan
    observation[3, -1] = np.nan
    observation[4, 1] = 0.3
    for environment in ("Hopper-v4", "Walker2d-v4"):
        rule = termination.rule(task_of(environment))
        expected = [False, True, True, True, environment == "Hopper-v4"]
        np.testing.assert_array_equal(rule(observation), expected)
        np.testing.assert_array_equal(jax.jit(rule)(observation), expected)


def test_mazes_and_the_unknown():
    for name in ("maze2d-umaze-v1", "maze2d-large-dense-v1"):
        assert not termination.rule(TASKS[name])(np.ones((2, 7, 4))).any()
    assert termination.rule(TASKS["antmaze-umaze-v2"]) is None
    assert termination.rule(TASKS["D4RL/pointmaze/umaze-v2"]) is None
    for environment in ("", "InvertedPendulum-v4", "HopperBullet-v4"):
        task = dataclasses.replace(TASKS["hopper-medium-v2"], environment=environment)
        assert termination.rule(task) is None


@pytest.mark.parametrize("robot", ["hopper", "walker2d", "halfcheetah"])
def test_equals_the_terminals_of_the_bundled_data(robot):
    task = TASKS[f"{robot}-medium-mini"]
    transition = data.load(task).transition
    ended = np.asarray(transition.discount) == 0
    assert ended.any() == (robot != "halfcheetah")
    rule = termination.rule(task)
    np.testing.assert_array_equal(rule(np.asarray(transition.next_observation)), ended)
