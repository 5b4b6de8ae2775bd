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
from tgcvg_jax.data import d4rl
from tgcvg_jax.data.dataset import Flat, from_columns
from tgcvg_jax.files import atomic_path
from tgcvg_jax.types import SYNTHETIC, Dataset, Task, Transition, UserError, one_line

Rows = dict[str, np.ndarray]
COLUMNS = (
    "observations",
    "actions",
    "rewards",
    "next_observations",
    "terminals",
    "timeouts",
    "timesteps",
    "returns_to_go",
)
CHUNK_ENDS = "metadata/chunk_ends"  # rows after each whole chunk; an attribute is limited to 64 KB
IDENTITY = "identity.json"
BLOCK = 1_000_000  # rows read at a time where some of all are wanted


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
      identity: JSON-ready dict of all that determines the rows: config, seed, source.
      defaults: an identity of defaults alone: what a field counts as that the found one lacks,
        having been written before the field existed.

    Raises:
      UserError: the file or its parts come from another identity, or are damaged.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ):
        self.path = Path(path)
        self._parts = self.path.with_suffix(".parts")
        self._identity = _jsonify(identity)
        defaults = _jsonify(defaults or {})
        for place, found in ((self.path, self._read_file()), (self._parts, self._read_parts())):
            if found is None:
                continue
            if changed := config_lib.difference(found, self._identity, defaults=defaults):
                raise UserError(
                    f"{place} was made with another configuration ({'; '.join(changed)}); "
                    "choose another --workdir or delete it"
                )

    def progress(self) -> Progress:
        """Whole chunks and their rows."""
        rows = int(self._ends[-1]) if len(self._ends) else 0
        chunks = len(self._ends) + len(self._part_rows)
        return Progress(chunks, rows + sum(self._part_rows))

    def is_finished(self, num_transitions: int) -> bool:
        """Whether the file holds exactly this many transitions.

        Raises:
          UserError: it holds more. They are not thrown away.
        """
        if self._size > num_transitions:
            raise UserError(
                f"{self.path} holds {self._size:,} transitions already, more than the "
                f"{num_transitions:,} asked for; ask for at least as many, choose another "
                "--workdir, or delete it"
            )
        return self._size == num_transitions

    def add(self, flat: Flat) -> None:
        """Writes the next chunk."""
        chunk = self.progress().chunks
        identity = self._parts / IDENTITY
        if not identity.exists():
            with atomic_path(identity) as temporary:
                temporary.write_text(json.dumps(self._identity))
        with atomic_path(self._part(chunk)) as temporary, h5py.File(temporary, "w") as f:
            for name, values in columns_of(flat).items():
                f.create_dataset(name, data=values)
        self._part_rows.append(len(flat.timestep))

    def discard_parts(self) -> None:
        """Removes the part files, identity last: parts without one are nobody's."""
        for part in sorted(self._parts.glob("*.hdf5"), reverse=True):
            part.unlink()
        shutil.rmtree(self._parts, ignore_errors=True)
        self._part_rows = []

    def finish(self, num_transitions: int, attributes: Mapping[str, Any]) -> None:
        """Joins the first `num_transitions` rows into the final file and removes the parts.

        The last segment may be cut; it then ends in a time-out.

        Raises:
          UserError: there are fewer rows on disk.
        """
        if self.progress().rows < num_transitions:
            raise UserError(f"{self.path}: only {self.progress().rows} transitions are on disk")
        for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            leftover.unlink()  # of a run that was killed here; it may be gigabytes
        ends: list[int] = []
        with atomic_path(self.path) as temporary, h5py.File(temporary, "w") as out:
            written = 0
            for rows in self._chunks():
                count = min(len(rows["rewards"]), num_transitions - written)
                if count == len(rows["rewards"]):
                    ends.append(written + count)
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
            out[CHUNK_ENDS] = np.asarray(ends, np.int64)
            for name, value in attributes.items():
                out.attrs[name] = value if isinstance(value, str) else json.dumps(value)
        self.discard_parts()
        self._ends, self._size = np.asarray(ends, np.int64), num_transitions

    def _chunks(self) -> Iterator[Rows]:
        """Rows of each chunk: those that the finished file holds whole, then the parts."""
        if len(self._ends):
            with h5py.File(self.path, "r") as f:
                for start, end in zip([0, *self._ends[:-1]], self._ends):
                    yield {name: f[name][start:end] for name in COLUMNS}
        for i in range(len(self._part_rows)):
            with h5py.File(self._part(len(self._ends) + i), "r") as f:
                yield {name: f[name][:] for name in COLUMNS}

    def _part(self, chunk: int) -> Path:
        return self._parts / f"chunk_{chunk:06d}.hdf5"

    def _read_file(self) -> dict[str, Any] | None:
        """Size and chunks of the finished file, and what it was made from."""
        self._ends, self._size = np.zeros(0, np.int64), 0
        if not self.path.exists():
            return None
        try:
            with h5py.File(self.path, "r") as f:
                self._ends, self._size = f[CHUNK_ENDS][:], len(f["rewards"])
                return json.loads(f.attrs["identity"])
        except (OSError, KeyError, ValueError) as e:
            raise UserError(
                f"{self.path}: damaged, or not a synthetic dataset of this program "
                f"({one_line(e)}); move or delete it"
            ) from e

    def _read_parts(self) -> dict[str, Any] | None:
        """Rows of the parts that follow the finished file, and what they were made from."""
        self._part_rows: list[int] = []
        identity = self._parts / IDENTITY
        if not identity.exists():
            if self._parts.exists():
                self.discard_parts()
            return None
        part = identity
        try:
            found = json.loads(identity.read_text())
            while (part := self._part(len(self._ends) + len(self._part_rows))).exists():
                with h5py.File(part, "r") as f:
                    self._part_rows.append(len(f["rewards"]))
            return found
        except (OSError, KeyError, ValueError) as e:
            raise UserError(
                f"{part}: damaged ({one_line(e)}); delete {self._parts} to generate it again"
            ) from e


