import json
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tgcvg_jax.envs import grid
from tgcvg_jax.envs.antmaze import COLLECTION_GOALS, MAPS, AntMaze, Navigator, centre
from tgcvg_jax.types import UserError

GOALS = {"umaze": (0, 8), "medium": (20, 20), "large": (32, 24)}  # centres of the goals' cells
POLICY = Path(__file__).parents[3] / "shared" / "policies" / "ant_goal_policy.npz"


def touches_wall(env):
    """Whether a simulator's geoms touch a wall, contact margins left out."""
    name = lambda geom: env.model.geom(geom).name  # noqa: E731
    contacts = [c for c in env.data.contact if c.dist < 0]
    return any(name(g).startswith("wall") for c in contacts for g in c.geom)


def put(env, x, y):
    qpos = env.model.qpos0.copy()
    qpos[:2] = x, y
    env.set_state(qpos, np.zeros(14))


@pytest.fixture
def env():
    return AntMaze("umaze")


@pytest.mark.parametrize("maze", MAPS)
def test_gymnasium_api(maze):
    env = gymnasium.make(f"tgcvg/AntMaze-{maze}-v2")
    check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (29,), np.float64)
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (8,), np.float32)


def test_the_ant_is_gymnasiums_in_shape():
    """And in the order of joints and motors."""
    xml = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "ant.xml"
    theirs, ours = mujoco.MjModel.from_xml_path(str(xml)), AntMaze("umaze").model
    for field in (
        "body_pos", "body_parentid", "jnt_type", "jnt_axis", "jnt_pos", "jnt_range", "jnt_limited",
        "jnt_bodyid", "dof_armature", "dof_damping", "actuator_trnid", "qpos0",
    ):  # fmt: skip
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), field)
    robot, their_robot = ours.geom_bodyid > 0, theirs.geom_bodyid > 0
    for field in ("geom_type", "geom_size", "geom_pos", "geom_quat", "geom_contype"):
        np.testing.assert_array_equal(
            getattr(ours, field)[robot], getattr(theirs, field)[their_robot], field
        )
    assert not ours.geom_conaffinity[robot].any()


def test_masses_of_old_capsules(env):
    sphere = 5 * 4 / 3 * np.pi * 0.25**3
    leg = lambda length: 5 * np.pi * 0.08**2 * (length * np.sqrt(2) + 0.08)  # noqa: E731
    masses = [0.0, sphere] + 4 * [leg(0.2), leg(0.2), leg(0.4)]
    np.testing.assert_allclose(env.model.body_mass, masses, rtol=1e-6)
    assert env.model.opt.timestep == 0.02
    assert env.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4


@pytest.mark.parametrize("maze", MAPS)
def test_walls_stand_around_the_free_cells(maze):
    env = AntMaze(maze)
    for cell in env.grid.free():
        x, y = centre(env.grid, cell)
        put(env, x, y)
        assert not touches_wall(env)
        for i, j in grid.MOVES:  # legs reach 0.88 to each side, walls are 2 away
            put(env, x + 1.1 * j, y + 1.1 * i)
            assert not touches_wall(env)
            put(env, x + 1.2 * j, y + 1.2 * i)
            assert touches_wall(env) != env.grid.is_free((cell[0] + i, cell[1] + j))


@pytest.mark.parametrize("maze", MAPS)
def test_goal_cells(maze):
    env = AntMaze(maze)
    assert centre(env.grid, env.grid.cells("R")[0]).tolist() == [0, 0]
    assert tuple(centre(env.grid, env.grid.cells("G")[0])) == GOALS[maze]
    start = env.grid.cells("R")[0]
    for cell in COLLECTION_GOALS[maze]:
        assert env.grid.is_free(cell) and grid.shortest_path(env.grid, start, cell)


def test_resets_and_goals(env):
    rows, goals = [], []
    for seed in range(2000):
        rows.append(env.reset(seed=seed)[0])
        goals.append(env.goal)
    rows, goals = np.array(rows), np.array(goals)
    quaternion = rows[:, 3:7]
    np.testing.assert_allclose(np.linalg.norm(quaternion, axis=1), 1.0, atol=1e-12)
    tilt = quaternion[:, 1:] / quaternion[:, :1]
    assert 0.1 < np.abs(tilt).max() < 0.1 / 0.9
    noise = rows[:, [0, 1, 2, *range(7, 15)]]
    noise[:, 2] -= 0.75
    assert 0.099 < noise.max() <= 0.1 and -0.1 <= noise.min() < -0.099
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.006)
    np.testing.assert_allclose(rows[:, 15:].std(axis=0), 0.1, rtol=0.1)
    offset = goals - GOALS["umaze"]
    assert 0 <= offset.min() < 0.1 and 1.4 < offset.max() <= 1.5
    np.testing.assert_allclose(offset.mean(axis=0), 0.75, atol=0.03)
    np.testing.assert_allclose(offset.var(axis=0), (1 + 0.25) / 12, rtol=0.1)


