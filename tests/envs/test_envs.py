import collections
import dataclasses
import warnings

import gymnasium
import numpy as np
import pytest

from tgcvg_jax import envs
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import Task, UserError

HOPPER = TASKS["hopper-medium-v2"]


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_the_tasks_fit_their_environments(name):
    task = TASKS[f"{name}-medium-v2"]
    env = envs.make(task)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (task.observation_dim,)
    assert env.unwrapped.action_space.shape == (task.action_dim,)
    env.close()


def test_make_is_quiet_and_leaves_the_callers_warnings_alone(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log file to the current folder
    filters = list(warnings.filters)
    envs.make(TASKS["halfcheetah-medium-v2"]).close()
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.iterdir())
    assert warnings.filters == filters


def test_actions_are_clipped_before_the_control_cost():
    rewards = []
    for size in (1.0, 50.0):
        env = envs.make(HOPPER)
        env.reset(seed=3)
        rewards.append(env.step(np.full(3, size, np.float32))[1])
        env.close()
    assert rewards[0] == rewards[1]


def test_time_limit_is_the_tasks():
    env = envs.make(dataclasses.replace(TASKS["halfcheetah-medium-v2"], episode_length=3))
    env.reset(seed=0)
    ends = [env.step(np.zeros(6, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(environment=""), "no environment"),
        (dict(environment="Hoper-v4"), "Hopper"),  # Gymnasium's own suggestion
        (dict(environment="no_such_module:Hopper-v4"), "no_such_module"),
        (dict(environment="not an id"), "cannot make"),
        (dict(observation_dim=12), r"observation space.*\(12,\)"),
        (dict(action_dim=2), r"action space.*\(2,\)"),
    ],
)
def test_bad_environments_are_user_errors(changes, message):
    with pytest.raises(UserError, match=message) as error:
        envs.make(dataclasses.replace(HOPPER, **changes))
    assert "\n" not in str(error.value)


def test_discrete_actions_are_a_user_error():
    with pytest.raises(UserError, match="Discrete"):
        envs.make(Task("cart", "CartPole-v1", 4, 1, 10))


def test_missing_package_is_a_user_error(monkeypatch):
    def make(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'robot'")

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(UserError, match="robot"):
        envs.make(HOPPER)


class Unsorted(gymnasium.Env):
    """Its dict of observations is not in the order of its keys."""

    def __init__(self):
        box = gymnasium.spaces.Box(-9, 9, (2,))
        pairs = [("position", box), ("goal", box)]
        self.observation_space = gymnasium.spaces.Dict(collections.OrderedDict(pairs))
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"position": np.full(2, 1.0, np.float32), "goal": np.full(2, 5.0, np.float32)}, {}


def test_dicts_are_flattened_in_the_order_that_minari_stores(monkeypatch):
    """Minari sorts keys; Gymnasium's own FlattenObservation does not always."""
    spec = gymnasium.envs.registration.EnvSpec("TgcvgUnsorted-v0", entry_point=Unsorted)
    monkeypatch.setitem(gymnasium.registry, "TgcvgUnsorted-v0", spec)
    env = envs.make(Task("unsorted", "TgcvgUnsorted-v0", 4, 1, 10))
    np.testing.assert_array_equal(env.reset(seed=0)[0], [5, 5, 1, 1])
    env.close()
