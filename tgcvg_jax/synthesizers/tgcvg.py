"""TGCVG: Trajectory Generation with Conservative Value Guidance (paper section 4).

A Transformer-CQL policy is rolled out against an any-step dynamics model from the first L states
of real windows of K transitions, for H = K + 1 - L steps. Generated transition i stands where
transition L - 1 + i of its window stood, and inherits its terminal, time step and return-to-go.

Beyond the paper, by fields of the config: another policy as the generator, an ensemble as the
dynamics, terminals of its own, rollouts that stop where the ensemble disagrees, other starts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax import tasks
from tgcvg_jax.config import replace_nested
from tgcvg_jax.data import windows
from tgcvg_jax.data.dataset import first_rows, split_holdout
from tgcvg_jax.envs import termination
from tgcvg_jax.models import (
    any_step_dynamics,
    ensemble_dynamics,
    terminal_classifier,
    transformer_cql,
)
from tgcvg_jax.synthesizers.model_rollout import Noise, plausible, rollout, until
from tgcvg_jax.types import (
    Array,
    Dataset,
    Learner,
    Policy,
    PRNGKey,
    PyTree,
    Synthesizer,
    Task,
    Trajectories,
    Transition,
    UserError,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """TGCVG. Defaults: released code; symbols: paper."""

    policy: transformer_cql.Config = transformer_cql.Config()
    dynamics: any_step_dynamics.Config = any_step_dynamics.Config()
    window_length: int = 60  # K, transitions in a source window
    rollout_batch: int = 1_000  # windows in one compiled rollout
    dynamics_dropout: bool = True  # on while generating, as released; paper: not mentioned
    deterministic_policy: bool = False  # True: mean actions; the paper samples
    max_reward_ratio: float = 2.0  # drop a trajectory whose mean reward exceeds this times the max,
    min_reward_slack: float = 0.0  # or falls short of the min by more than this; mazes: 1

    # Beyond the paper.
    dynamics_model: Literal["any_step", "ensemble"] = "any_step"
    ensemble: ensemble_dynamics.Config = ensemble_dynamics.Config()  # trained in place of dynamics
    disagreement_quantile: float | None = None  # stop a rollout where the ensemble disagrees more
    # than on this share of the data's rows; None: all rollouts have H steps
    dynamics_noise: Literal["sampled", "mean", "calibrated"] = "sampled"  # calibrated: scaled so
    # that its size is that of the errors on held-out transitions
    terminals: Literal["inherited", "rule", "classifier"] = "inherited"  # rule: the environment's;
    # with this and the learned classifier a rollout ends where the robot falls
    classifier: terminal_classifier.Config = terminal_classifier.Config()
    terminal_threshold: float = 0.5  # probability from which the classifier says terminal
    start_temperature: float | None = None  # start from episodes with probability ~ exp(their
    # return in standard deviations / this); None: uniform, as published
    left_padded: bool = False  # also start from the first L - 1 steps of episodes, with shorter
    # histories; as published they are never generated
    return_factor: float = (
        1.0  # a generator that asks for a return asks for this times the source's
    )

    @property
    def horizon(self) -> int:
        """H, transitions generated from each window."""
        return self.window_length + 1 - self.policy.context_length


# What each preset changes. `quick` is a run of minutes on two CPU cores: small networks, a warm-up
# by behaviour cloning and a low initial temperature, without which so short a run would still act
# at random (the temperature starts at 1 and takes some 10,000 steps to fall). Its window is the
# longest that it takes; mazes have shorter ones.
PRESETS = {
    "paper": {},
    "quick": {
        "policy": {
            "num_steps": 7_000,
            "context_length": 5,
            "batch_size": 64,
            "hidden_dim": 64,
            "critic_hidden_dims": (64, 64, 64),
            "initial_temperature": 0.05,
            "bc_steps": 2_000,
        },
        "dynamics": {"max_epochs": 10, "epoch_steps": 500, "hidden_dim": 100, "max_steps": 2},
        "ensemble": {
            "max_epochs": 8,
            "epoch_steps": 500,
            "num_members": 5,
            "hidden_dims": (100, 100, 100),
        },
        "classifier": {"num_steps": 2_000, "hidden_dims": (100, 100)},
        "window_length": 25,
        "rollout_batch": 250,
    },
}
MODEL_KINDS = {
    "policy": "transformer_cql",
    "dynamics": "any_step_dynamics",
    "ensemble": "ensemble_dynamics",
    "classifier": "terminal_classifier",
}
NUM_TRANSITIONS = {"paper": 5_000_000, "quick": 50_000}


def for_task(task: Task, preset: str = "paper") -> Config:
    """The released defaults with the papers' settings for a task, and a preset's changes."""
    settings = tasks.tgcvg_settings(task)
    maze, ant = task.domain in tasks.MAZES, task.domain == "antmaze"
    config = Config(
        policy=transformer_cql.Config(
            context_length=settings.context_length,
            cql_weight=settings.cql_weight,
            reward_shift=-0.5 if ant else 0.0,
            reward_scale=4.0 if ant else 1.0,
        ),
        dynamics=any_step_dynamics.Config(
            max_steps=settings.max_steps,
            hidden_dim=settings.dynamics_hidden_dim,
            reward_bias=1.0 if maze else 0.0,
        ),
        window_length=settings.window_length,
        min_reward_slack=1.0 if maze else 0.0,
    )
    changed = replace_nested(config, PRESETS[preset])
    shorter = min(config.window_length, changed.window_length)
    return dataclasses.replace(changed, window_length=shorter)


def as_paper(config: Config) -> Config:
    """The paper's values where they differ from the released code."""
    return dataclasses.replace(
        config,
        policy=transformer_cql.as_paper(config.policy),
        dynamics=dataclasses.replace(config.dynamics, reward_bias=0.0),
        min_reward_slack=0.0,
        dynamics_dropout=False,
    )


