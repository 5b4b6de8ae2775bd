"""Where episodes end by the environment's own rule, read off the next observation.

Gymnasium's robots end an episode when they are no longer "healthy", which their observations show;
so the true terminal of any next state is known, also of one that a model made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from tgcvg_jax.types import Array, Task

Rule = Callable[[Array], Array]


class _Healthy(NamedTuple):
    """What a robot's `is_healthy` asks for; all bounds are exclusive.

    Attributes:
      height: bounds of the torso's height in m.
      angle: bounds of its pitch in rad.
      state: bounds of all that comes after the height (Hopper alone has them).
    """

    height: tuple[float, float]
    angle: tuple[float, float]
    state: tuple[float, float] = (float("-inf"), float("inf"))


_INF = float("inf")
# Gymnasium's defaults, the same in -v2, -v4 and -v5. Keys: how an environment's id begins, after
# the namespace; None: it never ends but by its time limit.
_RULES = {
    "Hopper-v": _Healthy((0.7, _INF), (-0.2, 0.2), (-100.0, 100.0)),
    "Walker2d-v": _Healthy((0.8, 2.0), (-1.0, 1.0)),
    "HalfCheetah-v": None,
    "Maze2D-": None,
}


def rule(task: Task) -> Rule | None:
    """The environment's rule for the end of an episode.

    Observations clip velocities to 10, so that Hopper's bound of 100 can bite on the joints' angles
    only; a simulation in which a velocity alone reaches it has fallen long before. An entry that is
    not finite ends the episode, as Gymnasium's documentation says (its code looks at the torso's
    only, and a simulator never gets there: MuJoCo resets itself).

    Args:
      task: the task; the arguments of its environment count (bounds, `terminate_when_unhealthy`,
        whether x is observed).

    Returns:
      A function from next observations [..., S], raw, to terminated [...] bool. It works on numpy
      arrays, in their own precision, and on JAX's, also under jit. None if the observation does
      not tell (AntMaze: the goal is hidden) or the environment is unknown.
    """
    name = task.environment.split("/")[-1]
    prefix = next((prefix for prefix in _RULES if name.startswith(prefix)), None)
    if prefix is None:
        return None
    healthy, arguments = _RULES[prefix], json.loads(task.environment_kwargs or "{}")
    if healthy is None or not arguments.get("terminate_when_unhealthy", True):
        return _never
    return _until_unhealthy(_with_arguments(healthy, arguments), _first(arguments))


def _with_arguments(healthy: _Healthy, arguments: dict[str, Any]) -> _Healthy:
    return _Healthy(
        tuple(arguments.get("healthy_z_range", healthy.height)),
        tuple(arguments.get("healthy_angle_range", healthy.angle)),
        tuple(arguments.get("healthy_state_range", healthy.state)),
    )


def _first(arguments: dict[str, Any]) -> int:
    """Index of the height: x comes before it, if it is observed."""
    return 0 if arguments.get("exclude_current_positions_from_observation", True) else 1


# Operators alone, so that numpy arrays stay numpy arrays and keep float64.


def _never(next_observation: Array) -> Array:
    return next_observation[..., 0] > _INF


def _until_unhealthy(healthy: _Healthy, first: int) -> Rule:
    def terminated(next_observation: Array) -> Array:
        def within(x: Array, bounds: tuple[float, float]) -> Array:
            return (bounds[0] < x) & (x < bounds[1])

        state = next_observation[..., first:]
        ok = within(state[..., 0], healthy.height) & within(state[..., 1], healthy.angle)
        return ~(ok & within(state[..., 1:], healthy.state).all(axis=-1))

    return terminated
