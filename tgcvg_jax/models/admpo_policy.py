"""ADMPO-OFF's policy (Lin et al. 2024, arXiv 2405.17031): SAC on rollouts of the any-step model.

The dynamics model can predict the next state from 1, ..., m steps back. One of these predictions,
at random, is where a rollout goes on; how much all of them differ is taken for the model's error
and subtracted from the reward.

The released code makes 50,000 rollouts after every 1,000 gradient steps. Here rollouts never stop:
as many as give the same number of transitions in a gradient step ("particles") are kept in the
state; each update moves all of them one step with the present policy, writes what they did into a
ring, and then takes one gradient step. So the program is the same in every update, rollouts are of
the newest policy, and what they hold is part of the checkpoint.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data import windows
from tgcvg_jax.envs import termination
from tgcvg_jax.learners import sac
from tgcvg_jax.models import any_step_disagreement, any_step_dynamics
from tgcvg_jax.ops.distributions import tanh_normal_sample
from tgcvg_jax.types import Array, Dataset, Learner, PRNGKey, PyTree, Task, Transition, UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """ADMPO-OFF's policy. Defaults: released code, but for what is said beside them."""

    num_steps: int = 5_000_000
    max_steps: int = 5  # m, longest way back of a prediction; at most that of the dynamics model
    rollout_length: int = 5  # model steps of a rollout; released: per task, else 1
    penalty: float = 1.0  # of the disagreement, in the units of the reward per unit of the state
    real_ratio: float = 0.05  # share of the dataset in a batch
    rollouts_per_step: int = 50  # rollouts for each gradient step; see `num_particles`
    capacity: int = 250_000  # model transitions kept; released: 250,000 * rollout_length
    dynamics_dropout: bool = True  # on in rollouts, as released, which never leaves training mode
    batch_size: int = 256
    hidden_dims: tuple[int, ...] = (256, 256)
    actor_learning_rate: float = 1e-4  # falls to 0 over num_steps, as a cosine
    critic_learning_rate: float = 3e-4
    temperature_learning_rate: float = 1e-4
    temperature: float = 0.1  # alpha
    learn_temperature: bool = False  # from `temperature` on, towards an entropy of -A; released:
    # off for all of D4RL's tasks
    discount: float = 0.99  # gamma
    tau: float = 0.005
    min_log_std: float = -20.0
    max_log_std: float = 2.0

    @property
    def num_particles(self) -> int:
        """P, rollouts under way, and so model transitions in a gradient step.

        50 * rollout_length, as in the released code: 50,000 rollouts in 1,000 gradient steps.
        """
        return self.rollouts_per_step * self.rollout_length

    @property
    def ring_size(self) -> int:
        """Rows of the ring: `capacity`, rounded up to whole updates of all particles.

        The default holds the last 5,000 / rollout_length gradient steps' transitions, the released
        code's the last 5,000; at a tenth of a kilobyte or two a row, that is up to a gigabyte.
        """
        return -(-self.capacity // self.num_particles) * self.num_particles


@flax.struct.dataclass
class Particles:
    """Rollouts under way. Before a rollout's first step come m - 1 real ones.

    Attributes:
      observation: [P, m, S], raw; the last is the present state.
      action: [P, m - 1, A], those between these states.
      age: [P] int32, model steps since the start, below rollout_length.
    """

    observation: Array
    action: Array
    age: Array


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      params: {actor, critic, log_alpha}, as SAC's.
      target_critic: like params['critic'].
      opt_state: Adam's, for each of the params.
      particles: the rollouts under way.
      ring: their transitions, the oldest overwritten first.
      key: PRNG key of the run; never advanced.
      step: gradient steps done.
    """

    params: PyTree
    target_critic: PyTree
    opt_state: PyTree
    particles: Particles
    ring: sac.Ring
    key: PRNGKey
    step: Array


@flax.struct.dataclass
class Data:
    """Packed raw rows [M, 2 S + A + 2], where windows of m start, and the dynamics' state."""

    rows: Array
    order: Array
    num_starts: Array
    dynamics: any_step_dynamics.State | None


@flax.struct.dataclass
class Batch:
    """What an update reads of the data.

    Attributes:
      real: fields [R, ...], transitions of the dataset.
      starts: fields [P, m, ...], real windows at whose last states rollouts may start.
      dynamics: trained dynamics, one seed.
    """

    real: Transition
    starts: Transition
    dynamics: any_step_dynamics.State


def sac_config(config: Config) -> sac.Config:
    """What SAC's networks and losses read."""
    return sac.Config(
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        hidden_dims=config.hidden_dims,
        discount=config.discount,
        tau=config.tau,
        min_log_std=config.min_log_std,
        max_log_std=config.max_log_std,
        initial_temperature=config.temperature,
    )


def make_optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """For each of the params. (The released cosine goes down every 1,000 steps, not every one.)"""
    decay = optax.cosine_decay_schedule(config.actor_learning_rate, config.num_steps)
    learn = optax.adam(config.temperature_learning_rate)
    return {
        "actor": optax.adam(decay),
        "critic": optax.adam(config.critic_learning_rate),
        "log_alpha": learn if config.learn_temperature else optax.set_to_zero(),
    }


class Noise(NamedTuple):
    """Random draws of one step of P rollouts.

    Attributes:
      action: [P, A], standard normal.
      dynamics: [P, S + 1], standard normal.
      steps_back: [P] int32 in 1..m, the prediction with which each goes on.
      dropout: PRNG key; None turns dropout off.
    """

    action: Array
    dynamics: Array
    steps_back: Array
    dropout: PRNGKey | None


def draw_noise(key: PRNGKey, count: int, task: Task, config: Config) -> Noise:
    """The draws for one step of `count` rollouts."""
    keys = jax.random.split(key, 4)
    return Noise(
        action=jax.random.normal(keys[0], (count, task.action_dim)),
        dynamics=jax.random.normal(keys[1], (count, task.observation_dim + 1)),
        steps_back=jax.random.randint(keys[2], (count,), 1, config.max_steps + 1),
        dropout=keys[3] if config.dynamics_dropout else None,
    )


def start(windows_: Transition, age: Array) -> Particles:
    """Rollouts that stand in the last state of real windows, fields [P, m, ...]."""
    return Particles(windows_.observation, windows_.action[:, :-1], age)


def take_step(
    actor_params: PyTree,
    dynamics: any_step_dynamics.State,
    particles: Particles,
    noise: Noise,
    *,
    task: Task,
    config: Config,
    dynamics_config: any_step_dynamics.Config,
) -> tuple[Particles, Transition, Array]:
    """All rollouts by one step.

    Args:
      actor_params: of SAC's actor.
      dynamics: trained dynamics, one seed.
      particles: where they stand.
      noise: the draws.
      task: the task; its environment's rule says where the MDP terminates. Where the rule can't be
        read off states (see `envs.termination`), nothing does.
      config: the config.
      dynamics_config: of the dynamics.

    Returns:
      Particles one step on, what they did (fields [P, ...], rewards without penalty), and the
      disagreement [P].
    """
    actor, _ = sac.make_networks(task, sac_config(config))
    observation = particles.observation[:, -1]
    distribution = sac.distribution(actor, actor_params, observation, sac_config(config))
    action = tanh_normal_sample(*distribution, noise.action)[0]
    actions = jnp.concatenate([particles.action, action[:, None]], axis=1)  # [P, m, A]
    next_observation, reward, error = any_step_disagreement.step_model(
        dynamics, particles.observation, actions, noise.dynamics, noise.steps_back, noise.dropout,
        task=task, config=dynamics_config,
    )  # fmt: skip
    discount = jnp.ones_like(reward)
    if (rule := termination.rule(task)) is not None:
        discount = jnp.where(rule(next_observation), 0.0, discount)
    states = jnp.concatenate([particles.observation[:, 1:], next_observation[:, None]], axis=1)
    moved = Particles(states, actions[:, 1:], particles.age + 1)
    return moved, Transition(observation, action, reward, discount, next_observation), error


def all_finite(transition: Transition) -> Array:
    """[...] bool, no NaN or infinity in a transition."""
    return jnp.all(jnp.isfinite(windows.pack(transition)), axis=-1)


def advance(
    actor_params: PyTree,
    particles: Particles,
    batch: Batch,
    noise: Noise,
    *,
    task: Task,
    config: Config,
    dynamics_config: any_step_dynamics.Config,
) -> tuple[Particles, Transition, dict[str, Array]]:
    """One step of all rollouts; those that are over start anew from the batch's windows.

    A rollout is over after rollout_length steps, at a terminal, or if the model breaks down (NaN):
    then the real transition at its new start stands for what it did.

    Returns:
      Particles, what they did (fields [P, ...], penalised rewards), metrics.
    """
    moved, transition, error = take_step(
        actor_params, batch.dynamics, particles, noise,
        task=task, config=config, dynamics_config=dynamics_config,
    )  # fmt: skip
    transition = transition._replace(reward=transition.reward - config.penalty * error)
    finite = all_finite(transition)
    real = jax.tree.map(lambda x: x[:, -1], batch.starts)
    over = (moved.age >= config.rollout_length) | (transition.discount == 0.0) | ~finite
    transition = _select(finite, transition, real)
    metrics = {
        "model_reward": jnp.mean(transition.reward),
        "disagreement": jnp.mean(jnp.where(finite, error, 0.0)),
        "model_terminals": jnp.mean(transition.discount == 0.0),
        "broken_rollouts": jnp.mean(~finite),
    }
    fresh = start(batch.starts, jnp.zeros_like(moved.age))
    return _select(over, fresh, moved), transition, metrics


def _select(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """`where` with a condition [P] on all leaves [P, ...]."""
    where = lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(where, if_true, if_false)


def mix(real: Transition, ring: sac.Ring, key: PRNGKey, task: Task, config: Config) -> Transition:
    """A batch for SAC: the real transitions, then model transitions drawn from the ring."""
    index = jax.random.randint(key, (config.batch_size - len(real.reward),), 0, ring.size)
    model = windows.unpack(ring.rows[index], task.observation_dim, task.action_dim)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), real, model)


