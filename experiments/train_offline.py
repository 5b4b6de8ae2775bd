"""Trains an offline learner on original, or original and synthetic data, and scores it.

    python -m experiments.train_offline --env=walker2d-medium-v2 --synthesizer=none
    python -m experiments.train_offline --env=walker2d-medium-v2 --synthesizer=tgcvg

All seeds train in one program. Scores are of the final policies, never of the best checkpoint, in
the real environment. Fields for --set start with `learner.`, as in --set learner.alpha=1. Run it
again to resume. Writes to <workdir>/<env>/<synthesizer>/<learner>/:

    <step>/             Orbax checkpoint of all seeds
    metrics.csv         training metrics and scores on the way
    scores.csv          final score of each seed
    learning_curve.png  score against steps
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import _main, _stages
from tgcvg_jax import config as config_lib
from tgcvg_jax import data, plotting, reporting, training
from tgcvg_jax.checkpoint import Checkpointer
from tgcvg_jax.data import synthetic
from tgcvg_jax.evaluation import rollout
from tgcvg_jax.learners import HYPERPARAMETERS, LEARNERS
from tgcvg_jax.ops import scores
from tgcvg_jax.synthesizers import SYNTHESIZERS
from tgcvg_jax.types import Dataset, Task, UserError

FLAGS = flags.FLAGS
flags.DEFINE_enum("learner", "td3_bc", sorted(LEARNERS), "What to train.")
flags.DEFINE_enum("hyperparameters", "tgcvg", HYPERPARAMETERS, "Whose settings: tgcvg's "
                  "released copies of an older CORL, corl's own with its per-task overrides, or "
                  "gta's.")  # fmt: skip
flags.DEFINE_enum("synthesizer", "none", ["none", *sorted(SYNTHESIZERS)],
                  "Whose synthetic data to add; none: the original data alone.")  # fmt: skip
flags.DEFINE_string("synthetic", None, "The synthetic file. Without it: <workdir>/<env>/"
                    "<synthesizer>/synthetic.hdf5.")  # fmt: skip
flags.DEFINE_integer("num_seeds", 5, "Seeds --seed, --seed + 1, ...", lower_bound=1)
flags.DEFINE_integer("num_steps", None, "Gradient steps. Without it: the learner's own, 1,000,000 "
                     "for td3_bc, or 10,000 with --preset=quick.", lower_bound=1)  # fmt: skip
flags.DEFINE_integer("episodes", None, "Evaluation episodes for each seed. Without it: the task's "
                     "own, 10 (mazes 100).", lower_bound=1)  # fmt: skip
flags.DEFINE_integer("num_evaluations", 10, "Evaluations in the course of training, the last one "
                     "at its end.", lower_bound=1)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """What --set reaches."""

    learner: Any


def main() -> None:
    """Loads, fuses, trains, scores."""
    if FLAGS.synthetic and FLAGS.synthesizer == "none":
        raise UserError("--synthetic needs --synthesizer, which names where the data comes from")
    task, dataset = _stages.load()
    module = LEARNERS[FLAGS.learner]
    config = module.for_task(task, FLAGS.hyperparameters)
    config = config_lib.replace_nested(config, module.PRESETS[FLAGS.preset])
    config = config_lib.override(Settings(config), FLAGS.set).learner
    if FLAGS.num_steps is not None:
        config = dataclasses.replace(config, num_steps=FLAGS.num_steps)
    if FLAGS.synthesizer != "none":
        dataset = fuse(task, dataset)

    learner = module.make(task, config)
    seeds = list(range(FLAGS.seed, FLAGS.seed + FLAGS.num_seeds))
    directory = _main.task_dir(task, FLAGS.synthesizer, FLAGS.learner)
    checkpointer = Checkpointer(
        directory,
        _stages.metadata(FLAGS.learner, task, config, dataset, seeds),
        extendable=_stages.extendable(module),
    )
    episodes = FLAGS.episodes or task.eval_episodes
    last: dict[int, rollout.Evaluation] = {}

    def evaluate(step: int, state: Any) -> dict[str, np.ndarray]:
        last[step] = rollout.evaluate(
            learner.policy, state, task, episodes=episodes, seed=FLAGS.seed
        )
        score = last[step].normalized_score
        metrics = {"return_mean": last[step].return_mean}
        return metrics if score is None else metrics | {"normalized_score": score}

    _main.require_writable(directory)
    done = checkpointer.latest()
    every = max(config.num_steps // FLAGS.num_evaluations, 1)
    result = training.fit(
        learner,
        dataset,
        num_steps=config.num_steps,
        seeds=seeds,
        checkpointer=checkpointer,
        metrics_path=directory / "metrics.csv",
        save_every=min(50_000, max(config.num_steps // 4, 1)),
        callbacks=[training.Callback(every, evaluate)],
        console=reporting.Console(),
        label=FLAGS.learner,
        hint=_main.slow_hint(),
    )
    _stages.report(FLAGS.learner, done, result)
    if result.step not in last:  # trained already, in an earlier run
        evaluate(result.step, result.state)
    report(task, last[result.step], seeds, directory)


def fuse(task: Task, dataset: Dataset) -> Dataset:
    """The original data and the synthetic file of the command line."""
    path = _main.task_dir(task, FLAGS.synthesizer, "synthetic.hdf5")
    if FLAGS.synthetic:
        path = Path(FLAGS.synthetic).expanduser()
    if not path.exists():
        raise UserError(
            f"{path}: no synthetic data here; make it with python -m experiments.synthesize "
            f"--env={FLAGS.env} --synthesizer={FLAGS.synthesizer}, or name it with --synthetic"
        )
    added = synthetic.read(path, task)
    fused = data.concatenate([dataset, added])
    share = 100 * added.size / fused.size
    print(f"with {added.size:,} synthetic transitions from {path} ({share:.0f} % of all)")
    return fused


def report(task: Task, evaluation: rollout.Evaluation, seeds: list[int], directory: Path) -> None:
    """scores.csv, the learning curve, and the table that closes the run."""
    rollout.write_scores(directory / "scores.csv", evaluation, seeds)
    score = evaluation.normalized_score
    unit, values = ("return", evaluation.return_mean)
    if score is not None:
        unit, values = ("normalised score", score)
    log = reporting.read_curves(directory / "metrics.csv", by_seed=True)
    name = "return_mean" if score is None else "normalized_score"
    if name in log:
        data_name = "original data" if FLAGS.synthesizer == "none" else f"with {FLAGS.synthesizer}"
        title = f"{task.name}, {FLAGS.learner}, {data_name}"
        plotting.learning_curve(
            directory / "learning_curve.png",
            {FLAGS.learner: log[name]},
            title,
            f"{unit} (band: ± 1 std of {len(seeds)} seeds)",
        )
    rows = [
        (str(seed), f"{r:.1f}", f"{s:.1f}", f"{v:.1f}" if score is not None else "-")
        for seed, r, s, v in zip(seeds, evaluation.return_mean, evaluation.return_std, values)
    ]
    print()
    print(_main.table(rows, ("seed", "return", "± episodes", "score")))
    summary = scores.summarize(values)
    spread = "of one seed"
    if len(seeds) > 1:
        spread = f"± {summary.std:.1f} over {len(seeds)} seeds, 95 % interval "
        spread += f"[{summary.low:.1f}, {summary.high:.1f}]"
    episodes = evaluation.returns.shape[1]
    print(f"\n{unit}: {summary.mean:.1f} {spread}, {episodes} episodes each")
    print(f"written to {directory}/: scores.csv, metrics.csv, learning_curve.png")


if __name__ == "__main__":
    _main.run(main)
