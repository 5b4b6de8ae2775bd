import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.ops.returns import n_step_to_end


@pytest.mark.parametrize("length", (1, 4))
@pytest.mark.parametrize("gamma", (0.9, 1.0))
def test_against_a_loop(x64, length, gamma):
    rng = np.random.default_rng(length)
    reward, bootstrap = rng.normal(size=(3, length)), rng.normal(size=3)
    expected = np.zeros((3, length))
    for b in range(3):
        value = bootstrap[b]
        for m in reversed(range(length)):
            value = reward[b, m] + gamma * value
            expected[b, m] = value
    actual = n_step_to_end(jnp.asarray(reward), jnp.asarray(bootstrap), gamma)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_by_hand():
    actual = n_step_to_end(jnp.array([1.0, 2.0, 3.0]), jnp.array(8.0), 0.5)
    np.testing.assert_allclose(actual, [3.75, 5.5, 7.0])
