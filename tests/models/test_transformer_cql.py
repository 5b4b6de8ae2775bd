import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.models import transformer_cql as tcql
from tgcvg_jax.types import UserError


@pytest.fixture(scope="module")
def config(configs):
    return configs["transformer_cql"]


@pytest.fixture(scope="module")
def learner(task, config):
    return tcql.make(task, config)


@pytest.fixture(scope="module")
def data(learner, dataset):
    return learner.prepare(dataset)


@pytest.fixture(scope="module")
def state(model_states):
    return model_states["policy"]


@pytest.fixture(scope="module")
def batch(learner, data):
    return learner.sample(jax.random.key(7), data)


@pytest.fixture(scope="module")
def noise(batch, config):
    return tcql.draw_noise(jax.random.key(8), batch, config)


@pytest.fixture(scope="module")
def update(task, config):
    """One step without dropout: (state, batch, noise) -> (state, info, gradients)."""
    static = dict(task=task, config=dataclasses.replace(config, dropout=0.0, cql_weight=100.0))

    @jax.jit
    def run(state, batch, noise):
        grads, _ = jax.grad(tcql.loss, has_aux=True)(
            state.params, state.target_critic, batch, noise, state.step, **static
        )
        return *tcql.apply_update(state, batch, noise, **static), grads

    return run


def with_actor(state, **values):
    values = {k: jnp.float32(v) for k, v in values.items()}
    actor = {"params": state.params["actor"]["params"] | values}
    return state.replace(params=state.params | {"actor": actor})


def test_windows_are_consecutive_rows_of_one_episode(batch, data, config):
    assert batch.observation.shape == (config.batch_size, config.context_length, 3)
    np.testing.assert_allclose(batch.observation[:, 1:], batch.next_observation[:, :-1], atol=1e-5)
    assert np.all(np.asarray(batch.discount)[:, :-1] == 1.0)


def test_terminal_penalty(task, config, dataset):
    rows = [
        tcql.make(task, dataclasses.replace(config, terminal_penalty=p)).prepare(dataset).rows
        for p in (0.0, 100.0)
    ]
    np.testing.assert_allclose(
        rows[0][:, -2] - rows[1][:, -2], 100.0 * (1.0 - dataset.transition.discount), atol=1e-4
    )


def test_no_window_is_an_error(task, config, dataset):
    long = tcql.make(task, dataclasses.replace(config, context_length=31))
    with pytest.raises(UserError, match=r"31 transitions.*longest episode has 30"):
        long.prepare(dataset)


def test_conservative_term_lowers_proposals_against_data(update, state, batch, noise, config):
    """A small step down the critics' gradient narrows the gap."""
    _, info, grads = update(state, batch, noise)
    critic = jax.tree.map(lambda p, g: p - 1e-5 * g, state.params["critic"], grads["critic"])
    _, after, _ = update(state.replace(params=state.params | {"critic": critic}), batch, noise)
    assert float(after["cql_gap"]) < float(info["cql_gap"])
    assert float(after["q_data"]) > float(info["q_data"])


@pytest.mark.parametrize(("offset", "rises"), [(-6.0, True), (-0.3, False)])
def test_temperature_follows_the_entropy(update, state, batch, noise, offset, rises):
    narrow = with_actor(state, log_std_offset=offset, log_std_multiplier=0.0)
    new, info, _ = update(narrow, batch, noise)
    assert (float(info["entropy"]) < -2.0) == rises  # the target is -A
    assert (float(new.params["log_alpha"]) > float(state.params["log_alpha"])) == rises


def test_terminals_do_not_bootstrap(update, state, batch, noise):
    target = lambda batch, shift: float(  # noqa: E731
        update(
            state.replace(target_critic=jax.tree.map(lambda x: x + shift, state.target_critic)),
            batch,
            noise,
        )[1]["td_target"]
    )
    ended = batch._replace(discount=batch.discount.at[:, -1].set(0.0))
    running = batch._replace(discount=jnp.ones_like(batch.discount))
    assert target(ended, 0.0) == target(ended, 1.0)
    assert target(running, 0.0) != target(running, 1.0)


