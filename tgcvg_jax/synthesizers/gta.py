"""GTA: generative trajectory augmentation with guidance (Lee et al. 2024).

A window of the data is noised in part, and denoised under a higher return than it had. The state,
action and reward of each row are new; terminals, time steps and returns-to-go are those of the
source window.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax import tasks
from tgcvg_jax.config import replace_nested
from tgcvg_jax.data import windows
from tgcvg_jax.data.dataset import episode_returns, episode_starts
from tgcvg_jax.models import denoiser as denoising
from tgcvg_jax.models import reward_model, window_denoiser
from tgcvg_jax.ops import edm
from tgcvg_jax.types import (
    Array,
    Dataset,
    PRNGKey,
    PyTree,
    Synthesizer,
    Task,
    Trajectories,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """GTA. Defaults: released code and scripts; symbols: paper."""

    denoiser: window_denoiser.Config = window_denoiser.Config()
    sampler: edm.Sampler = edm.Sampler()
    noise_level: float = 0.5  # mu, share of the sampler's steps that are run
    amplification: float = 1.3  # alpha, times the window's return; 1: the return that it has
    target: Literal["amplified", "highest"] = "amplified"  # highest: the data's best for all
    guidance: float = 2.0  # w + 1 of equation 4: 1 is conditional, 0 unconditional sampling
    guided_heun: bool = False  # guide Heun's second slope too; released: it is conditional alone
    drop_condition: bool = True  # drop the condition in sampling as in training, as released
    reweighting: Literal["none", "released", "paper", "success"] = "none"  # of source windows
    num_bins: int = 50  # N_B, of their returns
    bin_smoothing: float = 1e-3  # u
    bin_temperature: float = 5.0  # q
    success_weight: float = 10.0  # c, of episodes that reach the goal (`success`)
    clip_actions: bool = True  # to the action box; released: False
    inpaint_reward: bool = False  # hold rewards at the amplified ones of the source
    use_reward_model: bool = False  # rewards from a regression on the data, not from the denoiser
    reward_model: reward_model.Config = reward_model.Config()
    batch_size: int = 1_000  # windows in one compiled sampling


# `quick` is for minutes on two CPU cores: a small network, and a sampler of few steps.
PRESETS = {
    "paper": {},
    "quick": {
        "denoiser": {"num_steps": 3_000, "batch_size": 32, "base_dim": 4, "norm_groups": 2},
        "sampler": {"num_steps": 32},
        "reward_model": {"num_steps": 2_000},
        "batch_size": 100,
    },
}
MODEL_KINDS = {"denoiser": "window_denoiser", "reward_model": "reward_model"}
NUM_TRANSITIONS = {"paper": 5_000_000, "quick": 50_000}

# N_B of table 9. The paper lists the values of mu and alpha that it tried, and not which it chose:
# the defaults are those of its ablations, and medium-expert's its "safe" ones (table 4).
NUM_BINS = {
    "halfcheetah-medium-replay": 50,
    "halfcheetah-medium-expert": 20,
    "hopper-medium": 50,
    "hopper-medium-replay": 50,
    "hopper-medium-expert": 50,
    "walker2d-medium": 100,
    "walker2d-medium-replay": 50,
    "walker2d-medium-expert": 50,
}


def for_task(task: Task, preset: str = "paper") -> Config:
    """The settings of the papers for a task, and a preset's changes."""
    changes = {}
    if task.family in NUM_BINS:
        changes |= {"reweighting": "released", "num_bins": NUM_BINS[task.family]}
    if task.family.endswith("medium-expert"):
        changes |= {"noise_level": 0.25, "amplification": 1.1}
    if task.domain in tasks.MAZES:
        changes |= {"denoiser": {"terminal_penalty": 0.0}}
        if task.domain == "antmaze":
            changes |= {"noise_level": 0.1}
        elif not task.family.endswith("-dense"):  # where every return is above 0
            changes |= {"reweighting": "success"}
    return replace_nested(replace_nested(Config(), changes), PRESETS[preset])


def as_paper(config: Config) -> Config:
    """The paper's text where it differs from the released code.

    Its guidance w = 2 is taken to be the scripts' number, and its penalty to be off the returns
    alone.
    """
    reweighting = "paper" if config.reweighting == "released" else config.reweighting
    denoiser = dataclasses.replace(config.denoiser, restore_rewards=True)
    return dataclasses.replace(
        config, denoiser=denoiser, drop_condition=False, reweighting=reweighting
    )


