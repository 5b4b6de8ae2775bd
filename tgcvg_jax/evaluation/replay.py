"""Trajectories in the simulator: given actions replayed, or a policy from given states."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from tgcvg_jax.envs.simulation import Simulation
from tgcvg_jax.evaluation.segments import Segments, is_clipped
from tgcvg_jax.types import Array, Policy, PRNGKey, PyTree, Task, Transition

Advance = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Replay:
    """B runs in the simulator of T steps at most.

    Attributes:
      observations: [B, T, S], next observations; NaN after a run's end.
      rewards: [B, T]; NaN after a run's end.
      known: [B] bool, the start was fully known, no velocity near the limit. Others have no
        numbers at all.
      survived: [B] bool, never terminated (nor diverged) within its length.
    """

    observations: np.ndarray
    rewards: np.ndarray
    known: np.ndarray
    survived: np.ndarray

    @property
    def returns(self) -> np.ndarray:
        """[B], sum of the rewards up to the end or the fall; NaN where none is known."""
        known = np.isfinite(self.rewards)
        return np.where(known.any(axis=1), np.sum(self.rewards, axis=1, where=known), np.nan)

    @property
    def mean_return(self) -> float:
        """Mean of the returns of the runs with a known start."""
        return mean(self.returns[self.known])

    @property
    def survival(self) -> float:
        """Share of the runs with a known start that never terminate."""
        return mean(self.survived[self.known])


def run(
    task: Task,
    start: np.ndarray,
    length: np.ndarray,
    act: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
    advance: Advance | None = None,
) -> Replay:
    """Steps B simulators side by side.

    Args:
      task: its environment has an oracle.
      start: [B, S], raw.
      length: [B], steps of each run at most.
      act: (step, observations [B, S], rewards [B]) -> actions [B, A]; of runs that have ended it
        sees the last of both.
      advance: called with 1 after every step.
    """
    size, horizon = len(start), int(length.max())
    observations = np.full((size, horizon, start.shape[1]), np.nan)
    rewards = np.full((size, horizon), np.nan)
    fell = np.zeros(size, bool)
    observation, reward = np.array(start, np.float64), np.zeros(size)
    with Simulation(task, start) as simulation:
        known = simulation.known & ~is_clipped(task, start)
        for t in range(horizon):
            going = known & simulation.running & (t < length)
            if going.any():
                actions = np.where(going[:, None], act(t, observation, reward), np.nan)
                observations[:, t], rewards[:, t], terminated = simulation.step(actions)
                fell |= terminated
            new = np.isfinite(observations[:, t]).all(axis=1)
            observation = np.where(new[:, None], observations[:, t], observation)
            reward = np.where(np.isfinite(rewards[:, t]), rewards[:, t], reward)
            if advance:
                advance(1)
    arrived = np.isfinite(observations[np.arange(size), length - 1]).all(axis=1)
    return Replay(observations, rewards, known, known & arrived & ~fell)


def replay(task: Task, segments: Segments, advance: Advance | None = None) -> Replay:
    """The segments' own actions, one after another, from their first states.

    Args:
      task: its environment has an oracle.
      segments: N of them.
      advance: called with 1 after every step.
    """
    t = segments.transition
    return run(
        task, t.observation[:, 0], segments.length, lambda step, *_: t.action[:, step], advance
    )


def closed_loop(
    policy: Policy,
    state: PyTree,
    task: Task,
    start: np.ndarray,
    length: np.ndarray,
    history: Transition | None = None,
    mask: np.ndarray | None = None,
    *,
    seed: int = 0,
    deterministic: bool = False,
    target_return: float | np.ndarray | None = None,
    advance: Advance | None = None,
) -> Replay:
    """A policy in the simulator, from given states.

    Args:
      policy: how the state acts; told the history if it has a use for it (`Policy.prime`).
      state: one seed.
      task: its environment has an oracle.
      start: [B, S], raw.
      length: [B], steps of each run at most.
      history: fields [B, P, ...], the P >= 1 real steps before; None if there are none.
      mask: [B, P] bool, False where there is no real step (at the front).
      seed: of the actions.
      deterministic: act by the mode, rather than by a sample.
      target_return: for policies conditioned on a return, one for all or [B], raw.
      advance: called with 1 after every step.
    """
    key = jax.random.fold_in(jax.random.key(seed), 5)  # 0 to 4 are other draws'
    carry = policy.init(state, len(start), target_return)
    previous = np.zeros(len(start), np.float32)
    if history is not None:
        if policy.prime is not None:
            carry = policy.prime(state, carry, history, mask)
        previous = np.where(mask[:, -1], history.reward[:, -1], 0.0).astype(np.float32)

    def act(t: int, observation: np.ndarray, reward: np.ndarray) -> np.ndarray:
        nonlocal carry
        reward = previous if t == 0 else reward.astype(np.float32)
        action, carry = _act(
            policy, state, carry, observation.astype(np.float32), reward, key, t, deterministic
        )
        return np.asarray(action)

    return run(task, start, length, act, advance)


@functools.partial(jax.jit, static_argnames=("policy", "deterministic"))
def _act(
    policy: Policy,
    state: PyTree,
    carry: PyTree,
    observation: Array,  # [B, S]
    reward: Array,  # [B]
    key: PRNGKey,
    t: Array,
    deterministic: bool,
) -> tuple[Array, PyTree]:
    return policy.act(state, carry, observation, reward, jax.random.fold_in(key, t), deterministic)


def mean(values: np.ndarray) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")
