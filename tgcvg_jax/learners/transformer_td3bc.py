"""Transformer-TD3BC: QT's loss (Hu et al. 2024) on TGCVG's state-only Transformer.

TGCVG compares itself with such a generator (Figure 2a), whose data suit TD3+BC and not CQL, but
neither describes nor releases it. Losses, targets, optimisers and per-task settings here are those
of QT's released code; the actor is TGCVG's with a deterministic action, tanh of its mean. (The half
of its output that would be the deviation has no effect.) Left out of QT, as TGCVG leaves them out
of its own policy: the return-to-go and action tokens, and with the latter the prediction of states;
the choice among 50 candidates that differ in their returns-to-go; padded windows. QT's own blocks
are four, with four heads and ReLU, and it rescales the rewards of AntMaze's large maze.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tgcvg_jax.data import windows
from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.data.replay import Mixture, check_mixture, draw_indices, state_normalizer
from tgcvg_jax.networks import memory as memory_lib
from tgcvg_jax.networks.memory import Memory
from tgcvg_jax.networks.mlp import EnsembleQ, mish
from tgcvg_jax.networks.transformer import TransformerPolicy
from tgcvg_jax.ops import returns
from tgcvg_jax.ops.gradients import clip_by_norm
from tgcvg_jax.tasks import paper_family
from tgcvg_jax.types import (
    ORIGINAL,
    Array,
    Dataset,
    Learner,
    Policy,
    PRNGKey,
    PyTree,
    Task,
    Transition,
    UserError,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Transformer-TD3BC. Defaults: QT's released code for hopper-medium; symbols: its paper."""

    replay: Mixture = Mixture(state_eps=1e-6)
    num_steps: int = 100_000  # gradient steps
    context_length: int = 20  # K, states that the actor sees
    batch_size: int = 256  # windows
    hidden_dim: int = 256  # Transformer width
    num_blocks: int = 3  # TGCVG's; QT: 4
    dropout: float = 0.1  # off when acting
    critic_hidden_dims: tuple[int, ...] = (256, 256, 256)
    learning_rate: float = 3e-4  # actor and critics, at the start
    cosine_steps: int = 500_000  # over which it falls to 0 along a cosine,
    cosine_interval: int = 1_000  # in stairs of so many steps
    actor_weight_decay: float = 1e-4  # L2 inside Adam
    q_weight: float = 1.0  # eta
    bc_weight: float = 1.0  # eta2 in the code
    max_grad_norm: float = 9.0  # of the actor's gradient and of the critics'
    discount: float = 0.99  # gamma
    tau: float = 0.005  # of the target critics
    ema_decay: float = 0.995  # of the target actor,
    ema_start: int = 1_000  # which starts to move after so many steps
    ema_every: int = 5  # and then moves at every so many
    # qt: the last state of the window is bootstrapped from, its reward is not used, and a terminal
    # there zeroes the bootstrap, so that the reward of a terminal step is never seen.
    # n_step: TGCVG's (its equation 1), with all rewards and the state after the window.
    target: Literal["qt", "n_step"] = "qt"
    target_dropout: bool = True  # of the target actor, which QT never puts into evaluation mode


class Settings(NamedTuple):
    """What QT's run.sh sets by task; fields of the config."""

    q_weight: float
    max_grad_norm: float
    context_length: int = 20


SETTINGS = {
    "halfcheetah-medium": Settings(5.0, 15.0, 5),
    "halfcheetah-medium-replay": Settings(5.0, 15.0, 5),
    "halfcheetah-medium-expert": Settings(0.4, 15.0),
    "hopper-medium": Settings(1.0, 9.0),
    "hopper-medium-replay": Settings(3.0, 9.0),
    "hopper-medium-expert": Settings(1.0, 9.0),
    "walker2d-medium": Settings(2.0, 5.0),
    "walker2d-medium-replay": Settings(2.0, 5.0),
    "walker2d-medium-expert": Settings(2.0, 5.0),
    "maze2d-umaze": Settings(5.0, 20.0),
    "maze2d-medium": Settings(5.0, 9.0),
    "maze2d-large": Settings(4.0, 9.0),
    "antmaze-umaze": Settings(0.05, 9.0),
    "antmaze-umaze-diverse": Settings(0.01, 9.0),
    "antmaze-medium-diverse": Settings(0.01, 9.0),
    "antmaze-large-diverse": Settings(0.005, 9.0),
}
PRESETS = {
    "paper": {},
    "quick": {
        "num_steps": 7_000,
        "context_length": 5,
        "batch_size": 64,
        "hidden_dim": 64,
        "critic_hidden_dims": (64, 64, 64),
    },
}


