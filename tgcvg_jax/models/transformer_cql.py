"""Transformer-CQL, the policy that TGCVG rolls out (paper section 4.1, equations 1-4).

A state-only causal Transformer actor and twin per-step critics, trained with conservative
Q-learning on windows of L states; the critics' targets are n-step returns to the window's end.

Where paper and released code differ, the config's defaults follow the code; `as_paper` holds the
paper's values. On by default, and in neither:
  - the released code repeats the window five times through the actor to draw five actions for the
    conservative term; `shared_forward` draws them from one forward pass, the same distribution but
    for the dropout mask, at half the cost;
  - batches are drawn with replacement (released: shuffled epochs);
  - `mask_padding`, which concerns acting online and nothing that is generated.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data import windows
from tgcvg_jax.data.normalize import Normalizer, fit_normalizer
from tgcvg_jax.networks.mlp import EnsembleQ, mish
from tgcvg_jax.networks.transformer import TransformerPolicy
from tgcvg_jax.ops import losses, returns
from tgcvg_jax.ops.distributions import tanh_normal_log_prob, tanh_normal_sample
from tgcvg_jax.types import Array, Dataset, Learner, Policy, PRNGKey, PyTree, Task, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Transformer-CQL. Defaults: released code; symbols: paper."""

    num_steps: int = 200_000  # gradient steps; more of them continue a finished run
    context_length: int = 20  # L, states that the actor sees
    cql_weight: float = 5.0  # lambda
    batch_size: int = 256  # windows
    hidden_dim: int = 256  # Transformer width
    num_blocks: int = 3
    dropout: float = 0.1  # in every forward pass of training; off when acting
    critic_hidden_dims: tuple[int, ...] = (256, 256, 256)
    learning_rate: float = 3e-4  # actor, critics and temperature; paper: 1e-4
    actor_weight_decay: float = 1e-4  # L2 inside Adam, as released; paper: not mentioned
    discount: float = 0.99  # gamma
    tau: float = 0.005  # 1 - rho
    num_action_samples: int = 5  # each from uniform, pi(.|s) and pi(.|s'): 15 in all
    td_reduction: Literal["mean", "half_sum"] = "mean"  # half_sum: equation 2 to the letter
    initial_temperature: float = 1.0  # alpha
    reward_shift: float = 0.0  # rewards become (r + shift) * scale; released for AntMaze: -0.5
    reward_scale: float = 1.0  # released for AntMaze: 4; paper: neither mentioned
    terminal_penalty: float = 0.0  # subtracted from rewards of terminals (GTA: 100)
    bc_steps: int = 0  # first steps train the actor by maximum likelihood alone (not released)
    shared_forward: bool = True  # False: one forward pass for each sampled action, as released
    mask_padding: bool = True  # acting with fewer than L states; False: unmasked zeros, as released


def as_paper(config: Config) -> Config:
    """The paper's values where they differ from the released code."""
    return dataclasses.replace(
        config,
        learning_rate=1e-4,
        actor_weight_decay=0.0,
        td_reduction="half_sum",
        reward_shift=0.0,
        reward_scale=1.0,
    )


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      params: {actor, critic, log_alpha}; both critics' parameters are stacked on axis 0.
      target_critic: like params['critic'].
      opt_state: one optimiser state for each entry of params.
      normalizer: of observations.
      key: PRNG key of the run; never advanced.
      step: gradient steps done.
    """

    params: PyTree
    target_critic: PyTree
    opt_state: PyTree
    normalizer: Normalizer
    key: PRNGKey
    step: Array


@flax.struct.dataclass
class Data:
    """What `sample` reads: packed rows (observations normalised) and where windows start."""

    rows: Array  # [M, 2 S + A + 2]
    order: Array
    num_starts: Array
    normalizer: Normalizer


@flax.struct.dataclass
class Noise:
    """All random draws of one update, n = num_action_samples.

    Attributes:
      policy: [B, L, A] normal, for the actor and temperature losses.
      target: [B, A] normal, for the action that the target bootstraps with.
      random: [n, B, L, A] uniform in (-1, 1).
      current: [n, B, L, A] normal, actions given the window.
      next: [n, B, L, A] normal, actions given the window one step later.
      dropout: PRNG keys [4], of the passes over current and next windows, and over their repeats.
    """

    policy: Array
    target: Array
    random: Array
    current: Array
    next: Array
    dropout: Array


def make_actor(task: Task, config: Config) -> TransformerPolicy:
    """The actor's module."""
    return TransformerPolicy(
        action_dim=task.action_dim,
        hidden_dim=config.hidden_dim,
        num_blocks=config.num_blocks,
        dropout=config.dropout,
    )


def make_critic(config: Config) -> EnsembleQ:
    """The twin critics' module."""
    return EnsembleQ(config.critic_hidden_dims, activation=mish, init_scheme="orthogonal")


