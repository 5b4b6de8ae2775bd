"""MCQ, mildly conservative Q-learning (Lyu et al. 2022), as OfflineRL-Kit writes it.

SAC whose critics also learn at the policy's own actions, in the data's states and next states,
where the pseudo-target is the best of some actions that a VAE of the data proposes.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.data.replay import Buffer, Replay, draw, make_buffer
from tgcvg_jax.networks.mlp import MLP, EnsembleQ
from tgcvg_jax.networks.vae import VAE
from tgcvg_jax.tasks import paper_family
from tgcvg_jax.types import Array, Dataset, Learner, Policy, PRNGKey, PyTree, Task, Transition

_DENSITY_EPS = 1e-6  # in log(1 - a^2 + eps), which bounds the density of saturated actions


@dataclasses.dataclass(frozen=True)
class Config:
    """MCQ. Defaults: OfflineRL-Kit's, which are the paper's."""

    replay: Replay = Replay(normalize_states=False)
    num_steps: int = 1_000_000  # gradient steps
    batch_size: int = 256
    hidden_dims: tuple[int, ...] = (400, 400)  # actor and critics
    dropout: float = 0.1  # in every forward pass of the actor in training; off when acting
    vae_hidden_dim: int = 750  # two layers, in the encoder and in the decoder
    learning_rate: float = 3e-4  # actor, critics and temperature
    vae_learning_rate: float = 1e-3
    discount: float = 0.99  # gamma
    tau: float = 0.005
    data_weight: float = 0.9  # lambda, of the data's actions; 1 - lambda of the policy's own
    num_sampled_actions: int = 10  # N, from the VAE, for each state
    latent_clip: float = 0.5  # of the VAE's latent when it proposes actions
    min_log_std: float = -5.0  # of the policy
    max_log_std: float = 2.0
    initial_temperature: float = 1.0  # alpha, at most 1; its target entropy is -A


PRESETS = {"paper": {}, "quick": {"num_steps": 10_000}}

DATA_WEIGHTS = {  # lambda: the paper's for robots, GTA's command lines for mazes
    "halfcheetah-random": 0.95,
    "halfcheetah-medium": 0.95,
    "halfcheetah-medium-replay": 0.95,
    "halfcheetah-medium-expert": 0.7,
    "hopper-random": 0.6,
    "hopper-medium": 0.7,
    "hopper-medium-replay": 0.9,
    "hopper-medium-expert": 0.5,
    "walker2d-random": 0.8,
    "walker2d-medium": 0.9,
    "walker2d-medium-replay": 0.9,
    "walker2d-medium-expert": 0.8,
    "maze2d-umaze": 0.7,
    "maze2d-medium": 0.9,
    "maze2d-large": 0.9,
}


def for_task(task: Task, hyperparameters: str = "tgcvg") -> Config:
    """Lambda by task, 0.9 where nobody gives one; the rest by `hyperparameters`.

    CORL has no MCQ: `corl` is OfflineRL-Kit. GTA normalises states, with batches of 1,024. TGCVG's
    paper has no MCQ either: `tgcvg` is GTA's code at that code's default batch.
    """
    config = Config()
    replay = dataclasses.replace(
        config.replay,
        normalize_states=hyperparameters != "corl",
        reward_shift=-1.0 if task.domain == "antmaze" else 0.0,  # OfflineRL-Kit
    )
    return dataclasses.replace(
        config,
        replay=replay,
        batch_size=1024 if hyperparameters == "gta" else config.batch_size,
        data_weight=DATA_WEIGHTS.get(paper_family(task), config.data_weight),
    )


@flax.struct.dataclass
class State:
    """Everything that training changes or acting needs.

    Attributes:
      params: {vae, critic, actor, log_alpha}; both critics' parameters are stacked on axis 0.
      target_critic: like params['critic'].
      opt_state: one Adam state for each entry of params.
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
    """All random draws of one update, standard normal; n = num_sampled_actions.

    Attributes:
      vae: [B, 2 A], the latent of the data's actions.
      target: [B, A], the policy's actions in the next states.
      prior: [2 B, n, 2 A], latents of the proposals in states and next states, before the clip.
      ood: [2 B, A], the policy's actions in states and next states.
      policy: [B, A], for the actor's loss.
      dropout: PRNG keys [3], of the actor's passes for target, ood and policy.
    """

    vae: Array
    target: Array
    prior: Array
    ood: Array
    policy: Array
    dropout: Array


