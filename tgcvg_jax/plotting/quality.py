"""The figure of a synthetic dataset's quality: what `quality.json` says, and where the data lies.

t-SNE (van der Maaten & Hinton 2008) of state-action pairs is what the papers show; it needs
scikit-learn (`pip install 'tgcvg_jax[tsne]'`). Without it the two leading principal components are
drawn, and the title says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tgcvg_jax import metrics as metrics_lib
from tgcvg_jax.plotting import drawing
from tgcvg_jax.plotting.drawing import ORIGINAL_COLOR, STYLE, SYNTHETIC_COLOR
from tgcvg_jax.types import Task, Transition

POINTS = 1500  # of each dataset in the embedding
PERPLEXITY = 30.0
MUTED = "#52606d"
COLORS = {"original": ORIGINAL_COLOR, "synthetic": SYNTHETIC_COLOR}
DARK_ORIGINAL = "#66727f"  # lines: the fill's grey is too light for them
LINE_COLORS = {"original": DARK_ORIGINAL, "synthetic": SYNTHETIC_COLOR}
LOG_SPAN = 30.0  # largest / smallest value from which on an axis is logarithmic

RETURNS = (
    ("claimed_return", "claimed"),
    ("oracle_return", "actions\nreplayed"),
    ("generator_return", "generator\nitself"),
)


def quality_figure(
    path: str | os.PathLike,
    task: Task,
    quality: Mapping[str, Any],
    original: Transition,
    synthetic: Transition,
    seed: int = 0,
) -> None:
    """Draws where synthetic data lies and how it compares with the simulator.

    An embedding of states and actions, the growth of the compounding error, dynamics error and
    reward by step, the distributions of rewards and of segments' returns, and a table. What was not
    measured is said to be so.

    Args:
      path: the PNG. Written whole or not at all.
      task: names the figure.
      quality: the content of quality.json: `metrics` (name -> {original, synthetic}, numbers or
        None) and `curves` (name -> {step, original, synthetic}, where `original_low` and
        `original_high`, the same of synthetic, are a band, for example quartiles). `distributions`,
        if there, has `claimed_return` and `oracle_return`: {original, synthetic} -> values, one a
        segment.
      original: numpy fields [M, ...].
      synthetic: the same, of any size.
      seed: of the rows that are embedded, and of t-SNE.
    """
    metrics, curves = quality.get("metrics") or {}, quality.get("curves") or {}
    figure = Figure(figsize=(15, 7.2), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.02)
    head, body = figure.subfigures(2, 1, height_ratios=(0.6, 6.6))
    grid = body.add_gridspec(2, 4, width_ratios=(1.55, 1, 1, 1))
    _header(head, task, quality, metrics, len(original.reward), len(synthetic.reward))
    _embedding_panel(body.add_subplot(grid[:, 0]), original, synthetic, seed)
    _growth(body.add_subplot(grid[0, 1]), curves.get("compounding_error"))
    _dynamics(body.add_subplot(grid[0, 2]), curves.get("dynamics_mse_by_step"))
    _reward_by_step(body.add_subplot(grid[0, 3]), curves)
    _rewards(body.add_subplot(grid[1, 1]), original, synthetic)
    _returns(body.add_subplot(grid[1, 2]), metrics, quality.get("distributions") or {})
    _table(body.add_subplot(grid[1, 3]), metrics)
    drawing.save(figure, path)


def embed(points: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """Two coordinates for each point, and the name of the method.

    Args:
      points: [M, D], finite, standardised.
      seed: of t-SNE.

    Returns:
      [M, 2], and `t-SNE`, or `PCA` without scikit-learn or with too few points for t-SNE.
    """
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits  # comes with it
    except ImportError:
        TSNE = None
    if TSNE is not None and len(points) > 3 * PERPLEXITY:
        method = TSNE(2, perplexity=PERPLEXITY, init="pca", random_state=seed)
        # Its threads wait for each other all the time: on a machine that has other work, several
        # are many times slower than one. One also makes the result independent of their number.
        with threadpool_limits(1):
            return method.fit_transform(points), "t-SNE"
    centred = points - points.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return centred @ vectors[:, :-3:-1], "PCA"  # eigh sorts upwards: the last two, largest first


def state_actions(
    original: Transition, synthetic: Transition, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to be embedded together, in units of the original's standard deviation.

    Args:
      original: fields [M, ...].
      synthetic: the same, of any size. Rows that are not finite are left out.
      seed: of the choice of rows.

    Returns:
      points [N, S + A], N <= 2 POINTS, and is_synthetic [N] bool.
    """
    old, new = (
        np.concatenate([part.observation, part.action], axis=1)
        for part in (
            drawing.subsample(original, POINTS, seed),
            # Another choice: perturbed copies would else lie beside the very rows they are of.
            drawing.subsample(synthetic, POINTS, seed + 1),
        )
    )
    new = new[np.isfinite(new).all(axis=1)]
    unit = old.std(axis=0)
    both = (np.concatenate([old, new]) - old.mean(axis=0)) / np.where(unit > 1e-6, unit, 1.0)
    return both, np.arange(len(both)) >= len(old)


