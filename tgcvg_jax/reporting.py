"""Metrics to CSV, progress to the terminal."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from tgcvg_jax.files import atomic_path


class MetricsLog:
    """Rows of metrics in a CSV file that survives restarts.

    One row for each logged step and seed, columns `step, seed, <metric>...`. Metrics that are not
    logged at every step leave their cell empty. No times are written: a resumed run's file is
    identical to an uninterrupted one's.

    Args:
      path: of the CSV file; None keeps rows in memory only.
      resume_step: rows after this step, written by a run that was killed, are dropped.
    """

    def __init__(self, path: str | Path | None, resume_step: int = 0):
        self._path = Path(path) if path is not None else None
        self._rows: list[dict[str, Any]] = []
        if self._path is not None:
            self._rows = [r for r in _read_rows(self._path) if int(r["step"]) <= resume_step]

    def write(self, step: int, metrics: Mapping[str, np.ndarray], seeds: list[int]) -> None:
        """Adds a row for each seed; metrics are [N]. Joins rows of the same step and seed."""
        for i, seed in enumerate(seeds):
            values = {k: f"{float(v[i]):.6g}" for k, v in metrics.items()}
            if self._rows and (row := self._find(step, seed)) is not None:
                row.update(values)
            else:
                self._rows.append({"step": str(step), "seed": str(seed), **values})

    def _find(self, step: int, seed: int) -> dict[str, Any] | None:
        for row in reversed(self._rows):
            if row["step"] != str(step):
                return None
            if row["seed"] == str(seed):
                return row
        return None

    def flush(self) -> None:
        """Writes the file anew, atomically."""
        if self._path is None or not self._rows:
            return
        columns = dict.fromkeys(["step", "seed"])
        for row in self._rows:
            columns.update(dict.fromkeys(row))
        _write_csv(self._path, list(columns), self._rows)

    def curves(self, by_seed: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Metric name -> (steps [T], values [T]), means over seeds; values [T, N] if `by_seed`."""
        names = dict.fromkeys(k for row in self._rows for k in row if k not in ("step", "seed"))
        result = {}
        for name in names:
            by_step: dict[int, list[float]] = {}
            for row in self._rows:
                if row.get(name):
                    by_step.setdefault(int(row["step"]), []).append(float(row[name]))
            seeds = max(map(len, by_step.values()), default=0)
            steps = sorted(s for s in by_step if len(by_step[s]) == seeds)
            if not steps:
                continue
            values = np.array([by_step[s] for s in steps])
            result[name] = np.array(steps), values if by_seed else values.mean(axis=1)
        return result


def read_curves(
    path: str | Path, by_seed: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`MetricsLog.curves` of a file."""
    return MetricsLog(path, resume_step=sys.maxsize).curves(by_seed)


def join_logs(path: str | Path, logs: Mapping[str, str | Path]) -> None:
    """One CSV file of several models' metrics, with a first column that names the model."""
    rows = [{"model": model, **row} for model, log in logs.items() for row in _read_rows(Path(log))]
    columns = dict.fromkeys(["model", "step", "seed"])
    for row in rows:
        columns.update(dict.fromkeys(row))
    _write_csv(Path(path), list(columns), rows)


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Rows that make sense. A log is no reason to stop: a damaged one is read as far as it goes."""
    try:
        with path.open(newline="") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [row for row in rows if _is_sound(row)]


def _is_sound(row: Mapping[str, Any]) -> bool:
    try:
        for value in row.values():
            float(value or 0)
        return row["step"].isdigit() and row["seed"].isdigit()
    except (KeyError, ValueError, TypeError):
        return False


def _write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


class Console:
    """A progress bar with rate and time left, and lines above it.

    Args:
      enabled: False prints nothing (the library's default).
      stream: where to.
    """

    def __init__(self, enabled: bool = True, stream: TextIO | None = None):
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None

    def start(self, label: str, total: int | None, initial: int, unit: str) -> None:
        """Opens a bar."""
        self.close()
        if self._enabled:
            terminal = self._stream.isatty()
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=label,
                unit=f" {unit}",
                unit_scale=True,
                file=self._stream,
                dynamic_ncols=terminal,
                ncols=None if terminal else 100,
                smoothing=0.1,
                mininterval=0.5 if terminal else 20.0,  # in a log file, a line now and then
            )

    def advance(self, count: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(count)

    def print(self, line: str) -> None:
        """A line above the bar."""
        if self._enabled:
            tqdm.write(line, file=self._stream)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def progress(
    console: Console, label: str, total: int | None, initial: int = 0, unit: str = "step"
) -> Iterator[Callable[..., None]]:
    """A bar for the block; yields `advance(count)`. The bar closes before an error prints."""
    console.start(label, total, initial, unit)
    try:
        yield console.advance
    finally:
        console.close()


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
