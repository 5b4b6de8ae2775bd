import functools
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks.mixer_unet import Conv, LinearAttention, MixerBlock, MixerUNet
from tgcvg_jax.networks.mlp import init_at_once

B, T, D = 2, 8, 3
SMALL = MixerUNet(base_dim=4, dim_mults=(1, 2), norm_groups=2, head_dim=8)


def inputs(batch=B, rows=T, columns=D):
    x, noise_level, condition = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(x, (batch, rows, columns)),
        jax.random.normal(noise_level, (batch,)),
        jax.random.normal(condition, (batch, 1)),
    )


@pytest.fixture(scope="module")
def variables():
    return jax.jit(functools.partial(init_at_once, SMALL))(jax.random.key(1), *inputs())


@functools.partial(jax.jit, static_argnames="dtype")
def run(variables, x, noise_level, condition, keep, dtype=None):
    return SMALL.clone(dtype=dtype).apply(variables, x, noise_level, condition, keep)


def count(params):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


@pytest.mark.parametrize("columns, expected", [(24, 29_628_949), (15, 18_704_002)])
def test_number_of_parameters(columns, expected):
    """Those of the paper's 29.6 M; the frequencies of the noise embedding are none of them."""
    spec = jax.eval_shape(MixerUNet().init, jax.random.key(0), *inputs(1, 32, columns))
    assert count(spec["params"]) == expected
    assert count(spec["constants"]) == 8


@pytest.mark.parametrize("changed", ["first entry", "last entry", "level", "condition", "keep"])
def test_every_input_matters_to_its_own_sample(variables, changed):
    args = [*inputs(), jnp.ones(B)]
    before = run(variables, *args)
    assert before.shape == (B, T, D) and before.dtype == jnp.float32
    i = {"level": 1, "condition": 2, "keep": 3}.get(changed, 0)
    where = {"first entry": (0, 0, 0), "last entry": (0, T - 1, D - 1)}.get(changed, 0)
    args[i] = args[i].at[where].add(-1.0)
    after = run(variables, *args)
    np.testing.assert_array_equal(after[1:], before[1:])
    # Through mixing, attention and norms a single entry reaches all others.
    assert np.all(after[0] != before[0]) and np.abs(after[0] - before[0]).max() > 1e-3


def test_bfloat16_is_close_and_parameters_stay_float32(variables):
    exact = run(variables, *inputs(), jnp.ones(B))
    rough = run(variables, *inputs(), jnp.ones(B), dtype=jnp.bfloat16)
    assert rough.dtype == jnp.float32
    assert 1e-5 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()
    half = SMALL.clone(dtype=jnp.bfloat16)
    spec = jax.eval_shape(half.init, jax.random.key(0), *inputs())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(spec))


def test_bfloat16_gradient_of_attention():
    """Its gradient is written by hand."""
    x = jax.random.normal(jax.random.key(0), (B, T, D, 4))
    params = jax.jit(functools.partial(init_at_once, LinearAttention()))(jax.random.key(1), x)
    weight = jax.random.normal(jax.random.key(2), x.shape)

    def gradient(dtype):
        apply = LinearAttention(dtype=dtype).apply
        loss = lambda p, x: jnp.sum(weight * apply(p, x)) - jnp.sum(weight * x)  # noqa: E731
        grads = jax.jit(jax.grad(loss, (0, 1)))(params, x)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
        return jax.flatten_util.ravel_pytree(grads)[0]

    exact, rough = gradient(None), gradient(jnp.bfloat16)
    assert 0.0 < np.linalg.norm(rough - exact) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize("rows", (31, 33))
def test_rows_that_cannot_be_halved(rows):
    with pytest.raises(ValueError, match=f"multiple of 8, got {rows}"):
        jax.eval_shape(MixerUNet().init, jax.random.key(0), *inputs(1, rows))


