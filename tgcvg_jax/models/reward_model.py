"""Rewards of generated transitions by regression on the data: r(s, a, s')."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data import windows
from tgcvg_jax.data.normalize import Normalizer, fit_normalizer
from tgcvg_jax.networks.mlp import MLP
from tgcvg_jax.types import Array, Dataset, Learner, PRNGKey, PyTree, Task, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Ours; the papers that use one do not describe theirs."""

    num_steps: int = 50_000
    batch_size: int = 256
    hidden_dims: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4


@flax.struct.dataclass
class State:
    """Everything that training changes or predicting needs.

    Attributes:
      params: of the network.
      opt_state: Adam's.
      normalizer: of (s, a, s', r).
      key: PRNG key of the run; no noise is drawn from it, an update has none.
      step: gradient steps done.
    """

    params: PyTree
    opt_state: PyTree
    normalizer: Normalizer
    key: PRNGKey
    step: Array


@flax.struct.dataclass
class Data:
    """What `sample` reads.

    Attributes:
      rows: [M, 2 S + A + 1], (s, a, s', r), standardised.
      normalizer: of them.
    """

    rows: Array
    normalizer: Normalizer


def make_network(config: Config) -> MLP:
    """The module."""
    return MLP((*config.hidden_dims, 1))


def _rows(t: Transition) -> Array:
    """(s, a, s', r) [..., 2 S + A + 1]."""
    return windows.pack(t)[..., :-1]


def predict(state: State, transition: Transition, config: Config) -> Array:
    """Rewards [...] of transitions; their own are not looked at."""
    inputs = state.normalizer(_rows(transition))[..., :-1]
    out = make_network(config).apply(state.params, inputs)[..., 0]
    return out * state.normalizer.std[-1] + state.normalizer.mean[-1]


def make(task: Task, config: Config) -> Learner:
    """The learner: mean squared error of the standardised reward."""
    network, optimizer = make_network(config), optax.adam(config.learning_rate)

    def prepare(dataset: Dataset) -> Data:
        rows = _rows(dataset.transition)
        normalizer = fit_normalizer(rows, eps=1e-5)
        return Data(normalizer(rows), normalizer)

    def init(key: PRNGKey, data: Data) -> State:
        key, network_key = jax.random.split(key)
        width = 2 * task.observation_dim + task.action_dim
        params = network.init(network_key, jnp.zeros((1, width)))
        step = jnp.zeros((), jnp.int32)
        return State(params, optimizer.init(params), data.normalizer, key, step)

    def sample(key: PRNGKey, data: Data) -> Array:
        return data.rows[jax.random.randint(key, (config.batch_size,), 0, len(data.rows))]

    def loss(params: PyTree, batch: Array) -> Array:
        return jnp.mean(jnp.square(network.apply(params, batch[:, :-1])[:, 0] - batch[:, -1]))

    def update(state: State, batch: Array) -> tuple[State, dict[str, Array]]:
        value, grads = jax.value_and_grad(loss)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
        return state, {"loss": value}

    return Learner(prepare, init, sample, update)
