"""What learners of single transitions draw from: one array of packed rows on the device.

Learners of sequences share the mixture and the normalisation of states.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax.data import windows
from tgcvg_jax.data.dataset import episode_returns, episode_starts
from tgcvg_jax.data.normalize import Normalizer, fit_normalizer
from tgcvg_jax.types import ORIGINAL, Array, Dataset, PRNGKey, Task, Transition, UserError


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How original and synthetic data are mixed, and what is done to states."""

    original_share: float | None = None  # of a batch; None: uniform over the union, as the papers
    statistics: Literal["union", "original"] = "union"  # whose mean and std normalise the states
    normalize_states: bool = True
    state_eps: float = 1e-3  # added to the standard deviation


@dataclasses.dataclass(frozen=True)
class Replay(Mixture):
    """How original and synthetic data are mixed, and what is done to states and rewards."""

    normalize_return: bool = False  # CORL: rewards times T / (best - worst original return), first
    reward_shift: float = 0.0  # then (r + shift) * scale
    reward_scale: float = 1.0


@flax.struct.dataclass
class Buffer:
    """Packed rows, original ones first.

    Attributes:
      rows: [M, 2 S + A + 2], as `windows.pack` does it, with A more columns for the next action
        where that was asked for.
      num_original: int32, how many are original.
      normalizer: of states.
    """

    rows: Array
    num_original: Array
    normalizer: Normalizer


def make_buffer(dataset: Dataset, config: Replay, *, next_actions: bool = False) -> Buffer:
    """Prepares a dataset for sampling.

    Args:
      dataset: original data, or original and synthetic.
      config: mixing and normalisation.
      next_actions: keep the action of the step that follows, too. Rows without one, which end an
        episode or segment without being terminal, are left out, as CORL's ReBRAC does.

    Raises:
      UserError: the mixture needs original or synthetic data that is not there, or normalisation
        by returns needs two different ones.
    """
    check_mixture(dataset, config)
    source, transition = np.asarray(dataset.source), dataset.transition
    normalizer = state_normalizer(dataset, config)
    reward = transition.reward
    if config.normalize_return:
        reward = reward * (dataset.task.episode_length / _return_range(dataset))
    rows = windows.pack(
        transition._replace(
            observation=normalizer(transition.observation),
            next_observation=normalizer(transition.next_observation),
            reward=(reward + config.reward_shift) * config.reward_scale,
        )
    )
    if next_actions:
        following = jnp.roll(transition.action, -1, axis=0)
        # A terminal row's next action meets discount 0.
        known = (np.asarray(dataset.remaining) > 1) | (np.asarray(transition.discount) == 0.0)
        known = np.flatnonzero(known)
        rows, source = jnp.concatenate([rows, following], axis=1)[known], source[known]
    if (order := original_first(source)) is not None:
        rows, source = rows[order], source[order]
    return Buffer(rows, jnp.int32(np.sum(source == ORIGINAL)), normalizer)


def draw(
    key: PRNGKey, buffer: Buffer, config: Replay, task: Task, shape: tuple[int, ...]
) -> tuple[Transition, Array]:
    """Transitions with replacement.

    Args:
      key: PRNG key.
      buffer: as made by `make_buffer`.
      config: the same.
      task: gives the widths.
      shape: leading axes of the batch; the mixture holds along the last.

    Returns:
      Transitions [*shape, ...], states normalised; and what follows them in the rows: the next
      actions [*shape, A], or no columns.
    """
    size = buffer.rows.shape[0]
    rows = buffer.rows[draw_indices(key, size, buffer.num_original, config, shape)]
    width = windows.width(task)
    transition = windows.unpack(rows[..., :width], task.observation_dim, task.action_dim)
    return transition, rows[..., width:]


def check_mixture(dataset: Dataset, config: Mixture) -> None:
    """Raises a UserError if the mixture needs original or synthetic data that is not there."""
    synthetic, share = int(np.sum(np.asarray(dataset.source) != ORIGINAL)), config.original_share
    for name, count, needed in (
        ("synthetic", synthetic, share is not None and share < 1.0),
        ("original", dataset.size - synthetic, share is not None and share > 0.0),
    ):
        if needed and not count:
            raise UserError(
                f"replay.original_share={share:g} needs {name} data, but there is none; choose a "
                "--synthesizer, or leave original_share unset"
            )


def state_normalizer(dataset: Dataset, config: Mixture) -> Normalizer:
    """The normaliser of states that a config asks for; the identity if it asks for none."""
    observation, source = dataset.transition.observation, np.asarray(dataset.source)
    if not config.normalize_states:
        return Normalizer(jnp.zeros(observation.shape[1]), jnp.ones(observation.shape[1]))
    if config.statistics == "original" and np.any(source != ORIGINAL):
        observation = observation[np.flatnonzero(source == ORIGINAL)]
    return fit_normalizer(observation, eps=config.state_eps)


def original_first(source: np.ndarray) -> np.ndarray | None:
    """Order [M] that puts original rows first, as `draw_indices` needs it; None if they are.

    Episodes stay in one piece.
    """
    if np.all(np.diff(source.astype(np.int8)) >= 0):
        return None
    return np.argsort(source, kind="stable")


def draw_indices(
    key: PRNGKey, size: int, num_original: Array, config: Mixture, shape: tuple[int, ...]
) -> Array:
    """Indices [*shape] into rows of which the original ones come first, with replacement.

    Args:
      key: PRNG key.
      size: number of rows.
      num_original: how many of them are original.
      config: the mixture, which holds along the last axis.
      shape: of the indices.
    """
    batch_size = shape[-1]
    low, high = jnp.zeros(batch_size, jnp.int32), jnp.full(batch_size, size)
    if config.original_share is not None:
        is_original = jnp.arange(batch_size) < round(config.original_share * batch_size)
        low = jnp.where(is_original, 0, num_original)
        high = jnp.where(is_original, num_original, size)
    return jax.random.randint(key, shape, low, high)


def original_returns(dataset: Dataset) -> np.ndarray:
    """Returns of the original episodes, [E]; segments of synthetic ones have none."""
    source = np.asarray(dataset.source)[episode_starts(dataset)]
    return episode_returns(dataset)[source == ORIGINAL]


def _return_range(dataset: Dataset) -> float:
    """Best less worst return of the original episodes.

    Without the last one if the end of the data cut it, whose return would be too low: CORL takes a
    return only at a terminal or after `episode_length` steps.
    """
    returns = original_returns(dataset)
    if len(returns):
        last = np.flatnonzero(np.asarray(dataset.source) == ORIGINAL)[-1]
        unfinished = dataset.timestep[last] + 1 < dataset.task.episode_length
        if unfinished and dataset.transition.discount[last] > 0.0:
            returns = returns[:-1]
    span = float(np.ptp(returns)) if len(returns) else 0.0
    if span <= 0.0:
        raise UserError(
            f"{dataset.task.name}: replay.normalize_return needs episodes of different returns; "
            "set it to false"
        )
    return span
