"""Toy datasets."""

import numpy as np
import pytest

from tgcvg_jax import data
from tgcvg_jax.types import Task, Transition

TASK = Task("toy-v0", "", observation_dim=2, action_dim=1, episode_length=20)


@pytest.fixture
def make():
    """A function from episode lengths to a dataset."""
    return _make


@pytest.fixture
def random_lengths():
    """A function from a seed to the lengths of a few episodes."""
    return _random_lengths


def _make(lengths, seed=0, **options):
    """Episodes whose observation is (episode number, step)."""
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    rng = np.random.default_rng(seed)
    observation = np.stack([episode, step], 1)
    transition = Transition(
        observation=observation,
        action=rng.uniform(-1, 1, (len(step), 1)),
        reward=rng.normal(size=len(step)),
        discount=np.ones(len(step)),
        next_observation=observation + np.array([0, 1]),
    )
    end = np.append(np.diff(episode) != 0, True)
    return data.make_dataset(TASK, transition, end, **options)


def _random_lengths(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 12, rng.integers(1, 9))
