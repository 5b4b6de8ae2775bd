"""SAC in the simulator: the policies of D4RL's levels, and all that SAC saw on the way.

Simulator and learner take turns: `block_steps` environment steps on the host, then as many updates
in one call of the chunk that `training.fit` runs too. At the end of the first episode after every
multiple of SAVE_STEPS the episodes go to the disk, then a checkpoint, so a run that was killed goes
on from there and ends in the same bits. (One that had ended and is made to go on has one row more
in its metrics, where it had ended.)
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax import config as config_lib
from tgcvg_jax import envs, reporting, training
from tgcvg_jax.checkpoint import Checkpointer
from tgcvg_jax.collection.behaviours import run_episode
from tgcvg_jax.collection.parts import Episode, EpisodeBuilder, Parts
from tgcvg_jax.collection.policies import MLPPolicy, write_policy
from tgcvg_jax.data import windows
from tgcvg_jax.data.dataset import episode_returns
from tgcvg_jax.files import atomic_path
from tgcvg_jax.learners import sac
from tgcvg_jax.types import Dataset, PyTree, Task

SAVE_STEPS = 10_000
EVAL_EPISODES = 5


class Milestone(NamedTuple):
    """Where the sampled policy first reached the medium return.

    Attributes:
      step: environment steps done.
      mean_return: of EVAL_EPISODES episodes.
      policy: its file.
    """

    step: int
    mean_return: float
    policy: Path


class OnlineRun:
    """One training of SAC, in a folder.

    It holds `replay/` (all episodes in order), Orbax checkpoints, `metrics.csv`, and policies:
    `last.npz`, and `medium.npz` with `medium.json`, the first of at least the medium return.

    Args:
      task: names the environment.
      config: SAC's; `num_steps` may grow from run to run.
      directory: of the run.
      seed: of everything.
      medium_return: the return that makes a policy `medium`.

    Raises:
      UserError: the folder holds another run.
    """

    def __init__(
        self, task: Task, config: sac.Config, directory: Path, seed: int, medium_return: float
    ):
        self.task, self.config, self.directory, self.seed = task, config, directory, seed
        self._medium_return = medium_return
        identity = {
            "kind": "sac",
            "task": config_lib.to_dict(task),
            "config": config_lib.to_dict(config),
            "seed": seed,
            "medium_return": medium_return,
        }
        self._checkpointer = Checkpointer(directory, identity)
        self.replay = Parts(directory / "replay", {"run": "sac"})
        self._learner = sac.make(task, config)

    @property
    def step(self) -> int:
        """Environment steps that are safe on disk."""
        return self._checkpointer.latest() or 0

    def milestone(self) -> Milestone | None:
        """The medium policy, once there is one."""
        file = self.directory / "medium.json"
        if not file.exists():
            return None
        found = json.loads(file.read_text())
        if found["step"] > self.step:  # of a save that was cut short, and will come again
            return None
        return Milestone(found["step"], found["mean_return"], self.directory / "medium.npz")

    def train(self, *, until_medium: bool, console: reporting.Console | None = None) -> None:
        """Trains for `config.num_steps` environment steps, to the end of the last episode.

        Args:
          until_medium: whether to stop at the medium policy.
          console: progress.
        """
        console = console or reporting.Console(enabled=False)
        saved = self.step
        if saved >= self.config.num_steps or (until_medium and self.milestone()):
            return
        log = reporting.MetricsLog(self.directory / "metrics.csv", resume_step=saved)
        self.replay.truncate(saved)
        trainer = _Trainer(self._learner, self.task, self.config, self.seed)
        if saved:
            trainer.restore(self._checkpointer, self.replay.read(self.task))
        env, test_env = envs.make(self.task), envs.make(self.task)
        unsaved: list[Episode] = []
        try:
            with reporting.progress(console, "sac", self.config.num_steps, saved) as advance:
                while saved < self.config.num_steps:
                    unsaved.append(trainer.play(env))
                    advance(len(unsaved[-1].actions))
                    boundary = (saved // SAVE_STEPS + 1) * SAVE_STEPS
                    if trainer.step < min(boundary, self.config.num_steps):
                        continue
                    saved = trainer.step
                    policy = to_mlp_policy(trainer.state, self.config)
                    mean_return = _evaluate(test_env, policy, self.seed, saved)
                    log.write(
                        saved,
                        {"return": np.array([mean_return]), **trainer.take_metrics()},
                        [self.seed],
                    )
                    console.print(f"sac: {saved:,} steps, return {mean_return:.1f}")
                    self._save(trainer, policy, mean_return, unsaved)
                    log.flush()
                    unsaved = []
                    if until_medium and self.milestone():
                        break
        finally:
            env.close()
            test_env.close()

    def _save(
        self, trainer: _Trainer, policy: MLPPolicy, mean_return: float, episodes: list[Episode]
    ) -> None:
        """Episodes and policies first: what is newer than the checkpoint is ignored."""
        self.replay.add(episodes)
        meta = {"environment": self.task.environment, "mean_return": mean_return}
        write_policy(self.directory / "last.npz", policy, step=trainer.step, **meta)
        if mean_return >= self._medium_return and self.milestone() is None:
            write_policy(self.directory / "medium.npz", policy, step=trainer.step, **meta)
            found = {"step": trainer.step, "mean_return": mean_return}
            with atomic_path(self.directory / "medium.json") as temporary:
                temporary.write_text(json.dumps(found))
        self._checkpointer.save(trainer.step, trainer.state)


def initial_policy(task: Task, config: sac.Config, seed: int) -> MLPPolicy:
    """The policy before any training."""
    state = training.init(sac.make(task, config), sac.empty_ring(task, 1), [seed])
    return to_mlp_policy(state, config)


class _Trainer:
    """The learner's state, its replay buffer, and the steps that are not in it yet."""

    def __init__(self, learner, task: Task, config: sac.Config, seed: int):
        self._task, self._config, self._seed = task, config, seed
        # Whole blocks, so that none runs beyond the end; the last episode ends after num_steps.
        capacity = min(config.capacity, config.num_steps + task.episode_length)
        self._capacity = -(-capacity // config.block_steps) * config.block_steps
        self._ring = sac.empty_ring(task, self._capacity)
        self.state = training.init(learner, self._ring, [seed])
        keys = training.seed_keys([seed])
        self._keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        self._chunk = training.make_chunk(learner)
        self._sums = self._chunk.zero_sums(self.state, self._keys, self._ring)
        self._insert = jax.jit(sac.insert, donate_argnums=0)
        self._updates = 0  # whose metrics are in the sums
        self._pending: list[np.ndarray] = []  # rows of the block under way
        self._policy = to_mlp_policy(self.state, config)
        self.step, self._episode = 0, 0

    def restore(self, checkpointer: Checkpointer, dataset: Dataset) -> None:
        """Goes back to a checkpoint; `dataset` is all that was seen until then."""
        self.state = checkpointer.restore(jax.eval_shape(lambda: self.state))
        self._policy = to_mlp_policy(self.state, self._config)
        for row in np.asarray(windows.pack(dataset.transition)):
            self._add(row)
        self._episode = len(episode_returns(dataset))

    def play(self, env: gymnasium.Env) -> Episode:
        """One episode of the policy, training along the way."""
        rng = np.random.default_rng([self._seed, self._episode])
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        observation = observation.astype(np.float32)
        builder, finished = EpisodeBuilder(observation), False
        while not finished:
            if self.step < self._config.start_steps:
                action = rng.uniform(-1, 1, self._task.action_dim).astype(np.float32)
            else:
                action = self._policy.act(observation, rng)
            following, reward, terminated, truncated, _ = env.step(action)
            following = following.astype(np.float32)
            builder.add(action, reward, following)
            tail = np.array([reward, 1.0 - terminated], np.float32)
            if self._add(np.concatenate([observation, action, following, tail])):
                self._update()
            observation, finished = following, terminated or truncated
        self._episode += 1
        return builder.finish(bool(terminated))

    def take_metrics(self) -> dict[str, np.ndarray]:
        """Means since the last call."""
        count, self._updates = self._updates, 0
        if not count:
            return {}
        means = {name: np.asarray(total) / count for name, total in self._sums.items()}
        self._sums = jax.tree.map(jnp.zeros_like, self._sums)
        return means

    def _add(self, row: np.ndarray) -> bool:
        """Adds one transition; True when that fills a block."""
        self._pending.append(row)
        self.step += 1
        block = self._config.block_steps
        if self.step % block:
            return False
        position = np.int32((self.step - block) % self._capacity)
        self._ring = self._insert(self._ring, np.stack(self._pending), position)
        self._pending = []
        return True

    def _update(self) -> None:
        if self.step < self._config.start_steps:
            return
        block = self._config.block_steps
        self.state, self._sums = self._chunk.run(
            self.state, self._sums, self._keys, self._ring, np.int32(block)
        )
        self._updates += block
        self._policy = to_mlp_policy(self.state, self._config)


def to_mlp_policy(state: PyTree, config: sac.Config) -> MLPPolicy:
    """The actor of the first seed, copied to the host."""
    layers = state.params["actor"]["params"]
    arrays = {}
    for i in range(len(layers)):
        layer = layers[f"layer_{i}"]
        # Copies: the device's arrays are donated to the next block of updates.
        arrays[f"W{i}"] = np.array(np.asarray(layer["kernel"][0]).T, order="C")
        arrays[f"b{i}"] = np.array(layer["bias"][0])
    last = len(config.hidden_dims)
    arrays[f"W{last}"], arrays["log_std_W"] = np.split(arrays[f"W{last}"], 2)
    arrays[f"b{last}"], arrays["log_std_b"] = np.split(arrays[f"b{last}"], 2)
    bounds = np.array([config.min_log_std, config.max_log_std], np.float32)
    return MLPPolicy(arrays | {"log_std_bounds": bounds})


def _evaluate(env: gymnasium.Env, policy: MLPPolicy, seed: int, step: int) -> float:
    """Mean return of sampled episodes, which are what a dataset will hold."""
    rng = np.random.default_rng([seed, step, 1])
    act = functools.partial(policy.act, rng=rng)
    episodes = [run_episode(env, act, int(rng.integers(2**31))) for _ in range(EVAL_EPISODES)]
    return float(np.mean([np.sum(e.rewards, dtype=np.float64) for e in episodes]))
