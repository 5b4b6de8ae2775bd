"""SynthER: synthetic experience replay (Lu et al. 2023). Single transitions from pure noise."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from tgcvg_jax.config import replace_nested
from tgcvg_jax.data import windows
from tgcvg_jax.models import denoiser as denoising
from tgcvg_jax.models import transition_denoiser
from tgcvg_jax.ops import edm
from tgcvg_jax.types import Array, PRNGKey, PyTree, Synthesizer, Task, Trajectories


@dataclasses.dataclass(frozen=True)
class Config:
    """SynthER. Defaults: released code.

    It trains learners on synthetic data alone (`--set learner.replay.original_share=0`, with
    `learner.replay.statistics=original`); GTA and TGCVG compare with it on both.
    """

    denoiser: transition_denoiser.Config = transition_denoiser.Config()
    sampler: edm.Sampler = edm.Sampler()
    clip_actions: bool = True  # to the action box; released: False
    terminal_threshold: float = 0.5  # of the generated terminal
    batch_size: int = 100_000  # transitions in one compiled sampling


PRESETS = {
    "paper": {},
    "quick": {
        "denoiser": {"num_steps": 10_000, "width": 128},
        "sampler": {"num_steps": 32},
        "batch_size": 5_000,
    },
}
MODEL_KINDS = {"denoiser": "transition_denoiser"}
NUM_TRANSITIONS = {"paper": 5_000_000, "quick": 50_000}


def for_task(task: Task, preset: str = "paper") -> Config:
    """The same for all tasks. (As released, data of 800,000 and more train in batches of 1,024.)"""
    del task
    return replace_nested(Config(), PRESETS[preset])


def as_paper(config: Config) -> Config:
    """The paper and the released code agree."""
    return config


def make(task: Task, config: Config) -> Synthesizer:
    """The synthesizer."""
    network = transition_denoiser.make_network(config.denoiser)

    def generate(states: dict[str, PyTree], data: None, key: PRNGKey, chunk: Array) -> Trajectories:
        del data  # the samples start from noise
        state = states["denoiser"]
        start_key, churn_key = jax.random.split(jax.random.fold_in(key, chunk))
        shape = (config.batch_size, windows.width(task))
        x = edm.sample(
            denoising.make_denoiser(network, state, config.denoiser),
            config.sampler.sigma_max * jax.random.normal(start_key, shape),
            None,
            noise=lambda i: jax.random.normal(jax.random.fold_in(churn_key, i), shape),
            keep=None,
            config=config.sampler,
        )
        rows = state.normalizer.inverse(x)[:, None]  # segments of one transition
        transition = transition_denoiser.unpack(rows, task, config.terminal_threshold)
        if config.clip_actions:
            transition = transition._replace(action=jnp.clip(transition.action, -1.0, 1.0))
        return Trajectories(
            transition=transition,
            timestep=jnp.zeros(rows.shape[:2], jnp.int32),  # not known
            return_to_go=transition.reward,
            mask=jnp.all(jnp.isfinite(rows), axis=-1),
        )

    models = {"denoiser": transition_denoiser.make(task, config.denoiser)}
    return Synthesizer(models, lambda dataset: None, generate)
