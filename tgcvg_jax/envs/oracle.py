"""The real simulator as ground truth for single steps: set a state, act, compare.

In Hopper, Walker2d and HalfCheetah an observation is the whole state but for the x coordinate, on
which nothing depends. So the true successor of any (state, action) is known, also of those that a
model made up.
"""

from __future__ import annotations

import mujoco
import numpy as np

from tgcvg_jax.envs import make, mujoco_warnings
from tgcvg_jax.types import Task, UserError

# Largest |velocity| that an observation can show: Gymnasium clips there, and the rest is lost.
VELOCITY_LIMIT = {"Hopper-v4": 10.0, "Walker2d-v4": 10.0, "HalfCheetah-v4": np.inf}

# MuJoCo resets a diverged simulation by itself; only these counters tell.
_DIVERGED = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


def require(task: Task) -> None:
    """Raises a UserError unless the task's environment has an oracle."""
    if task.environment not in VELOCITY_LIMIT:
        known = ", ".join(VELOCITY_LIMIT)
        raise UserError(
            f"no one-step oracle for environment {task.environment or '(none)'}; there is one "
            f"for {known}"
        )


def one_step(
    task: Task, observations: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the simulator does in given states under given actions.

    Rows are independent of each other: the solver's warm start is cleared between them.

    Args:
      task: a task whose environment has an oracle (the keys of `VELOCITY_LIMIT`).
      observations: [B, S], raw.
      actions: [B, A]; clipped to the action box.

    Returns:
      next_observations [B, S] and rewards [B], float64, and valid [B] bool. Where `valid` is False
      the other two are NaN: the state is not finite, or a velocity stands at the limit so that the
      true one is unknown, or the simulation diverged.

    Raises:
      UserError: the environment has no oracle.
    """
    require(task)
    observations = np.asarray(observations, np.float64)
    actions = np.asarray(actions, np.float64)
    env = make(task)
    env.reset(seed=0)  # the wrappers insist on it
    simulator = env.unwrapped
    num_positions = simulator.model.nq - 1  # without x
    velocity = observations[:, num_positions:]
    valid = np.isfinite(observations).all(axis=1) & np.isfinite(actions).all(axis=1)
    valid &= (np.abs(velocity) < VELOCITY_LIMIT[task.environment]).all(axis=1)
    next_observations = np.full_like(observations, np.nan)
    rewards = np.full(len(observations), np.nan)
    # The bare simulator counts no steps and so never truncates; clipping is all the wrappers do.
    actions = np.clip(actions, simulator.action_space.low, simulator.action_space.high)
    with mujoco_warnings(lambda message: None):  # divergence is counted below
        for i in np.flatnonzero(valid):
            mujoco.mj_resetData(simulator.model, simulator.data)
            position = np.concatenate([[0.0], observations[i, :num_positions]])
            simulator.set_state(position, velocity[i])
            next_observation, reward, *_ = simulator.step(actions[i])
            if any(simulator.data.warning[kind].number for kind in _DIVERGED):
                valid[i] = False
            else:
                next_observations[i], rewards[i] = next_observation, reward
    env.close()
    return next_observations, rewards, valid


def dynamics_error(
    task: Task,
    observation: np.ndarray,
    action: np.ndarray,
    next_observation: np.ndarray,
    reward: np.ndarray,
    scale: np.ndarray | float = 1.0,
) -> dict[str, float | int | np.ndarray]:
    """One-step error of predicted transitions against the simulator.

    Args:
      task: a task whose environment has an oracle.
      observation: [B, S], raw.
      action: [B, A].
      next_observation: [B, S], the prediction.
      reward: [B], the prediction.
      scale: [S] or a scalar, the unit of the state's errors: usually the data's standard deviation
        of the observations, or of their one-step changes.

    Returns:
      rms: root mean square over rows and dimensions, in units of `scale`.
      median: median absolute error over rows and dimensions, in units of `scale`.
      rms_per_dimension: [S], in units of `scale`.
      reward_rms: in the reward's own unit.
      no_change_rms, no_change_median: the same of the predictor s' = s, the bar to beat.
      num_rows: rows compared.
      num_masked: rows left out because their true successor is unknown.
      All errors are NaN if no row is left.

    Raises:
      UserError: the environment has no oracle.
    """
    truth, true_reward, valid = one_step(task, observation, action)
    error = ((np.asarray(next_observation, np.float64) - truth) / scale)[valid]
    no_change = ((np.asarray(observation, np.float64) - truth) / scale)[valid]
    reward_error = (np.asarray(reward, np.float64) - true_reward)[valid]
    return dict(
        rms=_rms(error),
        median=_median(error),
        rms_per_dimension=np.array([_rms(column) for column in error.T]),
        reward_rms=_rms(reward_error),
        no_change_rms=_rms(no_change),
        no_change_median=_median(no_change),
        num_rows=int(valid.sum()),
        num_masked=int((~valid).sum()),
    )


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else float("nan")


def _median(x: np.ndarray) -> float:
    return float(np.median(np.abs(x))) if x.size else float("nan")
