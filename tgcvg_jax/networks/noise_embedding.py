"""How a denoiser is told the noise level."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tgcvg_jax.networks.mlp import MLP, mish
from tgcvg_jax.types import Array


class NoiseEmbedding(nn.Module):
    """An MLP on the noise level e and random Fourier features of it.

    The features are e, sin(2 pi w e) and cos(2 pi w e) for frozen frequencies w ~ N(0, 1), as in
    the released code of SynthER and of GTA. The frequencies are no parameters: they are in the
    collection `constants`, which neither the optimiser nor the average of the weights sees.

    Attributes:
      features_dim: output dimension.
      hidden_dim: width of the hidden layer.
      activation: of the hidden layer.
      num_frequencies: number of w.
    """

    features_dim: int
    hidden_dim: int
    activation: Callable[[Array], Array] = mish
    num_frequencies: int = 8

    @nn.compact
    def __call__(self, noise_level: Array) -> Array:
        """[B], in EDM ln(sigma) / 4 -> [B, features_dim].

        Never in less than float32: the phases 2 pi w e reach tens of radians.
        """
        w = self.variable(
            "constants",
            "frequencies",
            lambda: jax.random.normal(self.make_rng("params"), (self.num_frequencies,)),
        ).value
        e = noise_level[..., None]
        phase = 2.0 * math.pi * w * e
        features = jnp.concatenate([e, jnp.sin(phase), jnp.cos(phase)], axis=-1)
        return MLP((self.hidden_dim, self.features_dim), self.activation, name="mlp")(features)
