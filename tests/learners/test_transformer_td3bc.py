import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import tasks
from tgcvg_jax.data import concatenate
from tgcvg_jax.data.replay import Mixture
from tgcvg_jax.learners import transformer_td3bc as tt
from tgcvg_jax.types import SYNTHETIC, UserError

L, B = 3, 4


@pytest.fixture(scope="module")
def config(configs):
    return configs["transformer_td3bc"]


@pytest.fixture(scope="module")
def learner(task, config):
    return tt.make(task, config)


@pytest.fixture(scope="module")
def data(learner, dataset):
    return learner.prepare(dataset)


@pytest.fixture(scope="module")
def state(learner, data):
    return jax.jit(learner.init)(jax.random.key(0), data)


@pytest.fixture(scope="module")
def exact(config):
    """A config without dropout, under which some gradients are clipped."""
    return dataclasses.replace(
        config, dropout=0.0, batch_size=B, q_weight=0.7, bc_weight=1.3, max_grad_norm=2.5,
        actor_weight_decay=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exact_update(task, exact):
    """(state, data, number of the batch, coin) -> (batch, state, metrics), for float64."""
    learner = tt.make(task, exact)

    @jax.jit
    def run(state, data, number, swap):
        batch = learner.sample(jax.random.key(number), data)
        batch = batch._replace(discount=batch.discount.at[0, -1].set(0.0).at[1:, -1].set(1.0))
        noise = tt.Noise(jax.random.split(jax.random.key(9)), swap)
        return batch, *tt.apply_update(state, batch, noise, task=task, config=exact)

    return run


@pytest.fixture
def exact_start(state, x64):
    """A state in float64 whose targets are unlike its parameters."""
    wide = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731
    state, rng = jax.tree.map(wide, state), np.random.default_rng(0)
    shift = lambda tree: jax.tree.map(lambda p: p + rng.normal(0, 0.1, p.shape), tree)  # noqa: E731
    return state.replace(
        target_actor=shift(state.target_actor), target_critic=shift(state.target_critic)
    )


class Reference:
    """One update written out: parameters are the leaves' paths, all else is plain arithmetic."""

    def __init__(self, config):
        self.config = config
        self.rate = float(tt.learning_rate(jnp.int32(0), config))  # in float32, as it is used
        self.critic_grad = jax.jit(jax.value_and_grad(self.critic_loss))
        self.actor_grad = jax.jit(jax.value_and_grad(self.actor_loss))

    def linear(self, p, x):
        return jnp.einsum("...i,ij->...j", x, p["kernel"]) + p["bias"]

    def norm(self, p, x):
        x = x - x.mean(-1, keepdims=True)
        return p["scale"] * x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) + p["bias"]

    def actor(self, params, states):
        """[B, L, S] -> tanh of the mean."""
        p = params["params"]
        block = p["block_0"]
        x = self.norm(p["embed_norm"], self.linear(p["embed"], states))
        q, k, v = (self.linear(block["attention"][name], x) for name in ("query", "key", "value"))
        weights = jnp.exp((q[:, :, None] * k[:, None]).sum(-1) / math.sqrt(q.shape[-1]))
        weights = jnp.tril(weights)  # a position sees itself and those before
        seen = (weights[..., None] * v[:, None]).sum(2) / weights.sum(2)[..., None]
        h = self.norm(block["norm_1"], x + self.linear(block["attention"]["out"], seen))
        inner = self.linear(block["mlp_in"], h)
        inner = 0.5 * inner * (1 + jax.scipy.special.erf(inner / math.sqrt(2)))
        h = self.norm(block["norm_2"], h + self.linear(block["mlp_out"], inner))
        return jnp.tanh(self.linear(p["head"], h)[..., :2])

    def critic(self, params, state, action):
        """Both values."""
        values = []
        for i in range(2):
            x = jnp.concatenate([state, action], axis=-1)
            layers = jax.tree.map(lambda p, i=i: p[i], params["params"]["q"])
            x = self.linear(layers["layer_0"], x)
            x = x * jnp.tanh(jnp.log1p(jnp.exp(x)))
            values.append(self.linear(layers["layer_1"], x)[..., 0])
        return values

    def critic_loss(self, critic, s, batch):
        gamma, qt = self.config.discount, self.config.target == "qt"
        states = batch.observation if qt else batch.next_observation
        action = self.actor(s["target_actor"], states)[:, -1]
        boot = jnp.minimum(*self.critic(s["target_critic"], states[:, -1], action))
        boot = boot * batch.discount[:, -1]
        used = L - 1 if qt else L
        loss = 0.0
        for q in self.critic(critic, batch.observation, batch.action):
            total = 0.0
            for m in range(used):
                y = gamma ** (used - m) * boot
                for j in range(m, used):
                    y += gamma ** (j - m) * batch.reward[:, j]
                total += ((q[:, m] - y) ** 2).mean()
            loss += total / used
        return loss

    def actor_loss(self, actor, critic, batch, swap):
        action = self.actor(actor, batch.observation)
        first, second = self.critic(critic, batch.observation, action)
        up, down = jnp.where(swap, second, first), jnp.where(swap, first, second)
        q_loss = -up.mean() / jax.lax.stop_gradient(jnp.abs(down).mean())
        cloning = ((action - batch.action) ** 2).mean()
        return self.config.bc_weight * cloning + self.config.q_weight * q_loss

    def adam(self, s, name, grads, decay):
        """Clipping, L2, one step: (parameters, norm of the gradient)."""
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
        factor = min(1.0, self.config.max_grad_norm / (norm + 1e-6))
        t, rate = s["count"] + 1, self.rate
        grads = jax.tree.map(lambda g, p: factor * g + decay * p, grads, s[name])
        add = lambda beta, power: jax.tree.map(  # noqa: E731
            lambda m, g: beta * m + (1 - beta) * g**power, s[f"{name}_{power}"], grads
        )
        s[f"{name}_1"], s[f"{name}_2"] = add(0.9, 1), add(0.999, 2)
        s[name] = jax.tree.map(
            lambda p, m, v: p - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8),
            s[name], s[f"{name}_1"], s[f"{name}_2"],
        )  # fmt: skip
        return norm

    def update(self, s, batch, swap):
        info = {}
        loss, grads = self.critic_grad(s["critic"], s, batch)
        info["critic_loss"], info["critic_grad_norm"] = loss, self.adam(s, "critic", grads, 0.0)
        info["actor_loss"], grads = self.actor_grad(s["actor"], s["critic"], batch, swap)
        info["actor_grad_norm"] = self.adam(s, "actor", grads, self.config.actor_weight_decay)
        moves = s["step"] > self.config.ema_start and s["step"] % self.config.ema_every == 0
        for name, share in (("actor", 0.005 * moves), ("critic", 0.005)):
            s[f"target_{name}"] = jax.tree.map(
                lambda t, p, share=share: (1 - share) * t + share * p, s[f"target_{name}"], s[name]
            )
        s["step"], s["count"] = s["step"] + 1, s["count"] + 1
        return info


