import copy
import math
import os

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer
from gymnasium.utils.env_checker import check_env

from tgcvg_jax import envs
from tgcvg_jax.envs import grid as grids
from tgcvg_jax.envs.maze2d import MAPS, Maze2D, WaypointController
from tgcvg_jax.tasks import ENVIRONMENTS, MAZE2D
from tgcvg_jax.types import UserError

# Mean returns of 100 episodes, measured with a program that shares nothing with this one. Random
# policy: sparse reward. Controller planned anew in every episode: sparse and dense.
RANDOM = {"umaze": 17.6, "medium": 24.3, "large": 9.3}
CONTROLLER = {"umaze": (217.2, 230.2), "medium": (427.0, 441.9), "large": (561.4, 581.5)}

each_maze = pytest.mark.parametrize("maze", MAPS)


def in_any_corridor(env, rng):
    """A position that the ball can reach; along each axis often in touch with a wall's place."""
    cells = env.grid.free()
    at_wall = rng.choice([-0.6, 0.2], 2) + rng.uniform(-0.003, 0.003, 2)
    inside = rng.uniform(-0.6, 0.2, 2)
    offset = np.where(rng.uniform(size=2) < 0.5, at_wall, inside)
    return cells[rng.integers(len(cells))] + offset


def returns(env, policy, episodes, horizon):
    """Sparse and dense returns, [episodes] each; `policy(observation, time)`."""
    sums = np.zeros((2, episodes))
    for episode in range(episodes):
        observation, _ = env.reset()
        for t in range(horizon):
            observation, reward, *_ = env.step(policy(observation, t))
            sums[:, episode] += reward, math.exp(-math.dist(observation[:2], env.goal))
    return sums


def assert_same_mean(values, mean, num_episodes=100):
    """Within 3 standard errors of an earlier mean over `num_episodes`."""
    error = np.std(values, ddof=1) * math.sqrt(1 / len(values) + 1 / num_episodes)
    assert abs(np.mean(values) - mean) < 3 * error, (np.mean(values), mean, error)


@each_maze
def test_one_step_is_that_of_gymnasium_robotics(maze):
    robotics = pytest.importorskip("gymnasium_robotics")
    gymnasium.register_envs(robotics)
    name = {"umaze": "UMaze", "medium": "Medium", "large": "Large"}[maze]
    theirs = gymnasium.make(f"PointMaze_{name}-v3", disable_env_checker=True).unwrapped.point_env
    theirs.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_WARMSTART
    ours = Maze2D(maze)
    ours.model = copy.copy(ours.model)
    ours.model.geom_margin[:] = 0.002  # theirs is D4RL's XML, so MuJoCo >= 3.5 adds up two margins
    height, width = len(ours.grid.rows), len(ours.grid.rows[0])
    rng = np.random.default_rng(0)
    ours.reset(seed=0)
    contacts = 0
    for _ in range(1500):
        (row, column), (v_row, v_column) = in_any_corridor(ours, rng), rng.uniform(-6, 6, 2)
        action = rng.uniform(-1.3, 1.3, 2)
        ours.set_state([row, column], [v_row, v_column])
        theirs.set_state(
            np.array([column + 0.7 - width / 2, height / 2 - row - 0.7]),
            np.array([v_column, -v_row]),
        )
        x, y, v_x, v_y = theirs.step(np.array([action[1], -action[0]]))[0]
        expected = [height / 2 - y - 0.7, x - 0.7 + width / 2, -v_y, v_x]
        np.testing.assert_allclose(ours.step(action)[0], expected, rtol=0, atol=1e-12)
        contacts += ours.data.ncon > 0
    assert contacts > 300
    theirs.close()


def test_the_ball_feels_a_wall_at_d4rls_margin():
    env = Maze2D("umaze")
    env.reset(seed=0)
    for gap, touches in ((0.0019, True), (0.0021, False)):
        env.set_state([1.0, 0.4 + gap], [0.0, 0.0])  # the wall's face is at 0.3, the radius is 0.1
        env.step(np.zeros(2))
        assert (env.data.ncon > 0) == touches


@each_maze
def test_random_policy_scores_as_measured(maze):
    env, horizon = Maze2D(maze), MAZE2D[maze].horizon
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    sparse, dense = returns(env, lambda observation, t: rng.uniform(-1, 1, 2), 40, horizon)
    assert_same_mean(sparse, RANDOM[maze])
    assert_same_mean(sparse, MAZE2D[maze].sparse[0])  # D4RL's own random policy
    assert_same_mean(dense, MAZE2D[maze].dense[0])


@each_maze
def test_controller_scores_as_measured(maze):
    env, horizon = Maze2D(maze), MAZE2D[maze].horizon
    env.reset(seed=0)
    controller = WaypointController(env.grid, np.random.default_rng(0))

    def policy(observation, t):
        if t == 0:
            controller.start(observation, env.goal)
        return controller.act(observation)[0]

    sparse, dense = returns(env, policy, 40, horizon)
    assert_same_mean(sparse, CONTROLLER[maze][0])
    assert_same_mean(dense, CONTROLLER[maze][1])
    assert sparse.min() > 0  # it reached the goal every time


