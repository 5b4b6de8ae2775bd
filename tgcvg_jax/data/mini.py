"""The bundled datasets: about 20,000 real transitions each, cut from larger Minari datasets.

A file holds each episode's T+1 observations one after another, so that nothing is stored twice:
`observations` [M + E, S], `actions` [M, A], `rewards` [M], and for each episode `lengths` [E] and
`terminated` [E] (False: it ended by time-out).

To make one again: `python -m tgcvg_jax.data.mini MINARI_DIRECTORY OUT.hdf5`.
"""

from __future__ import annotations

import argparse
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from minari.dataset.minari_dataset import EpisodeData

from tgcvg_jax.data import minari
from tgcvg_jax.data.dataset import from_columns, make_dataset
from tgcvg_jax.data.validate import check_fields, open_hdf5
from tgcvg_jax.files import atomic_path
from tgcvg_jax.types import Dataset, Task

TRANSITIONS = 20_000


def read_bundled(name: str, task: Task) -> Dataset:
    """Reads one of this package's files by its file name."""
    resource = importlib.resources.files("tgcvg_jax.data") / "bundled" / name
    with importlib.resources.as_file(resource) as path:
        return read(path, task)


def read(path: str | Path, task: Task) -> Dataset:
    """Reads a file that `write` made.

    Raises:
      UserError: the file cannot be read or does not fit the task.
    """
    with open_hdf5(path) as file:
        observations, actions, rewards = (
            file[name][()] for name in ("observations", "actions", "rewards")
        )
        lengths, terminated = file["lengths"][()], file["terminated"][()]
    last = np.cumsum(lengths) - 1  # [E] last transition of each episode
    end = np.zeros(len(actions), bool)
    end[last] = True
    terminals = np.zeros(len(actions), bool)
    terminals[last] = terminated
    extra = np.arange(len(lengths))  # one observation more in every episode before
    fields = check_fields(
        path,
        task,
        {
            "observations": np.delete(observations, last + extra + 1, axis=0),
            "next_observations": np.delete(observations, last + extra + 1 - lengths, axis=0),
            "actions": actions,
            "rewards": rewards,
            "terminals": terminals,
        },
    )
    return make_dataset(task, from_columns(fields), end)


def count(path: str | Path) -> int:
    """Number of transitions in a file that `write` made."""
    with open_hdf5(path) as file:
        return len(file["actions"])


def write(
    path: str | Path,
    episodes: Sequence[EpisodeData],
    attributes: Mapping[str, object],
    compression: int = 9,
) -> None:
    """Writes episodes as a bundled file.

    Args:
      path: the file.
      episodes: Minari episodes; terminations may stand only in an episode's last row.
      attributes: stored at the file's root.
      compression: of gzip, 1 (fast) to 9.
    """
    join = lambda name: np.concatenate([getattr(e, name) for e in episodes])  # noqa: E731
    names = ("observations", "actions", "rewards")
    arrays = {name: join(name).astype(np.float32) for name in names}
    arrays["lengths"] = np.array([len(e.actions) for e in episodes], np.int32)
    arrays["terminated"] = np.array([e.terminations[-1] for e in episodes], bool)
    assert join("terminations").sum() == arrays["terminated"].sum()
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            # One column a chunk: neighbours of the same quantity compress best.
            chunks = (len(array), 1)[: array.ndim]
            packing = dict(shuffle=True, compression="gzip", compression_opts=compression)
            file.create_dataset(name, data=array, chunks=chunks, **packing)
        file.attrs.update(attributes)


def choose(returns: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` episodes, evenly spaced by rank of return, in their original order.

    So the subset has the whole set's distribution of returns, without a random choice.
    """
    count = min(count, len(returns))
    ranks = ((np.arange(count) + 0.5) * len(returns) / count).astype(int)
    return np.sort(np.argsort(returns, kind="stable")[ranks])


def cut(source: str | Path, path: str | Path, transitions: int = TRANSITIONS) -> None:
    """Cuts about `transitions` transitions of whole episodes from a Minari dataset."""
    task, episodes = minari.make_task(source), minari.episodes(source)
    returns = np.array([e.rewards.sum(dtype=np.float64) for e in episodes])
    mean_length = np.mean([len(e.actions) for e in episodes])
    index = choose(returns, max(round(transitions / mean_length), 1))
    description = (
        f"{len(index)} of the {len(episodes)} episodes of {task.name}, evenly spaced by rank of "
        f"return (mean return {returns[index].mean():.1f}, of all {returns.mean():.1f})"
    )
    attributes = {
        "description": description,
        "environment": task.environment,
        "source": task.name,
        "episodes": len(index),
        "mean_return": returns[index].mean(),
    }
    write(path, [episodes[i] for i in index], attributes)
    print(f"{path}: {description}, {Path(path).stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Cuts a bundled dataset from a Minari dataset.")
    parser.add_argument("source", help="directory of the Minari dataset")
    parser.add_argument("path", help="HDF5 file to write")
    arguments = parser.parse_args()
    cut(arguments.source, arguments.path)
