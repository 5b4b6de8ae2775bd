"""Steps of the any-step dynamics model from several steps back, and how they differ (ADMPO)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tgcvg_jax.models import any_step_dynamics
from tgcvg_jax.types import Array, PRNGKey, Task


class Noise(NamedTuple):
    """Random draws of one step of P rollouts.

    Attributes:
      action: [P, A], standard normal.
      dynamics: [P, S + 1], standard normal.
      steps_back: [P] int32 in 1..m, the prediction with which each goes on.
      dropout: PRNG key; None turns dropout off.
    """

    action: Array
    dynamics: Array
    steps_back: Array
    dropout: PRNGKey | None


def draw_noise(key: PRNGKey, count: int, m: int, dropout: bool, task: Task) -> Noise:
    """The draws for one step of `count` rollouts that look at most m steps back."""
    keys = jax.random.split(key, 4)
    return Noise(
        action=jax.random.normal(keys[0], (count, task.action_dim)),
        dynamics=jax.random.normal(keys[1], (count, task.observation_dim + 1)),
        steps_back=jax.random.randint(keys[2], (count,), 1, m + 1),
        dropout=keys[3] if dropout else None,
    )


def disagreement(mean: Array) -> Array:
    """How much predictions of one state differ: the standard deviation over k, root mean square.

    Args:
      mean: [m, ..., S], the means of the predictions from 1, ..., m steps back, raw units.

    Returns:
      [...]; 0 if m = 1. As released: the square root of the mean over dimensions of the variance
      over k, so dimensions with a wide range (velocities) dominate.
    """
    return jnp.sqrt(jnp.mean(jnp.var(mean, axis=0), axis=-1))


def step_model(
    dynamics: any_step_dynamics.State,
    observation: Array,
    action: Array,
    noise: Noise,
    *,
    task: Task,
    dynamics_config: any_step_dynamics.Config,
) -> tuple[Array, Array, Array]:
    """One sampled step, told from a random number of steps back, with the best snapshot.

    The released code draws one such number for all rollouts, here each has its own; and it runs the
    network again for the disagreement, with other dropout masks than for the sample.

    Args:
      dynamics: trained state.
      observation: [P, m, S], raw; the last is the present state.
      action: [P, m, A], raw; the last is taken now.
      noise: its action part is not used.
      task: the task.
      dynamics_config: of the dynamics.

    Returns:
      next observation [P, S], reward without penalty [P], disagreement [P].
    """
    m = observation.shape[1]
    means, log_vars = [], []
    for k in range(1, m + 1):
        key = None if noise.dropout is None else jax.random.fold_in(noise.dropout, k)
        first = observation[:, m - k]
        mean, log_var = any_step_dynamics.predict(
            dynamics.best_params, dynamics, first, action[:, m - k :], k, key,
            task=task, config=dynamics_config,
        )  # fmt: skip
        means.append(mean.at[:, :-1].add(first))
        log_vars.append(log_var)
    mean, log_var = jnp.stack(means), jnp.stack(log_vars)  # [m, P, S + 1]
    pick = lambda x: jnp.take_along_axis(x, noise.steps_back[None, :, None] - 1, axis=0)[0]  # noqa: E731
    sample = pick(mean) + jnp.exp(0.5 * pick(log_var)) * noise.dynamics
    reward = sample[:, -1] - dynamics_config.reward_bias
    return sample[:, :-1], reward, disagreement(mean[..., :-1])
