"""TGCVG: Trajectory Generation with Conservative Value Guidance (paper section 4).

A Transformer-CQL policy is rolled out against an any-step dynamics model from the first L states
of real windows of K transitions, for H = K + 1 - L steps. Generated transition i stands where
transition L - 1 + i of its window stood, and inherits its terminal, time step and return-to-go.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from tgcvg_jax import tasks
from tgcvg_jax.config import replace_nested
from tgcvg_jax.data import windows
from tgcvg_jax.models import any_step_dynamics, transformer_cql
from tgcvg_jax.types import (
    Array,
    Dataset,
    PRNGKey,
    PyTree,
    Synthesizer,
    Task,
    Trajectories,
    Transition,
    UserError,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """TGCVG. Defaults: released code; symbols: paper."""

    policy: transformer_cql.Config = transformer_cql.Config()
    dynamics: any_step_dynamics.Config = any_step_dynamics.Config()
    window_length: int = 60  # K, transitions in a source window
    rollout_batch: int = 1_000  # windows in one compiled rollout
    dynamics_dropout: bool = True  # on while generating, as released; paper: not mentioned
    deterministic_policy: bool = False  # True: mean actions; the paper samples
    max_reward_ratio: float = 2.0  # drop a trajectory whose mean reward exceeds this times the max,
    min_reward_slack: float = 0.0  # or falls short of the min by more than this; mazes: 1

    @property
    def horizon(self) -> int:
        """H, transitions generated from each window."""
        return self.window_length + 1 - self.policy.context_length


# What each preset changes. `quick` is a run of minutes on two CPU cores: small networks, a warm-up
# by behaviour cloning and a low initial temperature, without which so short a run would still act
# at random (the temperature starts at 1 and takes some 10,000 steps to fall). Its window is the
# longest that it takes; mazes have shorter ones.
PRESETS = {
    "paper": {},
    "quick": {
        "policy": {
            "num_steps": 7_000,
            "context_length": 5,
            "batch_size": 64,
            "hidden_dim": 64,
            "critic_hidden_dims": (64, 64, 64),
            "initial_temperature": 0.05,
            "bc_steps": 2_000,
        },
        "dynamics": {"max_epochs": 10, "epoch_steps": 500, "hidden_dim": 100, "max_steps": 2},
        "window_length": 25,
        "rollout_batch": 250,
    },
}
MODEL_KINDS = {"policy": "transformer_cql", "dynamics": "any_step_dynamics"}
NUM_TRANSITIONS = {"paper": 5_000_000, "quick": 50_000}


def for_task(task: Task, preset: str = "paper") -> Config:
    """The released defaults with the papers' settings for a task, and a preset's changes."""
    settings = tasks.tgcvg_settings(task)
    maze, ant = task.domain in tasks.MAZES, task.domain == "antmaze"
    config = Config(
        policy=transformer_cql.Config(
            context_length=settings.context_length,
            cql_weight=settings.cql_weight,
            reward_shift=-0.5 if ant else 0.0,
            reward_scale=4.0 if ant else 1.0,
        ),
        dynamics=any_step_dynamics.Config(
            max_steps=settings.max_steps,
            hidden_dim=settings.dynamics_hidden_dim,
            reward_bias=1.0 if maze else 0.0,
        ),
        window_length=settings.window_length,
        min_reward_slack=1.0 if maze else 0.0,
    )
    changed = replace_nested(config, PRESETS[preset])
    shorter = min(config.window_length, changed.window_length)
    return dataclasses.replace(changed, window_length=shorter)


def as_paper(config: Config) -> Config:
    """The paper's values where they differ from the released code."""
    return dataclasses.replace(
        config,
        policy=transformer_cql.as_paper(config.policy),
        dynamics=dataclasses.replace(config.dynamics, reward_bias=0.0),
        min_reward_slack=0.0,
        dynamics_dropout=False,
    )


@flax.struct.dataclass
class Data:
    """What `generate` reads.

    Attributes:
      observation: [M, S], raw.
      discount: [M].
      timestep: [M].
      return_to_go: [M].
      starts: [W], all starts of windows of K transitions.
      reward_range: [2], lowest and highest reward of the dataset.
    """

    observation: Array
    discount: Array
    timestep: Array
    return_to_go: Array
    starts: Array
    reward_range: Array


@flax.struct.dataclass
class Noise:
    """Random draws of a rollout of H steps.

    Attributes:
      action: [H, B, A], standard normal.
      dynamics: [H, B, S + 1], standard normal.
      dropout: [H] PRNG keys; None turns dropout off.
    """

    action: Array
    dynamics: Array
    dropout: Array | None


