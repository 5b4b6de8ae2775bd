"""The any-step dynamics model that TGCVG rolls its policy out in (ADMPO's ARM).

One network, no ensemble: a GRU reads the present state with k actions and predicts the state k
steps later and the k-th reward, k drawn anew for every batch. TGCVG calls it with k = 1 only.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data import windows
from tgcvg_jax.data.dataset import split_holdout
from tgcvg_jax.data.normalize import Normalizer, fit_normalizer
from tgcvg_jax.networks.gru import AnyStepNetwork
from tgcvg_jax.ops.losses import gaussian_nll
from tgcvg_jax.types import Array, Dataset, Learner, PRNGKey, PyTree, Task, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Any-step dynamics. Defaults: ADMPO's released code, which TGCVG uses unchanged."""

    max_epochs: int = 1_000  # released: no limit; early stopping ends training long before
    max_steps: int = 5  # m, longest jump
    hidden_dim: int = 200
    num_layers: int = 3
    num_blocks: int = 4
    dropout: float = 0.1
    batch_size: int = 256
    learning_rate: float = 3e-4
    reward_bias: float = 0.0  # added to the rewards that it learns; released for mazes: 1
    epoch_steps: int | None = None  # gradient steps in an epoch; None: floor(train / batch) * m
    patience: int = 25  # epochs without improvement before training stops
    holdout_fraction: float = 0.2  # the last transitions of the dataset,
    max_holdout: int = 1_000  # but at most this many
    validation_size: int = 256  # holdout sequences for each k
    validation_dropout: bool = True  # as released, which never leaves training mode


@flax.struct.dataclass
class State:
    """Everything that training changes or sampling needs.

    Attributes:
      params: of the network being trained.
      opt_state: Adam's.
      best_params: the snapshot that `step_model` uses; equal to params before the first validation.
      best_loss: [m], holdout error of the snapshot for each k.
      stale_epochs: validations since the last improvement.
      finished: bool, early stopping has ended training.
      observation_normalizer: of states.
      action_normalizer: of actions.
      key: PRNG key of the run; never advanced.
      step: gradient steps done.
    """

    params: PyTree
    opt_state: PyTree
    best_params: PyTree
    best_loss: Array
    stale_epochs: Array
    finished: Array
    observation_normalizer: Normalizer
    action_normalizer: Normalizer
    key: PRNGKey
    step: Array


@flax.struct.dataclass
class Sequences:
    """Packed raw rows, and where sequences of k steps start."""

    rows: Array  # [M, 2 S + A + 2]
    order: Array
    num_starts: Array


@flax.struct.dataclass
class Data:
    """Training rows, holdout rows, statistics of all rows."""

    train: Sequences
    holdout: Sequences
    observation_normalizer: Normalizer
    action_normalizer: Normalizer


@flax.struct.dataclass
class Batch:
    """Sequences of k steps.

    Attributes:
      observation: [B, S], the first state, raw.
      actions: [B, m, A], raw; the first k count.
      target: [B, S + 1], change of state over k steps, and the k-th reward plus its bias.
      k: scalar int32 in 1..m.
    """

    observation: Array
    actions: Array
    target: Array
    k: Array


def make_network(task: Task, config: Config) -> AnyStepNetwork:
    """The network's module."""
    return AnyStepNetwork(
        output_dim=task.observation_dim + 1,
        hidden_dim=config.hidden_dim,
        num_layers=config.num_layers,
        num_blocks=config.num_blocks,
        dropout=config.dropout,
    )


def predict(
    params: PyTree,
    state: State,
    observation: Array,
    actions: Array,
    k: Array | int,
    dropout_key: PRNGKey | None,
    *,
    task: Task,
    config: Config,
) -> tuple[Array, Array]:
    """Mean and log variance [..., S + 1] of (state change, reward + bias), from raw inputs.

    Args:
      params: network parameters.
      state: for its normalisers.
      observation: [..., S].
      actions: [..., m, A].
      k: scalar, in 1..m.
      dropout_key: None turns dropout off.
      task: the task.
      config: the config.
    """
    return make_network(task, config).apply(
        params,
        state.observation_normalizer(observation),
        state.action_normalizer(actions),
        k,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )


