"""Ways out: any dataset as a D4RL-format HDF5 file or as a Minari dataset.

Both hold everything: read again, they give the same transitions, time steps and returns-to-go to
the last bit, be they recorded episodes or synthetic segments, and the same episode ends (a Minari
episode is cut where a next observation is not the observation after it).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import jax
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import NAMESPACE_METADATA_FILENAME

from tgcvg_jax import envs, reporting
from tgcvg_jax.data import minari as store_lib
from tgcvg_jax.data.dataset import Flat, make_dataset
from tgcvg_jax.data.synthetic import Rows, columns_of
from tgcvg_jax.files import atomic_path
from tgcvg_jax.types import Dataset, Task, UserError, one_line

PUBLISHED = ("D4RL", "mujoco")  # namespaces of Minari's own datasets
_BATCH = 500  # episodes; Minari opens and closes the file for each batch


def to_d4rl(
    dataset: Dataset,
    path: str | Path,
    *,
    padded: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a dataset as an HDF5 file in D4RL's format, whole or not at all.

    Columns at the root, as in a synthetic dataset's file: observations, actions, rewards,
    next_observations, terminals, timeouts, timesteps, returns_to_go. The last row of each episode
    is a time-out unless it is terminal.

    Many readers ignore `next_observations`: like `d4rl.qlearning_dataset`, they take the next row's
    observation and drop time-out rows, so of each episode that was cut off they lose the last
    transition, and their terminal transitions lead into the next episode. Of a padded file they
    lose nothing: a row with the last next observation (action 0, reward 0, a time-out) follows
    each episode and is the one that they drop. `next_observations` is left out of it, so that
    nobody takes those rows for transitions; this library's `d4rl.read` then gives the dataset
    back, but for the next observations of terminal rows.

    Args:
      dataset: the dataset.
      path: the file; one that is there is replaced.
      padded: add the row after each episode.
      attributes: stored at the file's root, as text or JSON, besides the environment's id.

    Returns:
      The path.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path).expanduser()
    columns = columns_of(_flat(dataset, cut=padded))
    if padded:
        columns = _pad(columns)
    described = {"environment": dataset.task.environment} if dataset.task.environment else {}
    try:
        with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
            for name, values in columns.items():
                file.create_dataset(name, data=values)
            for name, value in (described | dict(attributes or {})).items():
                file.attrs[name] = value if isinstance(value, str) else json.dumps(value)
    except OSError as error:
        raise UserError(f"{path}: cannot write there ({one_line(error)})") from error
    return path


def require_new(dataset_id: str, out: str | Path | None = None) -> tuple[Path, list[Path]]:
    """Where a new Minari dataset goes, and the folders of its namespaces.

    Raises:
      UserError: a malformed id, one without a namespace or in a publisher's, or one that exists
        already.
    """
    if not store_lib.is_id(dataset_id):
        raise UserError(
            f"{dataset_id!r} is not a Minari id; it looks like namespace/name-v0, in letters, "
            "digits, - and _"
        )
    parts = dataset_id.split("/")
    if len(parts) == 1:
        raise UserError(f"{dataset_id!r} needs a namespace, as in mine/{dataset_id}")
    if "data" in parts:
        raise UserError(f"{dataset_id!r}: Minari keeps `data` for itself; choose another name")
    if parts[0] in PUBLISHED:
        raise UserError(
            f"{dataset_id!r}: the namespace {parts[0]} is for its published datasets, which others "
            "compare with; choose another"
        )
    root = store_lib.stores(out)[0]
    namespaces = [root.joinpath(*parts[:i]) for i in range(1, len(parts))]
    if (destination := root / dataset_id).exists():
        raise UserError(
            f"{destination}: exists already; use it with --env={dataset_id}, or choose another id"
        )
    if inside := [folder for folder in namespaces if (folder / "data").exists()]:
        raise UserError(f"{inside[0]}: is a dataset; choose another namespace than its id")
    return destination, namespaces


def to_minari(
    dataset: Dataset,
    dataset_id: str,
    *,
    out: str | Path | None = None,
    environment: str | None = None,
    description: str = "",
    algorithm: str = "",
    author: str = "tgcvg_jax",
    code_permalink: str = "",
    console: reporting.Console | None = None,
) -> Path:
    """Writes a dataset as a Minari dataset that `minari.load_dataset` opens, whole or not at all.

    A Minari episode stores T + 1 observations, so it cannot hold a next observation that differs
    from the observation after it. An episode is cut wherever the two differ in any bit; a cut is a
    truncation. Every cut costs about 20 kB and a millisecond, so sets of single transitions are
    better kept in D4RL's format.

    Where episodes do not begin at time step 0 or a return-to-go is not the sum of the episode's
    rewards, as in synthetic segments, `infos` holds `timesteps` and `returns_to_go`.

    Args:
      dataset: the dataset.
      dataset_id: `namespace/name-v0`.
      out: the store; by default $MINARI_DATASETS_PATH or ~/.minari/datasets.
      environment: Gymnasium id; by default the task's environment. Its specification is stored if
        it can be made here.
      description: what the data is.
      algorithm: what chose the actions.
      author: who made it.
      code_permalink: where the code is.
      console: shows the progress.

    Returns:
      The dataset's directory.

    Raises:
      UserError: a malformed id, one that exists already, or a store that cannot be written.
    """
    destination, namespaces = require_new(dataset_id, out)
    console = console or reporting.Console(enabled=False)
    root = store_lib.stores(out)[0]
    task = dataset.task
    if environment is not None:
        task = dataclasses.replace(task, environment=environment, environment_kwargs="")
    metadata = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "author": {author},
        "algorithm_name": algorithm,
        "description": description,
        "code_permalink": code_permalink,
        "ref_min_score": task.min_score,
        "ref_max_score": task.max_score,
    }
    temporary = root / f".{dataset_id.replace('/', '.')}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
        temporary.mkdir(parents=True)
        storage = MinariStorage.new(
            temporary / "data",
            observation_space=_box(np.inf, task.observation_dim),
            action_space=_box(1.0, task.action_dim),
            env_spec=_specification(task, console),
        )
        storage.update_metadata({k: v for k, v in metadata.items() if v not in (None, "")})
        _write_episodes(storage, _flat(dataset, cut=True), task, console)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.rename(temporary, destination)
        for folder in namespaces:
            if not (marker := folder / NAMESPACE_METADATA_FILENAME).exists():
                marker.write_text("{}")
    except OSError as error:
        raise UserError(f"{destination}: cannot write there ({one_line(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return destination


def _flat(dataset: Dataset, cut: bool = False) -> Flat:
    """The dataset's rows on the host.

    Args:
      dataset: the dataset.
      cut: end a segment also where the next row's observation is not this one's next observation.
    """
    transition = jax.tree.map(lambda x: np.asarray(x, np.float32), dataset.transition)
    end = np.asarray(dataset.remaining) == 1
    if cut:
        end |= transition.discount == 0
        bits = [np.ascontiguousarray(x).view(np.uint32) for x in (
            transition.next_observation[:-1], transition.observation[1:]
        )]  # fmt: skip
        end[:-1] |= np.any(bits[0] != bits[1], axis=1)
    return Flat(
        transition=transition,
        timestep=np.asarray(dataset.timestep),
        return_to_go=np.asarray(dataset.return_to_go),
        segment_end=end,
    )


def _pad(columns: Rows) -> Rows:
    """A row after each segment that holds the last next observation."""
    last = np.flatnonzero(columns["terminals"] | columns["timeouts"])
    new = {
        "observations": columns["next_observations"][last],
        "actions": 0,
        "rewards": 0,
        "terminals": False,
        "timeouts": True,
        "timesteps": columns["timesteps"][last] + 1,
        "returns_to_go": 0,
    }
    columns = columns | {"timeouts": np.zeros_like(columns["timeouts"])}
    return {name: np.insert(columns[name], last + 1, row, axis=0) for name, row in new.items()}


def _write_episodes(
    storage: MinariStorage, flat: Flat, task: Task, console: reporting.Console
) -> None:
    last = np.flatnonzero(flat.segment_end)
    first = np.append(0, last[:-1] + 1)
    infos = _infos(flat, task)

    def episodes(index: slice) -> Iterator[EpisodeBuffer]:
        t = flat.transition
        for start, stop in zip(first[index], last[index] + 1):
            terminated = t.discount[start:stop] == 0
            truncated = np.zeros_like(terminated)
            truncated[-1] = not terminated[-1]
            yield EpisodeBuffer(
                observations=np.append(
                    t.observation[start:stop], t.next_observation[stop - 1 : stop], axis=0
                ),
                actions=t.action[start:stop],
                rewards=t.reward[start:stop],
                terminations=terminated,
                truncations=truncated,
                infos={name: values[start:stop] for name, values in infos.items()},
            )

    with reporting.progress(console, "minari", len(flat.timestep), unit="transition") as advance:
        for begin in range(0, len(last), _BATCH):
            index = slice(begin, begin + _BATCH)
            storage.update_episodes(episodes(index))
            advance(int(np.sum(last[index] + 1 - first[index])))


def _infos(flat: Flat, task: Task) -> dict[str, np.ndarray]:
    """What a reader could not count and add up from the episodes alone."""
    # Of the transitions only the reward matters here: no others are copied.
    nothing = np.zeros((len(flat.timestep), 0), np.float32)
    bare = flat.transition._replace(observation=nothing, action=nothing, next_observation=nothing)
    plain = make_dataset(task, bare, flat.segment_end)
    if np.array_equal(plain.timestep, flat.timestep) and np.array_equal(
        plain.return_to_go, flat.return_to_go
    ):
        return {}
    return {
        "timesteps": np.asarray(flat.timestep, np.int32),
        "returns_to_go": np.asarray(flat.return_to_go, np.float32),
    }


def _specification(task: Task, console: reporting.Console) -> EnvSpec | None:
    """The specification that makes the environment in which the task is evaluated."""
    if not task.environment:
        return None
    try:
        env = envs.make(task)
    except UserError as error:
        console.print(f"the dataset will not say which environment it is of: {error}")
        return None
    env.close()
    spec = copy.deepcopy(env.spec)
    # Gymnasium's wrapper that clips actions has an unbounded action space; the data has [-1, 1].
    kept = (w for w in spec.additional_wrappers if w.name != gymnasium.wrappers.ClipAction.__name__)
    spec.additional_wrappers = tuple(kept)
    return spec


def _box(bound: float, size: int) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(-bound, bound, (size,), np.float32)
