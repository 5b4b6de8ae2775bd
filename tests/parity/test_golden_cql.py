"""CQL against CORL: three updates."""

import dataclasses

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.learners import cql

TASK = golden.TASK
UPDATES = range(3)


def critics(z, prefix, name, index=None):
    first, second = (golden.select(z, f"{prefix}/{name}_{i}", index) for i in (1, 2))
    return golden.twin(first, second, "network")


def parameters(z, prefix, index=None):
    actor = golden.select(z, f"{prefix}/actor", index)
    scalars = ("log_std_multiplier", "log_std_offset")
    return {
        "actor": {
            "params": {
                "mlp": golden.mlp(actor, "base_network"),
                **{name: actor[f"{name}/constant"] for name in scalars},
            }
        },
        "critic": critics(z, prefix, "critic", index),
        "log_alpha": golden.select(z, f"{prefix}/log_alpha", index)["constant"],
    }


@pytest.fixture(scope="module")
def z():
    return golden.load("cql")


@pytest.fixture(scope="module")
def config(z):
    hp = golden.select(z, "hp")
    hidden = (int(hp["hidden"]),) * int(hp["num_hidden_layers"])
    return cql.Config(
        batch_size=int(hp["batch"]),
        hidden_dims=hidden,
        critic_hidden_dims=hidden,
        policy_learning_rate=float(hp["policy_lr"]),
        critic_learning_rate=float(hp["qf_lr"]),
        discount=float(hp["discount"]),
        tau=float(hp["tau"]),
        min_log_std=float(hp["log_std_min"]),
        max_log_std=float(hp["log_std_max"]),
        num_action_samples=int(hp["cql_n_actions"]),
        cql_alpha=float(hp["cql_alpha"]),
        cql_temperature=float(hp["cql_temperature"]),
    )


def run(z, config):
    """(parameters after it, info, gradients, intermediates) of each update, as numpy arrays."""
    static = dict(task=TASK, config=config)

    def intermediates(params, batch, noise):
        result = {}
        for name, observation, eps in (
            ("policy", batch.observation, noise.policy),
            ("target", batch.next_observation, noise.target),
            ("cql_current", batch.observation, noise.current),
            ("cql_next", batch.next_observation, noise.next),
        ):
            action, log_prob = cql.draw_actions(params["actor"], observation, eps, TASK, config)
            mean, log_std = cql.make_networks(TASK, config)[0].apply(params["actor"], observation)
            many = lambda x, like=action: jnp.broadcast_to(x[:, None], like.shape)  # noqa: E731
            draws = dict(mean=many(mean), log_std=many(log_std), action=action, log_prob=log_prob)
            single = name in ("policy", "target")
            result[name] = {k: v[:, 0] for k, v in draws.items()} if single else draws
        actions, log_density = cql.proposals(params, batch, noise, TASK, config)
        q = cql.q_values(params["critic"], batch.observation, actions, TASK, config)
        return result | {"cql_values": q - log_density}

    @jax.jit
    def update(state, batch, noise):
        grads, _ = jax.grad(cql.loss, has_aux=True)(
            state.params, state.target_critic, batch, noise, TASK, config
        )
        parts = intermediates(state.params, batch, noise)
        new, info = cql.apply_update(state, batch, noise, **static)
        return new, info, grads, parts

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, parameters(z, "init"))
        optimizers = cql.make_optimizers(config)
        state = cql.State(
            params=params,
            target_critic=jax.tree.map(jnp.asarray, critics(z, "init", "target_critic")),
            opt_state={name: optimizers[name].init(params[name]) for name in params},
            normalizer=Normalizer(jnp.zeros(5), jnp.ones(5)),
            key=jax.random.key(0),
            step=jnp.int32(0),
        )
        result = []
        for u in UPDATES:
            batch = golden.batch(z, u)
            noise = cql.Noise(
                policy=z["noise/policy"][u][:, None],
                target=z["noise/target"][u][:, None],
                random=z["noise/cql_random_actions"][u],
                current=z["noise/cql_current"][u],
                next=z["noise/cql_next"][u],
            )
            state, info, grads, parts = update(state, batch, noise)
            after = {"params": state.params, "target_critic": state.target_critic}
            result.append(jax.tree.map(np.asarray, (after, info, grads, parts)))
        return result


@pytest.fixture(scope="module")
def updates(z, config):
    return run(z, config)


def both(z, name, u):
    return np.stack([z[f"out/{name.format(i)}"][u] for i in (1, 2)])


@pytest.mark.parametrize("u", UPDATES)
def test_samples(z, updates, u):
    parts = updates[u][3]
    for name in ("policy", "target", "cql_current", "cql_next"):
        golden.assert_close(parts[name], golden.select(z, f"out/{name}", u))
    golden.assert_close(parts["cql_values"], both(z, "cql_values_{}", u))
    logsumexp = jax.scipy.special.logsumexp
    with jax.enable_x64(True):
        found = np.asarray(logsumexp(parts["cql_values"], axis=-1))
    golden.assert_close(found, both(z, "cql_logsumexp_{}", u))


@pytest.mark.parametrize("u", UPDATES)
def test_temperature_and_actor_losses(z, updates, u):
    info = updates[u][1]
    golden.assert_close(info["alpha"], z["out/alpha"][u])
    golden.assert_close(info["alpha_loss"], z["out/alpha_loss"][u])
    golden.assert_close(info["actor_loss"], z["out/policy_loss"][u])
    golden.assert_close(info["entropy"], -np.mean(z["out/policy/log_prob"][u]))


@pytest.mark.parametrize("u", UPDATES)
def test_critic_losses(z, updates, u):
    info = updates[u][1]
    golden.assert_close(info["td_target"], z["out/td_target"][u])
    golden.assert_close(info["q_data"], both(z, "q{}_data", u))
    golden.assert_close(info["td_loss"], both(z, "td_loss_{}", u))
    golden.assert_close(info["cql_gap"], both(z, "cql_gap_{}", u))
    golden.assert_close(info["critic_loss"], z["out/critic_loss"][u])


@pytest.mark.parametrize("u", UPDATES)
def test_gradients(z, updates, u):
    golden.assert_close(updates[u][2], parameters(z, "out/grad", u))


@pytest.mark.parametrize("u", UPDATES)
def test_parameters_after_update(z, updates, u):
    after = updates[u][0]
    golden.assert_close(after["params"], parameters(z, "out/params", u))
    golden.assert_close(after["target_critic"], critics(z, "out/params", "target_critic", u))


def test_micro_batches(z, config):
    """Three of two states each: the same parameters."""
    after, info = run(z, dataclasses.replace(config, micro_batch=2))[-1][:2]
    golden.assert_close(after["params"], parameters(z, "out/params", 2))
    assert info["td_target"].shape == (3, 2)
    golden.assert_close(np.mean(info["critic_loss"]), z["out/critic_loss"][2])