def for_task(task: Task, hyperparameters: str = "tgcvg") -> Config:
    """QT's settings of a task, whoever's are asked for: no other project has any.

    Tasks that QT doesn't have get those of hopper-medium, which are in the middle.
    """
    del hyperparameters
    family = paper_family(task)
    config = Config(**SETTINGS.get(family, SETTINGS["hopper-medium"])._asdict())
    if family == "halfcheetah-medium-expert":  # ten iterations of 10,000 steps, to the cosine's end
        return dataclasses.replace(config, cosine_steps=100_000, cosine_interval=10_000)
    return config


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      actor: parameters.
      critic: parameters of both critics, stacked on axis 0.
      target_actor: like actor, its moving average.
      target_critic: like critic.
      actor_opt: Adam's state.
      critic_opt: Adam's state.
      normalizer: of observations.
      key: PRNG key of the run; never advanced.
      step: gradient steps done.
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


@flax.struct.dataclass
class Data:
    """What `sample` reads.

    Attributes:
      rows: [M, 2 S + A + 2], packed, observations normalised.
      starts: [W], of all windows of L transitions, those of original data first.
      num_original: int32, how many of them are original.
      normalizer: of observations.
    """

    rows: Array
    starts: Array
    num_original: Array
    normalizer: Normalizer


@flax.struct.dataclass
class Noise:
    """All random draws of one update.

    Attributes:
      dropout: PRNG keys [2], of the target actor and of the actor.
      swap: bool, whether the actor climbs the second critic rather than the first.
    """

    dropout: Array
    swap: Array


def make_networks(task: Task, config: Config) -> tuple[TransformerPolicy, EnsembleQ]:
    """Actor (of which `act` takes the mean) and twin critics of single steps."""
    actor = TransformerPolicy(
        task.action_dim, config.hidden_dim, config.num_blocks, dropout=config.dropout
    )
    return actor, EnsembleQ(config.critic_hidden_dims, activation=mish)


def learning_rate(step: Array, config: Config) -> Array:
    """Learning rate after `step` updates; independent of `num_steps`."""
    stair = step // config.cosine_interval * config.cosine_interval
    share = jnp.minimum(stair / config.cosine_steps, 1.0)
    return config.learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * share))


def make_optimizers(config: Config) -> tuple[optax.GradientTransformation, ...]:
    """The actor's and the critics' Adam, to be fed with clipped gradients."""
    adam = optax.adam(lambda count: learning_rate(count, config))
    return optax.chain(optax.add_decayed_weights(config.actor_weight_decay), adam), adam


def td_target(
    state: State, batch: Transition, key: PRNGKey, task: Task, config: Config
) -> tuple[Array, int]:
    """Targets [B, N] of the first N positions, and N: L - 1 for `qt`, L for `n_step`.

    qt: y_m = sum_{j=m}^{L-2} gamma^{j-m} r_j + gamma^{L-1-m} d min Q'(s_{L-1}, pi'(s_0..s_{L-1})),
    with d the discount (0 at a terminal) of the last step.
    """
    actor, critic = make_networks(task, config)
    qt = config.target == "qt"
    observation = batch.observation if qt else batch.next_observation
    reward = batch.reward[:, :-1] if qt else batch.reward
    mean, _ = actor.apply(
        state.target_actor, observation, deterministic=not config.target_dropout, last_only=True,
        rngs={"dropout": key},
    )  # fmt: skip
    q = critic.apply(state.target_critic, observation[:, -1], jnp.tanh(mean[:, 0]))
    bootstrap = batch.discount[:, -1] * jnp.min(q, axis=0)
    return returns.n_step_to_end(reward, bootstrap, config.discount), reward.shape[1]


def critic_loss(
    critic_params: PyTree, state: State, batch: Transition, key: PRNGKey, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """Sum of both critics' mean squared errors.

    Args:
      critic_params: what to differentiate.
      state: for the targets.
      batch: fields [B, L, ...], observations normalised.
      key: of the target actor's dropout.
      task: the task.
      config: the config.
    """
    _, critic = make_networks(task, config)
    target, count = td_target(state, batch, key, task, config)
    q = critic.apply(critic_params, batch.observation[:, :count], batch.action[:, :count])
    loss = jnp.sum(jnp.mean(jnp.square(q - target), axis=(1, 2)))
    return loss, {"critic_loss": loss, "q": q, "td_target": target}


def actor_loss(
    actor_params: PyTree,
    critic_params: PyTree,
    batch: Transition,
    noise: Noise,
    task: Task,
    config: Config,
) -> tuple[Array, dict[str, Array]]:
    """eta2 mean (pi - a)^2 - eta mean Q_a(s, pi) / mean |Q_b(s, pi)|, at all L positions.

    Q_b is not differentiated; (a, b) is (1, 2), or (2, 1) with `noise.swap`.
    """
    actor, critic = make_networks(task, config)
    rngs = {"dropout": noise.dropout[1]}
    mean, _ = actor.apply(actor_params, batch.observation, deterministic=False, rngs=rngs)
    action = jnp.tanh(mean)
    q = critic.apply(critic_params, batch.observation, action)  # [2, B, L]
    scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(q), axis=(1, 2)))
    both = -jnp.mean(q, axis=(1, 2)) / scale[::-1]
    q_loss = jnp.where(noise.swap, both[1], both[0])
    bc_loss = jnp.mean(jnp.square(action - batch.action))
    loss = config.bc_weight * bc_loss + config.q_weight * q_loss
    return loss, {"actor_loss": loss, "bc_loss": bc_loss, "q_loss": q_loss}


