import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks.transformer import TransformerPolicy

T, S, A = 5, 3, 2
MODULE = TransformerPolicy(A, hidden_dim=8, num_blocks=2)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (2, T, S))


@pytest.fixture(scope="module")
def params(x):
    return jax.jit(lambda x: MODULE.init(jax.random.key(1), x, deterministic=True))(x)


@functools.partial(jax.jit, static_argnames="last_only")
def run_jit(params, x, mask=None, last_only=False):
    return jnp.stack(MODULE.apply(params, x, mask, deterministic=True, last_only=last_only))


def run(*args, **kwargs):
    return np.asarray(run_jit(*args, **kwargs))


def test_causal(params, x):
    full = run(params, x)
    changed = run(params, x.at[:, 3].add(1.0))
    np.testing.assert_array_equal(full[:, :, :3], changed[:, :, :3])
    assert np.all(np.abs(full - changed)[:, :, 3:].max(axis=(0, -1)) > 1e-4)


def test_last_only_is_the_last_position(params, x):
    last = run(params, x, last_only=True)
    assert last.shape == (2, 2, 1, A)
    np.testing.assert_allclose(last, run(params, x)[:, :, -1:], atol=1e-6)


@pytest.mark.parametrize("count", (1, 3))
def test_masked_left_padding_is_the_shorter_sequence(params, x, count):
    mask = jnp.arange(T) >= T - count
    padded = x.at[:, : T - count].set(99.0)
    short = run(params, x[:, T - count :])
    np.testing.assert_allclose(run(params, padded, mask)[:, :, -count:], short, atol=1e-6)
    last = run(params, padded, mask, last_only=True)
    np.testing.assert_allclose(last, short[:, :, -1:], atol=1e-6)


def test_history_matters(params, x):
    assert not np.allclose(run(params, x)[:, :, -1], run(params, x[:, -1:])[:, :, -1], atol=1e-4)


def test_log_std_is_clipped(params, x):
    for offset, bound in ((-50.0, -20.0), (50.0, 2.0)):
        moved = {"params": params["params"] | {"log_std_offset": jnp.float32(offset)}}
        np.testing.assert_array_equal(run(moved, x)[1], bound)
