"""From a folder of checkpoints back to what was trained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tgcvg_jax import config as config_lib
from tgcvg_jax import data, training
from tgcvg_jax.checkpoint import read_metadata, restore
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.models import MODELS
from tgcvg_jax.types import Dataset, Learner, PyTree, Source, Task, UserError


class Trained(NamedTuple):
    """A trained learner or model.

    Attributes:
      task: what it was trained on.
      kind: its name in `LEARNERS` or `MODELS`.
      config: its config.
      learner: made of task and config; `learner.policy` acts, if it can.
      state: with a leading axis of N seeds, see `training.select_seed`.
      seeds: the N seeds' numbers.
    """

    task: Task
    kind: str
    config: Any
    learner: Learner
    state: PyTree
    seeds: list[int]


def load(folder: str | os.PathLike, dataset: Dataset | None = None) -> Trained:
    """Restores what an app has trained.

    Args:
      folder: of its checkpoints, such as runs/hopper-medium-v2/tgcvg/td3_bc; the folder of one
        step will do.
      dataset: needed only by a learner whose state has shapes that depend on the data, which none
        of this library has.

    Raises:
      UserError: nothing there, or nothing that this version can read.
    """
    folder = Path(folder).expanduser()
    if folder.name.isdigit():  # the folder of one step, where tab completion leads
        folder = folder.parent
    metadata = read_metadata(folder)
    kind, kinds = metadata.get("kind"), LEARNERS | MODELS
    if kind not in kinds:
        raise UserError(f"{folder}: {kind!r} is no model of this version")
    task = _make_task(metadata["task"])
    config = config_lib.from_dict(kinds[kind].Config, metadata["config"])
    learner, seeds = kinds[kind].make(task, config), metadata["seeds"]
    prepared = learner.prepare(data.blank(task) if dataset is None else dataset)
    like = jax.eval_shape(lambda: training.init(learner, prepared, seeds))
    return Trained(task, kind, config, learner, restore(folder, like), seeds)


def _make_task(values: Mapping[str, Any]) -> Task:
    task = config_lib.from_dict(Task, values)
    return dataclasses.replace(task, sources=tuple(Source(*s) for s in task.sources))
