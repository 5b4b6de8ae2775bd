import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data import concatenate
from tgcvg_jax.data.dataset import make_dataset, select
from tgcvg_jax.data.replay import Replay, draw, make_buffer
from tgcvg_jax.types import SYNTHETIC, UserError


@pytest.fixture(scope="module")
def fused(dataset):
    """Synthetic rows first, and told apart by their rewards."""
    made = dataset.replace(
        source=jnp.full_like(dataset.source, SYNTHETIC),
        transition=dataset.transition._replace(
            reward=dataset.transition.reward + 100.0,
            observation=dataset.transition.observation + 5.0,
        ),
    )
    return concatenate([made, dataset])


def rewards(dataset, config, shape=(2, 8), seed=0):
    buffer = make_buffer(dataset, config)
    return np.asarray(draw(jax.random.key(seed), buffer, config, dataset.task, shape)[0].reward)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_a_fixed_mixture_in_every_batch(fused, share, count):
    drawn = rewards(fused, Replay(original_share=share), (50, 8))
    np.testing.assert_array_equal((drawn < 50).sum(axis=1), count)


def test_uniform_over_the_union(fused):
    drawn = rewards(fused, Replay(), (40, 100))
    assert abs(np.mean(drawn < 50) - 0.5) < 0.04
    whole = np.sort(np.asarray(fused.transition.reward))
    assert set(np.unique(drawn)) <= set(whole) and len(np.unique(drawn)) > 0.9 * len(whole)


def test_statistics(fused, dataset):
    mean = lambda d, **kw: np.asarray(make_buffer(d, Replay(**kw)).normalizer.mean)  # noqa: E731
    original = np.asarray(dataset.transition.observation).mean(axis=0)
    np.testing.assert_allclose(mean(fused), original + 2.5, atol=1e-5)
    np.testing.assert_allclose(mean(fused, statistics="original"), original, atol=1e-5)
    np.testing.assert_array_equal(mean(fused, normalize_states=False), 0.0)


def test_states_and_their_successors_are_normalised_alike(dataset):
    config = Replay()
    buffer = make_buffer(dataset, config)
    t, _ = draw(jax.random.key(0), buffer, config, dataset.task, (64,))
    raw = buffer.normalizer.std * t.next_observation + buffer.normalizer.mean
    known = np.asarray(dataset.transition.next_observation)
    nearest = np.abs(np.asarray(raw)[:, None] - known[None]).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-5


def test_rewards(dataset):
    plain = np.asarray(dataset.transition.reward)
    made = lambda **kw: np.sort(np.asarray(make_buffer(dataset, Replay(**kw)).rows[:, -2]))  # noqa: E731
    moved = made(reward_shift=-0.5, reward_scale=4.0)
    np.testing.assert_allclose(moved, np.sort((plain - 0.5) * 4), rtol=1e-5)
    last = np.asarray(dataset.remaining) == 1
    returns = np.add.reduceat(plain, np.append(0, np.flatnonzero(last)[:-1] + 1))
    scaled = plain * 30 / np.ptp(returns)  # the task's episodes have 30 steps
    np.testing.assert_allclose(made(normalize_return=True), np.sort(scaled), rtol=1e-5)


def test_the_range_of_returns_is_the_original_datas(fused, dataset):
    config = Replay(normalize_return=True)
    both, alone = (make_buffer(d, config).rows[:, -2] for d in (fused, dataset))
    kept = np.asarray(both)[np.asarray(both) < 50 * 30]
    assert np.isin(np.round(np.asarray(alone), 4), np.round(kept, 4)).all()


def test_a_last_episode_that_was_cut_has_no_return(dataset, fused):
    """The last one has the lowest return, whole or not; the task's have 30 steps."""
    last = np.asarray(dataset.remaining) == 1
    reward = np.asarray(dataset.transition.reward) - np.where(np.arange(141) < 111, 0, 9)
    transition = jax.tree.map(np.asarray, dataset.transition)._replace(reward=reward)
    whole = make_dataset(dataset.task, transition, last)
    returns = np.add.reduceat(reward, np.append(0, np.flatnonzero(last)[:-1] + 1))
    cut = select(whole, np.arange(141) < 140)
    made = select(fused, np.asarray(fused.source) == SYNTHETIC)
    ended = cut.transition._replace(discount=np.append(np.asarray(cut.transition.discount)[:-1], 0))
    for data, used in (
        (whole, returns),
        (cut, returns[:-1]),
        (concatenate([cut, made]), returns[:-1]),
        (cut.replace(transition=ended), returns),
    ):
        first = make_buffer(data, Replay(normalize_return=True)).rows[0, -2]
        np.testing.assert_allclose(first, reward[0] * 30 / np.ptp(used), rtol=1e-5)


def test_next_actions(dataset):
    config = Replay(normalize_states=False)
    buffer = make_buffer(dataset, config, next_actions=True)
    cut = (np.asarray(dataset.remaining) == 1) & (np.asarray(dataset.transition.discount) == 1)
    assert len(buffer.rows) == dataset.size - cut.sum()
    t, following = draw(jax.random.key(0), buffer, config, dataset.task, (200,))
    observation = np.asarray(dataset.transition.observation)
    action = np.asarray(dataset.transition.action)
    for state, d, found in zip(*map(np.asarray, (t.next_observation, t.discount, following))):
        if d:
            at = np.flatnonzero((observation == state).all(axis=1))
            assert np.any(np.all(action[at] == found, axis=1))


def test_what_cannot_be_mixed(dataset, fused):
    with pytest.raises(UserError, match="needs synthetic data"):
        make_buffer(dataset, Replay(original_share=0.5))
    made = fused.replace(source=jnp.full_like(fused.source, SYNTHETIC))
    with pytest.raises(UserError, match="needs original data"):
        make_buffer(made, Replay(original_share=0.5))
    with pytest.raises(UserError, match="episodes of different returns"):
        make_buffer(made, Replay(normalize_return=True))
