"""Noise levels, preconditioning and the first step of the sampler against GTA's; no networks."""

import golden
import jax.numpy as jnp
import pytest

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
