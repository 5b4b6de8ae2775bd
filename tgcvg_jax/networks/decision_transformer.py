"""The Decision Transformer (Chen et al. 2021), wired as CORL's.

Pre-LN blocks, one head, exact GELU. Each step is three tokens, in the order (return-to-go, state,
action), and the action is predicted at the state's. Order is known through the causal mask and an
embedding of the step within the episode, which is added to all three.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from tgcvg_jax.types import Array

_LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5)
_Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))


class Block(nn.Module):
    """x = x + attention(LN(x)); x = x + MLP(LN(x)).

    Attributes:
      hidden_dim: width; the MLP is four times as wide.
      dropout: rate, on attention weights and at the end of both branches.
    """

    hidden_dim: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool, positions: slice) -> Array:
        """[..., T, H], mask broadcastable to [..., T, T] -> [..., Q, H] at these positions."""
        # torch's attention is initialised apart from the other layers.
        xavier = nn.initializers.xavier_uniform()
        projected = nn.Dense(3 * self.hidden_dim, kernel_init=xavier, name="in_proj")(
            _LayerNorm(name="norm_1")(x)
        )
        q, k, v = jnp.split(projected, 3, axis=-1)
        x, q, mask = (array[..., positions, :] for array in (x, q, mask))
        scores = q @ jnp.swapaxes(k, -1, -2) * self.hidden_dim**-0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)
        weights = nn.Dropout(self.dropout, name="drop_weights")(weights, deterministic)
        attended = _Dense(self.hidden_dim, name="out_proj")(weights @ v)
        x = x + nn.Dropout(self.dropout, name="drop_attended")(attended, deterministic)
        h = _Dense(4 * self.hidden_dim, name="mlp_in")(_LayerNorm(name="norm_2")(x))
        h = _Dense(self.hidden_dim, name="mlp_out")(nn.gelu(h, approximate=False))
        return x + nn.Dropout(self.dropout, name="drop_mlp")(h, deterministic)


class DecisionTransformer(nn.Module):
    """Deterministic actions from returns-to-go, states and earlier actions.

    Attributes:
      action_dim: A.
      hidden_dim: width, H.
      num_blocks: depth.
      num_timesteps: rows of the table of step embeddings; later steps share its last row.
      dropout: rate, on the embeddings and in the blocks.
    """

    action_dim: int
    hidden_dim: int = 128
    num_blocks: int = 3
    num_timesteps: int = 1020
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self,
        observation: Array,
        action: Array,
        return_to_go: Array,
        timestep: Array,
        mask: Array | None = None,
        *,
        deterministic: bool,
        last_only: bool = False,
    ) -> Array:
        """The action at position m sees returns and states 0..m and actions 0..m-1.

        Args:
          observation: [..., L, S], normalised.
          action: [..., L, A].
          return_to_go: [..., L], scaled.
          timestep: [..., L] int, step within the episode.
          mask: [..., L] bool, False where a position is padding; None if there is none.
          deterministic: dropout off.
          last_only: return only the last position.

        Returns:
          Actions in (-1, 1): [..., L, A], or [..., 1, A] with `last_only`. Those at padding mean
          nothing.
        """
        length, width = observation.shape[-2], self.hidden_dim
        normal = nn.initializers.normal(0.02)
        table = nn.Embed(self.num_timesteps, width, embedding_init=normal, name="embed_timestep")
        time = table(jnp.clip(timestep, 0, self.num_timesteps - 1))
        tokens = (
            _Dense(width, name="embed_return")(return_to_go[..., None]) + time,
            _Dense(width, name="embed_observation")(observation) + time,
            _Dense(width, name="embed_action")(action) + time,
        )
        x = jnp.stack(tokens, axis=-2)  # [..., L, 3, H]
        x = _LayerNorm(name="embed_norm")(x.reshape(*x.shape[:-3], 3 * length, width))
        x = nn.Dropout(self.dropout, name="drop_embed")(x, deterministic)
        attend = jnp.tril(jnp.ones((3 * length, 3 * length), bool))
        if mask is not None:
            attend = attend & jnp.repeat(mask, 3, axis=-1)[..., None, :]
        # Of the last block only the state tokens are read, so it computes nothing else.
        states = slice(-2, -1) if last_only else slice(1, None, 3)
        for i in range(self.num_blocks):
            positions = states if i + 1 == self.num_blocks else slice(None)
            block = Block(width, self.dropout, name=f"block_{i}")
            x = block(x, attend, deterministic, positions)
        x = _LayerNorm(name="out_norm")(x)
        return jnp.tanh(_Dense(self.action_dim, name="head")(x))
