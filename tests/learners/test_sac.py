import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.learners import sac
from tgcvg_jax.types import Transition

CONFIG = sac.Config(batch_size=6, hidden_dims=(8,), learning_rate=1e-3)


@pytest.fixture(scope="module")
def made(task, dataset_x64):
    """A state, a batch and noise in float64."""
    learner = sac.make(task, CONFIG)

    @jax.jit
    def make(data):
        state = learner.init(jax.random.key(0), data)
        target = jax.tree.map(lambda x: 0.9 * x + 0.01, state.params["critic"])
        batch = learner.sample(jax.random.key(1), data)
        noise = jax.random.normal(jax.random.key(2), (2, *batch.action.shape))
        return state.replace(target_critic=target), batch, noise

    with jax.enable_x64(True):
        return make(learner.prepare(dataset_x64))


@pytest.fixture(scope="module")
def grad(task):
    """Gradient of the loss, or of one of its parts, and all parts."""

    def part(params, state, batch, noise, name):
        total, info = sac.loss(params, state.target_critic, batch, noise, task, CONFIG)
        return info.get(name, total), info

    return jax.jit(jax.grad(part, has_aux=True), static_argnums=4)


@pytest.fixture
def problem(x64, made):
    assert {x.dtype for x in jax.tree.leaves(made[0].params)} == {jnp.dtype("float64")}
    return made


def linear(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def mlp(params, x):
    return linear(params["layer_1"], np.maximum(linear(params["layer_0"], x), 0.0))


def sample(params, observation, noise):
    mean, log_std = np.split(mlp(params["params"], observation), 2, axis=-1)
    u = mean + np.exp(log_std) * noise
    normal = -0.5 * np.square(noise) - log_std - 0.5 * np.log(2 * np.pi)
    return np.tanh(u), np.sum(normal - np.log(1 - np.square(np.tanh(u))), axis=-1)


def q_values(params, observation, action):
    x = np.concatenate([observation, action], axis=-1)
    each = [jax.tree.map(lambda p, i=i: p[i], params["params"]["q"]) for i in range(2)]
    return np.stack([mlp(p, x)[:, 0] for p in each])


def test_losses_by_hand(problem, grad):
    """Haarnoja et al. 2018 (arXiv 1812.05905), equations 5, 9 and 18, in plain numpy."""
    state, batch, noise = problem
    b, noise = jax.tree.map(np.asarray, (batch, noise))
    alpha = np.exp(float(state.params["log_alpha"])) * 0.3
    params = state.params | {"log_alpha": jnp.log(alpha)}
    _, info = grad(params, state, batch, noise, "total")

    next_action, next_log_prob = sample(params["actor"], b.next_observation, noise[1])
    next_q = q_values(state.target_critic, b.next_observation, next_action).min(axis=0)
    target = b.reward + 0.99 * b.discount * (next_q - alpha * next_log_prob)
    errors = q_values(params["critic"], b.observation, b.action) - target
    action, log_prob = sample(params["actor"], b.observation, noise[0])
    q = q_values(params["critic"], b.observation, action).min(axis=0)
    np.testing.assert_allclose(info["critic_loss"], np.sum(np.mean(errors**2, axis=1)), rtol=1e-9)
    np.testing.assert_allclose(info["actor_loss"], np.mean(alpha * log_prob - q), rtol=1e-9)
    np.testing.assert_allclose(info["alpha"], alpha, rtol=1e-9)


def test_every_loss_reaches_its_own_part_alone(problem, grad):
    state, *rest = problem
    whole, _ = grad(state.params, state, *rest, "total")
    for part in ("critic", "actor"):
        own, _ = grad(state.params, state, *rest, f"{part}_loss")
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9)  # noqa: E731
        jax.tree.map(close, whole[part], own[part])


@pytest.mark.parametrize(("log_std", "sign"), [(-3.0, -1), (0.0, 1)])
def test_temperature_rises_when_entropy_is_short(problem, task, grad, log_std, sign):
    """A peaked policy has less than the target entropy: a gradient step must raise alpha."""
    state, batch, noise = problem
    actor = jax.tree.map(jnp.zeros_like, state.params["actor"])
    bias = actor["params"]["layer_1"]["bias"].at[task.action_dim :].set(log_std)
    actor["params"]["layer_1"]["bias"] = bias
    grads, _ = grad(state.params | {"actor": actor}, state, batch, noise, "total")
    log_prob = sample(actor, np.asarray(batch.observation), np.asarray(noise[0]))[1].mean()
    assert np.sign(log_prob - task.action_dim) == -sign
    assert np.sign(grads["log_alpha"]) == sign


def test_ring(task):
    ring = sac.empty_ring(task, 6)
    width = ring.rows.shape[1]
    for value, position, size in ((1.0, 0, 2), (2.0, 2, 4), (3.0, 4, 6), (4.0, 0, 6)):
        ring = sac.insert(ring, jnp.full((2, width), value), jnp.int32(position))
        assert int(ring.size) == size
    np.testing.assert_array_equal(ring.rows[:, 0], [4, 4, 2, 2, 3, 3])


def test_only_filled_rows_are_sampled(task, dataset):
    learner = sac.make(task, CONFIG)
    ring = learner.prepare(dataset)
    ring = ring.replace(rows=ring.rows.at[3:].set(jnp.nan), size=jnp.int32(3))
    batch = jax.vmap(learner.sample, (0, None))(jax.random.split(jax.random.key(0), 50), ring)
    assert all(np.isfinite(x).all() for x in batch)


def test_policy_is_random_unless_deterministic(task, problem):
    policy, (state, batch, _) = sac.make(task, CONFIG).policy, problem
    carry = policy.init(state, 6)
    act = lambda key, mean: policy.act(state, carry, batch.observation, None, key, mean)[0]  # noqa: E731
    one, other = jax.random.split(jax.random.key(0))
    assert not np.allclose(act(one, False), act(other, False))
    np.testing.assert_array_equal(act(one, True), act(other, True))


def test_transitions_come_back_as_they_went_in(task, dataset):
    learner = sac.make(task, CONFIG)
    ring = learner.prepare(dataset)
    batch = learner.sample(jax.random.key(3), ring)
    assert isinstance(batch, Transition)
    index = [
        np.flatnonzero((np.asarray(dataset.transition.observation) == o).all(axis=1))[0]
        for o in np.asarray(batch.observation)
    ]
    for got, source in zip(batch, dataset.transition):
        np.testing.assert_array_equal(got, np.asarray(source)[index])
