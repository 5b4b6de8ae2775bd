"""What the figures share: colours, axes, histograms, curves, writing a PNG whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from tgcvg_jax.files import atomic_path
from tgcvg_jax.ops.scores import bootstrap_interval
from tgcvg_jax.types import Transition

Curve = tuple[np.ndarray, np.ndarray]  # steps [T], values [T] or [T, N]

ORIGINAL_COLOR, SYNTHETIC_COLOR = "#9aa5b1", "#c2410c"
CURVE_COLORS = ("#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be185d")
LINE_STYLES = ("-", "--", ":")  # once the colours are used up
STYLE = dict(fontsize=8)
NICE = (1, 2, 2.5, 5, 10)  # tick distances, times a power of ten
MAX_ROWS = 50_000  # of each dataset; more do not change the picture
RESAMPLES = 1000  # of the bootstrap at each point of a curve: a band needs no third digit


def histogram(
    axis: Axes, old: np.ndarray, new: np.ndarray, xlabel: str, title: str = "", bins: int = 50
) -> None:
    """The densities of two samples on the same bins, which cover the first one's `value_range`.

    A note says how much of `new` lies outside; the areas are shares of all values, so that what is
    missing from the picture is missing from the area too.
    """
    low, high = value_range(old)
    edges = np.linspace(low, high, bins + 1)
    inside = (new >= low) & (new <= high)
    heights = []
    for values in (old, new):
        counts, _ = np.histogram(values, edges)
        heights.append(counts / max(len(values), 1) / (edges[1] - edges[0]))
    axis.stairs(heights[0], edges, fill=True, color=ORIGINAL_COLOR, alpha=0.7)
    axis.stairs(heights[1], edges, color=SYNTHETIC_COLOR, linewidth=1.2)
    outside = 100 * (1 - inside.mean()) if len(new) else 0.0
    if outside >= 0.5:
        note = f"{outside:.1f} % outside"
        axis.set_title(note, loc="right", fontsize=7, color=SYNTHETIC_COLOR, pad=2)
    axis.set_xlim(low, high)
    axis.set_ylim(bottom=0)
    axis.set_title(title, **STYLE)
    axis.set_xlabel(xlabel, **STYLE)
    tidy(axis)


def curve(
    axis: Axes,
    values: Curve,
    color: str,
    label: str | None = None,
    linewidth: float = 1.2,
    style: str = "-",
    interval: bool = False,
) -> None:
    """One line against steps; of several seeds their mean, with a band.

    Args:
      axis: where.
      values: steps [T], values [T] or [T, N seeds]. NaN where a seed has no value.
      color: of line and band.
      label: in a legend.
      linewidth: in points.
      style: matplotlib's line style.
      interval: the band is the 95 % bootstrap interval of the mean; else one standard deviation to
        either side.
    """
    steps, found = (np.asarray(x, np.float64) for x in values)
    if found.ndim == 2:
        steps, found = steps[(~np.isnan(found)).any(1)], found[(~np.isnan(found)).any(1)]
        if found.shape[1] > 1:
            band = _interval(found) if interval else _deviation(found)
            axis.fill_between(steps, *band, color=color, alpha=0.2, linewidth=0)
        found = np.nanmean(found, axis=1)
    # A single point draws no line.
    marker = "o" if len(steps) == 1 else None
    axis.plot(
        steps, found, color=color, linewidth=linewidth, linestyle=style, marker=marker, label=label
    )
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    tidy(axis)


def _deviation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = np.nanmean(values, axis=1), np.nanstd(values, axis=1)
    return mean - std, mean + std


def _interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ends = [bootstrap_interval(row[~np.isnan(row)], num_resamples=RESAMPLES) for row in values]
    return tuple(np.transpose(ends))


def colors_of(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label; what has no augmentation is grey, like the original data."""
    named = {label: ORIGINAL_COLOR for label in labels if label.lower() in ("none", "original")}
    others = [label for label in labels if label not in named]
    return named | {label: CURVE_COLORS[i % len(CURVE_COLORS)] for i, label in enumerate(others)}


def tidy(axis: Axes) -> None:
    """No box, small ticks at round numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7, length=2)
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=NICE))
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))


def value_range(values: np.ndarray) -> tuple[float, float]:
    """The 0.1 % to 99.9 % quantiles and 10 % of their distance more on either side."""
    low, high = np.quantile(values, [0.001, 0.999])
    margin = 0.1 * (high - low) or max(0.5, 0.1 * abs(high))  # a constant needs some width
    return float(low - margin), float(high + margin)


def subsample(data: Transition, size: int = MAX_ROWS, seed: int = 0) -> Transition:
    """At most `size` rows, the same ones every time, in float64. `discount` is not drawn."""
    rows = np.arange(len(data.reward))
    if len(rows) > size:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), size, replace=False))
    fields = {
        name: np.asarray(np.asarray(getattr(data, name))[rows], np.float64)
        for name in ("observation", "action", "reward", "next_observation")
    }
    return Transition(discount=np.empty(0), **fields)


def place_labels(
    axis: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str], fontsize: float = 8
) -> None:
    """Writes a label beside each point of an axis where it covers least.

    Each label tries places round its point, near ones first, and takes the one that overlaps the
    points, the labels before it and the edge of the axis least; far ones get a line. Call it last:
    it needs the final limits and sizes.
    """
    figure = axis.figure
    figure.draw_without_rendering()  # the layout, without which sizes are not known
    renderer = FigureCanvasAgg(figure).get_renderer()
    dots = axis.transData.transform(np.asarray(points, np.float64))  # [N, 2] pixels
    frame = np.array(axis.get_window_extent(renderer).extents)
    scale = figure.dpi / 72
    taken = [np.concatenate([d - 5 * scale, d + 5 * scale]) for d in dots]
    for dot, label in zip(dots, labels, strict=True):
        text = axis.annotate(label, (0, 0), fontsize=fontsize, annotation_clip=False)
        size = np.array(text.get_window_extent(renderer).size)
        text.remove()
        best = None
        for distance in (8, 16, 28, 44, 64):
            for angle in np.deg2rad([0, 180, 90, 270, 30, 150, 330, 210]):
                way = np.array([np.cos(angle), np.sin(angle)])
                middle = dot + way * (distance * scale + size / 2 * np.abs(np.round(way)))
                box = np.concatenate([middle - size / 2, middle + size / 2])
                cost = sum(_overlap(box, other) for other in taken)
                cost += size.prod() - _overlap(box, frame) + distance
                if best is None or cost < best[0]:
                    best = cost, distance, middle, box
        _, distance, middle, box = best
        taken.append(box)
        line = dict(arrowstyle="-", color="#52606d", linewidth=0.6) if distance > 16 else None
        axis.annotate(
            label, dot, middle, xycoords="figure pixels", textcoords="figure pixels",
            ha="center", va="center", fontsize=fontsize, arrowprops=line, annotation_clip=False,
        )  # fmt: skip


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area of the intersection of two boxes (left, bottom, right, top)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(sides, 0)))


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
