"""Files that runs leave, and what they hold.

A file that makes no sense raises OSError, ValueError (which JSON's and Unicode's errors are),
KeyError, TypeError, AttributeError or csv.Error.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("seed", "return_mean", "return_std", "normalized_score", "episodes")
# In config.json: what a run is, and not how it was made.
IDENTITY = ("env", "environment", "learner", "synthesizer", "synthetic", "seed", "seeds", "data",
            "preset", "config", "versions")  # fmt: skip

UNSET = {"subset": "all"}  # values that are as good as none; so are empty ones


@dataclasses.dataclass(frozen=True)
class Scores:
    """Final scores of N seeds, or of one policy.

    Attributes:
      values: [N], normalised scores, or returns if there are no scores.
      unit: `score` or `return`.
      episodes: of each seed.
      seeds: the N seeds' numbers.
    """

    values: np.ndarray
    unit: str
    episodes: int
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Quality:
    """A quality.json.

    Attributes:
      metrics: name -> values of the original and of the synthetic data, None where unknown.
      curves: name -> `step`, `original`, `synthetic`, each [T].
      settings: numbers that say how it was measured, and the original data's fingerprint.
    """

    metrics: Mapping[str, tuple[float | None, float | None]]
    curves: Mapping[str, Mapping[str, np.ndarray]]
    settings: Mapping[str, Any]


def _json(path: Path) -> dict:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def read_config(path: Path) -> dict:
    """Settings of a run or a synthesizer."""
    config = _json(path)
    if not isinstance(config.get("config", {}), dict):
        raise ValueError("its config is no JSON object")
    return config


def extra_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run in config.json that are not in its config, but for unset ones."""
    unset = (None, "", [], {}, False)
    return {
        name: value for name, value in config.items()
        if name not in IDENTITY and value not in unset and value != UNSET.get(name)
    }  # fmt: skip


def read_scores(path: Path) -> Scores:
    """A scores.csv, see `rollout.write_scores`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("no rows")
    if missing := [name for name in COLUMNS if rows[0].get(name) is None]:
        raise ValueError(f"no column {', '.join(missing)}")
    unit = "score" if rows[0]["normalized_score"] else "return"
    column = "normalized_score" if unit == "score" else "return_mean"
    values = _finite([float(row[column]) for row in rows])
    seeds = tuple(int(row["seed"]) for row in rows)
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed stands there twice")
    return Scores(values, unit, int(rows[0]["episodes"]), seeds)


def read_evaluation(path: Path) -> dict[str, Scores]:
    """An evaluation.json: mode -> scores."""
    content = _json(path)
    seeds = tuple(int(seed) for seed in content["seeds"])
    modes = {}
    for mode, values in content["modes"].items():
        unit = "return" if values["score"] is None else "score"
        numbers = _finite(values[unit])
        if len(numbers) != len(seeds):
            raise ValueError(f"{len(numbers)} values for {len(seeds)} seeds")
        modes[mode] = Scores(numbers, unit, int(content["episodes"]), seeds)
    return modes


def read_quality(path: Path) -> Quality:
    """A quality.json."""
    content = _json(path)
    metrics = {
        name: (_number(values.get("original")), _number(values.get("synthetic")))
        for name, values in content["metrics"].items()
    }
    curves = {}
    for name, curve in (content.get("curves") or {}).items():
        arrays = {
            part: np.array([math.nan if v is None else float(v) for v in values])
            for part, values in curve.items() if values is not None
        }  # fmt: skip
        if len({len(values) for values in arrays.values()}) > 1:
            raise ValueError(f"curve {name}: columns of different lengths")
        curves[name] = arrays
    groups = (content.get("settings") or {}).get("groups") or {}
    settings = {"seed": content.get("seed")}
    for name, values in groups.items():
        numbers = {k: v for k, v in values.items() if isinstance(v, int | str)}
        settings |= {k if k in ("seed", "data") else f"{name}.{k}": v for k, v in numbers.items()}
    return Quality(metrics, curves, settings)


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _finite(values: list) -> np.ndarray:
    array = np.array(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError("values that are no finite numbers")
    return array
