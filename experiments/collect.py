"""Collects a dataset in the real simulator by D4RL's recipe.

    python -m experiments.collect --env=hopper --level=medium --num_transitions=1000000
    python -m experiments.collect --env=maze2d-umaze --num_transitions=1000000
    python -m experiments.collect --env=Hopper-v5 --policy=FILE.npz
    python -m experiments.collect --env=antmaze-umaze --policy=ant.npz --level=diverse

--env is hopper, halfcheetah, walker2d, maze2d-{umaze,medium,large}[-dense],
antmaze-{umaze,medium,large}, or any Gymnasium id with box spaces. Without --policy robots are
trained with SAC first: `medium` rolls out the policy that came nearest to --medium_score before one
exceeded it, `medium-replay` is all that SAC saw until then, `expert` rolls out the policy after
--train_steps, `medium-expert` is half and half, `random` rolls out the first policy. Levels share
one training.

Writes whole episodes, at least --num_transitions, as a Minari dataset into the local Minari store;
--env=<its id> then names it in all other apps. Run it again to resume. Working files are in
<workdir>/<env>/collect/.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
from absl import flags

from experiments import _main
from tgcvg_jax import config as config_lib
from tgcvg_jax import data, reporting, tasks
from tgcvg_jax.collection import recipes
from tgcvg_jax.collection.policies import read_policy
from tgcvg_jax.data import export, minari
from tgcvg_jax.files import atomic_path
from tgcvg_jax.learners import sac
from tgcvg_jax.ops import scores
from tgcvg_jax.types import Dataset, Task, UserError

FLAGS = flags.FLAGS
LEVELS = [*recipes.SAC_LEVELS, *(x for names in recipes.MAZE_LEVELS.values() for x in names)]
flags.DEFINE_enum("level", None, LEVELS, "What acts, see above. Without it: medium; antmaze: play.")
flags.DEFINE_string("policy", None, "An npz file of a Gaussian MLP policy to roll out (format: "
                    "BUILD.md), in place of SAC's.")  # fmt: skip
flags.DEFINE_integer("num_transitions", 1_000_000, "At least so many, in whole episodes. "
                     "Not for medium-replay.", lower_bound=1)  # fmt: skip
flags.DEFINE_string("id", None, "Minari id of the dataset. Without it: tgcvg/<env>/<level>-v0, or "
                    "generated-v0 for mazes.")  # fmt: skip
flags.DEFINE_string("out", None, "Minari store to write to. Without it: $MINARI_DATASETS_PATH or "
                    "~/.minari/datasets.")  # fmt: skip
flags.DEFINE_integer("train_steps", 3_000_000, "Environment steps of SAC's training, at most; for "
                     "expert, exactly.", lower_bound=1)  # fmt: skip
flags.DEFINE_float("medium_score", 40.0, "Normalised score that makes a policy medium.")
flags.DEFINE_float("medium_return", None, "The same as a return; for environments without "
                   "reference scores.")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """What --set reaches."""

    sac: sac.Config


def main() -> None:
    """Trains if need be, rolls out, writes the Minari dataset."""
    task = environment(FLAGS.env)
    level = check_level(task)
    dataset_id = FLAGS.id or default_id(task, level)
    collector = make_collector(task, level)
    identity = {"level": level, "seed": FLAGS.seed, "num_transitions": FLAGS.num_transitions,
                "environment": task.environment, **collector.identity()}  # fmt: skip
    # Before hours of collecting: is it here already, and can it be written at all?
    if already_written(collector.directory, dataset_id, identity):
        print(f"collected already: use it with --env={dataset_id}")
        return
    destination, _ = export.require_new(dataset_id, FLAGS.out)
    for folder in (collector.directory, destination.parents[dataset_id.count("/")]):
        _main.require_writable(folder)
    start = time.perf_counter()
    dataset = collector.collect(level, FLAGS.num_transitions)
    seconds = time.perf_counter() - start
    print(f"collected: {dataset.size:,} transitions in {reporting.duration(seconds)}")
    describe(dataset)
    acting = {"maze2d": "waypoint controller"}.get(task.domain, "SAC")
    path = export.to_minari(
        dataset, dataset_id, out=FLAGS.out, console=reporting.Console(),
        description=f"{task.name}, {level}: collected by tgcvg_jax, seed {FLAGS.seed}",
        algorithm=f"policy file {Path(FLAGS.policy).name}" if FLAGS.policy else acting,
    )  # fmt: skip
    remember(collector.directory, dataset_id, identity)
    print(f"written to {path}\nuse it with --env={dataset_id}")


def environment(name: str) -> Task:
    """The task to collect in.

    Raises:
      UserError: a dataset's name, or none at all.
    """
    task = data.resolve(name)
    if not task.sources:
        return task
    robot = tasks.robot_of(task.environment)
    like = [t.name for t in tasks.ENVIRONMENTS.values() if tasks.robot_of(t.environment) == robot]
    raise UserError(
        f"--env={name} names a dataset; what is collected here never carries such a name; give an "
        f"environment such as --env={' or '.join([*like[:1], task.environment])}"
    )


def check_level(task: Task) -> str:
    """The level, once --level, --policy and --env are known to fit each other."""
    if FLAGS["policy"].present and not FLAGS.policy:
        raise UserError("--policy is empty; name a file, or leave it out")
    by_sac = not FLAGS.policy and task.domain not in recipes.MAZE_LEVELS
    for flag in ("train_steps", "medium_score", "medium_return", "set"):
        if FLAGS[flag].present and not by_sac:
            raise UserError(f"--{flag} is for SAC, which this does not need; leave it out")
    allowed = recipes.levels(task)
    own_policy = bool(FLAGS.policy) and task.domain not in recipes.MAZE_LEVELS
    if FLAGS.level is not None and (own_policy or FLAGS.level not in allowed):
        takes = "leave out --level or --policy"
        takes = takes if own_policy else f"it takes --level={'|'.join(allowed)}"
        raise UserError(f"--level={FLAGS.level} is not for this ({task.name}); {takes}")
    if task.domain == "antmaze" and not FLAGS.policy:
        raise UserError(f"--env={task.name} needs --policy, a policy that walks in a direction")
    if task.domain == "maze2d" and FLAGS.policy:
        raise UserError(f"--env={task.name} has a waypoint controller; leave --policy out")
    if FLAGS.level == "medium-replay" and FLAGS["num_transitions"].present:
        raise UserError("medium-replay is all that SAC saw; leave --num_transitions out")
    if own_policy:
        return f"policy-{Path(FLAGS.policy).stem}"
    return FLAGS.level or allowed[0]


def default_id(task: Task, level: str) -> str:
    """The Minari id if the user gives none."""
    name = task.name.split("/")[-1].lower()
    if (task.domain == "antmaze" and task.family != "antmaze-umaze") or level == "diverse":
        name = f"{name}-{level}"
    level = re.sub(r"[^\w-]+", "-", level).strip("-")
    return f"tgcvg/{name}/{'generated' if task.domain in tasks.MAZES else level}-v0"


def make_collector(task: Task, level: str) -> recipes.Collector:
    """The flags as a Collector."""
    policy = read_policy(FLAGS.policy, task) if FLAGS.policy else None
    config = config_lib.override(Settings(sac.Config()), FLAGS.set).sac
    medium = FLAGS.medium_return
    if medium is None:
        medium = scores.return_of_score(FLAGS.medium_score, task)
    by_sac = policy is None and task.domain not in recipes.MAZE_LEVELS
    if by_sac and level.startswith("medium") and medium is None:
        raise UserError(f"{task.name} has no reference scores; give --medium_return")
    return recipes.Collector(
        task=task,
        directory=_main.task_dir(task, "collect"),
        seed=FLAGS.seed,
        sac=dataclasses.replace(config, num_steps=FLAGS.train_steps),
        medium_return=medium,
        policy=policy,
        console=reporting.Console(),
    )


WRITTEN = "written.json"  # dataset id -> what it was made from


def already_written(directory: Path, dataset_id: str, identity: dict[str, object]) -> bool:
    """Whether this very dataset is in the store."""
    file = directory / WRITTEN
    if minari.find(dataset_id, FLAGS.out) is None or not file.exists():
        return False
    return json.loads(file.read_text()).get(dataset_id) == json.loads(json.dumps(identity))


def remember(directory: Path, dataset_id: str, identity: dict[str, object]) -> None:
    """Notes what a dataset was made from."""
    file = directory / WRITTEN
    known = json.loads(file.read_text()) if file.exists() else {}
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(known | {dataset_id: identity}, indent=2))


def describe(dataset: Dataset) -> None:
    """One line on what was collected."""
    returns, task = data.episode_returns(dataset), dataset.task
    # A segment of an endless run through a maze has no score.
    score = scores.normalized_score(returns.mean(), task) if task.domain != "maze2d" else None
    terminals = int(np.sum(np.asarray(dataset.transition.discount) == 0))
    print(
        f"{task.name}: {len(returns):,} episodes of {dataset.size / len(returns):.0f} steps, "
        f"return {returns.mean():.1f} ± {returns.std():.1f}"
        + ("" if score is None else f", score {score:.1f}")
        + f", {terminals:,} terminals"
    )


if __name__ == "__main__":
    _main.run(main, without=("preset", "data_dir", "dataset", "after_goal"))