def _jsonify(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(values)))


def environment_of(path: str | Path) -> str | None:
    """The Gymnasium id that a synthetic file was made for; None if it does not say."""
    try:
        with h5py.File(path, "r") as f:
            return f.attrs.get("environment")
    except OSError:
        return None  # the reader of the data will say what is wrong


def read(path: str | Path, task: Task) -> Dataset:
    """All transitions of a synthetic file. Their steps need not be the simulator's.

    Raises:
      UserError: it was made for another environment, or cannot be read.
    """
    made_in = environment_of(path)
    if made_in not in (None, task.environment):
        raise UserError(f"{path}: was made for {made_in}, but {task.name} is in {task.environment}")
    return d4rl.read(path, task, source=SYNTHETIC)


def read_sample(path: str | Path, max_rows: int) -> tuple[Transition, np.ndarray, int]:
    """A part of a synthetic file for statistics and pictures.

    Args:
      path: the file.
      max_rows: rows to read at most, as blocks of neighbours from all over the file (single rows
        would be slow).

    Returns:
      The transitions (numpy), the length of every segment of the whole file, and the number of
      all its transitions.
    """
    with h5py.File(path, "r") as f:
        size = len(f["rewards"])
        blocks = min(10, -(-size // max_rows))
        count = min(size, max_rows) // blocks
        starts = np.linspace(0, size - count, blocks).astype(int)
        read = {name: np.concatenate([f[name][s : s + count] for s in starts]) for name in COLUMNS}
        ends = f["terminals"][:] | f["timeouts"][:]
    return from_columns(read), np.diff(np.flatnonzero(ends), prepend=-1), size


def read_segments(path: str | Path, max_rows: int, seed: int = 0) -> tuple[Flat, np.ndarray]:
    """Whole segments of a synthetic file, chosen at random, in the order of the file.

    Args:
      path: the file.
      max_rows: as many segments as fit into it, but at least one.
      seed: of the choice.

    Returns:
      The segments, and the length of every segment of the whole file.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with h5py.File(path, "r") as f:
            size = len(f["rewards"])
            end = f["terminals"][:].astype(bool) | f["timeouts"][:].astype(bool)
            end[-1] = True
            length = np.diff(np.flatnonzero(end), prepend=-1)
            drawn = np.random.default_rng(seed).permutation(len(length))
            drawn = drawn[: max(1, np.searchsorted(np.cumsum(length[drawn]), max_rows, "right"))]
            chosen = np.zeros(len(length), bool)
            chosen[drawn] = True
            keep = np.repeat(chosen, length)
            blocks = [slice(i, i + BLOCK) for i in range(0, size, BLOCK)]
            read = {name: np.concatenate([f[name][b][keep[b]] for b in blocks]) for name in COLUMNS}
    except (OSError, KeyError, IndexError) as e:
        raise UserError(
            f"{path}: damaged, or not a synthetic dataset of this program ({one_line(e)})"
        ) from e
    flat = Flat(from_columns(read), read["timesteps"], read["returns_to_go"], end[keep])
    return flat, length


def columns_of(flat: Flat) -> Rows:
    """D4RL's names; the last row of each segment is a time-out unless it is a terminal."""
    transition = flat.transition
    terminal = np.asarray(transition.discount) == 0.0
    columns = (
        np.asarray(transition.observation, np.float32),
        np.asarray(transition.action, np.float32),
        np.asarray(transition.reward, np.float32),
        np.asarray(transition.next_observation, np.float32),
        terminal,
        flat.segment_end & ~terminal,
        np.asarray(flat.timestep, np.int32),
        np.asarray(flat.return_to_go, np.float32),
    )
    return dict(zip(COLUMNS, columns, strict=True))
