"""Decision Transformer (Chen et al. 2021), as CORL writes it.

Behaviour cloning on windows, conditioned on the return that is still to come. The loss is the mean
over all B x L x A entries, padding included: it is not divided by the number of real ones.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tgcvg_jax.data import windows
from tgcvg_jax.data.dataset import first_rows
from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.data.replay import (
    Mixture,
    check_mixture,
    draw_indices,
    original_first,
    original_returns,
    state_normalizer,
)
from tgcvg_jax.networks.decision_transformer import DecisionTransformer
from tgcvg_jax.ops.gradients import clip_by_norm
from tgcvg_jax.tasks import paper_family
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
    UserError,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Decision Transformer. Defaults: TGCVG's released code; the same as CORL's unless said."""

    replay: Mixture = Mixture(state_eps=1e-6)
    num_steps: int = 100_000  # gradient steps; TGCVG's paper: 200,000
    context_length: int = 20  # K, steps that the policy sees
    batch_size: int = 1024  # windows; CORL: 4096
    hidden_dim: int = 128
    num_blocks: int = 3  # of one head
    dropout: float = 0.1  # embeddings, attention weights, residual branches
    learning_rate: float = 1e-4  # CORL: 8e-4
    warmup_steps: int = 10_000  # over which the learning rate rises linearly
    weight_decay: float = 1e-4  # AdamW's, of all parameters
    max_grad_norm: float = 0.25
    episode_length: int = 1000  # steps with an embedding of their own
    reward_scale: float = 0.001  # the network sees returns-to-go times this
    synthetic_return_factor: float = 1.2  # as released; in no paper, and 1 in GTA
    target_return: float | None = None  # to act for, unscaled; None: the data's best


# Returns that CORL and TGCVG ask for. Else it is the task's max_score (1 in D4RL's antmaze).
TARGETS = {"halfcheetah": 12_000.0, "hopper": 3_600.0, "walker2d": 5_000.0, "maze2d": 280.0}
# CORL's configs. Some versions of walker2d's have reward_scale 1; here it is the other robots'.
CORL = {"batch_size": 4096, "learning_rate": 8e-4, "synthetic_return_factor": 1.0}
CORL_DOMAINS = {
    "maze2d": {"reward_scale": 1.0},
    "antmaze": {"reward_scale": 1.0, "batch_size": 64, "learning_rate": 1e-4},
}
PRESETS = {
    "paper": {},
    "quick": {
        "num_steps": 10_000,
        "batch_size": 64,
        "hidden_dim": 64,
        "learning_rate": 8e-4,
        "warmup_steps": 500,
    },
}