def test_attention_is_that_of_queries_keys_and_values(x64):
    """The C x C matrix against the usual formula, values and gradients."""
    heads, dim, channels = 2, 3, 4
    module = LinearAttention(heads, dim)
    x = jax.random.normal(jax.random.key(0), (B, T, D, channels))
    params = init_at_once(module, jax.random.key(1), x)["params"]

    def usual(p, x):
        h = x - x.mean((1, 2), keepdims=True)
        h = h / jnp.sqrt((h**2).mean((1, 2), keepdims=True) + 1e-5)
        h = (h * p["norm"]["scale"] + p["norm"]["bias"]).reshape(B, T * D, channels)
        split = lambda w: (h @ w).reshape(B, T * D, heads, dim)  # noqa: E731
        q, k, v = map(split, jnp.split(p["qkv_kernel"], 3, axis=1))
        context = jnp.einsum("bnge,bngf->bgef", jax.nn.softmax(k, axis=1), v)
        y = jnp.einsum("bnge,bgef->bngf", q, context).reshape(B, T * D, heads * dim)
        return x + (y @ p["out_kernel"] + p["out_bias"]).reshape(x.shape)

    weight = jax.random.normal(jax.random.key(2), x.shape)
    apply = lambda p, x: module.apply({"params": p}, x)  # noqa: E731
    for f in (lambda f: f, lambda f: jax.grad(lambda p, x: jnp.sum(weight * f(p, x)), (0, 1))):
        expected, found = jax.jit(f(usual))(params, x), jax.jit(f(apply))(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)


def test_gradient_of_attention_under_vmap():
    """As for several seeds: one after the other or at once."""
    module = LinearAttention(2, 3)
    x = jax.random.normal(jax.random.key(0), (2, B, T, D, 4))
    params = jax.vmap(lambda key: init_at_once(module, key, x[0]))(
        jax.random.split(jax.random.key(1))
    )
    grad = jax.grad(lambda p, x: jnp.sum(module.apply(p, x) ** 3))
    together = jax.jit(jax.vmap(grad))(params, x)
    for i in range(2):
        alone = jax.jit(grad)(jax.tree.map(lambda v, i=i: v[i], params), x[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4),
            together, alone,
        )  # fmt: skip


@pytest.mark.parametrize("resample, rows", [(None, 6), ("down", 3), ("up", 12)])
def test_convolutions(x64, resample, rows):
    """Against sums over taps, for a single channel in and out."""
    module = Conv(1, resample)
    x = jax.random.normal(jax.random.key(0), (1, 6, D, 1))
    params = jax.jit(functools.partial(init_at_once, module))(jax.random.key(1), x)
    found = jax.jit(module.apply)(params, x)[0, :, :, 0]
    kernel = np.asarray(params["params"]["kernel"])[:, :, 0, 0]
    expected = np.full((rows, D), params["params"]["bias"][0])
    for t in range(rows):
        for a in range(kernel.shape[0]):
            source = t + a - 1 if resample != "down" else 2 * t + a - 1
            if resample == "up":  # tap a lies on row (t + a - 2) / 2 of the input, if that is whole
                source = (t + a - 2) // 2 if (t + a) % 2 == 0 else -1
            for d in range(D):
                for b in range(3):
                    if 0 <= source < 6 and 0 <= d + b - 1 < D:
                        expected[t, d] += kernel[a, b] * x[0, source, d + b - 1, 0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    "module, extra, fan_in",
    [
        (MixerBlock(16), (jnp.ones((B, 32)),), {"row_in": 24, "row_out": 32, "time_out": 32}),
        (LinearAttention(), (), {"qkv_kernel": 8, "out_kernel": 128}),
        (Conv(16, "up"), (), {"kernel": 96}),
    ],
)
def test_initialisation(module, extra, fan_in):
    """PyTorch's bounds, 1 / sqrt(fan_in); scales of norms are 1 and their shifts 0."""
    x = jnp.ones((B, 8, D, 8))
    init = jax.jit(functools.partial(init_at_once, module))
    params = init(jax.random.key(0), x, *extra)["params"]
    for name, n in fan_in.items():
        p = params[name]["kernel"] if isinstance(params[name], dict) else params[name]
        assert 0.98 * n**-0.5 < np.abs(p).max() <= n**-0.5, name
        assert abs(np.std(p) - (3 * n) ** -0.5) < 0.1 * n**-0.5, name
    if isinstance(module, LinearAttention):
        assert 0.5 < np.abs(params["out_bias"]).max() * 128**0.5 <= 1.0
        np.testing.assert_array_equal(params["norm"]["scale"], 1.0)
        np.testing.assert_array_equal(params["norm"]["bias"], 0.0)
