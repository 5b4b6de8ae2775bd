"""Building, joining and cutting datasets."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax.types import ORIGINAL, SYNTHETIC, Dataset, Task, Trajectories, Transition


def make_dataset(
    task: Task,
    transition: Transition,
    episode_end: np.ndarray,
    *,
    source: int | np.ndarray = ORIGINAL,
    timestep: np.ndarray | None = None,
    return_to_go: np.ndarray | None = None,
) -> Dataset:
    """A dataset from transitions in order, episode after episode.

    Args:
      task: the task.
      transition: numpy fields [M, ...], converted to float32 on the device.
      episode_end: [M] bool, True on the last transition of each episode. The last row always ends
        an episode.
      source: ORIGINAL, SYNTHETIC, or one value a row.
      timestep: [M], where episodes do not start at step 0 (synthetic segments).
      return_to_go: [M], where rewards after the segment count too.

    Returns:
      The dataset, on the default device.
    """
    size = len(episode_end)
    end = np.array(episode_end, bool)
    end[-1] = True
    index = np.arange(size, dtype=np.int32)  # not 64 bits: files hold up to 4 million rows
    ends = np.flatnonzero(end).astype(np.int32)
    length = segment_lengths(end)
    last = np.repeat(ends, length)  # [M] index of the episode's last row
    if timestep is None:
        timestep = index - np.repeat(ends + 1 - length, length)
    if return_to_go is None:
        reward = np.asarray(transition.reward)
        total = np.cumsum(reward, dtype=np.float64)
        return_to_go = (total[last] - total + reward).astype(np.float32)
    return _index(
        task,
        transition=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), transition),
        timestep=timestep,
        remaining=last - index + 1,
        return_to_go=return_to_go,
        source=np.broadcast_to(np.asarray(source, np.uint8), (size,)),
    )


def from_columns(columns: Mapping[str, np.ndarray], terminals: str = "terminals") -> Transition:
    """Columns under D4RL's names as a Transition: here, and only here, terminals become discounts.

    Args:
      columns: observations, actions, rewards, next_observations [M, ...], and the terminals.
      terminals: name of that column (Minari: terminations).
    """
    return Transition(
        observation=columns["observations"],
        action=columns["actions"],
        reward=columns["rewards"],
        discount=1.0 - columns[terminals].astype(np.float32),
        next_observation=columns["next_observations"],
    )


def _index(task, *, transition, timestep, remaining, return_to_go, source) -> Dataset:
    remaining = np.asarray(remaining, np.int32)
    longest = int(remaining.max())
    at_least = np.cumsum(np.bincount(remaining, minlength=longest + 1)[::-1])[::-1]
    return Dataset(
        transition=transition,
        timestep=jnp.asarray(timestep, jnp.int32),
        remaining=jnp.asarray(remaining),
        return_to_go=jnp.asarray(return_to_go, jnp.float32),
        source=jnp.asarray(source, jnp.uint8),
        order=jnp.asarray(np.argsort(-remaining, kind="stable"), jnp.int32),
        num_starts=jnp.asarray(at_least, jnp.int32),
        task=task,
    )


def concatenate(datasets: Sequence[Dataset]) -> Dataset:
    """The union, in order, with the first one's task. Fusing original and synthetic data is this:
    uniform sampling from the union is the paper's random shuffling (TGCVG, section 4.3).
    """
    join = lambda name: jnp.concatenate([getattr(d, name) for d in datasets])  # noqa: E731
    transition = jax.tree.map(lambda *x: jnp.concatenate(x), *[d.transition for d in datasets])
    fields = ("timestep", "remaining", "return_to_go", "source")
    return _index(datasets[0].task, transition=transition, **{f: join(f) for f in fields})


def select(dataset: Dataset, keep: np.ndarray) -> Dataset:
    """Some of the transitions, in the order they had.

    An episode of which only a part is kept falls into runs of neighbouring rows, each an episode to
    windows; steps and returns-to-go stay those of the whole.

    Args:
      dataset: the dataset.
      keep: [M] bool, True at least once.
    """
    rows = np.flatnonzero(keep).astype(np.int32)
    ends = np.asarray(dataset.remaining)[rows] == 1
    ends |= np.append(np.diff(rows) != 1, True)
    last = np.repeat(np.flatnonzero(ends), segment_lengths(ends))  # of the row's run
    # On the host: on the device, every new size would have to be compiled.
    pick = lambda x: jnp.asarray(np.asarray(x)[rows])  # noqa: E731
    return _index(
        dataset.task,
        transition=jax.tree.map(pick, dataset.transition),
        timestep=pick(dataset.timestep),
        remaining=last - np.arange(len(rows)) + 1,
        return_to_go=pick(dataset.return_to_go),
        source=pick(dataset.source),
    )


def split(dataset: Dataset, size: int) -> tuple[Dataset, Dataset]:
    """The first `size` transitions and the rest; no window of either crosses the cut."""
    first = np.arange(dataset.size) < size
    return select(dataset, first), select(dataset, ~first)


def split_holdout(dataset: Dataset, fraction: float, most: int) -> tuple[Dataset, Dataset]:
    """What a model learns from, and the last rows, by which it is judged.

    Args:
      dataset: at least two transitions.
      fraction: held out, but at least one row and
      most: at most this many.
    """
    size = max(min(int(fraction * dataset.size), most), 1)
    return split(dataset, dataset.size - size)


def head(dataset: Dataset, num_transitions: int) -> Dataset:
    """The first whole episodes that hold at least `num_transitions`, or all if there are fewer."""
    ends = np.flatnonzero(np.asarray(dataset.remaining) == 1) + 1
    enough = ends[np.searchsorted(ends, min(num_transitions, dataset.size))]
    return split(dataset, int(enough))[0] if enough < dataset.size else dataset


@dataclasses.dataclass(frozen=True)
class Flat:
    """Trajectories as consecutive rows on the host, padding removed.

    Attributes:
      transition: numpy fields [M, ...].
      timestep: [M] int32.
      return_to_go: [M] float32.
      segment_end: [M] bool, True on the last row of each trajectory.
    """

    transition: Transition
    timestep: np.ndarray
    return_to_go: np.ndarray
    segment_end: np.ndarray


def flatten(trajectories: Trajectories) -> Flat:
    """Trajectories to rows; a trajectory whose mask is empty vanishes."""
    mask = np.asarray(trajectories.mask)
    length = mask.sum(axis=1, keepdims=True)
    end = np.arange(mask.shape[1]) == length - 1
    pick = lambda x: np.asarray(x)[mask]  # noqa: E731
    return Flat(
        transition=jax.tree.map(pick, trajectories.transition),
        timestep=pick(trajectories.timestep),
        return_to_go=pick(trajectories.return_to_go),
        segment_end=end[mask],
    )


def fingerprint(dataset: Dataset) -> str:
    """A short text that changes with any transition, to tell whose data a checkpoint is of."""
    check = 0
    for x in (*jax.tree.leaves(dataset.transition), dataset.remaining):
        check = zlib.crc32(np.ascontiguousarray(np.asarray(x)).view(np.uint8).data, check)
    return f"{dataset.size} transitions, crc32 {check:08x}"


def episode_starts(dataset: Dataset) -> np.ndarray:
    """[M] bool, True on the first row of each episode or segment."""
    return np.append(True, np.asarray(dataset.remaining)[:-1] == 1)


def first_rows(dataset: Dataset) -> np.ndarray:
    """[M], the first row of each row's episode or segment."""
    return np.maximum.accumulate(np.where(episode_starts(dataset), np.arange(dataset.size), 0))


