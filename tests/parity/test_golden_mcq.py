"""MCQ against OfflineRL-Kit: three updates, without the actor's dropout."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.learners import mcq

TASK = golden.TASK


def merged(p, first, second):
    """One of our layers that is two of theirs, side by side."""
    pair = golden.linear(p, first), golden.linear(p, second)
    return jax.tree.map(lambda a, b: np.concatenate([a, b], axis=-1), *pair)


def hidden_layers(p):
    return {f"layer_{i}": golden.linear(p, f"backbone/model/{2 * i}") for i in range(2)}


def twin(first, second):
    each = [hidden_layers(p) | {"layer_2": golden.linear(p, "last")} for p in (first, second)]
    return {"params": {"q": jax.tree.map(lambda a, b: np.stack([a, b]), *each)}}


def parts(p):
    """Parameters or gradients of everything that an optimiser steps."""
    of = lambda name: golden.select(p, name)  # noqa: E731
    a, v = of("actor"), of("vae")
    decoder = {f"layer_{i}": golden.linear(v, f"d{i + 1}") for i in range(3)}
    encoder = {f"layer_{i}": golden.linear(v, f"e{i + 1}") for i in range(2)}
    encoder["layer_2"] = merged(v, "mean", "log_std")
    return {
        "actor": {
            "params": hidden_layers(a) | {"layer_2": merged(a, "dist_net/mu", "dist_net/sigma")}
        },
        "critic": twin(of("critic_1"), of("critic_2")),
        "vae": {"params": {"encoder": encoder, "decoder": decoder}},
        "log_alpha": p["log_alpha"],
    }


def target_critic(p):
    return twin(golden.select(p, "target_critic_1"), golden.select(p, "target_critic_2"))


@pytest.fixture(scope="module")
def z():
    return golden.load("mcq")


@pytest.fixture(scope="module")
def updates(z):
    """After each update: state, metrics, gradients, infos and samples, as numpy arrays."""
    hp = golden.select(z, "hp")
    assert hp["actor_lr"] == hp["critic_lr"] == hp["alpha_lr"]
    config = mcq.Config(
        hidden_dims=(int(hp["hidden"]),) * 2,
        dropout=0.0,
        vae_hidden_dim=int(hp["vae_hidden"]),
        learning_rate=float(hp["actor_lr"]),
        vae_learning_rate=float(hp["vae_lr"]),
        discount=float(hp["gamma"]),
        tau=float(hp["tau"]),
        data_weight=float(hp["lmbda"]),
        num_sampled_actions=int(hp["num_sampled_actions"]),
        latent_clip=float(hp["vae_latent_clip"]),
    )
    static = (TASK, config)
    _, _, vae = mcq.make_networks(*static)

    @jax.jit
    def update(state, batch, noise):
        """One update, and what is inside of it, each part with the parameters that it sees."""
        new, metrics = mcq.apply_update(state, batch, noise, task=TASK, config=config)
        p, with_vae = state.params, state.replace(params=state.params | {"vae": new.params["vae"]})
        with_critic = state.replace(params=state.params | {"critic": new.params["critic"]})
        grads, infos = {}, {}
        grads["vae"], infos["vae"] = jax.grad(mcq.vae_loss, has_aux=True)(
            p["vae"], batch, noise, *static
        )
        grads["critic"], infos["critic"] = jax.grad(mcq.critic_loss, has_aux=True)(
            p["critic"], with_vae, batch, noise, *static
        )
        grads["actor"], infos["actor"] = jax.grad(mcq.actor_loss, has_aux=True)(
            p["actor"], with_critic, batch, noise, *static
        )
        log_prob = infos["actor"]["log_prob"]
        grads["log_alpha"] = jax.grad(mcq.alpha_loss)(p["log_alpha"], log_prob, TASK)

        both = jnp.concatenate([batch.observation, batch.next_observation])
        latent = jnp.clip(noise.prior, -0.5, 0.5)
        repeated = jnp.repeat(both[:, None], latent.shape[1], axis=1)
        sample = lambda o, n: mcq.sample_action(p["actor"], o, n, *static)  # noqa: E731
        inside = {
            "target": sample(batch.next_observation, noise.target),
            "ood_policy": sample(both, noise.ood),
            "policy": sample(batch.observation, noise.policy),
            "vae": vae.apply(p["vae"], batch.observation, batch.action, noise.vae),
            "proposals": vae.apply(new.params["vae"], repeated, latent, method="decode"),
        }
        return new, metrics, grads, infos, inside

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, parts(golden.select(z, "init")))
        optimizers = mcq.make_optimizers(config)
        state = mcq.State(
            params=params,
            target_critic=jax.tree.map(jnp.asarray, target_critic(golden.select(z, "init"))),
            opt_state={name: optimizers[name].init(params[name]) for name in params},
            normalizer=Normalizer(jnp.zeros(5), jnp.ones(5)),
            key=jax.random.key(0),
            step=jnp.zeros((), jnp.int32),
        )
        result = []
        for u in range(3):
            batch = golden.batch(z, u, "terminals")
            noise = mcq.Noise(
                vae=z["noise/vae"][u],
                target=z["noise/target"][u],
                prior=z["noise/vae_prior"][u],
                ood=z["noise/ood_policy"][u],
                policy=z["noise/policy"][u],
                dropout=jax.random.split(jax.random.key(0), 3),
            )
            state, *rest = update(state, batch, noise)
            networks = (state.params, state.target_critic)
            result.append(jax.tree.map(np.asarray, (networks, *rest)))
        return result


def two(z, name, u):
    return np.stack([z[f"out/{name.format(i)}"][u] for i in (1, 2)])


@pytest.mark.parametrize("u", range(3))
def test_losses_and_targets(z, updates, u):
    _, metrics, _, infos, _ = updates[u]
    golden.assert_close(infos["vae"]["vae_loss"], z["out/vae_loss"][u])
    golden.assert_close(infos["critic"]["critic_losses"], two(z, "critic_{}_loss", u))
    golden.assert_close(infos["critic"]["q_data"], two(z, "q{}_data", u))
    golden.assert_close(infos["critic"]["q_ood"], two(z, "q{}_ood", u))
    golden.assert_close(infos["critic"]["td_target"], z["out/td_target"][u])
    golden.assert_close(infos["critic"]["ood_target"], z["out/ood_target"][u])
    golden.assert_close(infos["actor"]["q_policy"], two(z, "q{}_policy", u))
    golden.assert_close(infos["actor"]["actor_loss"], z["out/actor_loss"][u])
    golden.assert_close(metrics["critic_loss"], two(z, "critic_{}_loss", u).sum())
    golden.assert_close(metrics["alpha"], z["out/alpha_used"][u])
    for name in ("vae_loss", "actor_loss", "alpha_loss"):
        golden.assert_close(metrics[name], z[f"out/{name}"][u])


@pytest.mark.parametrize("u", range(3))
def test_samples(z, updates, u):
    inside = updates[u][-1]
    for name in ("target", "ood_policy", "policy"):
        expected = (z[f"out/{name}/action"][u], z[f"out/{name}/log_prob"][u])
        golden.assert_close(inside[name], expected)
    vae = tuple(z[f"out/vae_{name}"][u] for name in ("reconstruction", "mean", "std"))
    golden.assert_close(inside["vae"], vae)
    golden.assert_close(inside["proposals"], z["out/vae_sampled_actions"][u])


@pytest.mark.parametrize("u", range(3))
def test_gradients(z, updates, u):
    golden.assert_close(updates[u][2], parts(golden.select(z, "out/grad", u)))


@pytest.mark.parametrize("u", range(3))
def test_parameters_after_update(z, updates, u):
    expected = golden.select(z, "out/params", u)
    golden.assert_close(updates[u][0], (parts(expected), target_critic(expected)))
    alpha = np.minimum(np.exp(updates[u][0][0]["log_alpha"]), 1.0)
    golden.assert_close(alpha, z["out/alpha_after"][u])
