"""A conditional variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from tgcvg_jax.networks.mlp import MLP
from tgcvg_jax.types import Array


class VAE(nn.Module):
    """Models x in (-1, 1) given a condition, with the layers of BCQ (Fujimoto et al. 2019).

    Attributes:
      output_dim: D, dimension of x.
      latent_dim: Z.
      hidden_dims: of the encoder and of the decoder.
    """

    output_dim: int
    latent_dim: int
    hidden_dims: Sequence[int] = (750, 750)

    def setup(self) -> None:
        """Encoder and decoder."""
        self.encoder = MLP((*self.hidden_dims, 2 * self.latent_dim))
        self.decoder = MLP((*self.hidden_dims, self.output_dim))

    def encode(self, condition: Array, x: Array) -> tuple[Array, Array]:
        """[..., C], [..., D] -> mean and standard deviation [..., Z] of the latent."""
        mean, log_std = jnp.split(self.encoder(condition, x), 2, axis=-1)
        return mean, jnp.exp(jnp.clip(log_std, -4.0, 15.0))

    def decode(self, condition: Array, latent: Array) -> Array:
        """[..., C], [..., Z] -> [..., D] in (-1, 1)."""
        return jnp.tanh(self.decoder(condition, latent))

    def __call__(self, condition: Array, x: Array, noise: Array) -> tuple[Array, Array, Array]:
        """The reconstruction of x, and mean and standard deviation of the latent.

        Args:
          condition: [..., C].
          x: [..., D].
          noise: [..., Z] standard normal, or 0 for the latent's mean.
        """
        mean, std = self.encode(condition, x)
        return self.decode(condition, mean + std * noise), mean, std