def test_updates_equal_a_reference(exact, exact_update, exact_start, task, dataset_x64):
    """Three of them, of which the last alone moves the target actor; clipped and not."""
    data, state = tt.make(task, exact).prepare(dataset_x64), exact_start.replace(step=jnp.int32(2))
    names = ("actor", "critic", "target_actor", "target_critic")
    mine = {name: getattr(state, name) for name in names} | {"step": 2, "count": 0}
    for name in ("actor", "critic"):
        zeros = jax.tree.map(np.zeros_like, mine[name])
        mine |= {f"{name}_1": zeros, f"{name}_2": zeros}
    reference, norms = Reference(exact), []
    for step, swap in enumerate((False, True, True)):
        batch, state, info = exact_update(state, data, step, swap)
        expected = reference.update(mine, batch, swap)
        norms += [expected["critic_grad_norm"], expected["actor_grad_norm"]]
        for name, value in expected.items():
            np.testing.assert_allclose(info[name], value, rtol=1e-9, err_msg=name)
        for name in names:
            for a, b in zip(jax.tree.leaves(getattr(state, name)), jax.tree.leaves(mine[name])):
                np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10, err_msg=name)
    assert min(norms) < 2.5 < max(norms)


def test_n_step_targets_equal_a_reference(exact, exact_update, exact_start, task, dataset_x64):
    """The targets are all that differs."""
    config = dataclasses.replace(exact, target="n_step")
    learner = tt.make(task, config)
    batch = jax.jit(learner.sample)(jax.random.key(0), learner.prepare(dataset_x64))
    batch = batch._replace(discount=batch.discount.at[0, -1].set(0.0).at[1:, -1].set(1.0))
    state, key = exact_start, jax.random.key(1)
    s = {name: getattr(state, name) for name in ("target_actor", "target_critic")}
    loss = jax.jit(lambda s: tt.critic_loss(s.critic, s, batch, key, task, config)[0])(state)
    np.testing.assert_allclose(
        loss, jax.jit(Reference(config).critic_loss)(state.critic, s, batch), rtol=1e-10
    )


