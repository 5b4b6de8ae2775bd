import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import config as config_lib
from tgcvg_jax import tasks
from tgcvg_jax.data.replay import Replay
from tgcvg_jax.learners import cql

CONFIG = cql.Config(
    num_steps=12,
    batch_size=8,
    hidden_dims=(8,),
    critic_hidden_dims=(16,),
    last_layer_gain=1.0,  # else all Qs are nearly 0 at the start
    num_action_samples=4,
)
LAGRANGE = dataclasses.replace(CONFIG, lagrange=True, target_action_gap=3.0)
# Everything that is off by default, all at once.
ALL = dataclasses.replace(
    LAGRANGE,
    max_target_backup=True,
    backup_entropy=True,
    cql_temperature=0.7,
    clip_diff_min=2.3,
    clip_diff_max=2.6,
)


def make(task, config, dataset):
    """A state, a batch and noise."""
    learner = cql.make(task, config)
    data = learner.prepare(dataset)

    @jax.jit
    def draw(data):
        state = learner.init(jax.random.key(0), data)
        batch = learner.sample(jax.random.key(1), data)
        return state, batch, cql.draw_noise(jax.random.key(2), batch, config)

    return draw(data)


@pytest.fixture(scope="module")
def made(task, dataset):
    return make(task, CONFIG, dataset)


# The paper's equations and CORL's options in plain numpy, float64.


def np_mlp(params, x):
    for i in range(len(params)):
        x = x @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
        x = x if i + 1 == len(params) else np.maximum(x, 0.0)
    return x


def np_actions(actor, observation, noise):
    """[B, J, A], [B, J]; the density by the change of variables itself."""
    p = actor["params"]
    mean, raw = np.split(np_mlp(p["mlp"], observation), 2, axis=-1)
    std = np.exp(p["log_std_multiplier"] * raw + p["log_std_offset"])[:, None]
    action = np.tanh(mean[:, None] + std * noise)
    density = np.exp(-0.5 * noise**2) / (std * np.sqrt(2 * np.pi)) / (1.0 - action**2)
    return action, np.sum(np.log(density), axis=-1)


def np_q(critic, observation, actions):
    """[2, B, J]."""
    x = np.repeat(observation[:, None], actions.shape[1], axis=1)
    x = np.concatenate([x, actions], axis=-1)
    each = [jax.tree.map(lambda p, i=i: p[i], critic["params"]["q"]) for i in range(2)]
    return np.stack([np_mlp(params, x)[..., 0] for params in each])


def np_losses(params, target_critic, batch, noise, config):
    """td_target [B], gap [2], critic loss, alpha', its loss."""
    action, log_prob = np_actions(params["actor"], batch.next_observation, noise.target)
    target_q = np_q(target_critic, batch.next_observation, action).min(axis=0)
    values = []
    for q, density in zip(target_q, log_prob):
        best = int(np.argmax(q))
        entropy = np.exp(params["log_alpha"]) * density[best] if config.backup_entropy else 0.0
        values.append(q[best] - entropy)
    target = batch.reward + config.discount * batch.discount * np.array(values)

    critic, temperature = params["critic"], config.cql_temperature
    q_data = np_q(critic, batch.observation, batch.action[:, None])[..., 0]
    following, next_log_prob = np_actions(params["actor"], batch.next_observation, noise.next)
    current, log_prob = np_actions(params["actor"], batch.observation, noise.current)
    log_uniform = np.full(log_prob.shape, -batch.action.shape[1] * np.log(2.0))
    corrected = np.concatenate(
        [
            np_q(critic, batch.observation, noise.random) - log_uniform,
            np_q(critic, batch.observation, following) - next_log_prob,
            np_q(critic, batch.observation, current) - log_prob,
        ],
        axis=-1,
    )
    soft_max = temperature * np.log(np.sum(np.exp(corrected / temperature), axis=-1))
    difference = soft_max - q_data  # [2, B]
    low, high = config.clip_diff_min, config.clip_diff_max
    gap = np.clip(difference, low, high).mean(axis=1)
    alpha_prime = min(np.exp(params["log_alpha_prime"]), 1e6)
    penalty = alpha_prime * config.cql_alpha * (gap - config.target_action_gap)
    critic_loss = np.sum(np.mean((q_data - target) ** 2, axis=1) + penalty)
    return target, gap, critic_loss, alpha_prime, -0.5 * np.sum(penalty), difference


