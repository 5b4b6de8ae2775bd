"""Figures. Drawn through matplotlib's object API, so no global state and no display is touched."""

from tgcvg_jax.plotting.datasets import return_histogram, summary
from tgcvg_jax.plotting.drawing import MAX_ROWS
from tgcvg_jax.plotting.quality import quality_figure
from tgcvg_jax.plotting.scores import learning_curve, score_bars, trade_off
from tgcvg_jax.plotting.skeletons import trajectory_strip

__all__ = [
    "MAX_ROWS",
    "learning_curve",
    "quality_figure",
    "return_histogram",
    "score_bars",
    "summary",
    "trade_off",
    "trajectory_strip",
]
