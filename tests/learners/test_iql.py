import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import tasks
from tgcvg_jax.data.replay import Replay
from tgcvg_jax.learners import iql
from tgcvg_jax.types import Task, Transition

CONFIG = iql.Config(num_steps=20, batch_size=8, hidden_dims=(8,))


@pytest.fixture(scope="module")
def learner(task):
    return iql.make(task, CONFIG)


@pytest.fixture(scope="module")
def data(learner, dataset):
    return learner.prepare(dataset)


@pytest.fixture(scope="module")
def state(learner, data):
    return jax.jit(learner.init)(jax.random.key(0), data)


@pytest.fixture(scope="module")
def batch(learner, data):
    return learner.sample(jax.random.key(1), data)


def one_state(action):
    """A batch of actions in the same state."""
    size = len(action)
    observation = jnp.ones((size, 3))
    return Transition(observation, action, jnp.zeros(size), jnp.ones(size), observation)


@pytest.mark.parametrize(("expectile", "sign"), [(0.3, 1), (0.5, 0), (0.7, -1), (0.9, -1)])
def test_the_expectile_leans_up(task, state, expectile, sign):
    """At the mean of the data's Qs, V of an expectile above 0.5 still wants to rise."""
    config = dataclasses.replace(CONFIG, expectile=expectile)
    batch = one_state(jax.random.uniform(jax.random.key(2), (64, 2), minval=-1.0))

    @jax.jit
    def gap_and_slope(params):
        grad = jax.grad(iql.value_loss, has_aux=True)
        grads, info = grad(params, state.target_critic, batch, task, config)
        return jnp.mean(info["advantage"]), grads["params"]["layer_1"]["bias"][0]

    bias = state.value["params"]["layer_1"]["bias"]
    gap, _ = gap_and_slope(state.value)
    value = jax.tree.map(lambda x: x + gap if x is bias else x, state.value)
    gap, slope = gap_and_slope(value)
    assert abs(gap) < 1e-6
    assert abs(slope) < 1e-6 if sign == 0 else slope * sign > 1e-3


def test_expectile_loss_by_hand():
    error = jnp.array([2.0, -3.0, 0.5])
    expected = (0.9 * 4.0 + 0.1 * 9.0 + 0.9 * 0.25) / 3
    np.testing.assert_allclose(iql.expectile_loss(error, 0.9), expected, rtol=1e-6)


@pytest.mark.parametrize("deterministic", (False, True))
def test_better_actions_become_likelier(task, state, deterministic):
    """Two actions in one state: the step goes towards the one of positive advantage."""
    config = dataclasses.replace(CONFIG, deterministic=deterministic, beta=3.0)
    actor, _, _ = iql.make_networks(task, config)
    params = actor.init(jax.random.key(3), jnp.ones((1, 3)))
    batch = one_state(jnp.array([[0.5, 0.5], [-0.5, -0.5]]))

    @jax.jit
    def gain(advantage):
        grad = jax.grad(iql.actor_loss, has_aux=True)
        grads, before = grad(params, advantage, batch, task, config)
        moved = jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)
        after = iql.actor_loss(moved, advantage, batch, task, config)[1]
        return before["bc_loss"] - after["bc_loss"]

    for better, advantage in enumerate(([1.0, -1.0], [-1.0, 1.0])):
        gained = gain(jnp.array(advantage))
        assert gained[better] > 1e-4 and gained[better] > gained[1 - better]


def test_weights_are_bounded(task, state, batch):
    huge = iql.actor_loss(state.actor, jnp.full(8, 10.0), batch, task, CONFIG)[1]
    np.testing.assert_array_equal(huge["weight"], 100.0)
    flat = dataclasses.replace(CONFIG, beta=0.0)
    loss, info = iql.actor_loss(state.actor, jnp.full(8, 10.0), batch, task, flat)
    np.testing.assert_allclose(loss, jnp.mean(info["bc_loss"]), rtol=1e-6)  # behaviour cloning


def test_behaviour_cloning_losses_by_hand(task, batch):
    """The likelihood of a plain Gaussian whose log_std is clipped; the squared error."""
    for tanh_mean, deterministic in ((True, False), (False, False), (True, True)):
        config = dataclasses.replace(
            CONFIG, tanh_mean=tanh_mean, deterministic=deterministic, max_log_std=0.25
        )
        actor, _, _ = iql.make_networks(task, config)
        params = actor.init(jax.random.key(3), batch.observation)
        assert ("log_std" in params["params"]) != deterministic
        p = jax.tree.map(np.asarray, params["params"]["mlp"])
        hidden = np.maximum(batch.observation @ p["layer_0"]["kernel"] + p["layer_0"]["bias"], 0)
        mean = hidden @ p["layer_1"]["kernel"] + p["layer_1"]["bias"]
        mean = np.tanh(mean) if tanh_mean else mean
        square = (mean - np.asarray(batch.action)) ** 2
        expected = square.sum(axis=1)
        if not deterministic:
            log_std = np.array([0.25, -0.5])
            params["params"]["log_std"] = jnp.array([1.0, -0.5])
            density = -0.5 * square * np.exp(-2 * log_std) - log_std - 0.5 * np.log(2 * np.pi)
            expected = -density.sum(axis=1)
        advantage = jnp.linspace(-1.0, 1.0, 8)
        loss, info = iql.actor_loss(params, advantage, batch, task, config)
        np.testing.assert_allclose(info["bc_loss"], expected, rtol=2e-5)
        weighted = np.exp(3.0 * np.asarray(advantage)) * expected
        np.testing.assert_allclose(loss, weighted.mean(), rtol=2e-5)


