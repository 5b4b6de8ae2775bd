"""Losses as functions of arrays; everything that draws or has parameters is elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tgcvg_jax.types import Array


def gaussian_nll(mean: Array, log_var: Array, target: Array) -> Array:
    """Mean of (mean - target)^2 / variance + log variance, over all axes.

    Without the factor 1/2 and the constant, as model-based RL code since PETS writes it.
    """
    return jnp.mean(jnp.square(mean - target) * jnp.exp(-log_var)) + jnp.mean(log_var)


def conservative_gap(
    corrected_q: Array,
    data_q: Array,
    temperature: float = 1.0,
    low: float | None = None,
    high: float | None = None,
) -> Array:
    """CQL's regulariser with importance sampling (Kumar et al. 2020, appendix F).

    Args:
      corrected_q: [..., J], Q(s, a_j) - log density of a_j under its proposal.
      data_q: [...], Q of the dataset's action.
      temperature: of the soft maximum.
      low: each state's gap is at least this.
      high: each state's gap is at most this.

    Returns:
      Mean of logsumexp_j - data_q: a scalar.
    """
    soft_max = temperature * jax.nn.logsumexp(corrected_q / temperature, axis=-1)
    return jnp.mean(jnp.clip(soft_max - data_q, low, high))
