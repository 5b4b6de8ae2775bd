"""What a policy that sees the last L states remembers while it acts, and the policy around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from tgcvg_jax.types import Array, Policy, PRNGKey, PyTree, Transition


class Memory(NamedTuple):
    """The last L states of B histories, each with a length of its own; the newest come last.

    Attributes:
      observation: [B, L, S], normalised; 0 where there is none yet, which is at the front.
      count: [B] int32, how many states there are, at most L.
      return_to_go: [B, L], raw, wanted from each of these states on; before the first, what is
        wanted from it on. None for policies that are not conditioned on a return.
    """

    observation: Array
    count: Array
    return_to_go: Array | None


def empty(
    batch_size: int, length: int, observation_dim: int, target_return: Array | None = None
) -> Memory:
    """No states yet.

    Args:
      batch_size: B.
      length: L.
      observation_dim: S.
      target_return: a number or [B], the return wanted from the first state on; None for policies
        that are not conditioned on one.
    """
    if target_return is not None:
        target_return = jnp.broadcast_to(
            jnp.asarray(target_return)[..., None], (batch_size, length)
        )
    return Memory(
        observation=jnp.zeros((batch_size, length, observation_dim)),
        count=jnp.zeros(batch_size, jnp.int32),
        return_to_go=target_return,
    )


def push(memory: Memory, observation: Array, previous_reward: Array) -> Memory:
    """One more state.

    Args:
      memory: what came before.
      observation: [B, S], normalised.
      previous_reward: [B], raw, of the step before; 0 at the first.
    """
    length = memory.observation.shape[1]
    target = memory.return_to_go
    if target is not None:
        target = jnp.concatenate([target[:, 1:], target[:, -1:] - previous_reward[:, None]], axis=1)
    return Memory(
        observation=jnp.concatenate([memory.observation[:, 1:], observation[:, None]], axis=1),
        count=jnp.minimum(memory.count + 1, length),
        return_to_go=target,
    )


def recall(memory: Memory, observation: Array, reward: Array, mask: Array) -> Memory:
    """An empty memory filled with T steps at once, as if `push` had seen one after the other.

    Args:
      memory: made by `empty`.
      observation: [B, T, S], normalised.
      reward: [B, T], raw. That of the last step is not used: the next `push` takes it.
      mask: [B, T], False where there is no step, at the front.
    """
    length = memory.observation.shape[1]
    last = lambda old, new: jnp.concatenate([old, new], axis=1)[:, -length:]  # noqa: E731
    target = memory.return_to_go
    if target is not None:
        reward = jnp.where(mask, reward, 0.0)
        target = last(target, target[:, -1:] - (jnp.cumsum(reward, axis=1) - reward))
    return Memory(
        observation=last(memory.observation, jnp.where(mask[..., None], observation, 0.0)),
        count=jnp.minimum(jnp.sum(mask, axis=1, dtype=jnp.int32), length),
        return_to_go=target,
    )


def mask(memory: Memory) -> Array:
    """[B, L] bool, True where there is a state."""
    length = memory.observation.shape[1]
    return jnp.arange(length) >= length - memory.count[:, None]


def make_policy(
    choose: Callable[[PyTree, Memory, PRNGKey, bool], Array],
    length: int,
    observation_dim: int,
    *,
    conditioned: bool = False,
) -> Policy:
    """A policy that sees the last L states.

    Args:
      choose: (state, memory with the present observation, key, deterministic) -> action [B, A].
      length: L.
      observation_dim: S.
      conditioned: on a return. The one wanted is the state's `best_return`, unless told; it counts
        from the first state that the policy is given: that of the history, if it is primed.
    """

    def init(state: PyTree, batch_size: int, target_return: Array | float | None = None) -> Memory:
        if not conditioned:
            target_return = None
        elif target_return is None:
            target_return = state.best_return
        return empty(batch_size, length, observation_dim, target_return)

    def act(state, memory, observation, previous_reward, key, deterministic):
        memory = push(memory, state.normalizer(observation), previous_reward)
        return choose(state, memory, key, deterministic), memory

    def prime(state: PyTree, memory: Memory, history: Transition, mask: Array) -> Memory:
        observation = state.normalizer(history.observation)
        return recall(memory, observation, history.reward, mask)

    return Policy(act, init, prime)
