"""Everything that runs have left below a folder: scores, quality, settings, pictures.

A run's folder is <workdir>/<env>/<label>/<learner>[-<name>]/, a label `none` or a synthesizer's
name, perhaps with a `-<name>` too. Nothing is required: what is not there is missing; so is what
can't be read, which is named in `Results.problems`.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tgcvg_jax import reporting
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.report import records
from tgcvg_jax.report.records import Quality, Scores
from tgcvg_jax.synthesizers import SYNTHESIZERS
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import UserError, one_line

REPORT = "report"  # the folder in the workdir that a report goes to; no environment's
ALL = "all"
LABELS = ("none", *reversed(SYNTHESIZERS))  # as in the papers' tables, the own system last
PICTURES = (
    "summary.png", "quality/quality.png", "quality/trajectory.png", "quality/trajectory.gif",
)  # fmt: skip

Curve = tuple[np.ndarray, np.ndarray]  # steps [T], values [T, N]


@dataclasses.dataclass(frozen=True)
class Run:
    """One learner on one dataset.

    Attributes:
      env: name of the environment's folder.
      label: of the data: `none`, or the synthesizer's folder.
      learner: its folder.
      config: of config.json; None if there is none, or none that can be read.
      scores: final ones, whether or not training has gone on since; None if there are none.
      curve: normalised scores or returns on the way; None if there are none.
      unit: of the curve.
      step: of the last row of metrics.csv, 0 without one.
      damaged: scores.csv is there and can't be read.
    """

    env: str
    label: str
    learner: str
    config: Mapping[str, Any] | None
    scores: Scores | None
    curve: Curve | None
    unit: str
    step: int
    damaged: bool

    @property
    def num_steps(self) -> int | None:
        """Gradient steps that the run is to make; None if unknown."""
        steps = ((self.config or {}).get("config") or {}).get("num_steps")
        return steps if isinstance(steps, int) else None

    @property
    def foreign_data(self) -> str | None:
        """The synthetic file, if it is another than that of the run's label; else None."""
        path = (self.config or {}).get("synthetic")
        if not isinstance(path, str) or Path(path).parts[-2:] == (self.label, "synthetic.hdf5"):
            return None
        return records.short_path(path)

    @property
    def is_finished(self) -> bool:
        """Has final scores, of as many steps as it was to make."""
        going = self.num_steps is not None and 0 < self.step < self.num_steps
        return self.scores is not None and not going