def segment_lengths(end: np.ndarray) -> np.ndarray:
    """[E] int32, the lengths of segments of which `end` [M] bool marks the last rows."""
    return np.diff(np.flatnonzero(end).astype(np.int32), prepend=np.int32(-1))


def episode_returns(dataset: Dataset) -> np.ndarray:
    """Undiscounted return of each episode, [E]: of a segment, from its first row on."""
    return np.asarray(dataset.return_to_go)[episode_starts(dataset)]


def discounted_returns(dataset: Dataset, reward: np.ndarray, discount: float) -> np.ndarray:
    """sum_{i >= t} discount^{i - t} r_i to the end of the episode, time-outs included, [M] float64.

    Args:
      dataset: whose episodes.
      reward: [M], the rewards to sum.
      discount: gamma.
    """
    result = np.array(reward, np.float64)
    order, num_starts = np.asarray(dataset.order), np.asarray(dataset.num_starts)
    for remaining in range(2, len(num_starts)):  # rows by their distance from the episode's end
        above = num_starts[remaining + 1] if remaining + 1 < len(num_starts) else 0
        rows = order[above : num_starts[remaining]]
        result[rows] += discount * result[rows + 1]
    return result


def blank(task: Task, size: int = 2_000) -> Dataset:
    """Data for shapes alone: two original episodes of different returns and a synthetic one, so
    that any way to mix and normalise them works; each is long enough for any window in use.
    """
    s, a = task.observation_dim, task.action_dim
    episode = np.repeat(np.arange(3), size)
    zeros = lambda *shape: np.zeros((3 * size, *shape), np.float32)  # noqa: E731
    reward = (episode == 1).astype(np.float32)
    transition = Transition(zeros(s), zeros(a), reward, zeros() + 1, zeros(s))
    end = np.append(np.diff(episode) != 0, True)
    source = np.where(episode == 2, SYNTHETIC, ORIGINAL)
    return make_dataset(task, transition, end, source=source)
