import dataclasses

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import envs, metrics
from tgcvg_jax.data.synthetic import COLUMNS, read_segments
from tgcvg_jax.evaluation import novelty, quality, replay, segments
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import Policy, Transition, UserError

HOPPER = TASKS["hopper-medium-v2"]


# Nearest neighbours.


@pytest.mark.parametrize("size", [50, 3000])
def test_nearest_is_exact(size):
    """Also where squares of large values would drown the distance."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(size, 6)).astype(np.float32) * 10 + 100
    far = rng.normal(size=(200, 6)).astype(np.float32) * 12 + 100
    near = reference[rng.integers(0, size, 400)] + rng.normal(size=(400, 6)).astype(np.float32) / 50
    queries = np.concatenate([far, near, reference[:7]]).astype(np.float32)
    wide = queries[:, None].astype(np.float64) - reference.astype(np.float64)
    truth = np.sqrt(np.square(wide).sum(axis=-1)).min(axis=1)
    done = []
    distance = novelty.nearest(queries, reference, done.append)
    np.testing.assert_allclose(distance, truth, rtol=1e-3, atol=2e-5)
    np.testing.assert_array_equal(distance[-7:], 0.0)
    assert sum(done) == len(queries)


def test_variants_of_novelty(original):
    unit = novelty.units(original)
    moved = original._replace(observation=original.observation + 3e-4 * unit.observation)
    moved = moved._replace(observation=moved.observation.astype(np.float32))
    done = []
    found = novelty.measure(
        moved, original, unit, kinds=tuple(novelty.FEATURES), scales=novelty.SCALES,
        subset=len(original.reward) // 2, advance=done.append,
    )  # fmt: skip
    assert len(found) == 4 * 2 * 2 * 2 and sum(done) == 16 * len(original.reward)
    expected = 3e-4 * np.sqrt(11)  # by one and the same small step in each of 11 dimensions
    np.testing.assert_allclose(found["_std_l2_full"], expected, rtol=2e-2)
    np.testing.assert_allclose(found["_std_sq_full"], expected**2, rtol=4e-2)
    raw = 3e-4 * np.sqrt(np.square(unit.observation).sum())
    np.testing.assert_allclose(found["_state_raw_l2_full"], raw, rtol=2e-2)
    assert found["_action_std_l2_full"] == 0.0
    # Half of the origins are missing in the subset.
    assert found["_std_l2_subset"] > 100 * expected
    assert found["_sarS_std_l2_full"] >= found["_std_l2_full"]


def test_units_are_of_each_entry_and_never_zero(original):
    rows = original._replace(observation=original.observation * 10.0 ** -np.arange(11))
    rows.observation[:, 5] = 3.0
    expected = rows.observation.astype(np.float64).std(axis=0) + 1e-3
    assert expected[5] == 1e-3
    unit = novelty.units(rows)
    np.testing.assert_allclose(unit.observation, expected, rtol=1e-9)
    np.testing.assert_allclose(quality.unit(rows.observation), expected, rtol=1e-9)
    assert unit.action.shape == (3,) and unit.reward.shape == ()


def test_held_out_episodes_are_whole():
    episode = np.repeat(np.arange(40), np.arange(10, 50))
    held = novelty.hold_out(episode, seed=1)
    assert all(len(set(held[episode == e])) == 1 for e in range(40))
    assert 0.05 <= held.mean() < 0.1
    assert not novelty.hold_out(np.zeros(9)).any()
    assert 0 < novelty.hold_out(np.arange(2)).mean() < 1


# Single steps.


def test_one_step_of_recorded_and_of_wrong_data(original):
    scale = quality.unit(original.observation)
    steps = quality.one_step(HOPPER, original, scale)
    floor = quality.summarize_one_step(steps, original)
    assert 0 < floor["dynamics_mse_median"] <= 1e-8 and floor["dynamics_mse"] < 1e-8
    assert floor["reward_mse"] < 1e-8
    np.testing.assert_allclose(floor["oracle_reward"], original.reward[steps.valid].mean(), 1e-5)
    np.testing.assert_allclose(floor["reward_known"], floor["oracle_reward"], 1e-5)

    shift = np.eye(11)[3] * scale  # one unit in one of 11 entries
    wrong = original._replace(
        next_observation=original.next_observation + shift, reward=original.reward - 0.5
    )
    found = quality.summarize_one_step(quality.one_step(HOPPER, wrong, scale), wrong)
    np.testing.assert_allclose(found["dynamics_mse"], 1 / 11, rtol=1e-3)
    np.testing.assert_allclose(found["reward_mse"], 0.25, rtol=1e-3)
    assert found["masked"] == floor["masked"]


def test_velocities_near_the_limit_are_masked(original):
    rows = Transition(*(x[:3].copy() for x in original))
    rows.observation[0, -1] = 9.95  # noise has hidden that it was clipped
    rows.observation[1, -1] = -9.5
    rows.observation[2, 1] = 9.95  # no velocity
    steps = quality.one_step(HOPPER, rows, np.ones(11))
    np.testing.assert_array_equal(steps.valid, [False, True, True])
    np.testing.assert_array_equal(np.isfinite(steps.error), steps.valid)
    assert quality.summarize_one_step(steps, rows)["masked"] == pytest.approx(1 / 3)


def test_by_position():
    ends = np.array([0, 0, 1, 1, 0, 1], bool)
    position = quality.positions(ends)
    np.testing.assert_array_equal(position, [0, 1, 2, 0, 0, 1])
    values = np.array([1.0, np.nan, np.nan, 2.0, 6.0, 5.0])
    np.testing.assert_array_equal(quality.by_position(values, position), [3.0, 5.0, np.nan])


def test_terminals_are_judged_by_the_rule(original):
    clean = quality.terminals(HOPPER, original)
    assert clean["terminals_per_1000"] == pytest.approx(5e3 / len(original.reward))
    rest = {name: value for name, value in clean.items() if name != "terminals_per_1000"}
    assert set(rest.values()) == {0.0}

    rows = Transition(*(x[:4].copy() for x in original))
    rows.discount[0] = 0.0  # on a healthy state
    rows.next_observation[1, 0] = 0.3  # fallen, and no word of it
    rows.observation[2:, 0] = 0.3
    rows.next_observation[2, 0] = 0.3  # the same fall; that it goes on is told by the last metric
    found = quality.terminals(HOPPER, rows)
    assert found == {
        "terminals_per_1000": 250.0,
        "false_terminals_per_1000": 250.0,
        "missed_terminals_per_1000": 250.0,
        "after_fall_share": 0.5,
    }
    assert quality.terminals(dataclasses.replace(HOPPER, environment=""), rows) is None


def test_warns_of_a_model_that_hides_behind_the_mask():
    (line,) = metrics.warnings({"masked": {"original": 0.1, "synthetic": 0.2}})
    assert "20% of the synthetic" in line and "original's of 10%" in line
    for few in ({"original": 0.1, "synthetic": 0.14}, {"original": None, "synthetic": 0.5}):
        assert metrics.warnings({"masked": few}) == []
    assert metrics.warnings({}) == []


# Segments.


def test_original_segments_lie_inside_episodes(recorded, original):
    length = np.array([3, 8, 1, 500])
    cut = segments.original_segments(recorded, length, seed=3)
    longest = len(recorded.num_starts) - 1
    np.testing.assert_array_equal(cut.length, [3, 8, 1, longest])
    rows = segments.find_rows(original.observation, cut.transition.observation[:, 0])
    assert (rows >= 0).all() and (np.asarray(recorded.remaining)[rows] >= cut.length).all()
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(
            cut.transition.reward[i][cut.mask[i]], original.reward[row : row + cut.length[i]]
        )
    away = cut.transition.observation[:, 0] + np.float32(1e-6)
    np.testing.assert_array_equal(segments.find_rows(original.observation, away), -1)


def test_history_ends_before_the_row_and_at_the_start_of_its_episode(recorded, original):
    second = int(np.flatnonzero(np.asarray(recorded.remaining) == 1)[0]) + 1
    rows = np.array([0, 4, second + 2])
    history, mask = segments.history_before(recorded, rows, 3)
    np.testing.assert_array_equal(
        mask, [[False] * 3, [True] * 3, [False, True, True]]
    )  # fmt: skip
    np.testing.assert_array_equal(history.action[1], original.action[1:4])
    np.testing.assert_array_equal(history.reward[2, 1:], original.reward[second : second + 2])


def test_read_segments_takes_whole_ones(tmp_path, original):
    path = tmp_path / "made.hdf5"
    ends = np.zeros(len(original.reward), bool)
    ends[np.cumsum([4, 7, 4, 9, 2, 10])] = True
    terminals = original.discount == 0
    fields = (original.observation, original.action, original.reward, original.next_observation,
              terminals, ends & ~terminals, np.arange(len(ends)), original.reward)  # fmt: skip
    with h5py.File(path, "w") as f:
        for name, values in zip(COLUMNS, fields, strict=True):
            f[name] = values
    everything, lengths = read_segments(path, 10**6)
    np.testing.assert_array_equal(everything.transition.observation, original.observation)
    assert lengths.sum() == len(ends)
    some, same = read_segments(path, 25, seed=2)
    np.testing.assert_array_equal(same, lengths)
    assert 0 < len(some.timestep) <= 25 and some.segment_end[-1]
    starts = some.timestep[np.append(True, some.segment_end[:-1])]
    taken = np.diff(np.flatnonzero(some.segment_end), prepend=-1)
    whole = dict(zip(np.cumsum(lengths) - lengths, lengths, strict=True))
    assert all(whole[s] == n for s, n in zip(starts, taken, strict=True))
    assert len(read_segments(path, 1)[0].timestep) in lengths  # one at least
    path.write_text("")
    with pytest.raises(UserError, match=r"made\.hdf5: damaged"):
        read_segments(path, 1)


# Trajectories in the simulator.


@pytest.fixture(scope="module")
def cut(recorded, original):
    """Each episode from its third row on: 6 steps, and to its end."""
    first = np.flatnonzero(np.asarray(recorded.timestep) == 0) + 2
    rest = np.asarray(recorded.remaining)[first]
    start, length = np.tile(first, 2), np.append(np.full(5, 6), rest)
    known = ~segments.is_clipped(HOPPER, original.observation[start])
    assert known.sum() >= 6 and rest.min() > 6
    return segments.gather(original, start[known], length[known])


def test_replay_of_real_segments(cut, original):
    replayed = replay.replay(HOPPER, cut)
    assert replayed.known.all()
    found = quality.summarize_replay(cut, replayed)
    assert found["oracle_return"] == pytest.approx(found["claimed_return"], abs=0.02)
    np.testing.assert_array_equal(replayed.survived, cut.length == 6)
    assert found["oracle_survival"] == np.mean(cut.length == 6)
    growth = quality.compounding_error(cut, replayed, quality.unit(original.observation))
    assert growth["value"][0] < 1e-5 and growth["value"][5] < 1e-3
    np.testing.assert_array_equal(growth["count"], cut.mask.sum(axis=0))
    short = segments.Segments(cut.transition, np.minimum(cut.length, 4))  # not past their ends
    growth = quality.compounding_error(short, replayed, quality.unit(original.observation))
    np.testing.assert_array_equal(growth["count"][:5], [len(cut.length)] * 4 + [0])


def test_quartiles_of_the_compounding_error():
    zeros = np.zeros((4, 1, 2))
    reached = zeros + 3.0 * np.array([1, 2, 3, 4])[:, None, None]
    flat = np.zeros((4, 1))
    cut = segments.Segments(Transition(zeros, zeros, flat, flat, zeros), np.ones(4, int))
    known = np.ones(4, bool)
    growth = quality.compounding_error(
        cut, replay.Replay(reached, flat, known, known), np.full(2, 3.0)
    )
    expected = [np.quantile([1, 4, 9, 16], 0.25), 30 / 4, np.quantile([1, 4, 9, 16], 0.75)]
    found = [growth[part][0] for part in ("low", "value", "high")]
    np.testing.assert_allclose(found, np.sqrt(expected))


def test_replay_finds_out_a_model_that_ignores_the_fall(cut, original):
    """Rewards go on for ever in the data, but the simulator says where it ends."""
    long = segments.Segments(cut.transition, np.full(len(cut.length), cut.length.max()))
    drift = np.arange(1, long.length[0] + 1)[:, None] * np.eye(11)[2]
    scale = quality.unit(original.observation)
    moved = cut.transition.next_observation + 0.1 * drift * scale
    long = long._replace(transition=cut.transition._replace(next_observation=moved))
    replayed = replay.replay(HOPPER, long)
    found = quality.summarize_replay(long, replayed)
    assert found["claimed_return"] > found["oracle_return"] + 1
    assert found["oracle_survival"] < 1
    growth = quality.compounding_error(long, replayed, scale)
    np.testing.assert_allclose(growth["value"][:3], np.arange(1, 4) * 0.1 / np.sqrt(11), rtol=1e-2)
    assert (np.diff(growth["count"]) <= 0).all() and growth["count"][-1] < growth["count"][0]
    assert (growth["low"] <= growth["high"]).all()


def test_unknown_starts_have_no_returns(cut):
    transition = cut.transition._replace(observation=cut.transition.observation.copy())
    transition.observation[0, 0, -1] = 9.95
    transition = transition._replace(reward=transition.reward.copy())
    transition.reward[0] += 100.0
    changed = cut._replace(transition=transition)
    replayed = replay.replay(HOPPER, changed)
    sums = np.sum(transition.reward, axis=1, where=cut.mask)
    found = quality.summarize_replay(changed, replayed)
    assert found["claimed_return"] == pytest.approx(sums[1:].mean(), rel=1e-5)
    assert not replayed.known[0] and replayed.known[1:].all()
    assert np.isnan(replayed.returns[0]) and np.isnan(replayed.rewards[0]).all()
    assert not replayed.survived[0] and np.isfinite(replayed.mean_return)


def test_mean_return_is_over_all_known_starts():
    """A known start without a return (bad actions) leaves the mean unknown; an unknown, not."""
    rewards = np.array([[1.0, 2.0], [5.0, np.nan], [np.nan, np.nan]])
    states = np.zeros((3, 2, 1))
    made = lambda *known: replay.Replay(states, rewards, np.array(known), np.array(known))  # noqa: E731
    assert made(True, True, False).mean_return == 4.0
    assert made(True, False, False).mean_return == 3.0
    assert np.isnan(made(True, False, True).mean_return)


def test_closed_loop_passes_rewards_and_keys(monkeypatch):
    """The reward before the start is the history's last; every step has a key of its own."""
    monkeypatch.setattr(replay, "run", lambda task, start, length, act, advance: act)

    def act(state, carry, observation, previous_reward, key, deterministic):
        return jnp.stack(
            [previous_reward, jax.random.uniform(key, previous_reward.shape)], 1
        ), carry

    history = Transition(*(np.full((2, 3), 7.0, np.float32),) * 5)
    mask = np.array([[True] * 3, [True, True, False]])
    start, length = np.zeros((2, 1), np.float32), np.array([4, 4])
    chosen = []
    for seed in (0, 0, 1):
        step = replay.closed_loop(
            Policy(act), jnp.zeros(()), HOPPER, start, length, history, mask, seed=seed
        )
        chosen.append([step(t, start, np.array([1.0, 2.0]) + t) for t in range(3)])
    np.testing.assert_array_equal(np.array(chosen[0])[..., 0], [[7, 0], [2, 3], [3, 4]])
    noise = np.array(chosen)[..., 1]
    np.testing.assert_array_equal(noise[0], noise[1])
    assert len(np.unique(noise[[0, 2]])) == 12


