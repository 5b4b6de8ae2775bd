"""Conservative Q-Learning (Kumar et al. 2020), CQL(H) with importance sampling, as CORL writes it.

The Lagrangian version, too, which learns the weight of the conservative term.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.data.replay import Buffer, Replay, draw, make_buffer
from tgcvg_jax.networks.mlp import MLP, EnsembleQ
from tgcvg_jax.ops import losses
from tgcvg_jax.ops.distributions import tanh_normal_sample
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
    micro_batch: int | None = None  # see `gradient`; None: 32 on a CPU, else the whole batch


PRESETS = {"paper": {}, "quick": {"num_steps": 10_000}}

_OLDER = {"actor_init": "orthogonal", "last_layer_gain": 2.0**0.5}
_MAZE2D = {"lagrange": True, "target_action_gap": 5.0}
_CORL = {  # by family, else by domain; where CORL's file for a task differs from its defaults
    "hopper-medium": {"replay": Replay(normalize_return=True)},
    "maze2d": _MAZE2D,
    "pointmaze": _MAZE2D,
    "antmaze": {
        "replay": Replay(normalize_states=False, reward_shift=-0.5, reward_scale=10.0),
        "critic_hidden_dims": (256,) * 5,
        "policy_learning_rate": 1e-4,
        "max_target_backup": True,
        "cql_alpha": 5.0,
        "clip_diff_min": -200.0,
        "lagrange": True,
        "target_action_gap": 0.8,
    },
}


def for_task(task: Task, hyperparameters: str = "tgcvg") -> Config:
    """CORL's files for its tasks, or what TGCVG and GTA run: an older CORL, which starts its
    networks otherwise. TGCVG has no settings of a task; GTA has larger batches, and the Lagrangian
    version in Maze2D.
    """
    if hyperparameters == "corl":
        return Config(**_CORL.get(task.family, _CORL.get(task.domain, {})))
    if hyperparameters == "tgcvg":
        return Config(**_OLDER)
    mazes = _MAZE2D if task.domain in ("maze2d", "pointmaze") else {}
    return Config(batch_size=1024, **_OLDER, **mazes)


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      params: {actor: {mlp, log_std_multiplier, log_std_offset}, critic, log_alpha}, both critics
        stacked on axis 0; in the Lagrangian version log_alpha_prime, too.
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
      policy: [B, A] normal, for the temperature's and the actor's loss.
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


def make_networks(task: Task, config: Config) -> tuple[MLP, EnsembleQ]:
    """Actor (two numbers for each action, see `distribution`) and twin critics."""
    width, gain, bound = 2 * task.action_dim, config.last_layer_gain, None
    if config.actor_init == "torch":  # then CORL's last layer is Xavier-uniform
        bound = gain * (6.0 / (config.hidden_dims[-1] + width)) ** 0.5
    actor = MLP(
        (*config.hidden_dims, width),
        init_scheme=config.actor_init,
        output_bound=bound,
        output_bias=0.0,
        output_gain=gain,
    )
    critic = EnsembleQ(config.critic_hidden_dims, init_scheme="orthogonal", output_gain=gain)
    return actor, critic


def make_optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """One for each entry of the parameters."""
    policy = optax.adam(config.policy_learning_rate)
    critic = optax.adam(config.critic_learning_rate)
    optimizers = {"actor": policy, "critic": critic, "log_alpha": policy}
    return optimizers | {"log_alpha_prime": critic} if config.lagrange else optimizers


def distribution(
    params: PyTree, observation: Array, task: Task, config: Config
) -> tuple[Array, Array]:
    """Mean and log standard deviation [..., A] before tanh.

    The network's second half is scaled and shifted by two trained scalars.
    """
    output = make_networks(task, config)[0].apply(params["mlp"], observation)
    mean, raw = jnp.split(output, 2, axis=-1)
    log_std = params["log_std_multiplier"] * raw + params["log_std_offset"]
    return mean, jnp.clip(log_std, config.min_log_std, config.max_log_std)


def q_values(params: PyTree, observation: Array, actions: Array, task: Task, config: Config):
    """[B, S], [B, J, A] -> [2, B, J], all actions of a state in one call."""
    shape = (*actions.shape[:-1], task.observation_dim)
    observation = jnp.broadcast_to(observation[:, None], shape)
    return make_networks(task, config)[1].apply(params, observation, actions)


def draw_actions(distribution: tuple[Array, Array], noise: Array) -> tuple[Array, Array]:
    """Actions [B, J, A] and their log densities [B, J], for noise [B, J, A]."""
    mean, log_std = distribution
    return tanh_normal_sample(mean[:, None], log_std[:, None], noise)


def policy_loss(
    params: PyTree, batch: Transition, noise: Noise, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """SAC's losses of the temperature and of the actor: alpha log pi - min Q, target entropy -A.

    Gradients go to the actor and log_alpha only; arguments and results are as those of `loss`.
    """
    stop = jax.lax.stop_gradient
    current = distribution(params["actor"], batch.observation, task, config)
    action, log_prob = tanh_normal_sample(*current, noise.policy)
    alpha_loss = -jnp.mean(params["log_alpha"] * stop(log_prob - task.action_dim))
    alpha = jnp.exp(stop(params["log_alpha"]))
    q = q_values(stop(params["critic"]), batch.observation, action[:, None], task, config)
    q = jnp.min(q[..., 0], axis=0)
    actor_loss = jnp.mean(alpha * log_prob - q)
    return alpha_loss + actor_loss, {
        "alpha": alpha,
        "alpha_loss": alpha_loss,
        "actor_loss": actor_loss,
        "entropy": -jnp.mean(log_prob),
        "q_policy": q,
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
    following = distribution(params["actor"], batch.next_observation, task, config)
    actions, log_prob = draw_actions(following, noise.target)
    q = q_values(target_critic, batch.next_observation, actions, task, config)
    q = jnp.min(q, axis=0)  # [B, 1 or n]
    best = jnp.argmax(q, axis=1, keepdims=True)
    if config.backup_entropy:  # of the best action, which is chosen without it
        q = q - jnp.exp(params["log_alpha"]) * log_prob
    value = jnp.take_along_axis(q, best, axis=1)[:, 0]
    return batch.reward + config.discount * batch.discount * value


def proposals(
    params: PyTree, batch: Transition, noise: Noise, task: Task, config: Config
) -> tuple[Array, Array]:
    """Actions [B, 3n, A] whose Q is pushed down, and their log densities [B, 3n].

    Random ones, then the policy's in s', then in s; all are proposals for the state s.
    """
    random_log_prob = jnp.full(noise.random.shape[:-1], task.action_dim * jnp.log(0.5))
    following = distribution(params["actor"], batch.next_observation, task, config)
    current = distribution(params["actor"], batch.observation, task, config)
    next_actions, next_log_prob = draw_actions(following, noise.next)
    actions, log_prob = draw_actions(current, noise.current)
    actions = jnp.concatenate([noise.random, next_actions, actions], axis=1)
    return actions, jnp.concatenate([random_log_prob, next_log_prob, log_prob], axis=1)


def critic_loss(
    params: PyTree,
    batch: Transition,
    target: Array,
    actions: Array,
    log_density: Array,
    task: Task,
    config: Config,
) -> tuple[Array, dict[str, Array]]:
    """Both critics' squared error and conservative term (equation 4), and the loss of alpha'.

    Args:
      params: as in `State`; gradients go to the critics and log_alpha_prime only.
      batch: fields [B, ...], observations normalised.
      target: [B].
      actions: proposals [B, 3n, A].
      log_density: theirs, [B, 3n].
      task: the task.
      config: the config.

    Returns:
      The sum of all; its parts, those of the two critics on axis 0.
    """
    actions = jnp.concatenate([batch.action[:, None], actions], axis=1)
    q = q_values(params["critic"], batch.observation, actions, task, config)
    q_data, corrected = q[..., 0], q[..., 1:] - log_density  # [2, B], [2, B, 3n]
    td_loss = jnp.mean(jnp.square(q_data - target), axis=1)
    options = (config.cql_temperature, config.clip_diff_min, config.clip_diff_max)
    gap = jax.vmap(lambda c, q: losses.conservative_gap(c, q, *options))(corrected, q_data)
    info = {"q_data": q_data, "td_loss": td_loss, "cql_gap": gap}
    if not config.lagrange:
        loss = jnp.sum(td_loss + config.cql_alpha * gap)
        return loss, info | {"critic_loss": loss}
    # The critics descend the same term that alpha' ascends.
    weight = config.cql_alpha * jnp.clip(jnp.exp(params["log_alpha_prime"]), 0.0, 1e6)
    stop, excess = jax.lax.stop_gradient, gap - config.target_action_gap
    loss = jnp.sum(td_loss + stop(weight) * excess)
    alpha_prime_loss = -jnp.mean(weight * stop(excess))
    info |= {"alpha_prime": weight / config.cql_alpha, "alpha_prime_loss": alpha_prime_loss}
    return loss + alpha_prime_loss, info | {"critic_loss": loss}


def loss(
    params: PyTree,
    target_critic: PyTree,
    batch: Transition,
    noise: Noise,
    *,
    task: Task,
    config: Config,
) -> tuple[Array, dict[str, Any]]:
    """Sum of all losses, each with gradient to its own part only.

    All use the parameters before the update, as CORL does, so one backward pass serves them.

    Args:
      params: as in `State`.
      target_critic: as in `State`.
      batch: fields [B, ...], observations normalised.
      noise: the draws.
      task: the task.
      config: the config.

    Returns:
      The scalar loss, and its parts by name.
    """
    static = (task, config)
    for_policy, info = policy_loss(params, batch, noise, *static)
    fixed = jax.lax.stop_gradient(params)
    target = td_target(fixed, target_critic, batch, noise, *static)
    for_critic, critic_info = critic_loss(
        params, batch, target, *proposals(fixed, batch, noise, *static), *static
    )
    return for_policy + for_critic, info | critic_info | {"td_target": target}


def gradient(
    state: State, batch: Transition, noise: Noise, *, task: Task, config: Config
) -> tuple[PyTree, dict[str, Array]]:
    """Gradient of `loss`, and its parts with any leading axis.

    All losses are means over the batch, so it may be cut into micro-batches whose gradients are
    averaged: on a CPU the 31 actions of 256 states would leave the cache at every layer.
    """
    size = config.micro_batch or (32 if jax.default_backend() == "cpu" else config.batch_size)
    parts = config.batch_size // math.gcd(size, config.batch_size)
    grad = jax.grad(
        lambda *arguments: loss(*arguments, task=task, config=config), has_aux=True
    )
    if parts == 1:
        return grad(state.params, state.target_critic, batch, noise)

    def body(total, part):
        grads, info = grad(state.params, state.target_critic, *part)
        return jax.tree.map(lambda t, g: t + g / parts, total, grads), info

    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), (batch, noise))
    return jax.lax.scan(body, jax.tree.map(jnp.zeros_like, state.params), split)


def draw_noise(key: PRNGKey, batch: Transition, config: Config) -> Noise:
    """All random draws of one update."""
    (batch_size, action_dim), dtype = batch.action.shape, batch.action.dtype
    many = (batch_size, config.num_action_samples, action_dim)
    keys = jax.random.split(key, 5)
    return Noise(
        policy=jax.random.normal(keys[0], batch.action.shape, dtype),
        target=jax.random.normal(
            keys[1], many if config.max_target_backup else (batch_size, 1, action_dim), dtype
        ),
        random=jax.random.uniform(keys[2], many, dtype, -1.0, 1.0),
        current=jax.random.normal(keys[3], many, dtype),
        next=jax.random.normal(keys[4], many, dtype),
    )


def apply_update(
    state: State, batch: Transition, noise: Noise, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One gradient step of everything on given noise, then the targets."""
    grads, info = gradient(state, batch, noise, task=task, config=config)
    params, opt_state = {}, {}
    for name, optimizer in make_optimizers(config).items():
        updates, opt_state[name] = optimizer.update(grads[name], state.opt_state[name])
        params[name] = optax.apply_updates(state.params[name], updates)
    target_critic = optax.incremental_update(params["critic"], state.target_critic, config.tau)
    state = state.replace(
        params=params, opt_state=opt_state, target_critic=target_critic, step=state.step + 1
    )
    return state, info


