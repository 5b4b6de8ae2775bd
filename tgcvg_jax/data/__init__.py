"""From a name to a dataset on the device.

`resolve` turns what the user typed into a `Task`, `load` turns a task into a `Dataset`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import os
import warnings
from pathlib import Path
from typing import Literal

import gymnasium

from tgcvg_jax import tasks
from tgcvg_jax.data import d4rl, download, minari
from tgcvg_jax.data.dataset import (
    Flat,
    blank,
    concatenate,
    episode_returns,
    flatten,
    head,
    make_dataset,
    select,
    split,
)
from tgcvg_jax.data.synthetic import environment_of
from tgcvg_jax.envs import mujoco_warnings, oracle, register_robotics, rescale_actions
from tgcvg_jax.types import Dataset, Source, Task, UserError, one_line

__all__ = [
    "Flat",
    "blank",
    "concatenate",
    "episode_returns",
    "flatten",
    "head",
    "load",
    "locate",
    "make_dataset",
    "obtain",
    "resolve",
    "select",
    "split",
]


def resolve(
    name: str, *, data_dir: str | Path | None = None, dataset: str | Path | None = None
) -> Task:
    """The task of a name.

    Args:
      name: a Minari id found in a local store (its metadata decides); else a name in `tasks.TASKS`;
        else one in `tasks.ENVIRONMENTS` or a Gymnasium id, which have no data of their own (and a
        Gymnasium id no reference scores, unless a task of the table is in that environment).
      data_dir: a folder that may hold Minari datasets too.
      dataset: the user's own data; where it is the Minari dataset called `name`, the task is
        read from it.

    Raises:
      UserError: no such name, or an environment that the library does not support.
    """
    if "/" in name and minari.find(name, data_dir) is not None:
        return minari.make_task(name, data_dir)
    known = tasks.TASKS | tasks.ENVIRONMENTS
    if name in known:
        return known[name]
    register_robotics(name)
    if name in gymnasium.registry:
        return _gymnasium_task(name)
    if dataset is not None and minari.find(dataset, data_dir) is not None:
        task = minari.make_task(dataset, data_dir)
        if task.name == name:
            return task
    if "/" in name and minari.is_id(name):
        minari.require(name, data_dir)  # raises, and says how to get it
    close = difflib.get_close_matches(name, [*known, *gymnasium.registry], n=3, cutoff=0.7)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(
        f"unknown env {name!r}; {hint}--env takes a D4RL name such as hopper-medium-v2, a bundled "
        "one such as hopper-medium-mini, a Minari id, or a Gymnasium id together with --dataset; "
        "`python -m experiments.datasets list` shows all"
    )


def load(
    name: str | Task,
    *,
    data_dir: str | Path | None = None,
    dataset: str | Path | None = None,
    after_goal: Literal["drop", "keep"] = "drop",
) -> Dataset:
    """The dataset of a task, on the default device.

    A D4RL file is looked for in `data_dir`, $TGCVG_DATA and ~/.d4rl/datasets, and otherwise
    downloaded into the first of these that is given. A few of its steps are taken again in the
    task's simulator; a warning says so if they come out differently.

    Args:
      name: a name as in `resolve`, or a task.
      data_dir: a folder with D4RL files or Minari datasets.
      dataset: overrides the task's own source: an HDF5 file in D4RL's format, a Minari dataset's
        directory, or a Minari id.
      after_goal: of AntMaze files, see `d4rl.read`.

    Raises:
      UserError: unknown name, no data to be had, or data that is damaged or of another
        environment.
    """
    if isinstance(name, Task):
        task = name
    else:
        task = resolve(name, data_dir=data_dir, dataset=dataset)
    if dataset is not None:
        path = Path(dataset).expanduser()
        if path.is_dir() or (minari.is_id(str(dataset)) and not path.is_file()):
            return minari.read(dataset, task, data_dir)
        return _read_d4rl(path, task, after_goal)
    if not task.sources:
        raise UserError(f"{task.name}: has no data of its own; give it with --dataset=PATH")
    here = (source for source in task.sources if locate(source, data_dir) is not None)
    source = next(here, task.sources[0])
    if source.kind == "bundled":
        from tgcvg_jax.data import mini  # not above: it also runs as a program, `python -m`

        return mini.read_bundled(source.name, task)
    if source.kind == "minari":
        return minari.read(source.name, task, data_dir)
    return _read_d4rl(obtain(source, data_dir), task, after_goal)


def locate(source: Source, data_dir: str | Path | None = None) -> Path | None:
    """Where a source's data is on this machine, or None."""
    if source.kind == "bundled":
        return Path(str(importlib.resources.files("tgcvg_jax.data"))) / "bundled" / source.name
    if source.kind == "minari":
        return minari.find(source.name, data_dir)
    # Directly in the folder, or as the server lays it out: gym_mujoco_v2/hopper_medium-v2.hdf5.
    names = (source.name, source.path or source.name)
    paths = (folder / name for folder in _d4rl_folders(data_dir) for name in names)
    return next((path for path in paths if path.is_file()), None)


