"""GTA's denoiser (Lee et al. 2024): windows of transitions, conditioned on the return from there.

A sample has T = H + 1 rows (s, a, r); the last one holds the state that follows the H transitions,
and zeros for action and reward, which the loss does not count.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax.data import windows
from tgcvg_jax.data.dataset import discounted_returns
from tgcvg_jax.data.normalize import Normalizer, fit_normalizer
from tgcvg_jax.models import denoiser
from tgcvg_jax.networks.mixer_unet import MixerUNet
from tgcvg_jax.types import Array, Dataset, Learner, PRNGKey, Task, Transition, UserError


@dataclasses.dataclass(frozen=True)
class Config(denoiser.Config):
    """GTA. Defaults: released code; symbols: paper."""

    horizon: int = 31  # H, transitions in a window; H + 1 rows, divisible by 8. Paper: "32"
    base_dim: int = 16  # channels, times dim_mults
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    norm_groups: int = 8
    num_heads: int = 4
    head_dim: int = 32
    condition: Literal["return_to_go", "window_return", "none"] = "return_to_go"  # discounted, to
    # the end of the episode; or, an option of the released code, the plain sum of the window's
    # rewards, without penalties; or none, an ablation of the paper
    condition_dropout: float = 0.25  # share of samples that train without their condition
    condition_scale: float = 0.01  # the network sees the return times this
    discount: float = 0.99  # gamma of the return-to-go
    terminal_penalty: float = 100.0  # taken off a terminal's reward before returns; mazes: 0
    restore_rewards: bool = False  # True: off the returns alone (TGCVG's fork). Released: rewards
    # keep it, so the model learns and generates rewards near -penalty at terminals


@flax.struct.dataclass
class Windows:
    """A dataset as the denoiser sees it.

    Attributes:
      rows: [M, D], (s, a, r), standardised.
      next_observation: [M, S], standardised.
      blank: [A + 1], standardised zeros: action and reward of a window's last row.
      condition: [M], scaled, of the window that starts there.
      starts: [W], all starts of windows of H transitions.
      normalizer: of the rows.
    """

    rows: Array
    next_observation: Array
    blank: Array
    condition: Array
    starts: Array
    normalizer: Normalizer


def make_network(config: Config) -> MixerUNet:
    """The module."""
    return MixerUNet(
        base_dim=config.base_dim,
        dim_mults=config.dim_mults,
        norm_groups=config.norm_groups,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        dtype=config.dtype,
    )


def make_windows(dataset: Dataset, config: Config) -> Windows:
    """Prepares a dataset. Episodes shorter than H are left out.

    Statistics are of all transitions, with rewards as they are in the data.

    Raises:
      UserError: no episode is as long as H.
    """
    windows.require_windows(dataset, config.horizon, "the horizon H of the denoiser")
    transition = dataset.transition
    s = transition.observation.shape[-1]
    reward = transition.reward
    normalizer = fit_normalizer(_rows(transition, reward), eps=1e-5, ddof=1)
    if config.condition == "window_return":
        total = np.append(0.0, np.cumsum(np.asarray(reward), dtype=np.float64))
        end = np.minimum(np.arange(dataset.size) + config.horizon, dataset.size)
        returns = total[end] - total[:-1]
        shown = reward
    else:
        penalized = reward - config.terminal_penalty * (transition.discount == 0.0)
        returns = discounted_returns(dataset, np.asarray(penalized), config.discount)
        shown = reward if config.restore_rewards else penalized
    state = Normalizer(normalizer.mean[:s], normalizer.std[:s])
    count = windows.num_windows(dataset, config.horizon)
    return Windows(
        rows=normalizer(_rows(transition, shown)),
        next_observation=state(transition.next_observation),
        blank=normalizer(jnp.zeros_like(normalizer.mean))[s:],
        condition=jnp.asarray(config.condition_scale * returns, reward.dtype),
        starts=dataset.order[:count],
        normalizer=normalizer,
    )


def _rows(transition: Transition, reward: Array) -> Array:
    return jnp.concatenate([transition.observation, transition.action, reward[:, None]], axis=-1)


def take(data: Windows, starts: Array, horizon: int) -> Array:
    """Windows [B, H + 1, D] from the given starts [B]."""
    rows = windows.take_windows(data.rows, starts, horizon)
    last = data.next_observation[starts + horizon - 1]
    blank = jnp.broadcast_to(data.blank, (len(starts), *data.blank.shape))
    last = jnp.concatenate([last, blank], axis=-1)
    return jnp.concatenate([rows, last[:, None]], axis=1)


def to_transitions(x: Array, normalizer: Normalizer, task: Task) -> Transition:
    """Denoised windows [B, H + 1, D] as raw transitions [B, H, ...]; discounts are all 1."""
    raw = normalizer.inverse(x)
    s, a = task.observation_dim, task.action_dim
    reward = raw[:, :-1, s + a]
    return Transition(
        observation=raw[:, :-1, :s],
        action=raw[:, :-1, s : s + a],
        reward=reward,
        discount=jnp.ones_like(reward),
        next_observation=raw[:, 1:, :s],
    )


def loss_weight(task: Task, config: Config) -> Array:
    """[H + 1, D]: 0 at action and reward of the last row, else 1."""
    shape = (config.horizon + 1, task.observation_dim + task.action_dim + 1)
    return jnp.ones(shape).at[-1, task.observation_dim :].set(0.0)


def make(task: Task, config: Config) -> Learner:
    """The learner.

    Raises:
      UserError: the network can't halve the number of rows three times.
    """
    length = config.horizon + 1
    divisor = 2 ** (len(config.dim_mults) - 1)
    if length % divisor:
        raise UserError(
            f"horizon={config.horizon}: a window has horizon + 1 rows, which the network halves "
            f"{len(config.dim_mults) - 1} times; choose a horizon of {divisor} n - 1, such as "
            f"{divisor * max(round(length / divisor), 1) - 1}"
        )
    conditional = config.condition != "none"
    weight = loss_weight(task, config)

    def sample(key: PRNGKey, data: Windows) -> denoiser.Batch:
        index = jax.random.randint(key, (config.batch_size,), 0, len(data.starts))
        starts = data.starts[index]
        condition = data.condition[starts][:, None] if conditional else None
        return denoiser.Batch(take(data, starts, config.horizon), condition)

    return denoiser.make_learner(
        make_network(config),
        config,
        prepare=lambda dataset: make_windows(dataset, config),
        sample=sample,
        shape=weight.shape,
        weight=weight,
        condition_dropout=config.condition_dropout if conditional else None,
    )
