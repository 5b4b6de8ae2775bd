"""Noise levels, preconditioning and the first step of the sampler against GTA's; no networks."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data.normalize import fit_normalizer
from tgcvg_jax.ops import edm


@pytest.fixture(scope="module")
def z():
    return golden.load("gta_edm")


@pytest.fixture(scope="module")
def config(z):
    names = {
        "sigma_min": "sigma_min", "sigma_max": "sigma_max", "rho": "rho", "churn": "S_churn",
        "churn_min": "S_tmin", "churn_max": "S_tmax", "churn_noise": "S_noise",
    }  # fmt: skip
    values = {ours: float(z[f"hp/{theirs}"]) for ours, theirs in names.items()}
    assert edm.Sampler(**values) == edm.Sampler()  # the defaults are the released values
    return edm.Sampler(num_steps=int(z["hp/num_sample_steps"]), **values)


def test_schedule(z, config):
    golden.assert_close(edm.sigmas(config), z["out/sigmas"])
    assert z["out/gammas"][-1] == 0.0  # of sigma = 0, where there is no step
    golden.assert_close(edm.gammas(config), z["out/gammas"][:-1])


def test_preconditioning(x64, z):
    sigma, sigma_data = jnp.asarray(z["in/denoise_sigma"]), float(z["hp/sigma_data"])
    factors = edm.precondition(sigma, sigma_data)
    golden.assert_close(factors, tuple(z[f"out/c_{k}"] for k in ("skip", "out", "in", "noise")))
    golden.assert_close(edm.loss_weight(sigma, sigma_data), z["out/loss_weight"])


class EnoughSeen(Exception):
    """Ends the sampler early."""


@pytest.mark.parametrize("run", ["full", "partial", "light"])
def test_first_step(x64, z, config, run):
    """Where the denoiser is asked, if it answers as the network did."""
    first = edm.first_step(config, float(z[f"hp/{run}/noise_level"]))
    guidance = float(z[f"hp/{run}/guidance"])
    sigma = edm.sigmas(config)
    sigma_hat = sigma[first] * (1.0 + edm.gammas(config)[first])
    expected = {k: z[f"out/{run}/first_{k}"] for k in
                ("x_hat", "slope_cond", "slope_uncond", "euler_point")}  # fmt: skip
    normalizer = fit_normalizer(jnp.asarray(z["in/normalizer_data"]), eps=1e-5, ddof=1)
    data = 0.0 if run == "full" else normalizer(jnp.asarray(z["in/windows"]))
    start = data + sigma[first] * z[f"noise/{run}/start"]
    condition = jnp.asarray(z["in/sample_cond"])
    calls = []

    def denoiser(x, level, condition, keep):
        calls.append((x, level))
        if len(calls) == 2:
            raise EnoughSeen
        slopes = [expected["slope_cond"]] + [expected["slope_uncond"]] * (guidance != 1.0)
        return x - sigma_hat * np.concatenate(slopes)

    churn = jnp.asarray(z[f"noise/{run}/churn"])
    keep = jnp.ones((2, len(condition)))
    # Without jit the scan is a Python loop, whose values can be looked at.
    with jax.disable_jit(), pytest.raises(EnoughSeen):
        edm.sample(
            denoiser, start, condition, lambda i: churn[i - first], lambda i: keep,
            config=config, first=first, guidance=guidance,
        )  # fmt: skip
    (x_hat, level_hat), (euler_point, level_next) = calls
    golden.assert_close(x_hat, np.concatenate([expected["x_hat"]] * (2 if guidance != 1.0 else 1)))
    golden.assert_close(euler_point, expected["euler_point"])
    golden.assert_close(level_hat, np.full(len(x_hat), sigma_hat))
    golden.assert_close(level_next, np.full(len(euler_point), sigma[first + 1]))
