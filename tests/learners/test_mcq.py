import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import tasks
from tgcvg_jax.learners import HYPERPARAMETERS, mcq

CONFIG = mcq.Config(
    num_steps=12, batch_size=8, hidden_dims=(8,), vae_hidden_dim=6, num_sampled_actions=3
)


@pytest.fixture(scope="module")
def learner(task):
    return mcq.make(task, CONFIG)


@pytest.fixture(scope="module")
def data(learner, dataset):
    return learner.prepare(dataset)


@pytest.fixture(scope="module")
def state(learner, data):
    return jax.jit(learner.init)(jax.random.key(0), data)


@pytest.fixture(scope="module")
def batch(learner, data):
    return learner.sample(jax.random.key(1), data)


@pytest.fixture(scope="module")
def noise(batch):
    return jax.jit(lambda key: mcq.draw_noise(key, batch, CONFIG))(jax.random.key(2))


@pytest.fixture(scope="module")
def critic(task):
    """Gradient of the critics' loss and its info, compiled once for each weight of the data."""

    def make(data_weight):
        config = dataclasses.replace(CONFIG, data_weight=data_weight)
        grad = jax.grad(mcq.critic_loss, has_aux=True)
        return jax.jit(lambda params, *arrays: grad(params, *arrays, task, config))

    return {weight: make(weight) for weight in (0.0, 1.0)}


def last_bias(params):
    return params["params"]["q"]["layer_1"]["bias"]


@pytest.mark.parametrize("shift", (5.0, -5.0))
def test_q_of_the_policys_actions_is_pulled_to_the_pseudo_target(
    critic, state, batch, noise, shift
):
    """Up where the VAE's best proposal is worth more, down where it is worth less."""
    raised = jax.tree.map(lambda x: x, state.target_critic)
    raised["params"]["q"]["layer_1"]["bias"] = last_bias(raised) + shift
    state = state.replace(target_critic=raised)
    params = state.params["critic"]
    grads, before = critic[0.0](params, state, batch, noise)
    np.testing.assert_array_equal(np.sign(last_bias(grads)), -np.sign(shift))
    stepped = jax.tree.map(lambda p, g: p - 1e-2 * g, params, grads)
    _, after = critic[0.0](stepped, state, batch, noise)
    np.testing.assert_array_equal(after["ood_target"], before["ood_target"])
    assert np.all(after["critic_losses"] < before["critic_losses"])
    assert np.sign(jnp.mean(after["q_ood"] - before["q_ood"])) == np.sign(shift)


def test_the_pseudo_target_is_the_best_proposal_and_ignores_rewards(
    task, critic, state, batch, noise
):
    """Of three in each state, by each target critic for itself; then the lesser critic's."""
    first = jax.tree.map(lambda x: x[0], state.target_critic["params"]["q"])

    def opposed(total):
        """Critics whose values add up to `total`."""
        other = first | {"layer_1": jax.tree.map(jnp.negative, first["layer_1"])}
        other["layer_1"]["bias"] += total
        return {"params": {"q": jax.tree.map(lambda *x: jnp.stack(x), first, other)}}

    @jax.jit
    def q_proposals(target_critic):
        """[2, 2 B, 3]."""
        _, q, vae = mcq.make_networks(task, CONFIG)
        observation = jnp.concatenate([batch.observation, batch.next_observation])
        observation = jnp.broadcast_to(observation[:, None], (16, 3, 3))
        latent = jnp.clip(noise.prior, -0.5, 0.5)
        action = vae.apply(state.params["vae"], observation, latent, method="decode")
        return q.apply(target_critic, observation, action)

    of_a_state = np.asarray(q_proposals(opposed(0.0)))[0, 0]
    state = state.replace(target_critic=opposed(of_a_state.min() + of_a_state.max()))
    target = lambda b: critic[0.0](state.params["critic"], state, b, noise)[1]["ood_target"]  # noqa: E731
    q, found = np.asarray(q_proposals(state.target_critic)), target(batch)
    np.testing.assert_allclose(found, q.max(axis=2).min(axis=0), atol=1e-6)
    assert found[0] > q.min(axis=0).max(axis=1)[0] + 1e-3
    moved = target(batch._replace(reward=batch.reward + 9.0, discount=0 * batch.discount))
    np.testing.assert_array_equal(moved, found)


