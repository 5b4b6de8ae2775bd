"""SAC (Haarnoja et al. 2018), the online learner that D4RL's locomotion data were collected with.

It is no offline learner and so not in `LEARNERS`: `collection/online.py` runs its chunk of updates
between steps of the simulator. Its data is a ring of fixed capacity with a size, so that one
compiled program serves while it fills.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data import windows
from tgcvg_jax.networks.mlp import MLP, EnsembleQ
from tgcvg_jax.ops.distributions import tanh_normal_sample
from tgcvg_jax.types import Array, Dataset, Learner, Policy, PRNGKey, PyTree, Task, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """SAC. Defaults: rlkit's, the code that collected D4RL, but for what is said beside them."""

    num_steps: int = 3_000_000  # environment steps, and gradient steps after the first start_steps
    start_steps: int = 5_000  # uniformly random actions before training (rlkit: 1,000 of pi's own)
    block_steps: int = 50  # environment steps, then as many gradient steps (rlkit: 1,000)
    capacity: int = 1_000_000  # of the replay buffer
    batch_size: int = 256
    hidden_dims: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4  # actor, critics and temperature
    discount: float = 0.99  # gamma
    tau: float = 0.005
    min_log_std: float = -20.0
    max_log_std: float = 2.0
    initial_temperature: float = 1.0  # alpha; its target entropy is -A


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      params: {actor, critic, log_alpha}; both critics' parameters are stacked on axis 0.
      target_critic: like params['critic'].
      opt_state: Adam's, of all of them.
      key: PRNG key of the run; never advanced.
      step: gradient steps done.
    """

    params: PyTree
    target_critic: PyTree
    opt_state: PyTree
    key: PRNGKey
    step: Array


@flax.struct.dataclass
class Ring:
    """The replay buffer.

    Attributes:
      rows: [capacity, 2 S + A + 2], packed transitions.
      size: int32, rows that are filled.
    """

    rows: Array
    size: Array


def empty_ring(task: Task, capacity: int) -> Ring:
    """A replay buffer without rows."""
    return Ring(jnp.zeros((capacity, windows.width(task))), jnp.zeros((), jnp.int32))


def insert(ring: Ring, rows: Array, position: Array) -> Ring:
    """Writes rows from `position` on, which must not run beyond the end of the buffer."""
    filled = jax.lax.dynamic_update_slice_in_dim(ring.rows, rows, position, axis=0)
    return Ring(filled, jnp.maximum(ring.size, position + rows.shape[0]))


def make_networks(task: Task, config: Config) -> tuple[MLP, EnsembleQ]:
    """Actor (mean and log standard deviation before tanh) and twin critics."""
    return MLP((*config.hidden_dims, 2 * task.action_dim)), EnsembleQ(config.hidden_dims)


def distribution(
    actor: MLP, params: PyTree, observation: Array, config: Config
) -> tuple[Array, Array]:
    """Mean and log standard deviation [..., A] before tanh."""
    mean, log_std = jnp.split(actor.apply(params, observation), 2, axis=-1)
    return mean, jnp.clip(log_std, config.min_log_std, config.max_log_std)


def loss(
    params: PyTree,
    target_critic: PyTree,
    batch: Transition,
    noise: Array,
    task: Task,
    config: Config,
) -> tuple[Array, dict[str, Array]]:
    """Sum of the critics', the actor's and the temperature's losses, each for its own part only.

    All use the parameters before the update, so one backward pass serves all three. (rlkit steps
    the temperature first.) Equations 5, 9 and 18 of arXiv 1812.05905.

    Args:
      params: as in `State`.
      target_critic: as in `State`.
      batch: fields [B, ...].
      noise: [2, B, A] standard normal: for actions in the states and in the next states.
      task: the task.
      config: the config.
    """
    actor, critic = make_networks(task, config)
    stop = jax.lax.stop_gradient
    alpha = jnp.exp(stop(params["log_alpha"]))

    following = distribution(actor, stop(params["actor"]), batch.next_observation, config)
    next_action, next_log_prob = tanh_normal_sample(*following, noise[1])
    next_q = jnp.min(critic.apply(target_critic, batch.next_observation, next_action), axis=0)
    soft_value = next_q - alpha * next_log_prob
    target = batch.reward + config.discount * batch.discount * soft_value
    q = critic.apply(params["critic"], batch.observation, batch.action)  # [2, B]
    critic_loss = jnp.sum(jnp.mean(jnp.square(q - target), axis=1))

    current = distribution(actor, params["actor"], batch.observation, config)
    action, log_prob = tanh_normal_sample(*current, noise[0])
    q_policy = jnp.min(critic.apply(stop(params["critic"]), batch.observation, action), axis=0)
    actor_loss = jnp.mean(alpha * log_prob - q_policy)

    surplus = stop(jnp.mean(log_prob)) - task.action_dim  # log density + target entropy
    alpha_loss = -params["log_alpha"] * surplus
    info = {
        "critic_loss": critic_loss,
        "actor_loss": actor_loss,
        "alpha": alpha,
        "entropy": -jnp.mean(log_prob),
        "q": q,
    }
    return critic_loss + actor_loss + alpha_loss, info


def apply_update(
    state: State, batch: Transition, noise: Array, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One gradient step on given noise, then the targets."""
    grads, info = jax.grad(loss, has_aux=True)(
        state.params, state.target_critic, batch, noise, task, config
    )
    updates, opt_state = optax.adam(config.learning_rate).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    target_critic = optax.incremental_update(params["critic"], state.target_critic, config.tau)
    state = state.replace(
        params=params, opt_state=opt_state, target_critic=target_critic, step=state.step + 1
    )
    return state, info


def make(task: Task, config: Config) -> Learner:
    """The learner."""
    actor, critic = make_networks(task, config)

    def prepare(dataset: Dataset) -> Ring:
        return Ring(windows.pack(dataset.transition), jnp.int32(dataset.size))

    def init(key: PRNGKey, data: Ring) -> State:
        del data
        key, actor_key, critic_key = jax.random.split(key, 3)
        observation = jnp.zeros((1, task.observation_dim))
        params = {
            "actor": actor.init(actor_key, observation),
            "critic": critic.init(critic_key, observation, jnp.zeros((1, task.action_dim))),
            "log_alpha": jnp.log(jnp.full((), config.initial_temperature, observation.dtype)),
        }
        return State(
            params=params,
            target_critic=params["critic"],
            opt_state=optax.adam(config.learning_rate).init(params),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Ring) -> Transition:
        index = jax.random.randint(key, (config.batch_size,), 0, data.size)
        return windows.unpack(data.rows[index], task.observation_dim, task.action_dim)

    def update(state: State, batch: Transition) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        noise = jax.random.normal(key, (2, *batch.action.shape), batch.action.dtype)
        state, info = apply_update(state, batch, noise, task=task, config=config)
        return state, jax.tree.map(jnp.mean, info)

    def policy_act(state, carry, observation, previous_reward, key, deterministic):
        del previous_reward
        mean, log_std = distribution(actor, state.params["actor"], observation, config)
        noise = 0.0 if deterministic else jax.random.normal(key, mean.shape)
        return tanh_normal_sample(mean, log_std, noise)[0], carry

    return Learner(prepare, init, sample, update, policy=Policy(policy_act))
