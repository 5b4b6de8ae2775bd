"""Reading Minari datasets from a local store; `download` alone uses the network.

A termination gives discount 0, a truncation is a time-out, and an episode that ends with neither
is taken as truncated. Actions are one-dimensional Boxes; observations too, or (nested) dicts of
them, which are flattened as `gymnasium.spaces.flatten` does: their keys sorted, so for Gymnasium's
goal environments achieved goal, desired goal, observation.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
from minari.dataset.minari_dataset import DATASET_ID_RE, EpisodeData

from tgcvg_jax import tasks
from tgcvg_jax.data import download as web  # `download` is this module's own
from tgcvg_jax.data.dataset import from_columns, make_dataset
from tgcvg_jax.data.validate import check_fields, open_hdf5
from tgcvg_jax.types import Dataset, Source, Task, UserError, one_line

INFOS = ("timesteps", "returns_to_go")  # of episodes that begin in mid-episode, see `export`
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
    given = [root for root in (store, default) if root is not None]
    return [Path(root).expanduser().absolute() for root in given]  # Minari writes to no other


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

    The environment is the one that the metadata names for evaluation, or else the one of
    collection. The sets `mujoco/*` were made before MuJoCo 3.5 changed its contact margins, so
    Hopper's environment is `tgcvg-minari/Hopper-v5` (the other robots have no margins). What is
    not in the metadata of a published set comes from `tasks.TASKS`.

    Args:
      dataset_id: an id or a directory, as in `find`.
      store: as in `find`.

    Raises:
      UserError: no such dataset, unreadable metadata, or spaces that are not flat boxes.
    """
    place = require(dataset_id, store)
    dataset = _open(place)
    name, metadata = dataset.id, dataset.storage.metadata
    observation_dim, action_dim = flat_dims(name, dataset.observation_space, dataset.action_space)
    environment, kwargs, episode_length = _environment(name, metadata)
    known = tasks.TASKS.get(name)
    if known is not None:
        episode_length = episode_length or known.episode_length
    task = Task(
        name=name,
        environment=environment,
        environment_kwargs=kwargs,
        observation_dim=observation_dim,
        action_dim=action_dim,
        episode_length=episode_length or _longest(place, dataset),
        min_score=metadata.get("ref_min_score"),
        max_score=metadata.get("ref_max_score"),
        family=tasks.minari_family(name, environment),
        sources=(Source("minari", str(dataset_id)),),
    )
    if known is not None:
        filled = ("environment", "environment_kwargs") if not environment else ()
        filled += tuple(n for n in ("min_score", "max_score") if getattr(task, n) is None)
        task = dataclasses.replace(task, **{n: getattr(known, n) for n in filled})
    if task.domain in tasks.MAZES:
        task = dataclasses.replace(task, eval_episodes=tasks.MAZE_EPISODES)
    return task


def _environment(name: str, metadata: dict[str, Any]) -> tuple[str, str, int | None]:
    """Id, constructor's arguments as JSON and time limit of the evaluation environment."""
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    spec = json.loads(text) if text else {}
    environment, kwargs = spec.get("id", ""), spec.get("kwargs") or {}
    if environment.startswith(("tgcvg/", "tgcvg-minari/")) and environment in gymnasium.registry:
        # A specification repeats the arguments that the id stands for.
        own = gymnasium.registry[environment].kwargs
        kwargs = {key: value for key, value in kwargs.items() if own.get(key, ...) != value}
    if name.startswith("mujoco/") and f"tgcvg-minari/{environment}" in gymnasium.registry:
        environment = f"tgcvg-minari/{environment}"
    kwargs.pop("render_mode", None)
    text = json.dumps(kwargs, sort_keys=True) if kwargs else ""
    return environment, text, spec.get("max_episode_steps")


