import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks.transformer import StatewisePolicy, TransformerPolicy

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


@pytest.fixture(scope="module")
def wanted():
    return jax.random.normal(jax.random.key(2), (2, T))


@pytest.fixture(scope="module")
def conditioned(x, wanted):
    """(x, return_to_go, mask, last_only) -> [2, B, T or 1, A]."""
    init = lambda x, r: MODULE.init(jax.random.key(1), x, None, r, deterministic=True)  # noqa: E731
    params = jax.jit(init)(x, wanted)
    assert "embed_return" in params["params"]

    @functools.partial(jax.jit, static_argnames="last_only")
    def run(x, wanted, mask=None, last_only=False):
        out = MODULE.apply(params, x, mask, wanted, deterministic=True, last_only=last_only)
        return jnp.stack(out)

    return run


def test_returns_come_before_their_states(conditioned, x, wanted):
    full = conditioned(x, wanted)
    assert full.shape == (2, 2, T, A)
    for changed in (
        conditioned(x, wanted.at[:, 3].add(1.0)),
        conditioned(x.at[:, 3].add(1.0), wanted),
    ):
        np.testing.assert_array_equal(full[:, :, :3], changed[:, :, :3])
        assert np.all(np.abs(full - changed)[:, :, 3:].max(axis=(0, -1)) > 1e-4)


def test_returns_of_padding_are_not_seen(conditioned, x, wanted):
    mask = jnp.arange(T) >= T - 3
    short = conditioned(x[:, -3:], wanted[:, -3:])
    spoilt = x.at[:, : T - 3].set(99.0), wanted.at[:, : T - 3].set(99.0)
    np.testing.assert_allclose(conditioned(*spoilt, mask)[:, :, -3:], short, atol=1e-6)
    last = conditioned(*spoilt, jnp.tile(mask, (2, 1)), last_only=True)
    np.testing.assert_allclose(last, short[:, :, -1:], atol=1e-6)


@pytest.mark.parametrize("told", (False, True))
def test_the_statewise_policy_sees_one_state(x, wanted, told):
    module, wanted = StatewisePolicy(A, hidden_dim=8), wanted if told else None
    params = jax.jit(functools.partial(module.init, deterministic=True))(
        jax.random.key(1), x, None, wanted
    )
    layers = params["params"]["gaussian"]["mlp"]
    assert layers["layer_0"]["kernel"].shape == (S + told, 8) and len(layers) == 4

    def run(x, wanted, **kwargs):
        return jnp.stack(module.apply(params, x, None, wanted, deterministic=True, **kwargs))

    full = run(x, wanted)
    assert full.shape == (2, 2, T, A)
    changed = run(x.at[:, 2].add(1.0), wanted)
    moved = np.abs(full - changed).max(axis=(0, 1, 3)) > 1e-6
    np.testing.assert_array_equal(moved, np.arange(T) == 2)
    np.testing.assert_allclose(run(x, wanted, last_only=True), full[:, :, -1:], atol=1e-6)
    if told:
        moved = np.abs(full - run(x, wanted.at[:, 2].add(1.0))).max(axis=(0, 1, 3)) > 1e-6
        np.testing.assert_array_equal(moved, np.arange(T) == 2)
