"""The tanh-squashed Gaussian, as functions of its parameters and a standard normal draw."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from tgcvg_jax.types import Array

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def tanh_normal_sample(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """A reparameterised sample and its log density.

    Args:
      mean: [..., A], before tanh.
      log_std: [..., A].
      noise: [..., A], standard normal.

    Returns:
      action [..., A] in (-1, 1), log density [...]. The pre-tanh value is kept, never recovered
      from the action, so saturated actions have exact densities.
    """
    u = mean + jnp.exp(log_std) * noise
    return jnp.tanh(u), _log_prob(u, noise, log_std)


def tanh_normal_log_prob(mean: Array, log_std: Array, action: Array, clip: float = 1e-3) -> Array:
    """Log density [...] of given actions [..., A], pulled inside (-1, 1) by `clip`.

    Recorded actions sit on the bounds of the box, where the density is infinite; the clip bounds
    the loss of behaviour cloning there.
    """
    u = jnp.arctanh(jnp.clip(action, -1.0 + clip, 1.0 - clip))
    return _log_prob(u, (u - mean) * jnp.exp(-log_std), log_std)


def _log_prob(u: Array, z: Array, log_std: Array) -> Array:
    normal = -0.5 * jnp.square(z) - log_std - _LOG_SQRT_2PI
    log_det = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2)
    return jnp.sum(normal - log_det, axis=-1)
