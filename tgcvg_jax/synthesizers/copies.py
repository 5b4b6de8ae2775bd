"""Segments of the data as they are: what S4RL adds noise to, and naive duplication stops at."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
import numpy as np

from tgcvg_jax.data import windows
from tgcvg_jax.data.dataset import first_rows
from tgcvg_jax.types import Array, Dataset, PRNGKey, Trajectories, Transition


@flax.struct.dataclass
class Segments:
    """A dataset cut into segments.

    Attributes:
      transition: fields [M, ...].
      timestep: [M].
      return_to_go: [M].
      remaining: [M].
      starts: [W], of segments that together cover the data once.
    """

    transition: Transition
    timestep: Array
    return_to_go: Array
    remaining: Array
    starts: Array


def prepare(dataset: Dataset, length: int) -> Segments:
    """Segments of `length` transitions; the last of an episode may be shorter."""
    step = np.arange(dataset.size) - first_rows(dataset)
    return Segments(
        transition=dataset.transition,
        timestep=dataset.timestep,
        return_to_go=dataset.return_to_go,
        remaining=dataset.remaining,
        starts=jnp.asarray(np.flatnonzero(step % length == 0)),
    )


def draw(
    segments: Segments, key: PRNGKey, chunk: Array, *, length: int, batch_size: int
) -> Trajectories:
    """Pass after pass through all segments, each in an order of its own.

    Args:
      segments: the data.
      key: of the run.
      chunk: number of the chunk.
      length: as in `prepare`.
      batch_size: segments in a chunk, or all of them if there are fewer.
    """
    batch_size = min(batch_size, len(segments.starts))
    starts = windows.epoch_starts(key, segments.starts, batch_size, chunk)
    rows = (segments.transition, segments.timestep, segments.return_to_go)
    transition, timestep, return_to_go = windows.take_windows(rows, starts, length)
    return Trajectories(
        transition=transition,
        timestep=timestep,
        return_to_go=return_to_go,
        mask=jnp.arange(length) < segments.remaining[starts][:, None],
    )
