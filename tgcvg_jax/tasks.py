"""The tasks: names, dimensions, horizons, reference scores, data sources, the papers' settings.

A pure table (layer 0): nothing here touches the disk, the network or a simulator. Reference scores
are D4RL's (Fu et al. 2020, `infos.py`); normalised score = 100 (R - min) / (max - min).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

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


class ADMPOSettings(NamedTuple):
    """Per-task settings of ADMPO's policy, from the released configs.

    Attributes:
      rollout_length: model steps of a rollout; where the code has no config: 1.
      penalty: of the disagreement between predictions.
      real_ratio: share of the dataset in a batch.
      temperature: alpha, held fixed.
      actor_learning_rate: of SAC's actor.
    """

    rollout_length: int = 5
    penalty: float = 1.0
    real_ratio: float = 0.05
    temperature: float = 0.1
    actor_learning_rate: float = 1e-4


ADMPO_SETTINGS = {
    #                                        steps penalty real alpha
    "hopper-random": ADMPOSettings(50, 5.0, 0.05, 1.0),
    "walker2d-random": ADMPOSettings(1, 5.0, 0.05, 0.1),
    "halfcheetah-medium": ADMPOSettings(5, 2.5, 0.05, 0.1),
    "halfcheetah-medium-replay": ADMPOSettings(5, 2.5, 0.05, 0.1, actor_learning_rate=7e-5),
    "halfcheetah-medium-expert": ADMPOSettings(20, 9.16, 0.5, 0.05),
    "hopper-medium": ADMPOSettings(10, 1.0, 0.05, 0.05),
    "hopper-medium-replay": ADMPOSettings(5, 0.1, 0.5, 0.05),
    "hopper-medium-expert": ADMPOSettings(20, 20.0, 0.5, 0.05),
    "walker2d-medium": ADMPOSettings(10, 5.0, 0.05, 0.01),
    "walker2d-medium-replay": ADMPOSettings(5, 0.1, 0.5, 0.1),
    "walker2d-medium-expert": ADMPOSettings(2, 6.0, 0.5, 0.011),
}


class _Robot(NamedTuple):
    name: str
    observation_dim: int
    action_dim: int
    min_score: float
    max_score: float


class _Maze(NamedTuple):
    horizon: int
    sparse: tuple[float, float]
    dense: tuple[float, float]


LOCOMOTION = {
    "halfcheetah": _Robot("HalfCheetah", 17, 6, -280.178953, 12135.0),
    "hopper": _Robot("Hopper", 11, 3, -20.272305, 3234.3),
    "walker2d": _Robot("Walker2d", 17, 6, 1.629008, 4592.3),
}
LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert")
BUNDLED_LEVEL = "medium"
MAZE2D = {
    #              T    reference scores, sparse and dense reward
    "umaze": _Maze(300, (23.85, 161.86), (68.537689, 193.66285642381482)),
    "medium": _Maze(600, (13.13, 277.39), (44.264742, 297.4552547777125)),
    "large": _Maze(800, (6.7, 273.99), (30.569041, 303.4857382709002)),
}
ANTMAZE = {  # part of the file's name that tells the maze, start and goals
    "umaze": "u-maze_noisy_multistart_False_multigoal_False",
    "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
    "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
}
MAZES = ("maze2d", "pointmaze", "antmaze")  # domains with sparse goals
MAZE_EPISODES = 100  # evaluation episodes in mazes; elsewhere 10


def _environments() -> dict[str, Task]:
    """What can be collected in, by short name. Robots are Gymnasium's as they are today."""
    found = {}
    for name, r in LOCOMOTION.items():
        found[name] = Task(
            name=name,
            environment=f"{r.name}-v4",
            observation_dim=r.observation_dim,
            action_dim=r.action_dim,
            episode_length=1000,
            min_score=r.min_score,
            max_score=r.max_score,
            family=name,
        )
    for maze, m in MAZE2D.items():
        for suffix, (low, high) in (("", m.sparse), ("-dense", m.dense)):
            name = f"maze2d-{maze}{suffix}"
            found[name] = Task(
                name=name,
                environment=f"tgcvg/Maze2D-{maze}{suffix}-v1",
                observation_dim=4,
                action_dim=2,
                episode_length=m.horizon,
                min_score=low,
                max_score=high,
                family=name,
                eval_episodes=MAZE_EPISODES,
            )
    for maze in ("umaze", "medium", "large"):
        name = f"antmaze-{maze}"
        found[name] = Task(
            name=name,
            environment=f"tgcvg/AntMaze-{maze}-v2",
            observation_dim=29,
            action_dim=8,
            episode_length=700 if maze == "umaze" else 1000,
            min_score=0.0,
            max_score=1.0,
            family=name,
            eval_episodes=MAZE_EPISODES,
        )
    return found


