import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks.mlp import init_at_once
from tgcvg_jax.networks.noise_embedding import NoiseEmbedding
from tgcvg_jax.networks.residual_mlp import ResidualMLP

B, D = 4, 5
SMALL = ResidualMLP(width=32, num_layers=3, embedding_dim=8)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (B, D)), jnp.linspace(-1.5, 1.0, B)


@pytest.fixture(scope="module")
def variables(x):
    return jax.jit(functools.partial(init_at_once, SMALL))(jax.random.key(1), *x)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


@pytest.mark.parametrize("columns, expected", [(42, 25_552_682), (27, 25_520_027)])
def test_number_of_parameters(columns, expected):
    """SynthER's rows of halfcheetah and walker2d, and of hopper."""
    args = jnp.zeros((1, columns)), jnp.zeros(1)
    spec = jax.eval_shape(ResidualMLP().init, jax.random.key(0), *args)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(spec["params"])) == expected
    assert [p.shape for p in jax.tree.leaves(spec["constants"])] == [(8,)]


def test_noise_embedding(x64):
    module = NoiseEmbedding(6, 10, jnp.tanh)
    e = jnp.array([-1.2, 0.3])
    variables = module.init(jax.random.key(0), e)
    w = np.asarray(variables["constants"]["frequencies"])
    assert w.shape == (8,) and len(np.unique(w)) == 8
    phase = 2 * np.pi * np.outer(e, w)
    p = variables["params"]["mlp"]
    features = np.concatenate([e[:, None], np.sin(phase), np.cos(phase)], axis=1)
    expected = dense(p["layer_1"], np.tanh(dense(p["layer_0"], features)))
    np.testing.assert_allclose(module.apply(variables, e), expected, atol=1e-12)


def test_constants_are_drawn_from_the_key_and_must_be_given(x, variables):
    other = init_at_once(SMALL, jax.random.key(2), *x)
    w, v = jax.tree.leaves([variables["constants"], other["constants"]])
    assert not np.any(w == v) and 0.3 < np.std([w, v]) < 2.0
    with pytest.raises(Exception, match="frequencies"):
        SMALL.apply({"params": variables["params"]}, *x)


def test_bfloat16_is_close_and_parameters_stay_float32(x, variables):
    exact = jax.jit(SMALL.apply)(variables, *x)
    half = SMALL.clone(dtype=jnp.bfloat16)
    rough = jax.jit(half.apply)(variables, *x)
    assert rough.shape == (B, D) and rough.dtype == exact.dtype == jnp.float32
    assert 1e-5 < np.abs(rough - exact).max() < 0.03 * np.abs(exact).max()
    spec = jax.eval_shape(half.init, jax.random.key(0), *x)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(spec))


def test_a_condition_is_refused(x, variables):
    for condition, keep in ((jnp.ones((B, 1)), None), (None, jnp.ones(B))):
        with pytest.raises(ValueError, match="no condition"):
            SMALL.apply(variables, *x, condition, keep)
