"""Who acts at each level of a dataset, and the dataset that comes of it.

A new level is a name in `SAC_LEVELS` or `MAZE_LEVELS`, and what acts for it in
`Collector.collect`.
"""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np

from tgcvg_jax import config as config_lib
from tgcvg_jax import data, plotting, reporting
from tgcvg_jax.collection import behaviours, online
from tgcvg_jax.collection.parts import Parts
from tgcvg_jax.collection.policies import MLPPolicy, read_policy
from tgcvg_jax.learners import sac
from tgcvg_jax.types import Dataset, Task, UserError

SAC_LEVELS = ("medium", "medium-replay", "medium-expert", "expert", "random")
MAZE_LEVELS = {"maze2d": ("waypoint",), "antmaze": ("play", "diverse")}  # antmaze: a policy file's


def levels(task: Task) -> tuple[str, ...]:
    """The levels of a task's datasets, the usual one first."""
    return MAZE_LEVELS.get(task.domain, SAC_LEVELS)


@dataclasses.dataclass(frozen=True)
class Collector:
    """All that determines a dataset, and the folder that it is made in.

    Attributes:
      task: where.
      directory: for parts and checkpoints; the levels of a task share one training of SAC in it.
      seed: of everything.
      sac: SAC's settings; unused with a policy.
      medium_return: the return that makes SAC's policy `medium`; None where no level needs it.
      policy: what to roll out in place of SAC.
      console: progress.
    """

    task: Task
    directory: Path
    seed: int = 0
    sac: sac.Config = sac.Config()
    medium_return: float | None = None
    policy: MLPPolicy | None = None
    console: reporting.Console = dataclasses.field(
        default_factory=lambda: reporting.Console(enabled=False)
    )

    def collect(self, level: str, num_transitions: int) -> Dataset:
        """Whole episodes, at least `num_transitions`; of medium-replay all that SAC saw.

        Args:
          level: one of `levels(task)`; with a policy of one's own in other domains than antmaze any
            name for it.
          num_transitions: how many.

        Raises:
          UserError: SAC did not get as far as the level needs.
        """
        if self.task.domain == "maze2d":
            return self._roll_out(level, behaviours.waypoint_behaviour, {}, num_transitions)
        if self.policy is not None:
            behaviour = behaviours.policy_behaviour(self.policy)
            if self.task.domain == "antmaze":
                behaviour = behaviours.antmaze_behaviour(
                    self.policy, diverse=level == "diverse", seed=self.seed
                )
            return self._roll_out(level, behaviour, self.identity(), num_transitions)
        if level == "random":
            behaviour = behaviours.policy_behaviour(
                online.initial_policy(self.task, self.sac, self.seed)
            )
            return self._roll_out(level, behaviour, self._trained(0), num_transitions)
        if level == "medium-expert":
            half = -(-num_transitions // 2)
            return data.concatenate([self.collect(x, half) for x in ("medium", "expert")])

        if self.medium_return is None and level != "expert":
            raise UserError(f"{self.task.name} has no reference scores; say which return is medium")
        run = online.OnlineRun(self.task, self.sac, self.directory / "sac", self.seed)
        until = None if level == "expert" else self.medium_return
        run.train(until_return=until, console=self.console)
        self._draw(run.directory)
        step, policy = run.step, run.directory / "last.npz"
        if level != "expert":
            milestone = run.milestone(self.medium_return)
            if milestone is None:
                raise UserError(
                    f"SAC did not reach a return of {self.medium_return:.1f} in {step:,} steps; "
                    "train it for longer, or call a lower return medium"
                )
            step, policy = milestone.step, milestone.policy
            self.console.print(
                f"medium: return {milestone.mean_return:.1f} after {step:,} steps of SAC (wanted: "
                f"{self.medium_return:.1f})"
            )
        if level == "medium-replay":
            return run.replay.read(self.task, milestone.reached)
        behaviour = behaviours.policy_behaviour(read_policy(policy, self.task))
        return self._roll_out(level, behaviour, self._trained(step), num_transitions)

    def identity(self) -> dict[str, object]:
        """What acts, as JSON-ready values."""
        if self.policy is None:
            return {"sac": config_lib.to_dict(self.sac), "medium_return": self.medium_return}
        check = 0
        for name in sorted(self.policy.arrays):
            check = zlib.crc32(np.ascontiguousarray(self.policy.arrays[name]).data, check)
        return {"policy": f"crc32 {check:08x}"}

    def _trained(self, step: int) -> dict[str, object]:
        return {"sac": config_lib.to_dict(dataclasses.replace(self.sac, num_steps=step))}

    def _roll_out(
        self, level: str, behaviour: behaviours.Behaviour, identity: dict[str, object],
        num_transitions: int,
    ) -> Dataset:  # fmt: skip
        identity = {
            "environment": self.task.environment,
            "level": level,
            "seed": self.seed,
            "part_steps": behaviours.PART_STEPS,
            **identity,
        }
        parts = Parts(self.directory / "rollouts" / level, identity)
        behaviours.collect(
            self.task, behaviour, parts, num_transitions,
            seed=self.seed, level=level, console=self.console,
        )  # fmt: skip
        return data.head(parts.read(self.task), num_transitions)

    def _draw(self, directory: Path) -> None:
        curves = reporting.read_curves(directory / "metrics.csv", by_seed=True)
        if "return" in curves:
            plotting.learning_curve(
                directory / "learning_curve.png", {"sac": curves["return"]},
                f"SAC in {self.task.name}", "return of sampled episodes", "environment steps",
            )  # fmt: skip
