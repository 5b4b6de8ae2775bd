import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import tasks
from tgcvg_jax.data import concatenate
from tgcvg_jax.learners import HYPERPARAMETERS, rebrac
from tgcvg_jax.types import SYNTHETIC, UserError

CONFIG = rebrac.Config(
    num_steps=12, batch_size=8, hidden_dims=(8, 8), actor_learning_rate=2e-3, actor_bc_coef=0.3,
    critic_bc_coef=0.2, policy_noise=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def learner(task):
    return rebrac.make(task, CONFIG)


# The oracle: networks, their gradients and Adam in plain numpy.


def forward(p, x):
    """Output, and what the backward pass needs of each layer."""
    cache = []
    for i in range(len([k for k in p if k.startswith("layer")])):
        layer, norm = p[f"layer_{i}"], p.get(f"norm_{i}")
        before = x
        x = x @ layer["kernel"] + layer["bias"]
        cache.append([before, x, None, None])
        if f"layer_{i + 1}" in p:
            x = np.maximum(x, 0.0)
            if norm is not None:
                std = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
                x = (x - x.mean(axis=-1, keepdims=True)) / std
                cache[-1][2:] = x, std
                x = x * norm["scale"] + norm["bias"]
    return x, cache


def backward(p, cache, grad):
    """Gradients of the parameters and of the input."""
    grads = {}
    for i in reversed(range(len(cache))):
        before, linear, z, std = cache[i]
        if i + 1 < len(cache):
            if z is not None:
                grads[f"norm_{i}"] = {"scale": (grad * z).sum(0), "bias": grad.sum(0)}
                grad = grad * p[f"norm_{i}"]["scale"]
                mean = lambda x: x.mean(axis=-1, keepdims=True)  # noqa: E731
                grad = (grad - mean(grad) - z * mean(grad * z)) / std
            grad = grad * (linear > 0)
        grads[f"layer_{i}"] = {"kernel": before.T @ grad, "bias": grad.sum(0)}
        grad = grad @ p[f"layer_{i}"]["kernel"].T
    return grads, grad


class Adam:
    def __init__(self, params, lr):
        self.lr, self.t = lr, 0
        self.m = self.v = jax.tree.map(np.zeros_like, params)

    def step(self, params, grads):
        self.t += 1
        self.m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, self.m, grads)
        self.v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, self.v, grads)
        m_hat, v_hat = 1 - 0.9**self.t, 1 - 0.999**self.t
        return jax.tree.map(
            lambda p, m, v: p - self.lr * (m / m_hat) / (np.sqrt(v / v_hat) + 1e-8),
            params, self.m, self.v,
        )  # fmt: skip


