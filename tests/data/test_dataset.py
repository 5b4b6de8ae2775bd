"""Dataset: its index against brute force, joining, splitting, flattening."""

import numpy as np
import pytest

from tgcvg_jax import data
from tgcvg_jax.data.windows import num_windows
from tgcvg_jax.types import SYNTHETIC, Trajectories, Transition


def check_index(dataset, episodes):
    """`order` and `num_starts` against all starts, tried one by one."""
    episodes = np.asarray(episodes)
    longest = len(dataset.num_starts) - 1
    for length in range(1, longest + 1):
        starts = [
            i
            for i in range(dataset.size - length + 1)
            if len(set(episodes[i : i + length].tolist())) == 1
        ]
        assert num_windows(dataset, length) == len(starts)
        assert sorted(np.asarray(dataset.order[: len(starts)]).tolist()) == starts
    assert num_windows(dataset, longest + 1) == 0
    assert sorted(np.asarray(dataset.order).tolist()) == list(range(dataset.size))


@pytest.mark.parametrize("seed", range(4))
def test_index_by_brute_force(make, random_lengths, seed):
    lengths = random_lengths(seed)
    dataset = make(lengths, seed)
    check_index(dataset, dataset.transition.observation[:, 0])
    np.testing.assert_array_equal(dataset.timestep, dataset.transition.observation[:, 1])
    assert len(dataset.num_starts) == 1 + max(lengths)


def test_return_to_go_by_brute_force(make):
    dataset = make((5, 1, 3))
    reward = np.asarray(dataset.transition.reward, np.float64)
    expected = [reward[0:5][i:].sum() for i in range(5)] + [reward[5]]
    expected += [reward[6:9][i:].sum() for i in range(3)]
    np.testing.assert_allclose(dataset.return_to_go, expected, rtol=1e-6)
    np.testing.assert_allclose(
        data.episode_returns(dataset), [expected[0], expected[5], expected[6]], rtol=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_concatenate(make, random_lengths, seed):
    first, second = random_lengths(seed), random_lengths(seed + 10)
    joined = data.concatenate([make(first), make(second, source=SYNTHETIC)])
    np.testing.assert_array_equal(joined.source, np.repeat([0, 1], [sum(first), sum(second)]))
    check_index(joined, np.repeat(np.arange(len(first) + len(second)), [*first, *second]))
    assert joined.task.name == "toy-v0"


@pytest.mark.parametrize("seed", range(3))
def test_split_never_crosses(make, random_lengths, seed):
    lengths = random_lengths(seed + 20)
    dataset = make(lengths)
    for size in {1, dataset.size // 2, dataset.size - 1} - {0, dataset.size}:
        parts = data.split(dataset, size)
        assert [part.size for part in parts] == [size, dataset.size - size]
        for part, rows in zip(parts, (slice(0, size), slice(size, None))):
            episode = np.asarray(dataset.transition.observation)[rows, 0]
            check_index(part, episode)
            np.testing.assert_array_equal(part.timestep, dataset.timestep[rows])
            np.testing.assert_array_equal(part.return_to_go, dataset.return_to_go[rows])


@pytest.mark.parametrize("seed", range(3))
def test_select_keeps_windows_whole(make, random_lengths, seed):
    """Any rows: a window lies in one episode and has no gap."""
    dataset = make(random_lengths(seed + 30))
    keep = np.random.default_rng(seed).random(dataset.size) < 0.7
    keep[0] = True
    rows = np.flatnonzero(keep)
    part = data.select(dataset, keep)
    episode = np.asarray(dataset.transition.observation)[rows, 0]
    # Equal numbers: neighbours in an episode of which none in between is missing.
    check_index(part, 1000 * episode + rows - np.arange(len(rows)))
    np.testing.assert_array_equal(part.timestep, dataset.timestep[rows])
    np.testing.assert_array_equal(part.return_to_go, dataset.return_to_go[rows])
    np.testing.assert_array_equal(part.transition.action, dataset.transition.action[rows])


def test_flatten_drops_padding():
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]], bool)
    step = np.arange(12).reshape(4, 3)
    vector = step[..., None].astype(np.float32)
    transition = Transition(vector, vector, step, np.ones((4, 3)), vector)
    flat = data.flatten(Trajectories(transition, step, 2 * step, mask))
    np.testing.assert_array_equal(flat.timestep, [0, 1, 6, 7, 8, 9])
    np.testing.assert_array_equal(flat.return_to_go, [0, 2, 12, 14, 16, 18])
    np.testing.assert_array_equal(flat.segment_end, [0, 1, 0, 0, 1, 1])
    assert flat.transition.observation.shape == (6, 1)
