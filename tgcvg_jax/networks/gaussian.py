"""An MLP that gives a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from tgcvg_jax.networks.mlp import MLP
from tgcvg_jax.types import Array


class GaussianMLP(nn.Module):
    """Mean and log standard deviation, the latter scaled and shifted by two trained scalars.

    Attributes:
      hidden_dims: hidden widths.
      output_dim: A.
      init_scheme: of the hidden layers, as in `mlp.Linear`.
      output_gain: of the last layer's weight: orthogonal with `orthogonal`, Xavier-uniform with
        `torch`, as CORL has them. Its bias starts at 0.
      min_log_std: lower bound.
      max_log_std: upper bound.
    """

    hidden_dims: Sequence[int]
    output_dim: int
    init_scheme: Literal["torch", "orthogonal"] = "torch"
    output_gain: float = 1.0
    min_log_std: float = -20.0
    max_log_std: float = 2.0

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """[..., D] -> [..., A], [..., A]."""
        width, bound = 2 * self.output_dim, None
        if self.init_scheme == "torch":
            bound = self.output_gain * (6.0 / (self.hidden_dims[-1] + width)) ** 0.5
        output = MLP(
            (*self.hidden_dims, width),
            init_scheme=self.init_scheme,
            output_bound=bound,
            output_bias=0.0,
            output_gain=self.output_gain,
            name="mlp",
        )(x)
        mean, raw = jnp.split(output, 2, axis=-1)
        scale = self.param("log_std_multiplier", nn.initializers.constant(1.0), ())
        shift = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return mean, jnp.clip(scale * raw + shift, self.min_log_std, self.max_log_std)
