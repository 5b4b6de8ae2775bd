"""TD3+BC (Fujimoto and Gu 2021), as CORL writes it."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.data.replay import Buffer, Replay, draw, make_buffer
from tgcvg_jax.networks.mlp import MLP, EnsembleQ
from tgcvg_jax.types import Array, Dataset, Learner, Policy, PRNGKey, PyTree, Task, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """TD3+BC. Defaults: the paper's and CORL's, which TGCVG uses unchanged."""

    replay: Replay = Replay()
    num_steps: int = 1_000_000  # gradient steps of the critics
    batch_size: int = 256
    hidden_dims: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4  # actor and critics
    discount: float = 0.99  # gamma
    tau: float = 0.005
    alpha: float = 2.5  # weight of Q against behaviour cloning
    policy_noise: float = 0.2  # standard deviation of target smoothing
    noise_clip: float = 0.5
    policy_freq: int = 2  # critic steps for each actor step


PRESETS = {"paper": {}, "quick": {"num_steps": 10_000}}


def for_task(task: Task, hyperparameters: str = "tgcvg") -> Config:
    """CORL's and TGCVG's are the defaults; GTA's batches are larger (its command lines).

    CORL's files for AntMaze shift rewards by -1.
    """
    if hyperparameters == "corl" and task.domain == "antmaze":
        return Config(replay=Replay(reward_shift=-1.0))
    return Config(batch_size=1024) if hyperparameters == "gta" else Config()


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      actor: parameters.
      critic: parameters of both critics, stacked on axis 0.
      target_actor: like actor.
      target_critic: like critic.
      actor_opt: Adam's state.
      critic_opt: Adam's state.
      normalizer: of observations.
      key: PRNG key of the run; never advanced.
      step: critic steps done.
    """

    actor: PyTree
    critic: PyTree
    target_actor: PyTree
    target_critic: PyTree
    actor_opt: PyTree
    critic_opt: PyTree
    normalizer: Normalizer
    key: PRNGKey
    step: Array


def make_networks(task: Task, config: Config) -> tuple[MLP, EnsembleQ]:
    """Actor (before tanh) and twin critics."""
    return MLP((*config.hidden_dims, task.action_dim)), EnsembleQ(config.hidden_dims)


def act(actor: MLP, params: PyTree, observation: Array) -> Array:
    """Actions in (-1, 1)."""
    return jnp.tanh(actor.apply(params, observation))


def critic_loss(
    critic_params: PyTree, state: State, batch: Transition, noise: Array, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """Sum of both critics' mean squared errors against the smoothed target (TD3).

    Args:
      critic_params: what to differentiate.
      state: for the targets.
      batch: fields [B, ...], observations normalised.
      noise: [B, A], standard normal.
      task: the task.
      config: the config.
    """
    actor, critic = make_networks(task, config)
    clipped = jnp.clip(config.policy_noise * noise, -config.noise_clip, config.noise_clip)
    next_action = act(actor, state.target_actor, batch.next_observation) + clipped
    next_action = jnp.clip(next_action, -1.0, 1.0)
    next_q = jnp.min(critic.apply(state.target_critic, batch.next_observation, next_action), axis=0)
    target = batch.reward + config.discount * batch.discount * next_q
    q = critic.apply(critic_params, batch.observation, batch.action)  # [2, B]
    loss = jnp.sum(jnp.mean(jnp.square(q - target), axis=1))
    return loss, {"critic_loss": loss, "q": q, "td_target": target}


def actor_loss(
    actor_params: PyTree, critic_params: PyTree, batch: Transition, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """-lambda Q1(s, pi(s)) + (pi(s) - a)^2 with lambda = alpha / mean |Q1| (equations 4 and 5)."""
    actor, critic = make_networks(task, config)
    action = act(actor, actor_params, batch.observation)
    q = critic.apply(critic_params, batch.observation, action)[0]
    weight = config.alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    bc_loss = jnp.mean(jnp.square(action - batch.action))
    loss = -weight * jnp.mean(q) + bc_loss
    return loss, {"actor_loss": loss, "bc_loss": bc_loss, "lambda": weight}


def critic_step(
    state: State, batch: Transition, noise: Array, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One Adam step of the critics; no target moves."""
    grad = jax.grad(critic_loss, has_aux=True)
    grads, info = grad(state.critic, state, batch, noise, task, config)
    updates, critic_opt = _adam(config).update(grads, state.critic_opt)
    critic = optax.apply_updates(state.critic, updates)
    return state.replace(critic=critic, critic_opt=critic_opt, step=state.step + 1), info


def actor_step(
    state: State, batch: Transition, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One Adam step of the actor, against the critics as they are now; then all targets move."""
    grad = jax.grad(actor_loss, has_aux=True)
    grads, info = grad(state.actor, state.critic, batch, task, config)
    updates, actor_opt = _adam(config).update(grads, state.actor_opt)
    actor = optax.apply_updates(state.actor, updates)
    state = state.replace(
        actor=actor,
        actor_opt=actor_opt,
        target_actor=optax.incremental_update(actor, state.target_actor, config.tau),
        target_critic=optax.incremental_update(state.critic, state.target_critic, config.tau),
    )
    return state, info


def _adam(config: Config) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)


def make(task: Task, config: Config) -> Learner:
    """The learner. One update is `policy_freq` critic steps and one actor step, so that no step
    needs a condition, which under vmap would pay for both branches.
    """
    actor, critic = make_networks(task, config)

    def prepare(dataset: Dataset) -> Buffer:
        return make_buffer(dataset, config.replay)

    def init(key: PRNGKey, data: Buffer) -> State:
        key, actor_key, critic_key = jax.random.split(key, 3)
        observation = jnp.zeros((1, task.observation_dim))
        actor_params = actor.init(actor_key, observation)
        critic_params = critic.init(critic_key, observation, jnp.zeros((1, task.action_dim)))
        return State(
            actor=actor_params,
            critic=critic_params,
            target_actor=actor_params,
            target_critic=critic_params,
            actor_opt=_adam(config).init(actor_params),
            critic_opt=_adam(config).init(critic_params),
            normalizer=data.normalizer,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Buffer) -> Transition:
        shape = (config.policy_freq, config.batch_size)
        return draw(key, data, config.replay, task, shape)[0]

    def update(state: State, batch: Transition) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        noise = jax.random.normal(key, batch.action.shape, batch.action.dtype)
        for i in range(config.policy_freq):
            step_batch = jax.tree.map(lambda x, i=i: x[i], batch)
            state, info = critic_step(state, step_batch, noise[i], task=task, config=config)
        state, actor_info = actor_step(state, step_batch, task=task, config=config)
        return state, jax.tree.map(jnp.mean, info | actor_info)

    def policy_act(state, carry, observation, previous_reward, key, deterministic):
        del previous_reward, key, deterministic  # the policy is deterministic
        return act(actor, state.actor, state.normalizer(observation)), carry

    return Learner(prepare, init, sample, update, config.policy_freq, Policy(policy_act))
