"""The network of the any-step dynamics model: stacked GRU, residual blocks, Gaussian head."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from tgcvg_jax.networks.mlp import Linear
from tgcvg_jax.types import Array


class GRUCell(nn.Module):
    """torch's GRU cell, with both of its biases.

    flax's cell merges the two biases of the reset and update gates: the same forward pass, but
    after an Adam step the reference's sum of two biases has moved twice as far.

    Attributes:
      hidden_dim: H.
    """

    hidden_dim: int

    @nn.compact
    def __call__(self, h: Array, x: Array) -> Array:
        """h [..., H], x [..., D] -> new h [..., H]."""
        bound = self.hidden_dim**-0.5  # torch uses 1/sqrt(H) for all GRU parameters
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)  # noqa: E731
        width = 3 * self.hidden_dim
        w_i = self.param("input_kernel", uniform, (x.shape[-1], width))
        w_h = self.param("hidden_kernel", uniform, (self.hidden_dim, width))
        b_i = self.param("input_bias", uniform, (width,))
        b_h = self.param("hidden_bias", uniform, (width,))
        r_i, z_i, n_i = jnp.split(x @ w_i + b_i, 3, axis=-1)
        r_h, z_h, n_h = jnp.split(h @ w_h + b_h, 3, axis=-1)
        r = jax.nn.sigmoid(r_i + r_h)
        z = jax.nn.sigmoid(z_i + z_h)
        n = jnp.tanh(n_i + r * n_h)
        return (1.0 - z) * n + z * h


class AnyStepNetwork(nn.Module):
    """Gaussian over the k-step state change and the k-th reward (ADMPO's ARM).

    The GRU reads (s_t, a_t), (s_t, a_{t+1}), ..., (s_t, a_{t+k-1}): always the same first state.

    Attributes:
      output_dim: S + 1.
      hidden_dim: H.
      num_layers: stacked GRU layers.
      num_blocks: residual blocks after the GRU.
      dropout: rate in the residual blocks.
    """

    output_dim: int
    hidden_dim: int = 200
    num_layers: int = 3
    num_blocks: int = 4
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self, observation: Array, actions: Array, k: Array | int, *, deterministic: bool
    ) -> tuple[Array, Array]:
        """Runs all m steps and reads the top layer after step k, so that k may be traced.

        Args:
          observation: [..., S], normalised.
          actions: [..., m, A], normalised; those after the k-th do not matter.
          k: scalar in 1..m.
          deterministic: dropout off.

        Returns:
          mean, log variance (soft-clamped): [..., S + 1] each.
        """
        cells = [GRUCell(self.hidden_dim, name=f"gru_{i}") for i in range(self.num_layers)]
        zero = jnp.zeros((*observation.shape[:-1], self.hidden_dim), observation.dtype)
        hidden = [zero] * self.num_layers
        tops = []
        for j in range(actions.shape[-2]):
            x = jnp.concatenate([observation, actions[..., j, :]], axis=-1)
            for i, cell in enumerate(cells):
                hidden[i] = x = cell(hidden[i], x)
            tops.append(x)
        x = jnp.take(jnp.stack(tops), k - 1, axis=0)
        for i in range(self.num_blocks):
            y = nn.swish(Linear(self.hidden_dim, name=f"block_{i}")(x))
            y = nn.Dropout(self.dropout, name=f"drop_{i}")(y, deterministic)
            x = nn.LayerNorm(epsilon=1e-5, name=f"norm_{i}")(x + y)
        mean, log_var = jnp.split(Linear(2 * self.output_dim, name="head")(x), 2, axis=-1)
        high = self.param("max_log_var", nn.initializers.constant(0.5), (self.output_dim,))
        low = self.param("min_log_var", nn.initializers.constant(-10.0), (self.output_dim,))
        log_var = high - jax.nn.softplus(high - log_var)
        return mean, low + jax.nn.softplus(log_var - low)
