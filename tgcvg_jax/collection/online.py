"""SAC in the simulator: the policies of D4RL's levels, and all that SAC saw on the way.

Simulator and learner take turns: `block_steps` environment steps on the host, then as many updates
in one call of the chunk that `training.fit` runs too. The policy is tried at the end of the first
episode after every multiple of CHECK_STEPS; after every multiple of SAVE_STEPS the episodes go to
the disk, then a checkpoint. A run that was killed goes on from there and ends in the same bits.
(One that had ended and is made to go on has one row more in its metrics, where it had ended.)
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
from tgcvg_jax.types import Dataset, PyTree, Task, UserError

SAVE_STEPS = 10_000
CHECK_STEPS = 2_000  # SAC's return can jump from far below the medium one to far above it
EVAL_EPISODES = 5
_TRAINING, _EVALUATION = 1, 2  # streams of random numbers


class Milestone(NamedTuple):
    """The medium policy.

    Attributes:
      step: environment steps done.
      mean_return: of EVAL_EPISODES episodes.
      policy: its file.
      reached: environment steps when a policy first reached the medium return.
    """

    step: int
    mean_return: float
    policy: Path
    reached: int


class OnlineRun:
    """One training of SAC, in a folder.

    It holds `replay/` (all episodes in order), Orbax checkpoints, `metrics.csv`, and policies:
    `last.npz`, and in `records/` each that was better than all before it, with their returns in
    `records.json`, so that it can be said afterwards which return is medium.

    Args:
      task: names the environment.
      config: SAC's; `num_steps` may grow from run to run.
      directory: of the run.
      seed: of everything.

    Raises:
      UserError: the folder holds another run.
    """

    def __init__(self, task: Task, config: sac.Config, directory: Path, seed: int):
        self.task, self.config, self.directory, self.seed = task, config, directory, seed
        identity = {
            "kind": "sac",
            "task": config_lib.to_dict(task),
            "config": config_lib.to_dict(config),
            "seed": seed,
        }
        self._checkpointer = Checkpointer(directory, identity)
        self.replay = Parts(directory / "replay", {"run": "sac"})
        self._learner = sac.make(task, config)

    @property
    def step(self) -> int:
        """Environment steps that are safe on disk."""
        return self._checkpointer.latest() or 0

    def milestone(self, medium_return: float) -> Milestone | None:
        """The medium policy, once one has reached that return.

        Of the policies until then the one whose return came nearest to it; it is among the records.
        """
        return self._milestone(medium_return, self.step)

    def _milestone(self, medium_return: float, step: int) -> Milestone | None:
        records = self._records(step)
        reached = next((s for s, value in records if value >= medium_return), None)
        if reached is None:
            return None
        until = [record for record in records if record[0] <= reached]
        at, value = min(until, key=lambda record: abs(record[1] - medium_return))
        return Milestone(at, value, self._record_path(at), reached)

    def _records(self, step: int) -> list[tuple[int, float]]:
        """(step, return) of the records until `step`.

        Later ones are of a run that was killed after its last save; they will be found again.
        """
        file = self.directory / "records.json"
        found = json.loads(file.read_text()) if file.exists() else []
        return [(at, value) for at, value in found if at <= step]

    def _record_path(self, step: int) -> Path:
        return self.directory / "records" / f"{step:09d}.npz"

    def train(
        self, *, until_return: float | None = None, console: reporting.Console | None = None
    ) -> None:
        """Trains for `config.num_steps` environment steps, to the end of the last episode.

        Args:
          until_return: stop once a policy has reached it.
          console: progress.

        Raises:
          DivergenceError: a metric is NaN or infinite.
          UserError: the folder holds a longer training.
        """
        console = console or reporting.Console(enabled=False)
        saved = self.step
        if until_return is not None and self.milestone(until_return):
            return
        if saved > self.config.num_steps + self.task.episode_length:
            raise UserError(
                f"{self.directory} holds {saved:,} steps already, more than the "
                f"{self.config.num_steps:,} asked for; ask for at least as many, or choose another "
                "--workdir"
            )
        if saved >= self.config.num_steps:
            return
        log = reporting.MetricsLog(self.directory / "metrics.csv", resume_step=saved)
        self.replay.truncate(saved)
        trainer = _Trainer(self._learner, self.task, self.config, self.seed)
        if saved:
            trainer.restore(self._checkpointer, self.replay.read(self.task))
        env, test_env = envs.make(self.task), envs.make(self.task)
        unsaved: list[Episode] = []
        checked, finished = saved, False
        try:
            with reporting.progress(console, "sac", self.config.num_steps, saved) as advance:
                while not finished:
                    unsaved.append(trainer.play(env))
                    advance(len(unsaved[-1].actions))
                    step, finished = trainer.step, trainer.step >= self.config.num_steps
                    if step // CHECK_STEPS == checked // CHECK_STEPS and not finished:
                        continue
                    checked = step
                    policy = to_mlp_policy(trainer.state, self.config)
                    mean_return = _evaluate(test_env, policy, self.seed, step)
                    metrics = {"return": np.array([mean_return]), **trainer.take_metrics()}
                    self._require_finite(metrics, step)
                    log.write(step, metrics, [self.seed])
                    self._consider(policy, step, mean_return)
                    finished |= until_return is not None and mean_return >= until_return
                    if step // SAVE_STEPS == saved // SAVE_STEPS and not finished:
                        continue
                    saved = step
                    console.print(f"sac: {step:,} steps, return {mean_return:.1f}")
                    # Episodes and policies first: what is newer than the checkpoint is ignored.
                    self.replay.add(unsaved)
                    unsaved = []
                    self._write(policy, self.directory / "last.npz", step, mean_return)
                    self._checkpointer.save(step, trainer.state)
                    log.flush()
        finally:
            env.close()
            test_env.close()

    def _consider(self, policy: MLPPolicy, step: int, mean_return: float) -> None:
        """Keeps the policy if it is a record."""
        records = self._records(step - 1)
        if all(mean_return > value for _, value in records):
            self._write(policy, self._record_path(step), step, mean_return)
            with atomic_path(self.directory / "records.json") as temporary:
                temporary.write_text(json.dumps([*records, (step, mean_return)]))

    def _write(self, policy: MLPPolicy, path: Path, step: int, mean_return: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_policy(path, policy, environment=self.task.environment,
                     step=step, mean_return=mean_return)  # fmt: skip

    def _require_finite(self, metrics: dict[str, np.ndarray], step: int) -> None:
        for name, values in metrics.items():
            if not np.all(np.isfinite(values)):
                raise training.DivergenceError(
                    f"sac: {name} is not finite at step {step}; the last checkpoint is of step "
                    f"{self.step}"
                )


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
        rng = np.random.default_rng([self._seed, _TRAINING, self._episode])
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
    rng = np.random.default_rng([seed, _EVALUATION, step])
    act = functools.partial(policy.act, rng=rng)
    episodes = [run_episode(env, act, int(rng.integers(2**31))) for _ in range(EVAL_EPISODES)]
    return float(np.mean([np.sum(e.rewards, dtype=np.float64) for e in episodes]))
