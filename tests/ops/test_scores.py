import dataclasses

import numpy as np
import pytest
from scipy import stats

from tgcvg_jax.ops import scores
from tgcvg_jax.tasks import TASKS

HOPPER = TASKS["hopper-medium-v2"]


def test_normalized_score_by_hand():
    returns = [HOPPER.min_score, HOPPER.max_score, 1600.0]
    by_hand = 100 * (1600 + 20.272305) / (3234.3 + 20.272305)
    np.testing.assert_allclose(scores.normalized_score(returns, HOPPER), [0, 100, by_hand])
    assert scores.normalized_score(np.zeros((2, 3)), HOPPER).shape == (2, 3)


def test_no_reference_no_score():
    task = dataclasses.replace(HOPPER, min_score=None, max_score=None)
    assert scores.normalized_score([1.0], task) is None


def test_interval_of_one_value_or_equal_values_is_a_point():
    assert scores.bootstrap_interval([3.5]) == (3.5, 3.5)
    assert scores.summarize([3.5]) == (3.5, 0.0, 3.5, 3.5)
    assert scores.bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_interval_of_two_values_by_hand():
    # Means of resamples are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    assert scores.bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert scores.bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_interval_is_reproducible_and_widens_with_confidence():
    values = np.random.default_rng(0).normal(size=10)
    low, high = scores.bootstrap_interval(values)
    assert (low, high) == scores.bootstrap_interval(values)
    wider = scores.bootstrap_interval(values, confidence=0.99)
    assert wider[0] < low < values.mean() < high < wider[1]


def test_interval_covers_the_true_mean():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = scores.bootstrap_interval(rng.normal(5.0, 2.0, size=30), num_resamples=1000)
        covered += low <= 5.0 <= high
    assert 0.89 <= covered / 200 <= 0.98  # 0.95 less the percentile method's small-sample bias


def test_summary():
    summary = scores.summarize([1.0, 2.0, 6.0])
    assert summary.mean == 3.0
    np.testing.assert_allclose(summary.std, np.sqrt(14 / 3))
    assert (summary.low, summary.high) == scores.bootstrap_interval([1.0, 2.0, 6.0])


@pytest.mark.parametrize("values", [[], 1.0, [[1.0, 2.0]]])
def test_not_a_vector(values):
    with pytest.raises(ValueError, match="vector"):
        scores.bootstrap_interval(values)


def test_welch_by_hand():
    """Means 2 and 5, variances 1 and 4, three values each."""
    first, second = [1.0, 2.0, 3.0], [3.0, 5.0, 7.0]
    error = np.sqrt(1 / 3 + 4 / 3)
    freedom = (5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    reach = stats.t.ppf(0.975, freedom) * error
    p = 2 * stats.t.sf(3 / error, freedom)
    np.testing.assert_allclose(scores.welch(first, second), (3, 3 - reach, 3 + reach, p))
    np.testing.assert_allclose(scores.welch(second, first), (-3, -3 - reach, -3 + reach, p))


def test_welch_interval_and_p_agree():
    rng = np.random.default_rng(2)
    for _ in range(20):
        first, second = rng.normal(0, 1, 4), rng.normal(1.5, 3, 6)
        result = scores.welch(first, second)
        assert (result.low > 0 or result.high < 0) == (result.p < 0.05)
        border = scores.welch(first, second, confidence=1 - result.p)
        nearer = min(abs(border.low), abs(border.high))
        assert nearer == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0]), ([1.0, 1.0], [2.0, 2.0])]
)
def test_welch_without_spread_says_nothing(first, second):
    assert scores.welch(first, second) is None


def test_welch_takes_vectors():
    with pytest.raises(ValueError, match="vector"):
        scores.welch([[1.0, 2.0]], [1.0, 2.0])


def test_holm_by_hand():
    np.testing.assert_allclose(scores.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert scores.holm([0.6, 0.7]) == [1.0, 1.0]
    assert scores.holm([0.2]) == [0.2] and scores.holm([]) == []
