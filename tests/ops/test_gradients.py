import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.ops.gradients import clip_by_norm, micro_batch_grad


@pytest.mark.parametrize(("size", "parts"), [(None, 1), (99, 1), (12, 1), (4, 3), (1, 12), (8, 3)])
def test_micro_batches(x64, size, parts):
    """8 of 12 do not go: their common divisor 4 does."""
    x, y = jax.random.normal(jax.random.key(0), (2, 12, 3))
    weight = {"w": jnp.array([1.0, -2.0, 0.5])}
    seen = []

    def loss(params, batch):
        error = jnp.sum(batch[0] * params["w"] - batch[1], axis=1)
        seen.append(error.shape)
        return jnp.mean(error**2), {"error": error}

    grads, info = micro_batch_grad(loss, weight, (x, y), size)
    assert seen[0] == (12 // parts,)
    error = np.sum(np.asarray(x) * np.array([1.0, -2.0, 0.5]) - np.asarray(y), axis=1)
    expected = np.mean(2.0 * error[:, None] * np.asarray(x), axis=0)
    np.testing.assert_allclose(grads["w"], expected, rtol=1e-12)
    assert info["error"].shape == ((12,) if parts == 1 else (parts, 12 // parts))
    np.testing.assert_allclose(np.ravel(info["error"]), error, rtol=1e-12)


def test_gradients_are_shortened_but_never_stretched():
    grads = {"a": np.float32([3.0, 0.0]), "b": np.float32([4.0])}
    clipped, norm = clip_by_norm(grads, 2.5)
    assert norm == 5.0
    np.testing.assert_allclose([*clipped["a"], *clipped["b"]], [1.5, 0, 2], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, clip_by_norm(grads, 6.0)[0], grads)
