"""Trains an offline learner on original, or original and synthetic data, and scores it.

    python -m experiments.train_offline --env=walker2d-medium-v2 --synthesizer=none
    python -m experiments.train_offline --env=walker2d-medium-v2 --synthesizer=tgcvg

All seeds train in one program. Scores are of the final policies, never of the best checkpoint, in
the real environment. Fields for --set start with `learner.`, as in --set learner.alpha=1. Run it
again to resume. Writes to <workdir>/<env>/<synthesizer>/<learner>/, or .../<learner>-<name>/ with
--name, by which runs with other settings stand side by side:

    <step>/             Orbax checkpoint of all seeds
    config.json         every setting of the run
    metrics.csv         training metrics and scores on the way
    scores.csv          final score of each seed
    learning_curve.png  score against steps
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from pathlib import Path
from types import ModuleType
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
from tgcvg_jax.synthesizers import SYNTHESIZERS, s4rl
from tgcvg_jax.types import Dataset, Task, UserError

FLAGS = flags.FLAGS
flags.DEFINE_enum("learner", "td3_bc", sorted(LEARNERS), "What to train.")
flags.DEFINE_enum("hyperparameters", "tgcvg", HYPERPARAMETERS, "Whose settings: tgcvg's "
                  "released copies of an older CORL, corl's own with its per-task overrides, or "
                  "gta's.")  # fmt: skip
flags.DEFINE_string("synthesizer", "none", "Whose synthetic data to add: one of "
                    f"{', '.join(sorted(SYNTHESIZERS))}, with the name of its run if it has one "
                    "(tgcvg-k40); none: the original data alone.")  # fmt: skip
flags.DEFINE_string("synthetic", None, "The synthetic file. Without it: <workdir>/<env>/"
                    "<synthesizer>/synthetic.hdf5.")  # fmt: skip
flags.DEFINE_integer("num_synthetic", None, "Only the first so many synthetic transitions. (Their "
                     "share of a batch: --set learner.replay.original_share.)",
                     lower_bound=1)  # fmt: skip
flags.DEFINE_float("state_noise", None, "S4RL on the fly: standard deviation of the noise on the "
                   "states of every batch, in the learner's units (GTA's baseline: 0.0003).",
                   lower_bound=0.0)  # fmt: skip
flags.DEFINE_string("name", None, "Ends the name of the folder, so that this run has one of its "
                    "own, as in --name=bc10.")  # fmt: skip
flags.DEFINE_integer("num_seeds", 5, "Seeds --seed, --seed + 1, ...", lower_bound=1)
flags.DEFINE_integer("num_steps", None, "Gradient steps. Without it: the learner's own, 1,000,000 "
                     "for td3_bc, or 10,000 with --preset=quick.", lower_bound=1)  # fmt: skip
flags.DEFINE_integer("episodes", None, "Evaluation episodes for each seed. Without it: the task's "
                     "own, 10 (mazes 100).", lower_bound=1)  # fmt: skip
flags.DEFINE_integer("num_evaluations", 10, "Evaluations in the course of training, at most; the "
                     "last one is at its end.", lower_bound=1)  # fmt: skip


_stages.define_data()


@dataclasses.dataclass(frozen=True)
class Settings:
    """What --set reaches."""

    learner: Any


def main() -> None:
    """Loads, fuses, trains, scores."""
    label = _main.labelled(FLAGS.learner)
    base = synthesizer_of(FLAGS.synthesizer)
    for name in ("synthetic", "num_synthetic"):
        if FLAGS[name].value is not None and base == "none":
            raise UserError(f"--{name} needs --synthesizer, which names where the data comes from")
    task, dataset = _stages.load()
    module = LEARNERS[FLAGS.learner]
    config = make_config(task, module)
    path = None
    if base != "none":
        dataset, path = fuse(task, dataset)

    learner = module.make(task, config)
    learner.prepare(dataset)  # refuses what it can't learn from before anything is written
    seeds = list(range(FLAGS.seed, FLAGS.seed + FLAGS.num_seeds))
    directory = _main.task_dir(task, FLAGS.synthesizer, label)
    metadata = _stages.metadata(FLAGS.learner, task, config, dataset, seeds)
    if FLAGS.state_noise is not None:
        learner = s4rl.perturb(learner, FLAGS.state_noise)
        metadata["state_noise"] = FLAGS.state_noise
    standard = {"config": _stages.defaults(config)}
    with _stages.advising():
        checkpointer = Checkpointer(directory, metadata, _stages.extendable(learner), standard)
    training.refuse_fewer_steps(checkpointer, config.num_steps)  # before config.json is written
    _main.require_writable(directory)
    settings = {
        "env": task.name,
        "environment": task.environment,
        "learner": FLAGS.learner,
        "hyperparameters": FLAGS.hyperparameters,
        "preset": FLAGS.preset,
        "synthesizer": FLAGS.synthesizer,
        "synthetic": path and str(path),
        "num_synthetic": FLAGS.num_synthetic,
        "state_noise": FLAGS.state_noise,
        **_stages.data_settings(),
    }
    settings |= {name: metadata[name] for name in ("seeds", "data", "config")}
    _main.write_config(directory, settings)
    changed = config_lib.difference(config_lib.to_dict(module.Config()), metadata["config"])
    changed = ", ".join(line.replace(":", "", 1) for line in changed) or "all defaults"
    if FLAGS.state_noise is not None:
        changed += f", state noise {FLAGS.state_noise:g}"
    print(f"{FLAGS.learner}, {FLAGS.hyperparameters} settings: {changed}", flush=True)

    console = reporting.Console()
    episodes = FLAGS.episodes or task.eval_episodes
    last: dict[int, rollout.Evaluation] = {}

    def evaluate(step: int, state: Any) -> rollout.Evaluation:
        last[step] = rollout.evaluate(
            learner.policy, state, task, episodes=episodes, seed=FLAGS.seed
        )
        return last[step]

    def watch(step: int, state: Any) -> dict[str, np.ndarray]:
        evaluation = evaluate(step, state)
        unit, column, values = measured(evaluation)
        spread = f" ± {np.std(values):.1f}" if len(seeds) > 1 else ""
        console.print(f"{label}: step {step:,}, {unit} {np.mean(values):.1f}{spread}")
        return {"return_mean": evaluation.return_mean, column: values}

    def draw(step: int, state: Any) -> None:
        draw_curve(task, last[step], seeds, directory)

    done = checkpointer.latest()
    every = -(-config.num_steps // FLAGS.num_evaluations)
    result = training.fit(
        learner,
        dataset,
        num_steps=config.num_steps,
        seeds=seeds,
        checkpointer=checkpointer,
        metrics_path=directory / "metrics.csv",
        save_every=min(50_000, max(config.num_steps // 4, 1)),
        callbacks=[training.Callback(every, watch), training.Callback(every, draw)],
        console=console,
        label=label,
        hint=_main.slow_hint(),
    )
    _stages.report(label, done, result)
    if result.step not in last:  # trained already, in an earlier run
        evaluate(result.step, result.state)
    report(task, last[result.step], seeds, directory)


def make_config(task: Task, module: ModuleType) -> Any:
    """A learner's config: task table, preset, `--set` and --num_steps, in this order."""
    config = module.for_task(task, FLAGS.hyperparameters)
    config = config_lib.replace_nested(config, module.PRESETS[FLAGS.preset])
    config = config_lib.override(Settings(config), FLAGS.set).learner
    if FLAGS.num_steps is None:
        return config
    set_too = any(a.partition("=")[0].strip() == "learner.num_steps" for a in FLAGS.set)
    if set_too and config.num_steps != FLAGS.num_steps:
        raise UserError(
            f"--num_steps={FLAGS.num_steps} and --set learner.num_steps={config.num_steps} differ; "
            "leave one out"
        )
    return dataclasses.replace(config, num_steps=FLAGS.num_steps)


