"""Scores and what may be said about them from a handful of seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tgcvg_jax.types import Task


class Summary(NamedTuple):
    """A mean with its spread.

    Attributes:
      mean: of the values.
      std: population standard deviation (ddof=0) of the values; 0 for one value.
      low: lower end of the bootstrap interval of the mean.
      high: upper end.
    """

    mean: float
    std: float
    low: float
    high: float


def normalized_score(returns: ArrayLike, task: Task) -> np.ndarray | None:
    """D4RL's scale, 100 (R - min) / (max - min): 0 is a random policy, 100 an expert.

    Args:
      returns: undiscounted returns, any shape.
      task: carries the two reference returns.

    Returns:
      Scores of the same shape, or None if the task has no reference.
    """
    if task.min_score is None or task.max_score is None:
        return None
    span = task.max_score - task.min_score
    return 100.0 * (np.asarray(returns, np.float64) - task.min_score) / span


def return_of_score(score: float, task: Task) -> float | None:
    """The inverse of `normalized_score`; None if the task has no reference."""
    if task.min_score is None or task.max_score is None:
        return None
    return task.min_score + score / 100.0 * (task.max_score - task.min_score)


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    The values should be independent: one per training seed, not one per episode. With few of them
    the interval is too narrow (five values: about 85 % coverage at a nominal 95 %).

    Args:
      values: [N], N >= 1. With N = 1 both ends are the value.
      confidence: nominal coverage, in (0, 1).
      num_resamples: bootstrap samples.
      seed: makes the interval reproducible.

    Returns:
      (low, high).

    Raises:
      ValueError: `values` is empty or not a vector.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values must be a non-empty vector, got shape {values.shape}")
    draws = np.random.default_rng(seed).integers(values.size, size=(num_resamples, values.size))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values[draws].mean(axis=1), [tail, 1.0 - tail])
    return float(low), float(high)


def summarize(values: ArrayLike) -> Summary:
    """Mean, standard deviation and 95 % bootstrap interval of [N] values, one per seed."""
    values = np.asarray(values, np.float64)
    return Summary(float(values.mean()), float(values.std()), *bootstrap_interval(values))
