import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.networks import memory as memory_lib

L, S = 4, 2


def steps(count, seed=0):
    """[3, count] steps of which the rows have none, some and all, at the end."""
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(3, count, S)).astype(np.float32)
    reward = rng.normal(size=(3, count)).astype(np.float32)
    known = np.array([0, count // 2, count])
    return observation, reward, np.arange(count) >= count - known[:, None], known


def one_by_one(target, observation, reward, known):
    """Each row on its own."""
    rows = []
    for b, count in enumerate(known):
        memory = memory_lib.empty(1, L, S, None if target is None else target[b])
        total = observation.shape[1]
        for t in range(total - count, total):
            before = reward[b : b + 1, t - 1] * (t > total - count)
            memory = memory_lib.push(memory, observation[b : b + 1, t], before)
        rows.append(memory)
    if target is None:
        assert all(row.return_to_go is None for row in rows)
    return [None if x[0] is None else np.concatenate(x) for x in zip(*rows)]


@pytest.mark.parametrize("target", (None, np.array([5.0, 7.0, -3.0], np.float32)))
@pytest.mark.parametrize("count", (1, 3, 4, 9))
def test_recalling_is_pushing_one_after_the_other(count, target):
    observation, reward, mask, known = steps(count)
    spoilt = np.where(mask[..., None], observation, 99.0)
    empty = memory_lib.empty(3, L, S, target)
    found = memory_lib.recall(empty, spoilt, np.where(mask, reward, 99.0), mask)
    expected = one_by_one(target, observation, reward, known)
    for a, b in zip(found, expected):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, atol=1e-5)
    real = np.arange(L) >= L - np.minimum(known, L)[:, None]
    np.testing.assert_array_equal(memory_lib.mask(found), real)


def test_a_return_for_all_rows_or_for_each():
    one, each = (memory_lib.empty(3, L, S, x).return_to_go for x in (2.0, jnp.arange(3.0)))
    np.testing.assert_array_equal(one, np.full((3, L), 2.0))
    np.testing.assert_array_equal(each, np.tile(np.arange(3.0)[:, None], (1, L)))
    memory = memory_lib.push(memory_lib.empty(3, L, S, 2.0), jnp.zeros((3, S)), jnp.arange(3.0))
    np.testing.assert_array_equal(memory.return_to_go[:, -1], [2.0, 1.0, 0.0])