def make_networks(task: Task, config: Config) -> tuple[MLP, EnsembleQ, VAE]:
    """Actor (mean and log standard deviation before tanh), twin critics, and VAE of actions."""
    actor = MLP((*config.hidden_dims, 2 * task.action_dim), dropout=config.dropout)
    vae = VAE(task.action_dim, 2 * task.action_dim, (config.vae_hidden_dim,) * 2)
    return actor, EnsembleQ(config.hidden_dims), vae


def make_optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """One optimiser for each part."""
    adam = optax.adam(config.learning_rate)
    vae = optax.adam(config.vae_learning_rate)
    return {"vae": vae, "critic": adam, "actor": adam, "log_alpha": adam}


def draw_noise(key: PRNGKey, batch: Transition, config: Config) -> Noise:
    """All random draws of one update."""
    size, action_dim = batch.action.shape
    keys = jax.random.split(key, 6)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape, batch.action.dtype)  # noqa: E731
    return Noise(
        vae=normal(0, size, 2 * action_dim),
        target=normal(1, size, action_dim),
        prior=normal(2, 2 * size, config.num_sampled_actions, 2 * action_dim),
        ood=normal(3, 2 * size, action_dim),
        policy=normal(4, size, action_dim),
        dropout=jax.random.split(keys[5], 3),
    )


def sample_action(
    params: PyTree,
    observation: Array,
    noise: Array | float,
    task: Task,
    config: Config,
    dropout: PRNGKey | None = None,
) -> tuple[Array, Array]:
    """Actions [..., A] in (-1, 1) and their log densities [...].

    Args:
      params: the actor's.
      observation: [..., S], normalised.
      noise: [..., A] standard normal, or 0 for the mean.
      task: the task.
      config: the config.
      dropout: PRNG key; None for no dropout.
    """
    actor, _, _ = make_networks(task, config)
    rngs = None if dropout is None else {"dropout": dropout}
    output = actor.apply(params, observation, deterministic=dropout is None, rngs=rngs)
    mean, log_std = jnp.split(output, 2, axis=-1)
    log_std = jnp.clip(log_std, config.min_log_std, config.max_log_std)
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    log_det = jnp.log(1.0 - jnp.square(action) + _DENSITY_EPS)
    return action, jnp.sum(norm.logpdf(noise) - log_std - log_det, axis=-1)