def for_task(task: Task, hyperparameters: str = "tgcvg") -> Config:
    """The target return of a task, and what GTA and CORL set otherwise."""
    dense, domain = task.family.endswith("-dense"), paper_family(task).split("-")[0]
    target = task.max_score if dense else TARGETS.get(domain, task.max_score)
    config = Config(target_return=target)
    if hyperparameters == "gta":
        return dataclasses.replace(config, synthetic_return_factor=1.0)
    if hyperparameters == "corl":
        return dataclasses.replace(config, **(CORL | CORL_DOMAINS.get(domain, {})))
    return config


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      params: of the network.
      opt_state: Adam's.
      normalizer: of observations.
      best_return: of an original episode, the target where the config has none.
      key: PRNG key of the run; never advanced.
      step: gradient steps done.
    """

    params: PyTree
    opt_state: PyTree
    normalizer: Normalizer
    best_return: Array
    key: PRNGKey
    step: Array


@flax.struct.dataclass
class Data:
    """What `sample` reads.

    Attributes:
      rows: [M, S + A + 3], original ones first: state (normalised), action, return-to-go (scaled),
        step, and steps left in the episode.
      num_original: int32, how many are original.
      normalizer: of states.
      best_return: of an original episode.
    """

    rows: Array
    num_original: Array
    normalizer: Normalizer
    best_return: Array


class Window(NamedTuple):
    """L steps of B episodes, as the network takes them.

    Attributes:
      observation: [B, L, S], normalised.
      action: [B, L, A].
      return_to_go: [B, L], scaled.
      timestep: [B, L] int32, step within the episode.
      mask: [B, L] bool, False at padding. There everything but `timestep` is 0.
    """

    observation: Array
    action: Array
    return_to_go: Array
    timestep: Array
    mask: Array


def make_network(task: Task, config: Config) -> DecisionTransformer:
    """The module. The table has `context_length` extra rows, for padding after the last step, as in
    CORL.
    """
    return DecisionTransformer(
        action_dim=task.action_dim,
        hidden_dim=config.hidden_dim,
        num_blocks=config.num_blocks,
        num_timesteps=config.episode_length + config.context_length,
        dropout=config.dropout,
    )


def returns_to_go(dataset: Dataset, synthetic_factor: float) -> np.ndarray:
    """Undiscounted returns-to-go [M] to condition on.

    Original rows keep theirs. A generated segment starts at the return-to-go stored in its first
    row, which is that of the original episode at that point, times the factor; from then on the
    rewards that were generated are subtracted: R_k = R_0 - (r_0 + ... + r_{k-1}).
    """
    stored = np.asarray(dataset.return_to_go, np.float64)
    reward = np.asarray(dataset.transition.reward, np.float64)
    start = first_rows(dataset)
    before = np.cumsum(reward) - reward  # rewards of all earlier rows
    generated = synthetic_factor * stored[start] - (before - before[start])
    return np.where(np.asarray(dataset.source) == SYNTHETIC, generated, stored)


def learning_rate(step: Array, config: Config) -> Array:
    """Learning rate after `step` updates; independent of `num_steps`."""
    return config.learning_rate * jnp.minimum((step + 1.0) / config.warmup_steps, 1.0)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW, to be fed with clipped gradients; its state counts the steps."""
    rate = lambda count: learning_rate(count, config)  # noqa: E731
    return optax.adamw(rate, weight_decay=config.weight_decay)


