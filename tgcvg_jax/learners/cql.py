"""Conservative Q-Learning, CQL(H) and its Lagrangian version (Kumar et al. 2020), as in CORL."""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.data.replay import Buffer, Replay, draw, make_buffer
from tgcvg_jax.networks.gaussian import GaussianMLP
from tgcvg_jax.networks.mlp import EnsembleQ
from tgcvg_jax.ops import gradients, losses
from tgcvg_jax.ops.distributions import tanh_normal_sample
from tgcvg_jax.tasks import paper_family
from tgcvg_jax.types import Array, Dataset, Learner, Policy, PRNGKey, PyTree, Task, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """CQL. Defaults: CORL's current ones; symbols: paper."""

    replay: Replay = Replay()
    num_steps: int = 1_000_000  # gradient steps
    batch_size: int = 256
    hidden_dims: tuple[int, ...] = (256, 256, 256)  # actor
    critic_hidden_dims: tuple[int, ...] = (256, 256, 256)
    actor_init: Literal["torch", "orthogonal"] = "torch"  # older CORL: orthogonal, as the critics
    last_layer_gain: float = 1e-2  # of the initialisation, all networks; older CORL: sqrt(2)
    policy_learning_rate: float = 3e-5  # actor and temperature
    critic_learning_rate: float = 3e-4  # critics and alpha'
    discount: float = 0.99  # gamma
    tau: float = 0.005
    min_log_std: float = -20.0
    max_log_std: float = 2.0
    backup_entropy: bool = False  # the target takes SAC's entropy in
    max_target_backup: bool = False  # target: the best of num_action_samples actions, not of one
    num_action_samples: int = 10  # n, each from uniform, pi(.|s) and pi(.|s'): 30 in all
    cql_alpha: float = 10.0  # alpha, weight of the conservative term
    cql_temperature: float = 1.0  # of its soft maximum
    clip_diff_min: float | None = None  # bounds of each state's soft maximum less Q of the data
    clip_diff_max: float | None = None
    lagrange: bool = False  # the conservative term's weight is alpha alpha', and alpha' is learnt
    target_action_gap: float = 5.0  # tau, what alpha' keeps that term near
    micro_batch: int | None = None  # states at a time, same result; None: 32 on a CPU, else all


PRESETS = {"paper": {}, "quick": {"num_steps": 10_000}}

_OLDER = {"actor_init": "orthogonal", "last_layer_gain": 2.0**0.5}
_MAZE2D = {"lagrange": True, "target_action_gap": 5.0}
_CORL = {  # by family, else by domain; where CORL's file for a task differs from its defaults
    # CORL's current code declares reward_scale and reward_bias twice; the second pair, 5 and -1, is
    # there for AntMaze's sake and wins here, too. These are the values from before.
    "hopper-medium": {"replay": Replay(normalize_return=True)},
    "maze2d": _MAZE2D,
    "antmaze": {
        "replay": Replay(normalize_states=False, reward_shift=-0.5, reward_scale=10.0),
        "critic_hidden_dims": (256,) * 5,  # CORL passes it to critic_1 alone, critic_2 keeps 3
        "policy_learning_rate": 1e-4,
        "max_target_backup": True,
        "cql_alpha": 5.0,
        "clip_diff_min": -200.0,
        "lagrange": True,
        "target_action_gap": 0.8,
    },
}


def for_task(task: Task, hyperparameters: str = "tgcvg") -> Config:
    """CORL's files of its tasks; or what TGCVG and GTA run, an older CORL which starts its networks
    otherwise: TGCVG for all tasks, GTA in larger batches, with the Lagrangian version in Maze2D.
    """
    family = paper_family(task)
    if hyperparameters == "corl":
        return Config(**_CORL.get(family, _CORL.get(family.split("-")[0], {})))
    if hyperparameters == "tgcvg":
        return Config(**_OLDER)
    mazes = _MAZE2D if family.startswith("maze2d") else {}
    return Config(batch_size=1024, **_OLDER, **mazes)


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      params: {actor, critic, log_alpha}, both critics stacked on axis 0; in the Lagrangian version
        log_alpha_prime, too.
      target_critic: like params['critic'].
      opt_state: one state of Adam for each entry of params.
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
class Noise:
    """All random draws of one update, n = num_action_samples.

    Attributes:
      policy: [B, 1, A] normal, for the temperature's and the actor's loss.
      target: [B, 1, A] normal, for the target; [B, n, A] with max_target_backup.
      random: [B, n, A] uniform in (-1, 1).
      current: [B, n, A] normal, for actions in the states.
      next: [B, n, A] normal, for actions in the next states.
    """

    policy: Array
    target: Array
    random: Array
    current: Array
    next: Array


def make_networks(task: Task, config: Config) -> tuple[GaussianMLP, EnsembleQ]:
    """Actor (before tanh) and twin critics."""
    gain = config.last_layer_gain
    actor = GaussianMLP(
        config.hidden_dims, task.action_dim, init_scheme=config.actor_init, output_gain=gain,
        min_log_std=config.min_log_std, max_log_std=config.max_log_std,
    )  # fmt: skip
    critic = EnsembleQ(config.critic_hidden_dims, init_scheme="orthogonal", output_gain=gain)
    return actor, critic