def gradient_step(
    state: State, batch: Transition, noise: Array, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """SAC's gradient step with the learning rate of each part. (Released: critics, then actor.)"""
    grads, info = jax.grad(sac.loss, has_aux=True)(
        state.params, state.target_critic, batch, noise, task, sac_config(config)
    )
    params, opt_state = {}, {}
    for name, optimizer in make_optimizers(config).items():
        updates, opt_state[name] = optimizer.update(grads[name], state.opt_state[name])
        params[name] = optax.apply_updates(state.params[name], updates)
    target_critic = optax.incremental_update(params["critic"], state.target_critic, config.tau)
    state = state.replace(
        params=params, opt_state=opt_state, target_critic=target_critic, step=state.step + 1
    )
    return state, info


def make(
    task: Task,
    config: Config,
    dynamics_config: any_step_dynamics.Config | None = None,
    dynamics: any_step_dynamics.State | None = None,
) -> Learner:
    """The learner.

    Args:
      task: the task.
      config: the config.
      dynamics_config: of the dynamics.
      dynamics: trained dynamics, one seed. Without it the learner has no `update`s but all else, so
        that a trained policy can be loaded and act by itself.

    Raises:
      UserError: the config asks for predictions from further back than the dynamics model's.
    """
    if dynamics_config is not None and config.max_steps > dynamics_config.max_steps:
        raise UserError(
            f"policy.max_steps={config.max_steps} is beyond dynamics.max_steps="
            f"{dynamics_config.max_steps}, the longest jump that the model learns; set both alike"
        )
    m, count = config.max_steps, config.num_particles
    num_real = int(config.real_ratio * config.batch_size)
    base = sac.make(task, sac_config(config))

    def prepare(dataset: Dataset) -> Data:
        windows.require_windows(dataset, m, "the longest way back m of a prediction")
        rows = windows.pack(dataset.transition)
        return Data(rows, dataset.order, dataset.num_starts, dynamics)

    def take_starts(key: PRNGKey, data: Data) -> Transition:
        starts = windows.sample_starts(key, data.order, data.num_starts, m, count)
        rows = windows.take_windows(data.rows, starts, m)
        return windows.unpack(rows, task.observation_dim, task.action_dim)

    def init(key: PRNGKey, data: Data) -> State:
        key, start_key = jax.random.split(key)
        networks = base.init(key, None)
        # Of all ages, so that each update starts a share of them, not all at once.
        age = jnp.arange(count, dtype=jnp.int32) % config.rollout_length
        optimizers = make_optimizers(config).items()
        return State(
            params=networks.params,
            target_critic=networks.target_critic,
            opt_state={name: x.init(networks.params[name]) for name, x in optimizers},
            particles=start(take_starts(start_key, data), age),
            ring=sac.empty_ring(task, config.ring_size),
            key=networks.key,
            step=networks.step,
        )

    def sample(key: PRNGKey, data: Data) -> Batch:
        real_key, start_key = jax.random.split(key)
        index = jax.random.randint(real_key, (num_real,), 0, len(data.rows))
        real = windows.unpack(data.rows[index], task.observation_dim, task.action_dim)
        return Batch(real, take_starts(start_key, data), data.dynamics)

    def update(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        if dynamics_config is None or batch.dynamics is None:
            raise ValueError("this learner was made without a dynamics model, so it can't learn")
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        particles, transition, metrics = advance(
            state.params["actor"], state.particles, batch, draw_noise(keys[0], count, task, config),
            task=task, config=config, dynamics_config=dynamics_config,
        )  # fmt: skip
        # The position in the ring comes from `step`, which a resumed run has, too.
        position = state.step % (config.ring_size // count) * count
        ring = sac.insert(state.ring, windows.pack(transition), position)
        state = state.replace(particles=particles, ring=ring)
        mixed = mix(batch.real, ring, keys[1], task, config)
        noise = jax.random.normal(keys[2], (2, *mixed.action.shape))
        state, info = gradient_step(state, mixed, noise, task=task, config=config)
        return state, metrics | jax.tree.map(jnp.mean, info)

    return Learner(prepare, init, sample, update, policy=base.policy, num_steps=config.num_steps)
