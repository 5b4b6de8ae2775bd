"""Numbers of a dataset, modes of its returns, and what they suggest."""

import dataclasses

import numpy as np
import pytest

from tgcvg_jax import data
from tgcvg_jax.data import statistics
from tgcvg_jax.data.statistics import Spread, describe, return_modes, suggest_tgcvg
from tgcvg_jax.tasks import TASKS, TGCVG_SETTINGS
from tgcvg_jax.types import Task, Transition

TASK = Task("toy-v0", "", observation_dim=2, action_dim=1, episode_length=20)


def test_describe():
    """Three episodes: two terminals, one cut; all numbers by hand."""
    action = np.array([[1.0], [-1.0], [0.9995], [0.5], [0.0], [-0.998]])
    transition = Transition(
        observation=np.stack([np.full(6, 7.0), np.arange(6)], 1),
        action=action,
        reward=np.array([0.0, 2.0, 0.0, 0.0, -1.0, 5.0]),
        discount=np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]),
        next_observation=np.zeros((6, 2)),
    )
    end = np.array([0, 1, 0, 0, 1, 1], bool)
    found = describe(data.make_dataset(TASK, transition, end))
    assert (found.transitions, found.episodes, found.segments, found.terminals) == (6, 3, 0, 2)
    assert found.length == Spread(2.0, np.sqrt(2 / 3), 1.0, 2.0, 3.0)
    np.testing.assert_allclose(found.returns, (2.0, np.std([2, -1, 5]), -1.0, 2.0, 5.0))
    assert (found.reward_min, found.reward_max) == (-1.0, 5.0)
    assert found.lowest_reward_share == 1 / 6 and found.actions_at_bounds == 0.5
    assert found.constant_dims == (0,) and found.terminal_share == 2 / 3


def test_segments_are_told_from_episodes(make):
    lengths = (4, 6, 5)
    assert describe(make(lengths)).segments == 0
    first = np.repeat([0, 30, 7], lengths)
    timestep = first + np.concatenate([np.arange(n) for n in lengths])
    assert describe(make(lengths, timestep=timestep)).segments == 2


def normal(mean, std, count, seed=0):
    return np.random.default_rng(seed).normal(mean, std, count)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [60, 400, 5000])
