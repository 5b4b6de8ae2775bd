"""The factors of the action synthesizer, one at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import training
from tgcvg_jax.models import transformer_cql as tcql
from tgcvg_jax.networks import memory as memory_lib
from tgcvg_jax.ops.distributions import tanh_normal_sample
from tgcvg_jax.types import Transition

L = 3
VARIANTS = {
    "plain": {},
    "mlp": {"architecture": "mlp"},
    "one_step": {"target": "one_step"},
    "returns": {"return_to_go": True, "return_scale": 0.1},
    "mlp_returns": {"architecture": "mlp", "return_to_go": True, "return_scale": 0.1},
    "best_of_6": {"num_candidates": 6},
}


@pytest.fixture(scope="module")
def made(task, dataset, configs):
    """For each variant, on demand: its config, learner, data and a state."""

    @functools.cache
    def get(name):
        config = dataclasses.replace(configs["transformer_cql"], **VARIANTS[name])
        learner = tcql.make(task, config)
        data = learner.prepare(dataset)
        state = jax.jit(learner.init)(jax.random.key(0), data)
        rng = np.random.default_rng(0)  # weights large enough that actions depend on everything
        actor = jax.tree.map(
            lambda p: p + jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype), state.params["actor"]
        )
        return config, learner, data, state.replace(params=state.params | {"actor": actor})

    return get


def test_states_have_no_more_fields_than_before(made):
    """Else old checkpoints could not be read."""
    fields = ["params", "target_critic", "opt_state", "normalizer", "key", "step"]
    for name in ("plain", "mlp", "one_step", "best_of_6"):
        assert [f.name for f in dataclasses.fields(made(name)[3])] == fields
    assert [f.name for f in dataclasses.fields(made("returns")[3])] == [*fields, "best_return"]


def test_one_step_target(task, made, dataset):
    """By hand, at every position, and a terminal in the last."""
    config, learner, data, state = made("one_step")
    config = dataclasses.replace(config, dropout=0.0)
    batch = learner.sample(jax.random.key(1), data)
    batch = batch._replace(discount=batch.discount.at[0, -1].set(0.0).at[1:].set(1.0))
    noise = tcql.draw_noise(jax.random.key(2), batch, config)
    assert noise.target.shape == batch.action.shape

    @jax.jit
    def run(state, batch, noise):
        static = dict(task=task, config=config)
        loss = tcql.loss(state.params, state.target_critic, batch, noise, state.step, **static)
        actor, critic = tcql.make_actor(task, config), tcql.make_critic(config)
        following = actor.apply(state.params["actor"], batch.next_observation, deterministic=True)
        action, _ = tanh_normal_sample(*following, noise.target)
        q = critic.apply(state.target_critic, batch.next_observation, action)
        return loss[1], q, critic.apply(state.params["critic"], batch.observation, batch.action)

    info, q, q_data = jax.tree.map(np.asarray, run(state, batch, noise))
    target = np.array(batch.reward)
    for b in range(config.batch_size):
        for m in range(L):
            ends = b == 0 and m == L - 1
            target[b, m] += 0.0 if ends else 0.99 * min(q[0, b, m], q[1, b, m])
    np.testing.assert_allclose(info["td_target"], target.mean(), rtol=1e-5)
    np.testing.assert_allclose(info["td_loss"], np.square(q_data - target).mean(), rtol=1e-5)


def test_windows_of_one_step_have_one_target(task, made):
    """With L = 1 the two targets are the same numbers; with more they are not."""
    _, learner, data, state = made("plain")
    batch = learner.sample(jax.random.key(1), data)

    @functools.partial(jax.jit, static_argnums=1)
    def run(batch, target):
        config = dataclasses.replace(made("plain")[0], target=target)
        noise = tcql.draw_noise(jax.random.key(2), batch, config)
        given = state.params, state.target_critic, batch, noise, state.step
        return tcql.loss(*given, task=task, config=config)[1]["td_loss"]

    first = jax.tree.map(lambda x: x[:, :1], batch)
    one, both = ([float(run(x, t)) for t in ("n_step", "one_step")] for x in (first, batch))
    assert one[0] == pytest.approx(one[1], rel=1e-6)
    assert both[0] != pytest.approx(both[1], rel=1e-3)


def test_returns_to_go_of_both_states(made, dataset):
    config, learner, data, _ = made("returns")
    batch = learner.sample(jax.random.key(1), data)
    known = np.asarray(dataset.return_to_go) * 0.1
    z = np.asarray(data.normalizer(dataset.transition.observation))
    for b in range(config.batch_size):
        start = np.flatnonzero(np.isclose(z, batch.observation[b, 0], atol=1e-5).all(axis=1)).item()
        np.testing.assert_allclose(batch.return_to_go[b], known[start : start + L], rtol=1e-5)
        expected = np.asarray(dataset.transition.reward[start : start + L]) * 0.1
        expected = batch.return_to_go[b] - expected
        np.testing.assert_allclose(batch.next_return_to_go[b], expected, atol=1e-5)
    np.testing.assert_allclose(
        batch.next_return_to_go[:, :-1], batch.return_to_go[:, 1:], atol=1e-5
    )
    plain = made("plain")[1].sample(jax.random.key(1), made("plain")[2])
    jax.tree.map(np.testing.assert_array_equal, Transition(*batch[:5]), plain)


def acting(learner, state, deterministic=True):
    return jax.jit(
        lambda memory, observation, reward: learner.policy.act(
            state, memory, observation, reward, jax.random.key(3), deterministic
        )
    )


@pytest.mark.parametrize("name", ("returns", "mlp_returns"))
def test_acts_for_the_return_wanted(task, made, dataset, name):
    """As on training windows of the data, whose returns fall by each reward; one for each row."""
    config, learner, data, state = made(name)
    act, t = acting(learner, state), dataset.transition
    twice = lambda x: jnp.stack([x, x])  # noqa: E731
    memory = learner.policy.init(state, 2, jnp.array([1.0, 10.0]) * dataset.return_to_go[0])
    for i in range(5):
        reward = twice(t.reward[i - 1]) if i else jnp.zeros(2)
        action, memory = act(memory, twice(t.observation[i]), reward)
    window, dims = data.rows[3 - 1 : 5][None], task.observation_dim
    actor = tcql.make_actor(task, config)
    mean, _ = actor.apply(
        state.params["actor"], window[..., :dims], None, window[..., -2], deterministic=True
    )
    np.testing.assert_allclose(action[0], np.tanh(mean[0, -1]), atol=1e-5)
    assert np.abs(action[0] - action[1]).max() > 1e-3


def test_without_a_wish_it_is_the_best_return(made, dataset):
    _, learner, data, state = made("returns")
    first = np.asarray(dataset.timestep) == 0
    best = np.asarray(dataset.return_to_go)[first].max()
    states = training.init(learner, data, (0, 1))
    memory = jax.vmap(lambda s: learner.policy.init(s, 2))(states)
    np.testing.assert_allclose(memory.return_to_go, np.full((2, 2, L), best), rtol=1e-6)
    assert made("plain")[1].policy.init(state, 2, 5.0).return_to_go is None


def test_the_mlp_has_no_memory(made, dataset):
    _, learner, _, state = made("mlp")
    act, observation = acting(learner, state), dataset.transition.observation
    memory = learner.policy.init(state, 2)
    assert memory.observation.shape == (2, 1, 3)
    for t in range(4):
        action, memory = act(memory, observation[t : t + 2], jnp.zeros(2))
    fresh, _ = act(learner.policy.init(state, 2), observation[3:5], jnp.zeros(2))
    np.testing.assert_array_equal(action, fresh)


def test_the_best_of_several_candidates(task, made, dataset):
    config, learner, _, state = made("best_of_6")
    observation = dataset.transition.observation[:4]
    memory, zero = learner.policy.init(state, 4), jnp.zeros(4)

    @jax.jit
    def run(noise):
        now = state.normalizer(observation)
        seen = memory_lib.push(memory, now, zero)
        choose = functools.partial(tcql.choose_action, state, seen, task=task, config=config)
        best, each = choose(noise), [choose(n) for n in noise]
        q = [tcql.make_critic(config).apply(state.target_critic, now, a) for a in each]
        return best, jnp.stack(each), jnp.stack(q)

    noise = jax.random.normal(jax.random.key(3), (6, 4, 2))
    best, each, q = run(noise)
    chosen = np.asarray(q).min(axis=1).argmax(axis=0)  # [6, 2, B] -> [B]
    assert len(set(chosen)) > 1
    np.testing.assert_allclose(best, np.asarray(each)[chosen, np.arange(4)], atol=1e-6)
    sampled, _ = acting(learner, state, deterministic=False)(memory, observation, zero)
    np.testing.assert_allclose(sampled, best, atol=1e-6)  # the same key
    mode = acting(learner, state)(memory, observation, zero)[0]
    plain = acting(made("plain")[1], state)(memory, observation, zero)[0]
    np.testing.assert_array_equal(mode, plain)


@pytest.mark.parametrize("name", ("plain", "mlp", "returns"))
@pytest.mark.parametrize("count", (L - 1, L + 2))
def test_priming_is_acting_before(made, dataset, name, count):
    """A whole history, one of a single step, and none, side by side."""
    _, learner, _, state = made(name)
    act, t = acting(learner, state), jax.tree.map(lambda x: x[12:30], dataset.transition)
    known, target = (count, 1, 0), np.array([3.0, 4.0, 5.0], np.float32)
    history = jax.tree.map(lambda x: jnp.stack([x[:count]] * 3), t)
    mask = jnp.arange(count) >= count - jnp.array(known)[:, None]
    memory = learner.policy.init(state, 3, target)
    memory = learner.policy.prime(state, memory, history, mask)
    now, reward = jnp.stack([t.observation[count]] * 3), t.reward[count - 1]
    found = []
    for i in range(2):  # and from there on
        previous = jnp.where(mask[:, -1], reward, 0.0) if i == 0 else jnp.full(3, 0.5)
        action, memory = act(memory, now, previous)
        found.append(np.asarray(action))
    for row, length in enumerate(known):
        memory = learner.policy.init(state, 3, target)
        steps = [*range(count - length, count + 1), count]
        for i, step in enumerate(steps):
            previous = 0.5 if i == len(steps) - 1 else t.reward[step - 1] * (i > 0)
            action, memory = act(
                memory, jnp.stack([t.observation[step]] * 3), jnp.full(3, previous)
            )
            if i >= len(steps) - 2:
                expected = found[i - len(steps) + 2][row]
                np.testing.assert_allclose(action[row], expected, atol=1e-5)
    if name != "mlp":
        assert np.abs(found[0][0] - found[0][2]).max() > 1e-3  # the history matters


@pytest.mark.slow
def test_seeds_side_by_side_are_seeds_alone(task, dataset_x64, made, x64):
    learner = made("mlp_returns")[1]
    data = learner.prepare(dataset_x64)
    wide = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731

    def run(key):
        def step(state, _):
            batch = learner.sample(jax.random.fold_in(state.key, state.step), data)
            return learner.update(state, batch)

        state = jax.tree.map(wide, learner.init(key, data))
        return jax.lax.scan(step, state, length=3)

    keys = jax.random.split(jax.random.key(0), 2)
    together, info = jax.jit(jax.vmap(run))(keys)
    alone, _ = jax.jit(run)(keys[1])
    assert all(np.all(np.isfinite(x)) for x in info.values())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-8, atol=1e-10),
        (together.params, together.target_critic), (alone.params, alone.target_critic),
    )  # fmt: skip