class Oracle:
    """The paper's two losses, with CORL's normalisation of Q, stepped one after another."""

    def __init__(self, state):
        state = jax.tree.map(np.asarray, state.replace(key=None))
        one = lambda p, i: jax.tree.map(lambda x: x[i], p["params"]["q"])  # noqa: E731
        self.actor, self.target_actor = state.actor["params"], state.target_actor["params"]
        self.critics = [one(state.critic, i) for i in range(2)]
        self.targets = [one(state.target_critic, i) for i in range(2)]
        self.actor_adam = Adam(self.actor, CONFIG.actor_learning_rate)
        self.adams = [Adam(p, CONFIG.critic_learning_rate) for p in self.critics]
        self.losses = {}

    def critic_step(self, b, data_next_action, noise):
        next_action = np.tanh(forward(self.target_actor, b.next_observation)[0])
        next_action = np.clip(next_action + np.clip(0.5 * noise, -0.5, 0.5), -1, 1)
        x = np.concatenate([b.next_observation, next_action], axis=1)
        next_q = np.minimum(*(forward(p, x)[0][:, 0] for p in self.targets))
        penalty = ((next_action - data_next_action) ** 2).sum(axis=1)
        target = b.reward + 0.99 * b.discount * (next_q - 0.2 * penalty)
        x, loss = np.concatenate([b.observation, b.action], axis=1), 0.0
        for i in range(2):
            q, cache = forward(self.critics[i], x)
            error = q - target[:, None]
            loss += np.mean(error**2)
            grads, _ = backward(self.critics[i], cache, 2 * error / len(error))
            self.critics[i] = self.adams[i].step(self.critics[i], grads)
        self.losses |= {"critic_loss": loss, "td_target": target.mean(), "penalty": penalty.mean()}

    def actor_step(self, b):
        output, cache = forward(self.actor, b.observation)
        action, size = np.tanh(output), len(output)
        x = np.concatenate([b.observation, action], axis=1)
        passes = [forward(p, x) for p in self.critics]
        q = np.concatenate([q for q, _ in passes], axis=1)  # [B, 2]
        weight = 1 / np.abs(q.min(axis=1)).mean()
        to_action = np.zeros_like(action)
        for i, (p, (_, c)) in enumerate(zip(self.critics, passes)):
            smaller = (q.argmin(axis=1) == i)[:, None]
            to_action += backward(p, c, -weight / size * smaller)[1][:, -action.shape[1] :]
        difference = action - b.action
        to_action += 0.3 * 2 * difference / size
        grads, _ = backward(self.actor, cache, to_action * (1 - action**2))
        old = self.actor
        self.actor = self.actor_adam.step(old, grads)
        bc_loss = (difference**2).sum(axis=1).mean()
        loss = 0.3 * bc_loss - weight * q.min(axis=1).mean()
        self.losses |= {"actor_loss": loss, "bc_loss": bc_loss, "lambda": weight}
        mix = lambda p, t: 0.005 * p + 0.995 * t  # noqa: E731
        self.target_actor = jax.tree.map(mix, old, self.target_actor)  # the old actor
        self.targets = [jax.tree.map(mix, p, t) for p, t in zip(self.critics, self.targets)]

    def params(self):
        stack = lambda pair: {"params": {"q": jax.tree.map(lambda *x: np.stack(x), *pair)}}  # noqa: E731
        return {
            "actor": {"params": self.actor},
            "target_actor": {"params": self.target_actor},
            "critic": stack(self.critics),
            "target_critic": stack(self.targets),
        }


@pytest.fixture
def start(x64, learner, dataset_x64):
    """A state with large weights, targets of their own, and a batch."""
    data = learner.prepare(dataset_x64)
    state = jax.jit(learner.init)(jax.random.key(0), data)
    rng = np.random.default_rng(0)
    moved = {
        name: jax.tree.map(
            lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape), getattr(state, name)
        )
        for name in ("actor", "critic", "target_actor", "target_critic")
    }
    return state.replace(**moved), learner.sample(jax.random.key(1), data)


def test_two_pairs_of_updates_by_hand(learner, start):
    state, batch = start
    oracle, update = Oracle(state), jax.jit(learner.update)
    for _ in range(2):
        noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (2, 8, 2), jnp.float64)
        assert np.any(np.abs(noise) > 1) and np.any(np.abs(noise) < 1)  # some is clipped
        state, metrics = update(state, batch)
        for i in range(2):
            b, next_action = jax.tree.map(lambda x, i=i: np.asarray(x[i]), batch)
            oracle.critic_step(b, next_action, np.asarray(noise[i]))
        oracle.actor_step(b)
        for name, value in oracle.losses.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)
        for name, expected in oracle.params().items():
            actual = getattr(state, name)
            assert jax.tree.structure(actual) == jax.tree.structure(expected)
            close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)  # noqa: E731
            jax.tree.map(close, actual, expected)
    assert int(state.step) == 4


def test_penalty_lowers_the_target_away_from_the_data(task, start):
    """And not at all where the data's next action is the policy's, or where the episode ends."""
    state, (transition, _) = start[0], jax.tree.map(lambda x: x[0], start[1])
    transition = transition._replace(discount=jnp.ones(8).at[0].set(0.0))
    actor, _ = rebrac.make_networks(task, CONFIG)
    own = rebrac.act(actor, state.target_actor, transition.next_observation)

    def target(coef, next_action):
        config = dataclasses.replace(CONFIG, critic_bc_coef=coef)
        batch, noise = (transition, next_action), jnp.zeros((8, 2))
        loss = jax.jit(lambda s, b: rebrac.critic_loss(s.critic, s, b, noise, task, config)[1])
        return loss(state, batch)["td_target"]

    np.testing.assert_array_equal(target(1.0, own), target(0.0, own))
    lower = target(0.0, -own) - target(1.0, -own)
    np.testing.assert_allclose(lower[1:], 0.99 * np.sum((2 * own[1:]) ** 2, axis=1), rtol=1e-9)
    assert lower[0] == 0.0