def test_gradients_go_to_their_own_part(task, config, state, batch, noise, update):
    """Scaling all critics' values by hand must not reach the actor through the critic's loss."""
    _, _, grads = update(state, batch, noise)
    heavy = dict(task=task, config=dataclasses.replace(config, dropout=0.0, cql_weight=0.0))
    other, _ = jax.jit(
        lambda p: jax.grad(tcql.loss, has_aux=True)(
            p, state.target_critic, batch, noise, state.step, **heavy
        )
    )(state.params)
    for name in ("actor", "log_alpha"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads[name], other[name]
        )
    same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), grads["critic"], other["critic"])
    assert not all(jax.tree.leaves(same))


def test_targets_move_slowly_every_step(update, state, batch, noise, config):
    new, _, _ = update(state, batch, noise)
    jax.tree.map(
        lambda t, old, p: np.testing.assert_allclose(
            t, (1 - config.tau) * old + config.tau * p, atol=1e-6
        ),
        new.target_critic, state.target_critic, new.params["critic"],
    )  # fmt: skip


@pytest.mark.parametrize("shared", (True, False))
def test_dropout_is_on_in_training(task, config, state, batch, noise, shared):
    """Each of the passes has its own key, and each matters."""
    wet = dataclasses.replace(config, shared_forward=shared)
    value = jax.jit(
        lambda dropout: tcql.loss(
            state.params, state.target_critic, batch, noise.replace(dropout=dropout), state.step,
            task=task, config=wet,
        )[0]
    )  # fmt: skip
    first = value(noise.dropout)
    assert first == value(noise.dropout)
    others = jax.random.split(jax.random.key(9), 3)
    used = 2 if shared else 3
    for i in range(used):
        assert first != value(noise.dropout.at[i].set(others[i]))
    if shared:
        assert first == value(noise.dropout.at[2].set(others[2]))


def test_behaviour_cloning_warm_up(task, config, state, batch, noise):
    static = dict(task=task, config=dataclasses.replace(config, bc_steps=2, dropout=0.0))
    run = jax.jit(lambda s: tcql.apply_update(s, batch, noise, **static))
    during, info = run(state)
    assert float(info["alpha_loss"]) == 0.0
    assert float(during.params["log_alpha"]) == float(state.params["log_alpha"])
    after, info = run(state.replace(step=jnp.int32(2)))
    assert float(info["alpha_loss"]) != 0.0 or float(state.params["log_alpha"]) == 0.0
    assert float(after.params["log_alpha"]) != float(state.params["log_alpha"])


@pytest.mark.parametrize("masked", (True, False))
def test_acting_with_a_growing_history(task, config, state, dataset, masked):
    """Online, with fewer than L states and with more, equals a forward pass over the history."""
    policy = tcql.make_policy(task, dataclasses.replace(config, mask_padding=masked))
    length = config.context_length
    observation = dataset.transition.observation[12:18][None]  # a prefix of the second episode
    actor = tcql.make_actor(task, config)
    z = state.normalizer(observation)
    forward = jax.jit(lambda x: actor.apply(state.params["actor"], x, deterministic=True)[0])
    act = jax.jit(lambda c, o: policy.act(state, c, o, jnp.zeros(1), jax.random.key(0), True))
    carry = policy.init(state, 1)
    for t in range(6):
        action, carry = act(carry, observation[:, t])
        history = z[:, max(0, t + 1 - length) : t + 1]
        if not masked:
            history = jnp.pad(history, ((0, 0), (length - history.shape[1], 0), (0, 0)))
        expected = jnp.tanh(forward(history)[:, -1])
        np.testing.assert_allclose(action, expected, atol=1e-5)


def test_acting_has_no_dropout_and_samples_when_asked(learner, state, dataset):
    observation = dataset.transition.observation[:2]

    @jax.jit
    def act(key):
        carry = learner.policy.init(state, 2)
        run = lambda deterministic: learner.policy.act(  # noqa: E731
            state, carry, observation, jnp.zeros(2), key, deterministic
        )[0]
        return run(True), run(False)

    (mean, sample), (other_mean, other_sample) = act(jax.random.key(0)), act(jax.random.key(1))
    np.testing.assert_array_equal(mean, other_mean)
    assert not np.any(np.asarray(sample) == np.asarray(other_sample))
    assert np.all(np.abs(sample) <= 1.0)


def test_initial_temperature(config, state):
    assert np.exp(float(state.params["log_alpha"])) == pytest.approx(config.initial_temperature)


def test_as_paper():
    paper = tcql.as_paper(tcql.Config(context_length=7))
    assert paper.td_reduction == "half_sum" and paper.learning_rate == 1e-4
    assert paper.actor_weight_decay == 0.0 and paper.context_length == 7