def test_closed_loop_is_told_the_history(cut):
    """A policy that knows the segments' actions by heart, if it is told where it starts."""
    actions = jnp.asarray(cut.transition.action)  # [B, T, A]
    horizon = actions.shape[1]
    seen = []

    def init(state, batch_size, target_return):
        return jnp.full(batch_size, -100)

    def prime(state, carry, history, mask):
        return carry + 100 + jnp.sum(mask, axis=1) - 2

    def act(state, carry, observation, previous_reward, key, deterministic):
        seen.append((deterministic, previous_reward.shape))
        at = jnp.clip(carry, 0, horizon - 1)
        action = jnp.take_along_axis(actions, at[:, None, None], axis=1)[:, 0]
        return jnp.where(carry[:, None] >= 0, action, 0.0) * state, carry + 1

    size = len(cut.length)
    history = Transition(*(np.zeros((size, 2, *x.shape[2:]), np.float32) for x in cut.transition))
    mask = np.ones((size, 2), bool)
    start, done = cut.transition.observation[:, 0], []
    policy = Policy(act, init, prime)
    outcome = replay.closed_loop(
        policy, jnp.ones(()), HOPPER, start, cut.length, history, mask, advance=done.append
    )
    replayed = replay.replay(HOPPER, cut)
    np.testing.assert_array_equal(outcome.rewards, replayed.rewards)
    np.testing.assert_array_equal(outcome.survived, replayed.survived)
    assert seen == [(False, (size,))] and sum(done) == horizon  # compiled once

    alone = replay.closed_loop(policy, jnp.ones(()), HOPPER, start, cut.length)
    assert not np.array_equal(alone.rewards, replayed.rewards, equal_nan=True)
    broken = replay.closed_loop(policy, jnp.nan * jnp.ones(()), HOPPER, start, cut.length)
    assert broken.known.all() and not broken.survived.any() and np.isnan(broken.rewards).all()


def test_hidden_goals_leave_rewards_unknown():
    task = TASKS["antmaze-umaze-v2"]
    env = envs.make(task)
    start = np.stack([env.reset(seed=i)[0] for i in range(2)]).astype(np.float32)
    env.close()
    zeros = lambda *shape: np.zeros((2, 3, *shape), np.float32)  # noqa: E731
    states = np.repeat(start[:, None], 3, axis=1)
    cut = segments.Segments(Transition(states, zeros(8), zeros(), zeros() + 1, states),
                            np.array([3, 2]))  # fmt: skip
    replayed = replay.replay(task, cut)
    found = quality.summarize_replay(cut, replayed)
    assert np.isnan(found["oracle_return"]) and found["claimed_return"] == 0
    assert found["oracle_survival"] == 1
    growth = quality.compounding_error(cut, replayed, quality.unit(states.reshape(6, -1)))
    np.testing.assert_array_equal(growth["count"], [2, 2, 1])
