"""The report of all that runs have left: tables and figures, as Markdown and as one HTML file.

The same results give the same bytes: no dates, no absolute paths. All is made in a hidden folder
first and then moved, so that a run that is killed leaves the old report.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tgcvg_jax import plotting
from tgcvg_jax.ops import scores
from tgcvg_jax.report import document
from tgcvg_jax.report.document import (
    Block,
    Bullets,
    Details,
    Figure,
    Heading,
    Paragraph,
    count,
)
from tgcvg_jax.report.quality import quality_table
from tgcvg_jax.report.results import REPORT, Results
from tgcvg_jax.report.settings import settings_blocks
from tgcvg_jax.report.tables import comparison_table, generator_table, score_table, unit_of

LONGER = 2  # than the usual length, the most that is shown of a curve of errors
SIGNATURES = {".png": b"\x89PNG\r\n", ".gif": b"GIF8"}
UNITS = {"score": "normalised score", "return": "return"}
# What is known of a picture by its name, see results.PICTURES.
PICTURES = {
    "summary": "original and synthetic data compared",
    "quality": "quality of the data",
    "trajectory": "a synthetic trajectory beside a real one",
}
FEW_SEEDS = (
    "Independent seeds are what counts here, and a handful carries little evidence: the bootstrap "
    "interval of five covers its mean in about 85 of 100 cases, not 95; with two or three, Welch's "
    "test finds only the largest differences. A difference that is not significant is not shown to "
    "be none. A table has many differences, and one in twenty would be below 0.05 by chance; the "
    "second p is adjusted for that (Holm), and bold if still below 0.05. "
    f"{document.MISSING}: no test, which takes two seeds on both sides."
)


def write(results: Results) -> Path:
    """Writes report.md, report.html and the pictures to <workdir>/report/.

    What else is in that folder stays, but for pictures of the report that was there before.

    Args:
      results: what to report.

    Returns:
      The folder.
    """
    folder, staging = results.workdir / REPORT, results.workdir / f".{REPORT}.tmp"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    staging.mkdir()
    try:
        blocks = _Builder(results, staging).build()
        (staging / "report.md").write_text(document.to_markdown(blocks), encoding="utf-8")
        (staging / "report.html").write_text(document.to_html(blocks, staging), encoding="utf-8")
        folder.mkdir(exist_ok=True)
        old = _pictures_of(folder / "report.md")
        new = [*document.figures(blocks), "report.md", "report.html"]
        for name in new:  # pictures first: no page without them
            os.replace(staging / name, folder / name)
        for name in old - set(new):
            (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _pictures_of(page: Path) -> set[str]:
    """Names of the pictures that a Markdown page shows, all in its own folder."""
    try:
        return set(re.findall(r"\]\(([\w.-]+\.(?:png|gif))\)", page.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        return set()


class _Builder:
    """Makes the blocks and draws the figures."""

    def __init__(self, results: Results, folder: Path) -> None:
        self.results, self.folder = results, folder
        self.names: set[str] = set()

    def build(self) -> list[Block]:
        """The whole page; pictures that can't be read are added to the problems."""
        sections = (
            ("Scores", self.score_blocks()),
            ("Generator policies", self.generator_blocks()),
            ("Differences", self.comparison_blocks()),
            ("Quality of the data", self.quality_blocks()),
            ("Learning curves", self.curve_blocks()),
            ("Pictures", self.picture_blocks()),
            ("How each run was made", settings_blocks(self.results)),
        )
        problems = []
        if self.results.problems:
            problems = [
                Heading(2, "Could not be read"),
                Paragraph("These files are left out above; what they hold is missing there."),
                Bullets(tuple(self.results.problems)),
            ]
        blocks = [Heading(1, "Offline reinforcement learning with synthetic data"), *self.found()]
        for title, section in sections:
            if section:
                blocks += [Heading(2, title), *section]
        return blocks + problems

    def found(self) -> list[Block]:
        """Counts."""
        results = self.results
        runs = list(results.runs.values())
        done = sum(run.is_finished for run in runs)
        broken = sum(run.damaged for run in runs)
        labels = f" ({', '.join(results.labels())})" if results.labels() else ""
        items = [
            f"{count(len(results.names), 'task')}: "
            + ", ".join(results.names[env] for env in results.envs),
            f"{count(len(results.labels()), 'kind')} of data{labels}",
            f"{count(done, 'finished training run')} of {count(len(results.learners), 'learner')}"
            + (f", {len(runs) - done - broken} under way or stopped" if runs else "")
            + (f", {broken} with unreadable scores" if broken else ""),
            f"quality of {count(len(results.quality), 'synthetic dataset')}",
            "scores of " + count(len(results.generators), "generator policy", "generator policies"),
        ]
        if results.problems:
            items.append(f"{count(len(results.problems), 'file')} that can't be read, see the end")
        return [Paragraph("What was found:"), Bullets(tuple(items))]

    def score_blocks(self) -> list[Block]:
        """A table and its bars for each learner."""
        blocks: list[Block] = []
        for learner in self.results.learners:
            blocks += [Heading(3, learner), score_table(self.results, learner)]
            for unit, table in self.bars(learner).items():
                name = self.name(f"{unit}s", learner, suffix=".png")
                title = f"{learner}: {UNITS[unit]} of the final policies"
                plotting.score_bars(self.folder / name, table, title, UNITS[unit])
                blocks.append(Figure(name, f"Bars: {title}, by task and kind of data",
                                     f"{title}. The numbers are those of the table."))  # fmt: skip
        if blocks:
            blocks.insert(0, Paragraph(
                "Scores are of the final policies, never of the best checkpoint: mean and "
                "standard deviation over seeds, and below them the 95 % bootstrap interval of the "
                "mean. Bold is the best of a row, with all that print the same. "
                f"{document.MISSING}: there is no such run. running: training is under way, or "
                "was stopped; it is in no average and no comparison."
            ))  # fmt: skip
        return blocks

    def bars(self, learner: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Unit -> task -> label -> (mean, low, high)."""
        results, tables = self.results, {}
        for env in results.envs:
            runs = [results.runs[env, label, learner] for label in results.labels(env, learner)]
            if runs:
                unit = unit_of(runs)
                row = dict.fromkeys(results.labels(learner=learner))
                for run in runs:
                    if run.is_finished and run.scores.unit == unit:
                        s = scores.summarize(run.scores.values)
                        row[run.label] = s.mean, s.low, s.high
                name = results.names[env].replace("/", "/\n")  # long names below short bars
                tables.setdefault(unit, {})[name] = row
        return {
            unit: table for unit, table in tables.items()
            if any(cell for row in table.values() for cell in row.values())
        }  # fmt: skip

    def generator_blocks(self) -> list[Block]:
        """One table."""
        table = generator_table(self.results)
        text = "Beside the learners: what the policy that made the data scores by itself."
        return [Paragraph(text), table] if table else []

    def comparison_blocks(self) -> list[Block]:
        """A table for each learner, with what to make of it."""
        tables = [comparison_table(self.results, x) for x in self.results.learners]
        tables = [table for table in tables if table is not None]
        return [Paragraph(FEW_SEEDS), *tables] if tables else []

    def quality_blocks(self) -> list[Block]:
        """A table for each task, the growth of the error, and error against reward."""
        blocks: list[Block] = []
        for env in self.results.envs:
            if (table := quality_table(self.results, env)) is None:
                continue
            blocks += [Heading(3, self.results.names[env]), table]
            blocks += [*self.error_growth(env), *self.trade_off(env)]
        return blocks

    def error_growth(self, env: str) -> list[Block]:
        """Compounding error of all synthetic datasets of a task.

        Of data whose segments are far longer than those of the others it is cut, or the others
        could not be told apart.
        """
        curves = {}
        for label in self.results.labels(env):
            quality = self.results.quality.get((env, label))
            curve = quality.curves.get("compounding_error", {}) if quality else {}
            if {"step", "synthetic"} <= set(curve):
                known = np.isfinite(curve["step"]) & np.isfinite(curve["synthetic"])
                if known.any():
                    curves[label] = curve["step"][known], curve["synthetic"][known]
        if not curves:
            return []
        last = {label: int(steps[-1]) for label, (steps, _) in curves.items()}
        limit = LONGER * np.median(list(last.values()))
        limit = max(limit, *(steps[0] for steps, _ in curves.values()))
        cut = [f"{label} goes on to {step:,}" for label, step in last.items() if step > limit]
        curves = {label: (x[x <= limit], y[x <= limit]) for label, (x, y) in curves.items()}
        name, task = self.name("errors", env, suffix=".png"), self.results.names[env]
        title = f"{task}: error of generated states"
        title += f", {next(iter(curves))}" if len(curves) == 1 else ""
        plotting.learning_curve(self.folder / name, curves, title, "rms (std of the data)",
                                "step of the trajectory")  # fmt: skip
        text = (
            f"{task}: distance of the generated state from the one that the simulator reaches by "
            "the same actions from the same first state, in standard deviations of the data."
        )
        text += f" Cut at step {limit:,.0f}: {', '.join(cut)}." if cut else ""
        alt = f"Curves: {task}, error of generated states by step: {', '.join(curves)}"
        return [Figure(name, alt, text)]

    def trade_off(self, env: str) -> list[Block]:
        """Error of the dynamics against the reward that the simulator gives."""
        names = ("dynamics_mse", "oracle_reward")
        points, original = {}, None
        for label in self.results.labels(env):
            if quality := self.results.quality.get((env, label)):
                pairs = [quality.metrics.get(name, (None, None)) for name in names]
                original = original or _pair([p[0] for p in pairs])
                points[label] = _pair([p[1] for p in pairs])
        errors = [point[0] for point in points.values() if point is not None]
        if not errors:
            return []
        # Errors of good and of bad data are orders of magnitude apart.
        log_x = min(errors) > 0 and max(errors) > 30 * min(errors)
        name, task = self.name("trade_off", env, suffix=".png"), self.results.names[env]
        title = f"{task}: is the data possible, and is it good?"
        xlabel, ylabel = "dynamics MSE (variances of the data)", "reward in the simulator, per step"
        path, points = self.folder / name, {**points, "original": original}
        plotting.trade_off(path, points, xlabel, ylabel, title, log_x=log_x)
        text = f"{task}: error of the dynamics against reward. Up and to the left is better."
        return [Figure(name, f"Points: {title}", text)]

    def curve_blocks(self) -> list[Block]:
        """One figure for each task and learner."""
        results, blocks = self.results, []
        for learner in results.learners:
            for env in results.envs:
                runs = [results.runs[env, label, learner] for label in results.labels(env, learner)]
                for unit in UNITS:
                    known = [r for r in runs if r.curve is not None and r.unit == unit]
                    curves = {run.label: run.curve for run in known}
                    if curves:
                        name = self.name("curve", env, learner, suffix=".png")
                        title = f"{results.names[env]}, {learner}"
                        path = self.folder / name
                        plotting.learning_curve(path, curves, title, UNITS[unit])
                        about = f"{title}: {UNITS[unit]} on the way."
                        if going := [run.label for run in known if not run.is_finished]:
                            about += f" Not finished: {', '.join(going)}."
                        blocks.append(Figure(name, f"Learning curves: {', '.join(curves)}", about))
        return blocks

    def picture_blocks(self) -> list[Block]:
        """What the other apps have drawn, folded away by task."""
        results, blocks = self.results, []
        for env in results.envs:
            inner: list[Block] = []
            for label in results.labels(env):
                for path in results.pictures.get((env, label), []):
                    try:
                        content = path.read_bytes()
                    except OSError as e:
                        results.problems.append(f"{self.relative(path)}: {e.strerror}")
                        continue
                    if not content.startswith(SIGNATURES[path.suffix]):
                        results.problems.append(f"{self.relative(path)}: no {path.suffix[1:]} file")
                        continue
                    name = self.name(path.stem, env, label, suffix=path.suffix)
                    (self.folder / name).write_bytes(content)
                    text = f"{results.names[env]}, {label}: {PICTURES[path.stem]}"
                    inner.append(Figure(name, text, f"{text}."))
            if inner:
                title = f"{results.names[env]}: {count(len(inner), 'picture')}"
                blocks.append(Details(title, tuple(inner)))
        return blocks

    def name(self, *parts: str, suffix: str) -> str:
        """A file's name that no other has."""
        stem = re.sub(r"[^A-Za-z0-9.-]+", "_", "_".join(parts))
        name, count = stem + suffix, 1
        while name in self.names:
            count += 1
            name = f"{stem}_{count}{suffix}"
        self.names.add(name)
        return name

    def relative(self, path: Path) -> str:
        """As a problem names it."""
        return path.relative_to(self.results.workdir).as_posix()


def _pair(values: list[float | None]) -> tuple[float, float] | None:
    known = all(value is not None and math.isfinite(value) for value in values)
    return (values[0], values[1]) if known else None
