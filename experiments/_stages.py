"""The stages that several apps run: load the data, train a synthesizer's models."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from absl import flags

from experiments import _main
from tgcvg_jax import config as config_lib
from tgcvg_jax import data, reporting, training
from tgcvg_jax.checkpoint import EXTENDABLE, Checkpointer
from tgcvg_jax.data.dataset import fingerprint
from tgcvg_jax.synthesizers import SYNTHESIZERS
from tgcvg_jax.types import Dataset, Learner, Task

FLAGS = _main.FLAGS


def define_variant() -> None:
    """--variant, for the apps that train or run a synthesizer."""
    flags.DEFINE_enum(
        "variant", "as_released", ["as_released", "as_paper"],
        "Which to follow where a paper and its released code differ.",
        module_name=sys.argv[0],  # a flag of the app, not of this module
    )  # fmt: skip


def synthesizer_config(module: ModuleType, task: Task) -> Any:
    """A synthesizer's config: dataclass, task table, preset, variant, `--set`, in this order."""
    config = module.for_task(task, FLAGS.preset)
    if FLAGS.variant == "as_paper":
        config = module.as_paper(config)
    return config_lib.override(config, FLAGS.set)


def load() -> tuple[Task, Dataset]:
    """The task and dataset of the command line."""
    where = dict(data_dir=FLAGS.data_dir, dataset=FLAGS.dataset)
    task = data.resolve(FLAGS.env, **where)
    dataset = data.load(task, **where, after_goal=FLAGS.after_goal)
    returns = data.episode_returns(dataset)
    print(
        f"{task.name}: {dataset.size:,} transitions, {len(returns):,} episodes, "
        f"return {returns.mean():.1f} ± {returns.std():.1f}"
    )
    return task, dataset


def metadata(kind: str, task: Task, config: Any, dataset: Dataset, seeds: list[int]) -> dict:
    """What a checkpoint says of itself."""
    return {
        "kind": kind,
        "task": config_lib.to_dict(task),
        "config": config_lib.to_dict(config),
        "seeds": seeds,
        "data": fingerprint(dataset),
    }


def open_checkpoints(
    name: str, models: Mapping[str, Learner], task: Task, config: Any, dataset: Dataset
) -> dict[str, Checkpointer]:
    """The checkpoint folders of a synthesizer's models.

    All are opened before anything is trained, so that a folder of another configuration is refused
    at once.

    Args:
      name: of the synthesizer.
      models: its learners, by the field of its config.
      task: the task.
      config: the synthesizer's config.
      dataset: the original data.
    """
    kinds = SYNTHESIZERS[name].MODEL_KINDS
    return {
        model: Checkpointer(
            _main.task_dir(task, name, model),
            metadata(kinds[model], task, getattr(config, model), dataset, [FLAGS.seed]),
            extendable=extendable(learner),
        )
        for model, learner in models.items()
    }


def extendable(learner: Learner) -> tuple[str, ...]:
    """Fields of the config that may change between a run and its continuation."""
    if learner.num_steps is None:
        return EXTENDABLE
    return tuple(name for name in EXTENDABLE if name != "num_steps")


def train_model(
    model: str, learner: Learner, config: Any, dataset: Dataset, checkpointer: Checkpointer
) -> training.FitResult:
    """Trains one model, or picks up where it stopped.

    Args:
      model: its name.
      learner: the model.
      config: the model's config.
      dataset: the original data.
      checkpointer: its folder.
    """
    _main.require_writable(checkpointer.directory)
    validates = learner.validate is not None
    done = checkpointer.latest()
    result = training.fit(
        learner,
        dataset,
        num_steps=None if validates else config.num_steps,
        num_epochs=config.max_epochs if validates else None,
        seeds=[FLAGS.seed],
        checkpointer=checkpointer,
        metrics_path=checkpointer.directory / "metrics.csv",
        console=reporting.Console(),
        label=model,
        hint=_main.slow_hint(),
    )
    report(model, done, result)
    return result


def report(label: str, done: int | None, result: training.FitResult) -> None:
    """The line that ends a training; `done` is the step of the checkpoint that it began from."""
    if done == result.step:
        print(f"{label}: trained already, {done:,} steps")
    else:
        print(
            f"{label}: {result.step:,} steps at {result.steps_per_second:.3g}/s, "
            f"{result.compile_seconds:.0f} s of compilation"
        )
    sys.stdout.flush()  # stderr's progress bars would otherwise overtake it in a log file


def train_one(name: str, model: str) -> None:
    """The whole of an app that trains a single model of a synthesizer."""
    task, dataset = load()
    module = SYNTHESIZERS[name]
    config = synthesizer_config(module, task)
    learner = module.make(task, config).models[model]
    checkpointer = open_checkpoints(name, {model: learner}, task, config, dataset)[model]
    train_model(model, learner, getattr(config, model), dataset, checkpointer)
    print(f"written to {_main.task_dir(task, name, model)}/")
