"""The MLP-mixer U-Net that denoises trajectories in GTA.

Lee et al. 2024, "GTA: generative trajectory augmentation with guidance for offline reinforcement
learning"; the layers are those of the released code. A trajectory of T rows (time steps) and D
columns (state, action, reward) is an image with one channel; the U-Net halves its height three
times, never its width.

Layout: activations are [B, T, D, C]. Mixing over columns and channels is then a product with the
last two axes flattened, without any transposition; mixing over time takes the narrow array there
and back, and its hidden layer, the largest array, is never transposed. (With T as the leading axis
no block transposes anything; that is not faster.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tgcvg_jax.networks.mlp import MLP, Linear, mish, uniform
from tgcvg_jax.networks.noise_embedding import NoiseEmbedding
from tgcvg_jax.types import Array

# Two passes: E[x^2] - E[x]^2 loses float32's digits where a column hardly changes over time.
_LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


def _gelu(x: Array) -> Array:
    """Exact GELU by erf, in float32 at least.

    Flax's goes by erfc: precise relative to the tiny values far left of 0, which is of no use
    here, and several times as slow on a CPU.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


@jax.custom_vjp
def _attend(key: Array, x: Array) -> Array:
    """For each column of `key` [C, K], a weighted average of x [B, N, C] over N: [B, K, C].

    The weights are the softmax over N of x key. The gradient is written out because JAX's own makes
    XLA transpose the weights, by far the largest array, and takes six times as long on a CPU.
    """
    return _attend_forward(key, x)[0]


def _attend_forward(key: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
    logits = x @ key
    wide = logits.astype(jnp.promote_types(x.dtype, jnp.float32))
    weights = nn.softmax(wide, axis=1).astype(x.dtype)  # [B, N, K]
    attended = jnp.einsum("bnk,bnc->bkc", weights, x)
    return attended, (key, x, weights, attended)


def _attend_backward(saved: tuple[Array, ...], grad: Array) -> tuple[Array, Array]:
    key, x, weights, attended = saved
    # The softmax's gradient is w (g - sum_n w g), and this sum is a sum over C instead of N.
    mean = (attended * grad).sum(-1)[:, None]  # [B, 1, K]
    logits_grad = weights * (x @ grad.swapaxes(1, 2) - mean)
    flat = lambda v: v.reshape(-1, v.shape[-1])  # noqa: E731
    return flat(x).T @ flat(logits_grad), weights @ grad + logits_grad @ key.T


_attend.defvjp(_attend_forward, _attend_backward)


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
        """[B, T, D, C] -> [B, T or T / 2 or 2 T, D, features]."""
        up = self.resample == "up"
        shape = (4 if up else 3, 3, x.shape[-1], self.features)
        # PyTorch's transposed convolution counts its output channels, but here C stays C.
        init = uniform(math.prod(shape[:-1]) ** -0.5)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", init, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        convolve = lambda kernel, stride, padding: jax.lax.conv_general_dilated(  # noqa: E731
            x, kernel, (stride, 1), (padding, (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        if not up:
            return convolve(kernel, 2 if self.resample == "down" else 1, (1, 1)) + bias
        # Each output row sees two input rows: even ones the row before and their own, odd ones
        # their own and the next. Two plain convolutions; the gradient of the transposed one (a
        # dilated input) takes XLA thirty to sixty times as long on a CPU.
        even, odd = convolve(kernel[0::2], 1, (1, 0)), convolve(kernel[1::2], 1, (0, 1))
        return jnp.stack([even, odd], axis=2).reshape(x.shape[0], -1, *even.shape[2:]) + bias


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
        """x [B, T, D, C], embedding [B, E] -> [B, T, D, features]."""
        batch, length, width, channels = x.shape
        linear = functools.partial(Linear, dtype=self.dtype)
        flat = x.reshape(batch, length, width * channels)

        row = _LayerNorm(dtype=self.dtype, name="row_norm")(flat)
        row = _gelu(linear(4 * channels, name="row_in")(row))
        row = linear(width * channels, name="row_out")(row)

        time = _LayerNorm(dtype=self.dtype, name="time_norm")(flat.swapaxes(1, 2))
        time = _gelu(linear(4 * length, name="time_in")(time))
        time = linear(length, name="time_out")(time).swapaxes(1, 2)

        y = (row + time).reshape(x.shape)
        if channels != self.features:
            y = linear(self.features, name="project")(y)
            x = linear(self.features, name="skip")(x)
        return x + y + linear(self.features, name="embed")(embedding)[:, None, None]


class LinearAttention(nn.Module):
    """x + attention(norm(x)) over all T D positions, with a softmax over the keys only.

    Queries are neither scaled nor normalised, so for each sample the attention is a linear map
    between channels, the same at all positions. Building that C x C matrix from the keys' weights
    and the inputs, and applying it, takes a quarter of the memory of queries, keys, values and
    outputs at every position, and of the operations a third at C = 16, as many at C = 128.

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
        """[B, T, D, C] -> [B, T, D, C]."""
        batch, length, width, channels = x.shape
        inner = self.num_heads * self.head_dim
        init, out_init = uniform(channels**-0.5), uniform(inner**-0.5)
        qkv = self.param("qkv_kernel", init, (channels, 3 * inner))
        out = self.param("out_kernel", out_init, (inner, channels))
        bias = self.param("out_bias", out_init, (channels,))

        # Statistics of each sample and channel, as in instance normalisation.
        h = _LayerNorm(dtype=self.dtype, reduction_axes=(1, 2), name="norm")(x)
        h, qkv, out, bias = nn.dtypes.promote_dtype(h, qkv, out, bias, dtype=self.dtype)
        h = h.reshape(batch, length * width, channels)  # [B, N, C]
        query, key, value = jnp.split(qkv, 3, axis=-1)
        heads = self.num_heads, self.head_dim  # g e below
        attended = _attend(key, h).reshape(batch, *heads, channels)
        context = jnp.einsum("bgec,cgf->bgef", attended, value.reshape(channels, *heads))
        context = jnp.einsum("bgef,gfo->bgeo", context, out.reshape(*heads, channels))
        matrix = jnp.einsum("cge,bgeo->bco", query.reshape(channels, *heads), context)
        return x + (h @ matrix + bias).reshape(x.shape)


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
        h = x[..., None].astype(self.dtype or x.dtype)
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
            self.norm_groups, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype,
            reduction_axes=(1, 2, 3), name="head_norm",
        )(h)  # fmt: skip
        h = Linear(1, dtype=self.dtype, name="head")(mish(h))
        return h[..., 0].astype(x.dtype)

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
