"""Synthetic datasets on disk: part files while they are made, one D4RL-format file at the end.

HDF5 in append mode does not survive a kill, so every chunk of generation goes into a part file of
its own (temporary name, then rename), and the parts are joined when there are enough of them. The
joined file remembers where its chunks end, so that a later run that asks for more goes on from it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tgcvg_jax import config as config_lib
from tgcvg_jax.data.dataset import Flat
from tgcvg_jax.reporting import atomic_path
from tgcvg_jax.types import UserError

Rows = dict[str, np.ndarray]


@dataclasses.dataclass
class Progress:
    """How far a synthetic dataset is.

    Attributes:
      chunks: whole chunks on disk.
      rows: transitions in them.
    """

    chunks: int
    rows: int


class SyntheticStore:
    """One synthetic dataset, being made or finished.

    Args:
      path: of the final HDF5 file; parts stand beside it in `<name>.parts/`.
      identity: JSON-ready dict of all that determines the rows: config, seed, models, source.

    Raises:
      UserError: the file or its parts come from another identity.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]):
        self.path = Path(path)
        self._parts = self.path.with_suffix(".parts")
        self._identity = json.loads(json.dumps(dict(identity)))
        for place, found in (
            (self.path, read_identity(self.path)),
            (self._parts, self._read_parts_identity()),
        ):
            changed = config_lib.difference(found, self._identity) if found is not None else []
            if changed:
                raise UserError(
                    f"{place} was made with another configuration ({'; '.join(changed)}); "
                    "choose another --workdir or delete it"
                )
        # Chunks that the finished file holds whole come from it, later ones from parts.
        self._ends = self._read_chunk_ends()  # rows after each whole chunk
        self._part_rows: list[int] = []
        while (part := self._part(len(self._ends) + len(self._part_rows))).exists():
            with h5py.File(part, "r") as f:
                self._part_rows.append(len(f["rewards"]))

    def progress(self) -> Progress:
        """Whole chunks and their rows."""
        rows = int(self._ends[-1]) if len(self._ends) else 0
        chunks = len(self._ends) + len(self._part_rows)
        return Progress(chunks, rows + sum(self._part_rows))

    def is_finished(self, num_transitions: int) -> bool:
        """Whether the file holds exactly this many transitions."""
        if not self.path.exists():
            return False
        with h5py.File(self.path, "r") as f:
            return len(f["rewards"]) == num_transitions

    def add(self, flat: Flat) -> None:
        """Writes the next chunk."""
        chunk = self.progress().chunks
        identity = self._parts / "identity.json"
        if not identity.exists():
            with atomic_path(identity) as temporary:
                temporary.write_text(json.dumps(self._identity))
        with atomic_path(self._part(chunk)) as temporary, h5py.File(temporary, "w") as f:
            for name, values in _columns(flat).items():
                f.create_dataset(name, data=values)
        self._part_rows.append(len(flat.timestep))

    def finish(self, num_transitions: int, attributes: Mapping[str, Any]) -> None:
        """Joins the first `num_transitions` rows into the final file and removes the parts.

        The last segment may be cut; it then ends in a time-out.

        Raises:
          UserError: there are fewer rows on disk.
        """
        if self.progress().rows < num_transitions:
            raise UserError(f"{self.path}: only {self.progress().rows} transitions are on disk")
        ends: list[int] = []
        with atomic_path(self.path) as temporary, h5py.File(temporary, "w") as out:
            written = 0
            for rows, whole_chunks in self._chunks():
                count = min(len(rows["rewards"]), num_transitions - written)
                ends += [written + e for e in whole_chunks if written + e <= num_transitions]
                for name, values in rows.items():
                    if name not in out:
                        shape = (num_transitions, *values.shape[1:])
                        out.create_dataset(name, shape, values.dtype)
                    out[name][written : written + count] = values[:count]
                written += count
                if written == num_transitions:
                    break
            if not out["terminals"][-1]:
                out["timeouts"][-1] = True
            out.attrs["identity"] = json.dumps(self._identity)
            out.attrs["chunk_ends"] = np.asarray(ends, np.int64)
            for name, value in attributes.items():
                out.attrs[name] = value if isinstance(value, str) else json.dumps(value)
        shutil.rmtree(self._parts, ignore_errors=True)
        self._ends, self._part_rows = np.asarray(ends, np.int64), []

    def _chunks(self) -> Iterator[tuple[Rows, list[int]]]:
        """Rows of the old file, then of each part, with the ends of whole chunks in them."""
        if len(self._ends):
            with h5py.File(self.path, "r") as f:
                yield {k: f[k][: self._ends[-1]] for k in f}, [int(e) for e in self._ends]
        for i in range(len(self._part_rows)):
            with h5py.File(self._part(len(self._ends) + i), "r") as f:
                yield {k: f[k][:] for k in f}, [self._part_rows[i]]

    def _part(self, chunk: int) -> Path:
        return self._parts / f"chunk_{chunk:06d}.hdf5"

    def _read_chunk_ends(self) -> np.ndarray:
        if not self.path.exists():
            return np.zeros(0, np.int64)
        with h5py.File(self.path, "r") as f:
            return f.attrs["chunk_ends"][:]

    def _read_parts_identity(self) -> dict[str, Any] | None:
        file = self._parts / "identity.json"
        return json.loads(file.read_text()) if file.exists() else None


def read_identity(path: Path) -> dict[str, Any] | None:
    """What a finished file was made from; None if there is no such file.

    Raises:
      UserError: the file is not one of ours.
    """
    if not path.exists():
        return None
    try:
        with h5py.File(path, "r") as f:
            return json.loads(f.attrs["identity"])
    except (OSError, KeyError, ValueError) as e:
        raise UserError(f"{path}: not a synthetic dataset of this program ({e}); move it") from e


def _columns(flat: Flat) -> Rows:
    """D4RL's names; the last row of each segment is a time-out unless it is a terminal."""
    transition = flat.transition
    terminal = np.asarray(transition.discount) == 0.0
    return {
        "observations": np.asarray(transition.observation, np.float32),
        "actions": np.asarray(transition.action, np.float32),
        "rewards": np.asarray(transition.reward, np.float32),
        "next_observations": np.asarray(transition.next_observation, np.float32),
        "terminals": terminal,
        "timeouts": flat.segment_end & ~terminal,
        "timesteps": np.asarray(flat.timestep, np.int32),
        "returns_to_go": np.asarray(flat.return_to_go, np.float32),
    }