@each_maze
def test_resets_are_near_all_free_cells(maze):
    env = Maze2D(maze)
    env.reset(seed=0)
    starts = np.array([env.reset()[0] for _ in range(2000)])
    cells = np.round(starts[:, :2])
    offsets = starts[:, :2] - cells
    found, counts = np.unique(cells.astype(int), axis=0, return_counts=True)
    assert [tuple(cell) for cell in found.tolist()] == env.grid.free()
    assert tuple(env.goal) in env.grid.free()
    expected = 2000 / len(found)
    assert np.all(np.abs(counts - expected) < 5 * math.sqrt(expected))
    assert 0.09 < np.abs(offsets).max() <= 0.1
    assert np.all(np.abs(offsets.mean(axis=0)) < 0.007)
    np.testing.assert_allclose(starts[:, 2:].std(axis=0), 0.1, rtol=0.1)


def test_goals_are_d4rls():
    goals = {maze: tuple(Maze2D(maze).goal) for maze in MAPS}
    assert goals == {"umaze": (1, 1), "medium": (6, 6), "large": (7, 9)}


def test_one_free_step_by_hand():
    env = Maze2D("medium")
    env.reset(seed=0)
    env.set_state([1.0, 1.0], [0.5, -0.25])
    observation, *_ = env.step(np.array([1.0, -3.0]))  # clipped to -1
    mass, dt, damping = 4 / 3 * math.pi * 0.1**3 * 1000, 0.01, 1.0
    # Euler's rule, with the damping taken at the end of the step.
    velocity = (mass * np.array([0.5, -0.25]) + dt * np.array([100, -100])) / (mass + dt * damping)
    np.testing.assert_allclose(observation[2:], velocity, rtol=1e-12)
    np.testing.assert_allclose(observation[:2], 1 + dt * velocity, rtol=1e-12)


def test_velocities_are_clipped_before_the_step():
    env = Maze2D("large")
    env.reset(seed=0)
    results = []
    for velocity in (5.0, 9.0):
        env.set_state([1.0, 2.0], [0.0, velocity])
        results.append(env.step(np.ones(2))[0])
    np.testing.assert_array_equal(*results)
    assert 5.2 < results[0][3] < 5.24


def test_rewards_are_paid_for_the_new_state():
    for dense in (False, True):
        env = Maze2D("umaze", dense=dense)
        env.reset(seed=0)
        for start, velocity, inside in ((1.52, -5.0, True), (1.48, 5.0, False)):
            env.set_state([1.0, start], [0.0, velocity])
            observation, reward, *_ = env.step(np.zeros(2))
            distance = np.linalg.norm(observation[:2] - env.goal)
            assert (distance <= 0.5) == inside
            assert reward == pytest.approx(math.exp(-distance) if dense else float(inside))


@each_maze
@pytest.mark.parametrize("suffix", ["", "-dense"])
def test_registered_environments(maze, suffix):
    task = ENVIRONMENTS[f"maze2d-{maze}{suffix}"]
    env = envs.make(task)
    assert env.unwrapped.dense == bool(suffix)
    assert env.unwrapped.grid == MAPS[maze]
    env.reset(seed=0)
    env.unwrapped.set_state(env.unwrapped.goal, [0.0, 0.0])
    for t in range(1, task.episode_length + 1):
        _, reward, terminated, truncated, _ = env.step(np.zeros(2))
        assert (reward, terminated) == (1.0, False)
        assert truncated == (t == MAZE2D[maze].horizon)
    env.close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # that a state has no bounds
def test_gymnasiums_own_check():
    check_env(gymnasium.make("tgcvg/Maze2D-umaze-v1").unwrapped, skip_render_check=True)


def test_the_seed_decides_and_the_model_is_shared():
    first, second = Maze2D("umaze"), Maze2D("umaze")
    assert first.model is second.model
    second.reset(seed=7)
    for _ in range(50):  # whatever came before
        second.step(np.ones(2))
    rng = np.random.default_rng(0)
    a, b = first.reset(seed=1)[0], second.reset(seed=1)[0]
    for _ in range(200):
        np.testing.assert_array_equal(a, b)
        action = rng.uniform(-1, 1, 2)
        a, b = first.step(action)[0], second.step(action)[0]
    assert not np.array_equal(first.reset(seed=2)[0], first.reset(seed=1)[0])


@each_maze
def test_an_observation_is_the_whole_state(maze):
    env = Maze2D(maze)
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    rows, contacts = [], 0
    for t in range(400):
        if t % 20 == 0:
            action = rng.uniform(-1, 1, 2)
        before = observation
        observation, *_ = env.step(action)
        contacts += env.data.ncon > 0
        rows.append((before, action, observation))
    assert contacts > 10
    for i in rng.permutation(len(rows)):  # nothing may be left of the step before
        before, action, after = rows[i]
        env.set_state(before[:2], before[2:])
        np.testing.assert_array_equal(env.step(action)[0], after)
    state = np.array([2.0, 3.0, -1.0, 1.0])
    np.testing.assert_array_equal(env.reset(options={"state": state})[0], state)


