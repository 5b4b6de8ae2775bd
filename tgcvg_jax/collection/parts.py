"""Episodes, and folders of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tgcvg_jax import config as config_lib
from tgcvg_jax.data import concatenate, mini
from tgcvg_jax.files import atomic_path
from tgcvg_jax.types import Dataset, Task, UserError, one_line

IDENTITY = "identity.json"


class Episode(NamedTuple):
    """One episode, or one segment of an endless one.

    Attributes:
      observations: [T + 1, S] float32.
      actions: [T, A] float32.
      rewards: [T] float32.
      terminated: whether the MDP ended with the last step; else it was cut.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool

    @property
    def terminations(self) -> np.ndarray:
        """[T] bool, as in a Minari episode."""
        flags = np.zeros(len(self.actions), bool)
        flags[-1] = self.terminated
        return flags


class EpisodeBuilder:
    """Gathers the steps of an episode."""

    def __init__(self, observation: np.ndarray):
        self.observations, self.actions, self.rewards = [observation], [], []

    def add(self, action: np.ndarray, reward: float, next_observation: np.ndarray) -> None:
        """One step."""
        self.actions.append(action)
        self.rewards.append(reward)
        self.observations.append(next_observation)

    def finish(self, terminated: bool) -> Episode:
        """The episode."""
        columns = (self.observations, self.actions, self.rewards)
        return Episode(*(np.asarray(column, np.float32) for column in columns), terminated)


class Parts:
    """A folder of part files of whole episodes.

    Args:
      directory: created with the first part.
      identity: JSON-ready dict of all that determines the episodes.

    Raises:
      UserError: the folder holds parts of another identity, or damaged ones.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]):
        self._directory = directory
        self._identity = json.loads(json.dumps(dict(identity)))
        self.rows: list[int] = []  # of each part
        file = directory / IDENTITY
        if not file.exists():
            return
        try:
            found = json.loads(file.read_text())
            while (part := self._path(len(self.rows))).exists():
                self.rows.append(mini.count(part))
        except (ValueError, UserError) as e:
            raise UserError(
                f"{directory} is damaged ({one_line(e)}); delete it to collect again"
            ) from e
        if changed := config_lib.difference(found, self._identity):
            raise UserError(
                f"{directory} was collected with another configuration ({'; '.join(changed)}); "
                "choose another --workdir or delete it"
            )

    @property
    def size(self) -> int:
        """Transitions on disk."""
        return sum(self.rows)

    def add(self, episodes: list[Episode]) -> None:
        """Writes the next part."""
        self._directory.mkdir(parents=True, exist_ok=True)
        if not (file := self._directory / IDENTITY).exists():
            for orphan in self._directory.glob("part_*.hdf5"):  # without identity nobody's
                orphan.unlink()
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(self._identity))
        mini.write(self._path(len(self.rows)), episodes, {}, compression=1)
        self.rows.append(sum(len(e.actions) for e in episodes))

    def truncate(self, size: int) -> None:
        """Forgets the parts beyond the first `size` transitions."""
        while self.size > size:
            self._path(len(self.rows) - 1).unlink()
            self.rows.pop()

    def read(self, task: Task, size: int | None = None) -> Dataset:
        """The parts within the first `size` transitions, as one dataset."""
        ends = np.cumsum(self.rows)
        count = len(ends) if size is None else int(np.searchsorted(ends, size, side="right"))
        return concatenate([mini.read(self._path(i), task) for i in range(count)])

    def _path(self, part: int) -> Path:
        return self._directory / f"part_{part:06d}.hdf5"
