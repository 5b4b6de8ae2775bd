"""Implicit Q-learning (IQL, Kostrikov et al. 2021), as CORL writes it."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.config import replace_nested
from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.data.replay import Buffer, Replay, draw, make_buffer
from tgcvg_jax.networks.mlp import MLP, EnsembleQ
from tgcvg_jax.types import Array, Dataset, Learner, Policy, PRNGKey, PyTree, Task, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """IQL. Defaults: CORL's.

    The paper's own code has the same numbers for locomotion, but raw states, rewards scaled by
    returns (`replay.normalize_return`), orthogonal weights, and -5 as lower bound of log_std; and
    another order, see `apply_update`.
    """

    replay: Replay = Replay()
    num_steps: int = 1_000_000  # gradient steps of each network
    batch_size: int = 256  # TGCVG and GTA: 1024
    hidden_dims: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4  # V, Q and, at the start, actor
    cosine: bool = True  # the actor's learning rate falls to 0 over num_steps
    discount: float = 0.99  # gamma
    tau: float = 0.005  # of the target Q (the paper's alpha)
    expectile: float = 0.7  # the paper's tau; 0.5 is the mean, 1 the maximum of Q
    beta: float = 3.0  # inverse temperature; 0 is behaviour cloning
    max_weight: float = 100.0  # bound of exp(beta * advantage)
    deterministic: bool = False  # regress to a tanh mean, in place of a Gaussian's likelihood
    tanh_mean: bool = True  # of the Gaussian; False in TGCVG's and GTA's code, an older CORL
    min_log_std: float = -20.0  # TGCVG and GTA: -5
    max_log_std: float = 2.0


PRESETS = {"paper": {}, "quick": {"num_steps": 10_000}}

# AntMaze in the IQL paper, in CORL, and in TGCVG's paper (not its code).
ANTMAZE: dict[str, Any] = {"expectile": 0.9, "beta": 10.0, "replay": {"reward_shift": -1.0}}
# CORL's files per dataset, and GTA's scripts after them.
_HOPPER = {"tau": 0.001, "deterministic": True, "replay": {"normalize_return": True}}
BY_FAMILY: dict[str, dict[str, Any]] = {
    "hopper-medium": _HOPPER,
    "hopper-medium-replay": _HOPPER,
    "hopper-medium-expert": {"expectile": 0.5, "beta": 6.0},
}


def for_task(task: Task, hyperparameters: str = "tgcvg") -> Config:
    """CORL's files; GTA's scripts, the same overrides on the older Gaussian; TGCVG's code, that
    Gaussian without overrides, but in AntMaze the settings of its paper.
    """
    config = Config()
    if hyperparameters != "corl":
        config = Config(batch_size=1024, tanh_mean=False, min_log_std=-5.0)
    if task.domain == "antmaze":
        return replace_nested(config, ANTMAZE)
    if hyperparameters == "tgcvg":
        return config
    return replace_nested(config, BY_FAMILY.get(task.family, {}))


class Actor(nn.Module):
    """Mean of the action, and a log standard deviation that does not depend on the state.

    Attributes:
      action_dim: A.
      config: the config.
    """

    action_dim: int
    config: Config

    @nn.compact
    def __call__(self, observation: Array) -> tuple[Array, Array | None]:
        """[..., S] -> [..., A], and [A] or, of a deterministic policy, None."""
        config = self.config
        mean = MLP((*config.hidden_dims, self.action_dim), name="mlp")(observation)
        if config.deterministic:
            return jnp.tanh(mean), None
        log_std = self.param("log_std", nn.initializers.zeros_init(), (self.action_dim,))
        log_std = jnp.clip(log_std, config.min_log_std, config.max_log_std)
        return jnp.tanh(mean) if config.tanh_mean else mean, log_std


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      actor: parameters.
      critic: parameters of both Q-functions, stacked on axis 0.
      target_critic: like critic.
      value: parameters of V.
      actor_opt: Adam's state.
      critic_opt: Adam's state.
      value_opt: Adam's state.
      normalizer: of observations.
      key: PRNG key of the run; no noise is drawn from it, an update has none.
      step: gradient steps done.
    """

    actor: PyTree
    critic: PyTree
    target_critic: PyTree
    value: PyTree
    actor_opt: PyTree
    critic_opt: PyTree
    value_opt: PyTree
    normalizer: Normalizer
    key: PRNGKey
    step: Array


def make_networks(task: Task, config: Config) -> tuple[Actor, EnsembleQ, MLP]:
    """Actor, twin Q, and V (whose output has a last axis of 1)."""
    value = MLP((*config.hidden_dims, 1))
    return Actor(task.action_dim, config), EnsembleQ(config.hidden_dims), value


def expectile_loss(error: Array, expectile: float) -> Array:
    """Mean of |expectile - 1{error < 0}| error^2 (section 4.1)."""
    return jnp.mean(jnp.where(error < 0.0, 1.0 - expectile, expectile) * jnp.square(error))


