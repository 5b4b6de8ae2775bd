import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.models import any_step_dynamics as dyn
from tgcvg_jax.types import UserError


@pytest.fixture(scope="module")
def config(configs):
    return configs["any_step_dynamics"]


@pytest.fixture(scope="module")
def learner(task, config):
    return dyn.make(task, dataclasses.replace(config, patience=2))


@pytest.fixture(scope="module")
def data(learner, dataset):
    return learner.prepare(dataset)


@pytest.fixture(scope="module")
def state(model_states):
    return model_states["dynamics"]


@pytest.mark.parametrize("k", (1, 2))
def test_batches_hold_sequences_of_k_steps(task, config, dataset, data, k):
    batch = dyn.take_batch(
        data.train, jax.random.key(k), jnp.int32(k), 200, task=task, config=config
    )
    t = jax.tree.map(np.asarray, dataset.transition)
    starts = set()
    for observation, actions, target in zip(
        *(np.asarray(x) for x in (batch.observation, batch.actions, batch.target))
    ):
        i = int(np.argmin(np.abs(t.observation - observation).sum(axis=1)))
        starts.add(i)
        assert int(dataset.remaining[i]) >= k
        np.testing.assert_array_equal(t.observation[i], observation)
        np.testing.assert_array_equal(t.action[i : i + k], actions[:k])
        change = t.next_observation[i + k - 1] - t.observation[i]
        np.testing.assert_allclose(target[:-1], change, atol=1e-6)
        assert target[-1] == t.reward[i + k - 1]
    assert max(starts) < dataset.size - 28  # the holdout is the tail


def test_all_k_are_drawn_equally(learner, data):
    keys = jax.random.split(jax.random.key(0), 400)
    k = np.asarray(jax.jit(jax.vmap(lambda key: learner.sample(key, data).k))(keys))
    assert set(k) == {1, 2} and abs(k.mean() - 1.5) < 0.1


def test_holdout_is_the_tail(data, dataset):
    assert data.holdout.rows.shape[0] == int(0.2 * dataset.size)
    assert data.train.rows.shape[0] + data.holdout.rows.shape[0] == dataset.size
    np.testing.assert_allclose(
        data.observation_normalizer.mean, dataset.transition.observation.mean(axis=0), rtol=1e-5
    )


def test_no_sequence_of_m_steps_is_an_error(task, config, dataset):
    learner = dyn.make(task, dataclasses.replace(config, max_steps=31))
    with pytest.raises(UserError, match="longest jump m"):
        learner.prepare(dataset)


def test_dropout_is_on_in_training_and_off_without_a_key(task, config, learner, state, data):
    batch = learner.sample(jax.random.key(0), data)
    value = jax.jit(lambda key: dyn.loss(state.params, state, batch, key, task=task, config=config))
    dry = [float(value(None)[0]) for _ in range(2)]
    wet = [float(value(jax.random.key(i))[0]) for i in (0, 0, 1)]
    assert dry[0] == dry[1]
    assert wet[0] == wet[1] != wet[2] and dry[0] not in wet


def test_step_model_uses_the_best_snapshot(task, config, state):
    s, a, noise = jnp.ones((2, 3)), jnp.ones((2, 2)), jnp.ones((2, 4))
    step = jax.jit(lambda st: dyn.step_model(st, s, a, noise, None, task=task, config=config))
    shift = lambda tree: jax.tree.map(lambda x: x + 0.1, tree)  # noqa: E731
    before, reward = step(state)
    assert before.shape == (2, 3) and reward.shape == (2,)
    np.testing.assert_array_equal(before, step(state.replace(params=shift(state.params)))[0])
    other = step(state.replace(best_params=shift(state.best_params)))[0]
    assert not np.allclose(before, other)


def test_validation_keeps_the_best_until_patience_ends(learner, state, data):
    """Good, worse, worse: finished, and deaf to what comes after."""
    validate = jax.jit(learner.validate)

    def push(state, offset):
        params = dict(state.params["params"])
        head = dict(params["head"])
        head["bias"] = jnp.full_like(head["bias"], offset)
        return state.replace(params={"params": params | {"head": head}})

    offsets, seen = (1.0, 50.0, 60.0, 0.0), []
    for offset in offsets:
        state, metrics = validate(push(state, offset), data)
        seen.append((bool(state.finished), int(state.stale_epochs), float(metrics["holdout_mse"])))
    assert [s[:2] for s in seen] == [(False, 0), (False, 1), (True, 2), (True, 3)]
    assert seen[3][2] < seen[0][2] < seen[1][2]
    np.testing.assert_array_equal(state.best_params["params"]["head"]["bias"], 1.0)
    assert float(metrics["best_holdout_mse"]) == pytest.approx(seen[0][2])


def test_epoch_length(task, config, data):
    released = dyn.make(task, dataclasses.replace(config, epoch_steps=None))
    assert released.steps_per_epoch(data) == (113 // 8) * 2


def test_calibration(task, config, dataset, state):
    """Residuals of known size."""
    config = dataclasses.replace(config, reward_bias=2.0)
    t = jax.tree.map(lambda x: x[-28:], dataset.transition)
    calibration = jax.jit(lambda t: dyn.calibration(state, t, task=task, config=config))
    ones = jnp.array([1.0, 2.0, 3.0, 0.5]) * jnp.where(jnp.arange(28) % 2, 1.0, -1.0)[:, None]
    following, reward = jax.jit(
        lambda noise: dyn.step_model(
            state, t.observation, t.action, noise, None, task=task, config=config
        )
    )(ones)
    made = t._replace(next_observation=following, reward=reward)
    np.testing.assert_allclose(calibration(made), [1.0, 2.0, 3.0, 0.5], rtol=1e-3)
