"""What is done to gradients between a loss and its optimiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.types import Array, PyTree


def clip_by_norm(grads: PyTree, max_norm: float) -> tuple[PyTree, Array]:
    """Shortens gradients to a global norm of at most `max_norm`, by torch's rule.

    The factor is min(1, max_norm / (norm + 1e-6)); optax's has no 1e-6.

    Returns:
      The clipped gradients and their norm before.
    """
    norm = optax.global_norm(grads)
    factor = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
    return jax.tree.map(lambda g: factor * g, grads), norm
