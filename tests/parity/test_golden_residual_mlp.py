"""SynthER's residual MLP against the released code: predictions, training loss and its gradient."""

import edm_params
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks.residual_mlp import ResidualMLP


@pytest.fixture(scope="module")
def z():
    return golden.load("synther_edm")


@pytest.fixture(scope="module")
def network(z):
    return ResidualMLP(
        width=int(z["hp/width"]),
        num_layers=int(z["hp/num_layers"]),
        embedding_dim=int(z["hp/embed_dim"]),
    )


def test_predictions(z, network, x64):
    variables = jax.tree.map(jnp.asarray, edm_params.residual_mlp_variables(z))
    apply = jax.jit(network.apply)
    golden.assert_close(apply(variables, z["in/net_x"], z["in/net_noise_level"]), z["out/net"])


@pytest.fixture(scope="module")
def update(z, network):
    """Loss, denoised rows and gradients of the first training update."""
    clean = (z["in/train_rows"][0] - z["out/normalizer_mean"]) / z["out/normalizer_std"]
    sigma = np.exp(z["hp/P_mean"] + z["hp/P_std"] * z["noise/train_sigma"][0])
    noised = clean + sigma[:, None] * z["noise/train"][0]
    golden.assert_close(noised, z["out/train/noised"][0])

    def loss(params, constants):
        """With sigma_data = 1."""
        total = sigma**2 + 1.0
        predicted = network.apply(
            {"params": params, "constants": constants},
            total[:, None] ** -0.5 * noised,
            np.log(sigma) / 4.0,
        )
        denoised = noised / total[:, None] + (sigma * total**-0.5)[:, None] * predicted
        error = jnp.mean((denoised - clean) ** 2, axis=1)
        return jnp.mean(total / sigma**2 * error), denoised

    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.asarray, edm_params.residual_mlp_variables(z))
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, denoised), grads = step(variables["params"], variables["constants"])
    return value, denoised, grads


def test_loss_and_denoised_rows(z, update):
    value, denoised, _ = update
    golden.assert_close(denoised, z["out/train/denoised"][0])
    golden.assert_close(value, z["out/train/loss"][0])


def test_gradients_and_their_norm(z, update):
    _, _, grads = update
    golden.assert_close(grads, edm_params.residual_mlp(golden.select(z, "out/grad", 0)))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    golden.assert_close(norm, z["out/train/grad_norm"][0])
