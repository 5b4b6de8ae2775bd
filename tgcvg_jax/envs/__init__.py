"""Evaluation environments."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import gymnasium
import mujoco

from tgcvg_jax.types import Task, UserError, one_line


@contextlib.contextmanager
def mujoco_warnings(handle: Callable[[str], None]) -> Iterator[None]:
    """Passes MuJoCo's warnings to `handle` instead of stderr and a file MUJOCO_LOG.TXT."""
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(handle)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def _forward_unless_deprecation(message: str) -> None:
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", stacklevel=2)


def make(task: Task) -> gymnasium.Env:
    """The environment in which policies for a task are scored.

    Actions are clipped to the action box before they reach the environment, as D4RL does: MuJoCo
    clamps the torque itself, but Gymnasium's control cost would see the raw action.

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
    try:
        # Every make would say that -v4 is out of date (D4RL's names mean -v4), and every
        # compilation of HalfCheetah that Gymnasium's own XML uses an old attribute.
        with mujoco_warnings(_forward_unless_deprecation), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(out of date|deprecated)")
            env = gymnasium.make(
                task.environment, max_episode_steps=task.episode_length, disable_env_checker=True
            )
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"cannot make environment {task.environment}: {one_line(error)}") from error
    expected = {"observation": (task.observation_dim,), "action": (task.action_dim,)}
    for name, shape in expected.items():
        space = getattr(env, f"{name}_space")
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != shape:
            env.close()
            raise UserError(
                f"the {name} space of {task.environment} is {space}, but task {task.name} "
                f"needs a Box of shape {shape}"
            )
    return gymnasium.wrappers.ClipAction(env)