def _header(
    part: Any, task: Task, quality: Mapping[str, Any], metrics: Mapping[str, Any], *sizes: int
) -> None:
    name = quality.get("synthesizer") or "synthetic data"
    part.suptitle(f"{task.name}: quality of {name}", fontsize=13, weight="bold")
    handles = []
    for key, size in zip(COLORS, sizes):
        count = (metrics.get("transitions") or {}).get(key) or size
        label = f"{key} ({int(count):,} transitions)"
        handles.append(Line2D([], [], color=LINE_COLORS[key], linewidth=4, label=label))
    part.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=10)


def _embedding_panel(axis: Axes, original: Transition, synthetic: Transition, seed: int) -> None:
    points, is_synthetic = state_actions(original, synthetic, seed)
    found, method = embed(points, seed)
    order = np.random.default_rng(seed).permutation(len(found))  # neither covers the other
    colors = np.where(is_synthetic, SYNTHETIC_COLOR, DARK_ORIGINAL)[order]
    axis.scatter(*found[order].T, s=7, c=colors, alpha=0.55, linewidths=0, rasterized=True)
    limits = [np.quantile(column, [0.002, 0.998]) for column in found.T]
    for set_limits, (low, high) in zip((axis.set_xlim, axis.set_ylim), limits):
        margin = 0.07 * (high - low) or 1.0
        set_limits(low - margin, high + margin)
    counts = f"{(~is_synthetic).sum():,} + {is_synthetic.sum():,} rows"
    axis.set_title(f"States and actions, {method} of {counts}", **STYLE)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#cbd2d9")


def _growth(axis: Axes, curve: Mapping[str, Any] | None) -> None:
    axis.set_title("Compounding error: generated against replayed", **STYLE)
    if not _lines(axis, curve):
        return
    axis.set_xlabel("steps from the segment's start", **STYLE)
    axis.set_ylabel("rms, in std of the data", **STYLE)
    _scale(axis)
    if axis.collections:  # a few bad segments can lift the mean out of the band
        handles = [Line2D([], [], color=MUTED, linewidth=1.6, label="all segments"),
                   Patch(color=MUTED, alpha=0.3, label="middle half of them")]  # fmt: skip
        axis.legend(handles=handles, frameon=False, fontsize=7)


def _dynamics(axis: Axes, curve: Mapping[str, Any] | None) -> None:
    axis.set_title("Dynamics error of single steps", **STYLE)
    if not _lines(axis, curve):
        return
    axis.set_xlabel("step within the segment", **STYLE)
    axis.set_ylabel("mean squared error", **STYLE)
    _scale(axis)


def _reward_by_step(axis: Axes, curves: Mapping[str, Any]) -> None:
    axis.set_title("Reward by step", **STYLE)
    claimed, oracle = curves.get("reward_by_step"), curves.get("oracle_reward_by_step")
    found = [style for style, curve in (("-", claimed), ("--", oracle)) if _has(curve)]
    if not found:
        _not_measured(axis)
        return
    for style, curve in (("-", claimed), ("--", oracle)):
        if style in found:
            _lines(axis, curve, style)
    labels = {"-": "in the data", "--": "by the simulator"}
    handles = [Line2D([], [], color=MUTED, linestyle=s, label=labels[s]) for s in found]
    axis.legend(handles=handles, frameon=False, fontsize=7)
    axis.set_xlabel("step within the segment", **STYLE)
    axis.set_ylabel("mean reward", **STYLE)


def _rewards(axis: Axes, original: Transition, synthetic: Transition) -> None:
    old, new = (np.asarray(drawing.subsample(x).reward) for x in (original, synthetic))
    drawing.histogram(axis, old, new, "reward in the data", "", bins=60)
    axis.set_title("Rewards", **STYLE)
    axis.set_ylabel("density", **STYLE)