def test_terminals_do_not_bootstrap(task, state, batch):
    """With discount 0 the target is the reward alone."""
    end = batch._replace(discount=jnp.zeros(8))
    loss, info = iql.critic_loss(state.critic, state.value, end, task, CONFIG)
    np.testing.assert_allclose(loss, np.mean((info["q"] - end.reward) ** 2), rtol=1e-6)
    others = iql.critic_loss(state.critic, state.value, batch._replace(discount=jnp.ones(8)),
                             task, CONFIG)[0]  # fmt: skip
    assert abs(loss - others) > 1e-6


def test_losses_see_the_networks_of_before(task, state, batch):
    """One step moves all four networks; the target by tau towards the new Q."""
    step = jax.jit(lambda s: iql.apply_update(s, batch, task=task, config=CONFIG))
    after, info = step(state)
    for name in ("actor", "critic", "value", "target_critic"):
        pairs = zip(jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(after, name)))
        assert all(np.any(np.asarray(x) != np.asarray(y)) for x, y in pairs), name
    jax.tree.map(
        lambda n, o, p: np.testing.assert_allclose(n, 0.995 * o + 0.005 * p, atol=1e-6),
        *jax.device_get((after.target_critic, state.target_critic, after.critic)),
    )
    _, _, value = iql.make_networks(task, CONFIG)
    before = value.apply(state.value, batch.next_observation)[..., 0]
    np.testing.assert_allclose(info["next_v"], before, rtol=1e-5)
    assert np.any(np.abs(value.apply(after.value, batch.next_observation)[..., 0] - before) > 1e-5)


def test_learning_rate_of_the_actor():
    rate = lambda step, config=CONFIG: float(iql.actor_learning_rate(jnp.int32(step), config))  # noqa: E731
    np.testing.assert_allclose([rate(0), rate(10), rate(20)], [3e-4, 1.5e-4, 0.0], atol=1e-10)
    constant = dataclasses.replace(CONFIG, cosine=False)
    np.testing.assert_allclose([rate(s, constant) for s in (0, 10, 20)], 3e-4, rtol=1e-6)


@pytest.mark.parametrize(
    "changes", [{}, {"tanh_mean": False}, {"deterministic": True}], ids=str
)  # fmt: skip
def test_policy(task, state, changes):
    """Actions stay in the box, also where the mean is beyond it."""
    learner = iql.make(task, dataclasses.replace(CONFIG, **changes))
    state = state.replace(actor=jax.tree.map(lambda x: 2.0 * x, state.actor))
    observation = jax.random.normal(jax.random.key(1), (50, 3))

    def act(key, deterministic):
        return learner.policy.act(state, (), observation, jnp.zeros(50), key, deterministic)[0]

    mean, drawn = act(None, True), act(jax.random.key(5), False)
    assert mean.shape == drawn.shape == (50, 2)
    assert np.all(np.abs(mean) <= 1) and np.all(np.abs(drawn) <= 1)
    assert np.any(np.abs(mean) == 1) == (changes == {"tanh_mean": False})
    assert np.array_equal(mean, drawn) == (changes == {"deterministic": True})


def test_actions_scatter_as_the_policy_says(learner, state):
    log_std = jnp.array([-3.0, -5.0])
    state = state.replace(actor={"params": state.actor["params"] | {"log_std": log_std}})
    observation = jnp.tile(state.normalizer.mean, (4000, 1))
    action, _ = learner.policy.act(state, (), observation, None, jax.random.key(0), False)
    assert np.all(np.abs(action) < 1)
    np.testing.assert_allclose(np.std(action, axis=0), np.exp(log_std), rtol=0.05)


OLD = iql.Config(batch_size=1024, tanh_mean=False, min_log_std=-5.0)
HOPPER = {"tau": 0.001, "deterministic": True, "replay": Replay(normalize_return=True)}
ANTMAZE = {"expectile": 0.9, "beta": 10.0, "replay": Replay(reward_shift=-1.0)}


@pytest.mark.parametrize(
    ("name", "corl", "gta", "tgcvg"),
    [
        ("hopper-medium-v2", HOPPER, HOPPER, {}),
        ("hopper-medium-mini", HOPPER, HOPPER, {}),
        ("hopper-medium-replay-v2", HOPPER, HOPPER, {}),
        ("hopper-medium-expert-v2", {"expectile": 0.5, "beta": 6.0},
         {"expectile": 0.5, "beta": 6.0}, {}),
        ("hopper-random-v2", {}, {}, {}),
        ("walker2d-medium-v2", {}, {}, {}),
        ("halfcheetah-medium-expert-v2", {}, {}, {}),
        ("maze2d-umaze-v1", {}, {}, {}),
        ("maze2d-large-dense-v1", {}, {}, {}),
        ("D4RL/pointmaze/umaze-v2", {}, {}, {}),
        ("antmaze-umaze-v2", ANTMAZE, ANTMAZE, ANTMAZE),
        ("antmaze-large-diverse-v2", ANTMAZE, ANTMAZE, ANTMAZE),
        ("D4RL/antmaze/umaze-v1", ANTMAZE, ANTMAZE, ANTMAZE),
    ],
)  # fmt: skip
def test_whose_hyper_parameters(name, corl, gta, tgcvg):
    task = tasks.TASKS[name]
    assert iql.for_task(task, "corl") == dataclasses.replace(iql.Config(), **corl)
    assert iql.for_task(task, "gta") == dataclasses.replace(OLD, **gta)
    assert iql.for_task(task, "tgcvg") == dataclasses.replace(OLD, **tgcvg)


def test_a_task_without_family():
    assert iql.for_task(Task("x", "", 3, 2, 10), "corl") == iql.Config()
