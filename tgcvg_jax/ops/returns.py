"""Returns and bootstrapped targets along the last axis."""

from __future__ import annotations

import jax.numpy as jnp

from tgcvg_jax.types import Array


def n_step_to_end(reward: Array, bootstrap: Array, gamma: float) -> Array:
    """Discounted return from each position to the end of the window, then a bootstrap value.

    y_m = sum_{j >= m} gamma^{j-m} r_j + gamma^{L-m} bootstrap (TGCVG, equation 1). The number of
    steps falls from L at the first position to 1 at the last.

    Args:
      reward: [..., L].
      bootstrap: [...], value after the last reward, already 0 if the window ends in a terminal.
      gamma: discount factor.

    Returns:
      [..., L].
    """
    length = reward.shape[-1]
    step = jnp.arange(length)
    lag = step[None, :] - step[:, None]  # [m, j]
    weights = jnp.where(lag >= 0, jnp.power(jnp.asarray(gamma, reward.dtype), lag), 0.0)
    tail = jnp.power(jnp.asarray(gamma, reward.dtype), length - step)
    return reward @ weights.T + tail * bootstrap[..., None]