def make(task: Task, config: Config) -> Learner:
    """The learner."""
    actor, critic = make_networks(task, config)

    def prepare(dataset: Dataset) -> Buffer:
        return make_buffer(dataset, config.replay)

    def init(key: PRNGKey, data: Buffer) -> State:
        key, actor_key, critic_key = jax.random.split(key, 3)
        observation, one = jnp.zeros((1, task.observation_dim)), jnp.ones(())
        params = {
            "actor": {
                "mlp": actor.init(actor_key, observation),
                "log_std_multiplier": one,
                "log_std_offset": -one,
            },
            "critic": critic.init(critic_key, observation, jnp.zeros((1, task.action_dim))),
            "log_alpha": 0.0 * one,
            "log_alpha_prime": one,
        }
        optimizers = make_optimizers(config)
        params = {name: params[name] for name in optimizers}
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

    def act(state, carry, observation, previous_reward, key, deterministic):
        del previous_reward
        observation = state.normalizer(observation)
        mean, log_std = distribution(state.params["actor"], observation, task, config)
        noise = 0.0 if deterministic else jax.random.normal(key, mean.shape)
        return tanh_normal_sample(mean, log_std, noise)[0], carry

    policy = Policy(lambda state, batch_size, target_return=None: (), act)
    return Learner(prepare, init, sample, update, policy=policy)