def loss(
    params: PyTree,
    state: State,
    batch: Batch,
    dropout_key: PRNGKey | None,
    *,
    task: Task,
    config: Config,
) -> tuple[Array, dict[str, Array]]:
    """Gaussian negative log likelihood, and a pull on the learned bounds of the log variance."""
    mean, log_var = predict(
        params, state, batch.observation, batch.actions, batch.k, dropout_key,
        task=task, config=config,
    )  # fmt: skip
    bounds = params["params"]
    value = gaussian_nll(mean, log_var, batch.target)
    value += 0.01 * jnp.sum(bounds["max_log_var"]) - 0.01 * jnp.sum(bounds["min_log_var"])
    info = {
        "loss": value,
        "mse": jnp.mean(jnp.square(mean - batch.target)),
        "log_var": jnp.mean(log_var),
    }
    return value, info


def apply_update(
    state: State, batch: Batch, dropout_key: PRNGKey | None, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One Adam step."""
    grads, info = jax.grad(loss, has_aux=True)(
        state.params, state, batch, dropout_key, task=task, config=config
    )
    updates, opt_state = optax.adam(config.learning_rate).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state, step=state.step + 1), info


def step_model(
    state: State,
    observation: Array,
    action: Array,
    noise: Array | float,
    dropout_key: PRNGKey | None,
    *,
    task: Task,
    config: Config,
) -> tuple[Array, Array]:
    """One sampled step of the model (k = 1) with the best snapshot.

    Args:
      state: trained state.
      observation: [B, S], raw.
      action: [B, A], raw.
      noise: [B, S + 1], standard normal; 0 for the mean.
      dropout_key: None turns dropout off; the released code leaves it on.
      task: the task.
      config: the config.

    Returns:
      next observation [B, S], reward [B].
    """
    mean, log_var = predict(
        state.best_params, state, observation, action[:, None], 1, dropout_key,
        task=task, config=config,
    )  # fmt: skip
    sample = mean + jnp.exp(0.5 * log_var) * noise
    return observation + sample[:, :-1], sample[:, -1] - config.reward_bias


def calibration(
    state: State,
    transition: Transition,
    dropout_key: PRNGKey | None = None,
    *,
    task: Task,
    config: Config,
) -> Array:
    """By how much the predicted standard deviations are too small, for each dimension.

    Args:
      state: trained state.
      transition: fields [M, ...], raw, that training did not see.
      dropout_key: None turns dropout off; residuals are those of the network as it is called.
      task: the task.
      config: the config.

    Returns:
      [S + 1], states' and the reward's: the root mean square of residuals in units of the predicted
      standard deviation (k = 1). `step_model` with noise times this draws steps that are as far
      from the mean as true ones are; above 1, the model is too sure.
    """
    t = transition
    mean, log_var = predict(
        state.best_params, state, t.observation, t.action[:, None], 1, dropout_key,
        task=task, config=config,
    )  # fmt: skip
    reward = t.reward[:, None] + config.reward_bias
    target = jnp.concatenate([t.next_observation - t.observation, reward], axis=-1)
    return jnp.sqrt(jnp.mean(jnp.square(target - mean) * jnp.exp(-log_var), axis=0))


def take_batch(
    sequences: Sequences, key: PRNGKey, k: Array, size: int, *, task: Task, config: Config
) -> Batch:
    """`size` random sequences of exactly k steps, k possibly traced."""
    starts = windows.sample_starts(key, sequences.order, sequences.num_starts, k, size)
    rows = windows.take_windows(sequences.rows, starts, config.max_steps)  # [B, m, ...]
    step = windows.unpack(rows, task.observation_dim, task.action_dim)
    last = jax.tree.map(lambda x: jnp.take(x, k - 1, axis=1), step)
    change = last.next_observation - step.observation[:, 0]
    target = jnp.concatenate([change, last.reward[:, None] + config.reward_bias], axis=-1)
    return Batch(step.observation[:, 0], step.action, target, k)


def make(task: Task, config: Config) -> Learner:
    """The learner."""
    network = make_network(task, config)
    m = config.max_steps

    def prepare(dataset: Dataset) -> Data:
        train, holdout = split_holdout(dataset, config.holdout_fraction, config.max_holdout)
        windows.require_windows(train, m, "the dynamics model's longest jump m")

        def sequences(part: Dataset) -> Sequences:
            # A short holdout may hold no sequence of m steps: its count is then 0.
            missing = max(0, m + 1 - len(part.num_starts))
            return Sequences(
                windows.pack(part.transition), part.order, jnp.pad(part.num_starts, (0, missing))
            )

        observation, action = dataset.transition.observation, dataset.transition.action
        return Data(
            train=sequences(train),
            holdout=sequences(holdout),
            observation_normalizer=fit_normalizer(observation, eps=0.0, floor=1e-12),
            action_normalizer=fit_normalizer(action, eps=0.0, floor=1e-12),
        )

    def init(key: PRNGKey, data: Data) -> State:
        key, network_key = jax.random.split(key)
        observation = jnp.zeros((1, task.observation_dim))
        actions = jnp.zeros((1, m, task.action_dim))
        params = network.init(network_key, observation, actions, 1, deterministic=True)
        return State(
            params=params,
            opt_state=optax.adam(config.learning_rate).init(params),
            best_params=params,
            best_loss=jnp.full((m,), jnp.inf),
            stale_epochs=jnp.zeros((), jnp.int32),
            finished=jnp.zeros((), bool),
            observation_normalizer=data.observation_normalizer,
            action_normalizer=data.action_normalizer,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Data) -> Batch:
        k_key, start_key = jax.random.split(key)
        k = jax.random.randint(k_key, (), 1, m + 1)
        return take_batch(data.train, start_key, k, config.batch_size, task=task, config=config)

    def update(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        dropout_key = jax.random.fold_in(state.key, state.step)
        return apply_update(state, batch, dropout_key, task=task, config=config)

    def validate(state: State, data: Data) -> tuple[State, dict[str, Array]]:
        # A stream of its own: training folds `step` into the same key.
        key = jax.random.fold_in(jax.random.fold_in(state.key, 2**31 - 1), state.step)

        def error(k: Array) -> Array:
            batch_key, dropout_key = jax.random.split(jax.random.fold_in(key, k))
            size = config.validation_size
            batch = take_batch(data.holdout, batch_key, k, size, task=task, config=config)
            _, info = loss(
                state.params, state, batch, dropout_key if config.validation_dropout else None,
                task=task, config=config,
            )  # fmt: skip
            return jnp.where(data.holdout.num_starts[k] > 0, info["mse"], 0.0)

        errors = jax.lax.map(error, jnp.arange(1, m + 1))  # [m]
        better = jnp.any(errors < state.best_loss) & (jnp.mean(errors) < jnp.mean(state.best_loss))
        better &= ~state.finished
        keep = lambda new, old: jnp.where(better, new, old)  # noqa: E731
        stale_epochs = jnp.where(better, 0, state.stale_epochs + 1)
        finished = state.finished | (stale_epochs >= config.patience)
        state = state.replace(
            best_params=jax.tree.map(keep, state.params, state.best_params),
            best_loss=keep(errors, state.best_loss),
            stale_epochs=stale_epochs,
            finished=finished,
        )
        metrics = {"holdout_mse": jnp.mean(errors), "holdout_mse_1_step": errors[0]}
        metrics["best_holdout_mse"] = jnp.mean(state.best_loss)
        return state, metrics

    def steps_per_epoch(data: Data) -> int:
        if config.epoch_steps is not None:
            return config.epoch_steps
        return max(len(data.train.order) // config.batch_size, 1) * m

    return Learner(
        prepare, init, sample, update, validate=validate, steps_per_epoch=steps_per_epoch
    )