def test_cloning_pulls_the_actor_to_the_data(task, start):
    """The gradient with respect to the last bias has the sign of (action - data) without a Q."""
    state, (transition, next_action) = start[0], jax.tree.map(lambda x: x[0], start[1])
    config = dataclasses.replace(CONFIG, actor_bc_coef=1e6)
    actor, _ = rebrac.make_networks(task, config)
    action = rebrac.act(actor, state.actor, transition.observation)
    for sign in (1.0, -1.0):
        batch = (transition._replace(action=jnp.full_like(action, sign)), next_action)
        loss = lambda p, b=batch: rebrac.actor_loss(p, state.critic, b, task, config)[0]  # noqa: E731
        grad = jax.jit(jax.grad(loss))(state.actor)["params"]["layer_2"]["bias"]
        np.testing.assert_array_equal(np.sign(grad), -sign)


def test_initialisation(task):
    config = rebrac.Config()
    actor, critic = rebrac.make_networks(task, config)
    s, a = jnp.zeros((1, 3)), jnp.zeros((1, 2))
    p = jax.jit(actor.init)(jax.random.key(0), s)["params"]
    q = jax.jit(critic.init)(jax.random.key(1), s, a)["params"]["q"]
    assert set(p) == {f"layer_{i}" for i in range(4)}
    assert set(q) == set(p) | {f"norm_{i}" for i in range(3)}
    for params, bound in ((p, 1e-3), (q, 3e-3)):
        for i in range(3):
            kernel, bias = params[f"layer_{i}"]["kernel"], params[f"layer_{i}"]["bias"]
            limit = kernel.shape[-2] ** -0.5
            assert 0.95 * limit < np.abs(kernel).max() <= limit
            np.testing.assert_array_equal(bias, np.float32(0.1))
        kernel, bias = params["layer_3"]["kernel"], params["layer_3"]["bias"]
        assert 0.9 * bound < np.abs(kernel).max() <= bound
        assert 0.0 < np.abs(bias).max() <= bound


def test_next_actions_are_the_datas(learner, dataset):
    transition, next_action = learner.sample(jax.random.key(0), learner.prepare(dataset))
    observation = np.asarray(dataset.transition.observation)  # normalised by nothing
    fields = (transition.next_observation, next_action, transition.discount)
    for o, a, discount in zip(*map(np.concatenate, fields)):
        (index,) = np.nonzero((observation == o).all(axis=1))
        assert discount == 0.0 or np.array_equal(dataset.transition.action[index[0]], a)


def test_single_transitions_are_refused(learner, dataset):
    made = dataset.replace(
        source=jnp.full_like(dataset.source, SYNTHETIC), remaining=jnp.ones_like(dataset.remaining)
    )
    with pytest.raises(UserError, match="the synthetic data are single transitions"):
        learner.prepare(concatenate([dataset, made]))


@pytest.mark.parametrize("hyperparameters", HYPERPARAMETERS)
def test_settings_by_task(hyperparameters):
    of = lambda name: rebrac.for_task(tasks.TASKS[name], hyperparameters)  # noqa: E731
    coefs = lambda name: (of(name).actor_bc_coef, of(name).critic_bc_coef)  # noqa: E731
    assert coefs("hopper-medium-replay-v2") == (0.05, 0.5)
    assert coefs("walker2d-medium-v2") == (0.05, 0.1)
    assert coefs("hopper-medium-mini") == coefs("mujoco/hopper/medium-v0") == (0.01, 0.01)
    assert coefs("antmaze-large-play-v2") == coefs("D4RL/antmaze/large-play-v1") == (0.002, 0.001)
    assert coefs("maze2d-large-dense-v1") == coefs("D4RL/pointmaze/open-v2") == (0.003, 0.001)
    assert coefs("mujoco/hopper/simple-v0") == (0.01, 0.01)  # not in the paper
    robot, ant, maze = (
        of(f"{name}") for name in ("hopper-medium-v2", "antmaze-umaze-v2", "maze2d-umaze-v1")
    )
    assert (robot.batch_size, ant.batch_size, maze.batch_size) == (1024, 256, 256)
    assert (robot.critic_learning_rate, ant.critic_learning_rate) == (1e-3, 5e-5)
    assert (ant.discount, ant.replay.reward_scale, maze.replay.reward_scale) == (0.999, 100, 1)
    assert not any(config.replay.normalize_states for config in (robot, ant, maze))
