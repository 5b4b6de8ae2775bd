"""SynthER's denoiser (Lu et al. 2023): rows (s, a, r, s', terminal) through a residual MLP."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from tgcvg_jax.data import windows
from tgcvg_jax.data.normalize import Normalizer, fit_normalizer
from tgcvg_jax.models import denoiser
from tgcvg_jax.networks.residual_mlp import ResidualMLP
from tgcvg_jax.types import Array, Dataset, Learner, PRNGKey, Task, Transition


@dataclasses.dataclass(frozen=True)
class Config(denoiser.Config):
    """SynthER. Defaults: released code."""

    num_steps: int = 100_000
    batch_size: int = 256  # as released with 800,000 transitions and more: 1,024
    num_periods: int = 1
    width: int = 2048
    num_layers: int = 6
    embedding_dim: int = 128


@flax.struct.dataclass
class Data:
    """What `sample` reads.

    Attributes:
      rows: [M, D], standardised but for the terminal, which is 0 or 1.
      normalizer: of the rows.
    """

    rows: Array
    normalizer: Normalizer


def make_network(config: Config) -> ResidualMLP:
    """The module."""
    return ResidualMLP(config.width, config.num_layers, config.embedding_dim, config.dtype)


def pack(transition: Transition) -> Array:
    """Rows [..., 2 S + A + 2] in SynthER's order."""
    t, column = transition, lambda x: x[..., None]
    terminal = column(1.0 - t.discount)
    parts = (t.observation, t.action, column(t.reward), t.next_observation, terminal)
    return jnp.concatenate(parts, axis=-1)


def unpack(rows: Array, task: Task, threshold: float) -> Transition:
    """The inverse of `pack`; a row is terminal where the last column exceeds `threshold`."""
    s, a = task.observation_dim, task.action_dim
    return Transition(
        observation=rows[..., :s],
        action=rows[..., s : s + a],
        reward=rows[..., s + a],
        discount=jnp.where(rows[..., -1] > threshold, 0.0, 1.0).astype(rows.dtype),
        next_observation=rows[..., s + a + 1 : -1],
    )


def make(task: Task, config: Config) -> Learner:
    """The learner."""

    def prepare(dataset: Dataset) -> Data:
        rows = pack(dataset.transition)
        fitted = fit_normalizer(rows, eps=1e-5, ddof=1)
        normalizer = Normalizer(fitted.mean.at[-1].set(0.0), fitted.std.at[-1].set(1.0))
        return Data(normalizer(rows), normalizer)

    def sample(key: PRNGKey, data: Data) -> denoiser.Batch:
        index = jax.random.randint(key, (config.batch_size,), 0, len(data.rows))
        return denoiser.Batch(data.rows[index])

    return denoiser.make_learner(
        make_network(config),
        config,
        prepare=prepare,
        sample=sample,
        shape=(windows.width(task),),
    )