def loss(
    params: PyTree, batch: Window, key: PRNGKey, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """Mean over B, L and A of (prediction - action)^2, padding counted as 0.

    Args:
      params: what to differentiate.
      batch: the windows.
      key: of dropout.
      task: the task.
      config: the config.
    """
    network = make_network(task, config)
    predicted = network.apply(params, *batch, deterministic=False, rngs={"dropout": key})
    value = jnp.mean(jnp.square(predicted - batch.action) * batch.mask[..., None])
    return value, {"actor_loss": value}


def apply_update(
    state: State, batch: Window, key: PRNGKey, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One AdamW step on clipped gradients."""
    grad = jax.grad(loss, has_aux=True)
    grads, info = grad(state.params, batch, key, task, config)
    grads, norm = clip_by_norm(grads, config.max_grad_norm)
    updates, opt_state = make_optimizer(config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
    return state, info | {"grad_norm": norm}


def make(task: Task, config: Config) -> Learner:
    """The learner."""
    network, length = make_network(task, config), config.context_length

    def prepare(dataset: Dataset) -> Data:
        check_mixture(dataset, config.replay)
        source, remaining = np.asarray(dataset.source), np.asarray(dataset.remaining)
        if np.any(source == SYNTHETIC) and np.all(remaining[source == SYNTHETIC] == 1):
            raise UserError(
                f"{dataset.task.name}: the synthetic data holds single transitions, and dt learns "
                "from sequences; choose another --synthesizer or --learner"
            )
        normalizer = state_normalizer(dataset, config.replay)
        transition = dataset.transition
        scaled = config.reward_scale * returns_to_go(dataset, config.synthetic_return_factor)
        # Steps are the dataset's, whose segments start where their source windows say. (TGCVG's
        # released code counts those of a generated window from the segment's first step, wherever
        # in it the window starts.) float32 holds them exactly: they are below 2^24.
        columns = (scaled, dataset.timestep, remaining)
        columns = [jnp.asarray(c, transition.reward.dtype)[:, None] for c in columns]
        rows = [normalizer(transition.observation), transition.action, *columns]
        rows = jnp.concatenate(rows, axis=1)
        if (order := original_first(source)) is not None:
            rows = rows[order]
        returns = original_returns(dataset)
        best = np.max(returns) if len(returns) else np.max(np.asarray(dataset.return_to_go))
        num_original = jnp.int32(np.sum(source == ORIGINAL))
        return Data(rows, num_original, normalizer, jnp.asarray(best, transition.reward.dtype))

    def init(key: PRNGKey, data: Data) -> State:
        key, network_key = jax.random.split(key)
        params = network.init(network_key, *empty_window(1), deterministic=True)
        return State(
            params=params,
            opt_state=make_optimizer(config).init(params),
            normalizer=data.normalizer,
            best_return=data.best_return,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def empty_window(batch_size: int) -> Window:
        shape = (batch_size, length)
        return Window(
            observation=jnp.zeros((*shape, task.observation_dim)),
            action=jnp.zeros((*shape, task.action_dim)),
            return_to_go=jnp.zeros(shape),
            timestep=jnp.broadcast_to(jnp.arange(-length, 0), shape),
            mask=jnp.zeros(shape, bool),
        )

    def sample(key: PRNGKey, data: Data) -> Window:
        """Uniform rows, each with those that follow it in its episode.

        CORL draws an episode in proportion to its length, then a start in it: the same.
        """
        shape = (config.batch_size,)
        starts = draw_indices(key, len(data.rows), data.num_original, config.replay, shape)
        rows = windows.take_windows(data.rows, starts, length)  # [B, L, S + A + 3]
        ahead = jnp.arange(length)
        mask = ahead < rows[:, :1, -1]
        real = jnp.where(mask[..., None], rows, 0.0)
        split = task.observation_dim, task.observation_dim + task.action_dim
        timestep = jnp.where(mask, rows[..., -2], rows[:, :1, -2] + ahead)
        return Window(
            observation=real[..., : split[0]],
            action=real[..., split[0] : split[1]],
            return_to_go=real[..., split[1]],
            timestep=timestep.astype(jnp.int32),
            mask=mask,
        )

    def update(state: State, batch: Window) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        state, info = apply_update(state, batch, key, task=task, config=config)
        return state, jax.tree.map(jnp.mean, info)

    def policy_init(
        state: State, batch_size: int, target_return: Array | float | None = None
    ) -> Window:
        target = config.target_return if target_return is None else target_return
        target = state.best_return if target is None else target
        window = empty_window(batch_size)
        target = config.reward_scale * jnp.asarray(target)[..., None]  # [1], or [B, 1]
        # Padding, which nothing sees; the first step goes on from it.
        return window._replace(return_to_go=window.return_to_go + target)

    def policy_prime(state: State, window: Window, history: Transition, mask: Array) -> Window:
        """As if the policy had acted in these steps, and had chosen these actions.

        Steps and the return wanted count from each history's first.
        """
        last = lambda old, new: jnp.concatenate([old, new], axis=1)[:, -length:]  # noqa: E731
        real = lambda x: jnp.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x, 0.0)  # noqa: E731
        reward = real(history.reward)
        spent = config.reward_scale * (jnp.cumsum(reward, axis=1) - reward)
        return Window(
            observation=last(window.observation, real(state.normalizer(history.observation))),
            action=last(window.action, real(history.action)),
            return_to_go=last(window.return_to_go, window.return_to_go[:, -1:] - spent),
            timestep=window.timestep + jnp.sum(mask, axis=1, dtype=jnp.int32)[:, None],
            mask=last(window.mask, mask),
        )

    def policy_act(state, window, observation, previous_reward, key, deterministic):
        """The window moves on by a step; histories shorter than it are masked on the left, which
        for real steps is the same as being absent, as they are in CORL.
        """
        del key, deterministic  # the policy is deterministic
        push = lambda x, new: jnp.concatenate([x[:, 1:], new[:, None]], axis=1)  # noqa: E731
        action = jnp.zeros_like(window.action[:, -1])  # not known yet; its state cannot see it
        window = Window(
            observation=push(window.observation, state.normalizer(observation)),
            action=push(window.action, action),
            return_to_go=push(
                window.return_to_go,
                window.return_to_go[:, -1] - config.reward_scale * previous_reward,
            ),
            timestep=window.timestep + 1,
            mask=push(window.mask, jnp.ones(len(observation), bool)),
        )
        action = network.apply(state.params, *window, deterministic=True, last_only=True)[:, 0]
        return action, window._replace(action=window.action.at[:, -1].set(action))

    policy = Policy(policy_act, policy_init, policy_prime)
    return Learner(prepare, init, sample, update, policy=policy)
