"""Collects a dataset in the real simulator by D4RL's recipe.

    python -m experiments.collect --env=hopper --level=medium --num_transitions=1000000
    python -m experiments.collect --env=maze2d-umaze --num_transitions=1000000
    python -m experiments.collect --env=Hopper-v5 --policy=FILE.npz
    python -m experiments.collect --env=antmaze-umaze --policy=ant.npz --level=diverse

--env is hopper, halfcheetah, walker2d, maze2d-{umaze,medium,large}[-dense],
antmaze-{umaze,medium,large}, or any Gymnasium id with box spaces. Without --policy robots are
trained with SAC first: `medium` rolls out its policy when that first reached --medium_score,
`medium-replay` is all that SAC saw until then, `expert` rolls out the policy after --train_steps,
`medium-expert` is half and half, `random` rolls out the first policy. Levels share one training.

Writes whole episodes, at least --num_transitions, as a Minari dataset into the local Minari store;
--env=<its id> then names it in all other apps. Run it again to resume. Working files are in
<workdir>/collect/<env>/.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import zlib
from pathlib import Path

import numpy as np
from absl import flags

from experiments import _main
from tgcvg_jax import config as config_lib
from tgcvg_jax import data, plotting, reporting, tasks
from tgcvg_jax.collection import behaviours, online
from tgcvg_jax.collection.parts import Parts
from tgcvg_jax.collection.policies import read_policy
from tgcvg_jax.data import export
from tgcvg_jax.learners import sac
from tgcvg_jax.ops import scores
from tgcvg_jax.types import Dataset, Task, UserError

FLAGS = flags.FLAGS
LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert")
ANT_LEVELS = ("play", "diverse")
flags.DEFINE_enum("level", None, [*LEVELS, *ANT_LEVELS], "What acts, see above. Robots without "
                  "--policy: medium; antmaze: play.")  # fmt: skip
flags.DEFINE_string("policy", None, "An npz file of a Gaussian MLP policy to roll out (format: "
                    "BUILD.md), in place of SAC's.")  # fmt: skip
flags.DEFINE_integer("num_transitions", 1_000_000, "At least so many, in whole episodes.",
                     lower_bound=1)  # fmt: skip
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
    export.require_new(dataset_id, FLAGS.out)  # before hours of collecting
    directory = Path(FLAGS.workdir).expanduser() / "collect" / task.name.replace("/", "_")
    collector = Collector(task, directory, level)
    _main.require_writable(directory)
    start = time.perf_counter()
    dataset = collector.collect(level, FLAGS.num_transitions)
    seconds = time.perf_counter() - start
    print(f"collected: {dataset.size:,} transitions in {reporting.duration(seconds)}")
    describe(dataset)
    path = export.to_minari(
        dataset, dataset_id, out=FLAGS.out, console=reporting.Console(),
        description=f"{task.name}, {level}: collected by tgcvg_jax, seed {FLAGS.seed}",
        algorithm=collector.algorithm,
    )  # fmt: skip
    print(f"written to {path}\nuse it with --env={dataset_id}")


def environment(name: str) -> Task:
    """The task to collect in.

    Raises:
      UserError: a dataset's name, or none at all.
    """
    if name in tasks.TASKS:
        domain = tasks.TASKS[name].domain
        raise UserError(
            f"--env={name} names a dataset; what is collected here never carries such a name; give "
            f"an environment such as --env={domain} or {tasks.TASKS[name].environment}"
        )
    return data.resolve(name)


def check_level(task: Task) -> str:
    """The level, after a look at what goes with what."""
    mazes = {"maze2d": (), "antmaze": ANT_LEVELS}
    allowed = mazes.get(task.domain, () if FLAGS.policy else LEVELS)
    if FLAGS.level is not None and FLAGS.level not in allowed:
        known = f"it takes --level={'|'.join(allowed)}" if allowed else "leave it out"
        raise UserError(f"--level={FLAGS.level} is not for this ({task.name}); {known}")
    if task.domain == "antmaze" and not FLAGS.policy:
        raise UserError(f"--env={task.name} needs --policy, a policy that walks in a direction")
    if task.domain == "maze2d" and FLAGS.policy:
        raise UserError(f"--env={task.name} has a waypoint controller; leave --policy out")
    if task.domain == "maze2d":
        return "waypoint"
    if task.domain == "antmaze":
        return FLAGS.level or "play"
    return FLAGS.level or (Path(FLAGS.policy).stem if FLAGS.policy else "medium")


def default_id(task: Task, level: str) -> str:
    """The Minari id if the user gives none."""
    name = task.name.split("/")[-1].lower()
    if (task.domain == "antmaze" and task.family != "antmaze-umaze") or level == "diverse":
        name = f"{name}-{level}"
    return f"tgcvg/{name}/{'generated' if task.domain in tasks.MAZES else level}-v0"


class Collector:
    """What acts in a task, by level.

    Raises:
      UserError: before anything is written, if the flags are not right for it.
    """

    def __init__(self, task: Task, directory: Path, level: str):
        self.task, self.directory = task, directory
        self.algorithm = "waypoint controller"
        if FLAGS.policy:
            self._policy = read_policy(FLAGS.policy, task)
            self.algorithm = f"policy file {Path(FLAGS.policy).name}"
        elif task.domain != "maze2d":
            self.algorithm = "SAC" if level != "random" else "SAC, untrained"
            config = config_lib.override(Settings(sac.Config()), FLAGS.set).sac
            self._config = dataclasses.replace(config, num_steps=FLAGS.train_steps)
            # The medium return is part of the run that all levels share, so all ask for it.
            self._run = online.OnlineRun(
                task, self._config, directory / "sac", FLAGS.seed, medium_return(task)
            )

    def collect(self, level: str, num_transitions: int) -> Dataset:
        """Whole episodes, at least `num_transitions` (medium-replay: as many as there are)."""
        if self.task.domain == "maze2d":
            return self._roll_out(level, behaviours.waypoint_behaviour, {}, num_transitions)
        if FLAGS.policy:
            return self._from_file(level, num_transitions)
        if level == "random":
            policy = self._run.initial_policy()
            behaviour = behaviours.policy_behaviour(policy)
            return self._roll_out(level, behaviour, self._identity(0), num_transitions)
        if level == "medium-expert":
            half = -(-num_transitions // 2)
            return data.concatenate([self.collect(x, half) for x in ("medium", "expert")])
        self._run.train(until_medium=level != "expert", console=reporting.Console())
        self._draw()
        step, file = self._run.step, self.directory / "sac" / "last.npz"
        if level != "expert":
            milestone = self._run.milestone()
            if milestone is None:
                raise UserError(
                    f"SAC did not reach a return of {medium_return(self.task):.1f} in "
                    f"{step:,} steps; raise --train_steps or lower --medium_score"
                )
            step, file = milestone.step, milestone.policy
            print(f"medium: return {milestone.mean_return:.1f} after {step:,} steps of SAC")
        if level == "medium-replay":
            return head(self._run.replay.read(self.task, step), num_transitions)
        behaviour = behaviours.policy_behaviour(read_policy(file, self.task))
        return self._roll_out(level, behaviour, self._identity(step), num_transitions)

    def _identity(self, step: int) -> dict[str, object]:
        return {"sac": config_lib.to_dict(dataclasses.replace(self._config, num_steps=step))}

    def _from_file(self, level: str, num_transitions: int) -> Dataset:
        policy = self._policy
        checksum = functools.reduce(
            lambda check, name: zlib.crc32(policy.arrays[name].tobytes(), check),
            sorted(policy.arrays), 0,
        )  # fmt: skip
        behaviour = behaviours.policy_behaviour(policy)
        if self.task.domain == "antmaze":
            diverse = level == "diverse"
            behaviour = behaviours.antmaze_behaviour(policy, diverse=diverse, seed=FLAGS.seed)
        return self._roll_out(level, behaviour, {"policy": checksum}, num_transitions)

    def _roll_out(
        self, level: str, behaviour: behaviours.Behaviour, identity: dict[str, object],
        num_transitions: int,
    ) -> Dataset:  # fmt: skip
        identity = {"environment": self.task.environment, "level": level, "seed": FLAGS.seed,
                    **identity}  # fmt: skip
        parts = Parts(self.directory / level, identity)
        behaviours.collect(
            self.task, behaviour, parts, num_transitions, FLAGS.seed, reporting.Console()
        )
        return head(parts.read(self.task), num_transitions)

    def _draw(self) -> None:
        directory = self.directory / "sac"
        curves = reporting.read_curves(directory / "metrics.csv", by_seed=True)
        if "return" in curves:
            plotting.learning_curve(
                directory / "learning_curve.png", {"sac": curves["return"]},
                f"SAC in {self.task.name}", "return of sampled episodes", "environment steps",
            )  # fmt: skip


def medium_return(task: Task) -> float:
    """The return that makes a policy medium."""
    if FLAGS.medium_return is not None:
        return FLAGS.medium_return
    if task.min_score is None or task.max_score is None:
        raise UserError(f"{task.name} has no reference scores; give --medium_return")
    return task.min_score + FLAGS.medium_score / 100 * (task.max_score - task.min_score)


def head(dataset: Dataset, num_transitions: int) -> Dataset:
    """The first whole episodes that hold at least `num_transitions`."""
    ends = np.flatnonzero(np.asarray(dataset.remaining) == 1) + 1
    enough = ends[np.searchsorted(ends, min(num_transitions, dataset.size))]
    return data.split(dataset, int(enough))[0] if enough < dataset.size else dataset


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
