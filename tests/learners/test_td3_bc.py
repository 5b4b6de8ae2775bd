import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.learners import td3_bc


@pytest.fixture(scope="module")
def config(configs):
    return configs["td3_bc"]


@pytest.fixture(scope="module")
def learner(task, config):
    return td3_bc.make(task, config)


@pytest.fixture(scope="module")
def data(learner, dataset):
    return learner.prepare(dataset)


@pytest.fixture(scope="module")
def state(learner, data):
    return jax.jit(learner.init)(jax.random.key(0), data)


@pytest.fixture(scope="module")
def batch(learner, data):
    return jax.tree.map(lambda x: x[0], learner.sample(jax.random.key(1), data))


@pytest.fixture(scope="module")
def critic_step(task, config):
    step = lambda s, b, noise: td3_bc.critic_step(s, b, noise, task=task, config=config)  # noqa: E731
    return jax.jit(step)


def same(a, b):
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_targets_move_only_with_the_actor(task, config, state, batch, critic_step):
    after, _ = critic_step(state, batch, jnp.zeros((8, 2)))
    assert not same(after.critic, state.critic)
    assert same(after.target_critic, state.target_critic)
    assert same(after.target_actor, state.target_actor) and same(after.actor, state.actor)
    moved, _ = jax.jit(lambda s: td3_bc.actor_step(s, batch, task=task, config=config))(after)
    assert same(moved.critic, after.critic) and not same(moved.actor, after.actor)
    for new, old, online in (
        (moved.target_critic, after.target_critic, after.critic),
        (moved.target_actor, after.target_actor, moved.actor),
    ):
        jax.tree.map(
            lambda n, o, p: np.testing.assert_allclose(n, 0.995 * o + 0.005 * p, atol=1e-6),
            new, old, online,
        )  # fmt: skip


def test_terminals_do_not_bootstrap(state, batch, critic_step):
    target = critic_step(state, batch._replace(discount=jnp.zeros(8)), jnp.zeros((8, 2)))[1]
    np.testing.assert_array_equal(target["td_target"], batch.reward)
    target = critic_step(state, batch._replace(discount=jnp.ones(8)), jnp.zeros((8, 2)))[1]
    assert np.all(np.asarray(target["td_target"] != batch.reward))


def test_target_noise_is_clipped(state, batch, critic_step):
    """A draw of 2.5 is at the clip of 0.5 = 0.2 * 2.5; more changes nothing."""
    run = lambda draw: critic_step(state, batch, jnp.full((8, 2), draw))[1]["td_target"]  # noqa: E731
    np.testing.assert_array_equal(run(2.5001), run(100.0))
    assert not np.array_equal(run(2.0), run(100.0))


def test_one_update_is_policy_freq_critic_steps(task, config, data):
    learner = td3_bc.make(task, dataclasses.replace(config, policy_freq=3))
    assert learner.steps_per_update == 3
    state = jax.jit(learner.init)(jax.random.key(0), data)
    shapes = jax.eval_shape(lambda s: learner.update(s, learner.sample(s.key, data)), state)
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(state)
    assert learner.sample(jax.random.key(0), data).action.shape == (3, 8, 2)
    assert all(x.shape == () for x in shapes[1].values())


def test_normalisation(data, dataset):
    observation = np.asarray(dataset.transition.observation)
    np.testing.assert_allclose(data.normalizer.std, observation.std(axis=0) + 1e-3, rtol=1e-5)
    z = (observation - observation.mean(axis=0)) / (observation.std(axis=0) + 1e-3)
    np.testing.assert_allclose(data.rows[:, :3], z, atol=1e-5)


def test_policy_normalises_raw_observations(learner, state):
    observation = jnp.ones((2, 3))
    act = lambda s, o: learner.policy.act(s, (), o, jnp.zeros(2), None, True)[0]  # noqa: E731
    raw = act(state, observation)
    identity = state.replace(normalizer=Normalizer(jnp.zeros(3), jnp.ones(3)))
    np.testing.assert_allclose(raw, act(identity, state.normalizer(observation)), atol=1e-6)
    assert raw.shape == (2, 2) and np.all(np.abs(raw) < 1)
