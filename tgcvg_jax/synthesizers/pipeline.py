"""Running a synthesizer: streaming its trajectories to disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tgcvg_jax import reporting
from tgcvg_jax.data.dataset import flatten
from tgcvg_jax.data.synthetic import SyntheticStore
from tgcvg_jax.types import Dataset, PyTree, Synthesizer, UserError

# Chunks in a row that may yield nothing before generation gives up.
MAX_EMPTY_CHUNKS = 10


class StreamResult(NamedTuple):
    """What `stream` did.

    Attributes:
      generated: transitions made in this call; 0 if nothing was left to do.
      compile_seconds: before the first chunk.
      seconds: generating and writing, compilation apart.
      dropped: share of trajectories that were filtered out.
    """

    generated: int = 0
    compile_seconds: float = 0.0
    seconds: float = 0.0
    dropped: float = 0.0


def stream(
    synthesizer: Synthesizer,
    states: Mapping[str, PyTree],
    dataset: Dataset,
    store: SyntheticStore,
    *,
    num_transitions: int,
    seed: int = 0,
    attributes: Mapping[str, Any] | None = None,
    console: reporting.Console | None = None,
) -> StreamResult:
    """Generates exactly `num_transitions` into the store, going on where it stands.

    The device works on the next chunk while the host writes the last one; neither holds more than
    two chunks.

    Args:
      synthesizer: what generates.
      states: trained state of each model, one seed.
      dataset: the original data.
      store: where to.
      num_transitions: exact number in the final file.
      seed: of the random draws; chunk i of a seed is always the same.
      attributes: of the final file.
      console: progress.

    Returns:
      The result.

    Raises:
      UserError: ten chunks in a row were filtered out whole, or the file holds more already.
    """
    if store.is_finished(num_transitions):
        return StreamResult()
    console = console or reporting.Console(enabled=False)
    data = synthesizer.prepare(dataset)
    # A stream of its own: training uses fold_in(key(seed), 0) and fold_in(key(seed), 1).
    key = jax.random.fold_in(jax.random.key(seed), 2)
    compile_seconds = seconds = 0.0
    kept = total = empty = 0
    rows = first = store.progress().rows
    if rows < num_transitions:
        chunk = store.progress().chunks
        start = time.perf_counter()
        run = jax.jit(synthesizer.generate).lower(states, data, key, np.int32(chunk)).compile()
        compile_seconds = time.perf_counter() - start
        start = time.perf_counter()
        pending = run(states, data, key, np.int32(chunk))
        with reporting.progress(
            console, "generating", num_transitions, min(rows, num_transitions), "transition"
        ) as advance:
            while rows < num_transitions:
                trajectories = pending
                chunk += 1
                if rows + trajectories.mask.size < num_transitions:
                    pending = run(states, data, key, np.int32(chunk))  # runs while we write
                else:
                    pending = None
                mask = np.asarray(trajectories.mask)
                flat = flatten(trajectories)
                store.add(flat)
                kept, total = kept + int(mask.any(axis=1).sum()), total + len(mask)
                empty = 0 if len(flat.timestep) else empty + 1
                if empty == MAX_EMPTY_CHUNKS:
                    if not rows:
                        store.discard_parts()
                    raise UserError(
                        f"all trajectories of the last {MAX_EMPTY_CHUNKS} chunks were dropped as "
                        "implausible (NaN, or what else the synthesizer refuses); train the models "
                        "longer"
                    )
                advance(min(len(flat.timestep), num_transitions - rows))
                rows += len(flat.timestep)
                if pending is None and rows < num_transitions:
                    pending = run(states, data, key, np.int32(chunk))
        seconds = time.perf_counter() - start
    store.finish(num_transitions, dict(attributes or {}))
    return StreamResult(rows - first, compile_seconds, seconds, 1.0 - kept / max(total, 1))
