"""The residual MLP that denoises single transitions in SynthER.

Lu et al. 2023, "Synthetic experience replay"; the layers are those of the released code.
"""

from __future__ import annotations

import flax.linen as nn
from jax.typing import DTypeLike

from tgcvg_jax.networks.mlp import Linear
from tgcvg_jax.networks.noise_embedding import NoiseEmbedding
from tgcvg_jax.types import Array


class ResidualMLP(nn.Module):
    """Residual blocks h + W relu(h) + b on the sum of the embeddings of input and noise level.

    Attributes:
      width: of the residual stream.
      num_layers: number of blocks.
      embedding_dim: of the input and of the noise level.
      dtype: the layers compute in this type; parameters stay float32. None: in float32.
    """

    width: int = 2048
    num_layers: int = 6
    embedding_dim: int = 128
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Array, noise_level: Array, condition: None = None, keep: None = None
    ) -> Array:
        """x [B, D], noise_level [B] -> [B, D] of x's type.

        Raises:
          ValueError: there is a condition; the argument exists only so that all denoisers are
            called alike.
        """
        if condition is not None or keep is not None:
            raise ValueError("ResidualMLP takes no condition: pass None for condition and keep")
        linear = lambda width, name: Linear(width, dtype=self.dtype, name=name)  # noqa: E731
        dim = self.embedding_dim
        noise = NoiseEmbedding(dim, dim, nn.silu, name="noise_embedding")(noise_level)
        h = linear(dim, "embed")(x)
        h = linear(self.width, "expand")(h + noise.astype(h.dtype))
        for i in range(self.num_layers):
            h = h + linear(self.width, f"block_{i}")(nn.relu(h))
        return linear(x.shape[-1], "head")(nn.relu(h)).astype(x.dtype)
