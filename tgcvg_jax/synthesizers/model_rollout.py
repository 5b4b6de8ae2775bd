"""Rolling a policy out in a dynamics model, and where a rollout ends."""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from tgcvg_jax.types import Array, PRNGKey, PyTree, Transition


@flax.struct.dataclass
class Noise:
    """Random draws of a rollout of H steps.

    Attributes:
      action: whatever `act` takes, with a leading axis of H.
      dynamics: [H, B, S + 1], standard normal.
      model: [H] PRNG keys, of dropout and of the choice of members; None turns dropout off.
    """

    action: PyTree
    dynamics: Array
    model: Array | None


def rollout(
    act: Callable[[PyTree, Array, Array, PyTree], tuple[Array, PyTree]],
    step_model: Callable[[Array, Array, Array, PRNGKey | None], tuple[Array, Array]],
    carry: PyTree,
    observation: Array,
    reward: Array,
    noise: Noise,
) -> Transition:
    """The whole autoregressive rollout, as one scan.

    Args:
      act: (carry, observation, previous reward, noise of the action) -> (action, carry).
      step_model: (observation, action, noise, key) -> (next observation, reward).
      carry: the policy's memory of what came before.
      observation: [B, S], real states, raw; the first actions are taken in them.
      reward: [B], of the step before.
      noise: the draws; their leading axis is the number of steps.

    Returns:
      Fields [B, H, ...]; discounts are all 1.
    """

    def step(state: PyTree, noise: Noise) -> tuple[PyTree, Transition]:
        carry, observation, reward = state
        action, carry = act(carry, observation, reward, noise.action)
        following, reward = step_model(observation, action, noise.dynamics, noise.model)
        transition = Transition(observation, action, reward, jnp.ones_like(reward), following)
        return (carry, following, reward), transition

    return to_batch_major(jax.lax.scan(step, (carry, observation, reward), noise)[1])


def to_batch_major(transition: Transition) -> Transition:
    """What a scan over steps emitted, fields [H, B, ...], as [B, H, ...]."""
    t = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), transition)
    # The compiler may round a state otherwise where it is emitted than where it is carried.
    following = jnp.concatenate([t.observation[:, 1:], t.next_observation[:, -1:]], axis=1)
    return t._replace(next_observation=following)


def until(stop: Array, *, inclusive: bool) -> Array:
    """Mask [B, H] of the steps before the first True of `stop` [B, H], or up to and with it."""
    stopped = jnp.cumsum(stop, axis=1)
    return (stopped - stop if inclusive else stopped) == 0


def plausible(
    transition: Transition, mask: Array, reward_range: Array, slack: float, ratio: float
) -> Array:
    """[B] bool: no NaN or infinity anywhere, and a mean reward near the dataset's range.

    A filter for explosions, not for quality. As TGCVG released it, a trajectory goes if its mean
    reward is below the dataset's lowest reward (less 1 in mazes) or above twice the highest; where
    the highest is negative, twice it would be no upper bound, so the bound is high + |high| there.
    The released code looks for NaN in the rewards alone.

    Args:
      transition: fields [B, H, ...].
      mask: [B, H], the steps that count.
      reward_range: [2], lowest and highest reward of the dataset.
      slack: by how much the mean may fall short of the lowest.
      ratio: how many times the highest it may be.
    """
    total = jnp.sum(jnp.where(mask, transition.reward, 0.0), axis=1)
    mean = total / jnp.maximum(jnp.sum(mask, axis=1), 1)
    low, high = reward_range
    low, high = low - slack, high + (ratio - 1.0) * jnp.abs(high)
    finite = mask
    for x in jax.tree.leaves(transition):
        finite &= jnp.all(jnp.isfinite(x), axis=tuple(range(2, x.ndim)))
    return jnp.all(finite == mask, axis=1) & (mean >= low) & (mean <= high)
