"""Does a conditional denoiser do what its condition asks for?"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax.models import denoiser, window_denoiser
from tgcvg_jax.ops import edm
from tgcvg_jax.types import Dataset, Task

SAMPLER = edm.Sampler(num_steps=32)


@dataclasses.dataclass(frozen=True)
class Response:
    """Rewards of W generated windows beside the returns that were asked for.

    Attributes:
      wanted: [W], the return of a window of the data.
      generated: [W], mean reward of the window that was generated for it.
      original: [W], mean reward of the window of the data.
    """

    wanted: np.ndarray
    generated: np.ndarray
    original: np.ndarray

    def correlations(self) -> tuple[float, float]:
        """Pearson's, of wanted returns with generated and with original rewards."""
        pairs = (self.generated, self.original)
        return tuple(float(np.corrcoef(self.wanted, rewards)[0, 1]) for rewards in pairs)


def condition_response(
    task: Task,
    config: window_denoiser.Config,
    state: denoiser.State,
    dataset: Dataset,
    *,
    num_windows: int = 500,
    guidance: float = 2.0,
    sampler: edm.Sampler = SAMPLER,
    seed: int = 0,
) -> Response:
    """Generates windows from pure noise, each for the return of a random window of the data.

    Nothing but the condition tells them apart, as in GTA's figures of guidance. Rewards that the
    model has learnt with the terminal penalty keep it, in both.

    Args:
      task: the task.
      config: of the denoiser, with a condition.
      state: trained, one seed.
      dataset: the original data.
      num_windows: W.
      guidance: w' of `ops.edm.sample`.
      sampler: its settings.
      seed: of the choice and of the noise.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 4), 3)
    data = window_denoiser.make_windows(dataset, config)
    starts = data.starts[jax.random.randint(keys[0], (num_windows,), 0, len(data.starts))]
    source = window_denoiser.take(data, starts, config.horizon)
    condition = data.condition[starts]
    network = window_denoiser.make_network(config)

    @jax.jit
    def generate(state: denoiser.State) -> jax.Array:
        normal = lambda key: jax.random.normal(key, source.shape)  # noqa: E731
        return edm.sample(
            denoiser.make_denoiser(network, state, config),
            sampler.sigma_max * normal(keys[1]),
            condition[:, None],
            noise=lambda i: normal(jax.random.fold_in(keys[2], i)),
            keep=lambda i: jnp.ones((2, num_windows)),
            config=sampler,
            guidance=guidance,
        )

    rewards = [
        np.asarray(window_denoiser.to_transitions(x, data.normalizer, task).reward).mean(axis=1)
        for x in (generate(state), source)
    ]
    return Response(np.asarray(condition) / config.condition_scale, *rewards)
