import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.ops.losses import conservative_gap, gaussian_nll


def test_gaussian_nll_by_hand():
    # Errors 1, 0, 2, 3 over variances 1, 2, 4, 1: mean(1, 0, 1, 9) + mean(0, ln 2, ln 4, 0).
    mean = jnp.array([[1.0, 5.0], [2.0, 0.0]])
    target = jnp.array([[0.0, 5.0], [0.0, 3.0]])
    log_var = jnp.log(jnp.array([[1.0, 2.0], [4.0, 1.0]]))
    expected = 11 / 4 + 3 * np.log(2.0) / 4
    assert float(gaussian_nll(mean, log_var, target)) == pytest.approx(expected, rel=1e-6)


def test_gaussian_nll_is_lowest_at_the_true_variance():
    value = lambda v: float(gaussian_nll(jnp.zeros(1), jnp.log(jnp.array([v])), jnp.array([2.0])))  # noqa: E731
    assert value(4.0) < min(value(3.9), value(4.1))


def test_conservative_gap_by_hand():
    # exp(0) + exp(ln 3) = 4 and exp(ln 2) + exp(ln 2) = 4.
    corrected = jnp.log(jnp.array([[1.0, 3.0], [2.0, 2.0]]))
    gap = conservative_gap(corrected, jnp.array([1.0, -2.0]))
    assert float(gap) == pytest.approx(np.log(4.0) + 0.5, rel=1e-6)


def test_conservative_gap_with_temperature_and_bounds():
    # 2 ln(exp(0) + exp(ln 3)) = 2 ln 4 and 2 ln 2, less the data's 0 and 5: 2.77 and -3.61.
    corrected = 2.0 * jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]]))
    gap = conservative_gap(corrected, jnp.array([0.0, 5.0]), 2.0, -1.0)
    assert float(gap) == pytest.approx((2 * np.log(4.0) - 1.0) / 2, rel=1e-6)
    gap = conservative_gap(corrected, jnp.array([0.0, 5.0]), 2.0, None, 1.0)
    assert float(gap) == pytest.approx((1.0 + 2 * np.log(2.0) - 5.0) / 2, rel=1e-6)


def test_conservative_gap_survives_large_values():
    gap = conservative_gap(jnp.array([[1e4, 1e4 - 1.0]]), jnp.array([1e4]))
    assert float(gap) == pytest.approx(np.log1p(np.exp(-1.0)), rel=1e-3)


def test_conservative_gap_lowers_proposals_and_raises_data():
    proposals, data = jax.random.normal(jax.random.key(0), (6, 4)), jnp.ones(6)
    down, up = jax.grad(conservative_gap, argnums=(0, 1))(proposals, data)
    assert np.all(down > 0) and np.all(up < 0)  # descent goes against the gradient
    assert float(jnp.sum(down) + jnp.sum(up)) == pytest.approx(0.0, abs=1e-6)
