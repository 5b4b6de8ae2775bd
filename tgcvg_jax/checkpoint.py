"""Checkpoints: the whole state, its step, and the config that made it, through Orbax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tgcvg_jax import config as config_lib
from tgcvg_jax.types import PyTree, UserError, one_line

# Fields that may change between runs without making the state another one: how the trained policy
# acts, and how long to train.
ACTING = ("num_candidates", "mask_padding")
EXTENDABLE = ("num_steps", "max_epochs", *ACTING)


class Checkpointer:
    """A folder of checkpoints of one state.

    Saving is atomic (Orbax writes to a temporary folder and renames), and the last checkpoint
    stays until the next is whole.

    Args:
      directory: created at the first save.
      metadata: JSON-ready dict that says what the state is: kind, task, config, seeds. A folder
        whose checkpoints have other metadata is refused, but for the `extendable` fields.
      extendable: fields of the config that may differ.
      defaults: metadata of defaults alone, such as {"config": ...}: what a field counts as that
        the found metadata lacks, having been written before the field existed.

    Raises:
      UserError: the folder holds another configuration's checkpoints, or unreadable ones.
    """

    def __init__(
        self,
        directory: str | Path,
        metadata: Mapping[str, Any],
        extendable: Sequence[str] = EXTENDABLE,
        defaults: Mapping[str, Any] | None = None,
    ):
        self.directory = Path(directory).absolute()
        self.metadata = dict(metadata)
        self._manager: ocp.CheckpointManager | None = None
        if (found := read_metadata(self.directory, missing_ok=True)) is not None:
            fixed = [_fixed(x, extendable) for x in (found, self.metadata, defaults or {})]
            changed = config_lib.difference(*fixed[:2], defaults=fixed[2])
            if changed:
                if any(line.startswith("config.num_steps:") for line in changed):
                    changed.append("its learning rate depends on num_steps")
                raise UserError(
                    f"{self.directory} holds a run with another configuration "
                    f"({'; '.join(changed)}); choose another --workdir or delete that folder"
                )

    def latest(self) -> int | None:
        """Step of the last whole checkpoint."""
        return _latest(self.directory)

    def save(self, step: int, state: PyTree) -> None:
        """Writes the state; returns when it is on disk."""
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        # Copied to the host first: on a CPU device arrays alias host memory, and the training
        # loop donates its state to the next chunk.
        host = jax.tree.map(np.array, _keys_to_data(state))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(host), metadata=ocp.args.JsonSave(self.metadata)
            ),
        )

    def restore(self, like: PyTree) -> PyTree:
        """The last state, in the structure, shapes and types of `like` (arrays or shapes)."""
        return restore(self.directory, like)


def restore(directory: str | Path, like: PyTree) -> PyTree:
    """The last state in a folder of checkpoints.

    Args:
      directory: as given to `Checkpointer`.
      like: a state or its `jax.eval_shape`.

    Raises:
      UserError: nothing there, or it does not fit.
    """
    directory = Path(directory).absolute()
    step = _latest(directory)
    if step is None:
        raise UserError(f"{directory}: no checkpoint here")
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax.eval_shape(_keys_to_data, like)
    )
    try:
        with ocp.StandardCheckpointer() as reader:
            data = reader.restore(directory / str(step) / "state", target)
        for found, wanted in zip(jax.tree.leaves(data), jax.tree.leaves(target), strict=True):
            if found.shape != wanted.shape:  # Orbax doesn't compare them
                raise ValueError(f"an array has shape {found.shape} instead of {wanted.shape}")
    except Exception as e:  # Orbax raises many types for a damaged or foreign folder
        raise UserError(
            f"{directory / str(step)}: this checkpoint can't be read "
            f"({one_line(e)[:120]}); delete it to start over"
        ) from e
    is_key = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key), like)
    return jax.tree.map(lambda x, key: jax.random.wrap_key_data(x) if key else x, data, is_key)


def read_metadata(directory: str | Path, *, missing_ok: bool = False) -> dict[str, Any] | None:
    """The metadata of the last checkpoint in a folder.

    Raises:
      UserError: no checkpoint there (unless `missing_ok`: then None), or an unreadable one.
    """
    directory = Path(directory).absolute()
    step = _latest(directory)
    if step is None:
        if missing_ok:
            return None
        raise UserError(f"{directory}: no checkpoint here; give a folder such as "
                        "runs/hopper-medium-v2/tgcvg/policy")  # fmt: skip
    try:
        handler = ocp.Checkpointer(ocp.JsonCheckpointHandler())
        return handler.restore(directory / str(step) / "metadata")
    except Exception as e:
        raise UserError(
            f"{directory / str(step)}: its metadata can't be read ({one_line(e)}); "
            "delete it to start over"
        ) from e


def _latest(directory: Path) -> int | None:
    if not directory.is_dir():
        return None
    steps = [int(p.name) for p in directory.iterdir() if p.name.isdigit() and p.is_dir()]
    return max(steps, default=None)


def _fixed(metadata: Mapping[str, Any], extendable: Sequence[str]) -> dict[str, Any]:
    """What must not change. A task counts by its physics: its data is known by a checksum."""
    fixed = dict(metadata)
    for name, keep in (
        ("config", lambda field: field not in extendable),
        ("task", lambda field: field in ("name", "environment", "observation_dim", "action_dim")),
    ):
        if isinstance(values := fixed.get(name), Mapping):
            fixed[name] = {k: v for k, v in values.items() if keep(k)}
    return _jsonify(fixed)


def _jsonify(x: Any) -> Any:
    """Tuples become lists, as they do on their way through JSON."""
    if isinstance(x, Mapping):
        return {k: _jsonify(v) for k, v in x.items()}
    return [_jsonify(v) for v in x] if isinstance(x, Iterable) and not isinstance(x, str) else x


def _keys_to_data(state: PyTree) -> PyTree:
    """Typed PRNG keys as plain arrays."""

    def convert(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(convert, state)
