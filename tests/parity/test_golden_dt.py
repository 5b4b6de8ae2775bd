"""Decision Transformer against CORL: a padded batch, three clipped AdamW updates with warm-up."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.learners import dt

TASK = golden.TASK
UPDATES = range(3)


def parameters(z, prefix, index=None):
    p = golden.select(z, prefix, index)
    params = {
        "embed_timestep": {"embedding": p["timestep_emb/weight"]},
        "embed_return": golden.linear(p, "return_emb"),
        "embed_observation": golden.linear(p, "state_emb"),
        "embed_action": golden.linear(p, "action_emb"),
        "embed_norm": golden.norm(p, "emb_norm"),
        "out_norm": golden.norm(p, "out_norm"),
        "head": golden.linear(p, "action_head/0"),
    }
    for i in range(3):
        block = f"blocks/{i}"
        params[f"block_{i}"] = {
            "norm_1": golden.norm(p, f"{block}/norm1"),
            "in_proj": {
                "kernel": p[f"{block}/attention/in_proj_weight"].T,
                "bias": p[f"{block}/attention/in_proj_bias"],
            },
            "out_proj": golden.linear(p, f"{block}/attention/out_proj"),
            "norm_2": golden.norm(p, f"{block}/norm2"),
            "mlp_in": golden.linear(p, f"{block}/mlp/0"),
            "mlp_out": golden.linear(p, f"{block}/mlp/2"),
        }
    return {"params": params}


@pytest.fixture(scope="module")
def z():
    return golden.load("dt")


@pytest.fixture(scope="module")
def config(z):
    hp = golden.select(z, "hp")
    return dt.Config(
        hidden_dim=int(hp["embedding_dim"]),
        num_blocks=int(hp["num_layers"]),
        context_length=int(hp["seq_len"]),
        episode_length=int(hp["episode_len"]),
        learning_rate=float(hp["lr"]),
        warmup_steps=int(hp["warmup_steps"]),
        weight_decay=float(hp["weight_decay"]),
        max_grad_norm=float(hp["clip_grad"]),
        dropout=0.0,
    )


def window(z, u):
    return dt.Window(
        observation=z["in/states"][u],
        action=z["in/actions"][u],
        return_to_go=z["in/returns_to_go"][u],
        timestep=z["in/time_steps"][u].astype(np.int32),
        mask=z["in/mask"][u].astype(bool),
    )


@pytest.fixture(scope="module")
def updates(z, config):
    """(parameters after it, metrics, unclipped gradients, predictions, rate) of each update."""
    network, key = dt.make_network(TASK, config), jax.random.key(0)

    @jax.jit
    def update(state, batch):
        grads, _ = jax.grad(dt.loss, has_aux=True)(state.params, batch, key, TASK, config)
        predicted = network.apply(state.params, *batch, deterministic=True)
        new, info = dt.apply_update(state, batch, key, task=TASK, config=config)
        return new, (new.params, info, grads, predicted, dt.learning_rate(state.step, config))

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, parameters(z, "init"))
        state = dt.State(
            params=params,
            opt_state=dt.make_optimizer(config).init(params),
            normalizer=Normalizer(jnp.zeros(5), jnp.ones(5)),
            best_return=jnp.zeros(()),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )
        result = []
        for u in UPDATES:
            state, out = update(state, window(z, u))
            result.append(jax.tree.map(np.asarray, out))
        return result


def test_the_batches_are_padded_at_their_end(z):
    mask = z["in/mask"]
    assert 0 < mask.sum() < mask.size and np.all(np.diff(mask, axis=-1) <= 0)


@pytest.mark.parametrize("u", UPDATES)
def test_predictions_and_loss(z, updates, u):
    _, info, _, predicted, _ = updates[u]
    golden.assert_close(predicted, z["out/predicted_actions"][u])
    golden.assert_close(info["actor_loss"], z["out/loss"][u])


def test_predictions_without_a_mask(z, config, x64):
    params = jax.tree.map(jnp.asarray, parameters(z, "init"))
    batch = window(z, 0)._replace(mask=None)
    network = dt.make_network(TASK, config)
    predicted = jax.jit(lambda p: network.apply(p, *batch, deterministic=True))(params)
    golden.assert_close(predicted, z["out/predicted_actions_no_padding_mask"])


@pytest.mark.parametrize("u", UPDATES)
def test_gradients_and_their_norm(z, updates, u):
    _, info, grads, _, _ = updates[u]
    golden.assert_close(grads, parameters(z, "out/grad", u))
    golden.assert_close(info["grad_norm"], z["out/grad_norm"][u])
    assert info["grad_norm"] > 0.25  # so that the clipping shows


@pytest.mark.parametrize("u", UPDATES)
def test_rate_and_parameters_after_update(z, updates, u):
    params, _, _, _, rate = updates[u]
    golden.assert_close(rate, z["out/lr"][u])
    golden.assert_close(params, parameters(z, "out/params", u))
