import numpy as np
import pytest

from tgcvg_jax.collection.parts import EpisodeBuilder, Parts
from tgcvg_jax.types import UserError


def episode(task, length, terminated, seed=0):
    rng = np.random.default_rng(seed)
    builder = EpisodeBuilder(rng.normal(size=task.observation_dim))
    for _ in range(length):
        action = rng.uniform(-1, 1, task.action_dim)
        builder.add(action, rng.normal(), rng.normal(size=task.observation_dim))
    return builder.finish(terminated)


@pytest.fixture
def two_parts(tmp_path, task):
    parts = Parts(tmp_path / "parts", {"seed": 1})
    episodes = [episode(task, 4, True, 0), episode(task, 3, False, 1), episode(task, 5, True, 2)]
    parts.add(episodes[:2])
    parts.add(episodes[2:])
    return parts, episodes


def test_read_back(two_parts, task, tmp_path):
    parts, episodes = two_parts
    assert parts.rows == [7, 5]
    dataset = Parts(tmp_path / "parts", {"seed": 1}).read(task)
    join = lambda name, rows: np.concatenate([getattr(e, name)[rows] for e in episodes])  # noqa: E731
    t = dataset.transition
    np.testing.assert_array_equal(t.observation, join("observations", slice(None, -1)))
    np.testing.assert_array_equal(t.next_observation, join("observations", slice(1, None)))
    np.testing.assert_array_equal(t.action, join("actions", slice(None)))
    np.testing.assert_array_equal(t.reward, join("rewards", slice(None)))
    np.testing.assert_array_equal(np.flatnonzero(t.discount == 0), [3, 11])
    np.testing.assert_array_equal(np.flatnonzero(dataset.remaining == 1), [3, 6, 11])


def test_first_parts_alone(two_parts, task):
    parts, _ = two_parts
    assert parts.read(task, 7).size == 7
    assert parts.read(task, 11).size == 7
    parts.truncate(7)
    assert parts.rows == [7] and parts.read(task).size == 7


def test_another_run_is_refused(two_parts, tmp_path):
    with pytest.raises(UserError, match="seed: 1 -> 2"):
        Parts(tmp_path / "parts", {"seed": 2})


def test_damage_is_named(two_parts, tmp_path):
    (tmp_path / "parts" / "part_000001.hdf5").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"part_000001.*delete it"):
        Parts(tmp_path / "parts", {"seed": 1})


def test_an_episode_like_minari(task):
    flags = episode(task, 3, True).terminations
    np.testing.assert_array_equal(flags, [False, False, True])
    assert not episode(task, 2, False).terminations.any()
