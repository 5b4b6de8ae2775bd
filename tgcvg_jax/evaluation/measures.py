"""All measurements of a synthetic dataset, as the groups that `experiments.quality` writes.

Each function takes the same inputs and returns {"metrics": {name: {"original", "synthetic"}},
"curves": {name: {"step", "original", "synthetic"}}, ...}, ready for JSON: None where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tgcvg_jax import reporting, training
from tgcvg_jax.data.dataset import Flat
from tgcvg_jax.envs import oracle
from tgcvg_jax.evaluation import loading, novelty, quality, replay, segments
from tgcvg_jax.evaluation.segments import Segments
from tgcvg_jax.types import Dataset, Task, Transition

ORIGINAL_ROWS = 50_000  # random rows of the original data, in one-step metrics
HISTORY = 20  # real steps that a generator is told before it acts: the longest context in use


class Inputs(NamedTuple):
    """What metrics are computed of.

    Attributes:
      task: the task.
      dataset: the original data.
      original: its transitions on the host.
      sample: segments of the synthetic file.
      lengths: of all segments of the file.
      made: segments to be replayed.
      windows: of the original data, of the same lengths.
      scale: [S], see `quality.unit`.
      seed: of random choices.
      novelty_rows: how many rows' neighbours are looked for.
      novelty_subset: rows of the subset of the original data, for the variants of novelty.
      console: for progress.
    """

    task: Task
    dataset: Dataset
    original: Transition
    sample: Flat
    lengths: np.ndarray
    made: Segments
    windows: Segments
    scale: np.ndarray
    seed: int
    novelty_rows: int
    novelty_subset: int
    console: reporting.Console


def content(inputs: Inputs) -> dict[str, Any]:
    """What needs no simulator."""
    ends = np.flatnonzero(np.asarray(inputs.dataset.remaining) == 1)
    parts = {}
    for name, data, lengths in (
        ("original", inputs.original, np.diff(ends, prepend=-1)),
        ("synthetic", inputs.sample.transition, inputs.lengths),
    ):
        parts[name] = {
            "transitions": int(lengths.sum()),
            "segments": len(lengths),
            "mean_length": float(lengths.mean()),
            "reward": float(np.mean(data.reward, dtype=np.float64)),
            **(quality.terminals(inputs.task, data) or {}),
        }
    curves = {}
    if not oracle.is_known(inputs.task):  # else `steps` draws it, of the same rows as the oracle's
        position = quality.positions(inputs.sample.segment_end)
        flat, where = flatten(inputs.windows)
        curves["reward_by_step"] = curve(
            quality.by_position(flat.reward, where),
            quality.by_position(inputs.sample.transition.reward, position),
        )
    return {"metrics": join(parts), "curves": curves}


def steps(inputs: Inputs) -> dict[str, Any]:
    """Single steps against the simulator's."""
    size = inputs.dataset.size
    rows = np.random.default_rng(inputs.seed).choice(size, min(size, ORIGINAL_ROWS), replace=False)
    original = jax.tree.map(lambda x: x[rows], inputs.original)
    made = inputs.sample.transition
    windows, where = flatten(inputs.windows)
    total = sum(len(t.reward) for t in (original, windows, made))
    with reporting.progress(inputs.console, "single steps", total, unit="row") as advance:
        steps = [
            quality.one_step(inputs.task, t, inputs.scale, advance=advance)
            for t in (original, windows, made)
        ]
    position = quality.positions(inputs.sample.segment_end)

    def by_step(values: Callable[[Transition, quality.OneStep], np.ndarray]) -> dict[str, list]:
        return curve(
            quality.by_position(values(windows, steps[1]), where),
            quality.by_position(values(made, steps[2]), position),
        )

    return {
        "metrics": join(
            {
                "original": quality.summarize_one_step(steps[0], original),
                "synthetic": quality.summarize_one_step(steps[2], made),
            }
        ),
        "curves": {
            "dynamics_mse_by_step": by_step(lambda t, s: s.error),
            "reward_by_step": by_step(lambda t, s: np.where(s.valid, t.reward, np.nan)),
            "oracle_reward_by_step": by_step(lambda t, s: s.reward),
        },
    }


def replays(inputs: Inputs) -> dict[str, Any]:
    """Whole segments' actions in the simulator."""
    parts = {"original": inputs.windows, "synthetic": inputs.made}
    total = sum(int(s.length.max()) for s in parts.values())
    metrics, errors, returns = {}, {}, {}
    with reporting.progress(inputs.console, "replaying", total) as advance:
        for name, cut in parts.items():
            replayed = replay.replay(inputs.task, cut, advance)
            metrics[name] = quality.summarize_replay(cut, replayed)
            errors[name] = quality.compounding_error(cut, replayed, inputs.scale)
            known = replayed.known
            claimed = np.sum(cut.transition.reward, axis=1, where=cut.mask, dtype=np.float64)
            returns[name] = claimed[known], replayed.returns[known]
    growth = curve(errors["original"]["value"], errors["synthetic"]["value"])
    for name, error in errors.items():
        for part in ("low", "high", "count"):
            growth[f"{name}_{part}"] = numbers(error[part], len(growth["step"]))
    distributions = {
        key: {name: numbers(values[i]) for name, values in returns.items()}
        for i, key in enumerate(("claimed_return", "oracle_return"))
    }
    return {
        "metrics": join(metrics),
        "curves": {"compounding_error": growth},
        "distributions": distributions,
    }


