"""The state-only causal Transformer policy of TGCVG.

Post-LN blocks, one head, exact GELU, no positional or time-step embedding: order is known only
through the causal mask. The paper says the backbone follows Decision Transformer; the released
code, which this follows, differs from DT in all of these. Two ablations are here as well:
return-to-go tokens between the states, and the same interface without a memory.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from tgcvg_jax.networks.gaussian import GaussianMLP
from tgcvg_jax.networks.mlp import Linear
from tgcvg_jax.types import Array

_LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5)


class Attention(nn.Module):
    """Single-head attention with dropout on its output, not on its weights.

    Attributes:
      hidden_dim: width.
      dropout: rate, before and after the output projection.
    """

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, query: Array, x: Array, mask: Array, deterministic: bool) -> Array:
        """query [..., Q, H], x [..., T, H], mask broadcastable to [..., Q, T] -> [..., Q, H]."""
        q = Linear(self.hidden_dim, name="query")(query)
        k = Linear(self.hidden_dim, name="key")(x)
        v = Linear(self.hidden_dim, name="value")(x)
        scores = q @ jnp.swapaxes(k, -1, -2) * self.hidden_dim**-0.5
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        attended = jax.nn.softmax(scores, axis=-1) @ v
        attended = nn.Dropout(self.dropout, name="drop_attended")(attended, deterministic)
        out = Linear(self.hidden_dim, name="out")(attended)
        return nn.Dropout(self.dropout, name="drop_out")(out, deterministic)


class Block(nn.Module):
    """x = LN(x + attention(x)); x = LN(x + MLP(x)).

    Attributes:
      hidden_dim: width; the MLP is four times as wide.
      dropout: rate.
      last_only: compute only the last position. Its query is one token, so the block costs about
        1/T; the earlier positions' outputs are not returned.
    """

    hidden_dim: int
    dropout: float
    last_only: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> Array:
        """[..., T, H] -> [..., T or 1, H]."""
        query = x[..., -1:, :] if self.last_only else x
        mask = mask[..., -1:, :] if self.last_only else mask
        attended = Attention(self.hidden_dim, self.dropout, name="attention")(
            query, x, mask, deterministic
        )
        x = _LayerNorm(name="norm_1")(query + attended)
        h = nn.gelu(Linear(4 * self.hidden_dim, name="mlp_in")(x), approximate=False)
        h = Linear(self.hidden_dim, name="mlp_out")(h)
        h = nn.Dropout(self.dropout, name="drop_mlp")(h, deterministic)
        return _LayerNorm(name="norm_2")(x + h)


class TransformerPolicy(nn.Module):
    """Mean and log standard deviation of a tanh-Gaussian action at every position.

    Attributes:
      action_dim: A.
      hidden_dim: width.
      num_blocks: depth.
      dropout: rate; none on the embedding.
      log_std_min: lower clip.
      log_std_max: upper clip.
    """

    action_dim: int
    hidden_dim: int = 256
    num_blocks: int = 3
    dropout: float = 0.1
    log_std_min: float = -20.0
    log_std_max: float = 2.0

    @nn.compact
    def __call__(
        self,
        observation: Array,
        mask: Array | None = None,
        return_to_go: Array | None = None,
        *,
        deterministic: bool,
        last_only: bool = False,
    ) -> tuple[Array, Array]:
        """Position m sees positions 0..m.

        Args:
          observation: [..., T, S], normalised.
          mask: [..., T] bool, False where a position is padding; None if there is none.
          return_to_go: [..., T], scaled, a token before each state's, as in Decision Transformer
            (without its action tokens); None for no such tokens.
          deterministic: dropout off.
          last_only: return only the last position; the last block then computes nothing else.

        Returns:
          mean, log_std: [..., T, A] each, or [..., 1, A] with `last_only`.
        """
        x = Linear(self.hidden_dim, name="embed")(observation)
        if return_to_go is not None:
            wanted = Linear(self.hidden_dim, name="embed_return")(return_to_go[..., None])
            x = jnp.stack([wanted, x], axis=-2)  # [..., T, 2, H]
            x = x.reshape(*x.shape[:-3], -1, self.hidden_dim)
            mask = None if mask is None else jnp.repeat(mask, 2, axis=-1)
        length = x.shape[-2]
        attend = jnp.tril(jnp.ones((length, length), bool))
        if mask is not None:
            attend = attend & mask[..., None, :]
        x = _LayerNorm(name="embed_norm")(x)
        for i in range(self.num_blocks):
            last = last_only and i + 1 == self.num_blocks
            block = Block(self.hidden_dim, self.dropout, last_only=last, name=f"block_{i}")
            x = block(x, attend, deterministic)
        if return_to_go is not None and not last_only:
            x = x[..., 1::2, :]  # actions are read at the states
        mean, raw = jnp.split(Linear(2 * self.action_dim, name="head")(x), 2, axis=-1)
        scale = self.param("log_std_multiplier", nn.initializers.constant(1.0), ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return mean, jnp.clip(scale * raw + offset, self.log_std_min, self.log_std_max)


class StatewisePolicy(nn.Module):
    """`TransformerPolicy` without a memory: the actor of plain CQL, at every position.

    Three hidden layers with ReLU, all layers orthogonal with gain sqrt(2) and no dropout, as in the
    older CORL that TGCVG compares with.

    Attributes:
      action_dim: A.
      hidden_dim: width.
    """

    action_dim: int
    hidden_dim: int = 256

    @nn.compact
    def __call__(
        self,
        observation: Array,
        mask: Array | None = None,
        return_to_go: Array | None = None,
        *,
        deterministic: bool,
        last_only: bool = False,
    ) -> tuple[Array, Array]:
        """As `TransformerPolicy`, but position m sees itself alone; a return-to-go is one more
        input beside the state.
        """
        del mask, deterministic  # no position sees another; no dropout
        x = observation
        if return_to_go is not None:
            x = jnp.concatenate([return_to_go[..., None], x], axis=-1)
        x = x[..., -1:, :] if last_only else x
        widths = (self.hidden_dim,) * 3
        gain = 2.0**0.5
        gaussian = GaussianMLP(widths, self.action_dim, "orthogonal", gain, name="gaussian")
        return gaussian(x)
