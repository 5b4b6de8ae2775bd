"""What acts while a dataset is collected, and the loop that collects."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np

from tgcvg_jax import envs, reporting
from tgcvg_jax.collection.parts import Episode, EpisodeBuilder, Parts
from tgcvg_jax.collection.policies import MLPPolicy
from tgcvg_jax.envs import antmaze, maze2d
from tgcvg_jax.types import Task

ANT_NOISE = 0.2
PART_STEPS = 5_000  # environment steps in a part, to the end of the last episode


def run_episode(
    env: gymnasium.Env,
    act: Callable[[np.ndarray], np.ndarray],
    seed: int,
    options: dict[str, Any] | None = None,
) -> Episode:
    """One episode from a seeded reset."""
    observation, _ = env.reset(seed=seed, options=options)
    episode = EpisodeBuilder(observation)
    while True:
        action = np.asarray(act(observation), np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        episode.add(action, reward, observation)
        if terminated or truncated:
            return episode.finish(bool(terminated))


# A source of episodes without end, for one part: (environment, generator of that part).
Behaviour = Callable[[gymnasium.Env, np.random.Generator], Iterator[Episode]]


def policy_behaviour(policy: MLPPolicy) -> Behaviour:
    """Whole episodes of a policy, its actions sampled."""

    def episodes(env: gymnasium.Env, rng: np.random.Generator) -> Iterator[Episode]:
        while True:
            yield run_episode(env, lambda x: policy.act(x, rng), int(rng.integers(2**31)))

    return episodes


def uniform_behaviour(env: gymnasium.Env, rng: np.random.Generator) -> Iterator[Episode]:
    """Uniformly random actions."""
    shape = env.action_space.shape
    while True:
        yield run_episode(env, lambda x: rng.uniform(-1, 1, shape), int(rng.integers(2**31)))


def waypoint_behaviour(env: gymnasium.Env, rng: np.random.Generator) -> Iterator[Episode]:
    """D4RL's Maze2D collector: an endless run from one random target to the next.

    A segment ends when the ball is at its target, or after the task's horizon, and the next one
    goes on from there: no reset, and no terminal. Rewards are the environment's, for the state
    that a step leads to (D4RL's files pay for the state that it leaves).
    """
    maze, horizon = env.unwrapped, env.spec.max_episode_steps
    controller = maze2d.WaypointController(maze.grid, rng)
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    while True:
        controller.start(observation, controller.random_target())
        segment, reached = EpisodeBuilder(observation), False
        while not reached and len(segment.actions) < horizon:
            action, reached = controller.act(observation)
            observation, reward, *_ = maze.step(action)
            segment.add(action, reward, observation)
        yield segment.finish(terminated=False)


def antmaze_behaviour(policy: MLPPolicy, *, diverse: bool, seed: int) -> Behaviour:
    """A policy that walks in a given direction, sent through the maze as D4RL's collector does.

    Each episode walks to a random goal; rewards are for one goal of the evaluation's, the same in
    all episodes (it is drawn by `seed`), and an episode ends when it is reached. D4RL's files go on
    after that; TGCVG cuts them there. Noise of standard deviation 0.2 is added to the actions.

    Args:
      policy: acts on `antmaze.Navigator`'s input [29].
      diverse: starts and goals anywhere; else goals among D4RL's collection goals, and in the
        U-maze from its start alone.
      seed: of the rewarded goal.
    """

    def episodes(env: gymnasium.Env, rng: np.random.Generator) -> Iterator[Episode]:
        maze = env.unwrapped
        # A stream of its own: reset(seed) would give a goal, and a start, of the evaluation.
        rewarded = maze.evaluation_goal(np.random.default_rng([seed, zlib.crc32(b"goal")]))
        navigator = antmaze.Navigator(maze.grid, rng)
        while True:
            options = {"goal": rewarded}
            if diverse or maze.maze != "umaze":
                options["start"] = maze.collection_start(rng)
            goal = maze.random_goal(rng) if diverse else maze.collection_goal(rng)

            def act(observation: np.ndarray, goal: np.ndarray = goal) -> np.ndarray:
                action = policy.act(navigator(observation, goal), rng)
                return np.clip(action + ANT_NOISE * rng.standard_normal(action.shape), -1, 1)

            yield run_episode(env, act, int(rng.integers(2**31)), options)

    return episodes


def collect(
    task: Task,
    behaviour: Behaviour,
    parts: Parts,
    num_transitions: int,
    *,
    seed: int,
    level: str = "",
    console: reporting.Console | None = None,
) -> None:
    """Collects whole parts until there are at least `num_transitions`.

    Args:
      task: names the environment and the time limit.
      behaviour: what acts.
      parts: where to, going on where it stands.
      num_transitions: at least so many.
      seed: part i draws from a generator of its own, of (seed, level, i).
      level: so that the levels of one task do not share their draws.
      console: progress.
    """
    console = console or reporting.Console(enabled=False)
    if parts.size >= num_transitions:
        return
    env = envs.make(task)
    try:
        with reporting.progress(console, "collecting", num_transitions, parts.size) as advance:
            while parts.size < num_transitions:
                stream = [seed, zlib.crc32(level.encode()), len(parts.rows)]
                source = behaviour(env, np.random.default_rng(stream))
                episodes, rows = [], 0
                while rows < PART_STEPS:
                    episodes.append(next(source))
                    rows += len(episodes[-1].actions)
                    advance(len(episodes[-1].actions))
                parts.add(episodes)
    finally:
        env.close()