@each_maze
def test_walls_cannot_be_crossed(maze):
    env = Maze2D(maze)
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    cell = np.floor(observation[:2] + 0.7).astype(int)  # of the walls, which stand 0.2 back
    contacts = 0
    for t in range(5000):
        if t % 25 == 0:
            action = rng.choice([-1.0, 1.0], 2) * rng.uniform(0.5, 1, 2)
        observation, *_ = env.step(action)
        contacts += env.data.ncon > 0
        new = np.floor(observation[:2] + 0.7).astype(int)
        assert env.grid.is_free(tuple(new))
        # From one cell to the next, and never between two walls that meet in a corner.
        assert np.abs(new - cell).max() <= 1
        assert env.grid.is_free((cell[0], new[1])) or env.grid.is_free((new[0], cell[1]))
        cell = new
        assert np.abs(observation[2:]).max() < 5.24 * math.sqrt(2)  # corners turn velocities
    assert contacts > 1000


@each_maze
def test_the_controller_reaches_random_targets_from_anywhere(maze):
    env = Maze2D(maze)
    rng = np.random.default_rng(0)
    controller = WaypointController(env.grid, rng)
    env.reset(seed=0)
    reached_targets = 0
    for _ in range(40):
        # At a wall a position is often rounded to the wall's cell or to one beyond it.
        state = np.concatenate([in_any_corridor(env, rng), rng.uniform(-5, 5, 2)])
        observation, _ = env.reset(options={"state": state})
        target = controller.random_target(rng)
        controller.start(observation, target)
        for _ in range(MAZE2D[maze].horizon):
            action, reached = controller.act(observation)
            assert reached == (np.linalg.norm(observation[:2] - np.round(target)) < 0.1)
            if reached:
                break
            assert action.dtype == np.float32
            assert np.abs(action).max() <= 1
            observation, *_ = env.step(action)
        reached_targets += reached
    assert reached_targets >= 38


def test_the_controllers_law():
    controller = WaypointController(MAPS["umaze"], np.random.default_rng(0))
    controller.start(np.zeros(4) + 1, np.array([1.05, 0.93]))  # its cell is the goal
    action, reached = controller.act(np.array([1.02, 0.95, 0.1, -0.2]))
    np.testing.assert_allclose(action, [-0.2 - 0.1, 0.5 + 0.2], rtol=1e-6)
    assert reached
    action, reached = controller.act(np.array([1.0, 1.1, 0.0, 0.0]))
    np.testing.assert_allclose(action, [0, -1], atol=1e-6)
    assert not reached


def test_waypoints_are_the_next_cells_less_noise():
    controller = WaypointController(MAPS["umaze"], np.random.default_rng(0))
    path = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)]
    assert grids.shortest_path(MAPS["umaze"], (1, 1), (3, 3)) == path
    shifts = []
    for _ in range(300):
        controller.start(np.array([1.0, 1.0, 0.0, 0.0]), np.array([3.0, 3.0]))
        aims = []
        for _ in path[1:]:  # stand still on each waypoint: no force, and on to the next
            aims.append(controller._waypoints[0])
            action, reached = controller.act(np.array([*aims[-1], 0.0, 0.0]))
            assert action == pytest.approx([0, 0])
            assert reached == (len(aims) == len(path) - 1)
        np.testing.assert_array_equal(aims[-1], path[-1])
        shifts.append(np.subtract(path[1:-1], aims[:-1]))
    shifts = np.array(shifts)
    assert shifts.min() >= 0
    assert 0.19 < shifts.max() <= 0.2
    assert shifts.mean() == pytest.approx(0.1, abs=0.01)


def test_bad_arguments():
    with pytest.raises(UserError, match="umaze, medium, large"):
        Maze2D("huge")
    with pytest.raises(ValueError, match="no free cell"):
        WaypointController(MAPS["umaze"], np.random.default_rng(0)).start(np.ones(4), np.zeros(2))


@pytest.mark.filterwarnings("ignore")  # GLFW's, that there is no display
def test_renders_the_maze_from_above(monkeypatch):
    if "DISPLAY" not in os.environ and "MUJOCO_GL" not in os.environ:
        monkeypatch.setenv("MUJOCO_GL", "egl")
    env = Maze2D("large", render_mode="rgb_array")
    env.reset(options={"state": np.array([7.0, 1.0, 0.0, 0.0])})
    try:
        OffScreenViewer(env.model, env.data, 8, 8).close()
    except Exception as error:  # whatever the platform's OpenGL says
        pytest.skip(f"no OpenGL: {error}")
    frame = env.render().astype(int)
    assert frame.shape == (480, 480, 3)
    env.close()
    # The ball is the blue thing: bottom left, as in the map.
    i, j = np.nonzero(frame[..., 2] - frame[..., 0] > 30)
    assert 300 < i.mean() < 400
    assert 60 < j.mean() < 140
    assert Maze2D("large").render() is None
