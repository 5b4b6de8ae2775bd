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

`architecture`, `cql_weight` and `target` are the factors in which the paper's plain CQL generator
differs all at once (its Table 3: an MLP, lambda 10, one-step targets); here each can be changed
alone. Critics, learning rates and batches of windows stay those of Transformer-CQL.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data import windows
from tgcvg_jax.data.dataset import episode_returns
from tgcvg_jax.data.normalize import Normalizer, fit_normalizer
from tgcvg_jax.networks import memory as memory_lib
from tgcvg_jax.networks.memory import Memory
from tgcvg_jax.networks.mlp import EnsembleQ, mish
from tgcvg_jax.networks.transformer import StatewisePolicy, TransformerPolicy
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
    architecture: Literal["transformer", "mlp"] = "transformer"  # mlp: plain CQL's, no history
    target: Literal["n_step", "one_step"] = "n_step"  # of the critics; one_step: plain CQL's
    return_to_go: bool = False  # the actor is told the return wanted, as in Decision Transformer
    return_scale: float = 0.001  # it is told that return times this
    num_candidates: int = 1  # sampled acting: the best by min Q of so many; unused in release: 50


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
class ConditionedState(State):
    """With `return_to_go`: one more field, which checkpoints of other states don't have.

    Attributes:
      best_return: of the data, what to act for unless told.
    """

    best_return: Array


@flax.struct.dataclass
class Data:
    """What `sample` reads: packed rows (observations normalised) and where windows start.

    With `return_to_go`, two more columns hold it, scaled, for the state and for the next one.
    """

    rows: Array  # [M, 2 S + A + 2], or 2 more
    order: Array
    num_starts: Array
    normalizer: Normalizer
    best_return: Array | None = None


class ConditionedWindow(NamedTuple):
    """A Transition [B, L, ...] with the returns-to-go [B, L], scaled, of both its states."""

    observation: Array
    action: Array
    reward: Array
    discount: Array
    next_observation: Array
    return_to_go: Array
    next_return_to_go: Array


Batch = Transition | ConditionedWindow


@flax.struct.dataclass
class Noise:
    """All random draws of one update, n = num_action_samples.

    Attributes:
      policy: [B, L, A] normal, for the actor and temperature losses.
      target: [B, A] normal, for the action that the target bootstraps with; [B, L, A] for those of
        one-step targets.
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


def make_actor(task: Task, config: Config) -> TransformerPolicy | StatewisePolicy:
    """The actor's module."""
    if config.architecture == "mlp":
        return StatewisePolicy(task.action_dim, config.hidden_dim)
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


def draw_noise(key: PRNGKey, batch: Batch, config: Config) -> Noise:
    """All random draws of one update."""
    batch_size, _, action_dim = batch.action.shape
    dtype = batch.action.dtype
    shape, repeated = batch.action.shape, (config.num_action_samples, *batch.action.shape)
    target_shape = shape if config.target == "one_step" else (batch_size, action_dim)
    keys = jax.random.split(key, 6)
    return Noise(
        policy=jax.random.normal(keys[0], shape, dtype),
        target=jax.random.normal(keys[1], target_shape, dtype),
        random=jax.random.uniform(keys[2], repeated, dtype, -1.0, 1.0),
        current=jax.random.normal(keys[3], repeated, dtype),
        next=jax.random.normal(keys[4], repeated, dtype),
        dropout=jax.random.split(keys[5], 4),
    )


