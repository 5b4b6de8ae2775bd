"""Where the limbs of a planar robot are, from its observations: MuJoCo's forward kinematics."""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np

from tgcvg_jax import envs
from tgcvg_jax.tasks import robot_of
from tgcvg_jax.types import Task

PLANAR = ("Hopper", "Walker2d", "HalfCheetah")
CORNERS = np.linspace(-np.pi / 2, np.pi / 2, 13)  # of the round end of a limb


class Capsules(NamedTuple):
    """The limbs of a planar robot in the x-z plane, in metres. G limbs.

    Attributes:
      ends: [T, G, 2, 2], its two ends (x, z); NaN if the observation is not finite.
      radius: [G].
      body: [G] int, MuJoCo's number of the body; 1 is the trunk.
      root: [T], x of the robot, 0 at the first step.
      dt: seconds between steps.
    """

    ends: np.ndarray
    radius: np.ndarray
    body: np.ndarray
    root: np.ndarray
    dt: float


def capsules(task: Task, observations: np.ndarray) -> Capsules | None:
    """Where a planar robot's limbs are.

    The observation is qpos without x, then qvel (clipped in some robots); x is the integral of the
    observed velocity, by trapezia.

    Args:
      task: names the environment.
      observations: [T, S], raw.

    Returns:
      None if the environment is no planar robot with such observations.
    """
    if robot_of(task.environment) not in PLANAR:
        return None
    env = envs.make(task)
    try:
        model, dt = env.unwrapped.model, float(env.unwrapped.dt)
    finally:
        env.close()
    observations = np.asarray(observations, np.float64)
    if observations.shape[1] != model.nq - 1 + model.nv:
        return None
    data = mujoco.MjData(model)
    kinds = (model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE) & (model.geom_bodyid > 0)
    geoms = np.flatnonzero(kinds)
    velocity = np.nan_to_num(observations[:, model.nq - 1], posinf=0, neginf=0)
    root = np.append(0.0, np.cumsum(dt * (velocity[1:] + velocity[:-1]) / 2))
    ends = np.full((len(observations), len(geoms), 2, 2), np.nan)
    for t in np.flatnonzero(np.isfinite(observations[:, : model.nq - 1]).all(axis=1)):
        data.qpos[0], data.qpos[1:] = root[t], observations[t, : model.nq - 1]
        mujoco.mj_kinematics(model, data)
        middle = data.geom_xpos[geoms][:, [0, 2]]
        along = data.geom_xmat[geoms].reshape(-1, 3, 3)[:, [0, 2], 2]  # the capsule's axis
        half = model.geom_size[geoms, 1:2] * along
        ends[t] = np.stack([middle - half, middle + half], axis=1)
    return Capsules(ends, model.geom_size[geoms, 0], model.geom_bodyid[geoms], root, dt)


def outline(ends: np.ndarray, radius: float) -> np.ndarray:
    """The edge of a capsule, [N, 2], from its two ends [2, 2] and its radius."""
    (x0, z0), (x1, z1) = ends
    angle = np.arctan2(z1 - z0, x1 - x0)
    half = radius * np.stack([np.cos(CORNERS + angle), np.sin(CORNERS + angle)], axis=1)
    return np.concatenate([ends[1] + half, ends[0] - half])
