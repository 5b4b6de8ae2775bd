import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks.gru import AnyStepNetwork

B, M, S, A = 2, 3, 3, 2
MODULE = AnyStepNetwork(S + 1, hidden_dim=6, num_layers=2, num_blocks=1)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (B, S)), jax.random.normal(keys[1], (B, M, A))


@pytest.fixture(scope="module")
def params(inputs):
    return jax.jit(lambda: MODULE.init(jax.random.key(1), *inputs, 1, deterministic=True))()


@functools.partial(jax.jit, static_argnames="k")
def run_jit(params, observation, actions, k):
    return jnp.stack(MODULE.apply(params, observation, actions, k, deterministic=True))


def run(params, observation, actions, k):
    return np.asarray(run_jit(params, observation, actions, k))


@pytest.mark.parametrize("k", (1, 2))
def test_actions_after_the_kth_do_not_matter(params, inputs, k):
    observation, actions = inputs
    expected = run(params, observation, actions, k)
    np.testing.assert_array_equal(run(params, observation, actions.at[:, k:].set(5.0), k), expected)
    np.testing.assert_allclose(run(params, observation, actions[:, :k], k), expected, atol=1e-6)
    assert not np.allclose(run(params, observation, actions.at[:, k - 1].set(5.0), k), expected)


def test_k_may_be_traced(params, inputs):
    traced = jax.jit(lambda k: jnp.stack(MODULE.apply(params, *inputs, k, deterministic=True)))
    for k in range(1, M + 1):
        np.testing.assert_allclose(traced(jnp.int32(k)), run(params, *inputs, k), atol=1e-6)


def test_log_variance_stays_within_its_bounds(params, inputs):
    head = {"kernel": params["params"]["head"]["kernel"] * 1e3, "bias": jnp.zeros(2 * (S + 1))}
    wild = {"params": params["params"] | {"head": head}}
    log_var = run(wild, *inputs, 1)[1]
    assert log_var.min() >= -10.0 - 1e-3 and log_var.max() <= 0.5 + 1e-3
    assert log_var.max() - log_var.min() > 5.0
