"""SynthER's denoiser and sampler against the released code."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edm_params import initial_state, residual_mlp, training_settings

from tgcvg_jax.data.dataset import make_dataset
from tgcvg_jax.models import denoiser, transition_denoiser
from tgcvg_jax.ops import edm
from tgcvg_jax.types import Task


@pytest.fixture(scope="module")
def z():
    return golden.load("synther_edm")


@pytest.fixture(scope="module")
def task(z):
    return Task("golden", "", int(z["hp/state_dim"]), int(z["hp/action_dim"]), 1000)


@pytest.fixture(scope="module")
def config(z):
    return transition_denoiser.Config(
        **training_settings(z),
        width=int(z["hp/width"]),
        num_layers=int(z["hp/num_layers"]),
        embedding_dim=int(z["hp/embed_dim"]),
    )


@pytest.fixture(scope="module")
def start(z, config, task):
    """The initial state; its normaliser is fitted by the learner to the golden rows as data."""
    with jax.enable_x64(True):
        rows = jnp.asarray(z["in/normalizer_data"])
        transition = transition_denoiser.unpack(rows, task, 0.5)
        # The golden terminals are no 0 or 1; they don't matter to the normaliser.
        dataset = make_dataset(task, transition, np.zeros(len(rows), bool))
        dataset = dataset.replace(transition=transition)
        data = transition_denoiser.make(task, config).prepare(dataset)
        return initial_state(z, residual_mlp, config, data.normalizer)


def test_normalizer(x64, z, start):
    golden.assert_close(start.normalizer.mean, z["out/normalizer_mean"])
    golden.assert_close(start.normalizer.std, z["out/normalizer_std"])


def test_denoised(x64, z, config, start):
    d = denoiser.make_denoiser(transition_denoiser.make_network(config), start, config)
    x, sigma = jnp.asarray(z["in/denoise_x"]), jnp.asarray(z["in/denoise_sigma"])
    golden.assert_close(d(x, sigma, None, None), z["out/denoised"])


def test_samples(x64, z, config, start):
    sampler = edm.Sampler(num_steps=int(z["hp/num_sample_steps"]))
    d = denoiser.make_denoiser(transition_denoiser.make_network(config), start, config)
    churn = jnp.asarray(z["noise/churn"])
    x = edm.sample(
        d, sampler.sigma_max * jnp.asarray(z["noise/start"]), None, lambda i: churn[i], None,
        config=sampler,
    )  # fmt: skip
    golden.assert_close(x, z["out/samples_normalized"])
    golden.assert_close(start.normalizer.inverse(x), z["out/samples"])


def test_updates(x64, z, config, start):
    """Three: losses, unclipped gradients, their norms, and the parameters after each."""
    network = transition_denoiser.make_network(config)
    state = start
    for u in range(int(z["hp/num_updates"])):
        x = start.normalizer(jnp.asarray(z["in/train_rows"][u]))
        batch = denoiser.Batch(x)
        noise = denoiser.Noise(jnp.asarray(z["noise/train_sigma"][u]), z["noise/train"][u])
        grads, info = jax.grad(denoiser.loss, has_aux=True)(
            state.params, state.constants, batch, noise, network, config
        )
        golden.assert_close(grads, residual_mlp(golden.select(z, "out/grad", u)))
        for name in ("loss", "sigma", "noised", "denoised"):
            golden.assert_close(info[name], z[f"out/train/{name}"][u])
        state, info = denoiser.apply_update(state, batch, noise, network=network, config=config)
        golden.assert_close(info["grad_norm"], z["out/train/grad_norm"][u])
        golden.assert_close(state.params, residual_mlp(golden.select(z, "out/params", u)))
