"""Reading HDF5 files in D4RL's format.

Required at the root: `observations` [N, S], `actions` [N, A], `rewards` and `terminals` [N] or
[N, 1]. Optional: `next_observations` [N, S], `timeouts`, and from this library's own files
`timesteps` and `returns_to_go` (computed where absent). Everything becomes float32; groups such as
`infos` and `metadata` are left alone.

What the flags mean, in all files but those of the mazes:

* The discount is 0 only in rows with `terminals`. An episode ends in rows with `terminals` or
  `timeouts`; a row with both counts as terminal.
* A time-out row keeps its transition and bootstraps (discount 1) if the file holds
  `next_observations`.
* Without `timeouts`, an episode ends at a terminal or after `task.episode_length` steps.
* Without `next_observations`, the next row's observation within the episode is taken. The last row
  of an episode that is not terminal then has no next observation and is dropped, its reward with
  it. A terminal row keeps its transition with its own observation as the next one; with discount
  0 no value learner reads it.
* With `next_observations` an episode also ends, as if cut off, where one of them is not the next
  row's observation: no window crosses it.
* A trailing partial episode is kept, as one that was truncated. (The released TGCVG code drops it
  for the policy and keeps it for the dynamics model.)

maze2d (D4RL, `generate_maze2d_datasets.py`): one endless trajectory towards changing targets.

* Nothing terminates: the discount is 1 everywhere. Rows with `terminals` (where the raw generator
  marks that its controller has arrived) or `timeouts` end a segment.
* If no row has either flag, segments are cut where `infos/goal` changes: row i is the last one if
  goal[i + 1] differs from goal[i]. If the file has no goals or they never change, row i is the
  last one where the reward falls from 1 in row i to 0 in the next.
* Rewards stay as they are: reward i is that of observation i, not of the next one.

antmaze (D4RL, `generate_ant_maze_datasets.py` and the relabelling of its rewards), in files
without `next_observations`, as the published ones are:

* The ant goes on after it has reached the goal: an episode in the file ends at its time-out, or
  after 1001 rows if no row has one. `terminals` come in runs while the ant hovers at the goal.
* With `after_goal="drop"` an episode ends at its first terminal and its later rows are dropped, as
  in the released TGCVG code. With "keep" every row is kept and each terminal ends an episode, as
  in `d4rl.qlearning_dataset` and CORL.
* The next observation of a terminal row is the file's next row, unless the time is out there too.

antmaze files with `next_observations`, such as this library's own, are read like all others (the
limit in those without `timeouts` is 1001 rows).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from tgcvg_jax.data.dataset import from_columns, make_dataset
from tgcvg_jax.data.validate import check_fields, is_synthetic, open_hdf5
from tgcvg_jax.types import ORIGINAL, Dataset, Task, UserError

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("next_observations", "timeouts", "timesteps", "returns_to_go")
GOALS = "infos/goal"
JUMP = 1e-3  # relative; above rounding
JUMP_SHARE = 0.01  # more of them are worth a warning
ANTMAZE_ROWS = 1001  # rows of an episode of the published antmaze files

Columns = dict[str, np.ndarray]


def read(
    path: str | Path,
    task: Task,
    *,
    source: int = ORIGINAL,
    after_goal: Literal["drop", "keep"] = "drop",
) -> Dataset:
    """Reads a D4RL-format HDF5 file.

    Args:
      path: the file.
      task: gives the expected dimensions, the domain, and the time limit of files without
        `timeouts`.
      source: ORIGINAL or SYNTHETIC, for all rows.
      after_goal: what becomes of the rows that follow an antmaze's first terminal.

    Returns:
      The dataset, on the default device.

    Raises:
      UserError: the file cannot be read, or its fields do not fit together or the task.
    """
    if after_goal not in ("drop", "keep"):
        raise ValueError(f"after_goal is 'drop' or 'keep', not {after_goal!r}")
    fields, last = _transitions(path, task, after_goal)
    return make_dataset(
        task,
        from_columns(fields),
        last,
        source=source,
        timestep=fields.get("timesteps"),
        return_to_go=fields.get("returns_to_go"),
    )


def _transitions(path: str | Path, task: Task, after_goal: str) -> tuple[Columns, np.ndarray]:
    """The rows that are transitions, as float32 columns, and [M] bool, the ends of episodes."""
    fields, goals = _load(path, task)
    # What this library wrote has all ends of segments in its flags; S4RL's noise would look like
    # jumps, and GTA's actions, as released, may be out of bounds.
    ours = is_synthetic(path)
    fields = check_fields(path, task, fields, bounded=not ours)
    has_next = "next_observations" in fields
    # `terminal`: the MDP ends. `broken`: the file's next row is not this row's successor.
    terminal, broken = _flags(task, fields, goals)
    broken[-1] = True  # the trailing partial episode
    if has_next and not ours:
        jumps = _jumps(fields) & ~(terminal | broken)[:-1]
        if jumps.size and np.mean(jumps) > JUMP_SHARE:
            warnings.warn(
                f"{path}: {np.mean(jumps):.0%} of the rows are not followed by their next "
                "observation; sequences are cut there, so there may be none that are long enough",
                stacklevel=2,
            )
        broken[:-1] |= jumps
    end = terminal | broken
    if has_next:
        keep = np.ones_like(end)
    else:
        keep = terminal | ~broken
        if task.domain == "antmaze" and after_goal == "drop":
            keep &= ~_after_first(terminal, broken)
        if not keep.any():
            raise UserError(f"{path}: next_observations is missing and no episode has two rows")

    # Files hold up to 4 million rows: indices are small, and columns are taken one by one.
    rows = np.flatnonzero(keep).astype(np.int32)
    # A dropped row hands the end of its episode to the row before it.
    episode = np.cumsum(np.append(False, end[:-1]), dtype=np.int32)[rows]
    last = np.append(episode[1:] != episode[:-1], True)
    following = fields.get("next_observations")
    if following is None:
        following = fields["observations"][rows + ~broken[rows]]
    fields.pop("timeouts", None)
    if len(rows) < len(end):
        for name in list(fields):
            fields[name] = fields[name][rows]
    fields |= {"next_observations": following, "terminals": terminal[rows]}
    return fields, last


def _jumps(fields: Columns) -> np.ndarray:
    """[N - 1] bool: rows whose next observation is not the next row's observation.

    They cannot stand in one episode: shuffled files, or ones that were joined without flags.
    """
    before, after = fields["next_observations"], fields["observations"]
    jumps = np.zeros(len(after) - 1, bool)
    for column in range(after.shape[1]):  # one by one, for files of millions of rows
        x, y = before[:-1, column], after[1:, column]
        jumps |= np.abs(x - y) > JUMP * (1.0 + np.abs(y))
    return jumps


def _load(path: str | Path, task: Task) -> tuple[Columns, np.ndarray | None]:
    """The columns of a file as they are, and the goals of a maze2d file without flags."""
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
        flags = (fields[name] for name in ("terminals", "timeouts") if name in fields)
        if task.domain != "maze2d" or GOALS not in file or any((x == 1).any() for x in flags):
            return fields, None
        goals = _read_array(path, file, GOALS)
        if goals.ndim != 2 or len(goals) != len(fields["observations"]):
            raise UserError(
                f"{path}: {GOALS} has shape {list(goals.shape)}; expected one row for each of "
                f"the {len(fields['observations'])} observations"
            )
        return fields, goals


def _read_array(path: str | Path, file: h5py.File, name: str) -> np.ndarray:
    item = file[name]
    if not isinstance(item, h5py.Dataset):
        raise UserError(f"{path}: {name} is a group; expected a dataset of numbers")
    if item.external or item.is_virtual:  # links by another name
        raise UserError(f"{path}: {name} is stored in another file; copy the data into this one")
    return np.asarray(item[()])


def _flags(task: Task, fields: Columns, goals: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """[N] bool each: rows where the MDP terminates, and rows that the next one does not follow."""
    terminal = fields["terminals"] == 1
    timeout = fields["timeouts"] == 1 if "timeouts" in fields else None
    if task.domain == "maze2d":
        flag = terminal if timeout is None else terminal | timeout
        broken = flag if flag.any() else _target_changes(fields["rewards"], goals)
        return np.zeros_like(terminal), broken
    limit = ANTMAZE_ROWS if task.domain == "antmaze" else task.episode_length
    if task.domain == "antmaze" and "next_observations" not in fields:
        if timeout is None or not timeout.any():
            timeout = _time_limit(np.zeros_like(terminal), limit)
        return terminal, timeout
    if timeout is None:
        timeout = _time_limit(terminal, limit)
    return terminal, terminal | timeout


def _target_changes(reward: np.ndarray, goals: np.ndarray | None) -> np.ndarray:
    """[N] bool, True in the last row before maze2d's controller gets another target."""
    change = None if goals is None else np.any(goals[1:] != goals[:-1], axis=1)
    if change is None or not change.any():
        change = (reward[:-1] == 1) & (reward[1:] == 0)
    return np.append(change, True)


def _after_first(terminal: np.ndarray, broken: np.ndarray) -> np.ndarray:
    """[N] bool, True where an earlier row of the same episode of the file is terminal."""
    before = np.cumsum(terminal, dtype=np.int32) - terminal  # terminals in all earlier rows
    first = np.append(True, broken[:-1])
    at_start = np.maximum.accumulate(np.where(first, before, 0))
    return before > at_start


def _time_limit(terminal: np.ndarray, episode_length: int) -> np.ndarray:
    """[N] bool, True in every `episode_length`-th row since the last terminal."""
    index = np.arange(len(terminal))
    first = np.where(np.append(True, terminal[:-1]), index, 0)
    step = index - np.maximum.accumulate(first)
    return (step + 1) % episode_length == 0