def make_optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """One optimiser for each part.

    The released cosine schedule is stepped once in 1,000 updates and ends at a factor of 0.99999:
    constant, hence left out. Adam's weight decay is L2 in the gradient, not AdamW's.
    """
    adam = optax.adam(config.learning_rate)
    decay = optax.add_decayed_weights(config.actor_weight_decay)
    return {"actor": optax.chain(decay, adam), "critic": adam, "log_alpha": adam}


def draw_noise(key: PRNGKey, batch: Transition, config: Config) -> Noise:
    """All random draws of one update."""
    batch_size, _, action_dim = batch.action.shape
    dtype = batch.action.dtype
    shape, repeated = batch.action.shape, (config.num_action_samples, *batch.action.shape)
    keys = jax.random.split(key, 6)
    return Noise(
        policy=jax.random.normal(keys[0], shape, dtype),
        target=jax.random.normal(keys[1], (batch_size, action_dim), dtype),
        random=jax.random.uniform(keys[2], repeated, dtype, -1.0, 1.0),
        current=jax.random.normal(keys[3], repeated, dtype),
        next=jax.random.normal(keys[4], repeated, dtype),
        dropout=jax.random.split(keys[5], 4),
    )


def loss(
    params: PyTree,
    target_critic: PyTree,
    batch: Transition,
    noise: Noise,
    step: Array,
    *,
    task: Task,
    config: Config,
) -> tuple[Array, dict[str, Any]]:
    """Sum of the temperature, actor and critic losses, each with gradient to its own part only.

    All use the parameters before the update, as released, so one backward pass serves all three.

    Args:
      params: as in `State`.
      target_critic: as in `State`.
      batch: fields [B, L, ...], observations normalised.
      noise: the draws.
      step: gradient steps done, for the behaviour-cloning warm-up.
      task: the task.
      config: the config.

    Returns:
      The scalar loss, and its parts by name.
    """
    actor, critic = make_actor(task, config), make_critic(config)
    n = config.num_action_samples
    stop = jax.lax.stop_gradient

    def distribution(observation, key, repeats=None):
        if repeats is not None:
            observation = jnp.broadcast_to(observation, (repeats, *observation.shape))
        return actor.apply(params["actor"], observation, deterministic=False, rngs={"dropout": key})

    current = distribution(batch.observation, noise.dropout[0])  # mean, log_std: [B, L, A]
    following = stop(distribution(batch.next_observation, noise.dropout[1]))
    if config.shared_forward:
        many_current, many_following = current, following
    else:
        many_current = distribution(batch.observation, noise.dropout[2], n)  # [n, B, L, A]
        many_following = distribution(batch.next_observation, noise.dropout[3], n)

    # Temperature and actor (equations 3 and 4).
    action, log_prob = tanh_normal_sample(*current, noise.policy)
    alpha = jnp.exp(stop(params["log_alpha"]))
    warm_up = step < config.bc_steps
    alpha_loss = -jnp.mean(params["log_alpha"] * stop(log_prob - task.action_dim))
    alpha_loss = jnp.where(warm_up, 0.0, alpha_loss)
    q_policy = jnp.min(critic.apply(stop(params["critic"]), batch.observation, action), axis=0)
    actor_loss = jnp.mean(alpha * log_prob - q_policy)
    if config.bc_steps:
        cloning = -jnp.mean(tanh_normal_log_prob(*current, batch.action))
        actor_loss = jnp.where(warm_up, cloning, actor_loss)

    # n-step target: the action at the last position of the window one step later.
    last = tuple(x[:, -1] for x in following)
    target_action, _ = tanh_normal_sample(*last, noise.target)
    target_q = critic.apply(target_critic, batch.next_observation[:, -1], target_action)
    bootstrap = batch.discount[:, -1] * jnp.min(target_q, axis=0)
    target = stop(returns.n_step_to_end(batch.reward, bootstrap, config.discount))  # [B, L]

    # Critics (equation 2), both at once: q has a leading axis of 2.
    q_data = critic.apply(params["critic"], batch.observation, batch.action)
    squared = jnp.square(q_data - target)
    td_loss = jnp.mean(squared, axis=(1, 2))
    if config.td_reduction == "half_sum":
        td_loss = 0.5 * jnp.mean(jnp.sum(squared, axis=2), axis=1)
    current_action, current_log_prob = tanh_normal_sample(*many_current, noise.current)
    next_action, next_log_prob = tanh_normal_sample(*many_following, noise.next)
    proposals = stop(jnp.concatenate([noise.random, next_action, current_action]))  # [3n, B, L, A]
    random_log_prob = jnp.full_like(next_log_prob, task.action_dim * jnp.log(0.5))
    log_density = stop(jnp.concatenate([random_log_prob, next_log_prob, current_log_prob]))
    observation = jnp.broadcast_to(
        batch.observation, (*proposals.shape[:-1], batch.observation.shape[-1])
    )
    q_proposals = critic.apply(params["critic"], observation, proposals) - log_density
    gap = jax.vmap(losses.conservative_gap)(jnp.moveaxis(q_proposals, 1, -1), q_data)  # [2]
    critic_loss = jnp.sum(td_loss + config.cql_weight * gap)

    info = {
        "critic_loss": critic_loss,
        "td_loss": jnp.mean(td_loss),
        "cql_gap": jnp.mean(gap),
        "actor_loss": actor_loss,
        "alpha_loss": alpha_loss,
        "alpha": alpha,
        "entropy": -jnp.mean(log_prob),
        "q_data": jnp.mean(q_data),
        "q_policy": jnp.mean(q_policy),
        "td_target": jnp.mean(target),
    }
    return alpha_loss + actor_loss + critic_loss, info