def loss(
    params: PyTree,
    target_critic: PyTree,
    batch: Batch,
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

    window, next_window = (batch.observation, None), (batch.next_observation, None)
    if config.return_to_go:
        window = batch.observation, batch.return_to_go
        next_window = batch.next_observation, batch.next_return_to_go

    def distribution(window, key, repeats=None):
        if repeats is not None:
            window = jax.tree.map(lambda x: jnp.broadcast_to(x, (repeats, *x.shape)), window)
        observation, wanted = window
        return actor.apply(
            params["actor"], observation, None, wanted, deterministic=False, rngs={"dropout": key}
        )

    current = distribution(window, noise.dropout[0])  # mean, log_std: [B, L, A]
    following = stop(distribution(next_window, noise.dropout[1]))
    if config.shared_forward:
        many_current, many_following = current, following
    else:
        many_current = distribution(window, noise.dropout[2], n)  # [n, B, L, A]
        many_following = distribution(next_window, noise.dropout[3], n)

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

    # The target's actions are those of the window one step later.
    if config.target == "one_step":
        target_action, _ = tanh_normal_sample(*following, noise.target)
        target_q = critic.apply(target_critic, batch.next_observation, target_action)
        target = batch.reward + config.discount * batch.discount * jnp.min(target_q, axis=0)
    else:  # n-step: the action at that window's last position
        last = tuple(x[:, -1] for x in following)
        target_action, _ = tanh_normal_sample(*last, noise.target)
        target_q = critic.apply(target_critic, batch.next_observation[:, -1], target_action)
        bootstrap = batch.discount[:, -1] * jnp.min(target_q, axis=0)
        target = returns.n_step_to_end(batch.reward, bootstrap, config.discount)
    target = stop(target)  # [B, L]

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
    state: State, batch: Batch, noise: Noise, *, task: Task, config: Config
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
        best = None
        if config.return_to_go:  # of the rewards as they are in the data
            wanted = dataset.return_to_go
            columns = jnp.stack([wanted, wanted - transition.reward], axis=1)
            rows = jnp.concatenate([rows, config.return_scale * columns], axis=1)
            best = jnp.asarray(episode_returns(dataset).max(), transition.reward.dtype)
        return Data(rows, dataset.order, dataset.num_starts, normalizer, best)

    def init(key: PRNGKey, data: Data) -> State:
        key, actor_key, critic_key = jax.random.split(key, 3)
        observation = jnp.zeros((1, length, task.observation_dim))
        action = jnp.zeros((1, length, task.action_dim))
        wanted = jnp.zeros((1, length)) if config.return_to_go else None
        params = {
            "actor": actor.init(actor_key, observation, None, wanted, deterministic=True),
            "critic": critic.init(critic_key, observation, action),
            "log_alpha": jnp.log(jnp.asarray(config.initial_temperature, jnp.float32)),
        }
        optimizers = make_optimizers(config)
        kind = State
        if config.return_to_go:
            kind = functools.partial(ConditionedState, best_return=data.best_return)
        return kind(
            params=params,
            target_critic=params["critic"],
            opt_state={name: optimizers[name].init(params[name]) for name in params},
            normalizer=data.normalizer,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Data) -> Batch:
        starts = windows.sample_starts(key, data.order, data.num_starts, length, config.batch_size)
        rows = windows.take_windows(data.rows, starts, length)
        dims = task.observation_dim, task.action_dim
        if config.return_to_go:
            batch = windows.unpack(rows[..., :-2], *dims)
            return ConditionedWindow(*batch, rows[..., -2], rows[..., -1])
        return windows.unpack(rows, *dims)

    def update(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        noise = draw_noise(jax.random.fold_in(state.key, state.step), batch, config)
        return apply_update(state, batch, noise, task=task, config=config)

    return Learner(prepare, init, sample, update, policy=make_policy(task, config))


def sample_action(
    actor: TransformerPolicy | StatewisePolicy,
    params: PyTree,
    window: Array,
    noise: Array | float,
    mask: Array | None = None,
    return_to_go: Array | None = None,
) -> Array:
    """Actions at the last position of windows of normalised states.

    Args:
      actor: the module.
      params: its parameters.
      window: [B, L, S], the last L states.
      noise: standard normal, [B, A], or [n, B, A] for n actions in each state; 0 for the mean.
      mask: [B, L] bool, False where the window is padding; None if it is full.
      return_to_go: [B, L], scaled, for actors conditioned on it.

    Returns:
      [B, A] or [n, B, A].
    """
    mean, log_std = actor.apply(
        params, window, mask, return_to_go, deterministic=True, last_only=True
    )
    return tanh_normal_sample(mean[:, 0], log_std[:, 0], noise)[0]


def choose_action(
    state: State, memory: Memory, noise: Array | float, *, task: Task, config: Config
) -> Array:
    """Actions [B, A] on given noise, which is as in `sample_action`.

    Of several candidates it is the one with the highest lower value of both target critics, as in a
    helper of the released code that nothing there calls.

    The released code pads short histories with zeros and lets the actor attend to them. Here the
    padding is masked (the actor was trained on all prefixes), unless `mask_padding` is off.
    """
    window, mask, wanted = memory.observation, None, None
    if config.mask_padding:
        mask = memory_lib.mask(memory)
    if config.return_to_go:
        wanted = config.return_scale * memory.return_to_go
    actor = make_actor(task, config)
    action = sample_action(actor, state.params["actor"], window, noise, mask, wanted)
    if action.ndim == 3:
        now = jnp.broadcast_to(window[:, -1], (len(action), *window[:, -1].shape))
        q = make_critic(config).apply(state.target_critic, now, action)  # [2, n, B]
        best = jnp.argmax(jnp.min(q, axis=0), axis=0)
        action = jnp.take_along_axis(action, best[None, :, None], axis=0)[0]
    return action


def make_policy(task: Task, config: Config) -> Policy:
    """Acts on the last L states, or on the last one alone if the actor has no memory."""

    def choose(state: State, memory: Memory, key: PRNGKey, deterministic: bool) -> Array:
        several = () if config.num_candidates == 1 else (config.num_candidates,)
        shape = (*several, len(memory.count), task.action_dim)
        noise = 0.0 if deterministic else jax.random.normal(key, shape)
        return choose_action(state, memory, noise, task=task, config=config)

    length = 1 if config.architecture == "mlp" else config.context_length
    return memory_lib.make_policy(
        choose, length, task.observation_dim, conditioned=config.return_to_go
    )
