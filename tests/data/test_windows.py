"""Windows never cross an episode, and sampling is uniform over all of them."""

import jax
import numpy as np
import pytest

from tgcvg_jax.data.windows import (
    num_windows,
    pack,
    require_windows,
    sample_starts,
    take_windows,
    unpack,
)
from tgcvg_jax.types import UserError


def draw(dataset, length, key, batch_size=512):
    return sample_starts(key, dataset.order, dataset.num_starts, length, batch_size)


@pytest.mark.parametrize("seed", range(4))
def test_no_window_crosses_an_episode(make, random_lengths, seed):
    dataset = make(random_lengths(seed))
    for length in range(1, len(dataset.num_starts)):
        starts = draw(dataset, length, jax.random.key(length))
        windows = np.asarray(take_windows(dataset.transition.observation, starts, length))
        assert windows.shape == (512, length, 2)
        assert (windows[:, :, 0] == windows[:, :1, 0]).all()  # one episode
        assert (np.diff(windows[:, :, 1], axis=1) == 1).all()  # step after step


def test_every_window_is_drawn_equally_often(make):
    dataset = make((3, 6, 1, 4))
    count = num_windows(dataset, 3)
    assert count == 1 + 4 + 0 + 2
    starts = np.asarray(draw(dataset, 3, jax.random.key(0), 14_000))
    found, times = np.unique(starts, return_counts=True)
    assert len(found) == count
    np.testing.assert_allclose(times / 14_000, 1 / count, rtol=0.1)


def test_traced_length_gives_the_same_starts(make):
    dataset = make((3, 6, 1, 4))
    traced = jax.jit(lambda length: draw(dataset, length, jax.random.key(1), 64))
    for length in (1, 3, 6):
        np.testing.assert_array_equal(traced(length), draw(dataset, length, jax.random.key(1), 64))


def test_pack_and_unpack(make):
    transition = make((3, 2)).transition
    rows = pack(transition)
    assert rows.shape == (5, 2 * 2 + 1 + 2)
    for a, b in zip(unpack(rows, 2, 1), transition):
        np.testing.assert_array_equal(a, b)
    windows = unpack(take_windows(rows, np.array([0, 3]), 2), 2, 1)
    assert windows.observation.shape == (2, 2, 2) and windows.reward.shape == (2, 2)


def test_no_window_is_an_error_that_says_how_long_episodes_are(make):
    dataset = make((3, 6))
    require_windows(dataset, 6, "K")
    with pytest.raises(UserError, match=r"window of 7 transitions \(K\).*longest episode has 6"):
        require_windows(dataset, 7, "K")