def test_the_target_actor_waits_and_then_moves_at_times(
    exact, exact_update, exact_start, task, dataset_x64
):
    """Never before ema_start = 3 steps are over, then at every second."""
    data, state = tt.make(task, exact).prepare(dataset_x64), exact_start
    moved = []
    for _ in range(8):
        _, after, _ = exact_update(state, data, 1, False)
        same = [bool(np.all(a == b)) for a, b in zip(
            *map(jax.tree.leaves, jax.device_get((after.target_actor, state.target_actor)))
        )]  # fmt: skip
        moved.append(not all(same))
        state = after
    assert moved == [False, False, False, False, True, False, True, False]


def test_dropout_and_the_coin(task, config, state, learner, data):
    """Each draw matters; the target's dropout can be turned off."""
    batch = learner.sample(jax.random.key(1), data)
    noise = tt.draw_noise(jax.random.key(2))
    keys = jax.random.split(jax.random.key(3))

    @jax.jit
    def losses(noise):
        for_critic = state.critic, state, batch, noise.dropout[0], task
        quiet = dataclasses.replace(config, target_dropout=False)
        _, info = tt.actor_loss(state.actor, state.critic, batch, noise, task, config)
        target = tt.critic_loss(*for_critic, config)[0], tt.critic_loss(*for_critic, quiet)[0]
        return target[0], info["q_loss"], info["bc_loss"], target[1]

    run = lambda noise: tuple(map(float, losses(noise)))  # noqa: E731
    first = run(noise)
    other = run(noise.replace(dropout=noise.dropout.at[0].set(keys[0])))
    assert other[0] != first[0] and other[3] == first[3]
    other = run(noise.replace(dropout=noise.dropout.at[1].set(keys[1])))
    assert other[0] == first[0] and other[2] != first[2]
    other = run(noise.replace(swap=~noise.swap))
    assert other[1] != first[1] and other[2] == first[2]
    coins = jax.vmap(lambda k: tt.draw_noise(k).swap)
    share = float(jnp.mean(coins(jax.random.split(jax.random.key(0), 2_000))))
    assert 0.45 < share < 0.55


def test_windows_lie_in_one_episode(task, config, dataset):
    """All of them are drawn; the original ones by their share, however the rows are ordered."""
    made = dataset.replace(
        source=jnp.full_like(dataset.source, SYNTHETIC),
        transition=dataset.transition._replace(action=dataset.transition.action + 5.0),
    )
    both = concatenate([made, dataset])
    replay = Mixture(original_share=0.25, normalize_states=False)
    learner = tt.make(task, dataclasses.replace(config, replay=replay, batch_size=4_000))
    data = learner.prepare(both)
    batch = jax.tree.map(np.asarray, jax.jit(learner.sample)(jax.random.key(0), data))
    assert batch.observation.shape == (4_000, L, 3)
    np.testing.assert_array_equal(batch.observation[:, 1:], batch.next_observation[:, :-1])
    is_made = batch.action > 2.0
    assert not is_made[:1_000].any() and is_made[1_000:].all()
    starts = np.unique(batch.observation[1_000:, 0, 0])
    assert len(starts) == np.sum(np.asarray(dataset.remaining) >= L)


