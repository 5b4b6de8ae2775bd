"""Linear layers, MLPs and ensembles of them, with the initialisations of the reference code."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
from jax.typing import DTypeLike

from tgcvg_jax.types import Array, PRNGKey


def mish(x: Array) -> Array:
    """x tanh(softplus(x)) with a single exponential.

    tanh(log(1 + e)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1); beyond x = 20 the ratio is 1 in float64.
    """
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * n / (n + 2.0)


def orthogonal(key: PRNGKey, shape: tuple[int, int], gain: float = 2.0**0.5) -> Array:
    """A random matrix with orthogonal rows or columns, uniformly distributed, times `gain`.

    The polar factor of a Gaussian matrix, by Newton-Schulz iteration, rather than the usual QR
    decomposition: under vmap (twin critics, seeds) that becomes a batched LAPACK call, and two of
    those at once block jaxlib's pool of two threads for ever on a machine with two cores.
    """
    rows, columns = max(shape), min(shape)
    x = jax.random.normal(key, (rows, columns))
    x = x / jnp.linalg.norm(x)  # all singular values in (0, 1]
    matmul = functools.partial(jnp.matmul, precision="highest")
    # Small singular values grow by 1.5 in each step: 60 lift any that float32 can tell from 0.
    x = jax.lax.fori_loop(0, 60, lambda _, x: 1.5 * x - 0.5 * matmul(x, matmul(x.T, x)), x)
    return gain * (x if shape == (rows, columns) else x.T)


# None: draw; else what every draw of `uniform` is taken to be, in [-1, 1] (see `init_at_once`).
_draw = contextvars.ContextVar("draw", default=None)


def uniform(bound: float) -> Callable[[PRNGKey, Sequence[int]], Array]:
    """U(-bound, bound); with 1/sqrt(fan_in) PyTorch's default for weights and biases."""

    def init(key: PRNGKey, shape: Sequence[int]) -> Array:
        if (value := _draw.get()) is not None:
            return jnp.full(shape, value * bound)
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return init


def init_at_once(network: nn.Module, key: PRNGKey, *inputs: Any) -> dict[str, Any]:
    """`network.init`, but all that is `uniform` comes from one draw.

    A network of hundreds of parameters has as many random generators to compile, which takes a
    minute. Here the parameters are computed as if all draws had come out highest, and lowest; what
    was drawn lies between the two.
    """
    init_key, key = jax.random.split(key)

    def initialize(draw: float) -> dict[str, Any]:
        token = _draw.set(draw)
        try:
            return network.init(init_key, *inputs)
        finally:
            _draw.reset(token)

    high, low = initialize(1.0), initialize(-1.0)
    flat_high, unravel = jax.flatten_util.ravel_pytree(high["params"])
    flat_low, _ = jax.flatten_util.ravel_pytree(low["params"])
    share = jax.random.uniform(key, flat_high.shape, flat_high.dtype)
    return high | {"params": unravel(flat_low + share * (flat_high - flat_low))}


class Linear(nn.Module):
    """x W + b.

    Attributes:
      features: output dimension.
      init_scheme: `torch` draws weight and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in));
        `orthogonal` has gain sqrt(2) and zero bias.
      bound: draws weight and bias from U(-bound, bound) instead.
      bias: the constant that the bias starts from, instead of the scheme's.
      gain: of `orthogonal`, instead of sqrt(2).
      dtype: computes in this type, instead of the one that input and parameters promote to.
    """

    features: int
    init_scheme: Literal["torch", "orthogonal"] = "torch"
    bound: float | None = None
    bias: float | None = None
    gain: float = 2.0**0.5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., features]."""
        fan_in = x.shape[-1]
        if self.init_scheme == "torch" or self.bound is not None:
            kernel_init = uniform(fan_in**-0.5 if self.bound is None else self.bound)
            bias_init = kernel_init
        else:
            kernel_init = functools.partial(orthogonal, gain=self.gain)
            bias_init = nn.initializers.zeros_init()
        if self.bias is not None:
            bias_init = nn.initializers.constant(self.bias)
        kernel = self.param("kernel", kernel_init, (fan_in, self.features))
        bias = self.param("bias", bias_init, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel + bias


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Attributes:
      features: width of each layer, the output last.
      activation: applied after all layers but the last.
      init_scheme: as in `Linear`.
      hidden_bias: all layers but the last start from this bias.
      output_bound: the last layer starts in U(-output_bound, output_bound), bias and weight.
      output_bias: the last layer starts from this bias.
      output_gain: of the last layer, for `orthogonal`.
      layer_norm: normalise after each activation.
      dropout: rate after each activation (and norm).
    """

    features: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    init_scheme: Literal["torch", "orthogonal"] = "torch"
    hidden_bias: float | None = None
    output_bound: float | None = None
    layer_norm: bool = False
    dropout: float = 0.0
    output_bias: float | None = None
    output_gain: float = 2.0**0.5

    @nn.compact
    def __call__(self, *inputs: Array, deterministic: bool = True) -> Array:
        """Concatenates the inputs on the last axis; [..., D] -> [..., features[-1]].

        Dropout is on unless `deterministic`, and then needs the key `rngs={"dropout": ...}`.
        """
        x = jnp.concatenate(inputs, axis=-1) if len(inputs) > 1 else inputs[0]
        for i, width in enumerate(self.features[:-1]):
            x = Linear(width, self.init_scheme, bias=self.hidden_bias, name=f"layer_{i}")(x)
            x = self.activation(x)
            if self.layer_norm:
                x = nn.LayerNorm(param_dtype=x.dtype, name=f"norm_{i}")(x)
            if self.dropout:
                x = nn.Dropout(self.dropout, name=f"drop_{i}")(x, deterministic)
        last = len(self.features) - 1
        return Linear(
            self.features[-1],
            self.init_scheme,
            bound=self.output_bound,
            bias=self.output_bias,
            gain=self.output_gain,
            name=f"layer_{last}",
        )(x)


class EnsembleQ(nn.Module):
    """Two independent Q-functions with stacked parameters, evaluated as one batched product.

    Attributes:
      hidden_dims: hidden widths.
      activation: hidden activation.
      init_scheme: as in `Linear`.
      hidden_bias: as in `MLP`.
      output_bound: as in `MLP`.
      layer_norm: as in `MLP`.
      output_gain: as in `MLP`.
    """

    hidden_dims: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    init_scheme: Literal["torch", "orthogonal"] = "torch"
    hidden_bias: float | None = None
    output_bound: float | None = None
    layer_norm: bool = False
    output_gain: float = 2.0**0.5

    @nn.compact
    def __call__(self, observation: Array, action: Array) -> Array:
        """[..., S], [..., A] -> [2, ...]."""
        ensemble = nn.vmap(
            MLP,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            out_axes=0,
            axis_size=2,
        )
        mlp = ensemble(
            (*self.hidden_dims, 1),
            activation=self.activation,
            init_scheme=self.init_scheme,
            hidden_bias=self.hidden_bias,
            output_bound=self.output_bound,
            layer_norm=self.layer_norm,
            output_gain=self.output_gain,
            name="q",
        )
        return mlp(observation, action)[..., 0]
