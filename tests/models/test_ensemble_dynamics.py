import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import training
from tgcvg_jax.models import ensemble_dynamics as ensemble

E = 3


@pytest.fixture(scope="module")
def config(configs):
    return dataclasses.replace(configs["ensemble_dynamics"], learning_rate=1e-2, patience=2)


@pytest.fixture(scope="module")
def learner(task, config):
    return ensemble.make(task, config)


@pytest.fixture(scope="module")
def data(learner, dataset):
    return learner.prepare(dataset)


@pytest.fixture(scope="module")
def state(learner, data):
    return jax.jit(learner.init)(jax.random.key(0), data)


@pytest.fixture(scope="module")
def trained(task, dataset):
    """A wider one after 600 steps, and its config."""
    config = ensemble.Config(
        num_members=E, hidden_dims=(32, 32), batch_size=32, learning_rate=3e-3, epoch_steps=150
    )
    result = training.fit(ensemble.make(task, config), dataset, num_steps=600)
    return training.select_seed(result.state, 0), config


def member(tree, e):
    return jax.tree.map(lambda x: x[e], tree)


def test_data_is_standardised_and_the_holdout_is_the_tail(data, dataset, task, config):
    size = dataset.size - int(0.2 * dataset.size)
    assert data.train.shape == (size, 9) and data.holdout.shape == (dataset.size - size, 9)
    rows = np.concatenate([data.train, data.holdout])
    np.testing.assert_allclose(rows.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(rows.std(axis=0), 1.0, atol=1e-5)
    t = dataset.transition
    inputs = data.input_normalizer.inverse(rows[:, :5])
    target = np.asarray(data.target_normalizer.inverse(rows[:, 5:]))
    np.testing.assert_allclose(inputs, np.concatenate([t.observation, t.action], 1), atol=1e-5)
    np.testing.assert_allclose(target[:, :3], t.next_observation - t.observation, atol=1e-5)
    np.testing.assert_allclose(target[:, 3], t.reward, atol=1e-5)


def test_each_member_draws_from_its_own_resample(learner, data, task, config, dataset):
    keys = jax.random.split(jax.random.key(0), 40)
    batch = np.asarray(jax.jit(jax.vmap(learner.sample, (0, None)))(keys, data))  # [40, E, B, 9]
    seen = []
    for e in range(E):
        rows = np.unique(batch[:, e].reshape(-1, 9), axis=0)
        own = np.unique(np.asarray(data.train)[np.asarray(data.resample[e])], axis=0)
        seen.append({row.tobytes() for row in rows})
        assert seen[e] <= {row.tobytes() for row in own}
        assert len(own) < 0.75 * len(data.train) < 1.4 * len(own)  # 1 - 1/e of the rows
    assert seen[0] != seen[1] != seen[2]
    whole = ensemble.make(task, dataclasses.replace(config, bootstrap=False)).prepare(dataset)
    np.testing.assert_array_equal(whole.resample, np.tile(np.arange(len(data.train)), (E, 1)))


def test_members_start_apart(state):
    kernel = np.asarray(state.params["network"]["params"]["layer_0"]["kernel"])
    assert kernel.shape[0] == E
    assert not np.allclose(kernel[0], kernel[1]) and not np.allclose(kernel[1], kernel[2])


@pytest.mark.usefixtures("x64")
def test_updates_of_all_equal_updates_of_each(task, config, state, dataset_x64):
    """One member trained alone takes the same steps."""
    learner = ensemble.make(task, config)
    data = learner.prepare(dataset_x64)
    state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
    alone = ensemble.make(task, dataclasses.replace(config, num_members=1))
    slim = lambda tree, e: jax.tree.map(lambda x: x[e : e + 1] if x.ndim else x, tree)  # noqa: E731
    singles = [
        state.replace(params=slim(state.params, e), opt_state=slim(state.opt_state, e))
        for e in range(E)
    ]
    batches = np.random.default_rng(0).choice(data.train, (4, E, config.batch_size))
    update, update_alone = jax.jit(learner.update), jax.jit(alone.update)
    for batch in batches:
        state, _ = update(state, batch)
        singles = [update_alone(s, batch[e : e + 1])[0] for e, s in enumerate(singles)]
    for e in range(E):
        for a, b in zip(
            jax.tree.leaves(member(state.params, e)),
            jax.tree.leaves(member(singles[e].params, 0)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_a_step_is_that_of_the_rows_member(task, state, config):
    """Against each member's network, called by itself."""
    rng = np.random.default_rng(0)
    s, a = rng.normal(size=(6, 3)), rng.uniform(-1, 1, (6, 2))
    noise = rng.normal(size=(6, 4))
    chosen = jnp.array([0, 1, 2, 2, 1, 0])
    step = jax.jit(
        lambda st, noise, m: ensemble.step_model(st, s, a, noise, m, task=task, config=config)
    )
    following, reward = step(state, noise, chosen)
    assert following.shape == (6, 3) and reward.shape == (6,)
    inputs = state.input_normalizer(np.concatenate([s, a], axis=1))
    predict = jax.jit(lambda p, x: ensemble.predict_member(p, x, task=task, config=config))
    for i, e in enumerate(np.asarray(chosen)):
        mean, log_var = predict(member(state.best_params, e), inputs[i])
        target = state.target_normalizer.inverse(mean + np.exp(0.5 * log_var) * noise[i])
        np.testing.assert_allclose(following[i], s[i] + target[:3], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(reward[i], target[3], rtol=1e-4, atol=1e-5)
    other = state.replace(params=jax.tree.map(lambda x: x + 1, state.params))
    np.testing.assert_array_equal(step(other, noise, chosen)[0], following)  # best_params count


def test_a_key_draws_members_row_by_row(task, state, config):
    s, a = jnp.ones((60, 3)), jnp.ones((60, 2))
    step = jax.jit(lambda m: ensemble.step_model(state, s, a, 0.0, m, task=task, config=config)[0])
    means = np.asarray([step(jnp.full(60, e))[0] for e in range(E)])
    drawn = np.asarray(step(jax.random.key(0)))
    which = np.abs(drawn[:, None] - means).sum(axis=2).argmin(axis=1)
    np.testing.assert_allclose(drawn, means[which], atol=1e-6)
    assert np.bincount(which, minlength=E).min() > 8
    assert not np.array_equal(drawn, step(jax.random.key(1)))


def test_disagreement_is_the_spread_in_units_of_the_change(task, state, config):
    s, a = jnp.ones((5, 3)) * jnp.arange(5)[:, None], jnp.zeros((5, 2))
    step = jax.jit(lambda m: ensemble.step_model(state, s, a, 0.0, m, task=task, config=config)[0])
    means = [step(jnp.full(5, e)) for e in range(E)]
    scaled = np.stack(means) / np.asarray(state.target_normalizer.std)[:3]
    expected = np.sqrt(np.mean((scaled - scaled.mean(axis=0)) ** 2, axis=(0, 2)))
    doubt = jax.jit(lambda st: ensemble.disagreement(st, s, a, task=task, config=config))
    value = doubt(state)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    same = jax.tree.map(lambda x: jnp.stack([x[0]] * E), state.best_params)
    np.testing.assert_allclose(doubt(state.replace(best_params=same)), 0.0, atol=1e-6)


def test_learns_and_doubts_what_it_has_not_seen(task, dataset, trained):
    state, config = trained
    t = dataset.transition
    doubt = jax.jit(lambda s, a: ensemble.disagreement(state, s, a, task=task, config=config))
    seen = np.asarray(doubt(t.observation, t.action))
    away = np.asarray(doubt(t.observation + 6.0, t.action))
    assert np.median(away) > 2 * np.median(seen) > 0
    assert np.median(away) > np.quantile(seen, 0.9)
    step = functools.partial(ensemble.step_model, task=task, config=config)
    predicted, _ = jax.jit(step)(state, t.observation, t.action, 0.0, jax.random.key(0))
    error = np.mean((predicted - t.next_observation) ** 2)
    assert error < 0.3 * np.mean((t.observation - t.next_observation) ** 2)


def test_calibration(task, dataset, trained):
    """Known residuals of known standard deviations; the holdout's is of its rows."""
    state, config = trained
    t = dataset.transition
    predict = lambda s, a: ensemble.predict(  # noqa: E731
        state.best_params, state, s, a, task=task, config=config
    )
    mean, std = jax.jit(predict)(t.observation, t.action)
    change = mean[0] + std[0] * jnp.array([1.0, 2.0, 3.0, 0.5])
    one = jax.tree.map(lambda x: x[:1], state.best_params)
    made = t._replace(next_observation=t.observation + change[:, :3], reward=change[:, 3])
    scale = ensemble.calibration(state.replace(best_params=one), made, task=task, config=config)
    np.testing.assert_allclose(scale, [1.0, 2.0, 3.0, 0.5], rtol=1e-3)


def test_best_snapshots_are_each_members_own(learner, state, data):
    """Member 0 improves first, then member 1; then none does until patience ends."""
    validate = jax.jit(learner.validate)

    def push(state, offsets):
        params = jax.tree.map(lambda x: x, state.params)
        head = params["network"]["params"]["layer_2"]
        head["bias"] = jnp.asarray(offsets)[:, None] * jnp.ones_like(head["bias"])
        head["kernel"] = 0.0 * head["kernel"]
        return state.replace(params=params)

    seen = []
    for offsets in ([1, 3, 2], [0, 4, 2], [5, 0, 2], [1, 1, 9], [1, 1, 9], [0, 0, 0]):
        state, metrics = validate(push(state, offsets), data)
        bias = state.best_params["network"]["params"]["layer_2"]["bias"][:, 0]
        seen.append((*map(float, bias), int(state.stale_epochs), bool(state.finished)))
    assert seen == [
        (1, 3, 2, 0, False), (0, 3, 2, 0, False), (0, 0, 2, 0, False),
        (0, 0, 2, 1, False), (0, 0, 2, 2, True), (0, 0, 2, 3, True),
    ]  # fmt: skip
    assert np.all(np.diff(state.best_loss[jnp.array([0, 2])]) > 0)
    assert float(metrics["best_holdout_mse"]) == pytest.approx(float(jnp.mean(state.best_loss)))


def test_small_gains_do_not_count(task, config, state, data):
    validate = jax.jit(ensemble.make(task, config).validate)
    once, _ = validate(state, data)
    close = once.replace(best_loss=once.best_loss * 1.005)  # what is found now is 0.5 % better
    again, _ = validate(close, data)
    np.testing.assert_array_equal(again.best_loss, close.best_loss)
    far = once.replace(best_loss=once.best_loss * 1.05)
    again, _ = validate(far, data)
    np.testing.assert_array_equal(again.best_loss, once.best_loss)


def test_epoch_length(task, config, data):
    whole = ensemble.make(task, dataclasses.replace(config, epoch_steps=None))
    assert whole.steps_per_epoch(data) == 113 // 8
