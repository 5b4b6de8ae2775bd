"""Scores and what may be said about them from a handful of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

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


class Comparison(NamedTuple):
    """How far apart the means of two sets of values are.

    Attributes:
      difference: of the means, second minus first, in the values' unit.
      low: lower end of Welch's interval of the difference.
      high: upper end.
      p: of the two-sided Welch test that the true means are equal, in [0, 1].
    """

    difference: float
    low: float
    high: float
    p: float


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


def welch(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Comparison | None:
    """Welch's t-test: are the means of two sets of seeds equal, whatever their variances?

    The sets are taken as independent, also where both have the same seeds: another dataset makes
    another training of the same seed.

    Args:
      first: [N] values, one for each seed.
      second: [M] values; the difference is theirs minus the first's.
      confidence: nominal coverage of the interval, in (0, 1).

    Returns:
      The comparison; None where there is no estimate of the spread: a set of fewer than two
      values, or two sets that both do not vary.

    Raises:
      ValueError: a set that is not a vector.
    """
    first, second = (np.asarray(x, np.float64) for x in (first, second))
    for values in (first, second):
        if values.ndim != 1:
            raise ValueError(f"values must be a vector, got shape {values.shape}")
    if min(first.size, second.size) < 2 or not (np.ptp(first) or np.ptp(second)):
        return None
    test = stats.ttest_ind(second, first, equal_var=False)
    low, high = test.confidence_interval(confidence)
    difference = float(second.mean() - first.mean())
    return Comparison(difference, float(low), float(high), float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p-values of one family of tests, so that `p < 0.05` errs once in 20 families.

    Holm (1979), "A simple sequentially rejective multiple test procedure": the smallest of m is
    multiplied by m, the next by m - 1, and so on; none becomes less than a smaller one, or
    more than 1.

    Args:
      p_values: [m], in any order.

    Returns:
      [m], in the same order.
    """
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
