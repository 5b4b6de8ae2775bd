"""The MLP-mixer U-Net that denoises trajectories in GTA.

Lee et al. 2024, "GTA: generative trajectory augmentation with guidance for offline reinforcement
learning"; the layers are those of the released code. A trajectory of T rows (time steps) and D
columns (state, action, reward) is an image with one channel; the U-Net halves its height three
times, never its width.

Layout: activations are [T, B, D, C], with time first. Both products of a mixer block, over time
and over columns and channels, are then plain matrix products of the whole batch, and the array is
transposed only inside of attention, at its narrowest.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tgcvg_jax.networks.mlp import MLP, Linear, mish, uniform
from tgcvg_jax.networks.noise_embedding import NoiseEmbedding
from tgcvg_jax.types import Array


def _gelu(x: Array) -> Array:
    """Exact GELU, in float32 at least.

    By erf as in PyTorch: Flax's takes erfc, whose relative precision far left of 0 is of no use
    here and costs several times as much.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


@jax.custom_vjp
def _product(kernel: Array, x: Array) -> Array:
    """kernel' x of [T, F] and [T, N].

    JAX's own gradient for x is a transposed product, and XLA then moves the largest array of a
    block around in memory, which on a CPU takes many times as long as the product.
    """
    return kernel.T @ x


