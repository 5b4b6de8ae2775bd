"""How far data goes from the data that it was made of: distances to nearest neighbours.

GTA and TGCVG call it novelty and define it as the mean over D_A of the smallest (s,a) - (s',a')
over D (GTA, appendix D; TGCVG, section 5.4), but their tables are on different scales, so that
neither says which features, unit, norm and reference it takes. All are choices here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax.types import Array, Transition

# What is compared, by the ending of the metric's name: (s, a), s, a, (s, a, r, s').
FEATURES = {
    "": ("observation", "action"),
    "_state": ("observation",),
    "_action": ("action",),
    "_sarS": ("observation", "action", "reward", "next_observation"),
}
SCALES = ("raw", "std")
STD_EPS = 1e-3  # as in GTA's dynamics error; entries that never change have no other unit
# Sizes of the matrix of products that is in memory at a time, and of the group of reference rows
# that is compared again without rounding.
QUERIES, REFERENCES, GROUP = 512, 2_048, 64
HELD_OUT = 0.05


def features(transition: Transition, kind: str, unit: Transition | None = None) -> np.ndarray:
    """Rows to compare, [M, F] float32.

    Args:
      transition: fields [M, ...], raw.
      kind: key of `FEATURES`.
      unit: from `units`; None leaves the values as they are.
    """
    columns = []
    for name in FEATURES[kind]:
        values = np.asarray(getattr(transition, name), np.float64)
        if unit is not None:
            values = values / getattr(unit, name)
        columns.append(values.reshape(len(values), -1))
    return np.concatenate(columns, axis=1).astype(np.float32)


def units(transition: Transition) -> Transition:
    """Standard deviation of each entry of each field over [M, ...], plus 0.001."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64).std(axis=0) + STD_EPS, transition)


def nearest(
    queries: np.ndarray,
    reference: np.ndarray,
    advance: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Euclidean distance of each query to its nearest neighbour in the reference, [N].

    Exact but for float32's rounding of differences: a matrix product finds, for each query and each
    block of the reference, the group of rows with the smallest |r|^2 - 2 q r, and the differences
    to that group's rows are then taken one by one. (By the product alone, a point that differs from
    its origin by 3e-4, as S4RL's do, is lost in the rounding of the squares.) No matrix of all
    pairs is ever in memory.

    Args:
      queries: [N, F].
      reference: [M, F].
      advance: called with the number of queries done, piece by piece.
    """
    centre = np.asarray(reference, np.float64).mean(axis=0)  # small squares round less
    centred = lambda x: (np.asarray(x, np.float64) - centre).astype(np.float32)  # noqa: E731
    reference = centred(reference)
    block = min(REFERENCES, -(-len(reference) // GROUP) * GROUP)
    fill = -len(reference) % block  # copies change no minimum
    reference = np.concatenate([reference, np.repeat(reference[-1:], fill, axis=0)])
    blocks = jnp.asarray(reference.reshape(-1, block // GROUP, GROUP, reference.shape[1]))
    result = np.empty(len(queries), np.float32)
    for start in range(0, len(queries), QUERIES):
        piece = centred(queries[start : start + QUERIES])
        count = len(piece)
        piece = np.concatenate([piece, np.repeat(piece[-1:], QUERIES - count, axis=0)])
        result[start : start + count] = np.asarray(_nearest(piece, blocks))[:count]
        if advance:
            advance(count)
    return result


@jax.jit
def _nearest(queries: Array, blocks: Array) -> Array:
    """[Q, F] against [blocks, groups, GROUP, F]."""

    def step(best: Array, block: Array) -> tuple[Array, None]:
        rows = block.reshape(-1, block.shape[-1])
        squared = jnp.sum(jnp.square(rows), axis=1)[:, None]
        product = jnp.matmul(rows, queries.T, precision=jax.lax.Precision.HIGHEST)
        partial = squared - 2 * product  # [rows, Q]
        group = jnp.argmin(partial.reshape(-1, GROUP, len(queries)).min(axis=1), axis=0)
        exact = jnp.sum(jnp.square(block[group] - queries[:, None]), axis=-1)  # [Q, GROUP]
        return jnp.minimum(best, exact.min(axis=1)), None

    best, _ = jax.lax.scan(step, jnp.full(len(queries), jnp.inf), blocks)
    return jnp.sqrt(best)


def measure(
    queries: Transition,
    reference: Transition,
    unit: Transition,
    *,
    kinds: tuple[str, ...] = ("", "_state", "_action"),
    scales: tuple[str, ...] = ("std",),
    subset: int | None = None,
    seed: int = 0,
    advance: Callable[[int], object] | None = None,
) -> dict[str, float]:
    """Mean distances to nearest neighbours, all variants.

    Args:
      queries: fields [N, ...], raw.
      reference: fields [M, ...], raw.
      unit: from `units`, of the original data.
      kinds: which features, keys of `FEATURES`.
      scales: `raw`, or `std` for standard deviations of the data.
      subset: if given, also measured against so many random rows of the reference, without
        replacement (GTA's early code drew 100,000 of it, with).
      seed: of the subset.
      advance: called with the number of queries done, piece by piece; there are
        N * len(kinds) * len(scales) in all, twice that with a subset.

    Returns:
      {kind}_{scale}_{l2|sq}_{full|subset} -> mean distance, or mean squared distance.
    """
    result = {}
    size = len(reference.reward)
    for kind in kinds:
        for scale in scales:
            make = functools.partial(features, kind=kind, unit=unit if scale == "std" else None)
            q, r = make(queries), make(reference)
            found = {"full": nearest(q, r, advance)}
            if subset is not None:
                rows = np.random.default_rng(seed).choice(size, min(size, subset), replace=False)
                found["subset"] = nearest(q, r[rows], advance)
            for name, distance in found.items():
                distance = distance.astype(np.float64)
                result[f"{kind}_{scale}_l2_{name}"] = float(distance.mean())
                result[f"{kind}_{scale}_sq_{name}"] = float(np.square(distance).mean())
    return result


def hold_out(episode: np.ndarray, seed: int = 0) -> np.ndarray:
    """Which rows belong to some twentieth of the data, by whole episodes drawn at random.

    Their distance to the others is the floor of novelty: that of more data of the same kind.

    Args:
      episode: [M], the number of each row's episode.
      seed: of the draw.

    Returns:
      [M] bool, True for at least one episode; all False if there is only one.
    """
    names, counts = np.unique(episode, return_counts=True)
    if len(names) == 1:
        return np.zeros(len(episode), bool)
    drawn = np.random.default_rng(seed).permutation(len(names))
    enough = np.searchsorted(np.cumsum(counts[drawn]), HELD_OUT * len(episode)) + 1
    return np.isin(episode, names[drawn[: min(enough, len(names) - 1)]])
