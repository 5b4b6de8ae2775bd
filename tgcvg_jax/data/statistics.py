"""What a dataset looks like in numbers, and which of TGCVG's settings that suggests."""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tgcvg_jax import tasks
from tgcvg_jax.data.dataset import episode_returns
from tgcvg_jax.types import Dataset, Task

AT_BOUND = 1 - 1e-3  # |action| from here on counts as at the bound of [-1, 1]

# A mode of the returns is a peak of their density that rises by MODE_PROMINENCE of the highest
# peak above the valley that parts it from a higher one, and whose side of the valleys holds
# MODE_SHARE of the episodes: a few lucky ones, or the first steps of a training, make no mode.
MODE_PROMINENCE = 0.1
MODE_SHARE = 0.25
MIN_EPISODES = 10  # fewer say nothing of a distribution

# Of `suggest_tgcvg`.
TERMINATING = 0.01  # share of episodes that end in a terminal, from which on the data terminates
OFTEN_TERMINATING = 0.5
SHORT = 200  # steps
SPARSE = 0.8  # share of steps with the lowest reward, from which on others are rare


class Spread(NamedTuple):
    """A distribution in five numbers; `std` is the population's."""

    mean: float
    std: float
    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: ArrayLike) -> Spread:
        """The five numbers of [N] values, N >= 1."""
        x = np.asarray(values, np.float64)
        return cls(*(float(f(x)) for f in (np.mean, np.std, np.min, np.median, np.max)))


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A dataset in numbers.

    Attributes:
      transitions: M.
      episodes: E, how many pieces the data consists of.
      segments: pieces that do not begin at step 0 of an episode, as synthetic ones.
      length: of the pieces, in steps.
      returns: undiscounted; of a segment, what the file gives as its first row's return-to-go.
      return_modes: see `return_modes`.
      terminals: pieces that end because the MDP does; the others were cut off or timed out.
      reward_min: of single steps.
      reward_max: of single steps.
      lowest_reward_share: share of the steps with the lowest reward.
      actions_at_bounds: share of all action entries with an absolute value of at least AT_BOUND.
      constant_dims: state dimensions that never change.
    """

    transitions: int
    episodes: int
    segments: int
    length: Spread
    returns: Spread
    return_modes: int
    terminals: int
    reward_min: float
    reward_max: float
    lowest_reward_share: float
    actions_at_bounds: float
    constant_dims: tuple[int, ...]

    @property
    def terminal_share(self) -> float:
        """Share of the episodes that end in a terminal."""
        return self.terminals / self.episodes


class Suggestion(NamedTuple):
    """Settings of TGCVG for a dataset; ranges are (low, high), both included.

    Attributes:
      context_length: L.
      cql_weight: lambda, a range.
      window_length: K, a range.
      reasons: a line each.
    """

    context_length: int
    cql_weight: tuple[float, float]
    window_length: tuple[int, int]
    reasons: tuple[str, ...]


def describe(dataset: Dataset) -> Statistics:
    """Looks through a dataset."""
    observation, action = (
        np.asarray(x) for x in (dataset.transition.observation, dataset.transition.action)
    )
    reward = np.asarray(dataset.transition.reward)
    last = np.flatnonzero(np.asarray(dataset.remaining) == 1)
    first = np.append(0, last[:-1] + 1)
    returns = episode_returns(dataset)
    constant = np.all(observation == observation[0], axis=0)
    return Statistics(
        transitions=dataset.size,
        episodes=len(last),
        segments=int(np.sum(np.asarray(dataset.timestep)[first] > 0)),
        length=Spread.of(last - first + 1),
        returns=Spread.of(returns),
        return_modes=return_modes(returns),
        terminals=int(np.sum(np.asarray(dataset.transition.discount)[last] == 0)),
        reward_min=float(reward.min()),
        reward_max=float(reward.max()),
        lowest_reward_share=float(np.mean(reward == reward.min())),
        actions_at_bounds=float(np.mean(np.abs(action) >= AT_BOUND)),
        constant_dims=tuple(int(i) for i in np.flatnonzero(constant)),
    )


def return_modes(returns: ArrayLike) -> int:
    """How many groups the returns fall into: modes of a Gaussian kernel density estimate.

    The bandwidth is Silverman's, 0.9 std N^(-1/5), from the standard deviation alone: the quartile
    distance of his rule makes hills of single episodes where most returns are nearly equal. What
    counts as a mode is said at MODE_PROMINENCE and MODE_SHARE.

    Args:
      returns: [N] returns of episodes.

    Returns:
      The number of modes, at least 1; 1 if there are fewer than MIN_EPISODES returns or if they
      are all equal.
    """
    x = np.asarray(returns, np.float64)
    if len(x) < MIN_EPISODES or np.ptp(x) <= 1e-6 * np.abs(x).max():
        return 1
    place, density = _density(x)
    inner = density[1:-1]
    peaks = 1 + np.flatnonzero((inner > density[:-2]) & (inner >= density[2:]))
    least = MODE_PROMINENCE * density.max()
    peaks = [p for p in peaks if _prominence(density, p) >= least]
    valleys = [a + int(np.argmin(density[a:b])) for a, b in itertools.pairwise(peaks)]
    edges = np.array([-np.inf, *place[valleys], np.inf])
    shares = np.diff(np.searchsorted(np.sort(x), edges)) / len(x)
    return max(int(np.sum(shares >= MODE_SHARE)), 1)


def _density(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and the density there, up to a factor: a fine histogram smoothed by the kernel."""
    bandwidth = 0.9 * x.std() * len(x) ** -0.2
    width = max(bandwidth / 8, (np.ptp(x) + 8 * bandwidth) / 8192)
    low = x.min() - 4 * bandwidth
    bins = int(np.ceil((x.max() + 4 * bandwidth - low) / width))
    counts, edges = np.histogram(x, bins, (low, low + bins * width))
    reach = int(np.ceil(4 * bandwidth / width))
    kernel = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) * width / bandwidth))
    return 0.5 * (edges[1:] + edges[:-1]), np.convolve(counts, kernel, "same")