def vae_loss(
    vae_params: PyTree, batch: Transition, noise: Noise, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """Squared error of the reconstruction, plus the latent's divergence from N(0, 1), in means."""
    _, _, vae = make_networks(task, config)
    action, mean, std = vae.apply(vae_params, batch.observation, batch.action, noise.vae)
    reconstruction = jnp.mean(jnp.square(action - batch.action))
    divergence = -0.5 * jnp.mean(1.0 + 2.0 * jnp.log(std) - jnp.square(mean) - jnp.square(std))
    loss = reconstruction + divergence
    return loss, {"vae_loss": loss, "vae_reconstruction": reconstruction}


def critic_loss(
    critic_params: PyTree, state: State, batch: Transition, noise: Noise, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """Sum over both critics of lambda (Q - target)^2 + (1 - lambda) (Q_ood - pseudo-target)^2.

    Args:
      critic_params: what to differentiate.
      state: for the targets: the actor before its step, the VAE after its.
      batch: fields [B, ...], observations normalised.
      noise: the draws.
      task: the task.
      config: the config.
    """
    _, critic, vae = make_networks(task, config)
    actor_params = state.params["actor"]

    # The data's actions, against SAC's target.
    next_action, log_prob = sample_action(
        actor_params, batch.next_observation, noise.target, task, config, noise.dropout[0]
    )
    next_q = jnp.min(critic.apply(state.target_critic, batch.next_observation, next_action), axis=0)
    next_v = next_q - temperature(state) * log_prob
    target = batch.reward + config.discount * batch.discount * next_v
    q_data = critic.apply(critic_params, batch.observation, batch.action)  # [2, B]

    # The policy's actions, against the best of the VAE's proposals.
    observation = jnp.concatenate([batch.observation, batch.next_observation])  # [2 B, S]
    action, _ = sample_action(actor_params, observation, noise.ood, task, config, noise.dropout[1])
    q_ood = critic.apply(critic_params, observation, action)  # [2, 2 B]
    repeated = jnp.repeat(observation[:, None], noise.prior.shape[1], axis=1)
    latent = jnp.clip(noise.prior, -config.latent_clip, config.latent_clip)
    proposals = vae.apply(state.params["vae"], repeated, latent, method="decode")  # [2 B, n, A]
    ood_target = jnp.max(critic.apply(state.target_critic, repeated, proposals), axis=-1)
    ood_target = jnp.min(ood_target, axis=0)

    data_loss = jnp.mean(jnp.square(q_data - target), axis=1)
    ood_loss = jnp.mean(jnp.square(q_ood - ood_target), axis=1)
    losses = config.data_weight * data_loss + (1.0 - config.data_weight) * ood_loss
    loss = jnp.sum(losses)
    info = {"critic_loss": loss, "critic_losses": losses, "q_data": q_data, "q_ood": q_ood}
    return loss, info | {"td_target": target, "ood_target": ood_target}


def actor_loss(
    actor_params: PyTree, state: State, batch: Transition, noise: Noise, task: Task, config: Config
) -> tuple[Array, dict[str, Array]]:
    """alpha log pi(a|s) - min Q(s, a), with the critics after their step."""
    action, log_prob = sample_action(
        actor_params, batch.observation, noise.policy, task, config, noise.dropout[2]
    )
    _, critic, _ = make_networks(task, config)
    q = critic.apply(state.params["critic"], batch.observation, action)  # [2, B]
    loss = jnp.mean(temperature(state) * log_prob - jnp.min(q, axis=0))
    return loss, {"actor_loss": loss, "q_policy": q, "log_prob": log_prob}


def alpha_loss(log_alpha: Array, log_prob: Array, task: Task) -> Array:
    """Raises alpha where the policy's entropy is below -A."""
    return -jnp.mean(log_alpha * (log_prob - task.action_dim))


def temperature(state: State) -> Array:
    """alpha, in [0, 1]."""
    return jnp.minimum(jnp.exp(state.params["log_alpha"]), 1.0)


def apply_update(
    state: State, batch: Transition, noise: Noise, *, task: Task, config: Config
) -> tuple[State, dict[str, Array]]:
    """One step of the VAE, critics, actor and temperature on given noise, one after the other, each
    with the earlier ones already stepped; then the targets.
    """
    optimizers, static = make_optimizers(config), (task, config)

    def step(state: State, name: str, grads: PyTree) -> State:
        updates, opt_state = optimizers[name].update(grads, state.opt_state[name])
        params = optax.apply_updates(state.params[name], updates)
        return state.replace(
            params=state.params | {name: params}, opt_state=state.opt_state | {name: opt_state}
        )

    alpha, log_alpha = temperature(state), state.params["log_alpha"]
    grads, info = jax.grad(vae_loss, has_aux=True)(state.params["vae"], batch, noise, *static)
    state = step(state, "vae", grads)
    grad = jax.grad(critic_loss, has_aux=True)
    grads, critic_info = grad(state.params["critic"], state, batch, noise, *static)
    state = step(state, "critic", grads)
    grad = jax.grad(actor_loss, has_aux=True)
    grads, actor_info = grad(state.params["actor"], state, batch, noise, *static)
    state = step(state, "actor", grads)
    loss, grads = jax.value_and_grad(alpha_loss)(log_alpha, actor_info["log_prob"], task)
    state = step(state, "log_alpha", grads)
    target = optax.incremental_update(state.params["critic"], state.target_critic, config.tau)
    info = info | critic_info | actor_info | {"alpha_loss": loss, "alpha": alpha}
    return state.replace(target_critic=target, step=state.step + 1), info


def make(task: Task, config: Config) -> Learner:
    """The learner."""
    actor, critic, vae = make_networks(task, config)

    def prepare(dataset: Dataset) -> Buffer:
        return make_buffer(dataset, config.replay)

    def init(key: PRNGKey, data: Buffer) -> State:
        key, actor_key, critic_key, vae_key = jax.random.split(key, 4)
        observation = jnp.zeros((1, task.observation_dim))
        action = jnp.zeros((1, task.action_dim))
        params = {
            "actor": actor.init(actor_key, observation),
            "critic": critic.init(critic_key, observation, action),
            "vae": vae.init(vae_key, observation, action, 0.0),
            "log_alpha": jnp.log(jnp.full((), config.initial_temperature, observation.dtype)),
        }
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
        shape = (*observation.shape[:-1], task.action_dim)
        noise = 0.0 if deterministic else jax.random.normal(key, shape)
        observation = state.normalizer(observation)
        return sample_action(state.params["actor"], observation, noise, task, config)[0], carry

    return Learner(prepare, init, sample, update, policy=Policy(policy_act))
