import csv
import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import envs
from tgcvg_jax.evaluation import rollout
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import Policy, Task, UserError

PENDULUM = Task("pendulum", "InvertedPendulum-v4", 4, 1, 40, min_score=0.0, max_score=40.0)
HOPPER = dataclasses.replace(TASKS["hopper-medium-v2"], episode_length=30)


def act(weights, carry, observation, previous_reward, key, deterministic):
    action = observation @ weights  # [B, A]
    if not deterministic:
        action += 0.5 * jax.random.normal(key, action.shape)
    return action, carry


LINEAR = Policy(act)
# One that balances, one that falls at once, one that does nothing.
WEIGHTS = jnp.array([[1.0, 4.0, 1.0, 1.0], [-20.0, -40.0, 0, 0], [0, 0, 0, 0]])[..., None]


def test_shapes_and_a_time_limit_and_an_early_end():
    result = rollout.evaluate(LINEAR, WEIGHTS, PENDULUM, episodes=3)
    assert result.returns.shape == result.lengths.shape == (3, 3)
    np.testing.assert_array_equal(result.lengths[0], 40)
    assert (result.lengths[1] < 20).all()
    np.testing.assert_array_equal(result.returns, result.lengths)  # it pays 1 a step
    np.testing.assert_array_equal(result.return_mean, result.returns.mean(axis=1))
    np.testing.assert_array_equal(result.return_std, result.returns.std(axis=1))
    np.testing.assert_allclose(result.normalized_score, result.return_mean / 40 * 100)


def test_an_episode_equals_a_plain_loop():
    weights = np.random.default_rng(0).normal(size=(1, 11, 3)).astype(np.float32)
    result = rollout.evaluate(LINEAR, weights, HOPPER, episodes=2, seed=7)
    for episode in range(2):
        env = envs.make(HOPPER)
        observation, _ = env.reset(seed=7 * 100_003 + episode)
        total, length, done = 0.0, 0, False
        while not done:
            action = np.float32(observation) @ weights[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, length, done = total + reward, length + 1, terminated or truncated
        env.close()
        assert result.lengths[0, episode] == length
        np.testing.assert_allclose(result.returns[0, episode], total, rtol=1e-4)


def test_all_seeds_at_once_equal_each_alone():
    weights = np.random.default_rng(1).normal(size=(3, 11, 3)).astype(np.float32)
    together = rollout.evaluate(LINEAR, weights, HOPPER, episodes=2)
    for i in range(3):
        alone = rollout.evaluate(LINEAR, weights[i : i + 1], HOPPER, episodes=2)
        np.testing.assert_array_equal(together.lengths[i], alone.lengths[0])
        np.testing.assert_allclose(together.returns[i], alone.returns[0], rtol=1e-4)


def test_same_seed_same_numbers_and_common_initial_states():
    states = WEIGHTS[jnp.array([1, 1])]
    kwargs = dict(states=states, task=PENDULUM, episodes=3)
    first = rollout.evaluate(LINEAR, deterministic=False, seed=1, **kwargs)
    again = rollout.evaluate(LINEAR, deterministic=False, seed=1, **kwargs)
    other = rollout.evaluate(LINEAR, deterministic=False, seed=2, **kwargs)
    np.testing.assert_array_equal(first.returns, again.returns)
    assert (first.returns != other.returns).any()
    # Equal learners act by noise of their own, but start alike.
    assert (first.returns[0] != first.returns[1]).any()
    quiet = rollout.evaluate(LINEAR, **kwargs)
    np.testing.assert_array_equal(quiet.returns[0], quiet.returns[1])


def test_finished_environments_are_not_stepped_again_and_all_are_closed(monkeypatch):
    made = []

    class Counter(gymnasium.Wrapper):
        steps, closed = 0, False

        def step(self, action):
            self.steps += 1
            return super().step(action)

        def close(self):
            self.closed = True
            super().close()

    make = envs.make
    monkeypatch.setattr(envs, "make", lambda task: made.append(Counter(make(task))) or made[-1])
    result = rollout.evaluate(LINEAR, WEIGHTS[:2], PENDULUM, episodes=2)
    assert [env.steps for env in made] == result.lengths.ravel().tolist()
    assert all(env.closed for env in made)

    made.clear()
    with pytest.raises(UserError, match="diverged"):
        rollout.evaluate(LINEAR, WEIGHTS[:2] * jnp.nan, PENDULUM, episodes=2)
    assert len(made) == 4 and all(env.closed for env in made)


def test_a_diverged_learner_is_named():
    with pytest.raises(UserError, match="learner 1 diverged"):
        rollout.evaluate(LINEAR, WEIGHTS.at[1].set(jnp.inf), PENDULUM, episodes=1)


def test_carry_reward_and_target_return_reach_the_policy():
    # Acts only if it has seen, by step t, a reward of 1 in every earlier step, and its target.
    def init(state, batch_size, target_return):
        return jnp.zeros(batch_size, jnp.int32), jnp.full(batch_size, target_return)

    def act(state, carry, observation, previous_reward, key, deterministic):
        time, target = carry
        ok = (previous_reward == (time > 0)) & (target == 40 - time)
        action = jnp.where(ok[:, None], observation @ state, jnp.nan)
        return action, (time + 1, target - 1)

    result = rollout.evaluate(
        Policy(act, init), WEIGHTS[:1], PENDULUM, episodes=2, target_return=40.0
    )
    np.testing.assert_array_equal(result.lengths, 40)


def test_the_policy_is_traced_once():
    traces = []

    def act(state, carry, observation, previous_reward, key, deterministic):
        traces.append(observation.shape)
        return observation @ state, carry

    policy = Policy(act)
    for seed in range(2):
        rollout.evaluate(policy, WEIGHTS, PENDULUM, episodes=2, seed=seed)
    assert traces == [(2, 4)]


def test_progress_only_on_request(capfd):
    for progress in (None, False):
        rollout.evaluate(LINEAR, WEIGHTS[1:2], PENDULUM, episodes=1, progress=progress)
    assert capfd.readouterr().err == ""
    rollout.evaluate(LINEAR, WEIGHTS[1:2], PENDULUM, episodes=1, progress=True)
    assert "1/1" in capfd.readouterr().err


@pytest.mark.parametrize("reference", [True, False])
def test_scores_csv(tmp_path, reference):
    task = HOPPER if reference else dataclasses.replace(HOPPER, min_score=None, max_score=None)
    result = rollout.Evaluation(task, np.array([[1.0, 3.0], [5.0, 5.0]]), np.ones((2, 2), int))
    path = tmp_path / "scores.csv"
    path.write_text("old")
    rollout.write_scores(path, result, [4, 9])
    text = path.read_text()
    assert text.splitlines()[0] == "seed,return_mean,return_std,normalized_score,episodes"
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["seed"] for row in rows] == ["4", "9"]
    assert [float(row["return_mean"]) for row in rows] == [2.0, 5.0]
    assert [float(row["return_std"]) for row in rows] == [1.0, 0.0]
    assert [row["episodes"] for row in rows] == ["2", "2"]
    for row, score in zip(
        rows, result.normalized_score if reference else (None, None), strict=True
    ):
        assert (
            row["normalized_score"] == ""
            if score is None
            else float(row["normalized_score"]) == score
        )
    assert list(tmp_path.iterdir()) == [path]
