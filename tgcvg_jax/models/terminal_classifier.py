"""Terminals of generated transitions by a classifier of the data's: p(terminal | s, a, s').

For tasks whose rule is not known (see `envs.termination`). No paper has it.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data.normalize import Normalizer, fit_normalizer
from tgcvg_jax.networks.mlp import MLP
from tgcvg_jax.types import Array, Dataset, Learner, PRNGKey, PyTree, Task


@dataclasses.dataclass(frozen=True)
class Config:
    """Ours."""

    num_steps: int = 10_000
    batch_size: int = 256
    hidden_dims: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    weight_decay: float = 0.3  # AdamW's; without it a few hundred terminals are learned by heart
    terminal_share: float = 0.5  # of a batch; the data has a few in a thousand


@flax.struct.dataclass
class State:
    """Everything that training changes or predicting needs.

    Attributes:
      params: of the network.
      opt_state: AdamW's.
      normalizer: of (s, a, s').
      shift: what a logit learned at `terminal_share` is short of at the data's own share.
      key: PRNG key of the run; no noise is drawn from it, an update has none.
      step: gradient steps done.
    """

    params: PyTree
    opt_state: PyTree
    normalizer: Normalizer
    shift: Array
    key: PRNGKey
    step: Array


@flax.struct.dataclass
class Data:
    """What `sample` reads.

    Attributes:
      rows: [M, 2 S + A + 1], (s, a, s') standardised, and 1 for a terminal; terminals first.
      num_terminals: how many rows are.
      normalizer: of (s, a, s').
    """

    rows: Array
    num_terminals: Array
    normalizer: Normalizer


def make_network(config: Config) -> MLP:
    """The module."""
    return MLP((*config.hidden_dims, 1))


def _inputs(observation: Array, action: Array, next_observation: Array) -> Array:
    """(s, a, s') [..., 2 S + A].

    s' as it is, not s' - s: rules are bounds on s' (a height, an angle, a goal's surroundings),
    which a unit then sees alone, without having to add two inputs of different scales.
    """
    return jnp.concatenate([observation, action, next_observation], axis=-1)


def probability(
    state: State,
    observation: Array,
    action: Array,
    next_observation: Array,
    *,
    task: Task,
    config: Config,
) -> Array:
    """Probability that the step ended in a terminal state.

    Calibrated for the data's own share of terminals, so 0.5 is the threshold of fewest errors.

    Args:
      state: trained state.
      observation: [..., S], raw.
      action: [..., A].
      next_observation: [..., S], raw.
      task: the task.
      config: the config.

    Returns:
      [...] in 0..1.
    """
    inputs = state.normalizer(_inputs(observation, action, next_observation))
    logit = make_network(config).apply(state.params, inputs)[..., 0]
    return jax.nn.sigmoid(logit + state.shift)


def num_drawn(config: Config) -> int:
    """Terminals in a batch: at least one, and at least one row that is none."""
    wanted = round(config.terminal_share * config.batch_size)
    return min(max(wanted, 1), config.batch_size - 1)


def logit_shift(num_terminals: Array, size: int, config: Config) -> Array:
    """log odds of a terminal in the data, less those in a batch.

    By Bayes' rule the two posteriors' logits differ by just that. The data's share is
    (n + 1/2) / (M + 1), Jeffreys' estimate, which is neither 0 nor 1: data without a terminal
    predicts almost none.
    """
    share = (num_terminals + 0.5) / (size + 1.0)
    drawn = config.batch_size / num_drawn(config)
    return jnp.log(share / (1.0 - share)) + jnp.log(drawn - 1.0)


def make(task: Task, config: Config) -> Learner:
    """The learner: binary cross entropy on batches with a fixed share of terminals."""
    network = make_network(config)
    optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    drawn = num_drawn(config)

    def prepare(dataset: Dataset) -> Data:
        t = dataset.transition
        inputs = _inputs(t.observation, t.action, t.next_observation)
        normalizer = fit_normalizer(inputs, eps=0.0, floor=1e-12)
        terminal = (t.discount == 0.0).astype(inputs.dtype)
        rows = jnp.concatenate([normalizer(inputs), terminal[:, None]], axis=-1)
        order = jnp.argsort(-terminal, stable=True)
        return Data(rows[order], jnp.sum(terminal).astype(jnp.int32), normalizer)

    def init(key: PRNGKey, data: Data) -> State:
        key, network_key = jax.random.split(key)
        params = network.init(network_key, jnp.zeros((1, data.rows.shape[-1] - 1)))
        return State(
            params=params,
            opt_state=optimizer.init(params),
            normalizer=data.normalizer,
            shift=logit_shift(data.num_terminals, len(data.rows), config),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Data) -> Array:
        """[B, 2 S + A + 1]; a kind that the data lacks is replaced by the other."""
        size, count = len(data.rows), data.num_terminals
        terminal_key, other_key = jax.random.split(key)
        end = jnp.where(count > 0, count, size)
        begin = jnp.where(count < size, count, 0)
        terminal = jax.random.randint(terminal_key, (drawn,), 0, end)
        other = jax.random.randint(other_key, (config.batch_size - drawn,), begin, size)
        return data.rows[jnp.concatenate([terminal, other])]

    def loss(params: PyTree, batch: Array) -> tuple[Array, dict[str, Array]]:
        logit, label = network.apply(params, batch[:, :-1])[:, 0], batch[:, -1]
        value = jnp.mean(optax.sigmoid_binary_cross_entropy(logit, label))
        accuracy = jnp.mean((logit > 0) == (label > 0.5))
        return value, {"loss": value, "balanced_accuracy": accuracy}

    def update(state: State, batch: Array) -> tuple[State, dict[str, Array]]:
        grads, info = jax.grad(loss, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state, step=state.step + 1), info

    return Learner(prepare, init, sample, update)