def make_optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """One for each entry of the parameters."""
    policy = optax.adam(config.policy_learning_rate)
    critic = optax.adam(config.critic_learning_rate)
    optimizers = {"actor": policy, "critic": critic, "log_alpha": policy}
    return optimizers | {"log_alpha_prime": critic} if config.lagrange else optimizers


def draw_actions(
    params: PyTree, observation: Array, noise: Array, task: Task, config: Config
) -> tuple[Array, Array]:
    """The actor's actions [B, J, A] in [B, S], and their log densities, for noise [B, J, A]."""
    mean, log_std = make_networks(task, config)[0].apply(params, observation)
    return tanh_normal_sample(mean[:, None], log_std[:, None], noise)


def q_values(
    params: PyTree, observation: Array, actions: Array, task: Task, config: Config
) -> Array:
    """[B, S], [B, J, A] -> [2, B, J], all actions of a state in one call."""
    shape = (*actions.shape[:-1], task.observation_dim)
    observation = jnp.broadcast_to(observation[:, None], shape)
    return make_networks(task, config)[1].apply(params, observation, actions)


def policy_loss(
    params: PyTree, batch: Transition, noise: Noise, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """SAC's losses of the temperature, with target entropy -A, and of the actor.

    Gradients go to the actor and log_alpha only; arguments and results are as those of `loss`.
    """
    stop, static = jax.lax.stop_gradient, (task, config)
    action, log_prob = draw_actions(params["actor"], batch.observation, noise.policy, *static)
    alpha_loss = -jnp.mean(params["log_alpha"] * stop(log_prob - task.action_dim))
    alpha = jnp.exp(stop(params["log_alpha"]))
    q = jnp.min(q_values(stop(params["critic"]), batch.observation, action, *static), axis=0)
    actor_loss = jnp.mean(alpha * log_prob - q)
    return alpha_loss + actor_loss, {
        "alpha": alpha,
        "alpha_loss": alpha_loss,
        "actor_loss": actor_loss,
        "entropy": -jnp.mean(log_prob),
        "q_policy": q[:, 0],
    }


def td_target(
    params: PyTree,
    target_critic: PyTree,
    batch: Transition,
    noise: Noise,
    task: Task,
    config: Config,
) -> Array:
    """Targets [B]: r + gamma min Q of an action drawn in s', the best if there are several."""
    observation, static = batch.next_observation, (task, config)
    actions, log_prob = draw_actions(params["actor"], observation, noise.target, *static)
    q = jnp.min(q_values(target_critic, observation, actions, *static), axis=0)  # [B, 1 or n]
    best = jnp.argmax(q, axis=1, keepdims=True)
    if config.backup_entropy:  # of the best action, which is chosen without it
        q = q - jnp.exp(params["log_alpha"]) * log_prob
    value = jnp.take_along_axis(q, best, axis=1)[:, 0]
    return batch.reward + config.discount * batch.discount * value


def proposals(
    params: PyTree, batch: Transition, noise: Noise, task: Task, config: Config
) -> tuple[Array, Array]:
    """Actions [B, 3n, A] whose Q in s is pushed down, and their log densities [B, 3n].

    Random ones, then the policy's in s', then the policy's in s.
    """
    actor, static = params["actor"], (task, config)
    random_log_prob = jnp.full(noise.random.shape[:-1], task.action_dim * jnp.log(0.5))
    following, next_log_prob = draw_actions(actor, batch.next_observation, noise.next, *static)
    current, log_prob = draw_actions(actor, batch.observation, noise.current, *static)
    actions = jnp.concatenate([noise.random, following, current], axis=1)
    return actions, jnp.concatenate([random_log_prob, next_log_prob, log_prob], axis=1)


def critic_loss(
    params: PyTree,
    batch: Transition,
    target: Array,
    proposed: tuple[Array, Array],
    task: Task,
    config: Config,
) -> tuple[Array, dict[str, Array]]:
    """Both critics' squared error and conservative term (equation 4), and the loss of alpha'.

    Gradients go to the critics and log_alpha_prime only. `target` and `proposed` are results of
    `td_target` and `proposals`; infos have the two critics on axis 0.
    """
    actions = jnp.concatenate([batch.action[:, None], proposed[0]], axis=1)
    q = q_values(params["critic"], batch.observation, actions, task, config)
    q_data, corrected = q[..., 0], q[..., 1:] - proposed[1]  # [2, B], [2, B, 3n]
    td_loss = jnp.mean(jnp.square(q_data - target), axis=1)
    options = (config.cql_temperature, config.clip_diff_min, config.clip_diff_max)
    gap = jax.vmap(lambda c, q: losses.conservative_gap(c, q, *options))(corrected, q_data)
    info = {"q_data": q_data, "td_loss": td_loss, "cql_gap": gap}
    if not config.lagrange:
        total = jnp.sum(td_loss + config.cql_alpha * gap)
        return total, info | {"critic_loss": total}
    # The critics descend the same term that alpha' ascends.
    alpha_prime = jnp.clip(jnp.exp(params["log_alpha_prime"]), 0.0, 1e6)
    excess, stop = config.cql_alpha * (gap - config.target_action_gap), jax.lax.stop_gradient
    total = jnp.sum(td_loss + stop(alpha_prime) * excess)
    alpha_prime_loss = -jnp.mean(alpha_prime * stop(excess))
    info |= {"alpha_prime": alpha_prime, "alpha_prime_loss": alpha_prime_loss}
    return total + alpha_prime_loss, info | {"critic_loss": total}


def loss(
    params: PyTree,
    target_critic: PyTree,
    batch: Transition,
    noise: Noise,
    task: Task,
    config: Config,
) -> tuple[Array, dict[str, Array]]:
    """Sum of all losses, each with gradient to its own part only; and the parts by name.

    All use the parameters before the update, as CORL does, so one backward pass serves them.
    Observations are normalised; `params` and `target_critic` are as in `State`.
    """
    static = (task, config)
    for_policy, info = policy_loss(params, batch, noise, *static)
    fixed = jax.lax.stop_gradient(params)
    target = td_target(fixed, target_critic, batch, noise, *static)
    proposed = proposals(fixed, batch, noise, *static)
    for_critic, critic_info = critic_loss(params, batch, target, proposed, *static)
    return for_policy + for_critic, info | critic_info | {"td_target": target}


def draw_noise(key: PRNGKey, batch: Transition, config: Config) -> Noise:
    """All random draws of one update."""
    (batch_size, action_dim), dtype = batch.action.shape, batch.action.dtype
    n, (normal_key, uniform_key) = config.num_action_samples, jax.random.split(key)
    ends = np.cumsum([1, n if config.max_target_backup else 1, n, n])
    normal = jax.random.normal(normal_key, (batch_size, ends[-1], action_dim), dtype)
    policy, target, current, following = jnp.split(normal, ends[:-1], axis=1)
    random = jax.random.uniform(uniform_key, (batch_size, n, action_dim), dtype, -1.0, 1.0)
    return Noise(policy, target, random, current, following)


def apply_update(
    state: State, batch: Transition, noise: Noise, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One gradient step of everything on given noise, then the targets; and the loss's parts."""

    def objective(params: PyTree, part: tuple[Transition, Noise]):
        return loss(params, state.target_critic, *part, task, config)

    # On a CPU, 31 actions in each of 256 states fall out of the cache at every layer: 1.2 to 2
    # times as slow as part by part.
    size = config.micro_batch or (32 if jax.default_backend() == "cpu" else None)
    grads, info = gradients.micro_batch_grad(objective, state.params, (batch, noise), size)
    params, opt_state = {}, {}
    for name, optimizer in make_optimizers(config).items():
        updates, opt_state[name] = optimizer.update(grads[name], state.opt_state[name])
        params[name] = optax.apply_updates(state.params[name], updates)
    target_critic = optax.incremental_update(params["critic"], state.target_critic, config.tau)
    new = {"params": params, "opt_state": opt_state, "target_critic": target_critic}
    return state.replace(**new, step=state.step + 1), info


def make(task: Task, config: Config) -> Learner:
    """The learner."""
    actor, critic = make_networks(task, config)

    def prepare(dataset: Dataset) -> Buffer:
        return make_buffer(dataset, config.replay)

    def init(key: PRNGKey, data: Buffer) -> State:
        key, actor_key, critic_key = jax.random.split(key, 3)
        observation = jnp.zeros((1, task.observation_dim))
        params = {
            "actor": actor.init(actor_key, observation),
            "critic": critic.init(critic_key, observation, jnp.zeros((1, task.action_dim))),
            "log_alpha": jnp.zeros(()),
        }
        if config.lagrange:
            params["log_alpha_prime"] = jnp.ones(())
        optimizers = make_optimizers(config)
        return State(
            params=params,
            target_critic=params["critic"],
            opt_state={name: optimizers[name].init(params[name]) for name in params},
            normalizer=data.normalizer,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def sample(key: PRNGKey, data: Buffer) -> Transition:
        return draw(key, data, config.replay, task, (config.batch_size,))[0]

    def update(state: State, batch: Transition) -> tuple[State, dict[str, Array]]:
        noise = draw_noise(jax.random.fold_in(state.key, state.step), batch, config)
        state, info = apply_update(state, batch, noise, task=task, config=config)
        return state, jax.tree.map(jnp.mean, info)

    def policy_act(state, carry, observation, previous_reward, key, deterministic):
        del previous_reward
        mean, log_std = actor.apply(state.params["actor"], state.normalizer(observation))
        noise = 0.0 if deterministic else jax.random.normal(key, mean.shape)
        return tanh_normal_sample(mean, log_std, noise)[0], carry

    return Learner(prepare, init, sample, update, policy=Policy(policy_act))