def test_lagrange_clipping_and_best_action_against_numpy(task, dataset_x64, x64):
    state, batch, noise = make(task, ALL, dataset_x64)
    batch = batch._replace(discount=batch.discount.at[0].set(0.0))

    @jax.jit
    def grad(params):
        grad = jax.grad(cql.loss, has_aux=True)
        return grad(params, state.target_critic, batch, noise, task, ALL)

    params = state.params | {"log_alpha": jnp.float64(0.3)}
    grads, info = jax.tree.map(np.asarray, grad(params))
    params, target_critic, batch, noise = jax.tree.map(
        np.asarray, (params, state.target_critic, batch, noise)
    )
    expected = np_losses(params, target_critic, batch, noise, ALL)
    target, gap, critic_loss, alpha_prime, alpha_prime_loss, difference = expected
    inside = (difference > 2.3) & (difference < 2.6)
    assert np.any(difference < 2.3) and np.any(inside) and np.any(difference > 2.6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)  # noqa: E731
    close(info["td_target"], target)
    assert target[0] == batch.reward[0]  # a terminal
    close(info["cql_gap"], gap)
    close(info["critic_loss"], critic_loss)
    close(info["alpha_prime"], np.e)  # its start
    close(alpha_prime, np.e)
    close(info["alpha_prime_loss"], alpha_prime_loss)
    close(grads["log_alpha_prime"], alpha_prime_loss)  # d/dx of exp(x) times a constant

    # The critics' gradient is that of their own loss, alpha' fixed; targets have none.
    def shifted(h):
        moved = jax.tree.map(lambda p, d: p + h * np.sign(d), params["critic"], grads["critic"])
        return np_losses(params | {"critic": moved}, target_critic, batch, noise, ALL)[2]

    slope = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
    own = sum(np.abs(g).sum() for g in jax.tree.leaves(grads["critic"]))
    assert slope == pytest.approx(own, rel=1e-5) and own > 1.0


def test_alpha_prime_rises_while_the_gap_is_too_wide(task, made):
    """Its gradient has the sign of target - gap, and vanishes where exp is clamped."""
    state, batch, noise = made
    noise = noise.replace(target=noise.target[:, :1])

    @jax.jit
    def slope(target, log_alpha_prime):
        config = dataclasses.replace(LAGRANGE, target_action_gap=target)
        params = state.params | {"log_alpha_prime": log_alpha_prime}
        grads, info = jax.grad(cql.loss, has_aux=True)(
            params, state.target_critic, batch, noise, task, config
        )
        return grads["log_alpha_prime"], jnp.mean(info["cql_gap"]), info["alpha_prime"]

    gap = slope(0.0, 1.0)[1]
    assert slope(gap - 0.1, 1.0)[0] < 0 < slope(gap + 0.1, 1.0)[0]
    at_bound = slope(gap + 0.1, 20.0)
    assert at_bound[0] == 0.0 and at_bound[2] == 1e6


def test_the_penalty_lowers_other_actions_and_raises_the_datas(task, made):
    """Down the conservative term alone; the data's actions are in one corner."""
    state, batch, noise = made
    batch = batch._replace(action=jnp.full((8, 2), 0.9))
    propose = jax.jit(lambda: cql.proposals(state.params, batch, noise, task, CONFIG))
    actions, log_density = propose()

    def penalty(critic, log_density):
        params, proposed = state.params | {"critic": critic}, (actions, log_density)
        _, info = cql.critic_loss(params, batch, jnp.zeros(8), proposed, task, CONFIG)
        return jnp.sum(info["cql_gap"])

    # Q - log density is all that enters, so a proposal's slope in Q is minus that in its density:
    # all are pushed down, by weights that add up to 1 in each of 8 states. The term does not change
    # with the level of Q, so the data's action is pushed up by as much.
    grads, slope = jax.jit(jax.grad(penalty, (0, 1)))(state.params["critic"], log_density)
    assert np.all(slope < 0)
    np.testing.assert_allclose(np.sum(slope, axis=1), -2 / 8, rtol=1e-5)  # two critics
    np.testing.assert_allclose(grads["params"]["q"]["layer_1"]["bias"], 0.0, atol=1e-6)

    @jax.jit
    def descend(critic):
        step = lambda p, g: p - 0.01 * g  # noqa: E731
        body = lambda _, c: jax.tree.map(step, c, jax.grad(penalty)(c, log_density))  # noqa: E731
        return jax.lax.fori_loop(0, 30, body, critic)

    @jax.jit
    def margin(critic):  # of each critic, over random and over the policy's actions
        q = lambda a: cql.q_values(critic, batch.observation, a, task, CONFIG)  # noqa: E731
        data = jnp.mean(q(batch.action[:, None]), axis=(1, 2))
        groups = (actions[:, :4], actions[:, 4:])
        return jnp.stack([data - jnp.mean(q(a), axis=(1, 2)) for a in groups])

    critic = state.params["critic"]
    assert np.all(margin(descend(critic)) > margin(critic) + 0.1)


def test_each_loss_moves_its_own_part(task, made):
    """The conservative term's weight changes the critics' gradient and nothing else's."""
    state, batch, noise = made
    grads = []
    for weight in (0.0, 10.0):
        config = dataclasses.replace(CONFIG, cql_alpha=weight)
        loss = lambda p, config=config: cql.loss(  # noqa: E731
            p, state.target_critic, batch, noise, task, config
        )
        grads.append(jax.jit(jax.grad(loss, has_aux=True))(state.params)[0])
    for name in ("actor", "log_alpha"):
        jax.tree.map(np.testing.assert_array_equal, grads[0][name], grads[1][name])
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads[0][name]))
        assert any(np.any(g != 0) for g in jax.tree.leaves(grads[0][name]))
    for a, b in zip(jax.tree.leaves(grads[0]["critic"]), jax.tree.leaves(grads[1]["critic"])):
        assert np.any(a != b)