def test_seeds_decide(env):
    def rollout(seed):
        first, _ = env.reset(seed=seed)
        actions = np.random.default_rng(0).uniform(-1, 1, (20, 8))
        return np.concatenate([[*env.goal, *first]] + [env.step(a)[0] for a in actions])

    first = rollout(1)
    np.testing.assert_array_equal(first, rollout(1))
    assert not np.array_equal(first, rollout(2))
    other_goal = env.goal
    env.reset()
    assert not np.array_equal(other_goal, env.goal)


def test_start_option(env):
    observation, _ = env.reset(seed=0, options={"start": (8.0, 4.5)})
    assert observation[:2].tolist() == [8.0, 4.5]
    np.testing.assert_array_equal(observation[2:], env.reset(seed=0)[0][2:])


def test_reward_and_end_at_the_goal(env):
    env.reset(seed=0)
    stand = np.zeros(8)
    for x, expected in ((0.45, True), (0.55, False)):
        put(env, env.goal[0] + x, env.goal[1])
        observation, reward, terminated, truncated, _ = env.step(stand)
        distance = np.linalg.norm(observation[:2] - env.goal)
        assert (distance <= 0.5) == expected
        assert (reward, terminated, truncated) == (float(expected), expected, False)
    put(env, *env.goal)
    for _ in range(3):  # the ant stays, and so does the reward
        assert env.step(stand)[1:3] == (1.0, True)


def test_a_fall_ends_nothing(env):
    env.reset(seed=0)
    qpos = env.model.qpos0.copy()
    qpos[3:7] = 0, 1, 0, 0  # on its back
    env.set_state(qpos, np.zeros(14))
    results = [env.step(np.zeros(8)) for _ in range(30)]
    assert not any(r[2] for r in results) and results[-1][0][2] < 0.4


@pytest.mark.parametrize(("maze", "horizon"), [("umaze", 700), ("medium", 1000), ("large", 1000)])
def test_time_limit(maze, horizon):
    env = gymnasium.make(f"tgcvg/AntMaze-{maze}-v2")
    env.reset(seed=0)
    ends = [env.step(np.zeros(8, np.float32))[2:4] for _ in range(horizon)]
    assert ends == [(False, False)] * (horizon - 1) + [(False, True)]


def test_torques_are_clipped_and_scaled(env):
    action = np.linspace(-1, 1, 8)
    states = []
    for a in (action, 5 * action, np.sign(action)):
        env.reset(seed=0)
        states.append(env.step(a)[0])
    assert not np.allclose(states[0], states[2])
    env.reset(seed=0)
    np.testing.assert_array_equal(env.step(5 * np.sign(action))[0], states[2])
    env.reset(seed=0)
    env.step(action)
    np.testing.assert_allclose(env.data.actuator_force, 30 * action, atol=1e-12)


def test_a_set_state_continues_as_the_live_environment(env):
    """There is no warm start."""
    rng = np.random.default_rng(0)
    oracle = AntMaze("umaze")
    observation, _ = env.reset(seed=0, options={"start": (1.0, 1.0)})
    for _ in range(300):
        action = rng.uniform(-1, 1, 8)
        oracle.set_state(observation[:15], observation[15:])
        observation = env.step(action)[0]
        np.testing.assert_allclose(oracle.step(action)[0], observation, rtol=0, atol=1e-12)


def test_environments_share_the_model():
    first, second = AntMaze("large"), AntMaze("large")
    assert first.model is second.model and first.data is not second.data
    assert AntMaze("medium").model is not first.model


def test_user_errors(env):
    with pytest.raises(UserError, match="choose one of umaze, medium, large"):
        AntMaze("giant")
    with pytest.raises(UserError, match="choose one of d4rl, centre"):
        Navigator(env.grid, np.random.default_rng(0), "center")