def synthesizer_of(label: str) -> str:
    """The synthesizer of a run's folder, `<synthesizer>` or `<synthesizer>-<name>`; `none` is one.

    Raises:
      UserError: there is none of that name.
    """
    known = ["none", *SYNTHESIZERS]
    base = label.partition("-")[0]
    if base not in known or not re.fullmatch(r"[A-Za-z0-9._-]+", label):
        close = difflib.get_close_matches(base, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"--synthesizer={label}: {hint}there are {', '.join(known)}, and <one of them>-<name> "
            "for the runs of synthesize --name"
        )
    return base


def fuse(task: Task, dataset: Dataset) -> tuple[Dataset, Path]:
    """The original data with the synthetic file of the command line, and its path."""
    path = _main.task_dir(task, FLAGS.synthesizer, "synthetic.hdf5")
    if FLAGS.synthetic:
        path = Path(FLAGS.synthetic).expanduser()
    if not path.exists():
        base, _, name = FLAGS.synthesizer.partition("-")
        names = ("workdir", "preset", "data_dir", "dataset", "after_goal", "subset")
        given = [f"--{x}={FLAGS[x].value}" for x in names if FLAGS[x].value != FLAGS[x].default]
        given += [f"--mix={text}" for text in FLAGS.mix]
        named = [f"--name={name}"] if name else []
        given = [f"--env={FLAGS.env}", f"--synthesizer={base}", *named, *given]
        raise UserError(
            f"{path}: no synthetic data here; make it with python -m experiments.synthesize "
            f"{shlex.join(given)}, or name it with --synthetic"
        )
    added = synthetic.read(path, task)
    if (count := FLAGS.num_synthetic) is not None:
        if count > added.size:
            raise UserError(f"--num_synthetic={count}: {path} holds {added.size:,} transitions")
        added = data.split(added, count)[0] if count < added.size else added
    fused = data.concatenate([dataset, added])
    share = 100 * added.size / fused.size
    print(f"with {added.size:,} synthetic transitions from {path} ({share:.0f} % of all)")
    return fused, path


def measured(evaluation: rollout.Evaluation) -> tuple[str, str, np.ndarray]:
    """Unit, column of the log, and values [N]: scores, or returns without a reference."""
    if evaluation.normalized_score is None:
        return "return", "return_mean", evaluation.return_mean
    return "normalised score", "normalized_score", evaluation.normalized_score


def draw_curve(
    task: Task, evaluation: rollout.Evaluation, seeds: list[int], directory: Path
) -> None:
    """learning_curve.png, of all evaluations so far."""
    unit, column, _ = measured(evaluation)
    log = reporting.read_curves(directory / "metrics.csv", by_seed=True)
    if column in log:
        original = synthesizer_of(FLAGS.synthesizer) == "none"
        data_name = "original data" if original else f"with {FLAGS.synthesizer}"
        plotting.learning_curve(
            directory / "learning_curve.png",
            {directory.name: log[column]},
            f"{task.name}, {directory.name}, {data_name}",
            f"{unit} (band: ± 1 std of {len(seeds)} seeds)",
        )


def report(task: Task, evaluation: rollout.Evaluation, seeds: list[int], directory: Path) -> None:
    """scores.csv, the learning curve, and the table that closes the run."""
    rollout.write_scores(directory / "scores.csv", evaluation, seeds)
    draw_curve(task, evaluation, seeds, directory)
    score = evaluation.normalized_score
    unit, _, values = measured(evaluation)
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
    print(f"written to {directory}/: scores.csv, metrics.csv, config.json, learning_curve.png")


if __name__ == "__main__":
    _main.run(main)