def _returns(
    axis: Axes, metrics: Mapping[str, Any], distributions: Mapping[str, Mapping[str, Any]]
) -> None:
    """Histograms where all segments' returns are there, else their means."""
    axis.set_title("Segment returns: claimed against replayed", **STYLE)
    samples = {
        name: _numbers((distributions.get(name) or {}).get("synthetic"))
        for name in ("claimed_return", "oracle_return")
    }
    samples = {name: x[np.isfinite(x)] for name, x in samples.items()}
    if all(x.size for x in samples.values()):
        edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), 50)
        style = dict(color=SYNTHETIC_COLOR)
        density = {name: np.histogram(x, edges, density=True)[0] for name, x in samples.items()}
        axis.stairs(
            density["oracle_return"], edges, fill=True, alpha=0.3, label="replayed", **style
        )
        axis.stairs(density["claimed_return"], edges, linewidth=1.2, label="claimed", **style)
        drawing.tidy(axis)
        axis.legend(frameon=False, fontsize=7)
        axis.set_xlabel("return of a synthetic segment", **STYLE)
        axis.set_ylabel("density", **STYLE)
        return
    bars = [(i, j, _value(metrics, name, key))
            for i, (name, _) in enumerate(RETURNS) for j, key in enumerate(COLORS)]  # fmt: skip
    if all(value is None for *_, value in bars):
        _not_measured(axis)
        return
    for i, j, value in bars:
        key, at = list(COLORS)[j], i + 0.4 * j - 0.2
        if value is None:
            axis.text(at, 0, "—", color=LINE_COLORS[key], ha="center", va="bottom", weight="bold")
            continue
        axis.bar(at, value, 0.36, color=COLORS[key])
        axis.text(at, value, f"{value:.4g}", ha="center", va="bottom", fontsize=7)
    drawing.tidy(axis)
    axis.margins(y=0.12)
    axis.set_xticks(range(len(RETURNS)), [label for _, label in RETURNS], fontsize=7)
    axis.set_ylabel("mean return of a segment", **STYLE)


def _table(axis: Axes, metrics: Mapping[str, Any]) -> None:
    axis.axis("off")
    rows = [(name, metric.label) for name, metric in metrics_lib.METRICS.items()
            if metric.in_figure and name in metrics]  # fmt: skip
    axis.set_title("Metrics", **STYLE)
    if not rows:
        _not_measured(axis)
        return
    for x, key in ((0.76, "original"), (1.0, "synthetic")):
        axis.text(x, 0.97, key, transform=axis.transAxes, ha="right", va="top",
                  color=LINE_COLORS[key], weight="bold", **STYLE)  # fmt: skip
    for i, (name, label) in enumerate(rows):
        y = 0.89 - 0.068 * i
        axis.text(0, y, label, transform=axis.transAxes, va="top", **STYLE)
        for x, key in ((0.76, "original"), (1.0, "synthetic")):
            text = metrics_lib.show(name, _value(metrics, name, key), "—", digits=3)
            axis.text(x, y, text, transform=axis.transAxes, ha="right", va="top", **STYLE)
        if not label.startswith(" ") and i:
            axis.plot([0, 1], [y + 0.015] * 2, color="#e4e7eb", linewidth=0.7,
                      transform=axis.transAxes)  # fmt: skip


def _value(metrics: Mapping[str, Any], name: str, key: str) -> float | None:
    value = (metrics.get(name) or {}).get(key)
    return float(value) if value is not None and np.isfinite(value) else None


def _numbers(values: Any) -> np.ndarray:
    """A JSON list as float64; null becomes NaN, nothing an empty array."""
    return np.array([np.nan if v is None else v for v in values or ()], np.float64)


def _has(curve: Mapping[str, Any] | None) -> bool:
    return any(np.isfinite(_numbers((curve or {}).get(key))).any() for key in COLORS)


def _lines(axis: Axes, curve: Mapping[str, Any] | None, style: str = "-") -> bool:
    """Draws original and synthetic with their bands; says so in the panel if there is nothing."""
    if not _has(curve):
        _not_measured(axis)
        return False
    steps = _numbers(curve["step"])
    for key, color in LINE_COLORS.items():
        values = _numbers(curve.get(key))
        if not np.isfinite(values).any():
            continue
        low, high = (_numbers(curve.get(f"{key}_{end}")) for end in ("low", "high"))
        if low.size and high.size:
            axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        marker = "o" if np.isfinite(values).sum() == 1 else None  # one point draws no line
        axis.plot(steps, values, color=color, linewidth=1.6, linestyle=style, marker=marker)
    drawing.tidy(axis)
    return True


def _scale(axis: Axes) -> None:
    """A logarithmic axis where linear would show the largest values only, else one from 0."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axis.lines])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size and drawn.min() > 0 and drawn.max() / drawn.min() > LOG_SPAN:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)


def _not_measured(axis: Axes) -> None:
    axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center",
              fontsize=10, color=MUTED, style="italic")  # fmt: skip
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#e4e7eb")