@flax.struct.dataclass
class Groups:
    """Source windows in groups: a group is drawn, then one of its windows uniformly.

    Attributes:
      starts: [W], group after group.
      first: [G], where each group begins in them.
      size: [G].
      cumulative: [G], cumulative probability; the last is 1.
    """

    starts: Array
    first: Array
    size: Array
    cumulative: Array


@flax.struct.dataclass
class Data:
    """What `generate` reads.

    Attributes:
      windows: the dataset as the denoiser sees it.
      groups: None where all windows are alike; they are then drawn without replacement.
      highest: the largest condition of all windows.
      reward: [M], as in the data.
      discount: [M].
      timestep: [M].
      return_to_go: [M].
    """

    windows: window_denoiser.Windows
    groups: Groups | None
    highest: Array
    reward: Array
    discount: Array
    timestep: Array
    return_to_go: Array


def amplify(value: Array, alpha: float) -> Array:
    """alpha y, or (2 - alpha) y where y is negative: always the better direction (released)."""
    return jnp.where(value > 0.0, alpha * value, (2.0 - alpha) * value)


def bin_weights(returns: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Which bin of returns each window is in, [W], and the probability to draw each bin, [N_B].

    Equation 13 prefers bins of high return and discounts nearly empty ones. The released code has
    fractions for counts, right edges for centres, scaled returns (so q = 5 is mild), and divides by
    the bin's share, clipped at 5.

    Args:
      returns: [W], the conditions of the windows.
      config: the config.
    """
    if config.reweighting == "paper":
        returns = returns / config.denoiser.condition_scale
    count, edges = np.histogram(returns, config.num_bins)
    index = np.minimum(np.digitize(returns, edges[1:]), config.num_bins - 1)
    count = np.bincount(index, minlength=config.num_bins)
    u, q = config.bin_smoothing, config.bin_temperature
    if config.reweighting == "paper":
        centers = (edges[1:] + edges[:-1]) / 2
        weight = count / (count + u) * np.exp((centers - returns.max()) / q)
    else:
        share = count / len(returns)
        preference = np.exp((edges[1:] - edges[-1]) / q)
        value = preference / preference.sum() * share / (share + u)
        value = value / (value.sum() + 1e-7)
        weight = count * np.clip(value / (share + 1e-7), 0.0, 5.0)
    return index, weight / weight.sum()


def make_groups(dataset: Dataset, data: window_denoiser.Windows, config: Config) -> Groups | None:
    """Groups of windows by the configured reweighting."""
    if config.reweighting == "none":
        return None
    starts = np.asarray(data.starts)
    if config.reweighting == "success":
        # By episode. (In the released code all weights end up equal, against the paper.)
        index = (np.cumsum(episode_starts(dataset)) - 1)[starts]
        success = episode_returns(dataset) > 0.0
        weight = np.where(success, config.success_weight, 1.0)
        weight[np.bincount(index, minlength=len(weight)) == 0] = 0.0  # too short for a window
        weight = weight / weight.sum()
    else:
        index, weight = bin_weights(np.asarray(data.condition, np.float64)[starts], config)
    size = np.bincount(index, minlength=len(weight))
    kept = size > 0
    cumulative = np.cumsum(weight[kept])
    return Groups(
        starts=jnp.asarray(starts[np.argsort(index, kind="stable")]),
        first=jnp.asarray((np.cumsum(size) - size)[kept], jnp.int32),
        size=jnp.asarray(size[kept], jnp.int32),
        cumulative=jnp.asarray(cumulative / cumulative[-1], jnp.float32),
    )


def draw_starts(key: PRNGKey, groups: Groups, batch_size: int) -> Array:
    """Starts [B] of windows, with replacement."""
    group_key, window_key = jax.random.split(key)
    group = jnp.searchsorted(
        groups.cumulative, jax.random.uniform(group_key, (batch_size,)), side="right"
    )
    group = jnp.minimum(group, len(groups.size) - 1)
    within = jax.random.randint(window_key, (batch_size,), 0, groups.size[group])
    return groups.starts[groups.first[group] + within]


def make(task: Task, config: Config) -> Synthesizer:
    """The synthesizer.

    Raises:
      UserError: noise_level or horizon can't be.
    """
    horizon, levels = config.denoiser.horizon, edm.sigmas(config.sampler)
    first = edm.first_step(config.sampler, config.noise_level)
    conditional = config.denoiser.condition != "none"
    dropout = config.denoiser.condition_dropout if config.drop_condition else 0.0
    network = window_denoiser.make_network(config.denoiser)

    def prepare(dataset: Dataset) -> Data:
        data = window_denoiser.make_windows(dataset, config.denoiser)
        return Data(
            windows=data,
            groups=make_groups(dataset, data, config),
            highest=jnp.max(data.condition[data.starts]),
            reward=dataset.transition.reward,
            discount=dataset.transition.discount,
            timestep=dataset.timestep,
            return_to_go=dataset.return_to_go,
        )

    def choose(data: Data, key: PRNGKey, chunk: Array) -> Array:
        if data.groups is not None:
            return draw_starts(jax.random.fold_in(key, chunk), data.groups, config.batch_size)
        starts = data.windows.starts
        return windows.epoch_starts(key, starts, min(config.batch_size, len(starts)), chunk)

    def generate(states: dict[str, PyTree], data: Data, key: PRNGKey, chunk: Array) -> Trajectories:
        start_key, chunk_key = jax.random.split(key)
        starts = choose(data, start_key, chunk)
        keys = jax.random.split(jax.random.fold_in(chunk_key, chunk), 4)
        source = window_denoiser.take(data.windows, starts, horizon)  # [B, H + 1, D]
        normalizer = data.windows.normalizer
        normal = lambda key, i: jax.random.normal(jax.random.fold_in(key, i), source.shape)  # noqa: E731

        condition = None
        if conditional:
            condition = data.windows.condition[starts][:, None]
            if config.target == "highest":
                condition = jnp.full_like(condition, data.highest)
            else:
                condition = amplify(condition, config.amplification)

        def keep(i: Array) -> Array:
            shape = (2, len(source))
            kept = jax.random.bernoulli(jax.random.fold_in(keys[1], i), 1.0 - dropout, shape)
            return kept.astype(source.dtype)

        # The penalty of a terminal, where the rewards hold it, is not amplified.
        reward = windows.take_windows(data.reward, starts, horizon)
        change = amplify(reward, config.amplification) - reward
        wanted = source[:, :-1, -1] + change / normalizer.std[-1]

        def hold_reward(x: Array, sigma: Array, i: Array) -> Array:
            noise = normal(keys[2], i)[:, :-1, -1]
            return x.at[:, :-1, -1].set(wanted + sigma * noise)

        if config.inpaint_reward:
            source = source.at[:, :-1, -1].set(wanted)
        added = levels[first] * jax.random.normal(keys[0], source.shape)
        x = edm.sample(
            denoising.make_denoiser(network, states["denoiser"], config.denoiser),
            added if config.noise_level == 1.0 else source + added,
            condition,
            noise=lambda i: normal(keys[3], i),
            keep=keep,
            config=config.sampler,
            first=first,
            guidance=config.guidance,
            guided_heun=config.guided_heun,
            constrain=hold_reward if config.inpaint_reward else None,
        )
        transition = window_denoiser.to_transitions(x, normalizer, task)
        if config.clip_actions:
            transition = transition._replace(action=jnp.clip(transition.action, -1.0, 1.0))
        if config.use_reward_model:
            reward = reward_model.predict(states["reward_model"], transition, config.reward_model)
            transition = transition._replace(reward=reward)
        inherited = (data.discount, data.timestep, data.return_to_go)
        discount, timestep, return_to_go = windows.take_windows(inherited, starts, horizon)
        finite = jnp.all(jnp.isfinite(x), axis=(1, 2))
        return Trajectories(
            transition=transition._replace(discount=discount),
            timestep=timestep,
            return_to_go=return_to_go,
            mask=jnp.broadcast_to(finite[:, None], discount.shape),
        )

    models = {"denoiser": window_denoiser.make(task, config.denoiser)}
    if config.use_reward_model:
        models["reward_model"] = reward_model.make(task, config.reward_model)
    return Synthesizer(models, prepare, generate)
