"""Transformer-CQL against TGCVG: three updates, with shared and with repeated forward passes.

Without dropout both ways of drawing the proposals are the same function, so both must match.
"""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data.normalize import fit_normalizer
from tgcvg_jax.models import transformer_cql as tcql
from tgcvg_jax.ops import losses, returns
from tgcvg_jax.ops.distributions import tanh_normal_sample
from tgcvg_jax.types import Task, Transition

TASK = Task("golden", "", observation_dim=5, action_dim=3, episode_length=1)
UPDATES = range(3)


def parameters(z, prefix, index=None):
    pick = lambda name: golden.select(z, f"{prefix}/{name}", index)  # noqa: E731
    return {
        "actor": golden.actor(pick("actor")),
        "critic": golden.twin(pick("critic_1"), pick("critic_2"), "network"),
        "log_alpha": pick("log_alpha")["constant"],
    }


def target_parameters(z, prefix, index=None):
    first, second = (golden.select(z, f"{prefix}/target_critic_{i}", index) for i in (1, 2))
    return golden.twin(first, second, "network")


@pytest.fixture(scope="module")
def z():
    return golden.load("transformer_cql")


def intermediates(state, batch, noise, config):
    """What the losses are made of, from the library's parts."""
    actor, critic = tcql.make_actor(TASK, config), tcql.make_critic(config)
    result = {}

    def draw(name, observation, eps):
        mean, log_std = actor.apply(state.params["actor"], observation, deterministic=True)
        action, log_prob = tanh_normal_sample(mean, log_std, eps)
        repeat = lambda x: jnp.broadcast_to(x, action.shape)  # noqa: E731
        result[name] = dict(
            mean=repeat(mean), log_std=repeat(log_std), action=action, log_prob=log_prob
        )
        return action, log_prob

    draw("policy", batch.observation, noise.policy)
    # Only the last position's draw is ours; the others repeat it.
    eps = jnp.broadcast_to(noise.target[:, None], noise.policy.shape)
    target_action, _ = draw("target", batch.next_observation, eps)
    target_q = critic.apply(
        state.target_critic, batch.next_observation[:, -1], target_action[:, -1]
    )
    bootstrap = batch.discount[:, -1] * jnp.min(target_q, axis=0)
    target = returns.n_step_to_end(batch.reward, bootstrap, config.discount)
    q_data = critic.apply(state.params["critic"], batch.observation, batch.action)
    result |= {"td_target": target, "q_data": q_data}
    result["td_loss"] = jnp.mean(jnp.square(q_data - target), axis=(1, 2))

    proposals = [
        (noise.random, TASK.action_dim * jnp.log(0.5)),
        draw("cql_next", batch.next_observation, noise.next),
        draw("cql_current", batch.observation, noise.current),
    ]
    values = []
    for action, log_density in proposals:
        observation = jnp.broadcast_to(
            batch.observation, (*action.shape[:-1], TASK.observation_dim)
        )
        q = critic.apply(state.params["critic"], observation, action)
        values.append(jnp.moveaxis(q - log_density, 1, -1))
    result["cql_values"] = jnp.concatenate(values, axis=-1)  # [2, B, L, 3n]
    result["cql_logsumexp"] = jax.nn.logsumexp(result["cql_values"], axis=-1)
    result["cql_gap"] = jax.vmap(losses.conservative_gap)(result["cql_values"], q_data)
    return result