def test_data_without_windows_is_refused(task, config, dataset):
    learner = tt.make(task, config)
    single = dataset.replace(
        source=jnp.full_like(dataset.source, SYNTHETIC), remaining=jnp.ones_like(dataset.remaining)
    )
    with pytest.raises(UserError, match="no episode of the synthetic data has a window of 3"):
        learner.prepare(concatenate([dataset, single]))
    with pytest.raises(UserError, match=r"context_length=1 .* set target=n_step"):
        tt.make(task, dataclasses.replace(config, context_length=1)).prepare(dataset)
    one = tt.make(task, dataclasses.replace(config, context_length=1, target="n_step"))
    one.prepare(dataset)


def test_acts_on_the_history(task, config, learner, state, dataset):
    """Fewer than L states, then the last L of them; primed or not; sampled or not."""
    policy, t = learner.policy, jax.tree.map(lambda x: x[12:20][None], dataset.transition)
    act = jax.jit(lambda m, o: policy.act(state, m, o, jnp.zeros(1), jax.random.key(0), True))
    actor, _ = tt.make_networks(task, config)
    forward = jax.jit(lambda x, mask: actor.apply(state.actor, x, mask, deterministic=True)[0])
    z, memory, actions = state.normalizer(t.observation), policy.init(state, 1), []
    for i in range(5):
        action, memory = act(memory, t.observation[:, i])
        window = z[:, : i + 1] if i + 1 < L else z[:, i + 1 - L : i + 1]
        window = jnp.pad(window, ((0, 0), (0, L - window.shape[1]), (0, 0)))  # behind: not seen
        expected = forward(window, jnp.ones(L, bool))[:, : i + 1]
        np.testing.assert_allclose(action, jnp.tanh(expected[:, -1]), atol=1e-6)
        actions.append(action)
    history = jax.tree.map(lambda x: x[:, :4], t)
    primed = policy.prime(state, policy.init(state, 1), history, jnp.ones((1, 4), bool))
    np.testing.assert_allclose(act(primed, t.observation[:, 4])[0], actions[4], atol=1e-6)

    steps = [
        str(jax.make_jaxpr(lambda m, o, d=d: policy.act(state, m, o, None, jax.random.key(0), d))(
            primed, t.observation[:, 4]
        ))
        for d in (True, False)
    ]  # fmt: skip
    assert steps[0] == steps[1]  # nothing is sampled


def test_the_rate_falls_in_stairs():
    config = tt.Config()
    rate = lambda step: float(tt.learning_rate(jnp.int32(step), config))  # noqa: E731
    assert rate(0) == rate(999) == pytest.approx(3e-4)
    assert rate(100_000) == pytest.approx(3e-4 * 0.5 * (1 + math.cos(0.2 * math.pi)))
    assert rate(600_000) == pytest.approx(0.0, abs=1e-10)


def test_settings_of_the_paper():
    make = lambda name: tt.for_task(tasks.TASKS[name])  # noqa: E731
    for name, eta, norm, length in (
        ("halfcheetah-medium-v2", 5.0, 15.0, 5),
        ("halfcheetah-medium-expert-v2", 0.4, 15.0, 20),
        ("hopper-medium-replay-v2", 3.0, 9.0, 20),
        ("walker2d-medium-v2", 2.0, 5.0, 20),
        ("maze2d-umaze-v1", 5.0, 20.0, 20),
    ):
        config = make(name)
        assert (config.q_weight, config.max_grad_norm, config.context_length) == (eta, norm, length)
    assert make("halfcheetah-medium-expert-v2").cosine_steps == 100_000