def _prominence(density: np.ndarray, peak: int) -> float:
    """Height of a peak above the higher one of the valleys on the way to higher ground."""
    valleys = []
    for side in (density[peak::-1], density[peak:]):
        higher = np.flatnonzero(side > density[peak])
        valleys.append(side[: higher[0]].min() if len(higher) else 0.0)
    return float(density[peak] - max(valleys))


def suggest_tgcvg(statistics: Statistics, task: Task) -> Suggestion:
    """Settings of TGCVG for a dataset: a heuristic fitted to Table 6, not a formula of the paper.

    The paper (Appendix C) names the criteria: lambda grows with the number of modes of the return
    distribution and with the strictness of termination; K shrinks with strict termination and
    short episodes. The numbers here are Table 6's, by what its datasets have in common, so nothing
    but ranges, and no better than its 18 rows.

    Args:
      statistics: of whole episodes; those of segments say nothing.
      task: tells mazes.
    """
    share = statistics.terminal_share
    terminating, often = share >= TERMINATING, share >= OFTEN_TERMINATING
    differ = statistics.reward_max > statistics.reward_min
    sparse = differ and statistics.lowest_reward_share >= SPARSE
    modes, longest = statistics.return_modes, int(statistics.length.max)
    reasons = [
        f"{100 * share:.0f} % of the episodes end in a terminal"
        if terminating
        else "episodes do not terminate"
    ]
    if task.domain in tasks.MAZES or sparse:
        kind = "a maze" if task.domain in tasks.MAZES else "sparse rewards"
        reasons.insert(0, f"{kind}: short contexts and windows")
        length, weight, window = 5, (1.0, 5.0) if terminating else (0.3, 0.5), (6, 7)
    elif modes > 1:
        reasons.insert(0, f"{modes} modes in the returns: a large lambda")
        length, weight, window = 20, (5.0, 10.0) if often else (10.0, 10.0), (40, 60)
    elif terminating:
        reasons.insert(0, "one mode in the returns: lambda depends on termination")
        length, weight, window = 20, (2.0, 5.0), (40, 60)
    else:
        reasons.insert(0, "one mode in the returns: a small lambda")
        length, weight, window = 5, (0.1, 0.1), (60, 60)
    if window[0] >= 40:
        if not terminating:
            window = (60, 60)
        elif statistics.length.median < SHORT:
            window = (40, 40)
            reasons.append(f"the median episode is shorter than {SHORT} steps: the shorter K")
    if longest < window[1]:
        window = (min(window[0], longest), longest)
        length = min(length, max(longest // 2, 1))  # H = K + 1 - L steps are generated
        reasons.append(f"no episode is longer than {longest} steps, nor can K be")
    return Suggestion(length, weight, window, tuple(reasons))
