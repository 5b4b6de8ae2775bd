"""S4RL (Sinha et al. 2022): the data again, with Gaussian noise on the states.

In the paper, noise is drawn anew for each batch: `perturb` makes any learner do that. The stored
copy of the data that this synthesizer makes is for measuring it like the others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from tgcvg_jax.config import replace_nested
from tgcvg_jax.data.normalize import fit_normalizer
from tgcvg_jax.synthesizers import copies
from tgcvg_jax.types import (
    Array,
    Dataset,
    Learner,
    PRNGKey,
    PyTree,
    Synthesizer,
    Task,
    Trajectories,
    Transition,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """S4RL's Gaussian noise. Defaults: the baseline of GTA."""

    noise_std: float = 3e-4  # in standard deviations of each dimension of the state
    segment_length: int = 100  # transitions kept in one piece
    batch_size: int = 1_000  # segments in one chunk


PRESETS = {"paper": {}, "quick": {"batch_size": 100}}
MODEL_KINDS: dict[str, str] = {}
NUM_TRANSITIONS = {"paper": 1_000_000, "quick": 50_000}


def for_task(task: Task, preset: str = "paper") -> Config:
    """The same for all tasks."""
    del task
    return replace_nested(Config(), PRESETS[preset])


def as_paper(config: Config) -> Config:
    """The paper's noise is that of the baseline's code."""
    return config


@flax.struct.dataclass
class Data:
    """What `generate` reads.

    Attributes:
      segments: the data.
      std: [S], of the states.
    """

    segments: copies.Segments
    std: Array


def make(task: Task, config: Config) -> Synthesizer:
    """The synthesizer: pass after pass through the data, each with noise and order of its own."""
    del task
    length, batch_size = config.segment_length, config.batch_size

    def prepare(dataset: Dataset) -> Data:
        std = fit_normalizer(dataset.transition.observation, eps=0.0).std
        return Data(copies.prepare(dataset, length), std)

    def generate(states: dict[str, PyTree], data: Data, key: PRNGKey, chunk: Array) -> Trajectories:
        del states
        epoch_key, chunk_key = jax.random.split(key)
        drawn = copies.draw(data.segments, epoch_key, chunk, length=length, batch_size=batch_size)
        noise_keys = jax.random.split(jax.random.fold_in(chunk_key, chunk))
        noise_std = config.noise_std * data.std
        return drawn._replace(transition=add_noise(noise_keys, drawn.transition, noise_std))

    return Synthesizer({}, prepare, generate)


def add_noise(keys: PRNGKey, transition: Transition, std: Array | float) -> Transition:
    """Independent noise on the states and on the next states, as released.

    Args:
      keys: [2].
      transition: fields [..., ...].
      std: a number, or [S].
    """
    noisy = lambda key, x: x + std * jax.random.normal(key, x.shape, x.dtype)  # noqa: E731
    return transition._replace(
        observation=noisy(keys[0], transition.observation),
        next_observation=noisy(keys[1], transition.next_observation),
    )


def perturb(learner: Learner, noise_std: float) -> Learner:
    """A learner whose batches have noise on their (normalised) states.

    The released code joins two noisy copies of each batch, equal to each other by a mistake; here
    it is one, so give the learner the batch size that it should see.

    Args:
      learner: its batches are transitions or contain them, or windows with `observation` (DT).
      noise_std: in the units of the learner's states; it normalises them unless told otherwise.
    """

    def sample(key: PRNGKey, data: PyTree) -> PyTree:
        key, noise_key = jax.random.split(key)
        return _perturb_batch(noise_key, learner.sample(key, data), noise_std)

    return learner._replace(sample=sample)


def _perturb_batch(key: PRNGKey, batch: Any, noise_std: float) -> Any:
    keys = jax.random.split(key)
    if isinstance(batch, Transition):
        return add_noise(keys, batch, noise_std)
    if hasattr(batch, "observation"):  # a window: padding stays 0
        noise = noise_std * jax.random.normal(keys[0], batch.observation.shape)
        noise = jnp.where(batch.mask[..., None], noise, 0.0)
        return batch._replace(observation=batch.observation + noise)
    first, *rest = batch  # a transition and more about it
    return (add_noise(keys, first, noise_std), *rest)