@flax.struct.dataclass
class Data:
    """What `generate` reads.

    Attributes:
      transition: fields [M, ...], raw.
      timestep: [M].
      return_to_go: [M].
      age: [M], rows that the row's episode has before it.
      positions: [W], rows where a rollout may begin.
      cdf: [W], cumulative probability of the positions; None: every one once in an epoch.
      reward_range: [2], lowest and highest reward of the dataset.
      holdout: fields [...], the transitions that the dynamics model was not trained on.
    """

    transition: Transition
    timestep: Array
    return_to_go: Array
    age: Array
    positions: Array
    cdf: Array | None
    reward_range: Array
    holdout: Transition


class Dynamics(NamedTuple):
    """One of the dynamics models, as the rollout sees it; functions of its trained state.

    Attributes:
      name: of the model and of the field of its config.
      learner: trains it.
      needs_keys: has dropout, or members to choose from.
      step: (state, observation, action, noise, key) -> (next observation, reward).
      calibration: (state, transitions, key) -> [S + 1], factor on the noise.
      disagreement: (state, observation, action) -> [...]; None if there is nobody to disagree.
    """

    name: str
    learner: Learner
    needs_keys: bool
    step: Callable[..., tuple[Array, Array]]
    calibration: Callable[..., Array]
    disagreement: Callable[..., Array] | None


def make_dynamics(task: Task, config: Config) -> Dynamics:
    """The dynamics model that the config names."""
    ensemble = config.dynamics_model == "ensemble"
    module, name = (ensemble_dynamics, "ensemble") if ensemble else (any_step_dynamics, "dynamics")
    own = getattr(config, name)
    bind = lambda f: functools.partial(f, task=task, config=own)  # noqa: E731
    return Dynamics(
        name,
        module.make(task, own),
        ensemble or config.dynamics_dropout,
        bind(module.step_model),
        bind(module.calibration),
        bind(module.disagreement) if ensemble else None,
    )