def obtain(source: Source, data_dir: str | Path | None = None) -> Path:
    """Where a source's data is, after a download if it was not there.

    Raises:
      UserError: the download failed.
    """
    path = locate(source, data_dir)
    if path is not None:
        return path
    if source.kind == "minari":
        return minari.download(source.name, data_dir)
    return download.fetch(source.path, _d4rl_folders(data_dir)[0] / source.name)


def _read_d4rl(path: Path, task: Task, after_goal: Literal["drop", "keep"]) -> Dataset:
    dataset = d4rl.read(path, task, after_goal=after_goal)
    made_in = environment_of(path)  # a file of ours says so; others' are put to the test
    trouble = None
    if made_in is None:
        trouble = oracle.check_physics(task, dataset.transition)
    elif tasks.robot_of(made_in) != tasks.robot_of(task.environment):
        raise UserError(f"{path}: was made for {made_in}, but {task.name} is in {task.environment}")
    elif made_in != task.environment:
        trouble = f"was made for {made_in}, but {task.name} is scored in {task.environment}"
    if trouble is not None:
        warnings.warn(f"{path}: {trouble}", stacklevel=3)
    return dataset


def _d4rl_folders(data_dir: str | Path | None) -> list[Path]:
    given = (data_dir, os.environ.get("TGCVG_DATA"), "~/.d4rl/datasets")
    return [Path(folder).expanduser() for folder in given if folder]


def _gymnasium_task(name: str) -> Task:
    try:
        # Quietly: it is made for its dimensions only; making it for use gives its warnings.
        with mujoco_warnings(lambda message: None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gymnasium.make(name)
    except Exception as error:  # whatever a registered environment's constructor raises
        raise UserError(f"{name}: Gymnasium cannot make it ({one_line(error)})") from error
    env.close()
    env = rescale_actions(env)
    observation_dim, action_dim = minari.flat_dims(name, env.observation_space, env.action_space)
    if env.spec.max_episode_steps is None:
        raise UserError(f"{name}: has no time limit; register it with max_episode_steps")
    task = Task(
        name=name,
        environment=name,
        observation_dim=observation_dim,
        action_dim=action_dim,
        episode_length=env.spec.max_episode_steps,
    )
    # What the tables know of it: of a simulator that several datasets share, not the level.
    shared = [t for t in tasks.ENVIRONMENTS.values() if t.environment == name]
    shared += [t for t in tasks.TASKS.values() if t.environment == name]
    if not shared:
        return task
    like = shared[0]
    return dataclasses.replace(
        task,
        min_score=like.min_score,
        max_score=like.max_score,
        eval_episodes=like.eval_episodes,
        family=like.family if like.name in tasks.ENVIRONMENTS else like.domain,
    )
