"""A report's table of what synthetic data is like, beside the data it was made from."""

from __future__ import annotations

import re

from tgcvg_jax import config as config_lib
from tgcvg_jax.report.document import MISSING, Cell, Notes, Table
from tgcvg_jax.report.records import Quality
from tgcvg_jax.report.results import Results

# Name in quality.json -> what it is and its unit.
METRICS = {
    "transitions": "number of rows",
    "segments": "unbroken pieces: the original's episodes, the synthetic trajectories",
    "mean_length": "rows in a segment",
    "reward": "mean reward in the data, per step",
    "oracle_reward": "mean reward of the simulator for the same states and actions, per step",
    "reward_mse": "squared difference of the two rewards, mean",
    "dynamics_mse": "squared error of the next state against the simulator's, in variances of the "
    "data, mean over rows and entries; the original's is the floor of the measurement",
    "dynamics_mse_median": "the same, median over rows",
    "masked": "share of rows whose true next state can't be known, left out of the above",
    "novelty": "distance of a row's state and action to the nearest of the original data, in "
    "standard deviations; the original's: of some of its episodes to the others",
    "novelty_state": "the same, of states alone",
    "novelty_action": "the same, of actions alone",
    "terminals_per_1000": "rows marked as terminal, per 1,000",
    "false_terminals_per_1000": "marked as terminal on a healthy next state, per 1,000 rows",
    "missed_terminals_per_1000": "not marked on a fallen next state, per 1,000 rows",
    "after_fall_share": "share of rows that start in a fallen state",
    "claimed_return": "mean sum of a segment's own rewards",
    "oracle_return": "mean return of the same actions replayed in the simulator from the segment's "
    "first state, until it really terminates",
    "oracle_survival": "share of replays that never terminate",
    "generator_return": "mean return of the generator's policy in the simulator, from the same "
    "first states and for as many steps",
    "generator_survival": "share of these that never terminate",
}
SHARES = ("masked", "after_fall_share", "oracle_survival", "generator_survival")
NOVELTY = re.compile(r"novelty(_state|_action|_sarS)?(?:_(raw|std)_(l2|sq)_(full|subset))?")


def quality_table(results: Results, env: str) -> Table | None:
    """One task's data in numbers: metrics x original and synthetic data."""
    found = {label: results.quality[env, label] for label in results.labels(env)
             if (env, label) in results.quality}  # fmt: skip
    if not found:
        return None
    notes, rows = Notes(), []
    known = {name for quality in found.values() for name in quality.metrics}
    base = next(iter(found))
    for name in sorted(known, key=_metric_order):
        original, marks = None, []
        for label, quality in found.items():
            value = quality.metrics.get(name, (None, None))[0]
            if original is None:
                original, measured = value, label
            elif value is not None and _value(name, value) != _value(name, original):
                text = f"as measured with {measured}; with {label}: {_value(name, value)}"
                marks.append(notes.add(text))
        cells = [Cell(_value(name, original), notes=tuple(marks))]
        cells += [Cell(_value(name, q.metrics.get(name, (None, None))[1])) for q in found.values()]
        rows.append((Cell(name.replace("_", " ")), *cells, Cell(describe_metric(name))))
    header = [Cell("metric"), Cell("original")]
    for label, quality in found.items():
        remark = _sample_remark(base, found[base], quality)
        header.append(Cell(label, notes=(notes.add(remark),) if remark else ()))
    caption = f"{results.names[env]}: quality of the data. {MISSING}: not measured, or unknown."
    header = (*header, Cell("what it is"))
    return Table(caption, header, tuple(rows), tuple(notes.texts), wide=(0, len(header) - 1))


def describe_metric(name: str) -> str:
    """One line: what it is, and its unit."""
    if name in METRICS:
        return METRICS[name]
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


def _metric_order(name: str) -> tuple[int, str]:
    order = list(METRICS)
    if name in METRICS:
        return order.index(name), name
    if NOVELTY.fullmatch(name):
        return order.index("novelty_action"), name
    return len(order), name


def _value(name: str, value: float | None) -> str:
    if value is None:
        return MISSING
    if name in SHARES:
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _sample_remark(base: str, first: Quality, other: Quality) -> str:
    """How the second was measured, where that is not how the first was."""
    common = {name: first.settings[name] for name in first.settings if name in other.settings}
    lines = config_lib.difference(common, {name: other.settings[name] for name in common})
    changes = ", ".join(line.replace(":", "", 1) for line in lines)
    return f"measured otherwise than {base}: {changes}" if changes else ""
