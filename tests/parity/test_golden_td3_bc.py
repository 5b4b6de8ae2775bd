"""TD3+BC against CORL: four updates with the delayed policy."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.learners import td3_bc

TASK = golden.TASK
NETWORKS = ("actor", "critic", "target_actor", "target_critic")


def parameters(z, prefix, index=None, names=NETWORKS):
    pick = lambda name: golden.select(z, f"{prefix}/{name}", index)  # noqa: E731
    make = {
        "actor": lambda: {"params": golden.mlp(pick("actor"), "net")},
        "target_actor": lambda: {"params": golden.mlp(pick("actor_target"), "net")},
        "critic": lambda: golden.twin(pick("critic_1"), pick("critic_2"), "net"),
        "target_critic": lambda: golden.twin(
            pick("critic_1_target"), pick("critic_2_target"), "net"
        ),
    }
    return {name: make[name]() for name in names}


@pytest.fixture(scope="module")
def z():
    return golden.load("td3_bc")


@pytest.fixture(scope="module")
def updates(z):
    """States, infos and gradients of each update, as numpy arrays."""
    hp = golden.select(z, "hp")
    config = td3_bc.Config(
        hidden_dims=(int(hp["hidden"]),) * 2,
        learning_rate=float(hp["actor_lr"]),
        discount=float(hp["discount"]),
        tau=float(hp["tau"]),
        alpha=float(hp["alpha"]),
        policy_noise=float(hp["policy_noise"]),
        noise_clip=float(hp["noise_clip"]),
    )
    static = dict(task=TASK, config=config)

    @jax.jit
    def critic_update(state, batch, noise):
        grad = jax.grad(td3_bc.critic_loss, has_aux=True)
        grads, _ = grad(state.critic, state, batch, noise, TASK, config)
        return *td3_bc.critic_step(state, batch, noise, **static), grads

    @jax.jit
    def actor_update(state, batch):
        grad = jax.grad(td3_bc.actor_loss, has_aux=True)
        grads, _ = grad(state.actor, state.critic, batch, TASK, config)
        action = td3_bc.act(td3_bc.make_networks(TASK, config)[0], state.actor, batch.observation)
        new, info = td3_bc.actor_step(state, batch, **static)
        return new, info, grads, action

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, parameters(z, "init"))
        adam = optax.adam(config.learning_rate)
        state = td3_bc.State(
            **params,
            actor_opt=adam.init(params["actor"]),
            critic_opt=adam.init(params["critic"]),
            normalizer=Normalizer(jnp.zeros(5), jnp.ones(5)),
            key=jax.random.key(0),
            step=jnp.zeros((), jnp.int32),
        )
        result = []
        for u in range(4):
            batch = golden.batch(z, u)
            critic = critic_update(state, batch, z["noise/target_policy"][u])
            state, actor = critic[0], None
            if u % 2:
                actor = actor_update(state, batch)
                state = actor[0]
            step = {name: getattr(state, name) for name in NETWORKS}
            result.append(jax.tree.map(np.asarray, (step, critic[1:], actor and actor[1:])))
        return result


@pytest.mark.parametrize("u", range(4))
def test_critic_loss_target_and_gradient(z, updates, u):
    _, (info, grads), _ = updates[u]
    golden.assert_close(info["critic_loss"], z["out/critic_loss"][u])
    golden.assert_close(info["td_target"], z["out/td_target"][u])
    golden.assert_close(info["q"], np.stack([z["out/q1_data"][u], z["out/q2_data"][u]]))
    golden.assert_close(grads, parameters(z, "out/grad", u, ("critic",))["critic"])


@pytest.mark.parametrize("u", (1, 3))
def test_actor_loss_weight_and_gradient(z, updates, u):
    _, _, (info, grads, action) = updates[u]
    for name in ("actor_loss", "bc_loss", "lambda"):
        golden.assert_close(info[name], z[f"out/{name}"][u // 2])
    golden.assert_close(action, z["out/policy_action"][u // 2])
    golden.assert_close(grads, parameters(z, "out/grad", u // 2, ("actor",))["actor"])


@pytest.mark.parametrize("u", range(4))
def test_parameters_after_update(z, updates, u):
    golden.assert_close(updates[u][0], parameters(z, "out/params", u))


def test_targets_rest_without_an_actor_step(z, updates):
    start = parameters(z, "init")
    for name in ("target_actor", "target_critic"):
        for before, after in ((start, updates[0][0]), (updates[1][0], updates[2][0])):
            jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
        golden_moves = jax.tree.map(
            lambda a, b: np.abs(a - b).max() > 0, updates[0][0][name], updates[1][0][name]
        )
        assert all(jax.tree.leaves(golden_moves))
