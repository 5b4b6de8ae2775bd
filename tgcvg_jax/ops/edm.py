"""The diffusion model EDM: noise levels, preconditioning and the stochastic Heun sampler.

Karras et al. 2022, "Elucidating the design space of diffusion-based generative models": table 1
(column "Ours") and algorithm 2; guidance of the condition after Ho and Salimans 2022. GTA and
SynthER share all of it. Noise is added to standardised data: x = z + sigma eps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax.types import Array, UserError


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Settings of the released code of GTA and of SynthER; symbols: Karras et al."""

    num_steps: int = 128  # N
    sigma_min: float = 0.002  # sigma_min, last noise level before 0
    sigma_max: float = 80.0  # sigma_max, the first
    rho: float = 7.0  # rho, the larger the more steps at low noise
    churn: float = 80.0  # S_churn, noise added back while sampling, over all steps
    churn_min: float = 0.05  # S_tmin, lowest noise level with churn
    churn_max: float = 50.0  # S_tmax, highest
    churn_noise: float = 1.003  # S_noise, inflates the noise added back


def sigmas(config: Sampler) -> np.ndarray:
    """Noise levels of the sampler (equation 5).

    sigma_i = (sigma_max^(1/rho) + i / (N - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

    Returns:
      [N + 1] float64, falling, the last is 0.
    """
    ends = np.array([config.sigma_max, config.sigma_min], np.float64) ** (1.0 / config.rho)
    return np.append(np.linspace(*ends, config.num_steps) ** config.rho, 0.0)


def gammas(config: Sampler) -> np.ndarray:
    """By which factor, less 1, each step first raises the noise level (algorithm 2).

    Returns:
      [N] float64: min(S_churn / N, sqrt(2) - 1) where S_tmin <= sigma_i <= S_tmax, else 0.
    """
    sigma = sigmas(config)[:-1]
    gamma = min(config.churn / config.num_steps, np.sqrt(2.0) - 1.0)
    return np.where((sigma >= config.churn_min) & (sigma <= config.churn_max), gamma, 0.0)


def precondition(sigma: Array, sigma_data: float) -> tuple[Array, Array, Array, Array]:
    """c_skip, c_out, c_in and c_noise (table 1) of noise levels, all of the shape of `sigma`."""
    variance = jnp.square(sigma) + sigma_data**2
    c_skip = sigma_data**2 / variance
    c_out = sigma * sigma_data / jnp.sqrt(variance)
    c_noise = jnp.log(jnp.maximum(sigma, 1e-20)) / 4.0  # floored as released
    return c_skip, c_out, 1.0 / jnp.sqrt(variance), c_noise


def loss_weight(sigma: Array, sigma_data: float) -> Array:
    """lambda(sigma) = 1 / c_out^2: makes the network's own error weigh the same at all levels."""
    return (jnp.square(sigma) + sigma_data**2) / jnp.square(sigma * sigma_data)


def denoise(
    network: Callable[..., Array],
    x: Array,
    sigma: Array,
    condition: Array | None,
    keep: Array | None,
    sigma_data: float,
) -> Array:
    """D(x; sigma, c) = c_skip x + c_out F(c_in x; c_noise, c) (equation 7).

    Args:
      network: F: (x [B, ...], noise level [B], condition, keep) -> [B, ...].
      x: [B, ...], data with noise.
      sigma: [B].
      condition: [B, C], or None for an unconditional model.
      keep: [B], what the condition's embedding is multiplied by, or None.
      sigma_data: standard deviation of the data.

    Returns:
      [B, ...], the estimate of the data without noise.
    """
    c_skip, c_out, c_in, c_noise = precondition(sigma, sigma_data)
    column = (-1,) + (1,) * (x.ndim - 1)
    out = network(c_in.reshape(column) * x, c_noise, condition, keep)
    return c_skip.reshape(column) * x + c_out.reshape(column) * out


def first_step(config: Sampler, noise_level: float) -> int:
    """The step at which sampling starts from data with noise, rather than from noise alone.

    GTA's partial noising: the fraction mu of the steps that are run. It is far from linear in the
    noise: of 128 steps mu = 0.25 starts at sigma = 0.16, 0.5 at 2.4 and 1 at 80.

    Args:
      config: of the sampler.
      noise_level: mu, in (0, 1].

    Returns:
      int(N (1 - mu)) in float arithmetic, as released: N = 10 and mu = 0.9 give 0, not 1.

    Raises:
      UserError: mu is not in (0, 1].
    """
    if not 0.0 < noise_level <= 1.0:
        raise UserError(f"noise_level={noise_level}: must be above 0 and at most 1")
    return min(int(config.num_steps * (1.0 - noise_level)), config.num_steps - 1)


