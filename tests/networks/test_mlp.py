import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks.mlp import MLP, EnsembleQ, Linear, mish, orthogonal
from tgcvg_jax.ops.distributions import tanh_normal_log_prob, tanh_normal_sample


def test_mish(x64):
    x = np.array([-30.0, -5.0, -1.0, 0.0, 0.5, 3.0, 19.9, 20.1, 50.0, 800.0])
    expected = x * np.tanh(np.logaddexp(0.0, x))
    np.testing.assert_allclose(mish(jnp.asarray(x)), expected, rtol=1e-12, atol=1e-15)
    assert np.all(np.isfinite(jax.vmap(jax.grad(mish))(jnp.asarray(x))))


def test_torch_initialisation():
    p = Linear(200).init(jax.random.key(0), jnp.zeros((1, 25)))["params"]
    for value in p.values():  # bias too
        assert 0.18 < np.abs(value).max() <= 0.2
        assert abs(np.std(value) - 0.2 / np.sqrt(3)) < 0.02


def test_orthogonal_initialisation():
    p = Linear(8, "orthogonal").init(jax.random.key(0), jnp.zeros((1, 8)))["params"]
    np.testing.assert_allclose(p["kernel"].T @ p["kernel"], 2.0 * np.eye(8), atol=1e-5)
    assert not np.any(p["bias"])


def test_twin_critics_are_two_independent_networks():
    critic = EnsembleQ((8, 8), mish)
    s, a = jnp.ones((4, 3)), jnp.ones((4, 2))
    params = critic.init(jax.random.key(0), s, a)
    q = critic.apply(params, s, a)
    assert q.shape == (2, 4)
    for i in range(2):
        one = {"params": jax.tree.map(lambda x, i=i: x[i], params["params"]["q"])}
        np.testing.assert_allclose(MLP((8, 8, 1), mish).apply(one, s, a)[:, 0], q[i], atol=1e-6)
    assert not np.allclose(q[0], q[1])


def test_density_of_the_squashed_gaussian_sums_to_one(x64):
    a = jnp.linspace(-0.99999, 0.99999, 20_001)
    mean, log_std = jnp.full((1,), 0.3), jnp.full((1,), -0.5)
    log_prob = tanh_normal_log_prob(mean, log_std, a[:, None], clip=1e-12)
    assert np.trapezoid(np.exp(log_prob), a) == pytest.approx(1.0, abs=1e-4)


def test_sample_and_density_agree(x64):
    mean, log_std, noise = jax.random.normal(jax.random.key(0), (3, 6, 2))
    action, log_prob = tanh_normal_sample(mean, log_std, noise)
    again = tanh_normal_log_prob(mean, log_std, action, clip=1e-15)
    np.testing.assert_allclose(log_prob, again, rtol=1e-6)


def test_saturated_samples_have_finite_densities():
    action, log_prob = tanh_normal_sample(jnp.full((1,), 40.0), jnp.zeros((1,)), jnp.zeros((1,)))
    assert float(action[0]) == 1.0
    # log N(40; 40, 1) - log(1 - tanh(40)^2), and 1 - tanh(u)^2 is 4 exp(-2u) for large u.
    assert float(log_prob) == pytest.approx(-0.5 * np.log(2 * np.pi) - np.log(4.0) + 80.0, rel=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (14, 256), (256, 1), (1, 1)])
def test_orthogonal(shape):
    w = jax.vmap(lambda key: orthogonal(key, shape))(jax.random.split(jax.random.key(0), 5))
    w = np.asarray(w) / 2.0**0.5
    tall = w if shape[0] >= shape[1] else np.swapaxes(w, 1, 2)
    identity = np.eye(min(shape))
    np.testing.assert_allclose(np.swapaxes(tall, 1, 2) @ tall - identity, 0, atol=1e-5)
    assert len(np.unique(w[:, 0, 0])) > (1 if max(shape) > 1 else 0)


def test_twin_critics_initialise_without_lapack():
    """Batched QR blocks jaxlib for ever on two cores (see `orthogonal`)."""
    critic = EnsembleQ((16, 16), init_scheme="orthogonal")
    init = jax.vmap(lambda key: critic.init(key, jnp.zeros((1, 3)), jnp.zeros((1, 2))))
    jaxpr = str(jax.make_jaxpr(init)(jax.random.split(jax.random.key(0), 2)))
    assert not re.search(r"\b(qr|geqrf|householder_product)\b", jaxpr)