@pytest.fixture(scope="module", params=(True, False), ids=("shared", "repeated"))
def updates(z, request):
    """(state, info, gradients, intermediates) of each update, and the normaliser."""
    hp = golden.select(z, "hp")
    config = tcql.Config(
        context_length=int(hp["context_length"]),
        cql_weight=float(hp["cql_weight"]),
        hidden_dim=int(hp["hidden"]),
        dropout=0.0,
        critic_hidden_dims=(int(hp["critic_hidden"]),) * 3,
        learning_rate=float(hp["actor_lr"]),
        actor_weight_decay=float(hp["actor_weight_decay"]),
        discount=float(hp["gamma"]),
        tau=float(hp["tau"]),
        num_action_samples=int(hp["cql_n_actions"]),
        shared_forward=request.param,
    )
    static = dict(task=TASK, config=config)

    @jax.jit
    def run(state, batch, noise):
        grads, _ = jax.grad(tcql.loss, has_aux=True)(
            state.params, state.target_critic, batch, noise, state.step, **static
        )
        parts = intermediates(state, batch, noise, config)
        new, info = tcql.apply_update(state, batch, noise, **static)
        return new, info, grads, parts

    with jax.enable_x64(True):
        normalizer = fit_normalizer(jnp.asarray(z["in/normalizer_data"]), eps=1e-5, ddof=1)
        params = jax.tree.map(jnp.asarray, parameters(z, "init"))
        optimizers = tcql.make_optimizers(config)
        state = tcql.State(
            params=params,
            target_critic=jax.tree.map(jnp.asarray, target_parameters(z, "init")),
            opt_state={name: optimizers[name].init(params[name]) for name in params},
            normalizer=normalizer,
            key=jax.random.key(0),
            step=jnp.int32(0),
        )
        result = []
        for u in UPDATES:
            batch = Transition(
                observation=normalizer(z["in/states"][u]),
                action=z["in/actions"][u],
                reward=z["in/rewards"][u],
                discount=1.0 - z["in/terminals"][u],
                next_observation=normalizer(z["in/next_states"][u]),
            )
            noise = tcql.Noise(
                policy=z["noise/policy"][u],
                target=z["noise/target"][u][:, -1],
                random=np.moveaxis(z["noise/cql_random_actions"][u], 2, 0),
                current=np.moveaxis(z["noise/cql_current"][u], 1, 0),
                next=np.moveaxis(z["noise/cql_next"][u], 1, 0),
                dropout=jax.random.split(jax.random.key(0), 3),
            )
            state, info, grads, parts = run(state, batch, noise)
            parts["batch"] = batch
            step = {"params": state.params, "target_critic": state.target_critic}
            result.append(jax.tree.map(np.asarray, (step, info, grads, parts)))
        return result, jax.tree.map(np.asarray, normalizer)


def test_normalizer(z, updates):
    result, normalizer = updates
    golden.assert_close(normalizer.mean, z["out/normalizer_mean"])
    golden.assert_close(normalizer.std, z["out/normalizer_std"])
    for u in UPDATES:
        batch = result[u][3]["batch"]
        golden.assert_close(batch.observation, z["out/normalized_states"][u])
        golden.assert_close(batch.next_observation, z["out/normalized_next_states"][u])


@pytest.mark.parametrize("u", UPDATES)
def test_actor_and_samples(z, updates, u):
    parts = updates[0][u][3]
    golden.assert_close(parts["policy"], golden.select(z, "out/policy", u))
    for name in ("cql_current", "cql_next"):
        expected = golden.select(z, f"out/{name}", u)
        golden.assert_close(parts[name], {k: np.moveaxis(v, 1, 0) for k, v in expected.items()})
    expected = golden.select(z, "out/target", u)
    for name in ("mean", "log_std"):
        golden.assert_close(parts["target"][name], expected[name])
    for name in ("action", "log_prob"):
        golden.assert_close(parts["target"][name][:, -1], expected[name][:, -1])


@pytest.mark.parametrize("u", UPDATES)
def test_temperature_and_actor_losses(z, updates, u):
    info = updates[0][u][1]
    golden.assert_close(info["alpha"], z["out/alpha"][u])
    golden.assert_close(info["alpha_loss"], z["out/alpha_loss"][u])
    golden.assert_close(info["actor_loss"], z["out/policy_loss"][u])
    golden.assert_close(info["entropy"], -np.mean(z["out/policy/log_prob"][u]))


@pytest.mark.parametrize("u", UPDATES)
def test_critic_losses(z, updates, u):
    _, info, _, parts = updates[0][u]
    both = lambda name: np.stack([z[f"out/{name.format(i)}"][u] for i in (1, 2)])  # noqa: E731
    golden.assert_close(parts["td_target"], z["out/td_target"][u])
    golden.assert_close(parts["q_data"], both("q{}_data"))
    for name in ("td_loss", "cql_values", "cql_logsumexp", "cql_gap"):
        golden.assert_close(parts[name], both(name + "_{}"))
    golden.assert_close(info["critic_loss"], z["out/critic_loss"][u])
    golden.assert_close(info["td_loss"], both("td_loss_{}").mean())
    golden.assert_close(info["cql_gap"], both("cql_gap_{}").mean())
    golden.assert_close(info["td_target"], z["out/td_target"][u].mean())
    golden.assert_close(info["q_data"], both("q{}_data").mean())


@pytest.mark.parametrize("u", UPDATES)
def test_gradients(z, updates, u):
    # The key biases' gradient is zero but for rounding: the bar's absolute part takes care.
    golden.assert_close(updates[0][u][2], parameters(z, "out/grad", u))


@pytest.mark.parametrize("u", UPDATES)
def test_parameters_after_update(z, updates, u):
    step = updates[0][u][0]
    golden.assert_close(step["params"], parameters(z, "out/params", u))
    golden.assert_close(step["target_critic"], target_parameters(z, "out/params", u))
