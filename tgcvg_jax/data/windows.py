"""Sampling transitions and windows: one gather each, on the device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tgcvg_jax.ops.permutation import random_permutation_at
from tgcvg_jax.types import Array, Dataset, PRNGKey, Task, Transition, UserError


def width(task: Task) -> int:
    """Columns of a packed row, 2 S + A + 2."""
    return 2 * task.observation_dim + task.action_dim + 2


def pack(transition: Transition) -> Array:
    """[M, ...] fields as rows [M, 2 S + A + 2], so that fetching a batch is a single gather."""
    scalars = [transition.reward[..., None], transition.discount[..., None]]
    vectors = [transition.observation, transition.action, transition.next_observation]
    return jnp.concatenate([*vectors, *scalars], axis=-1)


def unpack(rows: Array, observation_dim: int, action_dim: int) -> Transition:
    """The inverse of `pack`, for any leading axes."""
    s, a = observation_dim, action_dim
    return Transition(
        observation=rows[..., :s],
        action=rows[..., s : s + a],
        next_observation=rows[..., s + a : 2 * s + a],
        reward=rows[..., -2],
        discount=rows[..., -1],
    )


def num_windows(dataset: Dataset, length: int) -> int:
    """How many windows of `length` transitions lie inside one episode. For use outside jit."""
    return int(dataset.num_starts[length]) if length < len(dataset.num_starts) else 0


def require_windows(dataset: Dataset, length: int, why: str) -> None:
    """Raises a UserError unless the dataset holds at least one window of `length`."""
    if num_windows(dataset, length) == 0:
        longest = len(dataset.num_starts) - 1
        raise UserError(
            f"{dataset.task.name}: no episode has a window of {length} transitions ({why}); the "
            f"longest episode has {longest}"
        )


def sample_starts(
    key: PRNGKey, order: Array, num_starts: Array, length: Any, batch_size: int
) -> Array:
    """Starts [B] of windows of `length` (may be traced), uniform with replacement.

    Raises:
      Nothing: callers check once, outside jit, that there is such a window.
    """
    draw = jax.random.randint(key, (batch_size,), 0, num_starts[length])
    return order[draw]


def epoch_starts(key: PRNGKey, starts: Array, batch_size: int, chunk: Array) -> Array:
    """Chunk after chunk of a random permutation of `starts`, and then of the next permutation.

    Args:
      key: PRNG key of the run.
      starts: [W].
      batch_size: at most W; what an epoch has beyond whole chunks is left out.
      chunk: number of the chunk.

    Returns:
      [B], without replacement within an epoch.
    """
    chunks_per_epoch = len(starts) // batch_size
    epoch, position = chunk // chunks_per_epoch, chunk % chunks_per_epoch
    index = position * batch_size + jnp.arange(batch_size)
    return starts[random_permutation_at(jax.random.fold_in(key, epoch), index, len(starts))]


def take_windows(tree: Any, starts: Array, length: int) -> Any:
    """Rows starts + 0..length-1 of each leaf: [M, ...] -> [B, length, ...]."""
    index = starts[:, None] + jnp.arange(length)
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="clip"), tree)
