"""Standardisation. Four conventions occur in the papers, so eps and ddof are arguments."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp

from tgcvg_jax.types import Array


@flax.struct.dataclass
class Normalizer:
    """z = (x - mean) / std, over the last axis."""

    mean: Array
    std: Array

    def __call__(self, x: Array) -> Array:
        """Raw to standardised."""
        return (x - self.mean) / self.std

    def inverse(self, z: Array) -> Array:
        """Standardised to raw."""
        return z * self.std + self.mean


def fit_normalizer(x: Array, *, eps: float, ddof: int = 0, floor: float = 0.0) -> Normalizer:
    """Statistics over all leading axes.

    Args:
      x: [..., S].
      eps: added to the standard deviation.
      ddof: 1 for the sample standard deviation (torch's default), 0 for numpy's.
      floor: if positive, dimensions whose standard deviation is below this, or below the rounding
        error of their mean, are left unscaled (std 1): they are constant.
    """
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    # Two passes: E[x^2] - E[x]^2 loses all digits in float32 where |mean| >> std.
    count = x.size // x.shape[-1]
    std = jnp.sqrt(jnp.sum(jnp.square(x - mean), axes) / max(count - ddof, 1))
    if floor > 0.0:
        std = jnp.where(std < jnp.maximum(floor, 1e-6 * jnp.abs(mean)), 1.0, std)
    return Normalizer(mean=mean, std=std + eps)
