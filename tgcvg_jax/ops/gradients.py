"""Gradients: in parts, of batches too large for the cache or the device's memory; clipped."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.types import Array, PyTree


def micro_batch_grad(
    loss: Callable[[PyTree, PyTree], tuple[Array, PyTree]],
    params: PyTree,
    batch: PyTree,
    size: int | None = None,
) -> tuple[PyTree, PyTree]:
    """Gradient of a loss that is a mean over the batch, one part of the batch after the other.

    Args:
      loss: (params, batch) -> (scalar, info).
      params: what to differentiate by.
      batch: leaves [B, ...].
      size: examples in a part, all by default; one that does not divide B is replaced by their
        greatest common divisor.

    Returns:
      The gradient; and info, each leaf with an axis of parts before its own, if there are several.
    """
    grad = jax.grad(loss, has_aux=True)
    batch_size = len(jax.tree.leaves(batch)[0])
    parts = batch_size // math.gcd(min(size or batch_size, batch_size), batch_size)
    if parts == 1:
        return grad(params, batch)

    def body(total, part):
        grads, info = grad(params, part)
        return jax.tree.map(lambda t, g: t + g / parts, total, grads), info

    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    return jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), split)


def clip_by_norm(grads: PyTree, max_norm: float) -> tuple[PyTree, Array]:
    """Shortens gradients to a global norm of at most `max_norm`, by torch's rule.

    The factor is min(1, max_norm / (norm + 1e-6)); optax's has no 1e-6.

    Returns:
      The clipped gradients and their norm before.
    """
    norm = optax.global_norm(grads)
    factor = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
    return jax.tree.map(lambda g: factor * g, grads), norm
