"""The main job: augments an offline dataset with synthetic trajectories.

    python -m experiments.synthesize --env=walker2d-medium-v2
    python -m experiments.synthesize --env=hopper-medium-mini --preset=quick

Trains the synthesizer's models, or reuses them if they are there, then generates exactly
--num_transitions. Run it again to resume after a kill, or with a larger --num_transitions to go on
from where the file ends. Writes to <workdir>/<env>/<synthesizer>/:

    synthetic.hdf5      the synthetic transitions, D4RL format
    policy/, dynamics/  Orbax checkpoints, metrics.csv
    config.json         every setting of the run
    metrics.csv         training metrics of all models
    summary.png         original and synthetic data compared, training curves
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
from absl import flags

from experiments import _main, _stages
from tgcvg_jax import config as config_lib
from tgcvg_jax import plotting, reporting, training
from tgcvg_jax.data.dataset import fingerprint
from tgcvg_jax.data.synthetic import SyntheticStore
from tgcvg_jax.synthesizers import SYNTHESIZERS, pipeline
from tgcvg_jax.types import Dataset, Task, Transition, UserError

FLAGS = flags.FLAGS
flags.DEFINE_enum("synthesizer", "tgcvg", sorted(SYNTHESIZERS), "What generates.")
flags.DEFINE_integer("num_transitions", None, "How many to generate. Without it: 5,000,000, or "
                     "50,000 with --preset=quick.")  # fmt: skip
_stages.define_variant()
PICTURE_ROWS = 50_000


def main() -> None:
    """Loads, trains, generates, summarises."""
    name = FLAGS.synthesizer
    module = SYNTHESIZERS[name]
    num_transitions = FLAGS.num_transitions
    if num_transitions is None:
        num_transitions = module.NUM_TRANSITIONS[FLAGS.preset]
    if num_transitions < 1:
        raise UserError(f"--num_transitions={num_transitions}: must be at least 1")
    task, dataset = _stages.load()
    config = _stages.synthesizer_config(module, task)
    synthesizer = module.make(task, config)
    # Before hours of training: refuse data without fitting windows, and foreign checkpoints.
    synthesizer.prepare(dataset)
    for learner in synthesizer.models.values():
        learner.prepare(dataset)
    checkpointers = _stages.open_checkpoints(name, synthesizer.models, task, config, dataset)

    directory = _main.task_dir(task, name)
    results = {
        model: _stages.train_model(
            model, learner, getattr(config, model), dataset, checkpointers[model]
        )
        for model, learner in synthesizer.models.items()
    }
    steps = {model: result.step for model, result in results.items()}
    identity = {
        "synthesizer": name,
        "env": task.name,
        "data": fingerprint(dataset),
        "seed": FLAGS.seed,
        "config": config_lib.to_dict(config),
        "steps": steps,
    }
    versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")}
    versions["tgcvg_jax"] = importlib.metadata.version("tgcvg_jax")
    settings = {**identity, "num_transitions": num_transitions, "versions": versions}
    store = SyntheticStore(directory / "synthetic.hdf5", identity)
    timing = pipeline.stream(
        synthesizer,
        {model: training.select_seed(result.state, 0) for model, result in results.items()},
        dataset,
        store,
        num_transitions=num_transitions,
        seed=FLAGS.seed,
        attributes=settings | {"env": task.name, "seed": FLAGS.seed},
        console=reporting.Console(),
    )
    if timing:
        print(
            f"generated {num_transitions:,} transitions in {timing['seconds']:.1f} s "
            f"({timing['transitions_per_second']:,.0f}/s), "
            f"{timing['compile_seconds']:.0f} s of compilation"
        )
    else:
        print(f"generated already: {num_transitions:,} transitions")
    with reporting.atomic_path(directory / "config.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n")
    _join_metrics(directory, list(synthesizer.models))
    _summarise(task, dataset, store.path, directory, list(synthesizer.models))


def _join_metrics(directory: Path, models: list[str]) -> None:
    """One metrics.csv of all models, with a column that names the model."""
    columns, rows = {"model": None}, []
    for model in models:
        with (directory / model / "metrics.csv").open(newline="") as f:
            reader = csv.DictReader(f)
            columns |= dict.fromkeys(reader.fieldnames)
            rows += [{"model": model, **row} for row in reader]
    with (
        reporting.atomic_path(directory / "metrics.csv") as temporary,
        temporary.open("w", newline="") as f,
    ):
        writer = csv.DictWriter(f, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)


def _summarise(
    task: Task, dataset: Dataset, path: Path, directory: Path, models: list[str]
) -> None:
    """The table that closes the run, and summary.png."""
    synthetic, segments, size = _read_part(path)
    original = jax.tree.map(np.asarray, dataset.transition)
    curves = {model: reporting.read_curves(directory / model / "metrics.csv") for model in models}
    plotting.summary(directory / "summary.png", task, original, synthetic, curves)

    scale = np.std(original.observation, axis=0) + 1e-6

    def describe(t: Transition, lengths: np.ndarray, count: int) -> list[str]:
        step = np.sqrt(np.mean(np.square((t.next_observation - t.observation) / scale)))
        outside = np.abs((t.observation - original.observation.mean(axis=0)) / scale) > 5
        return [
            f"{count:,}", f"{len(lengths):,}", f"{lengths.mean():.1f}",
            f"{t.reward.mean():.3f} ± {t.reward.std():.3f}",
            f"{1e3 * np.mean(t.discount == 0):.2f}",
            f"{step:.3f}", f"{100 * np.mean(outside.any(axis=1)):.2f} %",
        ]  # fmt: skip

    ends = np.asarray(dataset.remaining) == 1
    lengths = np.diff(np.flatnonzero(np.concatenate([[True], ends])))
    names = [
        "transitions", "segments", "mean length", "reward", "terminals per 1,000",
        "step size (std of states)", "states beyond 5 std",
    ]  # fmt: skip
    old = describe(original, lengths, dataset.size)
    new = describe(synthetic, segments, size)
    print()
    print(_main.table(list(zip(names, old, new)), ("", "original", "synthetic")))
    print(f"\nwritten to {directory}/: synthetic.hdf5, summary.png, metrics.csv, config.json")


def _read_part(path: Path) -> tuple[Transition, np.ndarray, int]:
    """Transitions of at most PICTURE_ROWS rows from all over the file, their segments' lengths, and
    the number of all rows. Whole blocks of neighbours are read: single rows would be slow.
    """
    with h5py.File(path, "r") as f:
        size = len(f["rewards"])
        blocks = min(10, -(-size // PICTURE_ROWS))
        count = min(size, PICTURE_ROWS) // blocks
        starts = np.linspace(0, size - count, blocks).astype(int)
        read: dict[str, Any] = {
            name: np.concatenate([f[name][s : s + count] for s in starts]) for name in f
        }
        ends = f["terminals"][:] | f["timeouts"][:]
    transition = Transition(
        read["observations"], read["actions"], read["rewards"],
        1.0 - read["terminals"].astype(np.float32), read["next_observations"],
    )  # fmt: skip
    return transition, np.diff(np.flatnonzero(np.concatenate([[True], ends]))), size


if __name__ == "__main__":
    _main.run(main)