def value_loss(
    value_params: PyTree, target_critic: PyTree, batch: Transition, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """V towards an expectile of the target Q over the data's actions (equation 5).

    The info holds the advantage [B], min Q - V, which weighs the actor's loss.
    """
    _, critic, value = make_networks(task, config)
    q = jnp.min(critic.apply(target_critic, batch.observation, batch.action), axis=0)
    v = value.apply(value_params, batch.observation)[..., 0]
    advantage = q - v
    loss = expectile_loss(advantage, config.expectile)
    return loss, {"value_loss": loss, "v": v, "advantage": advantage}


def critic_loss(
    critic_params: PyTree, value_params: PyTree, batch: Transition, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """Mean over both Q-functions of their squared errors against r + gamma V(s') (equation 6)."""
    _, critic, value = make_networks(task, config)
    next_v = value.apply(value_params, batch.next_observation)[..., 0]
    target = batch.reward + config.discount * batch.discount * next_v
    q = critic.apply(critic_params, batch.observation, batch.action)  # [2, B]
    loss = jnp.mean(jnp.square(q - target))
    return loss, {"critic_loss": loss, "q": q, "next_v": next_v}


def actor_loss(
    actor_params: PyTree, advantage: Array, batch: Transition, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """Behaviour cloning weighted by exp(beta * advantage), bounded (equation 7).

    Args:
      actor_params: what to differentiate.
      advantage: [B].
      batch: fields [B, ...], observations normalised.
      task: the task.
      config: the config.
    """
    actor, _, _ = make_networks(task, config)
    weight = jnp.minimum(jnp.exp(config.beta * advantage), config.max_weight)
    mean, log_std = actor.apply(actor_params, batch.observation)
    if log_std is None:
        bc_loss = jnp.sum(jnp.square(mean - batch.action), axis=-1)
    else:  # no correction for a squashing: the tanh, where there is one, is the mean's
        log_density = jax.scipy.stats.norm.logpdf(batch.action, mean, jnp.exp(log_std))
        bc_loss = -jnp.sum(log_density, axis=-1)
    loss = jnp.mean(weight * bc_loss)
    return loss, {"actor_loss": loss, "weight": weight, "bc_loss": bc_loss}


def apply_update(
    state: State, batch: Transition, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One Adam step of V, Q and the actor; then the target of Q moves.

    CORL steps V first, but both Q's target and the actor's advantage are of V as it was before, so
    no loss sees what another one's step did. In the paper's own code V steps first, too, and there
    both are of the new V.
    """
    grad = lambda loss, *arguments: jax.grad(loss, has_aux=True)(*arguments, batch, task, config)  # noqa: E731
    value_grads, value_info = grad(value_loss, state.value, state.target_critic)
    critic_grads, critic_info = grad(critic_loss, state.critic, state.value)
    actor_grads, actor_info = grad(actor_loss, state.actor, value_info["advantage"])

    optimizer = optax.adam(config.learning_rate)
    value_updates, value_opt = optimizer.update(value_grads, state.value_opt)
    critic_updates, critic_opt = optimizer.update(critic_grads, state.critic_opt)
    actor_updates, actor_opt = actor_optimizer(config).update(actor_grads, state.actor_opt)
    critic = optax.apply_updates(state.critic, critic_updates)
    state = state.replace(
        actor=optax.apply_updates(state.actor, actor_updates),
        critic=critic,
        target_critic=optax.incremental_update(critic, state.target_critic, config.tau),
        value=optax.apply_updates(state.value, value_updates),
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        value_opt=value_opt,
        step=state.step + 1,
    )
    return state, value_info | critic_info | actor_info


def actor_learning_rate(step: Array, config: Config) -> Array:
    """Learning rate after `step` updates."""
    step = jnp.asarray(step, float)  # of the counter's own type optax would make a float32
    decay = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    return decay(step) if config.cosine else jnp.full_like(step, config.learning_rate)


def actor_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with the actor's learning rate; its state counts the steps."""
    return optax.adam(lambda count: actor_learning_rate(count, config))


def make(task: Task, config: Config) -> Learner:
    """The learner. One update is one gradient step of each network."""
    actor, critic, value = make_networks(task, config)

    def prepare(dataset: Dataset) -> Buffer:
        return make_buffer(dataset, config.replay)

    def init(key: PRNGKey, data: Buffer) -> State:
        key, actor_key, critic_key, value_key = jax.random.split(key, 4)
        observation = jnp.zeros((1, task.observation_dim))
        actor_params = actor.init(actor_key, observation)
        critic_params = critic.init(critic_key, observation, jnp.zeros((1, task.action_dim)))
        value_params = value.init(value_key, observation)
        optimizer = optax.adam(config.learning_rate)
        return State(
            actor=actor_params,
            critic=critic_params,
            target_critic=critic_params,
            value=value_params,
            actor_opt=actor_optimizer(config).init(actor_params),
            critic_opt=optimizer.init(critic_params),
            value_opt=optimizer.init(value_params),
            normalizer=data.normalizer,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Buffer) -> Transition:
        return draw(key, data, config.replay, task, (config.batch_size,))[0]

    def update(state: State, batch: Transition) -> tuple[State, dict[str, Array]]:
        state, info = apply_update(state, batch, task=task, config=config)
        return state, jax.tree.map(jnp.mean, info)

    def policy_act(state, carry, observation, previous_reward, key, deterministic):
        del previous_reward
        action, log_std = actor.apply(state.actor, state.normalizer(observation))
        if log_std is not None and not deterministic:
            noise = jax.random.normal(key, action.shape, action.dtype)
            action = action + jnp.exp(log_std) * noise
        return jnp.clip(action, -1.0, 1.0), carry

    schedule = config.num_steps if config.cosine else None
    return Learner(prepare, init, sample, update, policy=Policy(policy_act), num_steps=schedule)
