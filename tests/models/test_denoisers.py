import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import training
from tgcvg_jax.data.dataset import discounted_returns
from tgcvg_jax.models import denoiser, reward_model, transition_denoiser, window_denoiser
from tgcvg_jax.types import Transition, UserError


@pytest.fixture(scope="module")
def config(configs):
    return configs["window_denoiser"]


def rows_of(dataset, start, length):
    return jax.tree.map(lambda x: np.asarray(x)[start : start + length], dataset.transition)


def test_learning_rate():
    config = denoiser.Config(num_steps=1_000, num_periods=10, learning_rate=2.0)
    rate = lambda step: float(denoiser.learning_rate(jnp.int32(step), config))  # noqa: E731
    assert rate(0) == rate(100) == rate(900) == 2.0
    np.testing.assert_allclose([rate(25), rate(50), rate(125)], [1.7071, 1.0, 1.7071], rtol=1e-4)
    assert 0.0 < rate(99) < 1e-3 * 2.0
    odd = dataclasses.replace(config, num_steps=1_005)  # no restart in the last few steps
    assert float(denoiser.learning_rate(jnp.int32(1_004), odd)) < 0.1
    once = dataclasses.replace(config, num_periods=1)
    np.testing.assert_allclose(float(denoiser.learning_rate(jnp.int32(500), once)), 1.0, rtol=1e-6)


def test_moving_average():
    """Against the rule written as a loop: a copy up to step 110, then a decay that ramps up."""
    config = denoiser.Config()
    ema, expected = jnp.zeros(()), 0.0
    params = np.random.default_rng(0).normal(size=400)
    step = jax.jit(lambda e, p, s: denoiser.update_ema(e, p, s, config))
    for s in range(400):
        ema = step(ema, params[s], jnp.int32(s))
        if s % 10 == 0:
            decay = 0.0 if s <= 110 else min(0.995, 1.0 - (1.0 + s - 100) ** (-2 / 3))
            expected = decay * expected + (1.0 - decay) * params[s]
        np.testing.assert_allclose(ema, expected, rtol=1e-5, atol=1e-6)
    assert 1.0 - (1.0 + 2829) ** (-2 / 3) > 0.995  # the ramp ends near step 2,930


def test_windows_stay_inside_their_episode(task, dataset, config):
    """Every start gives H rows of one episode, the state that follows them, and blanks."""
    data = window_denoiser.make_windows(dataset, config)
    h, s = config.horizon, task.observation_dim
    remaining = np.asarray(dataset.remaining)
    assert set(np.asarray(data.starts)) == set(np.flatnonzero(remaining >= h))
    x = window_denoiser.take(data, data.starts, h)
    assert x.shape == (len(data.starts), h + 1, s + task.action_dim + 1)
    raw = np.asarray(data.normalizer.inverse(x))
    for start, window in zip(np.asarray(data.starts), raw):
        rows = rows_of(dataset, start, h)
        reward = rows.reward - config.terminal_penalty * (rows.discount == 0.0)
        np.testing.assert_allclose(window[:-1, :s], rows.observation, atol=1e-4)
        np.testing.assert_allclose(window[:-1, s:-1], rows.action, atol=1e-4)
        np.testing.assert_allclose(window[:-1, -1], reward, atol=1e-4)
        np.testing.assert_allclose(window[-1, :s], rows.next_observation[-1], atol=1e-4)
        np.testing.assert_allclose(window[-1, s:], 0.0, atol=1e-4)
    back = window_denoiser.to_transitions(x, data.normalizer, task)
    np.testing.assert_allclose(
        back.next_observation[:, -1],
        np.asarray(dataset.transition.next_observation)[np.asarray(data.starts) + h - 1],
        atol=1e-4,
    )


