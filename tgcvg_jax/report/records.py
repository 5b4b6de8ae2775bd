"""Files that runs leave, and what they hold.

A file that makes no sense raises OSError, ValueError (which JSON's and Unicode's errors are),
KeyError, TypeError, AttributeError or csv.Error.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tgcvg_jax import config as config_lib
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.synthesizers import SYNTHESIZERS

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


def defaults(kind: Any) -> dict[str, Any] | None:
    """Defaults of a learner's or synthesizer's config, as in a file; None of one not known here."""
    return _defaults(kind) if isinstance(kind, str) else None


@functools.cache
def _defaults(kind: str) -> dict[str, Any] | None:
    module = {**LEARNERS, **SYNTHESIZERS}.get(kind)
    # With lists for tuples.
    return module and json.loads(json.dumps(config_lib.to_dict(module.Config())))


def complete(config: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """A config.json with all fields in its config, an older version's with the defaults of newer.

    Args:
      config: as it was found.
      kind: name of the learner or synthesizer.
    """

    def merge(default: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        merged = {**default, **values}
        for name, value in merged.items():
            if isinstance(value, Mapping) and isinstance(default.get(name), Mapping):
                merged[name] = merge(default[name], value)
        return merged

    default = defaults(kind)
    known = default is not None and "config" in config
    return {**config, "config": merge(default, config["config"])} if known else dict(config)


def extra_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run in config.json that are not in its config, but for unset ones.

    Each is a plain value or words: of what is nested, what tells it from others.
    """
    unset = (None, "", [], {}, False)
    return {
        name: _in_words(value) for name, value in config.items()
        if name not in IDENTITY and value not in unset and value != UNSET.get(name)
    }  # fmt: skip


def _in_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "kind" in value:  # of a trained model
            numbers = [f"{name} {value[name]}" for name in ("seed", "step") if name in value]
            return ", ".join([str(value["kind"]), *numbers])
        return ", ".join(f"{name} {_in_words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(str(_in_words(inner)) for inner in value)
    return short_path(value) if isinstance(value, str) else value


def short_path(path: str) -> str:
    """The end of an absolute path, which says nothing to those on other machines; others whole."""
    parts = PurePath(path).parts
    return f".../{'/'.join(parts[1:][-3:])}" if PurePath(path).is_absolute() else path


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
        # A generator's kind and step are what was measured, not how.
        numbers = {k: v for k, v in values.items()
                   if isinstance(v, int | str) and k not in ("kind", "step")}  # fmt: skip
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