def _product_forward(kernel: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(kernel, x), (kernel, x)


def _product_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    kernel, x = saved
    return x @ grad.T, kernel @ grad


_product.defvjp(_product_forward, _product_backward)


class Norm(nn.Module):
    """Normalises over some axes, then scales and shifts along one.

    Not Flax's `LayerNorm`: that multiplies the scale into 1/std first, and over the leading axis the
    gradient of this then takes XLA a hundred times as long on a CPU.

    Attributes:
      axes: normalised over, in float32 at least.
      feature_axis: what scale and shift depend on.
      dtype: of the output; None: what input and parameters promote to.
    """

    axes: Sequence[int] = (-1,)
    feature_axis: int = -1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Any shape, kept."""
        features = x.shape[self.feature_axis]
        scale = self.param("scale", nn.initializers.ones_init(), (features,))
        bias = self.param("bias", nn.initializers.zeros_init(), (features,))
        shape = [1] * x.ndim
        shape[self.feature_axis] = features
        dtype = self.dtype or jnp.result_type(x, scale, bias)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = x - x.mean(self.axes, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(self.axes, keepdims=True) + 1e-5)
        return (x * scale.reshape(shape) + bias.reshape(shape)).astype(dtype)


class TimeLinear(nn.Module):
    """`Linear` on the first axis.

    Attributes:
      features: output length of the axis.
      dtype: as in `Linear`.
    """

    features: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[T, ...] -> [features, ...]."""
        init = uniform(x.shape[0] ** -0.5)
        kernel = self.param("kernel", init, (x.shape[0], self.features))
        bias = self.param("bias", init, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = _product(kernel, x.reshape(x.shape[0], -1)) + bias[:, None]
        return y.reshape(self.features, *x.shape[1:])


class Conv(nn.Module):
    """A convolution over time and columns that keeps the width.

    Attributes:
      features: output channels.
      resample: None keeps the height T too; `down` halves it (stride 2, kernel 3 x 3, padding 1);
        `up` doubles it (the transposed convolution with stride 2, kernel 4 x 3, padding 1).
      dtype: as in `Linear`.
    """

    features: int
    resample: Literal["down", "up"] | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[T, B, D, C] -> [T or T / 2 or 2 T, B, D, features]."""
        up = self.resample == "up"
        shape = (4 if up else 3, 3, x.shape[-1], self.features)
        # PyTorch takes the fan-in of a transposed convolution from its output channels.
        init = uniform((shape[0] * shape[1] * shape[3 if up else 2]) ** -0.5)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", init, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        convolve = lambda kernel, stride, padding: jax.lax.conv_general_dilated(  # noqa: E731
            x, kernel, (stride, 1), (padding, (1, 1)), dimension_numbers=("HNWC", "HWIO", "HNWC")
        )
        if not up:
            return convolve(kernel, 2 if self.resample == "down" else 1, (1, 1)) + bias
        # Each output row sees two input rows: even ones the row before and their own, odd ones
        # their own and the next. Two plain convolutions; the gradient of the transposed one (a
        # dilated input) takes XLA fifty times as long on a CPU.
        even, odd = convolve(kernel[0::2], 1, (1, 0)), convolve(kernel[1::2], 1, (0, 1))
        return jnp.stack([even, odd], axis=1).reshape(-1, *even.shape[1:]) + bias


class MixerBlock(nn.Module):
    """Mixes over columns and channels, and over time, side by side, not one after the other.

    Attributes:
      features: output channels.
      dtype: as in `Linear`.
    """

    features: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        """x [T, B, D, C], embedding [B, E] -> [T, B, D, features]."""
        length, batch, width, channels = x.shape
        linear = functools.partial(Linear, dtype=self.dtype)
        flat = x.reshape(length, batch, width * channels)

        row = Norm(dtype=self.dtype, name="row_norm")(flat)
        row = _gelu(linear(4 * channels, name="row_in")(row))
        row = linear(width * channels, name="row_out")(row)

        time = Norm((0,), 0, self.dtype, name="time_norm")(flat)
        time = _gelu(TimeLinear(4 * length, self.dtype, name="time_in")(time))
        time = TimeLinear(length, self.dtype, name="time_out")(time)

        y = (row + time).reshape(x.shape)
        if channels != self.features:
            y = linear(self.features, name="project")(y)
            x = linear(self.features, name="skip")(x)
        return x + y + linear(self.features, name="embed")(embedding)[:, None]


class LinearAttention(nn.Module):
    """x + attention(norm(x)) over all T D positions, with a softmax over the keys only.

    Queries are neither scaled nor normalised, so for each sample the attention is a linear map
    between channels, the same at all positions. Building that C x C matrix from the (softmaxed)
    keys and the inputs, and applying it, takes a third of the operations and of the memory that
    queries, values and outputs at every position take.

    Attributes:
      num_heads: heads.
      head_dim: E, width of one.
      dtype: as in `Linear`.
    """

    num_heads: int = 4
    head_dim: int = 32
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[T, B, D, C] -> [T, B, D, C]."""
        length, batch, width, channels = x.shape
        inner = self.num_heads, self.head_dim
        init = uniform(channels**-0.5)
        query, key, value = (
            self.param(name, init, (channels, *inner)) for name in ("query", "key", "value")
        )
        out_init = uniform((self.num_heads * self.head_dim) ** -0.5)
        out = self.param("out", out_init, (*inner, channels))
        bias = self.param("bias", out_init, (channels,))

        # Statistics of each sample and channel, as in instance normalisation.
        h = Norm((0, 2), 3, self.dtype, name="norm")(x)
        h, query, key, value, out, bias = nn.dtypes.promote_dtype(
            h, query, key, value, out, bias, dtype=self.dtype
        )
        h = h.swapaxes(0, 1).reshape(batch, length * width, channels)  # [B, N, C]
        logits = (h @ key.reshape(channels, -1))  # [B, N, heads E]
        weights = nn.softmax(logits, axis=1)
        attended = jnp.einsum("bnk,bnc->bkc", weights, h).reshape(batch, *inner, channels)
        context = jnp.einsum("bgec,cgf->bgef", attended, value)
        context = jnp.einsum("bgef,gfo->bgeo", context, out)
        matrix = jnp.einsum("cge,bgeo->bco", query, context)  # [B, C, C]
        y = (h @ matrix + bias).reshape(batch, length, width, channels)
        return x + y.swapaxes(0, 1)


class MixerUNet(nn.Module):
    """The denoising network F(x, noise level, condition).

    Attributes:
      base_dim: channels of the first stage; also the dimension of the embeddings of noise level and
        condition.
      dim_mults: channels of the stages, in multiples of `base_dim`.
      norm_groups: groups of the head's group normalisation.
      num_heads: of attention.
      head_dim: of attention.
      dtype: the layers compute in this type; parameters stay float32. None: in float32.
    """

    base_dim: int = 16
    dim_mults: Sequence[int] = (1, 2, 4, 8)
    norm_groups: int = 8
    num_heads: int = 4
    head_dim: int = 32
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        noise_level: Array,
        condition: Array | None = None,
        keep: Array | None = None,
    ) -> Array:
        """Predicts [B, T, D], of x's type.

        Args:
          x: [B, T, D]; T is a multiple of 8 (of 2 to the number of stages less one).
          noise_level: [B], in EDM ln(sigma) / 4.
          condition: [B, 1], the (scaled) return. None is the unconditional network, whose embedding
            of the condition is 0. Its parameters exist only if `init` got a condition.
          keep: [B], the condition's embedding is multiplied by it: 0 drops the condition.

        Raises:
          ValueError: T cannot be halved often enough. (The released code then leaves out all
            resampling, without a word, which takes six times the operations.)
        """
        dims = [self.base_dim * m for m in self.dim_mults]
        factor = 2 ** (len(dims) - 1)
        if x.shape[1] % factor:
            raise ValueError(f"the number of rows must be a multiple of {factor}, got {x.shape[1]}")
        block = functools.partial(MixerBlock, dtype=self.dtype)
        conv = functools.partial(Conv, dtype=self.dtype)
        attention = functools.partial(LinearAttention, self.num_heads, self.head_dim, self.dtype)

        embedding = self._embed(noise_level, condition, keep)
        h = x.swapaxes(0, 1)[..., None].astype(self.dtype or x.dtype)
        skips = []
        for i, dim in enumerate(dims):
            h = block(dim, name=f"down_{i}_block_0")(h, embedding)
            h = block(dim, name=f"down_{i}_block_1")(h, embedding)
            h = attention(name=f"down_{i}_attention")(h)
            skips.append(h)
            if i + 1 < len(dims):
                h = conv(dim, "down", name=f"down_{i}_conv")(h)
        h = block(dims[-1], name="middle_block_0")(h, embedding)
        h = attention(name="middle_attention")(h)
        h = block(dims[-1], name="middle_block_1")(h, embedding)
        for j, dim in enumerate(reversed(dims[:-1])):  # the first stage's skip is never used
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = block(dim, name=f"up_{j}_block_0")(h, embedding)
            h = block(dim, name=f"up_{j}_block_1")(h, embedding)
            h = attention(name=f"up_{j}_attention")(h)
            h = conv(dim, "up", name=f"up_{j}_conv")(h)
        h = conv(self.base_dim, name="head_conv")(h)
        h = nn.GroupNorm(
            self.norm_groups, epsilon=1e-5, dtype=self.dtype, reduction_axes=(0, 2, 3),
            name="head_norm",
        )(h)  # fmt: skip
        h = Linear(1, dtype=self.dtype, name="head")(mish(h))
        return h[..., 0].swapaxes(0, 1).astype(x.dtype)

    def _embed(self, noise_level: Array, condition: Array | None, keep: Array | None) -> Array:
        """The embeddings of condition and noise level, [B, 2 base_dim], ready for the blocks."""
        dim = self.base_dim
        noise = NoiseEmbedding(dim, 4 * dim, mish, name="noise_embedding")(noise_level)
        if condition is None:
            given = jnp.zeros_like(noise)
        else:
            given = MLP((2 * dim, dim), mish, name="condition_embedding")(condition)
            if keep is not None:
                given = given * keep[:, None]
        return mish(jnp.concatenate([given, noise], axis=-1))