@dataclasses.dataclass
class Results:
    """All that was found.

    Attributes:
      workdir: where.
      names: env folder -> the environment's own name.
      runs: by (env, label, learner).
      quality: by (env, label).
      generators: by (env, label), scores by mode, `sampled` or `mean`.
      synthesizers: config.json by (env, label).
      pictures: by (env, label), the paths of those of PICTURES that are there.
      problems: files that can't be read, by their path in workdir, with the reason.
    """

    workdir: Path
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    runs: dict[tuple[str, str, str], Run] = dataclasses.field(default_factory=dict)
    quality: dict[tuple[str, str], Quality] = dataclasses.field(default_factory=dict)
    generators: dict[tuple[str, str], dict[str, Scores]] = dataclasses.field(default_factory=dict)
    synthesizers: dict[tuple[str, str], dict] = dataclasses.field(default_factory=dict)
    pictures: dict[tuple[str, str], list[Path]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def envs(self) -> list[str]:
        """Folders, the known tasks' in their own order."""
        order = list(TASKS)
        place = lambda env: order.index(self.names[env]) if self.names[env] in TASKS else 1 << 30  # noqa: E731
        return sorted(self.names, key=lambda env: (place(env), env))

    @property
    def learners(self) -> list[str]:
        """Folders of learners, of all environments."""
        return sorted({run.learner for run in self.runs.values()}, key=_in_order(tuple(LEARNERS)))

    def labels(self, env: str | None = None, learner: str | None = None) -> list[str]:
        """Labels of all that was found, or of runs of this learner, perhaps in one environment."""
        keys = set(self.runs) if learner is not None else self._keys()
        found = {
            key[1] for key in keys
            if env in (None, key[0]) and (learner is None or learner == key[2])
        }  # fmt: skip
        return sorted(found, key=_in_order(LABELS))

    def _keys(self) -> set[tuple[str, ...]]:
        parts = (self.quality, self.generators, self.synthesizers, self.pictures)
        return {*self.runs, *(key for part in parts for key in part)}


def gather(workdir: Path, env: str | None = None) -> Results:
    """Reads all there is.

    Args:
      workdir: that of the apps.
      env: name of one environment, if the others are to be left out.

    Raises:
      UserError: nothing there, or nothing of this environment.
    """
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: no such folder")
    results = Results(workdir)
    for folder in _folders(workdir):
        if folder.name != REPORT:
            for label in _folders(folder):
                _read_label(results, folder.name, label)
    found = {key[0] for key in results._keys()}
    for name in found:
        results.names.setdefault(name, name)
    if not found and not results.problems:
        raise UserError(
            f"--workdir={workdir}: no results in it; a run's are at <workdir>/<env>/<synthesizer>/"
            "<learner>/, see experiments.train_offline"
        )
    if env not in (None, ALL):
        chosen = {f for f in found if env in (f, results.names[f]) or env.replace("/", "_") == f}
        if not chosen:
            there = ", ".join(results.names[f] for f in results.envs) or "nothing that can be read"
            raise UserError(f"--env={env}: nothing of it in {workdir}; there is {there}")
        results = _restrict(results, chosen)
    return results


def _restrict(results: Results, envs: set[str]) -> Results:
    def keep(found: dict) -> dict:
        return {k: v for k, v in found.items() if (k if isinstance(k, str) else k[0]) in envs}

    parts = ("names", "runs", "quality", "generators", "synthesizers", "pictures")
    problems = [p for p in results.problems if p.partition("/")[0] in envs]
    changes = {name: keep(getattr(results, name)) for name in parts}
    return dataclasses.replace(results, **changes, problems=problems)


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read_label(results: Results, env: str, folder: Path) -> None:
    key = env, folder.name
    config = _read(results, folder / "config.json", records.read_config)
    if config is not None and "synthesizer" in config and "learner" not in config:
        results.synthesizers[key] = records.complete(config, config["synthesizer"])
        _learn_name(results, env, config)
    if quality := _read(results, folder / "quality" / "quality.json", records.read_quality):
        results.quality[key] = quality
    if generator := _read(results, folder / "policy" / "evaluation.json", records.read_evaluation):
        results.generators[key] = generator
    if pictures := [folder / name for name in PICTURES if (folder / name).is_file()]:
        results.pictures[key] = pictures
    for child in _folders(folder):
        config = _read(results, child / "config.json", records.read_config)
        is_run = (child / "scores.csv").exists() or (config is not None and "learner" in config)
        if not is_run and not (child / "config.json").exists():
            continue
        if config is not None:
            _learn_name(results, env, config)
            config = records.complete(config, config.get("learner"))
        scores = _read(results, child / "scores.csv", records.read_scores)
        log = reporting.read_curves(child / "metrics.csv", by_seed=True)
        column = "normalized_score" if "normalized_score" in log else "return_mean"
        results.runs[*key, child.name] = Run(
            env, folder.name, child.name, config, scores, log.get(column),
            "score" if column == "normalized_score" else "return",
            max((int(steps[-1]) for steps, _ in log.values()), default=0),
            scores is None and (child / "scores.csv").exists(),
        )  # fmt: skip


def _learn_name(results: Results, env: str, config: Mapping[str, Any]) -> None:
    if isinstance(name := config.get("env"), str) and name.replace("/", "_") == env:
        results.names[env] = name


def _read(results: Results, path: Path, parse) -> Any:
    """What `parse` makes of a file; None if there is none or, with a problem noted, no sense."""
    try:
        return parse(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as e:
        reason = f"no {e}" if isinstance(e, KeyError) else one_line(e)
        reason = getattr(e, "strerror", None) or reason  # without the path
        results.problems.append(f"{path.relative_to(results.workdir).as_posix()}: {reason}")
        return None


def _in_order(known: tuple[str, ...]):
    """Sorts by the place of what stands before a `-`; the unknown come last, by name."""

    def key(name: str) -> tuple[int, str]:
        base = name.partition("-")[0]
        return known.index(base) if base in known else len(known), name

    return key
