"""How good synthetic data is, by the simulator it is a model of.

The papers' measures (GTA, appendix D; TGCVG, section 5.4 and appendix B.6) and those that they
lack: of terminals, and of returns that know of falls. GTA's published metric code is followed where
it tells: one step of the simulator from each state, errors in standard deviations of the original
data (plus 0.001), squared, averaged over entries and rows. Unlike it, rows whose velocity is
clipped are left out: their true state is not known, and the simulator would go on from another one.
All numbers have a floor, the same of original data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tgcvg_jax.envs import oracle, termination
from tgcvg_jax.evaluation import novelty
from tgcvg_jax.evaluation.replay import Replay, mean
from tgcvg_jax.evaluation.segments import Segments, is_clipped
from tgcvg_jax.types import Task, Transition


def unit(observation: np.ndarray) -> np.ndarray:
    """What errors are counted in, [S]: the standard deviation over [M, S], plus 0.001."""
    return np.asarray(observation, np.float64).std(axis=0) + novelty.STD_EPS


class OneStep(NamedTuple):
    """M transitions beside the simulator's.

    Attributes:
      error: [M], squared error of the next state in `unit`s, mean over entries; NaN if not `valid`.
      reward: [M], the simulator's; NaN if not `valid`, and always in AntMaze.
      valid: [M] bool, the true successor is known, and no velocity near the limit.
    """

    error: np.ndarray
    reward: np.ndarray
    valid: np.ndarray


def one_step(
    task: Task,
    transition: Transition,
    scale: np.ndarray,
    *,
    processes: int = 1,
    advance: Callable[[int], object] | None = None,
) -> OneStep:
    """What the simulator says of single transitions.

    Args:
      task: its environment has an oracle.
      transition: fields [M, ...], raw.
      scale: [S], from `unit`.
      processes: see `oracle.one_step`.
      advance: called with the number of rows done, piece by piece.

    Raises:
      UserError: the environment has no oracle.
    """
    truth, reward, valid = oracle.one_step(
        task, transition.observation, transition.action, processes=processes, advance=advance
    )
    valid = valid & ~is_clipped(task, transition.observation)
    error = (np.asarray(transition.next_observation, np.float64) - truth) / scale
    error = np.mean(np.square(error), axis=1)
    return OneStep(np.where(valid, error, np.nan), np.where(valid, reward, np.nan), valid)


def summarize_one_step(steps: OneStep, transition: Transition) -> dict[str, float]:
    """dynamics_mse and its median, oracle_reward, reward_known, reward_mse, masked (a share).

    Means are over the rows whose truth is known; NaN if there is none. `reward_known` is the data's
    own reward in them, to compare the oracle's with: fast rows, which are masked, earn more.
    """
    reward_error = np.square(np.asarray(transition.reward, np.float64) - steps.reward)
    return {
        "dynamics_mse": mean(steps.error[steps.valid]),
        "dynamics_mse_median": _median(steps.error[steps.valid]),
        "oracle_reward": mean(steps.reward[steps.valid]),
        "reward_known": mean(np.asarray(transition.reward, np.float64)[steps.valid]),
        "reward_mse": mean(reward_error[steps.valid]),
        "masked": 1.0 - mean(steps.valid),
    }


def positions(segment_end: np.ndarray) -> np.ndarray:
    """[M], how many rows of its segment come before a row."""
    length = np.diff(np.flatnonzero(segment_end), prepend=-1)
    return np.arange(len(segment_end)) - np.repeat(np.cumsum(length) - length, length)


def by_position(values: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Mean of the finite values [M] at each position in a segment, [T]; NaN where there is none."""
    finite = np.isfinite(values)
    count = np.bincount(position[finite], minlength=position.max() + 1)
    total = np.bincount(position[finite], values[finite], minlength=position.max() + 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def terminals(task: Task, transition: Transition) -> dict[str, float] | None:
    """Terminals beside the environment's own rule, over [M, ...] transitions.

    Returns:
      terminals_per_1000; false_terminals_per_1000, those on a healthy next state;
      missed_terminals_per_1000, falls without one: from a healthy state to a fallen one;
      after_fall_share, rows that start in a fallen state, where no real episode goes on. None if
      the rule is not known.
    """
    rule = termination.rule(task)
    if rule is None:
        return None
    ends = np.asarray(transition.discount) == 0.0
    fallen = np.asarray(rule(np.asarray(transition.next_observation)))
    lay = np.asarray(rule(np.asarray(transition.observation)))
    return {
        "terminals_per_1000": 1e3 * mean(ends),
        "false_terminals_per_1000": 1e3 * mean(ends & ~fallen),
        "missed_terminals_per_1000": 1e3 * mean(~ends & fallen & ~lay),
        "after_fall_share": mean(lay),
    }


def summarize_replay(segments: Segments, replayed: Replay) -> dict[str, float]:
    """claimed_return, oracle_return, oracle_survival, all over segments with a known start.

    Windows of the original data lie inside episodes, so that they hardly ever hold a fall: their
    survival is no yardstick for a generator's segments. `measures.generator` has one.
    """
    reward = np.asarray(segments.transition.reward, np.float64)
    claimed = np.sum(reward, axis=1, where=segments.mask)
    return {
        "claimed_return": mean(claimed[replayed.known]),
        "oracle_return": replayed.mean_return,
        "oracle_survival": replayed.survival,
    }


def compounding_error(
    segments: Segments, replayed: Replay, scale: np.ndarray
) -> dict[str, np.ndarray]:
    """Distance of generated states from replayed ones by step (after ADMPO's and TGCVG's figures).

    Only runs that go on in the simulator count: after its fall there is no state to compare.

    Args:
      segments: N of them, T steps at most.
      replayed: what `replay` says of them.
      scale: [S], from `unit`.

    Returns:
      Over the runs that are left after step 1, ..., T, each [T]: `value`, root mean square over
      runs and entries in `scale`s; `low` and `high`, quartiles of the runs' own root mean squares;
      `count` of runs. NaN where none is left.
    """
    predicted = np.asarray(segments.transition.next_observation, np.float64)
    error = np.mean(np.square((predicted - replayed.observations) / scale), axis=2)  # [N, T]
    error = np.where(segments.mask, error, np.nan)
    left = [column[np.isfinite(column)] for column in error.T]
    quartile = lambda x, share: np.sqrt(np.quantile(x, share)) if len(x) else np.nan  # noqa: E731
    return {
        "value": np.sqrt([mean(x) for x in left]),
        "low": np.array([quartile(x, 0.25) for x in left]),
        "high": np.array([quartile(x, 0.75) for x in left]),
        "count": np.array([len(x) for x in left]),
    }


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
