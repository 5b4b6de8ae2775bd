"""Reading Minari datasets from a local store. Nothing here uses the network.

A termination gives discount 0, a truncation is a time-out, and an episode that ends with neither
is taken as truncated. Only flat observations and actions (one-dimensional Box spaces) are read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import gymnasium
import minari
import numpy as np
from minari.dataset.minari_dataset import DATASET_ID_RE, EpisodeData

from tgcvg_jax.data.dataset import from_columns, make_dataset
from tgcvg_jax.data.validate import check_fields, open_hdf5
from tgcvg_jax.types import Dataset, Source, Task, UserError, one_line

_FILE = "main_data.hdf5"


def find(dataset_id: str | Path, store: str | Path | None = None) -> Path | None:
    """The directory of a dataset, or None.

    Args:
      dataset_id: a directory that holds `data/main_data.hdf5`, or an id, looked for in `store`,
        then in $MINARI_DATASETS_PATH, or ~/.minari/datasets if that is not set.
      store: a further store.
    """
    name = str(dataset_id)
    places = [Path(name).expanduser()]
    if is_id(name):  # so that no id climbs out of the store
        places += [root / name for root in stores(store)]
    return next((place for place in places if (place / "data" / _FILE).is_file()), None)


def is_id(name: str) -> bool:
    """Whether a name has the form of a Minari id, `namespace/name-v0`."""
    match = DATASET_ID_RE.fullmatch(name)
    return match is not None and match["version"] is not None


def stores(store: str | Path | None = None) -> list[Path]:
    """Where ids are looked for, in order."""
    default = os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets"
    return [Path(root).expanduser() for root in (store, default) if root is not None]


def require(dataset_id: str | Path, store: str | Path | None = None) -> Path:
    """`find`, or a UserError that says how to get the dataset."""
    place = find(dataset_id, store)
    if place is not None:
        return place
    name = str(dataset_id)
    if not is_id(name):
        raise UserError(f"{name}: no Minari dataset there (it would hold data/{_FILE})")
    looked = ", ".join(str(root) for root in stores(store))
    raise UserError(
        f"{name}: no such Minari dataset in {looked}; get it with `minari download {name}`"
    )


def make_task(dataset_id: str | Path, store: str | Path | None = None) -> Task:
    """The task that a dataset's metadata describes.

    Args:
      dataset_id: an id or a directory, as in `find`.
      store: as in `find`.

    Raises:
      UserError: no such dataset, unreadable metadata, or spaces that are not flat boxes.
    """
    place = require(dataset_id, store)
    dataset = _open(place)
    name, metadata, spec = dataset.id, dataset.storage.metadata, dataset.env_spec
    observation_dim, action_dim = flat_dims(name, dataset.observation_space, dataset.action_space)
    parts = re.sub(r"-v\d+$", "", name).split("/")
    return Task(
        name=name,
        environment=spec.id if spec else "",
        observation_dim=observation_dim,
        action_dim=action_dim,
        episode_length=(spec and spec.max_episode_steps) or _longest(place, dataset),
        min_score=metadata.get("ref_min_score"),
        max_score=metadata.get("ref_max_score"),
        family="-".join(parts[-2:]),
        sources=(Source("minari", str(dataset_id)),),
    )


def episodes(dataset_id: str | Path, store: str | Path | None = None) -> list[EpisodeData]:
    """All episodes of a dataset, as Minari gives them.

    Raises:
      UserError: no such dataset, it cannot be read, or it has no episodes.
    """
    place = require(dataset_id, store)
    with open_hdf5(place / "data" / _FILE):
        found = list(_open(place).iterate_episodes())
    if not found:
        raise UserError(f"{place}: has no episodes; the dataset is empty")
    return found


def read(
    dataset_id: str | Path, task: Task | None = None, store: str | Path | None = None
) -> Dataset:
    """Reads a Minari dataset.

    Args:
      dataset_id: an id or a directory, as in `find`.
      task: the task that the data is for; by default the one of its metadata.
      store: as in `find`.

    Returns:
      The dataset, on the default device.

    Raises:
      UserError: no such dataset, or one that cannot be read or does not fit the task.
    """
    own_task = make_task(dataset_id, store)  # also checks the spaces
    robots = {re.sub(r"-v\d+$", "", t.environment) for t in (own_task, task or own_task)}
    if len(robots - {""}) > 1:
        raise UserError(
            f"{dataset_id}: was collected in {own_task.environment}, but {task.name} is in "
            f"{task.environment}; is this dataset of another environment?"
        )
    return from_episodes(str(dataset_id), task or own_task, episodes(dataset_id, store))


def from_episodes(where: str, task: Task, episodes: list[EpisodeData]) -> Dataset:
    """A dataset from episodes of T+1 observations and T actions.

    Args:
      where: the dataset's name, for messages.
      task: the task.
      episodes: at least one; each has observations [T+1, S], actions [T, A], rewards,
        terminations and truncations [T].

    Raises:
      UserError: fields that do not fit together or the task.
    """
    for number, episode in enumerate(episodes):
        if len(episode.observations) != len(episode.actions) + 1:
            raise UserError(
                f"{where}: episode {number} has {len(episode.observations)} observations and "
                f"{len(episode.actions)} actions; expected one observation more than actions"
            )

    def join(name: str, rows: slice = slice(None)) -> np.ndarray:
        return np.concatenate([getattr(episode, name)[rows] for episode in episodes])

    fields = check_fields(
        where,
        task,
        {
            "observations": join("observations", slice(None, -1)),
            "next_observations": join("observations", slice(1, None)),
            **{n: join(n) for n in ("actions", "rewards", "terminations", "truncations")},
        },
    )
    end = (fields["terminations"] == 1) | (fields["truncations"] == 1)
    end[np.cumsum([len(episode.actions) for episode in episodes]) - 1] = True
    return make_dataset(task, from_columns(fields, "terminations"), end)


def flat_dims(
    name: str, observation_space: gymnasium.Space, action_space: gymnasium.Space
) -> tuple[int, int]:
    """(S, A) of an environment's spaces.

    Raises:
      UserError: a space is not a one-dimensional Box, or the actions' box is not [-1, 1].
    """
    for kind, space in (("observation", observation_space), ("action", action_space)):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise UserError(
                f"{name}: its {kind} space is {type(space).__name__}{list(space.shape or [])}; "
                "only one-dimensional Box spaces are supported"
            )
    if not (np.all(action_space.low == -1) and np.all(action_space.high == 1)):
        raise UserError(f"{name}: its action box is not [-1, 1]; normalise the actions first")
    return observation_space.shape[0], action_space.shape[0]


def _open(place: Path) -> minari.MinariDataset:
    try:
        return minari.MinariDataset(place / "data")
    except Exception as error:  # metadata is any JSON; minari checks it with bare assertions
        raise UserError(
            f"{place}: data/metadata.json is missing or damaged ({one_line(error)}); download or "
            "write the dataset again"
        ) from error


def _longest(place: Path, dataset: minari.MinariDataset) -> int:
    with open_hdf5(place / "data" / _FILE):
        metadata = dataset.storage.get_episode_metadata(dataset.episode_indices)
        return max(int(episode["total_steps"]) for episode in metadata)
