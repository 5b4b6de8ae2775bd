"""Commands of the apps, and the two scales at which the papers' experiments are run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from tgcvg_jax import tasks


class Command(NamedTuple):
    """One run of an app.

    Attributes:
      app: its name below `experiments`.
      env: what --env is; empty for an app that takes none.
      flags: the others, but for those that all runs share (--workdir, --preset, ...). {runs} in
        them stands for <workdir>/<env>.
    """

    app: str
    env: str
    flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes:
      preset: of the apps.
      locomotion: tasks of the papers' main tables.
      mazes: tasks of the sparse ones.
      sweep: tasks on which one setting is swept (the papers' choice is not always known to us).
      seeds: of a learner, in TGCVG's tables.
      gta_seeds: in GTA's.
      swept: synthetic transitions in a sweep's runs; None: the preset's.
      windows: K of TGCVG's table 8.
      weights: lambda.
      amounts: synthetic transitions.
      fractions: of the original data, by whole episodes.
      horizons: H of GTA's windows; H + 1 must be divisible by 8.
      short: training steps of GTA in TGCVG's comparison of times.
      expert: a --mix that adds expert episodes to a medium task of {robot}; None: there are none,
        and the best episodes of the data itself stand for them.
      quality: flags of experiments.quality.
    """

    preset: str
    locomotion: tuple[str, ...]
    mazes: tuple[str, ...]
    sweep: tuple[str, ...]
    seeds: int
    gta_seeds: int
    swept: int | None
    windows: tuple[int, ...]
    weights: tuple[float, ...]
    amounts: tuple[int, ...]
    fractions: tuple[float, ...]
    horizons: tuple[int, ...]
    short: int
    expert: str | None
    quality: tuple[str, ...] = ()

    @property
    def lower(self) -> tuple[str, ...]:
        """Tasks of the main tables whose data holds no expert's."""
        return tuple(name for name in self.locomotion if "expert" not in name)


ROBOTS = ("halfcheetah", "hopper", "walker2d")
LEVELS = ("medium", "medium-replay", "medium-expert")
SCALES = {
    "paper": Scale(
        preset="paper",
        locomotion=tuple(f"{robot}-{level}-v2" for robot in ROBOTS for level in LEVELS),
        mazes=tuple(
            name
            for name, task in tasks.TASKS.items()
            if task.domain in tasks.MAZES and name.startswith(tasks.MAZES) and "dense" not in name
        ),
        sweep=("halfcheetah-medium-v2", "hopper-medium-v2", "walker2d-medium-v2"),
        seeds=5,
        gta_seeds=8,
        swept=None,
        windows=(25, 40, 60, 80, 100),
        weights=(0.1, 0.5, 1.0, 2.0, 5.0, 10.0),
        amounts=(10_000, 100_000, 500_000, 1_000_000, 2_000_000, 5_000_000),
        fractions=(0.01, 0.1),
        horizons=(15, 31, 63, 127),
        short=200_000,
        expert="{robot}-expert-v2:0.1",
    ),
    "quick": Scale(
        preset="quick",
        locomotion=tuple(f"{robot}-medium-mini" for robot in ROBOTS),
        mazes=("hopper-medium-mini",),  # no maze is bundled: the same program on what there is
        sweep=("hopper-medium-mini",),
        seeds=2,
        gta_seeds=2,
        swept=10_000,
        windows=(10, 15, 20, 25),
        weights=(0.1, 2.0, 10.0),
        amounts=(1_000, 5_000, 20_000, 50_000),
        fractions=(0.1, 0.5),
        horizons=(15, 31),
        short=1_000,
        expert=None,
        quality=("--num_transitions=5000", "--num_segments=50", "--novelty_rows=2000"),
    ),
}


def synthesize(
    env: str,
    synthesizer: str,
    *flags: str,
    name: str | None = None,
    models: Iterable[str] = (),
    count: int | None = None,
) -> Command:
    """Training a synthesizer's models and generating.

    Args:
      env: the task.
      synthesizer: its name.
      *flags: more flags.
      name: of the run.
      models: values of --models_from.
      count: transitions; None: the preset's.
    """
    given = [f"--synthesizer={synthesizer}"]
    given += [f"--name={name}"] if name else []
    given += [f"--models_from={label}" for label in models]
    given += [f"--num_transitions={count}"] if count else []
    return Command("synthesize", env, (*given, *flags))


def train(
    env: str, label: str, learner: str, seeds: int, *flags: str, name: str | None = None
) -> Command:
    """Training a learner, with the data of a label."""
    given = [f"--synthesizer={label}", f"--learner={learner}", f"--num_seeds={seeds}"]
    given += [f"--name={name}"] if name else []
    return Command("train_offline", env, (*given, *flags))


def quality(env: str, label: str, scale: Scale, *flags: str) -> Command:
    """Measuring the data of a label."""
    return Command("quality", env, (f"--synthesizer={label}", *scale.quality, *flags))


def evaluate(env: str, *parts: str) -> Command:
    """Scoring the model in a folder below <workdir>/<env>."""
    return Command("evaluate", env, (f"--checkpoint={{runs}}/{'/'.join(parts)}",))
