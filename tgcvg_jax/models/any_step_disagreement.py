"""Steps of the any-step dynamics model from several steps back, and how they differ (ADMPO)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tgcvg_jax.models import any_step_dynamics
from tgcvg_jax.types import Array, PRNGKey, Task


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
    state: any_step_dynamics.State,
    observation: Array,
    action: Array,
    noise: Array,
    steps_back: Array,
    dropout_key: PRNGKey | None,
    *,
    task: Task,
    config: any_step_dynamics.Config,
) -> tuple[Array, Array, Array]:
    """One sampled step, told from a random number of steps back, with the best snapshot.

    The released code draws one such number for all rollouts, here each has its own; and it runs the
    network again for the disagreement, with other dropout masks than for the sample.

    Args:
      state: trained state.
      observation: [P, m, S], raw; the last is the present state.
      action: [P, m, A], raw; the last is taken now.
      noise: [P, S + 1], standard normal.
      steps_back: [P] int32 in 1..m, the prediction with which each goes on.
      dropout_key: None turns dropout off.
      task: the task.
      config: of the dynamics.

    Returns:
      next observation [P, S], reward without penalty [P], disagreement [P].
    """
    m = observation.shape[1]
    means, log_vars = [], []
    for k in range(1, m + 1):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, k)
        first = observation[:, m - k]
        mean, log_var = any_step_dynamics.predict(
            state.best_params, state, first, action[:, m - k :], k, key, task=task, config=config
        )  # fmt: skip
        means.append(mean.at[:, :-1].add(first))
        log_vars.append(log_var)
    mean, log_var = jnp.stack(means), jnp.stack(log_vars)  # [m, P, S + 1]
    pick = lambda x: jnp.take_along_axis(x, steps_back[None, :, None] - 1, axis=0)[0]  # noqa: E731
    sample = pick(mean) + jnp.exp(0.5 * pick(log_var)) * noise
    reward = sample[:, -1] - config.reward_bias
    return sample[:, :-1], reward, disagreement(mean[..., :-1])
