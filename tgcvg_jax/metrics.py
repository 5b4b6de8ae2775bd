"""What the numbers in a quality.json are: one table for the app, the figure and the report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Metric(NamedTuple):
    """One number of the original and of the synthetic data.

    Attributes:
      label: what tables call it; indented where it belongs to the one before.
      about: one line: what it is, and its unit.
      is_share: between 0 and 1, shown in per cent.
      in_figure: a line of the figure's table.
    """

    label: str
    about: str
    is_share: bool = False
    in_figure: bool = False


METRICS = {
    "transitions": Metric("transitions", "number of rows"),
    "segments": Metric(
        "segments", "unbroken pieces: the original's episodes, the synthetic trajectories"
    ),
    "mean_length": Metric("mean length", "rows in a segment"),
    "reward": Metric("reward", "mean reward in the data, per step"),
    "reward_known": Metric(
        "reward, truth known",
        "mean reward in the data on rows whose truth is known, per step",
        in_figure=True,
    ),
    "oracle_reward": Metric(
        "oracle reward",
        "mean reward of the simulator for the states and actions of rows whose truth is known, per "
        "step",
        in_figure=True,
    ),
    "reward_mse": Metric(
        "reward MSE", "squared difference of these two rewards, mean", in_figure=True
    ),
    "dynamics_mse": Metric(
        "dynamics MSE (std)",
        "squared error of the next state against the simulator's, in variances of the data, mean "
        "over rows and entries; the original's is the floor of the measurement",
        in_figure=True,
    ),
    "dynamics_mse_median": Metric("  its median", "the same, median over rows", in_figure=True),
    "masked": Metric(
        "truth unknown",
        "share of rows whose true next state can't be known, left out of the above; more of them "
        "than in the original: the model explodes",
        is_share=True,
        in_figure=True,
    ),
    "novelty": Metric(
        "novelty (std)",
        "distance of a row's state and action to the nearest of the original data, in standard "
        "deviations; the original's: of some of its episodes to the others",
        in_figure=True,
    ),
    "novelty_state": Metric("  of states", "the same, of states alone"),
    "novelty_action": Metric("  of actions", "the same, of actions alone"),
    "terminals_per_1000": Metric(
        "terminals per 1,000", "rows marked as terminal, per 1,000", in_figure=True
    ),
    "false_terminals_per_1000": Metric(
        "  on a healthy state", "marked as terminal on a healthy next state, per 1,000 rows",
        in_figure=True,
    ),
    "missed_terminals_per_1000": Metric(
        "falls not marked",
        "falls, from a healthy state to a fallen one, that are not marked as terminal, per 1,000 "
        "rows",
        in_figure=True,
    ),
    "after_fall_share": Metric(
        "steps after a fall", "share of rows that start in a fallen state", is_share=True,
        in_figure=True,
    ),
    "claimed_return": Metric("return of segments", "mean sum of a segment's own rewards"),
    "oracle_return": Metric(
        "  actions replayed",
        "mean return of the same actions replayed in the simulator from the segment's first state, "
        "until it really terminates",
    ),
    "oracle_survival": Metric(
        "replays survive",
        "share of replays that never terminate; the original's windows lie inside episodes and so "
        "hardly hold a fall: no yardstick (that of the generator's is one)",
        is_share=True,
        in_figure=True,
    ),
    "generator_starts": Metric(
        "generator's starts",
        "random rows of the original data from which the generator runs, whose outcome over the "
        "longest segment's length H is recorded",
    ),
    "generator_return": Metric(
        "  return",
        "mean return over H steps or to a terminal: of the recorded steps from these rows, and of "
        "the generator in the simulator from the same",
    ),
    "generator_survival": Metric(
        "generator survives",
        "share of these without a terminal within H steps, recorded and of the generator",
        is_share=True,
        in_figure=True,
    ),
}  # fmt: skip
NOVELTY = re.compile(r"novelty(_state|_action|_sarS)?(?:_(raw|std)_(l2|sq)_(full|subset))?")

MASKED = 0.05  # so many more rows without known truth than in the original are worth a warning


def label(name: str) -> str:
    """What tables call a metric: its own name if it is none of the table's."""
    return METRICS[name].label if name in METRICS else name


def describe(name: str) -> str:
    """One line: what it is, and its unit; nothing if it is not known."""
    if name in METRICS:
        return METRICS[name].about
    if (match := NOVELTY.fullmatch(name)) is None:
        return ""
    part, scale, norm, reference = match.groups()
    what = {None: "states and actions", "_state": "states", "_action": "actions",
            "_sarS": "whole transitions"}[part]  # fmt: skip
    text = f"distance of {what} to the nearest of the original data"
    if scale:
        text += ", raw" if scale == "raw" else ", in standard deviations"
        text += ", squared" if norm == "sq" else ", Euclidean"
        text += "" if reference == "full" else ", to a subset of it"
    return text


def order(name: str) -> tuple[int, str]:
    """A key to sort by: that of the table, variants of novelty after it, unknown ones last."""
    names = list(METRICS)
    if name in METRICS:
        return names.index(name), ""
    if NOVELTY.fullmatch(name):
        return names.index("novelty_action"), name
    return len(names), name


def show(name: str, value: float | None, missing: str, digits: int = 4) -> str:
    """A value as text."""
    if value is None:
        return missing
    if name in METRICS and METRICS[name].is_share:
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def warnings(found: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """What to beware of when reading a quality.json's `metrics`, a line each."""
    masked = found.get("masked", {})
    old, new = masked.get("original"), masked.get("synthetic")
    if old is None or new is None or new <= old + MASKED:
        return []
    return [
        f"warning: the truth is unknown of {new:.0%} of the synthetic rows, of the original's of "
        f"{old:.0%}: a model that explodes hides its errors there"
    ]
