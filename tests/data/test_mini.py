"""The bundled files and how they are cut."""

import importlib.resources

import jax
import numpy as np
import pytest
from minari.dataset.minari_dataset import EpisodeData

from tgcvg_jax import data, tasks
from tgcvg_jax.data import minari, mini
from tgcvg_jax.types import Task, UserError

MINIS = [name for name in tasks.TASKS if name.endswith("-mini")]
TASK = Task("toy-v0", "", observation_dim=3, action_dim=2, episode_length=9)


def make_episodes(lengths, terminated, seed=0):
    rng = np.random.default_rng(seed)
    return [
        EpisodeData(
            id=i,
            observations=rng.normal(size=(n + 1, 3)).astype(np.float32),
            actions=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            rewards=rng.normal(size=n).astype(np.float32),
            terminations=np.arange(n) == (n - 1 if end else n),
            truncations=np.zeros(n, bool),
            infos={},
        )
        for i, (n, end) in enumerate(zip(lengths, terminated))
    ]


@pytest.mark.parametrize("lengths", [(1,), (4, 1, 7), (1, 1, 1), (9, 2)])
def test_file_gives_the_same_dataset_as_the_episodes(tmp_path, lengths):
    episodes = make_episodes(lengths, [i % 2 == 0 for i in range(len(lengths))])
    mini.write(tmp_path / "toy.hdf5", episodes, {"description": "toy"})
    cut = mini.read(tmp_path / "toy.hdf5", TASK)
    whole = minari.from_episodes("toy", TASK, episodes)
    assert jax.tree.structure(cut) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_choice_has_the_whole_sets_distribution():
    returns = np.random.default_rng(0).permutation(np.arange(1000.0))
    index = mini.choose(returns, 50)
    assert (np.diff(index) > 0).all() and len(index) == 50
    assert abs(returns[index].mean() - returns.mean()) < 1
    np.testing.assert_array_equal(mini.choose(returns, 5000), np.arange(1000))


def test_there_are_three():
    assert len(MINIS) == 3


@pytest.mark.parametrize("name", MINIS)
def test_bundled(name):
    task = tasks.TASKS[name]
    dataset = data.load(name)
    assert 19_500 <= dataset.size <= 20_500
    assert dataset.transition.observation.shape[1] == task.observation_dim
    assert all(x.dtype == np.float32 for x in dataset.transition)
    file = importlib.resources.files("tgcvg_jax.data") / "bundled" / task.sources[0].name
    assert len(file.read_bytes()) < 2_000_000
    # Inside an episode each transition starts where the one before ended.
    remaining = np.asarray(dataset.remaining)
    inside = np.flatnonzero(remaining > 1)
    np.testing.assert_array_equal(
        dataset.transition.next_observation[inside], dataset.transition.observation[inside + 1]
    )
    # Whole episodes: they end by falling, or after 1000 steps.
    last = np.flatnonzero(remaining == 1)
    fell = np.asarray(dataset.transition.discount)[last] == 0
    assert (fell | (np.asarray(dataset.timestep)[last] == task.episode_length - 1)).all()
    assert np.asarray(dataset.transition.discount).sum() == dataset.size - fell.sum()


def test_damaged_file(tmp_path):
    (tmp_path / "toy.hdf5").write_bytes(b"text")
    with pytest.raises(UserError, match="not an HDF5 file"):
        mini.read(tmp_path / "toy.hdf5", TASK)
