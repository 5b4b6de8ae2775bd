"""Behaviour cloning, of all the data or of its best episodes (BC-10%), as CORL writes it."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tgcvg_jax.data.dataset import episode_returns, episode_starts, select
from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.data.replay import Buffer, Replay, draw, make_buffer
from tgcvg_jax.networks.mlp import MLP
from tgcvg_jax.types import (
    ORIGINAL,
    SYNTHETIC,
    Array,
    Dataset,
    Learner,
    Policy,
    PRNGKey,
    PyTree,
    Task,
    Transition,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Behaviour cloning. Defaults: CORL's."""

    replay: Replay = Replay()
    num_steps: int = 1_000_000
    batch_size: int = 256
    hidden_dims: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    top_fraction: float = 1.0  # of the episodes, by return; BC-10%: 0.1


PRESETS = {"paper": {}, "quick": {"num_steps": 10_000}}


def for_task(task: Task, hyperparameters: str = "tgcvg") -> Config:
    """CORL's, the same for all tasks; GTA's batches are larger."""
    del task
    return Config(batch_size=1024) if hyperparameters == "gta" else Config()


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      actor: parameters.
      actor_opt: Adam's state.
      normalizer: of observations.
      key: PRNG key of the run; no noise is drawn from it, an update has none.
      step: gradient steps done.
    """

    actor: PyTree
    actor_opt: PyTree
    normalizer: Normalizer
    key: PRNGKey
    step: Array


def keep_best(dataset: Dataset, fraction: float) -> Dataset:
    """The episodes of highest undiscounted return.

    Segments of synthetic data have no return of their own; of these the ones with the highest
    return-to-go in their first row are kept. Since that falls in the course of an episode, they
    are mostly segments from its beginning.

    CORL cuts its data every 1,000 rows where no terminal comes before, and in maze2d ranks the
    pieces by return discounted by 0.99; here they are the episodes of the file.

    Args:
      dataset: original data, or original and synthetic.
      fraction: of the episodes of each of the two kinds, rounded down, but at least one.

    Returns:
      Their transitions, in the order they had. Of equal episodes the earlier ones are kept.
    """
    if fraction >= 1.0:
        return dataset
    starts = episode_starts(dataset)
    source = np.asarray(dataset.source)[starts]
    returns = episode_returns(dataset)
    keep = np.zeros(len(returns), bool)
    for kind in (ORIGINAL, SYNTHETIC):
        episodes = np.flatnonzero(source == kind)
        best = episodes[np.argsort(-returns[episodes], kind="stable")]
        keep[best[: max(1, int(fraction * len(best)))]] = True
    return select(dataset, keep[np.cumsum(starts) - 1])


def make_network(task: Task, config: Config) -> MLP:
    """Actor (before tanh)."""
    return MLP((*config.hidden_dims, task.action_dim))


def act(actor: MLP, params: PyTree, observation: Array) -> Array:
    """Actions in (-1, 1)."""
    return jnp.tanh(actor.apply(params, observation))


def actor_loss(
    actor_params: PyTree, batch: Transition, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """Mean squared error of the action, over batch and dimensions."""
    action = act(make_network(task, config), actor_params, batch.observation)
    loss = jnp.mean(jnp.square(action - batch.action))
    return loss, {"actor_loss": loss}


def make(task: Task, config: Config) -> Learner:
    """The learner. One update is one gradient step."""
    actor = make_network(task, config)
    optimizer = optax.adam(config.learning_rate)

    def prepare(dataset: Dataset) -> Buffer:
        return make_buffer(keep_best(dataset, config.top_fraction), config.replay)

    def init(key: PRNGKey, data: Buffer) -> State:
        key, actor_key = jax.random.split(key)
        actor_params = actor.init(actor_key, jnp.zeros((1, task.observation_dim)))
        return State(
            actor=actor_params,
            actor_opt=optimizer.init(actor_params),
            normalizer=data.normalizer,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Buffer) -> Transition:
        return draw(key, data, config.replay, task, (config.batch_size,))[0]

    def update(state: State, batch: Transition) -> tuple[State, dict[str, Array]]:
        grads, info = jax.grad(actor_loss, has_aux=True)(state.actor, batch, task, config)
        updates, actor_opt = optimizer.update(grads, state.actor_opt)
        params = optax.apply_updates(state.actor, updates)
        state = state.replace(actor=params, actor_opt=actor_opt, step=state.step + 1)
        return state, jax.tree.map(jnp.mean, info)

    def policy_act(state, carry, observation, previous_reward, key, deterministic):
        del previous_reward, key, deterministic  # the policy is deterministic
        return act(actor, state.actor, state.normalizer(observation)), carry

    return Learner(prepare, init, sample, update, policy=Policy(policy_act))
