"""GTA's mixer U-Net against the released code: predictions, training loss and its gradient."""

import edm_params
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks.mixer_unet import MixerUNet


@pytest.fixture(scope="module")
def z():
    return {**golden.load("gta_edm"), **golden.load("gta_edm_grad")}


@pytest.fixture(scope="module")
def network(z):
    return MixerUNet(
        base_dim=int(z["hp/base_dim"]),
        dim_mults=tuple(int(m) for m in z["hp/dim_mults"]),
        norm_groups=int(z["hp/head_groupnorm_groups"]),
        num_heads=int(z["hp/attention_heads"]),
        head_dim=int(z["hp/attention_dim_head"]),
    )


@pytest.fixture(scope="module")
def predictions(z, network):
    """With the condition, with none, with the condition dropped, and dropped for sample 1 only."""
    x, noise_level, condition = z["in/net_x"], z["in/net_noise_level"][:, 0], z["in/cond"]
    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.asarray, edm_params.mixer_unet_variables(z))
        apply = jax.jit(network.apply)
        keep = {"cond": [1.0, 1.0, 1.0], "dropped": [0.0, 0.0, 0.0], "mixed": [1.0, 0.0, 1.0]}
        found = {
            name: apply(variables, x, noise_level, condition, jnp.array(k))
            for name, k in keep.items()
        }
        return {**found, "uncond": apply(variables, x, noise_level)}


def test_predictions(z, predictions):
    golden.assert_close(predictions["cond"], z["out/net_cond"])
    for name in ("uncond", "dropped"):
        golden.assert_close(predictions[name], z["out/net_uncond"])
    assert np.abs(z["out/net_cond"] - z["out/net_uncond"]).max() > 1e-3  # so that this shows


def test_each_sample_drops_its_own_condition(z, predictions):
    expected = z["out/net_cond"].copy()
    expected[1] = z["out/net_uncond"][1]
    golden.assert_close(predictions["mixed"], expected)


@pytest.fixture(scope="module")
def update(z, network):
    """Loss, denoised windows and gradients of the first training update."""
    mean, std = z["out/normalizer_mean"], z["out/normalizer_std"]
    clean = (z["in/train_windows"][0] - mean) / std
    sigma = np.exp(z["hp/P_mean"] + z["hp/P_std"] * z["noise/train_sigma"][0])
    noised = clean + sigma[:, None, None] * z["noise/train"][0]
    golden.assert_close(noised, z["out/train/noised"][0])
    condition, keep = z["in/train_cond"][0], z["noise/train_cond_mask"][0][:, 0]
    mask = np.ones(clean.shape[1:])
    mask[-1, int(z["hp/state_dim"]) :] = 0.0  # the last row has no action and no reward

    def loss(params, constants):
        """With sigma_data = 1."""
        total = sigma**2 + 1.0
        broadcast = lambda v: v[:, None, None]  # noqa: E731
        predicted = network.apply(
            {"params": params, "constants": constants},
            broadcast(total**-0.5) * noised, np.log(sigma) / 4.0, condition, keep,
        )  # fmt: skip
        denoised = broadcast(1.0 / total) * noised + broadcast(sigma * total**-0.5) * predicted
        error = jnp.mean(mask * (denoised - clean) ** 2, axis=(1, 2))
        return jnp.mean(total / sigma**2 * error), denoised

    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.asarray, edm_params.mixer_unet_variables(z))
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, denoised), grads = step(variables["params"], variables["constants"])
    return value, denoised, grads


def test_loss_and_denoised_windows(z, update):
    value, denoised, _ = update
    golden.assert_close(denoised, z["out/train/denoised"][0])
    golden.assert_close(value, z["out/train/loss"][0])


def test_gradients_and_their_norm(z, update):
    _, _, grads = update
    golden.assert_close(grads, edm_params.mixer_unet(golden.select(z, "out/grad")))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    golden.assert_close(norm, z["out/train/grad_norm"][0])
