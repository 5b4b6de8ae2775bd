"""The tasks: names, dimensions, horizons, reference scores, data sources, the papers' settings.

A pure table (layer 0): nothing here touches the disk, the network or a simulator. Reference scores
are D4RL's (Fu et al. 2020, `infos.py`); normalised score = 100 (R - min) / (max - min).
"""

from __future__ import annotations

from typing import NamedTuple

from tgcvg_jax.types import Source, Task


class TGCVGSettings(NamedTuple):
    """Per-task settings of TGCVG (Table 6) and of its dynamics model (ADMPO's per-task configs).

    Attributes:
      context_length: L, states that the policy sees.
      cql_weight: lambda, weight of the conservative term.
      window_length: K, length of the source window; K + 1 - L transitions are generated from it.
      max_steps: m, the longest jump that the any-step dynamics model is trained on.
      dynamics_hidden_dim: width of its GRU.
    """

    context_length: int = 20
    cql_weight: float = 5.0
    window_length: int = 60
    max_steps: int = 5
    dynamics_hidden_dim: int = 200


TGCVG_SETTINGS = {
    #                                           L   lambda  K  m  hidden
    "halfcheetah-random": TGCVGSettings(max_steps=2),  # ADMPO's; the paper has no random data
    "hopper-random": TGCVGSettings(max_steps=5),
    "walker2d-random": TGCVGSettings(max_steps=2),
    "halfcheetah-medium": TGCVGSettings(5, 0.1, 60, 2, 200),
    "halfcheetah-medium-replay": TGCVGSettings(5, 0.1, 60, 2, 200),
    "halfcheetah-medium-expert": TGCVGSettings(20, 10.0, 60, 2, 400),
    "hopper-medium": TGCVGSettings(20, 2.0, 60, 5, 200),
    "hopper-medium-replay": TGCVGSettings(20, 2.0, 40, 5, 200),
    "hopper-medium-expert": TGCVGSettings(20, 5.0, 60, 2, 200),
    "walker2d-medium": TGCVGSettings(20, 5.0, 40, 5, 200),
    "walker2d-medium-replay": TGCVGSettings(20, 5.0, 40, 5, 200),
    "walker2d-medium-expert": TGCVGSettings(20, 10.0, 40, 3, 200),
    "maze2d-umaze": TGCVGSettings(5, 0.5, 7, 2, 200),
    "maze2d-medium": TGCVGSettings(5, 0.3, 7, 2, 200),
    "maze2d-large": TGCVGSettings(5, 0.4, 7, 2, 200),
    "antmaze-umaze": TGCVGSettings(5, 5.0, 6, 2, 200),
    "antmaze-umaze-diverse": TGCVGSettings(5, 5.0, 7, 2, 200),
    "antmaze-medium-play": TGCVGSettings(5, 3.0, 7, 2, 200),
    "antmaze-medium-diverse": TGCVGSettings(5, 1.0, 7, 2, 200),
    "antmaze-large-play": TGCVGSettings(5, 1.0, 7, 2, 200),
    "antmaze-large-diverse": TGCVGSettings(5, 2.0, 7, 2, 200),
}


class _Domain(NamedTuple):
    environment: str
    observation_dim: int
    action_dim: int
    min_score: float
    max_score: float


LOCOMOTION = {
    "halfcheetah": _Domain("HalfCheetah-v4", 17, 6, -280.178953, 12135.0),
    "hopper": _Domain("Hopper-v4", 11, 3, -20.272305, 3234.3),
    "walker2d": _Domain("Walker2d-v4", 17, 6, 1.629008, 4592.3),
}
LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert")
BUNDLED_LEVEL = "medium"


def _locomotion() -> dict[str, Task]:
    tasks = {}
    for domain, d in LOCOMOTION.items():
        scale = dict(
            environment=d.environment,
            observation_dim=d.observation_dim,
            action_dim=d.action_dim,
            episode_length=1000,
            min_score=d.min_score,
            max_score=d.max_score,
        )
        for level in LEVELS:
            name = f"{domain}-{level}-v2"
            file = f"{domain}_{level.replace('-', '_')}-v2.hdf5"
            source = Source("d4rl", file, f"gym_mujoco_v2/{file}")
            tasks[name] = Task(name=name, family=f"{domain}-{level}", sources=(source,), **scale)
        name = f"{domain}-{BUNDLED_LEVEL}-mini"
        source = Source("bundled", f"{name}.hdf5")
        family = f"{domain}-{BUNDLED_LEVEL}"
        tasks[name] = Task(name=name, family=family, sources=(source,), **scale)
    return tasks


TASKS: dict[str, Task] = _locomotion()


def tgcvg_settings(task: Task) -> TGCVGSettings:
    """The papers' settings for a task, or the defaults where the papers have none."""
    return TGCVG_SETTINGS.get(task.family, TGCVGSettings())
