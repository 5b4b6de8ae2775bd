"""A report's tables of scores and their differences. What is not known is not filled in."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tgcvg_jax import config as config_lib
from tgcvg_jax.ops import scores
from tgcvg_jax.report.document import MISSING, Cell, Notes, Table, count
from tgcvg_jax.report.records import Scores, extra_settings
from tgcvg_jax.report.results import Results, Run

SIGNIFICANT = 0.05


def score_table(results: Results, learner: str) -> Table:
    """One learner: tasks x kinds of data, as in the papers' tables.

    The best of a row is marked, with all that print the same. The average is over the tasks that
    have a score in every column.
    """
    labels, notes = results.labels(learner=learner), Notes()
    rows, means = [], {}  # means: env -> [means of all labels], of tasks without a gap
    marked = set()  # labels with a note somewhere in the average
    envs = [env for env in results.envs if results.labels(env, learner)]
    for env in envs:
        runs = {label: results.runs.get((env, label, learner)) for label in labels}
        unit = unit_of(runs.values())
        reference = _reference(list(runs.values()))
        cells = {}
        for label, run in runs.items():
            texts = [] if run is None else _remarks(results, run, reference)
            if run is not None and run.is_finished and run.scores.unit != unit:
                texts.append(f"a {run.scores.unit}, not a {unit}")
            cells[label] = _run_cell(run, tuple(sorted(notes.add(text) for text in texts)))
        done = {label: run.scores.values.mean() for label, run in runs.items()
                if run is not None and run.is_finished and run.scores.unit == unit}  # fmt: skip
        if len(done) == len(labels) and unit == "score":
            means[env] = list(done.values())
            marked |= {label for label in labels if cells[label].notes}
        values = [cells[label] for label in labels]
        values = _mark_best(values, [done.get(label) for label in labels])
        name = results.names[env] + (" (returns)" if unit == "return" else "")
        rows.append((Cell(name, _scale(reference)), *values))
    about = ""
    if len(means) > 1:
        which = ()
        if len(means) < len(envs):
            tasks = ", ".join(results.names[env] for env in means)
            which = (notes.add(f"only of tasks with a score in every column: {tasks}"),)
        average = np.mean(list(means.values()), axis=0)
        inner = notes.add("holds marked cells") if marked else 0
        cells = [
            Cell(f"{v:.1f}", notes=(inner,) if label in marked else ())
            for label, v in zip(labels, average)
        ]
        name = Cell(f"average of {len(means)} tasks", notes=which)
        rows.append((name, *_mark_best(cells, list(average))))
    elif len(envs) > 1:
        about = "; no average, for fewer than two tasks have a score in every column"
    caption = (
        f"{learner}: normalised score, mean ± standard deviation over seeds and 95 % interval, by "
        f"the data that it was trained on{about}"
    )
    header = (Cell("task"), *map(Cell, labels))
    return Table(caption, header, tuple(rows), tuple(notes.texts))


def generator_table(results: Results) -> Table | None:
    """Scores of the policies that generate: what a learner has to beat."""
    columns = sorted(
        {(label, mode) for (_, label), modes in results.generators.items() for mode in modes},
        key=lambda c: (results.labels().index(c[0]), c[1] != "sampled", c[1]),
    )
    if not columns:
        return None
    rows = []
    for env in results.envs:
        found = [results.generators.get((env, label), {}).get(mode) for label, mode in columns]
        if any(found):
            unit = " (returns)" if any(s and s.unit == "return" for s in found) else ""
            cells = [
                Cell(MISSING) if s is None else _score_cell(s, f"{s.episodes:,} episodes")
                for s in found
            ]
            rows.append((Cell(results.names[env] + unit), *cells))
    caption = (
        "Normalised score of the policy that generates, alone in the environment: with actions "
        f"sampled, as it generates, and with mean actions. {MISSING}: not evaluated."
    )
    header = (Cell("task"), *(Cell(f"{label} {mode}".strip()) for label, mode in columns))
    return Table(caption, header, tuple(rows))


def comparison_table(results: Results, learner: str) -> Table | None:
    """Welch's test of every two kinds of data in the same task; None without two of them."""
    found, notes = [], Notes()
    for env in results.envs:
        runs = [results.runs[env, label, learner] for label in results.labels(env, learner)]
        done = [run for run in runs if run.is_finished and run.scores.unit == unit_of(runs)]
        for first, second in itertools.combinations(done, 2):
            remarks = _remarks(results, second, (first.label, _settings(first)))
            if _settings(first) is None:
                remarks += _remarks(results, first, None)
            marks = tuple(sorted({notes.add(text) for text in remarks}))
            found.append((env, first, second, marks))
    if not found:
        return None
    tests = [
        scores.welch(first.scores.values, second.scores.values) for _, first, second, _ in found
    ]
    adjusted = iter(scores.holm([test.p for test in tests if test is not None]))
    rows = []
    for (env, first, second, marks), test in zip(found, tests):
        difference = second.scores.values.mean() - first.scores.values.mean()
        values = [Cell(f"{difference:+.1f}"), *[Cell(MISSING)] * 3]
        if test is not None:
            p = next(adjusted)
            values = [
                Cell(f"{test.difference:+.1f}", strong=p < SIGNIFICANT),
                Cell(f"[{test.low:+.1f}, {test.high:+.1f}]"),
                Cell(_p_value(test.p)),
                Cell(_p_value(p), strong=p < SIGNIFICANT),
            ]
        sizes = Cell(f"{len(second.scores.values)}, {len(first.scores.values)}")
        pair = Cell(f"{second.label} minus {first.label}", notes=marks)
        rows.append((Cell(results.names[env]), pair, *values, sizes))
    header = ("task", "what", "difference", "95 % interval", "p", "p (Holm)", "seeds")
    caption = (
        f"{learner}: difference of mean scores with Welch's interval; p by Welch's test, and by "
        f"Holm for the {count(sum(test is not None for test in tests), 'test')} of this table"
    )
    return Table(caption, tuple(map(Cell, header)), tuple(rows), tuple(notes.texts), wide=(0, 1))


