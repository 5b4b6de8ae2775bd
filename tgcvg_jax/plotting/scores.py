"""Figures of scores: against steps, as bars with intervals, and measures against each other."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tgcvg_jax.plotting import drawing
from tgcvg_jax.plotting.drawing import CURVE_COLORS, ORIGINAL_COLOR, Curve

Cell = tuple[float, float, float] | None  # mean, low, high; None where nothing was measured

MAX_BARS = 36  # beside each other, gaps between groups counted


def learning_curve(
    path: str | os.PathLike,
    curves: Mapping[str, Curve],
    title: str,
    ylabel: str,
    xlabel: str = "gradient steps",
) -> None:
    """Draws scores against steps, one line for each method.

    Args:
      path: the PNG. Written whole or not at all.
      curves: method name -> (steps [T], values [T] or [T, N seeds]), NaN where a seed has no value.
        With several seeds the line is their mean and the band the 95 % bootstrap interval of the
        mean, which is too narrow for a handful of seeds (see `ops.scores.bootstrap_interval`).
      title: of the figure.
      ylabel: what the values are, with the unit.
      xlabel: what the steps are.
    """
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axis = figure.subplots()
    seeds = [np.shape(values)[1] if np.ndim(values) == 2 else 1 for _, values in curves.values()]
    colors = drawing.colors_of(curves)
    for i, (name, curve) in enumerate(curves.items()):
        same = len(set(seeds)) == 1
        label = name if same else f"{name} ({seeds[i]} seed{'s' * (seeds[i] > 1)})"
        style = drawing.LINE_STYLES[i // len(CURVE_COLORS) % len(drawing.LINE_STYLES)]
        drawing.curve(axis, curve, colors[name], label, 1.8, style, interval=True)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.tick_params(labelsize=9)
    if len(curves) > 1:
        axis.legend(frameon=False, fontsize=9)
    if max(seeds, default=1) > 1:
        whole = all(np.isfinite(np.asarray(v, np.float64)).all() for _, v in curves.values())
        same = whole and len(set(seeds)) == 1
        count = f"of {seeds[0]} seeds" if same else "of the seeds with a value"
        note = f"line: mean {count}; band: 95 % bootstrap interval of it"
        axis.set_xlabel(f"{xlabel}\n", linespacing=0.9)
        figure.text(0.99, 0.01, note, ha="right", va="bottom", fontsize=7, color="#52606d")
    drawing.save(figure, path)


def score_bars(
    path: str | os.PathLike,
    table: Mapping[str, Mapping[str, Cell]],
    title: str,
    ylabel: str,
    note: str = "bar: mean over seeds; line: 95 % bootstrap interval of it; — : no result",
) -> None:
    """Draws a table of scores as groups of bars with their intervals.

    Args:
      path: the PNG. Written whole or not at all.
      table: row label -> column label -> (mean, low, high), or None. A row is a group of bars and a
        column a colour. A cell that is None, NaN or not there is drawn as a dash in its bar's
        place, never as zero.
      title: of the figure.
      ylabel: what the values are, with the unit.
      note: what bars and lines are.
    """
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    colors = drawing.colors_of(columns)
    a_line = max(1, MAX_BARS // (len(columns) + 1))  # groups
    lines = -(-max(1, len(table)) // a_line)
    a_line = -(-max(1, len(table)) // lines)  # lines of about equal length
    slots = a_line * (len(columns) + 1)
    figure = Figure(
        figsize=(float(np.clip(0.42 * slots + 1, 5, 14)), 0.7 + 2.9 * lines), dpi=120,
        layout="constrained",
    )  # fmt: skip
    axes = figure.subplots(lines, 1, squeeze=False, sharey=True)[:, 0]
    groups = list(table.items())
    for i, axis in enumerate(axes):
        _bars(axis, groups[i * a_line : (i + 1) * a_line], columns, colors, a_line)
        axis.set_ylabel(ylabel, fontsize=9)
    figure.suptitle(title, fontsize=11)
    handles = [Patch(color=colors[column], label=column) for column in columns]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=8,
                  ncols=max(1, min(len(columns), 6)), title=note, title_fontsize=7)  # fmt: skip
    drawing.save(figure, path)


def _bars(
    axis: Axes,
    groups: Sequence[tuple[str, Mapping[str, Cell]]],
    columns: Sequence[str],
    colors: Mapping[str, str],
    a_line: int,
) -> None:
    width = 0.86 / max(1, len(columns))
    for x, (_, row) in enumerate(groups):
        for j, column in enumerate(columns):
            at = x + (j - (len(columns) - 1) / 2) * width
            cell = row.get(column)
            if cell is None or not math.isfinite(cell[0]):
                axis.annotate("—", (at, 0), (0, 1), textcoords="offset points", ha="center",
                              va="bottom", color=colors[column], weight="bold")  # fmt: skip
                continue
            mean, low, high = cell
            axis.bar(at, mean, 0.9 * width, color=colors[column], alpha=0.85)
            if high > low:
                axis.vlines(at, low, high, color="#1f2933", linewidth=1.1)
            top = max(mean, high) if mean >= 0 else min(mean, low)
            axis.annotate(f"{mean:.4g}" if abs(mean) < 1 else f"{mean:.1f}", (at, top),
                          (0, 1.5 if mean >= 0 else -1.5), textcoords="offset points", ha="center",
                          va="bottom" if mean >= 0 else "top", fontsize=6.5)  # fmt: skip
    drawing.tidy(axis)
    axis.axhline(0, color="#52606d", linewidth=0.8)
    axis.margins(y=0.08)
    axis.set_xlim(-0.6, a_line - 0.4)
    axis.set_xticks(range(len(groups)), [label.replace(" / ", "\n") for label, _ in groups])
    axis.tick_params(axis="x", labelsize=8, length=0)


def trade_off(
    path: str | os.PathLike,
    points: Mapping[str, tuple[float, float] | None],
    xlabel: str,
    ylabel: str,
    title: str,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Draws methods as labelled points of a plane, for example dynamics error and reward.

    Args:
      path: the PNG. Written whole or not at all.
      points: label -> (x, y). One called `original` or `none`, the data itself, is a grey star with
        lines through it. A point that is None or not finite is named below the figure as not
        measured; so is one that a logarithmic axis can't show.
      xlabel: with the unit.
      ylabel: with the unit.
      title: of the figure.
      log_x: a logarithmic axis.
      log_y: the same.
    """

    def is_drawn(point: tuple[float, float] | None) -> bool:
        if point is None or not all(v is not None and math.isfinite(v) for v in point):
            return False
        return all(v > 0 or not log for v, log in zip(point, (log_x, log_y)))

    figure = Figure(figsize=(6.5, 4.5), dpi=120, layout="constrained")
    axis = figure.subplots()
    drawn = {label: point for label, point in points.items() if is_drawn(point)}
    colors = drawing.colors_of(points)
    drawing.tidy(axis)
    if log_x:
        axis.set_xscale("log")
    if log_y:
        axis.set_yscale("log")
    for label, (x, y) in drawn.items():
        if colors[label] == ORIGINAL_COLOR:
            axis.axvline(x, color=ORIGINAL_COLOR, linewidth=0.8, linestyle=":", zorder=0)
            axis.axhline(y, color=ORIGINAL_COLOR, linewidth=0.8, linestyle=":", zorder=0)
            axis.scatter(x, y, s=130, marker="*", color="#52606d", zorder=3)
        else:
            axis.scatter(x, y, s=42, color=colors[label], zorder=3)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.tick_params(labelsize=9)
    axis.margins(0.12)
    if missing := [label for label in points if label not in drawn]:
        axis.set_xlabel(f"{xlabel}\nnot measured: {', '.join(missing)}", wrap=True)
    if drawn:
        drawing.place_labels(axis, list(drawn.values()), list(drawn))
    drawing.save(figure, path)
