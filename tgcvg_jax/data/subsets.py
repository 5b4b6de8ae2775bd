"""Parts of a dataset by whole episodes, and mixtures of datasets.

For experiments on the amount of data, and on its quality: medium data with a few expert episodes
among them, or the best episodes alone.
"""

from __future__ import annotations

import numpy as np

from tgcvg_jax.data.dataset import concatenate, episode_returns, episode_starts, select
from tgcvg_jax.types import Dataset, UserError


def random_episodes(dataset: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """Random whole episodes that hold at least this share of the transitions, in the data's order.

    Args:
      dataset: the dataset.
      fraction: above 0, at most 1.
      seed: of the choice; a smaller fraction of the same seed is a part of a larger one.
    """
    episodes = len(episode_returns(dataset))
    return _first(dataset, np.random.default_rng(seed).permutation(episodes), fraction)


def best_episodes(dataset: Dataset, fraction: float) -> Dataset:
    """The episodes of highest return that hold at least this share of the transitions.

    They stay in the data's order; of equal returns, earlier episodes come first.

    Args:
      dataset: the dataset.
      fraction: above 0, at most 1.
    """
    return _first(dataset, np.argsort(-episode_returns(dataset), kind="stable"), fraction)


def _first(dataset: Dataset, episodes: np.ndarray, fraction: float) -> Dataset:
    """The first of these episodes that together are enough."""
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction {fraction} is not above 0 and at most 1")
    episode_of_row = np.cumsum(episode_starts(dataset)) - 1
    total = np.cumsum(np.bincount(episode_of_row)[episodes])
    # Rounded, so that 0.1 of 50,000 is not a hair above 5,000.
    enough = int(np.searchsorted(total, round(fraction * dataset.size, 6))) + 1
    return select(dataset, np.isin(episode_of_row, episodes[:enough]))


def take(dataset: Dataset, text: str) -> Dataset:
    """The part of a dataset that a text names.

    Args:
      dataset: the dataset.
      text: `all`, `top:0.1`, or `random:0.1`, with a seed of its own as in `random:0.1:3`.

    Raises:
      UserError: it names none.
    """
    kind, *numbers = text.split(":")
    try:
        if kind == "all" and not numbers:
            return dataset
        if kind == "top" and len(numbers) == 1:
            return best_episodes(dataset, float(numbers[0]))
        if kind == "random" and len(numbers) in (1, 2):
            return random_episodes(dataset, float(numbers[0]), *map(int, numbers[1:]))
    except ValueError:
        pass
    raise UserError(
        f"subset {text!r}: write all, top:FRACTION, random:FRACTION or random:FRACTION:SEED, with "
        "0 < FRACTION <= 1, as in random:0.1"
    )


def mix(dataset: Dataset, other: Dataset) -> Dataset:
    """Both datasets, as one of the first one's task.

    Raises:
      UserError: the other is of another simulator.
    """
    ours, theirs = dataset.task, other.task
    physics = lambda t: (t.environment, t.environment_kwargs, t.observation_dim, t.action_dim)  # noqa: E731
    if physics(ours) != physics(theirs):
        raise UserError(
            f"{theirs.name} can't be mixed into {ours.name}: it is in "
            f"{theirs.environment or 'no simulator'} ({theirs.observation_dim} observation and "
            f"{theirs.action_dim} action dimensions), not in {ours.environment or 'none'} "
            f"({ours.observation_dim} and {ours.action_dim})"
        )
    return concatenate([dataset, other])
