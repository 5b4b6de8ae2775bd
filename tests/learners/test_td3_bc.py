import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import tasks
from tgcvg_jax.data.replay import Replay
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


@pytest.fixture(scope="module")
def actor_step(task, config):
    return jax.jit(lambda s, b: td3_bc.actor_step(s, b, task=task, config=config))


def same(a, b):
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_targets_move_only_with_the_actor(state, batch, critic_step, actor_step):
    after, _ = critic_step(state, batch, jnp.zeros((8, 2)))
    assert not same(after.critic, state.critic)
    assert same(after.target_critic, state.target_critic)
    assert same(after.target_actor, state.target_actor) and same(after.actor, state.actor)
    moved, _ = actor_step(after, batch)
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


def test_two_updates_step_by_step(learner, data, state, critic_step, actor_step):
    """Noise of the state's key and step, other in each critic step; the actor on the last batch."""
    update, expected = jax.jit(learner.update), state
    for i in range(2):
        batch = learner.sample(jax.random.key(i), data)
        noise = jax.random.normal(jax.random.fold_in(state.key, expected.step), (2, 8, 2))
        for j in range(2):
            part = jax.tree.map(lambda x, j=j: x[j], batch)
            expected, critic_info = critic_step(expected, part, noise[j])
        expected, actor_info = actor_step(expected, part)
        state, metrics = update(state, batch)
        info = jax.tree.map(jnp.mean, critic_info | actor_info)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            (state.replace(key=None), metrics), (expected.replace(key=None), info),
        )  # fmt: skip
    assert state.step == 4


def test_one_batch_for_each_critic_step(task, config, data):
    learner = td3_bc.make(task, dataclasses.replace(config, policy_freq=3))
    assert learner.steps_per_update == 3
    assert learner.sample(jax.random.key(0), data).action.shape == (3, 8, 2)


def test_normalisation(data, dataset):
    observation = np.asarray(dataset.transition.observation)
    np.testing.assert_allclose(data.normalizer.std, observation.std(axis=0) + 1e-3, rtol=1e-5)
    z = (observation - observation.mean(axis=0)) / (observation.std(axis=0) + 1e-3)
    np.testing.assert_allclose(data.rows[:, :3], z, atol=1e-5)


def test_settings_of_the_tasks():
    for name, task in tasks.TASKS.items():
        shift = Replay(reward_shift=-1.0 if "antmaze" in name else 0.0)
        assert td3_bc.for_task(task, "corl") == td3_bc.Config(replay=shift)
        assert td3_bc.for_task(task, "tgcvg") == td3_bc.Config()
        assert td3_bc.for_task(task, "gta") == td3_bc.Config(batch_size=1024)
