"""Core types. Everything else in the library is a function between these.

Layer 0: this module imports nothing of ours.

Shapes in this project: M transitions in a dataset, B batch, T time, L context length, S observation
dimension, A action dimension, N seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax

Array = jax.Array
PRNGKey = jax.Array
PyTree = Any

ORIGINAL, SYNTHETIC = 0, 1  # values of Dataset.source


class UserError(Exception):
    """Something the user can mend: what is wrong and what to do, in one line.

    Apps print it as `error: ...` and exit with status 2; libraries may catch it.
    """


def one_line(error: BaseException) -> str:
    """An exception's message on one line, or its type if it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Source(NamedTuple):
    """One place where a task's data may come from.

    Attributes:
      kind: `bundled` (a file of this package), `d4rl` (an HDF5 file, by file name), or `minari`
        (a dataset id).
      name: the file name or id.
      path: for `d4rl`, the path below the download root.
    """

    kind: str
    name: str
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark task: an environment, its scale of scores, and where its data is.

    Hashable, so it can be static under jit.

    Attributes:
      name: what the user types after `--env=`.
      environment: Gymnasium id of the evaluation environment; empty if there is none. It names the
        simulator exactly: `tgcvg/Hopper-v2` is Hopper with D4RL's physics, `Hopper-v4` as it is.
      environment_kwargs: its constructor's arguments as JSON; empty if there are none.
      observation_dim: S.
      action_dim: A.
      episode_length: time limit in steps.
      min_score: return that scores 0, None if the task has no reference.
      max_score: return that scores 100, None if the task has no reference.
      family: key into the papers' per-task settings, for example `hopper-medium`; up to the first
        dash the `domain`, which says how a file is read and how rewards are transformed.
      sources: tried in order.
      eval_episodes: evaluation episodes for each seed.
    """

    name: str
    environment: str
    observation_dim: int
    action_dim: int
    episode_length: int
    min_score: float | None = None
    max_score: float | None = None
    family: str = ""
    sources: tuple[Source, ...] = ()
    eval_episodes: int = 10
    environment_kwargs: str = ""

    @property
    def domain(self) -> str:
        """The first word of the family, for example `hopper`, `maze2d` or `antmaze`."""
        return self.family.split("-")[0]


class Transition(NamedTuple):
    """One step of an MDP, with any leading axes.

    Attributes:
      observation: [..., S].
      action: [..., A].
      reward: [...].
      discount: [...]; 0.0 only where the MDP terminated. A time-out keeps 1.0, so that
        bootstrapping through it is right by construction.
      next_observation: [..., S].
    """

    observation: Array
    action: Array
    reward: Array
    discount: Array
    next_observation: Array


class Trajectories(NamedTuple):
    """Sequences, forward in time and left-aligned: `mask` is True, then False.

    Attributes:
      transition: fields [N, T, ...].
      timestep: [N, T] int32, step within the episode that the sequence belongs to.
      return_to_go: [N, T], undiscounted.
      mask: [N, T] bool.
    """

    transition: Transition
    timestep: Array
    return_to_go: Array
    mask: Array


@flax.struct.dataclass
class Dataset:
    """M transitions on the device, episode after episode.

    A window of T transitions starting at i lies inside one episode iff `remaining[i] >= T`; such
    starts are `order[:num_starts[T]]`, so sampling one is a single gather, also for a traced T.

    Attributes:
      transition: fields [M, ...].
      timestep: [M] int32, step within the episode.
      remaining: [M] int32, transitions left in the episode, this one included (>= 1).
      return_to_go: [M], undiscounted.
      source: [M] uint8, ORIGINAL or SYNTHETIC.
      order: [M] int32, indices by falling `remaining`.
      num_starts: [1 + longest episode] int32; num_starts[T] counts the starts of windows of T.
      task: the task (static).
    """

    transition: Transition
    timestep: Array
    remaining: Array
    return_to_go: Array
    source: Array
    order: Array
    num_starts: Array
    task: Task = flax.struct.field(pytree_node=False)

    @property
    def size(self) -> int:
        """Number of transitions, M."""
        return self.timestep.shape[0]


def _no_carry(state: PyTree, batch_size: int, target_return: float | None = None) -> PyTree:
    return ()


class Policy(NamedTuple):
    """How a trained state acts, for one seed; `vmap` it for several.

    Attributes:
      act: (state, carry, observation [B, S], previous_reward [B], key, deterministic) ->
        (action [B, A], carry). `deterministic` is a Python bool. Observations are raw: whatever
        normalisation the policy needs lives in its state.
      init: (state, batch_size, target_return) -> carry, by default (). `target_return` may be None,
        a number or [B]; policies that are not conditioned on a return ignore it.
      prime: (state, carry, history, mask) -> carry, for policies with a memory: `history` is a
        Transition [B, T, ...] of the T raw steps before the present one, `mask` [B, T] False where
        there is none (at the front). None: the policy has no memory, or can't be told.
    """

    act: Callable[..., tuple[Array, PyTree]]
    init: Callable[..., PyTree] = _no_carry
    prime: Callable[..., PyTree] | None = None


class Learner(NamedTuple):
    """Anything trained by gradient, as pure functions, in the manner of an optax transformation.

    `training.fit` runs it: the loop, vmap over seeds, donation, checkpoints and logging are written
    once, there. A state is a `flax.struct` dataclass with at least `key` (a PRNG key,
    never advanced: noise comes from `fold_in(key, step)`) and `step` (int32, gradient steps done).

    Attributes:
      prepare: dataset -> data, once, outside jit: starts, statistics, holdout. A pytree of arrays
        that the jitted chunk takes as an argument and shares between seeds.
      init: (key, data) -> state.
      sample: (key, data) -> batch, for one call of `update`.
      update: (state, batch) -> (state, metrics), `steps_per_update` gradient steps. Metrics are
        scalars; `fit` reports their means.
      steps_per_update: gradient steps in one `update`.
      policy: how the trained state acts, if it can.
      validate: optional, (state, data) -> (state, metrics), called after every epoch. Best
        snapshots and patience live in the state, so they resume exactly, and so does a bool field
        `finished`, which ends training once it is True for all seeds; from then on further calls
        must leave the state's result unchanged.
      steps_per_epoch: with `validate`: data -> gradient steps between validations.
      num_steps: what its learning rates are made for, where they depend on the length of the run;
        `fit` then refuses another.
    """

    prepare: Callable[[Dataset], PyTree]
    init: Callable[[PRNGKey, PyTree], PyTree]
    sample: Callable[[PRNGKey, PyTree], PyTree]
    update: Callable[[PyTree, PyTree], tuple[PyTree, dict[str, Array]]]
    steps_per_update: int = 1
    policy: Policy | None = None
    validate: Callable[[PyTree, PyTree], tuple[PyTree, dict[str, Array]]] | None = None
    steps_per_epoch: Callable[[PyTree], int] | None = None
    num_steps: int | None = None


# What a synthesizer trains: a learner, or, if it learns from models before it, a function of their
# trained states, one seed, by name.
Model = Learner | Callable[[dict[str, PyTree]], Learner]


class Synthesizer(NamedTuple):
    """A system that augments a dataset.

    Attributes:
      models: what is trained before anything is generated, in this order, by name; the name is also
        the folder of the checkpoints. `training.fit_models` trains them.
      prepare: (dataset) -> data that `generate` takes.
      generate: (states by model name, data, key, chunk) -> Trajectories. Pure, with the key folded
        with the chunk number: a run streams, resumes, and can be extended.
    """

    models: dict[str, Model]
    prepare: Callable[[Dataset], PyTree]
    generate: Callable[[dict[str, PyTree], PyTree, PRNGKey, Array], Trajectories]
