"""Training of EDM denoisers (Karras et al. 2022), which GTA and SynthER share.

What one sample is (a window, a transition) and which network denoises it are the business of
`window_denoiser` and `transition_denoiser`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.networks.mlp import init_at_once
from tgcvg_jax.ops import edm
from tgcvg_jax.ops.gradients import clip_by_norm
from tgcvg_jax.types import Array, Learner, PRNGKey, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """What all denoisers have. Defaults: GTA's released code; symbols: Karras et al."""

    num_steps: int = 1_000_000  # gradient steps
    batch_size: int = 256
    learning_rate: float = 3e-4  # falls to 0 in each cosine period
    num_periods: int = 10  # of the cosine in num_steps; GTA restarts it, SynthER has one
    beta_2: float = 0.99  # Adam's
    max_grad_norm: float = 1.0
    ema_decay: float = 0.995  # of the averaged weights, which sample; it ramps up to this
    ema_every: int = 10  # steps between two of its updates
    ema_start: int = 100  # steps until which the average is a copy
    sigma_data: float = 1.0  # standard deviation of the (standardised) data
    p_mean: float = -1.2  # P_mean: training draws ln(sigma) ~ N(P_mean, P_std^2)
    p_std: float = 1.2  # P_std
    compute: Literal["float32", "bfloat16"] = "float32"  # of the network; weights stay float32

    @property
    def dtype(self) -> jnp.dtype | None:
        """What the network's layers compute in; None: the type of their parameters."""
        return jnp.bfloat16 if self.compute == "bfloat16" else None


@flax.struct.dataclass
class State:
    """Everything that training changes or sampling needs.

    Attributes:
      params: of the network.
      ema: their moving average.
      constants: the network's frozen random frequencies.
      opt_state: Adam's.
      normalizer: of the samples.
      key: PRNG key of the run; never advanced.
      step: gradient steps done.
    """

    params: PyTree
    ema: PyTree
    constants: PyTree
    opt_state: PyTree
    normalizer: Normalizer
    key: PRNGKey
    step: Array


@flax.struct.dataclass
class Batch:
    """What one update sees.

    Attributes:
      x: [B, ...], standardised.
      condition: [B, C], or None.
    """

    x: Array
    condition: Array | None = None


@flax.struct.dataclass
class Noise:
    """All random draws of one update.

    Attributes:
      sigma: [B], standard normal.
      x: [B, ...], standard normal.
      keep: [B], 1, or 0 where the condition is dropped; None without a condition.
    """

    sigma: Array
    x: Array
    keep: Array | None = None


