"""Figures of datasets: original beside synthetic transitions, returns of episodes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tgcvg_jax.plotting import drawing
from tgcvg_jax.plotting.drawing import (
    CURVE_COLORS,
    ORIGINAL_COLOR,
    STYLE,
    SYNTHETIC_COLOR,
    Curve,
)
from tgcvg_jax.types import Task, Transition

MAX_STATES, MAX_ACTIONS, MAX_CURVES = 17, 12, 24
COLUMNS = 7

# The planar robots' joints in the order of their state; it says what a dimension is, and its unit.
JOINTS = {
    "Hopper": ("thigh", "leg", "foot"),
    "Walker2d": ("thigh", "leg", "foot", "left thigh", "left leg", "left foot"),
    "HalfCheetah": (
        "back thigh",
        "back shin",
        "back foot",
        "front thigh",
        "front shin",
        "front foot",
    ),
}


def summary(
    path: str | os.PathLike,
    task: Task,
    original: Transition,
    synthetic: Transition,
    curves: Mapping[str, Mapping[str, Curve]] | None = None,
    synthetic_size: int | None = None,
) -> None:
    """Draws what a synthesizer made beside what it was made from.

    Rewards, sizes of the state's one-step changes, the two leading principal components of the
    states, every state and action dimension, and the training curves. Histograms share their bins
    and cover the original's 0.1 % to 99.9 % quantiles and a margin; a panel says how much of the
    synthetic data lies outside.

    Args:
      path: the PNG. Written whole or not at all.
      task: names the figure, and the dimensions where they are known.
      original: numpy fields [M, ...].
      synthetic: the same, of any size.
      synthetic_size: transitions in all, where `synthetic` is a part of them.
      curves: model name -> metric name -> (steps [T], values [T] or [T, N seeds]).
    """
    old, new = drawing.subsample(original), drawing.subsample(synthetic)
    panels = [(m, k, c) for m, metrics in (curves or {}).items() for k, c in metrics.items()]
    states = min(old.observation.shape[1], MAX_STATES)
    actions = min(old.action.shape[1], MAX_ACTIONS)
    rows = [-(-n // COLUMNS) for n in (states + actions, min(len(panels), MAX_CURVES))]
    heights = [0.55, 2.7, *(0.25 + 1.4 * r for r in rows if r)]  # inches

    figure = Figure(figsize=(14, sum(heights)), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.04)  # inches
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights))
    _header(parts[0], task, len(original.reward), synthetic_size or len(synthetic.reward))
    _overview(parts[1], old, new)

    axes = _grid(parts[2], states + actions, rows[0], "States and actions, density of each")
    columns = [*old.observation.T[:states], *old.action.T[:actions]]
    others = [*new.observation.T[:states], *new.action.T[:actions]]
    labels = _state_labels(task)[:states] + _action_labels(task)[:actions]
    for axis, *column, label in zip(axes, columns, others, labels, strict=True):
        drawing.histogram(axis, *column, label)
        axis.set_yticks([])
        axis.spines.left.set_visible(False)
    if panels:
        axes = _grid(parts[3], min(len(panels), MAX_CURVES), rows[1], "Training")
        for axis, (model, metric, curve) in zip(axes, panels, strict=False):
            color = CURVE_COLORS[list(curves).index(model) % len(CURVE_COLORS)]
            drawing.curve(axis, curve, color)
            axis.set_title(f"{model}: {metric.replace('_', ' ')}", **STYLE)
            axis.set_xlabel("gradient steps", **STYLE)
    drawing.save(figure, path)


def return_histogram(path: str | os.PathLike, task: Task, returns: np.ndarray) -> None:
    """Draws how the returns of a dataset's episodes are spread.

    With reference scores a second axis shows the normalised score, and the returns that score 0
    and 100 are marked, or named if they lie outside the picture.

    Args:
      path: the PNG. Written whole or not at all.
      task: names the figure; has the reference scores.
      returns: [E], E >= 1.
    """
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axis = figure.subplots()
    values = np.asarray(returns, np.float64)
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low) or max(0.5, 0.1 * abs(high))  # a constant needs some width
    counts, edges = np.histogram(values, 61, (low - margin, high + margin))
    axis.stairs(counts, edges, fill=True, color=CURVE_COLORS[0], alpha=0.75)
    axis.set(xlim=(edges[0], edges[-1]), xlabel="return of the episode", ylabel="episodes")
    drawing.tidy(axis)
    axis.tick_params(labelsize=9)
    figure.suptitle(f"{task.name}: returns of {len(values):,} episodes", fontsize=11)
    if task.min_score is not None and task.max_score is not None:
        _references(axis, task.min_score, task.max_score)
    drawing.save(figure, path)


def _references(axis: Axes, minimum: float, maximum: float) -> None:
    """Marks the returns that score 0 and 100, and adds an axis of scores."""
    outside = []
    for score, value in ((0, minimum), (100, maximum)):
        if axis.get_xlim()[0] <= value <= axis.get_xlim()[1]:
            style = {"color": CURVE_COLORS[1], "linestyle": "--" if score else ":"}
            axis.axvline(value, label=f"score {score}: return {value:.6g}", **style)
        else:
            outside.append(f"score {score}: return {value:.6g}, outside")
    handles = [*axis.lines, *(Line2D([], [], linestyle="none", label=note) for note in outside)]
    axis.legend(handles=handles, frameon=False, fontsize=8)
    span = maximum - minimum
    if span:
        scores = axis.secondary_xaxis(
            "top", functions=(lambda x: 100 * (x - minimum) / span,
                              lambda x: minimum + x * span / 100),
        )  # fmt: skip
        scores.set_xlabel("normalised score")
        scores.tick_params(labelsize=9)


def _header(part, task: Task, original_size: int, synthetic_size: int) -> None:
    part.suptitle(f"{task.name}: original and synthetic transitions", fontsize=13, weight="bold")
    labels = f"original ({original_size:,})", f"synthetic ({synthetic_size:,})"
    handles = [
        Patch(color=ORIGINAL_COLOR, alpha=0.7, label=labels[0]),
        Line2D([], [], color=SYNTHETIC_COLOR, linewidth=2, label=labels[1]),
    ]
    part.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=10)


def _overview(part, old: Transition, new: Transition) -> None:
    reward, change, projection = part.subplots(1, 3)
    drawing.histogram(reward, old.reward, new.reward, "reward", "Reward per step", bins=80)
    reward.set_ylabel("density", **STYLE)

    delta = old.next_observation - old.observation
    unit = np.std(delta, axis=0) + 1e-6
    norms = [
        np.sqrt(np.mean(np.square((x.next_observation - x.observation) / unit), axis=1))
        for x in (old, new)
    ]
    xlabel = "root mean square over dimensions, in the original's std"
    drawing.histogram(change, *norms, xlabel, "Change of the state per step", bins=80)
    change.set_ylabel("density", **STYLE)

    mean, std = old.observation.mean(axis=0), old.observation.std(axis=0) + 1e-6
    scaled = (old.observation - mean) / std
    variance, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    axes = vectors[:, :-3:-1]  # eigh sorts upwards: the last two, largest first
    share = 100 * variance[::-1][:2] / variance.sum()
    points, others = scaled @ axes, ((new.observation - mean) / std) @ axes
    ranges = [drawing.value_range(points[:, i]) for i in range(axes.shape[1])]
    projection.hist2d(
        *points.T, bins=70, range=ranges, norm="log", cmap="Greys", rasterized=True, zorder=0
    )
    some = others[:: max(1, len(others) // 2000)]
    projection.scatter(*some.T, s=3, color=SYNTHETIC_COLOR, alpha=0.45, linewidths=0, zorder=1)
    projection.set(xlim=ranges[0], ylim=ranges[1])
    projection.set_title("States, principal components (grey: original)", **STYLE)
    projection.set_xlabel(f"first ({share[0]:.0f} % of variance)", **STYLE)
    projection.set_ylabel(f"second ({share[1]:.0f} %)", **STYLE)
    drawing.tidy(projection)


def _grid(part, count: int, rows: int, title: str) -> list[Axes]:
    part.suptitle(title, fontsize=10, weight="bold", x=0.008, ha="left")
    axes = part.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return list(axes[:count])


def _state_labels(task: Task) -> list[str]:
    joints = JOINTS.get(task.environment.split("-")[0])
    if joints is None:
        return [f"state {i}" for i in range(task.observation_dim)]
    positions = ["height (m)", "pitch (rad)", *(f"{j} (rad)" for j in joints)]
    velocities = ["x velocity (m/s)", "z velocity (m/s)", "pitch rate (rad/s)"]
    return positions + velocities + [f"{j} rate (rad/s)" for j in joints]


def _action_labels(task: Task) -> list[str]:
    joints = JOINTS.get(task.environment.split("-")[0])
    if joints is None:
        return [f"action {i}" for i in range(task.action_dim)]
    return [f"{j} torque (of its limit)" for j in joints]
