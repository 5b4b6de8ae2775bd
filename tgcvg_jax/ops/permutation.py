"""A random permutation of which only the entries asked for are computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tgcvg_jax.types import Array, PRNGKey

_ROUNDS = 8


def random_permutation_at(key: PRNGKey, index: Array, size: int) -> Array:
    """Entries `index` of a pseudo-random permutation of 0 ... size - 1.

    `jax.random.permutation` sorts all of them, which is wasted on one batch of a million. This is
    a Feistel network over the next power of four (Luby and Rackoff 1988): each round mixes one half
    of the bits into the other, which can be undone, hence a permutation; values outside the range
    are permuted again until they fall inside, which keeps it one (cycle walking, Black and Rogaway
    2002). Not for cryptography.

    Args:
      key: names the permutation.
      index: int32 in 0 ... size - 1, any shape.
      size: at least 1.

    Returns:
      int32 of the same shape.
    """
    bits = max((size - 1).bit_length() + 1 >> 1, 1)  # of each half
    mask = jnp.uint32((1 << bits) - 1)
    keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def permute(x: Array) -> Array:
        left, right = x >> bits, x & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + keys[i]) & mask)
        return left << bits | right

    def walk(x: Array) -> Array:
        return jnp.where(x < size, x, permute(x))

    x = permute(index.astype(jnp.uint32))
    return jax.lax.while_loop(lambda x: jnp.any(x >= size), walk, x).astype(jnp.int32)


def _mix(x: Array) -> Array:
    """A bijection of uint32 in which every bit depends on all (murmur3's finaliser)."""
    x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
    return x ^ x >> 16
