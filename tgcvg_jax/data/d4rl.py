"""Reading HDF5 files in D4RL's format.

Required at the root: `observations` [N, S], `actions` [N, A], `rewards` and `terminals` [N] or
[N, 1]. Optional: `next_observations` [N, S], `timeouts`, and from this library's own files
`timesteps` and `returns_to_go` (computed where absent). Everything becomes float32.

What the flags mean:

* The discount is 0 only in rows with `terminals`. An episode ends in rows with `terminals` or
  `timeouts`; a row with both counts as terminal.
* A time-out row keeps its transition and bootstraps (discount 1) if the file holds
  `next_observations`.
* Without `timeouts`, an episode ends at a terminal or after `task.episode_length` steps.
* Without `next_observations`, the next row's observation within the episode is taken. The last row
  of an episode that is not terminal then has no next observation and is dropped, its reward with
  it. A terminal row keeps its transition with its own observation as the next one; with discount
  0 no value learner reads it.
* A trailing partial episode is kept, as one that was truncated. (The released TGCVG code drops it
  for the policy and keeps it for the dynamics model.)
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from tgcvg_jax.data.dataset import from_columns, make_dataset
from tgcvg_jax.data.validate import check_fields, open_hdf5
from tgcvg_jax.types import ORIGINAL, Dataset, Task, UserError

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("next_observations", "timeouts", "timesteps", "returns_to_go")


def read(path: str | Path, task: Task, *, source: int = ORIGINAL) -> Dataset:
    """Reads a D4RL-format HDF5 file.

    Args:
      path: the file.
      task: gives the expected dimensions, and the time limit of files without `timeouts`.
      source: ORIGINAL or SYNTHETIC, for all rows.

    Returns:
      The dataset, on the default device.

    Raises:
      UserError: the file cannot be read, or its fields do not fit together or the task.
    """
    with open_hdf5(path) as file:
        missing = [name for name in REQUIRED if name not in file]
        if missing:
            held = ", ".join(list(file)[:12]) or "nothing"
            raise UserError(
                f"{path}: has no {', '.join(missing)}; it holds {held}"
                f"{', ...' if len(file) > 12 else ''}; is it in D4RL's format?"
            )
        names = [*REQUIRED, *(name for name in OPTIONAL if name in file)]
        fields = {name: _read_array(path, file, name) for name in names}
    fields = check_fields(path, task, fields)

    terminal = fields["terminals"] == 1
    if "timeouts" in fields:
        end = terminal | (fields["timeouts"] == 1)
    else:
        end = terminal | _time_limit(terminal, task.episode_length)
    end[-1] = True  # the trailing partial episode
    if "next_observations" in fields:
        keep = np.ones_like(end)
    else:
        observation = fields["observations"]
        shifted = np.concatenate([observation[1:], observation[-1:]])
        fields["next_observations"] = np.where(end[:, None], observation, shifted)
        keep = terminal | ~end
        if not keep.any():
            raise UserError(f"{path}: next_observations is missing and no episode has two rows")
    # A dropped row hands the end of its episode to the row before it.
    episode = np.cumsum(end) - end
    last = np.append(np.diff(episode[keep]) != 0, True)
    fields = {name: column[keep] for name, column in fields.items()}
    return make_dataset(
        task,
        from_columns(fields),
        last,
        source=source,
        timestep=fields.get("timesteps"),
        return_to_go=fields.get("returns_to_go"),
    )


def _read_array(path: str | Path, file: h5py.File, name: str) -> np.ndarray:
    item = file[name]
    if not isinstance(item, h5py.Dataset):
        raise UserError(f"{path}: {name} is a group; expected a dataset of numbers")
    if item.external or item.is_virtual:  # links by another name
        raise UserError(f"{path}: {name} is stored in another file; copy the data into this one")
    return np.asarray(item[()])


def _time_limit(terminal: np.ndarray, episode_length: int) -> np.ndarray:
    """[N] bool, True in every `episode_length`-th row since the last terminal."""
    index = np.arange(len(terminal))
    first = np.where(np.append(True, terminal[:-1]), index, 0)
    step = index - np.maximum.accumulate(first)
    return (step + 1) % episode_length == 0