def rollout(
    policy: transformer_cql.State,
    dynamics: any_step_dynamics.State,
    context: Array,
    noise: Noise,
    *,
    task: Task,
    config: Config,
) -> Transition:
    """The autoregressive rollout, as one scan over a sliding window of L states.

    Args:
      policy: trained Transformer-CQL, one seed.
      dynamics: trained dynamics, one seed.
      context: [B, L, S], real states, raw; the first action is taken in the last of them.
      noise: the draws; their leading axis is the number of steps.
      task: the task.
      config: the config.

    Returns:
      Fields [B, H, ...]; discounts are all 1.
    """
    actor = transformer_cql.make_actor(task, config.policy)

    def step(window: Array, noise: Noise) -> tuple[Array, Transition]:
        observation = window[:, -1]
        action = transformer_cql.sample_action(
            actor, policy.params["actor"], policy.normalizer(window), noise.action
        )
        next_observation, reward = any_step_dynamics.step_model(
            dynamics, observation, action, noise.dynamics, noise.dropout,
            task=task, config=config.dynamics,
        )  # fmt: skip
        # Raw, so that the next observation is this one's successor to the last bit.
        window = jnp.concatenate([window[:, 1:], next_observation[:, None]], axis=1)
        discount = jnp.ones_like(reward)
        return window, Transition(observation, action, reward, discount, next_observation)

    _, transitions = jax.lax.scan(step, context, noise)
    t = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), transitions)
    # The compiler may round a state otherwise where it is emitted than where it is carried.
    following = jnp.concatenate([t.observation[:, 1:], t.next_observation[:, -1:]], axis=1)
    return t._replace(next_observation=following)


def keep_plausible(transition: Transition, reward_range: Array, config: Config) -> Array:
    """[B] bool: no NaN or infinity anywhere, and a mean reward near the dataset's range.

    A filter for explosions, not for quality. As released, a trajectory goes if its mean reward is
    below the dataset's lowest reward (less 1 in mazes) or above twice the highest; where the
    highest is negative, twice it would be no upper bound, so the bound is high + |high| there. The
    released code looks for NaN in the rewards alone.
    """
    mean = jnp.mean(transition.reward, axis=1)
    low, high = reward_range
    low = low - config.min_reward_slack
    high = high + (config.max_reward_ratio - 1.0) * jnp.abs(high)
    finite = [
        jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(transition)
    ]
    return jnp.all(jnp.stack(finite), axis=0) & (mean >= low) & (mean <= high)


def make(task: Task, config: Config) -> Synthesizer:
    """The synthesizer.

    Raises:
      UserError: the window K is shorter than the policy's context L.
    """
    length, horizon = config.policy.context_length, config.horizon
    if horizon < 1:
        raise UserError(
            f"window_length K = {config.window_length} leaves nothing to generate after "
            f"policy.context_length L = {length} states; K must be at least L"
        )

    def prepare(dataset: Dataset) -> Data:
        windows.require_windows(dataset, config.window_length, "the source window K")
        count = windows.num_windows(dataset, config.window_length)
        reward = dataset.transition.reward
        return Data(
            observation=dataset.transition.observation,
            discount=dataset.transition.discount,
            timestep=dataset.timestep,
            return_to_go=dataset.return_to_go,
            starts=dataset.order[:count],
            reward_range=jnp.stack([jnp.min(reward), jnp.max(reward)]),
        )

    def generate(states: dict[str, PyTree], data: Data, key: PRNGKey, chunk: Array) -> Trajectories:
        batch_size = min(config.rollout_batch, len(data.starts))
        epoch_key, chunk_key = jax.random.split(key)
        starts = windows.epoch_starts(epoch_key, data.starts, batch_size, chunk)

        keys = jax.random.split(jax.random.fold_in(chunk_key, chunk), 3)
        action_shape = (horizon, batch_size, task.action_dim)
        scale = 0.0 if config.deterministic_policy else 1.0
        noise = Noise(
            action=scale * jax.random.normal(keys[0], action_shape),
            dynamics=jax.random.normal(keys[1], (horizon, batch_size, task.observation_dim + 1)),
            dropout=jax.random.split(keys[2], horizon) if config.dynamics_dropout else None,
        )
        context = windows.take_windows(data.observation, starts, length)
        transition = rollout(
            states["policy"], states["dynamics"], context, noise, task=task, config=config
        )
        inherited = (data.discount, data.timestep, data.return_to_go)
        inherited = windows.take_windows(inherited, starts + length - 1, horizon)
        discount, timestep, return_to_go = inherited
        keep = keep_plausible(transition, data.reward_range, config)
        return Trajectories(
            transition=transition._replace(discount=discount),
            timestep=timestep,
            return_to_go=return_to_go,
            mask=jnp.broadcast_to(keep[:, None], (batch_size, horizon)),
        )

    models = {
        "policy": transformer_cql.make(task, config.policy),
        "dynamics": any_step_dynamics.make(task, config.dynamics),
    }
    return Synthesizer(models, prepare, generate)
