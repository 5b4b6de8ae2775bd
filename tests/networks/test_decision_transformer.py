import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks.decision_transformer import DecisionTransformer

L, S, A = 5, 3, 2
MODULE = DecisionTransformer(A, hidden_dim=8, num_blocks=2, num_timesteps=12)
FIELDS = ("observation", "action", "return_to_go", "timestep")


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(2, L, *shape)), jnp.float32)  # noqa: E731
    return draw(S), draw(A), draw(), jnp.tile(jnp.arange(3, 3 + L), (2, 1))


@pytest.fixture(scope="module")
def params(x):
    init = jax.jit(lambda x: MODULE.init(jax.random.key(1), *x, deterministic=True))
    rng = np.random.default_rng(1)  # as initialised, outputs are nearly 0
    noise = lambda p: p + jnp.asarray(rng.normal(0, 0.5, p.shape), jnp.float32)  # noqa: E731
    return jax.tree.map(noise, init(x))


@functools.partial(jax.jit, static_argnames="last_only")
def run_jit(params, x, mask=None, last_only=False):
    return MODULE.apply(params, *x, mask, deterministic=True, last_only=last_only)


def run(*args, **kwargs):
    return np.asarray(run_jit(*args, **kwargs))


def change(x, name, position):
    x = list(x)
    i = FIELDS.index(name)
    x[i] = x[i].at[:, position].add(1)
    return tuple(x)


@pytest.mark.parametrize("name", FIELDS)
def test_causal(params, x, name):
    """An action sees what came before and its own state, return and step, but not itself."""
    full, changed = run(params, x), run(params, change(x, name, 2))
    first = 3 if name == "action" else 2
    np.testing.assert_array_equal(full[:, :first], changed[:, :first])
    assert np.all(np.abs(full - changed)[:, first:].max(axis=(0, -1)) > 1e-4)


def test_last_only_is_the_last_position(params, x):
    last = run(params, x, last_only=True)
    assert last.shape == (2, 1, A)
    np.testing.assert_allclose(last, run(params, x)[:, -1:], atol=1e-6)


@pytest.mark.parametrize("count", (1, 3))
@pytest.mark.parametrize("side", ("left", "right"))
def test_padding_does_not_leak(params, x, count, side):
    """The real steps come out as if they were alone."""
    real = slice(L - count, None) if side == "left" else slice(0, count)
    mask = jnp.zeros(L, bool).at[real].set(True)
    blank = lambda v: jnp.where(mask.reshape(L, *[1] * (v.ndim - 2)), v, 99)  # noqa: E731
    padded = jax.tree.map(blank, x)
    alone = run(params, jax.tree.map(lambda v: v[:, real], x))
    found = run(params, padded, jnp.tile(mask, (2, 1)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, real], alone, atol=1e-6)
    if side == "left":
        last = run(params, padded, jnp.tile(mask, (2, 1)), last_only=True)
        np.testing.assert_allclose(last, alone[:, -1:], atol=1e-6)


def test_steps_beyond_the_table_share_its_last_row(params, x):
    at = lambda t: run(params, (*x[:3], jnp.full((2, L), t)))  # noqa: E731
    np.testing.assert_array_equal(at(11), at(5000))
    np.testing.assert_array_equal(at(0), at(-3))
    assert not np.allclose(at(11), at(10), atol=1e-4)


def test_initialisation(x):
    """Normal(0, 0.02) and zeros, but Glorot's rule for the projection to queries and so on."""
    module = DecisionTransformer(A, hidden_dim=64, num_blocks=1)
    p = jax.jit(lambda x: module.init(jax.random.key(0), *x, deterministic=True))(x)["params"]
    block = p["block_0"]
    for kernel in (
        p["embed_timestep"]["embedding"], block["mlp_in"]["kernel"], block["mlp_out"]["kernel"],
        block["out_proj"]["kernel"],
    ):  # fmt: skip
        np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.05)
    bound = np.sqrt(6 / (64 + 3 * 64))
    largest = np.abs(block["in_proj"]["kernel"]).max()
    assert 0.99 * bound < largest <= bound
    for name in ("in_proj", "out_proj", "mlp_in", "mlp_out"):
        np.testing.assert_array_equal(block[name]["bias"], 0.0)
