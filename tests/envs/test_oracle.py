import dataclasses

import numpy as np
import pytest

from tgcvg_jax import envs
from tgcvg_jax.envs import oracle
from tgcvg_jax.envs.simulation import Simulation
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import Transition, UserError


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


@pytest.mark.parametrize("name", ["maze2d-umaze-v1", "maze2d-large-dense-v1", "antmaze-umaze-v2"])
def test_mazes_show_the_whole_state(name):
    task = TASKS[name]
    observation, action, next_observation, reward = episode(task, 40, action_scale=1.3)
    truth, true_reward, valid = oracle.one_step(task, observation, action)
    assert valid.all()
    np.testing.assert_allclose(truth, next_observation, atol=1e-6)
    if task.domain == "antmaze":  # the goal is not in the observation
        assert np.isnan(true_reward).all()
        error = oracle.dynamics_error(task, observation, action, truth, reward)
        assert error["rms"] == 0 and np.isnan(error["reward_rms"])
    else:
        np.testing.assert_allclose(true_reward, reward, atol=1e-6)


def test_all_positions_may_be_in_the_observation():
    task = dataclasses.replace(
        TASKS["hopper-medium-v2"],
        environment="tgcvg-minari/Hopper-v5",
        environment_kwargs='{"exclude_current_positions_from_observation": false}',
        observation_dim=12,
    )
    observation, action, next_observation, _ = episode(task, 20)
    truth, *_ = oracle.one_step(task, observation, action)
    np.testing.assert_allclose(truth, next_observation, atol=1e-6)


def transitions(task, steps=150):
    observation, action, next_observation, reward = episode(task, steps)
    return Transition(observation, action, reward, np.ones(len(reward)), next_observation)


@pytest.mark.parametrize("name", ["hopper-medium-v2", "halfcheetah-medium-v2", "maze2d-umaze-v1"])
def test_check_physics_accepts_the_tasks_own_data(name):
    rows = transitions(TASKS[name])
    assert oracle.check_physics(TASKS[name], rows) is None
    assert oracle.check_physics(TASKS[name], Transition(*map(np.float32, rows))) is None


@pytest.mark.parametrize("robot", ["Hopper", "HalfCheetah", "Walker2d"])
def test_check_physics_names_the_version_that_fits(robot):
    task = TASKS[f"{robot.lower()}-medium-v2"]
    today = dataclasses.replace(task, environment=f"{robot}-v4")
    for here, there in ((task, today), (today, task)):
        answer = oracle.check_physics(here, transitions(there))
        assert "\n" not in answer and f"simulator {here.environment}:" in answer
        assert f"--env={there.environment} " in answer


def test_check_physics_of_data_from_elsewhere():
    task = TASKS["maze2d-umaze-v1"]
    rows = transitions(task)
    wrong = rows._replace(next_observation=rows.next_observation + 0.02)
    answer = oracle.check_physics(task, wrong)
    assert "100% of 150 sampled steps" in answer and "another environment" in answer
    hopper = TASKS["hopper-medium-v2"]
    rows = transitions(hopper)
    shifted = rows._replace(next_observation=rows.next_observation + 0.02)
    assert "another environment" in oracle.check_physics(hopper, shifted)


def test_check_physics_of_an_environment_with_arguments():
    task = dataclasses.replace(
        TASKS["hopper-medium-v2"],
        environment="tgcvg-minari/Hopper-v5",
        environment_kwargs='{"frame_skip": 2}',  # which -v4 does not take
    )
    rows = transitions(task)
    assert oracle.check_physics(task, rows) is None
    as_usual = dataclasses.replace(task, environment_kwargs="")
    assert "off by more" in oracle.check_physics(task, transitions(as_usual))


def test_check_physics_has_nothing_to_say():
    task = TASKS["hopper-medium-v2"]
    rows = transitions(task, 20)
    wrong = rows._replace(next_observation=rows.next_observation + 1)
    assert oracle.check_physics(task, wrong) is not None
    assert oracle.check_physics(task, wrong._replace(discount=np.zeros(20))) is None
    assert oracle.check_physics(task, wrong._replace(observation=np.full((20, 11), 10.0))) is None
    wrong.next_observation[1:] = np.nan
    assert "of 1 sampled" in oracle.check_physics(task, wrong)
    for environment in ("", "InvertedPendulum-v4", "Hopper-v1"):
        other = dataclasses.replace(task, environment=environment)
        assert oracle.check_physics(other, wrong) is None
    none = Transition(*(x[:0] for x in rows))
    assert oracle.check_physics(task, none) is None


def test_one_step_in_processes():
    task = TASKS["hopper-medium-v2"]
    observation, action, *_ = episode(task, 90)
    observation, action = np.tile(observation, (30, 1)), np.tile(action, (30, 1))  # three pieces
    counts = {1: [], 2: []}
    results = [
        oracle.one_step(task, observation, action, processes=n, advance=counts[n].append)
        for n in counts
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(results[0][2]) == sum(counts[1]) == sum(counts[2]) == 2700
    assert len(counts[1]) == len(counts[2]) == 3


def test_one_step_of_nothing():
    task = TASKS["hopper-medium-v2"]
    truth, reward, valid = oracle.one_step(task, np.zeros((0, 11)), np.zeros((0, 3)))
    assert truth.shape == (0, 11) and reward.shape == valid.shape == (0,)


@pytest.mark.parametrize("name", ["hopper", "halfcheetah"])
def test_simulation_follows_the_live_environment(name):
    """Also where one row falls while others go on, and one was never known."""
    task = TASKS[f"{name}-medium-v2"]
    observation, action, next_observation, reward = episode(task, 80, action_scale=1.3)
    env = envs.make(task)
    env.reset(seed=0)
    terminated = np.array([env.step(a)[2] for a in action[:40]])
    env.close()
    steps = int(np.argmax(terminated)) + 1 if terminated.any() else 40
    start = np.stack([observation[0], np.full(task.observation_dim, np.nan), observation[2]])
    with Simulation(task, start) as simulation:
        np.testing.assert_array_equal(simulation.known, [True, False, True])
        for t in range(40):
            made, rewards, ended = simulation.step(np.stack([action[t], action[t], action[t + 2]]))
            assert np.isnan(made[1]).all() and np.isnan(rewards[1]) and not ended[1]
            if t < steps:
                # Rounding (x starts at 0) grows with time.
                np.testing.assert_allclose(made[0], next_observation[t], atol=1e-6)
                np.testing.assert_allclose(rewards[0], reward[t], atol=1e-6)
                assert ended[0] == terminated[t]
            else:
                assert np.isnan(made[0]).all() and np.isnan(rewards[0]) and not ended[0]
            if t + 2 < steps:  # the solver's first start is a cold one here
                np.testing.assert_allclose(made[2], next_observation[t + 2], atol=1e-6)
        assert simulation.running[0] == (name == "halfcheetah")
    assert terminated.any() == (name == "hopper")


def test_simulation_stops_what_it_cannot_step():
    task = TASKS["halfcheetah-medium-v2"]
    start = np.repeat(episode(task, 1)[0], 2, axis=0)
    start[1, 0] = 1e12  # diverges
    with Simulation(task, start) as simulation:
        made, rewards, _ = simulation.step(np.zeros((2, 6)))
        np.testing.assert_array_equal(np.isfinite(rewards), [True, False])
        np.testing.assert_array_equal(simulation.running, [True, False])
        made, rewards, ended = simulation.step(np.full((2, 6), np.nan))
        assert np.isnan(made).all() and not ended.any() and not simulation.running.any()