def generator(inputs: Inputs, policy: loading.Trained) -> dict[str, Any]:
    """The policy itself, from the segments' first states, which are real ones in TGCVG."""
    cut = inputs.made
    rows = find_starts(inputs, cut)
    if not (rows >= 0).any():  # then from where the windows of the original data start
        cut = inputs.windows
        rows = find_starts(inputs, cut)
    length, rows = cut.length[rows >= 0], rows[rows >= 0]
    history, mask = segments.history_before(inputs.dataset, rows, HISTORY)
    with reporting.progress(inputs.console, "generator", int(length.max())) as advance:
        outcome = replay.closed_loop(
            policy.learner.policy,
            training.select_seed(policy.state, 0),
            inputs.task,
            inputs.original.observation[rows],
            length,
            history,
            mask,
            seed=inputs.seed,
            advance=advance,
        )
    metrics = {"generator_return": outcome.mean_return, "generator_survival": outcome.survival}
    return {"metrics": join({"original": {}, "synthetic": metrics})}


def nearest_rows(inputs: Inputs) -> dict[str, Any]:
    """Distance to the nearest of all original rows, in standard deviations."""
    found = nearest(inputs, kinds=("", "_state", "_action"))
    names = {f"novelty{kind}": f"{kind}_std_l2_full" for kind in ("", "_state", "_action")}
    return {"metrics": {name: found[key] for name, key in names.items() if key in found}}


def nearest_rows_all_ways(inputs: Inputs) -> dict[str, Any]:
    """All variants."""
    found = nearest(inputs, tuple(novelty.FEATURES), novelty.SCALES, inputs.novelty_subset)
    return {"metrics": {f"novelty{name}": values for name, values in found.items()}}


def nearest(
    inputs: Inputs, kinds: tuple[str, ...], scales: tuple[str, ...] = ("std",),
    subset: int | None = None,
) -> dict[str, dict[str, float | None]]:  # fmt: skip
    """Novelty of random rows; of the original data, of held-out episodes to the others."""
    rng = np.random.default_rng(inputs.seed)
    starts = np.append(True, np.asarray(inputs.dataset.remaining)[:-1] == 1)
    held_out = novelty.hold_out(np.cumsum(starts), inputs.seed)
    take = lambda t, rows: jax.tree.map(lambda x: x[rows], t)  # noqa: E731
    some = lambda rows: rng.choice(rows, min(len(rows), inputs.novelty_rows), False)  # noqa: E731
    pairs = {"synthetic": (take(inputs.sample.transition, some(np.arange(
        len(inputs.sample.timestep)))), inputs.original)}  # fmt: skip
    if held_out.any():
        rest = take(inputs.original, ~held_out)
        pairs["original"] = (take(inputs.original, some(np.flatnonzero(held_out))), rest)
    passes = len(kinds) * len(scales) * (2 if subset else 1)
    total = passes * sum(len(q.reward) for q, _ in pairs.values())
    unit = novelty.units(inputs.original)
    with reporting.progress(inputs.console, "nearest neighbours", total, unit="row") as advance:
        parts = {
            name: novelty.measure(
                *pair, unit, kinds=kinds, scales=scales, subset=subset, seed=inputs.seed,
                advance=advance,
            )
            for name, pair in pairs.items()
        }  # fmt: skip
    return join({"original": {}, **parts})


def find_starts(inputs: Inputs, cut: Segments) -> np.ndarray:
    """Rows of the original data in which segments start, -1 where none does."""
    return segments.find_rows(inputs.original.observation, cut.transition.observation[:, 0])


def flatten(cut: Segments) -> tuple[Transition, np.ndarray]:
    """The rows of segments, and the position of each in its own."""
    mask = cut.mask
    position = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)[mask]
    return jax.tree.map(lambda x: x[mask], cut.transition), position


def join(parts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Metrics by data set, to data sets by metric; null where there is none."""
    names = dict.fromkeys(name for part in parts.values() for name in part)
    shown = lambda x: x if x is not None and np.isfinite(x) else None  # noqa: E731
    return {
        name: {key: shown(parts[key].get(name)) for key in ("original", "synthetic")}
        for name in names
    }


def curve(original: np.ndarray, synthetic: np.ndarray) -> dict[str, list]:
    """Values after step 1, 2, ..., null where there is none."""
    size = max(len(original), len(synthetic))
    return {
        "step": list(range(1, size + 1)),
        "original": numbers(original, size),
        "synthetic": numbers(synthetic, size),
    }


def numbers(values: np.ndarray, size: int = 0) -> list[float | None]:
    """For JSON: six digits, null for NaN and up to `size`."""
    rounded = [float(f"{v:.6g}") if np.isfinite(v) else None for v in values]
    return rounded + [None] * (size - len(rounded))