def test_modes_of_mixtures(count, seed):
    one = normal(3000, 400, count, seed)
    two = np.concatenate([normal(1500, 300, count // 2, seed), normal(3600, 100, count // 2, seed)])
    three = np.concatenate([normal(m, 60, count // 3, seed) for m in (0, 1000, 2000)])
    assert [return_modes(x) for x in (one, two, three)] == [1, 2, 3]
    # Neither the unit nor the order matters.
    shuffled = np.random.default_rng(seed).permutation(two)
    assert return_modes(1e-3 * shuffled - 50) == return_modes(-two) == 2


def test_few_or_lonely_returns_are_no_mode():
    assert return_modes([]) == return_modes([3.0]) == return_modes([0.0, 1000.0] * 4) == 1
    assert return_modes(np.full(500, -2.5)) == return_modes(np.zeros(500)) == 1
    assert return_modes(np.full(500, 1e4) + 1e-6 * np.arange(500) / 500) == 1
    tail = np.concatenate([normal(5700, 50, 450), np.linspace(300, 4800, 50)])
    few = np.concatenate([normal(1100, 100, 440), normal(3500, 30, 60)])
    assert return_modes(tail) == return_modes(few) == 1
    assert return_modes(np.random.default_rng(0).uniform(0, 1, 2000)) == 1


@pytest.mark.parametrize(("dip", "modes"), [(0.05, 1), (0.3, 2)])
def test_a_shallow_valley_parts_nothing(dip, modes):
    valley = np.linspace(1, 1.4, int(400 * (1 - dip)))
    returns = np.concatenate([np.linspace(0, 1, 1000), valley, np.linspace(1.4, 2.4, 1000)])
    assert return_modes(returns) == modes


def test_modes_of_returns_that_are_0_or_1():
    assert return_modes(np.repeat([0.0, 1.0], [60, 40])) == 2
    assert return_modes(np.repeat([0.0, 1.0], [95, 5])) == 1


def test_modes_survive_outliers_and_large_data():
    two = np.concatenate([normal(20, 3, 100_000), normal(80, 3, 100_000)])
    assert return_modes(np.append(two, 400)) == 2


BASE = describe(data.load("hopper-medium-mini"))


def suggested(task, *, modes=1, terminals=0.0, median=1000.0, longest=1000.0, lowest=0.0):
    changed = dataclasses.replace(
        BASE,
        episodes=1000,
        terminals=int(1000 * terminals),
        return_modes=modes,
        length=Spread(median, 0.0, 1.0, median, longest),
        lowest_reward_share=lowest,
    )
    return suggest_tgcvg(changed, TASKS[task])


# Roughly what the datasets of Table 6 are like: share of episodes that fall, median length, and so
# on. What counts is that the rule tells their kinds apart.
TABLE_6 = {
    "halfcheetah-medium-v2": {},
    "halfcheetah-medium-replay-v2": {},
    "halfcheetah-medium-expert-v2": dict(modes=2),
    "hopper-medium-v2": dict(terminals=1.0, median=450),
    "hopper-medium-expert-v2": dict(modes=2, terminals=0.8, median=500),
    "walker2d-medium-v2": dict(terminals=0.5, median=999),
    "walker2d-medium-replay-v2": dict(terminals=0.95, median=150),
    "walker2d-medium-expert-v2": dict(modes=2, terminals=0.3),
    "hopper-medium-replay-v2": dict(terminals=1.0, median=150),
    "maze2d-umaze-v1": dict(lowest=0.9, median=150),
    "maze2d-medium-v1": dict(lowest=0.98, median=150, modes=2),
    "maze2d-large-v1": dict(lowest=0.98, median=150),
    "antmaze-umaze-v2": dict(terminals=0.5, lowest=0.99, modes=2),
    "antmaze-large-diverse-v2": dict(terminals=0.1, lowest=0.99),
}


@pytest.mark.parametrize("name", TABLE_6)
def test_suggestions_agree_with_table_6(name):
    found, paper = suggested(name, **TABLE_6[name]), TGCVG_SETTINGS[TASKS[name].family]
    assert found.context_length == paper.context_length
    assert found.cql_weight[0] <= paper.cql_weight <= found.cql_weight[1]
    assert found.window_length[0] <= paper.window_length <= found.window_length[1]
    assert found.reasons and all(found.reasons)


def test_suggestions_move_as_the_criteria_say():
    name = "walker2d-medium-v2"
    still, falls = suggested(name), suggested(name, terminals=0.9)
    two = suggested(name, terminals=0.9, modes=2)
    assert still.cql_weight[1] < falls.cql_weight[0] and falls.cql_weight[1] <= two.cql_weight[0]
    short = suggested(name, terminals=0.9, median=statistics.SHORT - 1)
    assert short.window_length[1] < falls.window_length[1] <= still.window_length[1]
    assert suggested(name, terminals=0.9, median=150).window_length == (40, 40)
    # No window is longer than the longest episode.
    tiny = suggested(name, terminals=1.0, median=20, longest=30)
    assert tiny.window_length == (30, 30) and "30 steps" in tiny.reasons[-1]


def test_sparse_rewards_count_as_a_maze_but_constant_ones_do_not():
    sparse = suggested("hopper-medium-v2", lowest=0.95)
    assert sparse.context_length == 5 and sparse.window_length == (6, 7)
    constant = dataclasses.replace(BASE, lowest_reward_share=1.0, reward_max=BASE.reward_min)
    assert suggest_tgcvg(constant, TASKS["hopper-medium-v2"]).window_length[1] == 60