def sample(
    denoiser: Callable[..., Array],
    start: Array,
    condition: Array | None,
    noise: Callable[[Array], Array],
    keep: Callable[[Array], Array] | None,
    *,
    config: Sampler,
    first: int = 0,
    guidance: float = 1.0,
    guided_heun: bool = False,
    constrain: Callable[[Array, Array, Array], Array] | None = None,
) -> Array:
    """Algorithm 2: from noise, or from data with noise, to data.

    Each step adds noise (churn), then integrates the probability flow from there by Heun's method;
    the last one, down to sigma = 0, by Euler's. A step costs two calls of the denoiser, the last
    one; a guided call has 2B rows.

    Args:
      denoiser: D: (x [n, ...], sigma [n], condition [n, C] or None, keep [n] or None) -> [n, ...],
        n = B or 2B. It multiplies the condition's embedding by `keep`, so 0 is "no condition".
      start: [B, ...], already noised to `sigmas(config)[first]`. Its dtype is that of the sampler.
      condition: [B, C]; None for an unconditional model, which has no guidance.
      noise: that of the churn: step (int32, traced) -> standard normal [B, ...].
      keep: step -> [2, B], for the conditional rows of the Euler ([0]) and of the Heun slope ([1]):
        ones, or 0/1 where the condition is dropped while sampling. Not called without a condition.
      config: the sampler's settings.
      first: step to start at, in 0 ... N - 1 (static); see `first_step`.
      guidance: w' in d = d_uncond + w' (d_cond - d_uncond), a Python float: 1 is conditional and 0
        unconditional sampling, both without a guided call. In the form (w + 1) d_cond - w d_uncond
        that is w' = w + 1.
      guided_heun: guide Heun's second slope too. GTA's released code leaves it conditional alone
        (unconditional for w' = 0), so that the guidance of a whole step is about (w' + 1) / 2.
      constrain: (x, sigma, step) -> x, called after each step with the noise level reached; it may
        put known entries back, with noise of that level (inpainting).

    Returns:
      [B, ...].

    Raises:
      ValueError: `first` is out of range.
    """
    if not 0 <= first < config.num_steps:
        raise ValueError(f"first must be in 0 ... {config.num_steps - 1}, got {first}")
    heun_guidance = guidance if guided_heun or guidance == 0.0 else 1.0
    batch, dtype = start.shape[0], start.dtype

    def slope(x: Array, sigma: Array, kept: Array | None, weight: float) -> Array:
        """dx/dsigma = (x - D) / sigma. Guiding D guides the slope: w' and 1 - w' sum to 1."""
        level = jnp.full((batch,), sigma)
        if condition is None or weight == 1.0:
            denoised = denoiser(x, level, condition, kept)
        elif weight == 0.0:
            denoised = denoiser(x, level, condition, jnp.zeros_like(kept))
        else:
            both = denoiser(
                jnp.concatenate([x, x]),
                jnp.concatenate([level, level]),
                jnp.concatenate([condition, condition]),
                jnp.concatenate([kept, jnp.zeros_like(kept)]),
            )
            conditional, unconditional = both[:batch], both[batch:]
            denoised = unconditional + weight * (conditional - unconditional)
        return (x - denoised) / sigma

    def churned(x: Array, i: Array, sigma_hat: Array, added: Array):
        """x_hat, its slope, and what is kept of the condition in the two slopes of the step."""
        kept = (None, None) if condition is None else keep(i)
        x_hat = x + added * noise(i)
        return x_hat, slope(x_hat, sigma_hat, kept[0], guidance), kept[1]

    def step(x: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
        i, sigma_hat, added, sigma_next = inputs
        x_hat, d, kept = churned(x, i, sigma_hat, added)
        width = sigma_next - sigma_hat
        euler = x_hat + width * d  # from x_hat: from x, the samples would be too wide
        d_next = slope(euler, sigma_next, kept, heun_guidance)
        x = x_hat + width * (d + d_next) / 2.0
        return x if constrain is None else constrain(x, sigma_next, i), None

    # All of the schedule is computed in float64, and only then rounded to the sampler's dtype.
    sigma, gamma = sigmas(config), gammas(config)
    sigma_hat = sigma[:-1] * (1.0 + gamma)
    added = config.churn_noise * np.sqrt(np.square(sigma_hat) - np.square(sigma[:-1]))
    schedule = [jnp.asarray(x[first:], dtype) for x in (sigma_hat, added, sigma[1:])]
    inputs = (jnp.arange(first, config.num_steps, dtype=jnp.int32), *schedule)
    x, _ = jax.lax.scan(step, start, jax.tree.map(lambda x: x[:-1], inputs))
    # The last step ends at sigma = 0, where there is no slope: Euler, outside of the scan.
    i, last_hat, last_added, end = jax.tree.map(lambda x: x[-1], inputs)
    x_hat, d, _ = churned(x, i, last_hat, last_added)
    x = x_hat - last_hat * d
    return x if constrain is None else constrain(x, end, i)