def test_lambda_one_is_sac(critic, state, batch, noise):
    """Then neither the VAE nor the actions out of the data have a say."""
    params = state.params["critic"]
    grads, info = critic[1.0](params, state, batch, noise)
    other = noise.replace(ood=-noise.ood, prior=-noise.prior)
    again, changed = critic[1.0](params, state, batch, other)
    jax.tree.map(np.testing.assert_array_equal, grads, again)
    assert not np.array_equal(info["q_ood"], changed["q_ood"])


def test_terminals_do_not_bootstrap(critic, state, batch, noise):
    batch = batch._replace(discount=jnp.ones(8).at[:4].set(0.0))
    target = critic[1.0](state.params["critic"], state, batch, noise)[1]["td_target"]
    np.testing.assert_array_equal(target[:4], batch.reward[:4])
    assert np.all(np.asarray(target != batch.reward)[4:])


@pytest.mark.parametrize(("log_prob", "sign"), [(5.0, 1), (-1.0, -1)])
def test_temperature_rises_when_entropy_is_short(task, log_prob, sign):
    """The target entropy is -2, so a mean log density above 2 must raise alpha."""
    grad = jax.grad(mcq.alpha_loss)(jnp.zeros(()), jnp.full(8, log_prob), task)
    assert np.sign(-grad) == sign


def test_temperature_is_at_most_one(state):
    of = lambda x: float(mcq.temperature(state.replace(params={"log_alpha": jnp.float32(x)})))  # noqa: E731
    assert (of(0.5), of(0.0)) == (1.0, 1.0) and of(-1.0) == pytest.approx(np.exp(-1.0))


def test_the_actor_drops_units_wherever_it_trains(task, critic, state, batch, noise):
    """Other keys of dropout: other samples for both targets and for the actor's own loss."""
    actor = jax.jit(lambda n: mcq.actor_loss(state.params["actor"], state, batch, n, task, CONFIG))
    info = lambda n: critic[1.0](state.params["critic"], state, batch, n)[1] | actor(n)[1]  # noqa: E731
    one, other = info(noise), info(noise.replace(dropout=noise.dropout[jnp.array([1, 2, 0])]))
    for name in ("td_target", "q_ood", "q_policy"):
        assert not np.array_equal(one[name], other[name])
    np.testing.assert_array_equal(one["q_data"], other["q_data"])


def test_dropout_of_the_actor(task):
    """A tenth of the hidden units, and the others scaled up; none without a key."""
    config = dataclasses.replace(CONFIG, hidden_dims=(20_000,))
    actor, _, _ = mcq.make_networks(task, config)
    params = {
        "layer_0": {"kernel": jnp.zeros((3, 20_000)), "bias": jnp.ones(20_000)},
        "layer_1": {"kernel": jnp.full((20_000, 4), 1 / 20_000), "bias": jnp.zeros(4)},
    }
    run = lambda **kw: float(actor.apply({"params": params}, jnp.zeros(3), **kw)[0])  # noqa: E731
    assert run() == pytest.approx(1.0, abs=1e-3)
    dropped = run(deterministic=False, rngs={"dropout": jax.random.key(0)})
    assert dropped == pytest.approx(1.0, abs=0.01) and abs(dropped - run()) > 1e-4


def test_policy_is_random_unless_deterministic(learner, state):
    act = lambda key, mean: learner.policy.act(  # noqa: E731
        state, (), jnp.ones((4, 3)), jnp.zeros(4), key, mean
    )[0]
    one, other = jax.random.split(jax.random.key(0))
    assert not np.allclose(act(one, False), act(other, False))
    np.testing.assert_array_equal(act(one, True), act(other, True))


def test_settings_by_task():
    of = lambda name, whose="tgcvg": mcq.for_task(tasks.TASKS[name], whose)  # noqa: E731
    for whose in HYPERPARAMETERS:
        weight = lambda name, whose=whose: of(name, whose).data_weight  # noqa: E731
        assert weight("hopper-medium-v2") == weight("mujoco/hopper/medium-v0") == 0.7
        assert (weight("walker2d-medium-expert-v2"), weight("hopper-random-v2")) == (0.8, 0.6)
        assert weight("maze2d-umaze-dense-v1") == weight("D4RL/pointmaze/umaze-v2") == 0.7
        assert weight("hopper-expert-v2") == weight("antmaze-umaze-v2") == 0.9  # nobody's
        assert of("antmaze-umaze-v2", whose).replay.reward_shift == -1.0
    each = [of("hopper-medium-v2", whose) for whose in HYPERPARAMETERS]
    assert [config.batch_size for config in each] == [256, 256, 1024]
    assert [config.replay.normalize_states for config in each] == [True, False, True]
