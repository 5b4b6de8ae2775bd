"""GTA's network, denoiser, training and sampler against the released code."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edm_params import initial_state, mixer_unet, training_settings

from tgcvg_jax.data.normalize import fit_normalizer
from tgcvg_jax.models import denoiser, window_denoiser
from tgcvg_jax.ops import edm
from tgcvg_jax.types import Task


@pytest.fixture(scope="module")
def z():
    return golden.load("gta_edm")


@pytest.fixture(scope="module")
def config(z):
    return window_denoiser.Config(
        **training_settings(z),
        horizon=int(z["hp/num_rows"]) - 1,
        base_dim=int(z["hp/base_dim"]),
        dim_mults=tuple(int(m) for m in z["hp/dim_mults"]),
        norm_groups=int(z["hp/head_groupnorm_groups"]),
        num_heads=int(z["hp/attention_heads"]),
        head_dim=int(z["hp/attention_dim_head"]),
    )


@pytest.fixture(scope="module")
def start(z, config):
    with jax.enable_x64(True):
        normalizer = fit_normalizer(jnp.asarray(z["in/normalizer_data"]), eps=1e-5, ddof=1)
        return initial_state(z, mixer_unet, config, normalizer)


@pytest.fixture(scope="module")
def network(config):
    return window_denoiser.make_network(config)


def test_the_layout_is_the_module_s(z, config, network, start):
    shape = z["in/net_x"].shape
    inputs = (jnp.zeros(shape), jnp.zeros(shape[0]), jnp.zeros((shape[0], 1)), jnp.ones(shape[0]))
    expected = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    assert jax.tree.map(lambda x: x.shape, start.params) == jax.tree.map(
        lambda x: x.shape, expected["params"]
    )


def test_denoiser(x64, z, config, network, start):
    d = jax.jit(denoiser.make_denoiser(network, start, config))
    x, sigma = jnp.asarray(z["in/denoise_x"]), jnp.asarray(z["in/denoise_sigma"])
    condition = jnp.asarray(z["in/cond"])
    for name, keep in (("cond", jnp.ones(len(x))), ("uncond", jnp.zeros(len(x)))):
        golden.assert_close(d(x, sigma, condition, keep), z[f"out/denoised_{name}"])


@pytest.mark.parametrize(
    "run",
    [
        "full",
        pytest.param("partial", marks=pytest.mark.slow),
        pytest.param("light", marks=pytest.mark.slow),
    ],
)
def test_samples(x64, z, config, network, start, run):
    """Guided from noise, with the released dropout; guided and (light) unguided from data."""
    sampler = edm.Sampler(num_steps=int(z["hp/num_sample_steps"]))
    noise_level = float(z[f"hp/{run}/noise_level"])
    first = edm.first_step(sampler, noise_level)
    churn = jnp.asarray(z[f"noise/{run}/churn"])
    condition = jnp.asarray(z["in/sample_cond"])
    keep = np.ones((sampler.num_steps, 2, len(condition)))
    if run == "full":
        keep = z["noise/full/cond_mask"][..., 0]
    keep = jnp.asarray(keep)
    data = start.normalizer(jnp.asarray(z["in/windows"]))
    noise = edm.sigmas(sampler)[first] * jnp.asarray(z[f"noise/{run}/start"])
    x = jax.jit(
        lambda x: edm.sample(
            denoiser.make_denoiser(network, start, config), x, condition,
            lambda i: churn[i - first], lambda i: keep[i], config=sampler, first=first,
            guidance=float(z[f"hp/{run}/guidance"]),
        )
    )(noise if noise_level == 1.0 else data + noise)  # fmt: skip
    golden.assert_close(x, z[f"out/{run}/samples_normalized"])
    golden.assert_close(start.normalizer.inverse(x), z[f"out/{run}/samples"])


def test_updates(x64, z, config, network, start):
    """Two: losses, gradients of the first, norms, and the smaller parameters after both."""
    g = golden.load("gta_edm_grad")
    task = Task("golden", "", int(z["hp/state_dim"]), int(z["hp/action_dim"]), 1000)
    weight = window_denoiser.loss_weight(task, config)
    settings = dict(network=network, config=config, weight=weight)

    @jax.jit
    def step(state, batch, noise):
        return denoiser.apply_update(state, batch, noise, **settings)

    state = start
    for u in range(2):
        x = start.normalizer(jnp.asarray(z["in/train_windows"][u]))
        batch = denoiser.Batch(x, jnp.asarray(z["in/train_cond"][u]))
        draws = (z["noise/train_sigma"], z["noise/train"], z["noise/train_cond_mask"][..., 0])
        state, info = step(state, batch, denoiser.Noise(*(jnp.asarray(d[u]) for d in draws)))
        for name in ("loss", "sigma", "noised", "denoised", "grad_norm"):
            golden.assert_close(info[name], z[f"out/train/{name}"][u])
        if u == 0:  # Adam's first moment is a tenth of the clipped gradient
            factor = min(config.max_grad_norm / (float(info["grad_norm"]) + 1e-6), 1.0)
            grads = jax.tree.map(lambda m, f=factor: m / 0.1 / f, state.opt_state[0].mu)
            golden.assert_close(grads, mixer_unet(golden.select(g, "out/grad")))
    # The file has the parameters of at most 192 elements: the rest stays as it was.
    merged = golden.select(z, "init") | golden.select(g, "out/params")
    small = golden.select(g, "out/params")
    ours, theirs = (jax.tree.leaves_with_path(t) for t in (state.params, mixer_unet(merged)))
    before = jax.tree.leaves(start.params)
    compared = 0
    for (_, x), (_, y), old in zip(ours, theirs, before, strict=True):
        if not np.array_equal(y, old):
            golden.assert_close(x, y)
            compared += 1
    assert len(small) > 200 and compared > 0.4 * len(small)
