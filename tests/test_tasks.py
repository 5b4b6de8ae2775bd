"""The table of tasks against what it promises."""

import gymnasium
import pytest

from tgcvg_jax import config as config_lib
from tgcvg_jax import data, envs
from tgcvg_jax.synthesizers import tgcvg
from tgcvg_jax.tasks import ENVIRONMENTS, TASKS, minari_family, tgcvg_settings

# Table 6 of the paper: L, lambda, K; and m and the hidden width of ADMPO's configs.
PAPER = {
    "halfcheetah-medium-v2": (5, 0.1, 60, 2, 200),
    "halfcheetah-medium-replay-v2": (5, 0.1, 60, 2, 200),
    "halfcheetah-medium-expert-v2": (20, 10, 60, 2, 400),
    "hopper-medium-v2": (20, 2, 60, 5, 200),
    "hopper-medium-replay-v2": (20, 2, 40, 5, 200),
    "hopper-medium-expert-v2": (20, 5, 60, 2, 200),
    "walker2d-medium-v2": (20, 5, 40, 5, 200),
    "walker2d-medium-replay-v2": (20, 5, 40, 5, 200),
    "walker2d-medium-expert-v2": (20, 10, 40, 3, 200),
    "maze2d-umaze-v1": (5, 0.5, 7, 2, 200),
    "maze2d-medium-v1": (5, 0.3, 7, 2, 200),
    "maze2d-large-v1": (5, 0.4, 7, 2, 200),
    "antmaze-umaze-v2": (5, 5, 6, 2, 200),
    "antmaze-umaze-diverse-v2": (5, 5, 7, 2, 200),
    "antmaze-medium-play-v2": (5, 3, 7, 2, 200),
    "antmaze-medium-diverse-v2": (5, 1, 7, 2, 200),
    "antmaze-large-play-v2": (5, 1, 7, 2, 200),
    "antmaze-large-diverse-v2": (5, 2, 7, 2, 200),
}
HERE = {t.name: t for t in (TASKS | ENVIRONMENTS).values()
        if not t.environment.startswith(envs.ROBOTICS)}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_the_papers_tasks(name, preset):
    task = TASKS[name]
    assert tuple(tgcvg_settings(task)) == PAPER[name]
    config = tgcvg.for_task(task, preset)
    config_lib.check(config)
    synthesizer = tgcvg.make(task, config)
    assert synthesizer.models and config.horizon >= 1
    if preset == "paper":
        found = (config.policy.context_length, config.policy.cql_weight, config.window_length,
                 config.dynamics.max_steps, config.dynamics.hidden_dim)  # fmt: skip
        assert found == PAPER[name]
    maze, ant = "maze" in name, "ant" in name
    assert config.dynamics.reward_bias == (1.0 if maze else 0.0)
    transform = (config.policy.reward_shift, config.policy.reward_scale)
    assert transform == ((-0.5, 4.0) if ant else (0.0, 1.0))


def test_all_names_of_d4rl_in_scope():
    d4rl = [t for t in TASKS.values() if t.sources[0].kind == "d4rl"]
    assert len(d4rl) == 15 + 6 + 6
    assert len({t.sources[0].path for t in d4rl}) == len(d4rl)
    for task in d4rl:
        assert task.min_score is not None and task.max_score > task.min_score
        assert task.name.endswith(("-v1", "-v2")) and task.sources[0].name.endswith(".hdf5")
        mazes = task.domain in ("maze2d", "antmaze")
        assert task.eval_episodes == (100 if mazes else 10)


@pytest.mark.parametrize("environment", sorted({t.environment for t in HERE.values()}))
def test_environments_are_as_the_table_says(environment):
    tasks = [t for t in HERE.values() if t.environment == environment]
    env = envs.make(tasks[0])  # checks the dimensions
    env.reset(seed=0)
    *_, terminated, truncated, _ = env.step(env.action_space.sample())
    assert not terminated and not truncated
    env.close()
    for task in tasks:
        dims = (task.observation_dim, task.action_dim)
        assert dims == (tasks[0].observation_dim, tasks[0].action_dim)
        assert task.episode_length == gymnasium.spec(environment).max_episode_steps


@pytest.mark.parametrize(
    ("name", "environment", "family"),
    [
        ("mujoco/hopper/medium-v0", "Hopper-v5", "hopper-medium"),
        ("tgcvg/hopper/medium-replay-v0", "Hopper-v4", "hopper-medium-replay"),
        ("tgcvg/maze2d-large/generated-v0", "tgcvg/Maze2D-large-v1", "maze2d-large"),
        ("me/ant-v0", "tgcvg/AntMaze-medium-v2", "antmaze-medium"),
        ("mine/maze-aug-v0", "tgcvg/Maze2D-large-dense-v1", "maze2d-large-dense"),
        ("me/x-v0", "tgcvg/Hopper-v2", "hopper"),
        ("D4RL/antmaze/large-play-v1", "AntMaze_Large-v4", "antmaze-large-play"),
        ("other/thing/else-v0", "Pendulum-v1", "thing-else"),
    ],
)
def test_family_of_minari_datasets(name, environment, family):
    """An id that tells nothing must not cost a maze its settings."""
    assert minari_family(name, environment) == family


def test_short_names_resolve():
    assert data.resolve("hopper").environment == "Hopper-v4"
    assert data.resolve("antmaze-large").episode_length == 1000
    assert data.resolve("hopper-medium-v2").environment == "tgcvg/Hopper-v2"
    assert data.resolve("mujoco/hopper/medium-v0").environment == "tgcvg-minari/Hopper-v5"


def test_actions_of_any_range_are_scaled():
    task = data.resolve("Pendulum-v1")
    env = envs.make(task)
    assert env.unwrapped.action_space.high == 2.0
    env.reset(seed=0)
    state = env.unwrapped.state.copy()
    _, reward, *_ = env.step([1.0])
    angle, speed = state
    assert reward == pytest.approx(-(angle**2 + 0.1 * speed**2 + 0.001 * 2.0**2), rel=1e-6)
    env.close()