def episodes(dataset_id: str | Path, store: str | Path | None = None) -> list[EpisodeData]:
    """All episodes of a dataset, as Minari gives them, but with flat observations.

    Raises:
      UserError: no such dataset, it cannot be read, or it has no episodes.
    """
    place = require(dataset_id, store)
    dataset = _open(place)
    flat_dims(dataset.id, dataset.observation_space, dataset.action_space)

    def flat(episode: EpisodeData) -> EpisodeData:
        observations = _flatten(dataset.observation_space, episode.observations)
        return dataclasses.replace(episode, observations=observations)

    with open_hdf5(place / "data" / _FILE):
        found = [flat(episode) for episode in dataset.iterate_episodes()]
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
    own_task = make_task(dataset_id, store)
    robots = {tasks.robot_of(t.environment) for t in (own_task, task or own_task)}
    if len(robots - {""}) > 1:
        raise UserError(
            f"{dataset_id}: was collected in {own_task.environment}, but {task.name} is in "
            f"{task.environment}; is this dataset of another environment?"
        )
    task = task or own_task
    environments = {own_task.environment, task.environment} - {""}
    if len(environments) > 1:
        warnings.warn(
            f"{dataset_id}: was collected in {own_task.environment}, but {task.name} is scored in "
            f"{task.environment}",
            stacklevel=2,
        )
    return from_episodes(str(dataset_id), task, episodes(dataset_id, store))


def from_episodes(where: str, task: Task, episodes: list[EpisodeData]) -> Dataset:
    """A dataset from episodes of T+1 observations and T actions.

    Args:
      where: the dataset's name, for messages.
      task: the task.
      episodes: at least one; each has observations [T+1, S], actions [T, A], rewards,
        terminations and truncations [T]. If the `infos` of all hold `timesteps` or
        `returns_to_go` [T], these are used; otherwise they are counted and summed up.

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

    own = [name for name in INFOS if all(_has_info(episode, name) for episode in episodes)]
    fields = check_fields(
        where,
        task,
        {
            "observations": join("observations", slice(None, -1)),
            "next_observations": join("observations", slice(1, None)),
            **{n: join(n) for n in ("actions", "rewards", "terminations", "truncations")},
            **{n: np.concatenate([episode.infos[n] for episode in episodes]) for n in own},
        },
    )
    end = (fields["terminations"] == 1) | (fields["truncations"] == 1)
    end[np.cumsum([len(episode.actions) for episode in episodes]) - 1] = True
    return make_dataset(
        task,
        from_columns(fields, "terminations"),
        end,
        timestep=fields.get("timesteps"),
        return_to_go=fields.get("returns_to_go"),
    )


def _has_info(episode: EpisodeData, name: str) -> bool:
    return np.shape((episode.infos or {}).get(name)) == (len(episode.actions),)


def flat_dims(
    name: str, observation_space: gymnasium.Space, action_space: gymnasium.Space
) -> tuple[int, int]:
    """(S, A) of an environment's spaces; S is the size of a dict observation once it is flat.

    Raises:
      UserError: a space is not a one-dimensional Box, nor a dict of such observations, or the
        actions' box is not [-1, 1].
    """
    widths = []
    for kind, space in (("observation", observation_space), ("action", action_space)):
        leaves = _leaves(space) if kind == "observation" else [space]
        if not all(isinstance(x, gymnasium.spaces.Box) and len(x.shape) == 1 for x in leaves):
            raise UserError(
                f"{name}: its {kind} space is {type(space).__name__}{list(space.shape or [])}; "
                "only one-dimensional Box spaces and dicts of such observations are supported"
            )
        widths.append(sum(leaf.shape[0] for leaf in leaves))
    if not (np.all(action_space.low == -1) and np.all(action_space.high == 1)):
        raise UserError(f"{name}: its action box is not [-1, 1]; normalise the actions first")
    return widths[0], widths[1]


def _leaves(space: gymnasium.Space) -> list[gymnasium.Space]:
    if not isinstance(space, gymnasium.spaces.Dict):
        return [space]
    return [leaf for part in space.spaces.values() for leaf in _leaves(part)]


def _flatten(space: gymnasium.Space, values: Any) -> np.ndarray:
    """Observations of one episode [T+1, ...], flat: [T+1, S]."""
    if not isinstance(space, gymnasium.spaces.Dict):
        return values
    parts = [_flatten(part, values[key]) for key, part in space.spaces.items()]
    return np.concatenate(parts, axis=1)


def download(dataset_id: str, store: str | Path | None = None) -> Path:
    """Downloads a dataset into a store, by default the one that Minari itself would use.

    Raises:
      UserError: not an id, or the download failed; says how to get the dataset by hand.
    """
    if not is_id(dataset_id):
        raise UserError(f"{dataset_id}: is not a Minari id, which looks like namespace/name-v0")
    return web.fetch_minari(dataset_id, stores(store)[0])


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
