"""Trajectories cut out of data."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from tgcvg_jax.data.dataset import Flat, first_rows
from tgcvg_jax.envs import oracle
from tgcvg_jax.types import Dataset, Task, Transition

# A velocity beyond this share of what observations can show counts as clipped: noise on a clipped
# one, or a model that has learnt it, brings it below the limit, but not the truth back.
NEAR_LIMIT = 0.99


class Segments(NamedTuple):
    """N trajectories, left-aligned.

    Attributes:
      transition: fields [N, T, ...], raw; after a segment's end they are another's.
      length: [N] int.
    """

    transition: Transition
    length: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """[N, T] bool, True, then False."""
        return np.arange(self.transition.reward.shape[1]) < self.length[:, None]


def gather(transition: Transition, start: np.ndarray, length: np.ndarray) -> Segments:
    """Segments of rows start, start + 1, ... of numpy fields [M, ...]."""
    index = start[:, None] + np.arange(length.max())
    index = np.minimum(index, len(transition.reward) - 1)
    return Segments(jax.tree.map(lambda x: x[index], transition), length)


def sample_segments(flat: Flat, count: int, seed: int = 0) -> Segments:
    """Up to `count` whole segments, drawn at random."""
    ends = np.flatnonzero(flat.segment_end)
    length = np.diff(ends, prepend=-1)
    size = min(count, len(ends))
    chosen = np.sort(np.random.default_rng(seed).choice(len(ends), size, replace=False))
    return gather(flat.transition, ends[chosen] + 1 - length[chosen], length[chosen])


def original_segments(dataset: Dataset, length: np.ndarray, seed: int = 0) -> Segments:
    """Windows of the original data with given lengths [N], at random places.

    Where no episode is as long, the window is as long as the longest. They lie inside episodes, so
    a window hardly ever holds a fall, unlike what really follows a random row (`outcomes`).
    """
    rng = np.random.default_rng(seed)
    order, num_starts = np.asarray(dataset.order), np.asarray(dataset.num_starts)
    length = np.minimum(length, len(num_starts) - 1)
    start = order[rng.integers(0, num_starts[length])]
    return gather(jax.tree.map(np.asarray, dataset.transition), start, length)


def outcomes(task: Task, dataset: Dataset, horizon: int) -> np.ndarray:
    """Rows whose next `horizon` steps, or those up to a terminal, are all recorded, [K].

    Their state is fully known too: a simulator can go on from it.

    Args:
      task: its environment has an oracle.
      dataset: the data; its episodes end in a terminal, or are cut off.
      horizon: H >= 1.
    """
    remaining = np.asarray(dataset.remaining)
    last = np.arange(dataset.size) + remaining - 1
    ends = np.asarray(dataset.transition.discount)[last] == 0.0
    observation = np.asarray(dataset.transition.observation)
    known = np.isfinite(observation).all(axis=1) & ~is_clipped(task, observation)
    return np.flatnonzero(known & (ends | (remaining >= horizon)))


def recorded_outcome(
    dataset: Dataset, rows: np.ndarray, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """What happened in the `horizon` steps from some rows [B] on.

    Returns:
      [B] sums of rewards over these steps, or to the terminal; [B] bool, no terminal came.
    """
    length = np.minimum(np.asarray(dataset.remaining)[rows], horizon)
    cut = gather(jax.tree.map(np.asarray, dataset.transition), rows, length)
    ends = (cut.transition.discount == 0.0) & cut.mask
    until = np.cumsum(ends, axis=1) - ends == 0  # True up to the first terminal, itself included
    returns = np.sum(cut.transition.reward, axis=1, where=cut.mask & until, dtype=np.float64)
    return returns, ~ends.any(axis=1)


def find_rows(observation: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where states [N, S] stand among [M, S], to the last bit; [N], -1 if nowhere."""
    candidates = np.flatnonzero(np.isin(observation[:, 0], wanted[:, 0]))
    index = {observation[i].tobytes(): i for i in candidates[::-1]}
    return np.array([index.get(x.tobytes(), -1) for x in wanted.astype(observation.dtype)])


def history_before(
    dataset: Dataset, rows: np.ndarray, length: int
) -> tuple[Transition, np.ndarray]:
    """The `length` steps before each of some rows [B], as far as its episode reaches back.

    Returns:
      Fields [B, length, ...] and mask [B, length] bool, False at the front where there is none.
    """
    index = rows[:, None] + np.arange(-length, 0)
    mask = index >= first_rows(dataset)[rows][:, None]
    index = np.maximum(index, 0)
    return jax.tree.map(lambda x: np.asarray(x)[index], dataset.transition), mask


def is_clipped(task: Task, observation: np.ndarray) -> np.ndarray:
    """Whether states show a velocity near the limit, so that the true one may be any beyond.

    Args:
      task: its environment has an oracle.
      observation: [..., S], raw.

    Returns:
      [...] bool.
    """
    size = observation.shape[-1]
    velocity = observation[..., -((size + 1) // 2) :]  # in the robots; mazes have no limit
    return (np.abs(velocity) >= NEAR_LIMIT * oracle.require(task)).any(axis=-1)
