"""D4RL's physics on today's MuJoCo, and the robots that have it.

D4RL's data was made with MuJoCo 2.0. Two things have changed since, so that an XML file of that
time describes another robot today:

  * Capsules. Before MuJoCo 2.1.2 a capsule of radius r and half length h had the mass and inertia
    of a cylinder of half length h + r/2; now they are exact (changelog of 2.1.2). Hopper weighed
    15.27 kg and weighs 15.82.
  * Contacts. Before MuJoCo 3.5 a pair of geoms had the larger of their two contact margins; now it
    has the sum.

From states recorded in `Hopper-v2`, one step of Gymnasium's `Hopper-v4` is off by up to 0.6; with
both undone, by the rounding of float32. In all else (rewards, ends of episodes, resets) -v4 is -v2.
"""

from __future__ import annotations

import copy
import functools

import mujoco
import numpy as np
from gymnasium.envs.mujoco import (
    half_cheetah_v4,
    hopper_v4,
    hopper_v5,
    walker2d_v4,
)

from tgcvg_jax.envs import forward_unless_deprecation, mujoco_warnings
from tgcvg_jax.types import UserError

CAPSULE, CYLINDER = mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER
MARGINS_ADD_UP = tuple(int(n) for n in mujoco.__version__.split(".")[:2]) >= (3, 5)


def d4rl_physics(model: mujoco.MjModel, total_mass: float | None = None) -> mujoco.MjModel:
    """The model with capsule inertia and contact margins as in MuJoCo 2.0.

    A compiled model knows no densities: within a body they are taken to be equal, so that its mass
    tells them.

    Args:
      model: a compiled model; it is left as it is.
      total_mass: mass in kg to which all bodies together are scaled, for models whose XML sets one
        (`settotalmass`: 14 in HalfCheetah).

    Returns:
      A corrected copy.

    Raises:
      ValueError: a body with a capsule has not the inertia of its geoms at one density, for example
        because the model has been corrected before.
      UserError: see `old_margins`.
    """
    model = old_margins(model)
    with_capsule = np.unique(model.geom_bodyid[model.geom_type == CAPSULE])
    bodies = [body for body in with_capsule if model.body_mass[body] > 0]
    exact, old = _unit_density(model, bodies, CAPSULE), _unit_density(model, bodies, CYLINDER)
    for i, body in enumerate(bodies, start=1):  # 0 is the world
        density = model.body_mass[body] / exact.body_mass[i]
        if not np.allclose(model.body_inertia[body], density * exact.body_inertia[i], rtol=1e-5):
            name = model.body(body).name or body
            raise ValueError(f"body {name}: its inertia is not that of its geoms at one density")
        model.body_mass[body] = density * old.body_mass[i]
        model.body_inertia[body] = density * old.body_inertia[i]
        model.body_ipos[body] = old.body_ipos[i]
        model.body_iquat[body] = old.body_iquat[i]
    if total_mass is not None:
        mujoco.mj_setTotalmass(model, total_mass)
    mujoco.mj_setConst(model, mujoco.MjData(model))  # what the compiler derives from masses
    return model


def old_margins(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy of the model whose contact margins act as before MuJoCo 3.5.

    Half the margin on each side adds up to what was the larger of two equal ones.

    Raises:
      UserError: the margins are not equal, so that no choice of margins gives the larger of each
        pair.
    """
    model = copy.copy(model)
    if MARGINS_ADD_UP:
        touching = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        if len(np.unique(model.geom_margin[touching])) > 1:
            raise UserError(
                "the geoms of this model have different contact margins, and what these did "
                "before MuJoCo 3.5 cannot be rebuilt; install an older one or use other XML"
            )
        model.geom_margin[:] /= 2
    return model


def _unit_density(
    model: mujoco.MjModel, bodies: list[int], capsule: mujoco.mjtGeom
) -> mujoco.MjModel:
    """A model of the given bodies alone, side by side, their geoms at density 1.

    MuJoCo's own compiler so does volumes, moments, and parallel and principal axes.

    Args:
      model: the whole model.
      bodies: their numbers; in the result they are 1, 2, ...
      capsule: CAPSULE, or CYLINDER for the cylinders that stood for capsules.
    """
    spec = mujoco.MjSpec()
    for body in bodies:
        part = spec.worldbody.add_body()
        for i in np.flatnonzero(model.geom_bodyid == body):
            kind, size = mujoco.mjtGeom(model.geom_type[i]), model.geom_size[i].copy()
            if kind == CAPSULE and capsule == CYLINDER:
                kind = CYLINDER
                size[1] += size[0] / 2  # radius, half length
            part.add_geom(
                type=kind, size=size, pos=model.geom_pos[i], quat=model.geom_quat[i], density=1.0
            )
    return spec.compile()


class _Corrected:
    """Mixin for a `MujocoEnv`: corrects the model as soon as it is compiled."""

    correct = staticmethod(d4rl_physics)

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        with mujoco_warnings(forward_unless_deprecation):  # HalfCheetah's XML has an old attribute
            model, _ = super()._initialize_simulation()
        model = self.correct(model)
        return model, mujoco.MjData(model)


class HopperV2(_Corrected, hopper_v4.HopperEnv):
    """Hopper as D4RL had it. Arguments: those of Gymnasium's Hopper-v4."""


class HalfCheetahV2(_Corrected, half_cheetah_v4.HalfCheetahEnv):
    """HalfCheetah as D4RL had it. Arguments: those of Gymnasium's HalfCheetah-v4."""

    correct = staticmethod(functools.partial(d4rl_physics, total_mass=14.0))


class Walker2dV2(_Corrected, walker2d_v4.Walker2dEnv):
    """Walker2d as D4RL had it. Arguments: those of Gymnasium's Walker2d-v4."""


class HopperV5(_Corrected, hopper_v5.HopperEnv):
    """Gymnasium's Hopper-v5 as Minari's `mujoco/hopper/*-v0` had it, made with MuJoCo 3.2.3."""

    correct = staticmethod(old_margins)