def _tasks() -> Iterator[Task]:
    for domain, robot in LOCOMOTION.items():
        for level in LEVELS:
            name = f"{domain}-{level}-v2"
            file = f"{domain}_{level.replace('-', '_')}-v2.hdf5"
            yield dataclasses.replace(
                ENVIRONMENTS[domain],
                name=name,
                environment=f"tgcvg/{robot.name}-v2",
                family=f"{domain}-{level}",
                sources=(Source("d4rl", file, f"gym_mujoco_v2/{file}"),),
            )
    for domain in LOCOMOTION:
        name = f"{domain}-{BUNDLED_LEVEL}-mini"
        yield dataclasses.replace(
            ENVIRONMENTS[domain],
            name=name,
            family=f"{domain}-{BUNDLED_LEVEL}",
            sources=(Source("bundled", f"{name}.hdf5"),),
        )
    for maze in MAZE2D:
        for suffix, reward in (("", "sparse"), ("-dense", "dense")):
            file = f"maze2d-{maze}-{reward}-v1.hdf5"
            yield dataclasses.replace(
                ENVIRONMENTS[f"maze2d-{maze}{suffix}"],
                name=f"maze2d-{maze}{suffix}-v1",
                sources=(Source("d4rl", file, f"maze2d/{file}"),),
            )
    for level, described in ANTMAZE.items():
        file = f"Ant_maze_{described}_sparse_fixed.hdf5"
        yield dataclasses.replace(
            ENVIRONMENTS[f"antmaze-{level.split('-')[0]}"],
            name=f"antmaze-{level}-v2",
            family=f"antmaze-{level}",
            sources=(Source("d4rl", file, f"ant_maze_v2/{file}"),),
        )
    yield from _minari_tasks()


def _minari_tasks() -> Iterator[Task]:
    """The published Minari sets of the same environments.

    Their metadata decides once they are on the disk (see `data.minari.make_task`), reference scores
    too; until then this is what is known of them. Dict observations are flattened as
    `gymnasium.spaces.flatten` does: achieved goal, desired goal, observation.
    """

    def task(name: str, environment: str, sizes: tuple[int, int, int], **fields: Any) -> Task:
        source = (Source("minari", name),)
        return Task(name, environment, *sizes, sources=source, family=minari_family(name), **fields)

    for domain, r in LOCOMOTION.items():
        for level in ("simple", "medium", "expert"):
            sizes = (r.observation_dim, r.action_dim, 1000)
            namespace = "tgcvg-minari/" if domain == "hopper" else ""  # see envs/__init__.py
            yield task(f"mujoco/{domain}/{level}-v0", f"{namespace}{r.name}-v5", sizes)
    mazes = {"open": ("Open", 300), "umaze": ("UMaze", 300), "medium": ("Medium", 600),
             "large": ("Large", 800)}  # fmt: skip
    for maze, (name, horizon) in mazes.items():
        for suffix, dense in (("", ""), ("-dense", "Dense")):
            yield task(
                f"D4RL/pointmaze/{maze}{suffix}-v2", f"PointMaze_{name}{dense}-v3",
                (8, 2, horizon), eval_episodes=MAZE_EPISODES,
            )  # fmt: skip
    for level in ANTMAZE:
        name, _ = mazes[level.split("-")[0]]
        yield task(
            f"D4RL/antmaze/{level}-v1", f"AntMaze_{name}-v4",
            (31, 8, 700 if name == "UMaze" else 1000), eval_episodes=MAZE_EPISODES,
        )  # fmt: skip


def robot_of(environment: str) -> str:
    """`Hopper` of `Hopper-v4` and of `tgcvg/Hopper-v2`, which differ in the simulator alone."""
    return re.sub(r"-v\d+$", "", environment).rpartition("/")[2]


def minari_family(dataset_id: str, environment: str = "") -> str:
    """Family of a Minari dataset: `mujoco/hopper/medium-v0` is of `hopper-medium`.

    Sets of our own making are called `<namespace>/<environment>/generated-v0`. Where an id tells
    nothing of a known environment, the family is the environment's.

    Args:
      dataset_id: the id.
      environment: the Gymnasium id that its metadata names.
    """
    words = re.sub(r"-v\d+$", "", dataset_id).split("/")
    family = "-".join(words[-2:]).removesuffix("-generated")
    for known in ENVIRONMENTS.values():
        if robot_of(known.environment) == robot_of(environment):
            return family if family.split("-")[0] == known.domain else known.family
    return family


def paper_family(task: Task) -> str:
    """The family as the papers' tables name it: dense mazes and Minari's are their `maze2d`."""
    return task.family.removesuffix("-dense").replace("pointmaze", "maze2d")


ENVIRONMENTS: dict[str, Task] = _environments()
TASKS: dict[str, Task] = {task.name: task for task in _tasks()}


def tgcvg_settings(task: Task) -> TGCVGSettings:
    """The papers' settings for a task, or the defaults where the papers have none."""
    family = paper_family(task)
    if family in TGCVG_SETTINGS:
        return TGCVG_SETTINGS[family]
    # Mazes have short windows whatever the level: models err at walls.
    like = {"antmaze": "antmaze-umaze-diverse"}.get(task.domain, "maze2d-umaze")
    return TGCVG_SETTINGS[like] if task.domain in MAZES else TGCVGSettings()


def admpo_settings(task: Task) -> ADMPOSettings:
    """ADMPO's settings for a task, or the defaults where it has none, as in mazes."""
    return ADMPO_SETTINGS.get(paper_family(task), ADMPOSettings())
