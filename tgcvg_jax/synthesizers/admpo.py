"""ADMPO (Lin et al. 2024) as a synthesizer: the rollouts on which its policy learned.

The dynamics model is TGCVG's; the policy is SAC on rollouts penalised by how much predictions from
different numbers of steps back differ. The policy itself is the row ADMPO of TGCVG's Table 11, and
a learner trained on what it rolls out is the row ADMPO+IQL.

The rollouts are made anew with the final policy, while ADMPO's own buffer holds those of its latest
versions, with penalised rewards: set `penalised_rewards` for what a learner on that buffer sees.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from tgcvg_jax import tasks
from tgcvg_jax.config import replace_nested
from tgcvg_jax.data import windows
from tgcvg_jax.models import admpo_policy, any_step_dynamics
from tgcvg_jax.synthesizers.model_rollout import to_batch_major, until
from tgcvg_jax.types import (
    Array,
    Dataset,
    Learner,
    Model,
    PRNGKey,
    PyTree,
    Synthesizer,
    Task,
    Trajectories,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """ADMPO. Defaults: released code, but for what is said beside them."""

    policy: admpo_policy.Config = admpo_policy.Config()
    dynamics: any_step_dynamics.Config = any_step_dynamics.Config()
    rollout_batch: int = 1_000  # rollouts in one compiled call; released: 50,000
    penalised_rewards: bool = False  # as in ADMPO's buffer; False: the model's own rewards


# `quick` is a run of minutes on two CPU cores: TGCVG's small dynamics, fewer rollouts, and larger
# learning rates, for a thousandth of the steps. The policy finds the faults of so poor a model at
# once, so its penalty is higher than the released ones of most tasks, and half a batch is real.
PRESETS = {
    "paper": {},
    "quick": {
        "policy": {
            "num_steps": 10_000,
            "max_steps": 2,
            "penalty": 5.0,
            "real_ratio": 0.5,
            "rollouts_per_step": 5,
            "capacity": 50_000,
            "batch_size": 128,
            "hidden_dims": (64, 64),
            "actor_learning_rate": 3e-4,
            "critic_learning_rate": 1e-3,
        },
        "dynamics": {"max_epochs": 10, "epoch_steps": 500, "hidden_dim": 100, "max_steps": 2},
        "rollout_batch": 250,
    },
}
MODEL_KINDS = {"dynamics": "any_step_dynamics", "policy": "admpo_policy"}
NUM_TRANSITIONS = {"paper": 5_000_000, "quick": 50_000}


def for_task(task: Task, preset: str = "paper") -> Config:
    """The released defaults with the released settings for a task, and a preset's changes."""
    settings, model = tasks.admpo_settings(task), tasks.tgcvg_settings(task)
    config = Config(
        policy=admpo_policy.Config(
            max_steps=model.max_steps,
            rollout_length=settings.rollout_length,
            penalty=settings.penalty,
            real_ratio=settings.real_ratio,
            temperature=settings.temperature,
            actor_learning_rate=settings.actor_learning_rate,
        ),
        dynamics=any_step_dynamics.Config(
            max_steps=model.max_steps,
            hidden_dim=model.dynamics_hidden_dim,
            reward_bias=1.0 if task.domain in tasks.MAZES else 0.0,
        ),
    )
    return replace_nested(config, PRESETS[preset])


def as_paper(config: Config) -> Config:
    """As for TGCVG: dropout in rollouts and the bias of mazes are in the released code alone."""
    return dataclasses.replace(
        config,
        policy=dataclasses.replace(config.policy, dynamics_dropout=False),
        dynamics=dataclasses.replace(config.dynamics, reward_bias=0.0),
    )


@flax.struct.dataclass
class Data:
    """What `generate` reads.

    Attributes:
      rows: [M, 2 S + A + 2], packed.
      timestep: [M].
      return_to_go: [M].
      starts: [W], all starts of windows of m transitions.
    """

    rows: Array
    timestep: Array
    return_to_go: Array
    starts: Array


def make(task: Task, config: Config) -> Synthesizer:
    """The synthesizer. Its policy learns in the trained dynamics, so that comes first.

    Raises:
      UserError: the policy wants longer jumps than the dynamics model learns.
    """
    m, length = config.policy.max_steps, config.policy.rollout_length

    def policy(states: dict[str, PyTree]) -> Learner:
        return admpo_policy.make(task, config.policy, config.dynamics, states["dynamics"])

    admpo_policy.make(task, config.policy, config.dynamics)  # refuse before anything is trained

    def prepare(dataset: Dataset) -> Data:
        windows.require_windows(dataset, m, "the longest way back m of a prediction")
        return Data(
            rows=windows.pack(dataset.transition),
            timestep=dataset.timestep,
            return_to_go=dataset.return_to_go,
            starts=dataset.order[: windows.num_windows(dataset, m)],
        )

    def generate(states: dict[str, PyTree], data: Data, key: PRNGKey, chunk: Array) -> Trajectories:
        """Rollouts from the last states of real windows, in those states' episodes.

        Time steps go on from there. The return-to-go is the real one less the rewards since: what
        Decision Transformer makes of it, too. A rollout ends after its length, at a terminal of
        the environment's rule, at the time limit, or where the model breaks down (NaN).
        """
        batch_size = min(config.rollout_batch, len(data.starts))
        epoch_key, chunk_key = jax.random.split(key)
        starts = windows.epoch_starts(epoch_key, data.starts, batch_size, chunk)
        rows = windows.take_windows(data.rows, starts, m)
        real = windows.unpack(rows, task.observation_dim, task.action_dim)
        keys = jax.random.split(jax.random.fold_in(chunk_key, chunk), length)
        draw = lambda key: admpo_policy.draw_noise(key, batch_size, task, config.policy)  # noqa: E731

        def step(particles, noise):
            particles, transition, error = admpo_policy.take_step(
                states["policy"].params["actor"], states["dynamics"], particles, noise,
                task=task, config=config.policy, dynamics_config=config.dynamics,
            )  # fmt: skip
            if config.penalised_rewards:
                penalty = config.policy.penalty * error
                transition = transition._replace(reward=transition.reward - penalty)
            return particles, transition

        begin = admpo_policy.start(real, jnp.zeros(batch_size, jnp.int32))
        _, transition = jax.lax.scan(step, begin, jax.vmap(draw)(keys))
        transition = to_batch_major(transition)

        index = (starts + m - 1)[:, None]
        timestep = data.timestep[index] + jnp.arange(length)
        earlier = jnp.cumsum(transition.reward, axis=1) - transition.reward
        late = timestep >= task.episode_length
        mask = until(transition.discount == 0.0, inclusive=True)
        mask &= until(late | ~admpo_policy.all_finite(transition), inclusive=False)
        return Trajectories(
            transition=transition,
            timestep=timestep,
            return_to_go=data.return_to_go[index] - earlier,
            mask=mask,
        )

    dynamics = any_step_dynamics.make(task, config.dynamics)
    models: dict[str, Model] = {"dynamics": dynamics, "policy": policy}
    return Synthesizer(models, prepare, generate)
