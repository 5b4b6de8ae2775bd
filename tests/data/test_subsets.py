"""Parts of the data by whole episodes."""

import dataclasses

import numpy as np
import pytest

from tgcvg_jax import data
from tgcvg_jax.data import subsets
from tgcvg_jax.types import UserError

LENGTHS = (4, 6, 3, 7, 5, 5, 10)


def episodes(dataset):
    """Episode numbers of the rows, of which each must be whole."""
    episode, step = np.asarray(dataset.transition.observation).T
    for number in np.unique(episode):
        np.testing.assert_array_equal(step[episode == number], np.arange(LENGTHS[int(number)]))
    return list(dict.fromkeys(episode.astype(int).tolist()))


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.9, 1.0])
def test_random_episodes_are_whole_and_just_enough(make, fraction):
    dataset = make(LENGTHS)
    part = subsets.random_episodes(dataset, fraction)
    chosen = episodes(part)
    assert chosen == sorted(chosen)
    assert part.size >= fraction * dataset.size
    assert any(part.size - LENGTHS[e] < fraction * dataset.size for e in chosen)
    np.testing.assert_array_equal(
        data.episode_returns(part), data.episode_returns(dataset)[np.array(chosen)]
    )


def test_random_parts_are_nested_and_of_a_seed(make):
    dataset = make(LENGTHS)
    chosen = lambda *arguments: set(episodes(subsets.random_episodes(dataset, *arguments)))  # noqa: E731
    for seed in range(3):
        assert chosen(0.2, seed) <= chosen(0.5, seed) <= chosen(0.8, seed)
    assert len({frozenset(chosen(0.3, seed)) for seed in range(10)}) > 3
    assert chosen(0.3) == chosen(0.3, 0)


def test_best_episodes(make):
    dataset = make(LENGTHS)
    returns = data.episode_returns(dataset)
    best = np.argsort(-returns)
    for count in range(1, len(LENGTHS)):
        # One row more than the first `count - 1` hold needs one more episode.
        rows = sum(LENGTHS[e] for e in best[: count - 1]) + 1
        part = subsets.best_episodes(dataset, rows / dataset.size)
        assert episodes(part) == sorted(best[:count].tolist())
    assert subsets.best_episodes(make((10,) * 10), 0.3).size == 30  # 0.3 is a hair below 3 / 10


def test_take_reads_its_text(make):
    dataset = make(LENGTHS)
    assert subsets.take(dataset, "all") is dataset
    same = lambda a, b: np.array_equal(a.transition.action, b.transition.action)  # noqa: E731
    assert same(subsets.take(dataset, "top:0.3"), subsets.best_episodes(dataset, 0.3))
    assert same(subsets.take(dataset, "random:.3"), subsets.random_episodes(dataset, 0.3, 0))
    assert same(subsets.take(dataset, "random:0.3:7"), subsets.random_episodes(dataset, 0.3, 7))


@pytest.mark.parametrize(
    "text",
    ["", "half", "all:1", "top", "top:0", "top:2", "top:nan", "top:0.1:3", "random:-1", "random:x",
     "random:0.1:x", "random:0.1:-1", "random:0.1:1:1"],
)  # fmt: skip
def test_take_refuses_other_texts(make, text):
    with pytest.raises(UserError, match="write all, top:FRACTION") as error:
        subsets.take(make(LENGTHS), text)
    assert repr(text) in str(error.value)


def test_mix(make):
    """The task stays the first one's; no window crosses from one into the other."""
    first = make((5, 3))
    expert = make((4,), seed=1)
    expert = expert.replace(task=dataclasses.replace(expert.task, name="toy-expert-v0"))
    mixed = subsets.mix(first, expert)
    assert mixed.task.name == "toy-v0" and mixed.size == 12
    np.testing.assert_array_equal(np.asarray(mixed.remaining)[5:], [3, 2, 1, 4, 3, 2, 1])
    other = expert.replace(task=dataclasses.replace(expert.task, environment="Other-v0"))
    with pytest.raises(UserError, match=r"toy-expert-v0 can't be mixed into toy-v0.*Other-v0"):
        subsets.mix(first, other)
    with pytest.raises(UserError, match="3 observation"):
        subsets.mix(first, expert.replace(task=dataclasses.replace(expert.task, observation_dim=3)))
