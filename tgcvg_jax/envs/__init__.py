"""Environments: D4RL's simulators on today's MuJoCo, and whatever Gymnasium makes.

Importing this package registers, as Gymnasium packages do:

    tgcvg/{Hopper,HalfCheetah,Walker2d}-v2         D4RL's physics (`physics.py`)
    tgcvg/Maze2D-{umaze,medium,large}[-dense]-v1   D4RL's point mazes (`maze2d.py`)
    tgcvg/AntMaze-{umaze,medium,large}-v2          D4RL's ant mazes (`antmaze.py`)
    tgcvg-minari/Hopper-v5                         Gymnasium's -v5 with the contact margins of the
                                                   MuJoCo that Minari's sets were made with (the
                                                   other robots have none)
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import mujoco
import numpy as np

from tgcvg_jax.types import Task, UserError, one_line

ROBOTICS = ("PointMaze_", "AntMaze_", "Adroit", "FrankaKitchen")  # ids of gymnasium-robotics


def _register() -> None:
    def register(name: str, entry_point: str, max_episode_steps: int, **kwargs: Any) -> None:
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                f"tgcvg_jax.envs.{entry_point}",
                max_episode_steps=max_episode_steps,
                kwargs=kwargs,
            )

    for robot in ("Hopper", "HalfCheetah", "Walker2d"):
        register(f"tgcvg/{robot}-v2", f"physics:{robot}V2", 1000)
    # A namespace of its own, or Gymnasium would offer it as the newer version of the above.
    register("tgcvg-minari/Hopper-v5", "physics:HopperV5", 1000)
    for maze, horizon in (("umaze", 300), ("medium", 600), ("large", 800)):
        for suffix, dense in (("", False), ("-dense", True)):
            name = f"tgcvg/Maze2D-{maze}{suffix}-v1"
            register(name, "maze2d:Maze2D", horizon, maze=maze, dense=dense)
    for maze, horizon in (("umaze", 700), ("medium", 1000), ("large", 1000)):
        register(f"tgcvg/AntMaze-{maze}-v2", "antmaze:AntMaze", horizon, maze=maze)


_register()


@contextlib.contextmanager
def mujoco_warnings(handle: Callable[[str], None]) -> Iterator[None]:
    """Passes MuJoCo's warnings to `handle` instead of stderr and a file MUJOCO_LOG.TXT."""
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(handle)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


_CHATTER = ".*(out of date|deprecated|precision lowered)"


def forward_unless_deprecation(message: str) -> None:
    """A handler for `mujoco_warnings` that passes on what the user can act on."""
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", stacklevel=2)


def make(task: Task) -> gymnasium.Env:
    """The environment in which policies for a task are scored.

    Actions are clipped to the action box before they reach the environment, as D4RL does: MuJoCo
    clamps the torque itself, but Gymnasium's control cost would see the raw action. Other action
    boxes are scaled to [-1, 1]; dict observations are flattened in the order of their sorted keys.

    Args:
      task: the task; `episode_length` becomes the time limit.

    Returns:
      A single environment with observations [S] and actions [A]. Observations keep the
      environment's own dtype (float64 in MuJoCo).

    Raises:
      UserError: the task has no environment, Gymnasium cannot make it, or its spaces are not boxes
        of the task's dimensions.
    """
    if not task.environment:
        raise UserError(f"task {task.name} has no environment to evaluate in")
    register_robotics(task.environment)
    try:
        # Every make would say that -v4 is out of date, every compilation of HalfCheetah that
        # Gymnasium's own XML uses an old attribute.
        with mujoco_warnings(forward_unless_deprecation), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_CHATTER)
            env = gymnasium.make(
                task.environment,
                max_episode_steps=task.episode_length,
                disable_env_checker=True,
                **json.loads(task.environment_kwargs or "{}"),
            )
    except (gymnasium.error.Error, ImportError) as error:
        hint = ""
        if task.environment.startswith(ROBOTICS):
            hint = "; it is of gymnasium-robotics: python -m pip install 'tgcvg_jax[robotics]'"
        raise UserError(
            f"cannot make environment {task.environment}: {one_line(error)}{hint}"
        ) from error
    if isinstance(env.observation_space, gymnasium.spaces.Dict):
        space = _sorted(env.observation_space)
        flatten = functools.partial(gymnasium.spaces.flatten, space)
        flat = gymnasium.spaces.flatten_space(space)
        env = gymnasium.wrappers.TransformObservation(env, flatten, flat)
    expected = {"observation": (task.observation_dim,), "action": (task.action_dim,)}
    for name, shape in expected.items():
        space = getattr(env, f"{name}_space")
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != shape:
            env.close()
            raise UserError(
                f"the {name} space of {task.environment} is {space}, but task {task.name} "
                f"needs a Box of shape {shape}"
            )
    return gymnasium.wrappers.ClipAction(rescale_actions(env))


def rescale_actions(env: gymnasium.Env) -> gymnasium.Env:
    """The environment with its action box mapped to [-1, 1], which all policies here act in."""
    box = env.action_space
    if not isinstance(box, gymnasium.spaces.Box) or not box.is_bounded():
        return env
    if np.all(box.low == -1) and np.all(box.high == 1):
        return env
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_CHATTER)
        return gymnasium.wrappers.RescaleAction(env, -1.0, 1.0)


def _sorted(space: gymnasium.Space) -> gymnasium.Space:
    """Dict spaces with sorted keys, as Minari stores them; Gymnasium may keep another order."""
    if not isinstance(space, gymnasium.spaces.Dict):
        return space
    items = sorted(space.spaces.items())
    return gymnasium.spaces.Dict(collections.OrderedDict((k, _sorted(v)) for k, v in items))


def register_robotics(environment: str) -> None:
    """Registers gymnasium-robotics' environments if one is asked for and the package is there."""
    if environment.startswith(ROBOTICS) and environment not in gymnasium.registry:
        with contextlib.suppress(ImportError):
            import gymnasium_robotics

            gymnasium.register_envs(gymnasium_robotics)