def test_statistics_are_of_all_rows_with_their_own_rewards(dataset, config):
    t = jax.tree.map(np.asarray, dataset.transition)
    rows = np.concatenate([t.observation, t.action, t.reward[:, None]], axis=1)
    normalizer = window_denoiser.make_windows(dataset, config).normalizer
    np.testing.assert_allclose(normalizer.mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(normalizer.std - rows.std(axis=0, ddof=1), 1e-5, atol=1e-6)


def test_conditions(dataset, config):
    """Discounted to the episode's end with the penalty; or the window's plain sum without it."""
    data = window_denoiser.make_windows(dataset, config)
    start = int(data.starts[-1])
    rows = rows_of(dataset, start, int(dataset.remaining[start]))
    reward = rows.reward - config.terminal_penalty * (rows.discount == 0.0)
    expected = sum(0.99**i * r for i, r in enumerate(reward))
    np.testing.assert_allclose(data.condition[start], 0.01 * expected, rtol=1e-5)

    other = dataclasses.replace(config, condition="window_return")
    data = window_denoiser.make_windows(dataset, other)
    expected = rows.reward[: config.horizon].sum()
    np.testing.assert_allclose(data.condition[start], 0.01 * expected, rtol=1e-4)

    restored = dataclasses.replace(config, restore_rewards=True)
    rewards = window_denoiser.make_windows(dataset, restored).rows[:, -1]
    std, mean = data.normalizer.std[-1], data.normalizer.mean[-1]
    np.testing.assert_allclose(rewards * std + mean, dataset.transition.reward, atol=1e-5)


def test_discounted_returns(dataset):
    reward = np.asarray(dataset.transition.reward, np.float64)
    ours = discounted_returns(dataset, reward, 0.9)
    expected, following = np.zeros(dataset.size), 0.0
    for i in reversed(range(dataset.size)):
        following = reward[i] + (0.9 * following if int(dataset.remaining[i]) > 1 else 0.0)
        expected[i] = following
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


class Echo:
    """A network whose output is its parameter, whatever the input."""

    @staticmethod
    def apply(variables, x, level, condition, keep):
        return jnp.broadcast_to(variables["params"]["value"], x.shape)


def test_loss_by_hand(x64):
    """lambda (D - z)^2, masked, over all entries; D = c_skip x + c_out F."""
    rng = np.random.default_rng(0)
    config = denoiser.Config(sigma_data=0.7)
    z, eps, value = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 3)), rng.normal(size=3)
    draw = np.array([-1.0, 0.5])
    weight = np.ones((4, 3))
    weight[-1, 1:] = 0.0
    batch, noise = denoiser.Batch(jnp.asarray(z)), denoiser.Noise(jnp.asarray(draw), eps)
    loss, _ = denoiser.loss({"value": value}, {}, batch, noise, Echo, config, weight)
    sigma = np.exp(-1.2 + 1.2 * draw)[:, None, None]
    total = sigma**2 + 0.7**2
    d = 0.7**2 / total * (z + sigma * eps) + sigma * 0.7 / np.sqrt(total) * value
    expected = np.mean(total / (sigma * 0.7) ** 2 * weight * (d - z) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_condition_is_dropped_as_often_as_it_should(task, dataset, config):
    """The key of an update gives new draws at each step, and drops a quarter."""
    seen = []

    class Spy(Echo):
        @staticmethod
        def init(key, x, level, condition, keep):
            return {"params": {"value": jnp.zeros(x.shape[-1])}, "constants": {}}

        @staticmethod
        def apply(variables, x, level, condition, keep):
            jax.debug.callback(lambda k, lv: seen.append((np.array(k), np.array(lv))), keep, level)
            return Echo.apply(variables, x, level, condition, keep)

    data = window_denoiser.make_windows(dataset, config)
    large = dataclasses.replace(config, batch_size=2_000)
    learner = denoiser.make_learner(
        Spy, large, shape=(config.horizon + 1, 6), condition_dropout=0.25,
        prepare=lambda dataset: data,
        sample=window_denoiser.make(task, large).sample,
    )  # fmt: skip
    state = learner.init(jax.random.key(0), data)
    batch = learner.sample(jax.random.key(1), data)
    for _ in range(2):
        state, _ = learner.update(state, batch)
    jax.effects_barrier()
    (keep, level), (other, other_level) = seen
    assert set(keep) == {0.0, 1.0} and abs(keep.mean() - 0.75) < 0.05
    assert not np.array_equal(keep, other) and not np.array_equal(level, other_level)
    np.testing.assert_allclose([4 * level.mean(), 4 * level.std()], [-1.2, 1.2], atol=0.1)


@pytest.mark.parametrize(
    "name", [pytest.param("window_denoiser", marks=pytest.mark.slow), "transition_denoiser"]
)
def test_bfloat16_has_nearly_the_same_loss(task, dataset, configs, name):
    module = {"window_denoiser": window_denoiser, "transition_denoiser": transition_denoiser}[name]
    found = []
    for compute in ("float32", "bfloat16"):
        config = dataclasses.replace(configs[name], compute=compute, batch_size=64)
        learner = module.make(task, config)
        data = learner.prepare(dataset)
        state = learner.init(jax.random.key(0), data)
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        batch = learner.sample(jax.random.key(1), data)
        state, metrics = jax.jit(learner.update)(state, batch)
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        found.append(float(metrics["loss"]))
    assert found[0] != found[1]
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)


def test_rows_of_transitions(task, dataset, configs):
    """Standardised but for the terminal, which stays 0 or 1."""
    data = transition_denoiser.make(task, configs["transition_denoiser"]).prepare(dataset)
    rows = np.asarray(data.rows)
    np.testing.assert_allclose(rows[:, :-1].mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(rows[:, :-1].std(axis=0, ddof=1), 1.0, atol=1e-3)
    np.testing.assert_array_equal(rows[:, -1], 1.0 - np.asarray(dataset.transition.discount))


def test_reward_model_learns_the_reward(task, dataset):
    """It does not look at the rewards of what it is asked about."""
    config = reward_model.Config(1_500, batch_size=64, hidden_dims=(32,), learning_rate=3e-3)
    fitted = training.fit(reward_model.make(task, config), dataset, num_steps=1_500)
    state = training.select_seed(fitted.state, 0)
    t = dataset.transition
    blind = Transition(t.observation, t.action, jnp.full_like(t.reward, jnp.nan), t.discount,
                       t.next_observation)  # fmt: skip
    error = np.asarray(reward_model.predict(state, blind, config) - t.reward)
    assert error.std() < 0.3 * np.asarray(t.reward).std()


def test_too_short_data(task, dataset):
    config = window_denoiser.Config(horizon=31)
    with pytest.raises(UserError, match="31 transitions"):
        window_denoiser.make_windows(dataset, config)