def _settings(run: Run) -> dict[str, Any] | None:
    if run.config is None or not isinstance(run.config.get("config"), dict):
        return None
    episodes = None if run.scores is None else run.scores.episodes
    return {**extra_settings(run.config), "episodes": episodes, **run.config["config"]}


def _reference(runs: Sequence[Run | None]) -> tuple[str, dict[str, Any]] | None:
    """Label and settings of the first of those that most runs share."""
    known = [(run.label, s) for run in runs if run is not None and (s := _settings(run))]
    if not known:
        return None
    known = [k for k in known if k[1]["episodes"] is not None] or known  # finished ones
    texts = [json.dumps(s, sort_keys=True) for _, s in known]
    return known[texts.index(Counter(texts).most_common(1)[0][0])]


def _remarks(results: Results, run: Run, reference: tuple[str, dict[str, Any]] | None) -> list[str]:
    """What a reader must know before comparing this run with those beside it."""
    texts, settings = [], _settings(run)
    if settings is None:
        texts.append("settings unknown: no config.json that can be read")
    elif reference is not None and reference[1] is not None:
        label, expected = reference
        if run.scores is None:  # nothing to compare yet
            expected = expected | {"episodes": None}
        if "none" in (label, run.label):  # which has no synthetic data to be of another amount
            expected, settings = ({**s, "num_synthetic": None} for s in (expected, settings))
        if lines := config_lib.difference(expected, settings):
            changes = "; ".join(line.replace(":", "", 1) for line in lines)
            texts.append(f"settings differ from those with {label}: {changes}")
    if run.foreign_data:
        texts.append(f"synthetic data from {run.foreign_data}")
    maker = results.synthesizers.get((run.env, run.label), {}).get("data")
    plain = results.runs.get((run.env, "none", run.learner))
    data = plain and plain.config and plain.config.get("data")
    if maker and data and maker != data:
        texts.append(f"made from other original data ({maker}) than none's ({data})")
    return texts


def unit_of(runs) -> str:
    """`score` if any run has one, else `return`."""
    units = {run.scores.unit if run.scores else run.unit for run in runs if run is not None}
    return "score" if "score" in units else "return"


def _run_cell(run: Run | None, notes: tuple[int, ...]) -> Cell:
    if run is None:
        return Cell(MISSING)
    if run.is_finished:
        return dataclasses.replace(_score_cell(run.scores), notes=notes)
    if run.damaged:
        return Cell("unreadable", notes=notes)
    total = f" of {run.num_steps:,}" if run.num_steps else ""
    return Cell("running", f"step {run.step:,}{total}", notes=notes)


def _score_cell(found: Scores, detail: str = "") -> Cell:
    number = len(found.values)
    if number == 1:
        return Cell(f"{found.values[0]:.1f}", detail or "1 seed")
    s = scores.summarize(found.values)
    interval = f"[{s.low:.1f}, {s.high:.1f}], {number} seeds"
    return Cell(f"{s.mean:.1f} ± {s.std:.1f}", f"{interval}, {detail}" if detail else interval)


def _mark_best(cells: Sequence[Cell], means: Sequence[float | None]) -> list[Cell]:
    """Bold, where there is something to compare: all cells whose means print as the largest."""
    known = [mean for mean in means if mean is not None]
    if len(known) < 2:
        return list(cells)
    best = f"{max(known):.1f}"
    return [
        dataclasses.replace(cell, strong=mean is not None and f"{mean:.1f}" == best)
        for cell, mean in zip(cells, means)
    ]


def _scale(reference: tuple[str, dict[str, Any]] | None) -> str:
    """Steps and episodes of a row."""
    settings = {} if reference is None else reference[1]
    parts = [f"{settings[name]:,} {words}"
             for name, words in (("num_steps", "steps"), ("episodes", "episodes"))
             if isinstance(settings.get(name), int)]  # fmt: skip
    return ", ".join(parts)


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
