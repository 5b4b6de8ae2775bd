"""Checks that all readers share: is this file HDF5, and do its fields fit together and the task?

Every failure is a one-line `UserError` that names the file, the field and what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from tgcvg_jax.types import Task, UserError, one_line

MAX_ACTION = 1 + 1e-3  # float noise beyond the box is kept as it is
_VECTORS = ("observations", "next_observations", "actions")
_FLAGS = ("terminals", "timeouts", "terminations", "truncations")
# What h5py and minari raise when the bytes are damaged or the layout is not the expected one.
_DAMAGED = (OSError, RuntimeError, KeyError, ValueError, AssertionError)


@contextlib.contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading; damage found while it is open is a `UserError` too.

    Soft and external links are refused: they let a file pull in other files of the reader's disk.

    Raises:
      UserError: no such file, a directory, empty, not HDF5, damaged, or a link inside.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path}: is a directory; expected an HDF5 file")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path or the data directory")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; download or write it again")
    if not h5py.is_hdf5(path):
        raise UserError(f"{path}: is not an HDF5 file; expected a dataset in HDF5 format")
    try:
        with h5py.File(path, "r") as file:
            # An exception may not leave the callback; the first name returned ends the walk.
            link = file.visititems_links(
                lambda name, link: None if isinstance(link, h5py.HardLink) else name
            )
            if link is not None:
                raise UserError(
                    f"{path}: {link} is a link to another place; copy the data into the file"
                )
            yield file
    except _DAMAGED as error:
        raise UserError(
            f"{path}: truncated or damaged ({one_line(error)}); download or write it again"
        ) from error


def is_synthetic(path: str | Path) -> bool:
    """Whether this library made the file (a `data.synthetic.SyntheticStore`)."""
    try:
        with h5py.File(path, "r") as f:
            return "identity" in f.attrs
    except OSError:
        return False


def check_fields(
    where: str | Path, task: Task, fields: Mapping[str, np.ndarray], bounded: bool = True
) -> dict[str, np.ndarray]:
    """Checks the fields of a dataset and converts them to float32.

    Args:
      where: the file or dataset, for messages.
      task: gives the expected widths; an `observation_dim` of 0 leaves them unchecked.
      fields: `observations` [N, S] and others by their names in the file: vectors [N, S] or
        [N, A], everything else [N] or [N, 1].
      bounded: whether actions must lie in [-1, 1].

    Returns:
      The fields, float32: vectors [N, ...], the others [N].

    Raises:
      UserError: not numbers, wrong rank or width, lengths that disagree, no rows, NaN or infinity
        (in float32), flags other than 0 and 1, actions outside [-1, 1].
    """
    checked = {name: _float32(where, name, np.asarray(x)) for name, x in fields.items()}
    size = len(checked["observations"])
    if size == 0:
        raise UserError(f"{where}: observations has no rows; the dataset is empty")
    widths = {"actions": task.action_dim}
    widths |= {name: task.observation_dim for name in ("observations", "next_observations")}
    for name, value in checked.items():
        if len(value) != size:
            raise UserError(
                f"{where}: {name} has {len(value)} rows, but observations has {size}; each step "
                "needs one row in every field"
            )
        if task.observation_dim and name in widths and value.shape[1] != widths[name]:
            raise UserError(
                f"{where}: {name} have {value.shape[1]} columns, but {task.name} has "
                f"{widths[name]}; is this file of another environment?"
            )
        _check_values(where, name, value, bounded)
    return checked


def _float32(where: str | Path, name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "biuf":
        raise UserError(f"{where}: {name} holds {value.dtype} data; expected numbers")
    vector = name in _VECTORS
    if not vector and value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim != (2 if vector else 1):
        expected = "[rows, columns]" if vector else "[rows]"
        raise UserError(f"{where}: {name} has shape {list(value.shape)}; expected {expected}")
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which is reported
        return value.astype(np.float32, copy=False)


def _check_values(where: str | Path, name: str, value: np.ndarray, bounded: bool) -> None:
    if name in _FLAGS:
        good, remedy = (value == 0) | (value == 1), "only 0 and 1 are allowed"
    elif name == "actions" and bounded:
        good, remedy = np.abs(value) <= MAX_ACTION, "actions must be finite and lie in [-1, 1]"
    else:
        good, remedy = np.isfinite(value), "remove or repair that row"
    if not good.all():
        row, *_ = index = tuple(np.argwhere(~good)[0])
        raise UserError(f"{where}: {name} holds {value[index]} in row {row}; {remedy}")
