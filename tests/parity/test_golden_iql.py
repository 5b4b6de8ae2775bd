"""IQL against CORL, Gaussian policy: four updates under the cosine learning rate."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.learners import iql

TASK = golden.TASK
NETWORKS = ("actor", "critic", "target_critic", "value")


def parameters(z, prefix, index=None, names=NETWORKS):
    pick = lambda name: golden.select(z, f"{prefix}/{name}", index)  # noqa: E731

    def actor():
        params = {"mlp": golden.mlp(pick("actor/net"), "net"), "log_std": pick("actor")["log_std"]}
        return {"params": params}

    make = {
        "actor": actor,
        "critic": lambda: golden.twin(pick("qf/q1"), pick("qf/q2"), "net"),
        "target_critic": lambda: golden.twin(pick("q_target/q1"), pick("q_target/q2"), "net"),
        "value": lambda: {"params": golden.mlp(pick("vf/v"), "net")},
    }
    return {name: make[name]() for name in names}


@pytest.fixture(scope="module")
def z():
    return golden.load("iql")


@pytest.fixture(scope="module")
def config(z):
    hp = {name: float(value) for name, value in golden.select(z, "hp").items()}
    assert hp["actor_lr"] == hp["qf_lr"] == hp["vf_lr"] and hp["max_action"] == 1.0
    return iql.Config(
        num_steps=int(hp["cosine_max_steps"]),
        hidden_dims=(int(hp["hidden"]),) * int(hp["num_hidden_layers"]),
        learning_rate=hp["actor_lr"],
        discount=hp["discount"],
        tau=hp["tau"],
        expectile=hp["expectile"],
        beta=hp["beta"],
        max_weight=hp["exp_adv_max"],
        min_log_std=hp["log_std_min"],
        max_log_std=hp["log_std_max"],
    )


@pytest.fixture(scope="module")
def updates(z, config):
    """State, info, gradients, policy mean and actor's learning rate of each update, in numpy."""

    @jax.jit
    def update(state, batch):
        grad = lambda loss, *xs: jax.grad(loss, has_aux=True)(*xs, batch, TASK, config)[0]  # noqa: E731
        new, info = iql.apply_update(state, batch, task=TASK, config=config)
        grads = {
            "value": grad(iql.value_loss, state.value, state.target_critic),
            "critic": grad(iql.critic_loss, state.critic, state.value),
            "actor": grad(iql.actor_loss, state.actor, info["advantage"]),
        }
        actor, _, _ = iql.make_networks(TASK, config)
        mean, _ = actor.apply(state.actor, batch.observation)
        return new, info, grads, mean, iql.actor_learning_rate(state.step, config)

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, parameters(z, "init"))
        state = iql.State(
            **params,
            actor_opt=iql.actor_optimizer(config).init(params["actor"]),
            critic_opt=optax.adam(config.learning_rate).init(params["critic"]),
            value_opt=optax.adam(config.learning_rate).init(params["value"]),
            normalizer=Normalizer(jnp.zeros(5), jnp.ones(5)),
            key=jax.random.key(0),
            step=jnp.zeros((), jnp.int32),
        )
        result = []
        for u in range(4):
            batch = golden.batch(z, u)
            state, *rest = update(state, batch)
            step = {name: getattr(state, name) for name in NETWORKS}
            result.append(jax.tree.map(np.asarray, (step, *rest)))
        return result


@pytest.mark.parametrize("u", range(4))
def test_losses_and_what_they_are_made_of(z, updates, u):
    _, info, _, mean, _ = updates[u]
    for name in ("value_loss", "actor_loss", "advantage", "next_v"):
        golden.assert_close(info[name], z[f"out/{name}"][u])
    golden.assert_close(info["critic_loss"], z["out/q_loss"][u])
    golden.assert_close(info["weight"], z["out/exp_advantage"][u])
    golden.assert_close(-info["bc_loss"], z["out/policy_log_prob"][u])
    golden.assert_close(mean, z["out/policy_mean"][u])


@pytest.mark.parametrize("u", range(4))
def test_gradients(z, updates, u):
    names = ("actor", "critic", "value")
    golden.assert_close(updates[u][2], parameters(z, "out/grad", u, names))


@pytest.mark.parametrize("u", range(4))
def test_parameters_after_update(z, updates, u):
    golden.assert_close(updates[u][4], z["out/actor_lr"][u])
    golden.assert_close(updates[u][0], parameters(z, "out/params", u))


def test_nothing_goes_untested(z):
    """Some weights are at their bound, every update has terminals, and the rate falls."""
    assert (z["out/exp_advantage"] == 100.0).any() and (z["out/exp_advantage"] < 100.0).any()
    assert z["in/dones"].any(axis=1).all() and not z["in/dones"].all(axis=1).any()
    assert np.all(np.diff(z["out/actor_lr"]) < 0)
