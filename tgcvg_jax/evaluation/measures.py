"""All measurements of a synthetic dataset, as the groups that `experiments.quality` writes.

A group is a function by its name. Each takes the same inputs, from `prepare`, and returns
{"metrics": {name: {"original", "synthetic"}}, "curves": {name: {"step", "original", "synthetic"}},
...}, ready for JSON: None where there is none. What the metrics are is in `tgcvg_jax.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tgcvg_jax import reporting
from tgcvg_jax.data import synthetic as synthetic_data
from tgcvg_jax.data.dataset import Flat
from tgcvg_jax.envs import oracle
from tgcvg_jax.evaluation import novelty as novelty_lib
from tgcvg_jax.evaluation import quality, segments
from tgcvg_jax.evaluation import replay as replay_lib
from tgcvg_jax.evaluation.generators import Generator
from tgcvg_jax.evaluation.segments import Segments
from tgcvg_jax.types import Dataset, Task, Transition, UserError

ORIGINAL_ROWS = 50_000  # random rows of the original data, in one-step metrics


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
      num_segments: that are replayed at most, and starts of the generator.
      novelty_rows: how many rows' neighbours are looked for.
      novelty_subset: rows of the subset of the original data, for the variants of novelty.
      processes: that step single rows, if they are many.
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
    num_segments: int
    novelty_rows: int
    novelty_subset: int
    processes: int
    console: reporting.Console

    @property
    def horizon(self) -> int:
        """H, the longest segment of the file."""
        return int(self.lengths.max())


def prepare(
    task: Task,
    dataset: Dataset,
    path: Path,
    *,
    num_transitions: int,
    num_segments: int,
    novelty_rows: int,
    novelty_subset: int,
    seed: int = 0,
    processes: int = 1,
) -> Inputs:
    """Reads a synthetic file and chooses what is measured.

    Args:
      task: the task.
      dataset: the original data.
      path: the synthetic file.
      num_transitions: most rows of it, as whole segments.
      num_segments: to be replayed; and as many starts of the generator.
      novelty_rows: see `Inputs`; so are the others.

    Raises:
      UserError: the file can't be read, or is of another task.
    """
    sample, lengths = synthetic_data.read_segments(path, num_transitions, seed)
    shape = (sample.transition.observation.shape[1], sample.transition.action.shape[1])
    if shape != (task.observation_dim, task.action_dim):
        raise UserError(f"{path}: its states and actions have {shape} entries, but {task.name} "
                        f"has {(task.observation_dim, task.action_dim)}")  # fmt: skip
    original = jax.tree.map(np.asarray, dataset.transition)
    made = segments.sample_segments(sample, num_segments, seed)
    return Inputs(
        task=task,
        dataset=dataset,
        original=original,
        sample=sample,
        lengths=lengths,
        made=made,
        windows=segments.original_segments(dataset, made.length, seed),
        scale=quality.unit(original.observation),
        seed=seed,
        num_segments=num_segments,
        novelty_rows=novelty_rows,
        novelty_subset=novelty_subset,
        processes=processes,
        console=reporting.Console(),
    )


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
    if not oracle.is_known(inputs.task):  # else `one_step` draws it, of the oracle's rows
        position = quality.positions(inputs.sample.segment_end)
        flat, where = flatten(inputs.windows)
        curves["reward_by_step"] = curve(
            quality.by_position(flat.reward, where),
            quality.by_position(inputs.sample.transition.reward, position),
        )
    return {"metrics": join(parts), "curves": curves}


def one_step(inputs: Inputs) -> dict[str, Any]:
    """Single steps against the simulator's."""
    size = inputs.dataset.size
    rows = np.random.default_rng(inputs.seed).choice(size, min(size, ORIGINAL_ROWS), replace=False)
    original = jax.tree.map(lambda x: x[rows], inputs.original)
    made = inputs.sample.transition
    windows, where = flatten(inputs.windows)
    total = sum(len(t.reward) for t in (original, windows, made))
    with reporting.progress(inputs.console, "single steps", total, unit="row") as advance:
        steps = [
            quality.one_step(
                inputs.task, t, inputs.scale, advance=advance,
                processes=inputs.processes if len(t.reward) >= oracle.PARALLEL else 1,
            )
            for t in (original, windows, made)
        ]  # fmt: skip
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


