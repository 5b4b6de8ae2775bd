"""The stages that several apps run: load the data, train a synthesizer's models."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _main
from tgcvg_jax import config as config_lib
from tgcvg_jax import data, reporting, training
from tgcvg_jax.checkpoint import ACTING, EXTENDABLE, Checkpointer, read_metadata
from tgcvg_jax.data import subsets
from tgcvg_jax.data.dataset import fingerprint
from tgcvg_jax.synthesizers import SYNTHESIZERS
from tgcvg_jax.types import Dataset, Learner, Model, PyTree, Task, UserError

FLAGS = _main.FLAGS
OTHER_FOLDER = "another --name or --workdir"


def define_variant() -> None:
    """--variant and --name, for the apps that train or run a synthesizer."""
    app = sys.argv[0]  # flags of the app, not of this module
    flags.DEFINE_enum(
        "variant", "as_released", ["as_released", "as_paper"],
        "Which to follow where a paper and its released code differ.", module_name=app,
    )  # fmt: skip
    flags.DEFINE_string(
        "name", None, "Ends the name of the folder, <synthesizer>-<name>, so that this run has one "
        "of its own, as in --name=k40.", module_name=app,
    )  # fmt: skip


def define_data() -> None:
    """--subset and --mix, for the apps that train on the dataset."""
    app = sys.argv[0]
    flags.DEFINE_string(
        "subset", "all", "Part of the data by whole episodes: all; random:0.1, a tenth of the "
        "transitions (random:0.1:3 with another seed than 0 of the choice); or top:0.1, the "
        "episodes of highest return.", module_name=app,
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "mix", [], "ENV:FRACTION adds data of the same simulator, as in "
        "--mix=hopper-expert-v2:0.1, a random tenth of it by whole episodes; repeatable. --subset "
        "does not cut it.", module_name=app,
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
    if "subset" in FLAGS:
        dataset = subsets.take(dataset, FLAGS.subset)
        for text in FLAGS.mix:
            dataset = subsets.mix(dataset, _load_mixed(text))
    returns = data.episode_returns(dataset)
    print(
        f"{task.name}: {dataset.size:,} transitions, {len(returns):,} episodes, "
        f"return {returns.mean():.1f} ± {returns.std():.1f}{_chosen()}"
    )
    return task, dataset


def _load_mixed(text: str) -> Dataset:
    """What a --mix adds."""
    name, separator, fraction = text.rpartition(":")
    if not separator:
        raise UserError(f"--mix={text}: write ENV:FRACTION, as in --mix=hopper-expert-v2:0.1")
    added = data.load(name, data_dir=FLAGS.data_dir, after_goal=FLAGS.after_goal)
    return subsets.take(added, f"random:{fraction}")


def _chosen() -> str:
    """The choice of data in words, if there is one."""
    settings = data_settings()
    words = [f"subset {settings['subset']}"] if settings.get("subset", "all") != "all" else []
    words += [f"with {text}" for text in settings.get("mix", [])]
    return f" ({', '.join(words)})" if words else ""


def data_settings() -> dict[str, Any]:
    """What config.json says of the choice of data."""
    return {name: FLAGS[name].value for name in ("subset", "mix") if name in FLAGS}


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
    name: str,
    models: Mapping[str, Model],
    task: Task,
    config: Any,
    dataset: Dataset,
    reused: Mapping[str, str] | None = None,
) -> dict[str, Checkpointer]:
    """The checkpoint folders of a synthesizer's models.

    All are opened before anything is trained, so that a folder of another configuration is refused
    at once. Of a model that learns from those before it, theirs count too.

    Args:
      name: of the synthesizer.
      models: its learners, by the field of its config.
      task: the task.
      config: the synthesizer's config.
      dataset: the original data.
      reused: model -> label of the run whose model is taken as it is, see `models_from`.

    Raises:
      UserError: a folder holds another configuration, or a model to be reused is not there.
    """
    kinds = SYNTHESIZERS[name].MODEL_KINDS
    reused = reused or {}
    opened: dict[str, Checkpointer] = {}
    for model, learner in models.items():
        own = getattr(config, model)
        about = metadata(kinds[model], task, own, dataset, [FLAGS.seed])
        standard = {"config": defaults(own)}
        if not isinstance(learner, Learner):
            before = {m: getattr(config, m) for m in opened if hasattr(config, m)}
            about["models"] = {m: config_lib.to_dict(c) for m, c in before.items()}
            standard["models"] = {m: defaults(c) for m, c in before.items()}
        folder = _main.task_dir(task, reused.get(model) or _main.labelled(name), model)
        if model in reused and read_metadata(folder, missing_ok=True) is None:
            raise UserError(f"--models_from: {folder} holds no trained model; train it first")
        changeable = ACTING if model in reused else extendable(learner)
        remedy = "the same settings, or another --models_from" if model in reused else OTHER_FOLDER
        with advising(remedy):
            opened[model] = Checkpointer(folder, about, changeable, standard)
    return opened


@contextmanager
def advising(remedy: str = OTHER_FOLDER) -> Iterator[None]:
    """Where an error in the block advises another --workdir, it advises this instead."""
    try:
        yield
    except UserError as e:
        message = str(e).replace("another --workdir", remedy)
        if remedy != OTHER_FOLDER:  # the folder is another run's
            message = message.replace(" or delete that folder", "")
        raise UserError(message) from e


def models_from(
    texts: Iterable[str],
    models: Iterable[str],
    has: Callable[[str, str], bool] = lambda model, label: True,
) -> dict[str, str]:
    """What --models_from means: model -> label.

    Args:
      texts: LABEL for all models that it has, or MODEL:LABEL for one.
      models: names of the synthesizer's models.
      has: (model, label) -> whether the model has been trained there.

    Raises:
      UserError: no such model, or a label without any.
    """
    labels = {}
    for text in texts:
        model, _, label = text.rpartition(":")
        if model and model not in models:
            known = ", ".join(models) or "none"
            raise UserError(f"--models_from={text}: no model {model!r}; there are {known}")
        found = [model] if model else [name for name in models if has(name, label)]
        if models and not found:
            raise UserError(f"--models_from={text}: no model has been trained there")
        labels |= dict.fromkeys(found, label)
    return labels


def is_trained(task: Task, model: str, label: str) -> bool:
    """Whether a run of the task has a checkpoint of this model."""
    return read_metadata(_main.task_dir(task, label, model), missing_ok=True) is not None


def defaults(config: Any) -> dict[str, Any]:
    """The default of each field of a config: what an older checkpoint without it was made with."""
    return config_lib.to_dict(type(config)())


def extendable(learner: Model) -> tuple[str, ...]:
    """Fields of the config that may change between a run and its continuation."""
    if isinstance(learner, Learner) and learner.num_steps is None:
        return EXTENDABLE
    # Of a model that is made later, nothing is known yet; it may have such a learning rate.
    return tuple(name for name in EXTENDABLE if name != "num_steps")


def train_models(
    models: Mapping[str, Model],
    config: Any,
    dataset: Dataset,
    checkpointers: Mapping[str, Checkpointer],
) -> dict[str, PyTree]:
    """Trains models one after another, or picks up where they stopped.

    Args:
      models: by the field of the config. Those that learn from others come after them.
      config: the synthesizer's config.
      dataset: the original data.
      checkpointers: their folders.

    Returns:
      Their states, one seed.
    """
    states: dict[str, PyTree] = {}
    for model, learner in models.items():
        if not isinstance(learner, Learner):
            learner = learner(states)
        checkpointer = checkpointers[model]
        result = train_model(model, learner, getattr(config, model), dataset, checkpointer)
        states[model] = training.select_seed(result.state, 0)
    return states


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


def checksum(state: PyTree) -> str:
    """Tells two trained models apart, also those that differ in their data alone.

    Args:
      state: of one seed; of one with `params`, these alone count.
    """
    crc = 0
    for leaf in jax.tree.leaves(getattr(state, "params", state)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
    return f"crc32 {crc:08x}"


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
    """The whole of an app that trains a single model of a synthesizer.

    Of a model that learns from those before it, they are trained too.
    """
    task, dataset = load()
    module = SYNTHESIZERS[name]
    config = synthesizer_config(module, task)
    models = module.make(task, config).models
    if isinstance(models[model], Learner):
        models = {model: models[model]}
    else:
        names = list(models)
        models = {m: models[m] for m in names[: names.index(model) + 1]}
    checkpointers = open_checkpoints(name, models, task, config, dataset)
    train_models(models, config, dataset, checkpointers)
    print(f"written to {_main.task_dir(task, _main.labelled(name), model)}/")