def draw_noise(key: PRNGKey) -> Noise:
    """All random draws of one update."""
    coin, dropout = jax.random.split(key)
    return Noise(dropout=jax.random.split(dropout), swap=jax.random.bernoulli(coin))


def apply_update(
    state: State, batch: Transition, noise: Noise, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """A step of the critics, then of the actor against the new critics, then the targets."""
    actor_optimizer, critic_optimizer = make_optimizers(config)
    grads, info = jax.grad(critic_loss, has_aux=True)(
        state.critic, state, batch, noise.dropout[0], task, config
    )
    grads, info["critic_grad_norm"] = clip_by_norm(grads, config.max_grad_norm)
    updates, critic_opt = critic_optimizer.update(grads, state.critic_opt)
    critic = optax.apply_updates(state.critic, updates)

    grads, actor_info = jax.grad(actor_loss, has_aux=True)(
        state.actor, critic, batch, noise, task, config
    )
    grads, actor_info["actor_grad_norm"] = clip_by_norm(grads, config.max_grad_norm)
    updates, actor_opt = actor_optimizer.update(grads, state.actor_opt, state.actor)
    actor = optax.apply_updates(state.actor, updates)

    moves = (state.step > config.ema_start) & (state.step % config.ema_every == 0)
    share = jnp.where(moves, 1.0 - config.ema_decay, 0.0)
    state = state.replace(
        actor=actor,
        critic=critic,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        target_actor=optax.incremental_update(actor, state.target_actor, share),
        target_critic=optax.incremental_update(critic, state.target_critic, config.tau),
        step=state.step + 1,
    )
    return state, info | actor_info


def make(task: Task, config: Config) -> Learner:
    """The learner."""
    (actor, critic), length = make_networks(task, config), config.context_length

    def prepare(dataset: Dataset) -> Data:
        if config.target == "qt" and length == 1:
            raise UserError(
                "context_length=1 leaves target=qt nothing to learn from; set target=n_step"
            )
        check_mixture(dataset, config.replay)
        windows.require_windows(dataset, length, "the policy's context length L")
        source, remaining = np.asarray(dataset.source), np.asarray(dataset.remaining)
        for kind in np.unique(source):
            if remaining[source == kind].max() < length:
                which = "original" if kind == ORIGINAL else "synthetic"
                raise UserError(
                    f"{dataset.task.name}: no episode of the {which} data has a window of {length} "
                    "transitions; choose a smaller context_length or another --synthesizer"
                )
        starts = np.flatnonzero(remaining >= length)
        starts = starts[np.argsort(source[starts], kind="stable")]  # original ones first
        normalizer = state_normalizer(dataset, config.replay)
        transition = dataset.transition
        rows = windows.pack(
            transition._replace(
                observation=normalizer(transition.observation),
                next_observation=normalizer(transition.next_observation),
            )
        )
        num_original = jnp.int32(np.sum(source[starts] == ORIGINAL))
        return Data(rows, jnp.asarray(starts, jnp.int32), num_original, normalizer)

    def init(key: PRNGKey, data: Data) -> State:
        key, actor_key, critic_key = jax.random.split(key, 3)
        observation = jnp.zeros((1, length, task.observation_dim))
        actor_params = actor.init(actor_key, observation, deterministic=True)
        action = jnp.zeros((1, length, task.action_dim))
        critic_params = critic.init(critic_key, observation, action)
        actor_optimizer, critic_optimizer = make_optimizers(config)
        return State(
            actor=actor_params,
            critic=critic_params,
            target_actor=actor_params,
            target_critic=critic_params,
            actor_opt=actor_optimizer.init(actor_params),
            critic_opt=critic_optimizer.init(critic_params),
            normalizer=data.normalizer,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Data) -> Transition:
        count, shape = len(data.starts), (config.batch_size,)
        index = draw_indices(key, count, data.num_original, config.replay, shape)
        rows = windows.take_windows(data.rows, data.starts[index], length)
        return windows.unpack(rows, task.observation_dim, task.action_dim)

    def update(state: State, batch: Transition) -> tuple[State, dict[str, Array]]:
        noise = draw_noise(jax.random.fold_in(state.key, state.step))
        state, info = apply_update(state, batch, noise, task=task, config=config)
        return state, jax.tree.map(jnp.mean, info)

    return Learner(prepare, init, sample, update, policy=make_policy(task, config))


def make_policy(task: Task, config: Config) -> Policy:
    """Acts on the last L states, fewer at first; there is nothing to sample."""
    actor, _ = make_networks(task, config)

    def choose(state: State, memory: Memory, key: PRNGKey, deterministic: bool) -> Array:
        del key, deterministic
        window, mask = memory.observation, memory_lib.mask(memory)
        mean, _ = actor.apply(state.actor, window, mask, deterministic=True, last_only=True)
        return jnp.tanh(mean[:, 0])

    return memory_lib.make_policy(choose, config.context_length, task.observation_dim)