def replay(inputs: Inputs) -> dict[str, Any]:
    """Whole segments' actions in the simulator."""
    parts = {"original": inputs.windows, "synthetic": inputs.made}
    total = sum(int(s.length.max()) for s in parts.values())
    metrics, errors, returns = {}, {}, {}
    with reporting.progress(inputs.console, "replaying", total) as advance:
        for name, cut in parts.items():
            replayed = replay_lib.replay(inputs.task, cut, advance)
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


def generator(inputs: Inputs, policy: Generator) -> dict[str, Any]:
    """The policy itself in the simulator, beside what is recorded from the same rows.

    The starts are random rows of the original data, not the segments': so all files of one length
    have the same ones, and the recorded outcome is a true yardstick. A row counts if the next H
    steps, or those up to a terminal, are recorded, H being the longest segment of the file. The
    policy is told the real steps before, and how much it is to earn, as when it generates.
    """
    rows = segments.outcomes(inputs.task, inputs.dataset, inputs.horizon)
    size = min(len(rows), inputs.num_segments)
    if not size:
        return {"metrics": join({k: {"generator_starts": 0} for k in ("original", "synthetic")})}
    rows = np.random.default_rng(inputs.seed).choice(rows, size, replace=False)
    returns, survived = segments.recorded_outcome(inputs.dataset, rows, inputs.horizon)
    target = policy.return_factor * np.asarray(inputs.dataset.return_to_go)[rows]
    history = mask = None
    if policy.policy.prime is not None and policy.history:
        history, mask = segments.history_before(inputs.dataset, rows, policy.history)
        target = target + np.sum(history.reward, axis=1, where=mask)
    with reporting.progress(inputs.console, "generator", inputs.horizon) as advance:
        outcome = replay_lib.closed_loop(
            policy.policy,
            policy.state,
            inputs.task,
            inputs.original.observation[rows],
            np.full(size, inputs.horizon),
            history,
            mask,
            seed=inputs.seed,
            deterministic=policy.deterministic,
            target_return=target,
            advance=advance,
        )
    name = lambda *values: dict(  # noqa: E731
        zip(("generator_starts", "generator_return", "generator_survival"), values, strict=True)
    )
    return {
        "metrics": join(
            {
                "original": name(size, float(returns.mean()), float(survived.mean())),
                "synthetic": name(size, outcome.mean_return, outcome.survival),
            }
        )
    }


def novelty(inputs: Inputs) -> dict[str, Any]:
    """Distance to the nearest of all original rows, in standard deviations."""
    found = nearest(inputs, kinds=("", "_state", "_action"))
    names = {f"novelty{kind}": f"{kind}_std_l2_full" for kind in ("", "_state", "_action")}
    return {"metrics": {name: found[key] for name, key in names.items() if key in found}}


def novelty_grid(inputs: Inputs) -> dict[str, Any]:
    """All variants."""
    found = nearest(inputs, tuple(novelty_lib.FEATURES), novelty_lib.SCALES, inputs.novelty_subset)
    return {"metrics": {f"novelty{name}": values for name, values in found.items()}}


def nearest(
    inputs: Inputs, kinds: tuple[str, ...], scales: tuple[str, ...] = ("std",),
    subset: int | None = None,
) -> dict[str, dict[str, float | None]]:  # fmt: skip
    """Novelty of random rows; of the original data, of held-out episodes to the others."""
    rng = np.random.default_rng(inputs.seed)
    starts = np.append(True, np.asarray(inputs.dataset.remaining)[:-1] == 1)
    held_out = novelty_lib.hold_out(np.cumsum(starts), inputs.seed)
    take = lambda t, rows: jax.tree.map(lambda x: x[rows], t)  # noqa: E731
    some = lambda rows: rng.choice(rows, min(len(rows), inputs.novelty_rows), False)  # noqa: E731
    pairs = {"synthetic": (take(inputs.sample.transition, some(np.arange(
        len(inputs.sample.timestep)))), inputs.original)}  # fmt: skip
    if held_out.any():
        rest = take(inputs.original, ~held_out)
        pairs["original"] = (take(inputs.original, some(np.flatnonzero(held_out))), rest)
    passes = len(kinds) * len(scales) * (2 if subset else 1)
    total = passes * sum(len(q.reward) for q, _ in pairs.values())
    unit = novelty_lib.units(inputs.original)
    with reporting.progress(inputs.console, "nearest neighbours", total, unit="row") as advance:
        parts = {
            name: novelty_lib.measure(
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