def apply_update(
    state: State, batch: Transition, noise: Noise, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One gradient step on given noise: temperature, actor, critics, then the targets."""
    grad = jax.grad(loss, has_aux=True)
    grads, info = grad(
        state.params, state.target_critic, batch, noise, state.step, task=task, config=config
    )
    params, opt_state = {}, {}
    for name, optimizer in make_optimizers(config).items():
        updates, opt_state[name] = optimizer.update(
            grads[name], state.opt_state[name], state.params[name]
        )
        params[name] = optax.apply_updates(state.params[name], updates)
    target_critic = optax.incremental_update(params["critic"], state.target_critic, config.tau)
    state = state.replace(
        params=params, opt_state=opt_state, target_critic=target_critic, step=state.step + 1
    )
    return state, info


def make(task: Task, config: Config) -> Learner:
    """The learner."""
    actor, critic = make_actor(task, config), make_critic(config)
    length = config.context_length

    def prepare(dataset: Dataset) -> Data:
        windows.require_windows(dataset, length, "the policy's context length L")
        transition = dataset.transition
        normalizer = fit_normalizer(transition.observation, eps=1e-5, ddof=1)
        terminal = 1.0 - transition.discount
        reward = (transition.reward + config.reward_shift) * config.reward_scale
        rows = windows.pack(
            transition._replace(
                observation=normalizer(transition.observation),
                next_observation=normalizer(transition.next_observation),
                reward=reward - config.terminal_penalty * terminal,
            )
        )
        return Data(rows, dataset.order, dataset.num_starts, normalizer)

    def init(key: PRNGKey, data: Data) -> State:
        key, actor_key, critic_key = jax.random.split(key, 3)
        observation = jnp.zeros((1, length, task.observation_dim))
        action = jnp.zeros((1, length, task.action_dim))
        params = {
            "actor": actor.init(actor_key, observation, deterministic=True),
            "critic": critic.init(critic_key, observation, action),
            "log_alpha": jnp.log(jnp.asarray(config.initial_temperature, jnp.float32)),
        }
        optimizers = make_optimizers(config)
        return State(
            params=params,
            target_critic=params["critic"],
            opt_state={name: optimizers[name].init(params[name]) for name in params},
            normalizer=data.normalizer,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Data) -> Transition:
        starts = windows.sample_starts(key, data.order, data.num_starts, length, config.batch_size)
        rows = windows.take_windows(data.rows, starts, length)
        return windows.unpack(rows, task.observation_dim, task.action_dim)

    def update(state: State, batch: Transition) -> tuple[State, dict[str, Array]]:
        noise = draw_noise(jax.random.fold_in(state.key, state.step), batch, config)
        return apply_update(state, batch, noise, task=task, config=config)

    return Learner(prepare, init, sample, update, policy=make_policy(task, config))


def sample_action(
    actor: TransformerPolicy,
    params: PyTree,
    window: Array,
    noise: Array | float,
    mask: Array | None = None,
) -> Array:
    """Action [B, A] at the last position of windows [B, L, S] of normalised states.

    Args:
      actor: the module.
      params: its parameters.
      window: the last L states.
      noise: [B, A] standard normal, or 0 for the mean action.
      mask: [L] bool, False where the window is padding; None if it is full.
    """
    mean, log_std = actor.apply(params, window, mask, deterministic=True, last_only=True)
    return tanh_normal_sample(mean[:, 0], log_std[:, 0], noise)[0]


def make_policy(task: Task, config: Config) -> Policy:
    """Acts online on the last L states.

    The released code pads short histories with zeros and lets the actor attend to them. Here the
    padding is masked (the actor was trained on all prefixes), unless `mask_padding` is off.
    """
    actor = make_actor(task, config)

    def init(state: State, batch_size: int, target_return: float | None = None) -> PyTree:
        del state, target_return
        window = jnp.zeros((batch_size, config.context_length, task.observation_dim))
        return window, jnp.zeros((), jnp.int32)

    def act(state, carry, observation, previous_reward, key, deterministic):
        del previous_reward
        window, count = carry
        new = state.normalizer(observation)[:, None]
        window = jnp.concatenate([window[:, 1:], new], axis=1)
        count = jnp.minimum(count + 1, config.context_length)
        mask = None
        if config.mask_padding:
            mask = jnp.arange(config.context_length) >= config.context_length - count
        shape = (observation.shape[0], task.action_dim)
        noise = 0.0 if deterministic else jax.random.normal(key, shape)
        action = sample_action(actor, state.params["actor"], window, noise, mask)
        return action, (window, count)

    return Policy(act, init)