def loss(
    params: PyTree,
    constants: PyTree,
    batch: Batch,
    noise: Noise,
    network: nn.Module,
    config: Config,
    weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Mean over the batch of lambda(sigma) times the mean squared error of D (equation 8).

    Args:
      params: what to differentiate.
      constants: of the network.
      batch: the samples.
      noise: the draws.
      network: F.
      config: the config.
      weight: of the squared errors, in the shape of a sample. The mean divides by all of them.
    """
    sigma = jnp.exp(config.p_mean + config.p_std * noise.sigma)
    column = (-1,) + (1,) * (batch.x.ndim - 1)
    noised = batch.x + sigma.reshape(column) * noise.x
    apply = lambda *x: network.apply({"params": params, "constants": constants}, *x)  # noqa: E731
    denoised = edm.denoise(apply, noised, sigma, batch.condition, noise.keep, config.sigma_data)
    error = jnp.square(denoised - batch.x)
    error = jnp.mean(error if weight is None else weight * error, tuple(range(1, error.ndim)))
    value = jnp.mean(edm.loss_weight(sigma, config.sigma_data) * error)
    return value, {"loss": value, "sigma": sigma, "noised": noised, "denoised": denoised}


def learning_rate(step: Array, config: Config) -> Array:
    """Of the update that follows `step` others: cosine periods, each from full to 0."""
    period = -(-config.num_steps // config.num_periods)
    phase = jnp.asarray(step % period, float) / period
    return 0.5 * config.learning_rate * (1.0 + jnp.cos(jnp.pi * phase))


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam; its state counts the steps."""
    return optax.adam(lambda count: learning_rate(count, config), b2=config.beta_2)


def update_ema(ema: PyTree, params: PyTree, step: Array, config: Config) -> PyTree:
    """The average after a gradient step, as ema-pytorch does it.

    It moves in the first of every `ema_every` steps: to a copy up to the first one after step
    `ema_start`, then by a decay of min(ema_decay, 1 - (1 + e)^(-2/3)), e steps after `ema_start`.

    Args:
      ema: the average before.
      params: after the step.
      step: gradient steps done before this one.
      config: the config.
    """
    age = jnp.maximum(step - config.ema_start, 0)
    decay = jnp.minimum(config.ema_decay, 1.0 - (1.0 + jnp.asarray(age, float)) ** (-2.0 / 3.0))
    last_copy = (config.ema_start // config.ema_every + 1) * config.ema_every
    decay = jnp.where(step <= last_copy, 0.0, decay)
    decay = jnp.where(step % config.ema_every == 0, decay, 1.0)
    return jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, ema, params)


def apply_update(
    state: State,
    batch: Batch,
    noise: Noise,
    *,
    network: nn.Module,
    config: Config,
    weight: Array | None = None,
) -> tuple[State, dict[str, Array]]:
    """One step of Adam on clipped gradients; then the average moves."""
    grads, info = jax.grad(loss, has_aux=True)(
        state.params, state.constants, batch, noise, network, config, weight
    )
    grads, norm = clip_by_norm(grads, config.max_grad_norm)
    updates, opt_state = optimizer(config).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, state.step, config)
    state = state.replace(params=params, ema=ema, opt_state=opt_state, step=state.step + 1)
    return state, info | {"grad_norm": norm}


def make_learner(
    network: nn.Module,
    config: Config,
    *,
    prepare: Callable,
    sample: Callable,
    shape: tuple[int, ...],
    weight: Array | None = None,
    condition_dropout: float | None = None,
) -> Learner:
    """The learner.

    Args:
      network: F: (x, noise level, condition, keep) -> x.
      config: the config.
      prepare: dataset -> data with a field `normalizer`.
      sample: (key, data) -> Batch.
      shape: of a sample.
      weight: see `loss`.
      condition_dropout: probability that training hides the condition; None: there is none.
    """

    def init(key: PRNGKey, data: PyTree) -> State:
        key, network_key = jax.random.split(key)
        inputs = [jnp.zeros((1, *shape)), jnp.zeros(1)]
        if condition_dropout is not None:
            inputs += [jnp.zeros((1, 1)), jnp.ones(1)]
        variables = init_at_once(network, network_key, *inputs)
        params = variables["params"]
        return State(
            params=params,
            ema=params,
            constants=variables["constants"],
            opt_state=optimizer(config).init(params),
            normalizer=data.normalizer,
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def update(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        batch_size = len(batch.x)
        keep = None
        if condition_dropout is not None:
            keep = jax.random.bernoulli(keys[2], 1.0 - condition_dropout, (batch_size,))
            keep = keep.astype(batch.x.dtype)
        noise = Noise(
            sigma=jax.random.normal(keys[0], (batch_size,), batch.x.dtype),
            x=jax.random.normal(keys[1], batch.x.shape, batch.x.dtype),
            keep=keep,
        )
        state, info = apply_update(
            state, batch, noise, network=network, config=config, weight=weight
        )
        return state, {name: info[name] for name in ("loss", "grad_norm")}

    return Learner(prepare, init, sample, update, num_steps=config.num_steps)


def make_denoiser(network: nn.Module, state: State, config: Config) -> Callable[..., Array]:
    """D with the averaged weights, in the form that `ops.edm.sample` takes."""
    variables = {"params": state.ema, "constants": state.constants}
    apply = lambda *x: network.apply(variables, *x)  # noqa: E731
    return lambda *x: edm.denoise(apply, *x, sigma_data=config.sigma_data)
