import dataclasses
import zlib

import jax
import numpy as np
import pytest

from tgcvg_jax import envs
from tgcvg_jax.collection import behaviours
from tgcvg_jax.collection.parts import Parts
from tgcvg_jax.collection.policies import MLPPolicy
from tgcvg_jax.tasks import ENVIRONMENTS

HOPPER = dataclasses.replace(ENVIRONMENTS["hopper"], episode_length=40)
MAZE = ENVIRONMENTS["maze2d-umaze"]
ANT = dataclasses.replace(ENVIRONMENTS["antmaze-medium"], episode_length=30)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(behaviours, "PART_STEPS", 50)


def collect(task, behaviour, directory, size, seed=0):
    parts = Parts(directory, {})
    behaviours.collect(task, behaviour, parts, size, seed=seed)
    return parts.read(task)


def test_a_larger_run_goes_on_and_equals_one_that_was_large_at_once(tmp_path):
    behaviour = behaviours.uniform_behaviour
    collect(HOPPER, behaviour, tmp_path / "a", 60)
    one = collect(HOPPER, behaviour, tmp_path / "a", 200)
    other = collect(HOPPER, behaviour, tmp_path / "b", 200)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert one.size >= 200


def test_seeds_and_parts_differ(tmp_path):
    uniform = behaviours.uniform_behaviour
    a, b = (collect(HOPPER, uniform, tmp_path / str(seed), 110, seed) for seed in (0, 1))
    assert not np.allclose(a.transition.observation[0], b.transition.observation[0])
    starts = np.asarray(a.transition.observation)[np.asarray(a.timestep) == 0]
    assert len(np.unique(starts, axis=0)) == len(starts)


def test_rows_follow_the_simulator(tmp_path):
    dataset = collect(HOPPER, behaviours.uniform_behaviour, tmp_path, 50)
    t = jax.tree.map(np.asarray, dataset.transition)
    same = np.asarray(dataset.remaining)[:-1] > 1
    np.testing.assert_array_equal(t.next_observation[:-1][same], t.observation[1:][same])
    trouble = envs.oracle.check_physics(HOPPER, t)
    assert trouble is None, trouble


def test_waypoints(tmp_path):
    dataset = collect(MAZE, behaviours.waypoint_behaviour, tmp_path, 2_000)
    t = jax.tree.map(np.asarray, dataset.transition)
    assert np.all(t.discount == 1.0)  # a maze2d never ends
    last = np.asarray(dataset.remaining) == 1
    lengths = np.asarray(dataset.timestep)[last] + 1
    place = t.next_observation[last, :2]
    arrived = np.abs(place - np.round(place)).max(axis=1) < 0.15
    assert np.mean(arrived) > 0.9 and lengths.max() <= MAZE.episode_length
    # The ball is put somewhere at the start of a part alone, not between two segments.
    jumps = np.abs(t.observation[1:] - t.next_observation[:-1]).max(axis=1)
    assert np.sum(jumps > 0) == len(Parts(tmp_path, {}).rows) - 1 < np.sum(last) - 1
    goal = np.array([1.0, 1.0])
    near = np.linalg.norm(t.next_observation[:, :2] - goal, axis=1)
    clear = np.abs(near - 0.5) > 1e-5
    np.testing.assert_array_equal(t.reward[clear], (near <= 0.5)[clear])


@pytest.mark.parametrize("diverse", [False, True])
def test_ants(tmp_path, diverse):
    rng = np.random.default_rng(0)
    policy = MLPPolicy({"W0": 0.1 * rng.normal(size=(8, 29)), "b0": np.zeros(8),
                         "log_std": np.full(8, -1.0)})  # fmt: skip
    behaviour = behaviours.antmaze_behaviour(policy, diverse=diverse, seed=3)
    dataset = collect(ANT, behaviour, tmp_path, 150)
    t = jax.tree.map(np.asarray, dataset.transition)
    assert np.abs(t.action).max() <= 1.0
    starts = t.observation[np.asarray(dataset.timestep) == 0]
    assert len(np.unique(np.round(starts[:, :2]), axis=0)) > 1  # many starts


def test_ants_share_one_rewarded_goal_and_stop_there(monkeypatch):
    env = envs.make(ANT)
    goal = env.unwrapped.evaluation_goal(np.random.default_rng([3, zlib.crc32(b"goal")]))
    monkeypatch.setattr(type(env.unwrapped), "collection_start", lambda self, rng: goal + 0.3)
    policy = MLPPolicy({"W0": np.zeros((8, 29)), "b0": np.zeros(8), "log_std": np.full(8, -1.0)})
    source = behaviours.antmaze_behaviour(policy, diverse=False, seed=3)
    episodes = source(env, np.random.default_rng(0))
    for episode in (next(episodes) for _ in range(3)):  # all begin within reach of the goal
        assert episode.terminated and episode.rewards[-1] == 1.0
        np.testing.assert_array_equal(env.unwrapped.goal, goal)
    env.close()