@pytest.mark.parametrize("maze", MAPS)
def test_collection_draws(maze):
    env, rng = AntMaze(maze), np.random.default_rng(0)
    starts = np.array([env.collection_start(rng) for _ in range(2000)])
    goals = np.array([env.collection_goal(rng) for _ in range(2000)])
    for points, cells, width in (
        (starts, set(env.grid.free()) - set(COLLECTION_GOALS[maze]), 1.0),
        (goals, set(COLLECTION_GOALS[maze]), 1.5),
    ):
        found, counts = np.unique(points // 4 + 1, axis=0, return_counts=True)
        assert {(int(i), int(j)) for j, i in found} == cells
        assert counts.min() > 0.4 * len(points) / len(cells)
        offset = points % 4
        assert 0.9 * width < offset.max() <= width and offset.min() >= 0
    put(env, *starts[0])
    assert not touches_wall(env)


@pytest.mark.parametrize("rule", ["d4rl", "centre"])
@pytest.mark.parametrize("maze", MAPS)
def test_waypoints_lead_along_a_shortest_path(maze, rule):
    env, rng = AntMaze(maze), np.random.default_rng(0)
    navigator = Navigator(env.grid, rng, rule)
    for goal_cell in env.grid.free():
        goal = centre(env.grid, goal_cell) + 0.3
        distance = grid.distances(env.grid, goal_cell)
        for cell in env.grid.free():
            waypoint = navigator.waypoint(centre(env.grid, cell) + 0.1, goal)
            if distance[cell] <= 1:
                np.testing.assert_array_equal(waypoint, goal)
                continue
            j, i = (waypoint // 4 + 1).astype(int)
            assert abs(i - cell[0]) + abs(j - cell[1]) == 1
            assert distance[i, j] == distance[cell] - 1
            offset = waypoint - centre(env.grid, (i, j))
            assert (0 < offset).all() and (offset < 1).all() if rule == "d4rl" else not offset.any()


def test_waypoint_noise_is_drawn_anew():
    navigator = Navigator(MAPS["umaze"], np.random.default_rng(0))
    points = np.array(
        [navigator.waypoint(np.array([0.5, 0.5]), np.array([0.0, 8.0])) for _ in range(1000)]
    )
    assert len(np.unique(points)) == 2000
    np.testing.assert_allclose(points.mean(axis=0), [4.5, 0.5], atol=0.05)


@pytest.mark.parametrize(
    ("rule", "position", "cell"),
    [
        ("d4rl", (7.9, 0.0), (1, 3)),  # has not passed the crossing's middle at x = 8
        ("centre", (7.9, 0.0), (2, 3)),
        ("centre", (5.9, 0.0), (1, 3)),
        ("d4rl", (8.1, 1.0), (2, 3)),
        ("d4rl", (7.5, 5.0), (3, 2)),  # counts as in the wall beside, so may cut the corner
        ("d4rl", (8.1, 5.0), (3, 3)),
        ("d4rl", (-1.0, -1.0), (1, 2)),  # before the first centre
    ],
)
def test_cells_of_the_rules(rule, position, cell):
    navigator = Navigator(MAPS["umaze"], np.random.default_rng(0), rule)
    waypoint = navigator.waypoint(np.array(position), np.array([0.5, 8.5]))
    assert tuple((waypoint // 4 + 1).astype(int)[::-1]) == cell


def test_ties_go_as_in_d4rl():
    """Its search from the goal tries left, right, down, up."""
    navigator = Navigator(MAPS["medium"], np.random.default_rng(0), "centre")
    goal = centre(MAPS["medium"], (3, 3))
    np.testing.assert_array_equal(navigator.waypoint(np.zeros(2), goal), [0, 4])


def test_on_top_of_the_walls_the_way_leads_back():
    navigator = Navigator(MAPS["umaze"], np.random.default_rng(0), "centre")
    waypoint = navigator.waypoint(np.array([-12.0, -3.0]), np.array([0.0, 8.0]))
    np.testing.assert_array_equal(waypoint, [0.0, 0.0])


def test_policy_input(env):
    observation, _ = env.reset(seed=0)
    navigator = Navigator(env.grid, np.random.default_rng(0), "centre")
    out = navigator(observation, np.array([0.5, 8.5]))
    np.testing.assert_array_equal(out[:27], observation[2:])
    expected = np.array([4.0, 0.0]) - observation[:2]
    np.testing.assert_allclose(out[27:], 10 * expected / np.linalg.norm(expected))
    assert np.isfinite(navigator(observation, observation[:2].copy())).all()


@pytest.mark.skipif(not POLICY.exists(), reason="needs a trained policy")
def test_a_trained_policy_reaches_the_goal(env):
    """A policy trained on D4RL's ant: it could not walk with another order of joints."""
    with np.load(POLICY) as f:
        p = {key: f[key] for key in f.files}
    assert json.loads(str(p["meta"]))["hidden_act"] == "relu"
    successes = 0
    for seed in range(10):
        navigator = Navigator(env.grid, np.random.default_rng(seed), "centre")
        observation, _ = env.reset(seed=seed)
        for _ in range(250):
            x = navigator(observation, env.goal)
            for i in (0, 1):
                x = np.maximum(p[f"W{i}"] @ x + p[f"b{i}"], 0)
            observation, _, terminated, *_ = env.step(np.tanh(p["W2"] @ x + p["b2"]))
            if terminated:
                successes += 1
                break
    assert successes >= 6  # 0.87 of many