@pytest.mark.parametrize("init", ("torch", "orthogonal"))
def test_initialisation(task, init):
    """CORL's today: small last layers; older CORL: gain sqrt(2) everywhere."""
    gain = {"torch": 1e-2, "orthogonal": 2.0**0.5}[init]
    config = cql.Config(hidden_dims=(32, 32), critic_hidden_dims=(32, 32), actor_init=init,
                        last_layer_gain=gain)  # fmt: skip
    actor, critic = cql.make_networks(task, config)
    s, a = jnp.zeros((1, 3)), jnp.zeros((1, 2))
    key = jax.random.key(0)
    p, q = jax.jit(lambda: (actor.init(key, s)["params"], critic.init(key, s, a)["params"]["q"]))()
    assert p["log_std_multiplier"] == 1.0 and p["log_std_offset"] == -1.0
    hidden, last = p["mlp"]["layer_1"], p["mlp"]["layer_2"]
    assert not np.any(last["bias"])
    if init == "torch":
        assert np.any(hidden["bias"]) and np.abs(hidden["kernel"]).max() <= 32**-0.5
        bound = 1e-2 * np.sqrt(6.0 / (32 + 4))
        assert 0.9 * bound < np.abs(last["kernel"]).max() <= bound
    else:
        assert not np.any(hidden["bias"])
        np.testing.assert_allclose(last["kernel"].T @ last["kernel"], 2.0 * np.eye(4), atol=1e-5)
    norm = np.linalg.norm(q["layer_2"]["kernel"], axis=(1, 2))
    np.testing.assert_allclose(norm, gain, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(q["layer_1"]["kernel"], axis=(1, 2)), 8.0, rtol=1e-5)


def test_policy(task, made):
    """Random unless deterministic; never leaves the box."""
    state, policy = made[0], cql.make(task, CONFIG).policy
    observation = 3.0 * jax.random.normal(jax.random.key(0), (5, 3))

    @functools.partial(jax.jit, static_argnums=2)
    def act(observation, seed, deterministic):
        key = jax.random.key(seed)
        return policy.act(state, (), observation, jnp.zeros(5), key, deterministic)[0]

    np.testing.assert_array_equal(act(observation, 0, True), act(observation, 1, True))
    assert not np.array_equal(act(observation, 0, False), act(observation, 1, False))
    assert np.all(np.abs(act(1e3 * observation, 0, False)) <= 1.0)


def test_bounds_may_be_negative():
    """CORL's own default of the gap is -1."""
    config = config_lib.override(cql.Config(), ["target_action_gap=-1", "max_log_std=-0.5"])
    assert (config.target_action_gap, config.max_log_std) == (-1.0, -0.5)


def test_settings_of_the_tasks():
    def changed(name, hyperparameters):
        config = cql.for_task(tasks.TASKS[name], hyperparameters)
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return {k: v for k, v in fields.items() if v != getattr(cql.Config(), k)}

    older = {"actor_init": "orthogonal", "last_layer_gain": 2.0**0.5}
    maze = {"lagrange": True}  # the gap of 5 is the default
    for name in tasks.TASKS:
        assert changed(name, "tgcvg") == older
    assert changed("hopper-medium-v2", "corl") == {"replay": Replay(normalize_return=True)}
    for name in ("hopper-medium-replay-v2", "walker2d-medium-v2", "halfcheetah-medium-mini"):
        assert changed(name, "corl") == {}
        assert changed(name, "gta") == older | {"batch_size": 1024}
    for name in ("maze2d-umaze-v1", "maze2d-large-dense-v1", "D4RL/pointmaze/open-v2"):
        assert changed(name, "corl") == maze
        assert changed(name, "gta") == older | maze | {"batch_size": 1024}
    for name in ("antmaze-umaze-v2", "antmaze-large-diverse-v2", "D4RL/antmaze/medium-play-v1"):
        config = cql.for_task(tasks.TASKS[name], "corl")
        assert config.lagrange and config.max_target_backup
        assert (config.target_action_gap, config.cql_alpha) == (0.8, 5.0)
        assert (config.clip_diff_min, config.policy_learning_rate) == (-200.0, 1e-4)
        assert config.critic_hidden_dims == (256,) * 5 and config.hidden_dims == (256,) * 3
        assert not config.replay.normalize_states
        reward = lambda r, c=config.replay: (r + c.reward_shift) * c.reward_scale  # noqa: E731
        assert (reward(0.0), reward(1.0)) == (-5.0, 5.0)
