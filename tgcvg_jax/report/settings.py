"""A report's section on how each run was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tgcvg_jax import config as config_lib
from tgcvg_jax.report.document import MISSING, Block, Cell, Details, Table, count
from tgcvg_jax.report.records import defaults, extra_settings
from tgcvg_jax.report.results import Results


def settings_blocks(results: Results) -> list[Block]:
    """Every config as its difference from the defaults, folded away."""
    configs = {}  # name of a run -> (kind of its config, config.json, remark)
    for env in results.envs:
        for label in results.labels(env):
            name = f"{results.names[env]} / {label}"
            if config := results.synthesizers.get((env, label)):
                configs[name] = config.get("synthesizer"), config, None
            for learner in results.learners:
                if run := results.runs.get((env, label, learner)):
                    config = run.config or {}
                    kind = config.get("learner")
                    configs[f"{name} / {learner}"] = kind, config, run.foreign_data
    if not configs:
        return []
    versions = [_versions(config) for _, config, _ in configs.values() if config]
    usual = max(sorted(set(versions)), key=versions.count, default="")
    rows = []
    for name, (kind, config, foreign) in configs.items():
        parts = [f"synthetic data from {foreign}"] if foreign else []
        parts += _settings(kind, config) if config else ["unknown"]
        if config and _versions(config) != usual:
            parts.append(_versions(config) or "versions unknown")
        cells = (name, _seeds(config), config.get("preset") or MISSING, "; ".join(parts))
        rows.append(tuple(Cell(str(text)) for text in cells))
    caption = "Settings, those of the config where they differ from the code's defaults"
    caption += f". Unless said otherwise with {usual}" if usual else ""
    header = tuple(map(Cell, ("run", "seeds", "preset", "settings")))
    table = Table(caption, header, tuple(rows), wide=(0, 1, 2, 3))
    return [Details(f"Settings of {count(len(rows), 'run')}", (table,))]


def _settings(kind: Any, config: Mapping[str, Any]) -> list[str]:
    parts = [f"{name}: {value}" for name, value in extra_settings(config).items()]
    if (standard := defaults(kind)) is None:
        return [*parts, f"{kind!r} is unknown here: no defaults to compare with"]
    lines = config_lib.difference(standard, config.get("config") or {})
    if "generator" in config:  # in place of the policy
        lines = [line for line in lines if not line.startswith("policy.")]
    return parts + ([line.replace(":", "", 1) for line in lines] or ["all defaults"])


def _seeds(config: Mapping[str, Any]) -> str:
    seeds = config.get("seeds", config.get("seed"))
    if isinstance(seeds, list):
        return ", ".join(map(str, seeds))
    return MISSING if seeds is None else str(seeds)


def _versions(config: Mapping[str, Any]) -> str:
    versions = config.get("versions")
    return ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""