def make(task: Task, config: Config, generator: Policy | None = None) -> Synthesizer:
    """The synthesizer.

    Args:
      task: the task.
      config: the config.
      generator: a policy to roll out in place of Transformer-CQL. `generate` finds its trained
        state in `states["policy"]` too, but it is no model that the synthesizer trains. Starts and
        histories are still those of `config.policy.context_length`.

    Raises:
      UserError: the window K is shorter than the policy's context L, or the environment has no
        rule for terminals, or there is no ensemble to disagree.
    """
    length, horizon = config.policy.context_length, config.horizon
    check(task, config)
    dynamics = make_dynamics(task, config)
    models: dict[str, Learner] = {dynamics.name: dynamics.learner}
    policy = generator
    if policy is None:
        models = {"policy": transformer_cql.make(task, config.policy)} | models
        policy = models["policy"].policy
    if config.terminals == "classifier":
        models["classifier"] = terminal_classifier.make(task, config.classifier)

    def prepare(dataset: Dataset) -> Data:
        windows.require_windows(dataset, config.window_length, "the source window K")
        if config.left_padded:
            positions = dataset.order[: windows.num_windows(dataset, horizon)]
        else:
            count = windows.num_windows(dataset, config.window_length)
            positions = dataset.order[:count] + length - 1
        first = first_rows(dataset)
        cdf = None
        if config.start_temperature is not None:
            returns = np.asarray(dataset.return_to_go)[first[np.asarray(positions)]]
            cdf = jnp.asarray(softmax_cdf(returns, config.start_temperature))
        reward = dataset.transition.reward
        own = getattr(config, dynamics.name)
        _, holdout = split_holdout(dataset, own.holdout_fraction, own.max_holdout)
        return Data(
            transition=dataset.transition,
            timestep=dataset.timestep,
            return_to_go=dataset.return_to_go,
            age=jnp.asarray(np.arange(dataset.size) - first, jnp.int32),
            positions=positions,
            cdf=cdf,
            reward_range=jnp.stack([jnp.min(reward), jnp.max(reward)]),
            holdout=holdout.transition,
        )

    def remember(state: PyTree, data: Data, start: Array) -> tuple[PyTree, Array]:
        """The generator's memory before row `start` [B], and the reward of the step before."""
        target = config.return_factor * data.return_to_go[start]
        if policy.prime is None or length == 1:
            return policy.init(state, len(start), target), jnp.zeros(len(start))
        history = windows.take_windows(data.transition, start - (length - 1), length - 1)
        known = jnp.arange(length - 1, 0, -1) <= data.age[start][:, None]  # [B, L - 1]
        reward = jnp.where(known, history.reward, 0.0)
        carry = policy.init(state, len(start), target + jnp.sum(reward, axis=1))
        return policy.prime(state, carry, history, known), reward[:, -1]

    def ending(
        states: dict[str, PyTree], data: Data, transition: Transition, inherited: Array
    ) -> tuple[Array, Array]:
        """Discounts, and which steps count, [B, H] each."""
        mask, discount = jnp.ones_like(inherited, bool), inherited
        if config.terminals != "inherited":
            if config.terminals == "rule":
                terminal = termination.rule(task)(transition.next_observation)
            else:
                probability = terminal_classifier.probability(
                    states["classifier"], transition.observation, transition.action,
                    transition.next_observation, task=task, config=config.classifier,
                )  # fmt: skip
                terminal = probability > config.terminal_threshold
            discount = 1.0 - terminal.astype(inherited.dtype)
            mask &= until(terminal, inclusive=True)
        if config.disagreement_quantile is not None:
            state = states[dynamics.name]
            some = some_rows(data.transition, 2_000)
            usual = dynamics.disagreement(state, some.observation, some.action)
            doubt = dynamics.disagreement(state, transition.observation, transition.action)
            mask &= until(
                doubt > jnp.quantile(usual, config.disagreement_quantile), inclusive=False
            )
        return discount, mask

    def generate(states: dict[str, PyTree], data: Data, key: PRNGKey, chunk: Array) -> Trajectories:
        batch_size = min(config.rollout_batch, len(data.positions))
        start_key, chunk_key = jax.random.split(key)
        if data.cdf is None:
            start = windows.epoch_starts(start_key, data.positions, batch_size, chunk)
        else:
            uniform = jax.random.uniform(jax.random.fold_in(start_key, chunk), (batch_size,))
            start = data.positions[jnp.searchsorted(data.cdf, uniform, side="right")]
        keys = jax.random.split(jax.random.fold_in(chunk_key, chunk), 4)
        shape = (horizon, batch_size, task.observation_dim + 1)
        noise = Noise(
            action=jax.random.split(keys[0], horizon),
            dynamics=jax.random.normal(keys[1], shape),
            model=jax.random.split(keys[2], horizon) if dynamics.needs_keys else None,
        )
        if config.dynamics_noise != "sampled":
            scale = 0.0
            if config.dynamics_noise == "calibrated":
                key = keys[3] if dynamics.needs_keys else None
                scale = dynamics.calibration(states[dynamics.name], data.holdout, key)
            noise = noise.replace(dynamics=scale * noise.dynamics)

        carry, reward = remember(states["policy"], data, start)
        transition = rollout(
            lambda carry, observation, reward, key: policy.act(
                states["policy"], carry, observation, reward, key, config.deterministic_policy
            ),
            functools.partial(dynamics.step, states[dynamics.name]),
            carry,
            data.transition.observation[start],
            reward,
            noise,
        )
        inherited = (data.transition.discount, data.timestep, data.return_to_go)
        discount, timestep, return_to_go = windows.take_windows(inherited, start, horizon)
        discount, mask = ending(states, data, transition, discount)
        keep = plausible(
            transition, mask, data.reward_range, config.min_reward_slack, config.max_reward_ratio
        )
        return Trajectories(
            transition=transition._replace(discount=discount),
            timestep=timestep,
            return_to_go=return_to_go,
            mask=mask & keep[:, None],
        )

    return Synthesizer(models, prepare, generate)


def check(task: Task, config: Config) -> None:
    """A UserError if the parts of a config don't go together."""
    if config.horizon < 1:
        raise UserError(
            f"window_length K = {config.window_length} leaves nothing to generate after "
            f"policy.context_length L = {config.policy.context_length} states; K must be at least L"
        )
    if config.terminals == "rule" and termination.rule(task) is None:
        raise UserError(
            f"terminals=rule: there is none for environment {task.environment or '(none)'}; "
            "use terminals=classifier"
        )
    if config.disagreement_quantile is not None and config.dynamics_model != "ensemble":
        raise UserError("disagreement_quantile needs --set dynamics_model=ensemble")


def softmax_cdf(returns: np.ndarray, temperature: float) -> np.ndarray:
    """Cumulative probabilities ~ exp(standardised return / temperature), [W], the last one 1."""
    score = (returns - returns.mean()) / (returns.std() + 1e-6) / max(temperature, 1e-6)
    cdf = np.cumsum(np.exp(score - score.max()), dtype=np.float64)
    cdf = (cdf / cdf[-1]).astype(np.float32)
    cdf[-1] = 1.0  # a uniform draw is below
    return cdf


def some_rows(transition: Transition, count: int) -> Transition:
    """At most `count` rows, evenly spread."""
    size = len(transition.reward)
    return jax.tree.map(lambda x: x[:: max(size // count, 1)], transition)
