import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.ops.permutation import random_permutation_at


def whole(seed, size):
    return np.asarray(random_permutation_at(jax.random.key(seed), jnp.arange(size), size))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 64, 1000, 65_537])
def test_it_is_a_permutation(size):
    np.testing.assert_array_equal(np.sort(whole(0, size)), np.arange(size))


def test_any_part_of_it():
    index = jnp.array([[7, 0], [999, 500]])
    part = random_permutation_at(jax.random.key(3), index, 1000)
    np.testing.assert_array_equal(part, whole(3, 1000)[np.asarray(index)])


def test_all_permutations_are_equally_likely():
    keys = jax.random.split(jax.random.key(0), 24_000)
    draw = jax.jit(jax.vmap(lambda key: random_permutation_at(key, jnp.arange(4), 4)))
    _, counts = np.unique(np.asarray(draw(keys)), axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.sum((counts - 1000.0) ** 2 / 1000.0) < 49.7  # chi-squared, 23 degrees, p = 0.001


def test_neighbours_do_not_stay_neighbours():
    x = whole(1, 10_007).astype(float)
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(x, np.arange(len(x)))[0, 1]) < 0.05
    # The first entries are spread as uniform draws would be.
    assert abs(x[:500].mean() / len(x) - 0.5) < 4 * (12 * 500) ** -0.5


def test_half_a_billion():
    x = random_permutation_at(jax.random.key(0), jnp.arange(1000), 500_000_000)
    assert len(np.unique(x)) == 1000 and np.all((x >= 0) & (np.asarray(x) < 500_000_000))
