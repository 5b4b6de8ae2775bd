"""Scores in the real environment, for all seeds and episodes at once."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
import tqdm

from tgcvg_jax import envs
from tgcvg_jax.files import atomic_path
from tgcvg_jax.ops import scores
from tgcvg_jax.types import Array, Policy, PRNGKey, PyTree, Task, UserError


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The outcome of N learner seeds x E episodes.

    Attributes:
      task: where they were run.
      returns: [N, E] undiscounted returns.
      lengths: [N, E] int, steps taken.
    """

    task: Task
    returns: np.ndarray
    lengths: np.ndarray

    @property
    def return_mean(self) -> np.ndarray:
        """Mean over episodes, [N]."""
        return self.returns.mean(axis=1)

    @property
    def return_std(self) -> np.ndarray:
        """Population standard deviation over episodes, [N]."""
        return self.returns.std(axis=1)

    @property
    def normalized_score(self) -> np.ndarray | None:
        """Normalised mean return, [N], or None if the task has no reference."""
        return scores.normalized_score(self.return_mean, self.task)


def evaluate(
    policy: Policy,
    states: PyTree,
    task: Task,
    *,
    episodes: int,
    seed: int = 0,
    deterministic: bool = True,
    target_return: float | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Runs every learner seed for a number of episodes, all side by side.

    All N x E environments advance together, and one jitted call a time step acts for all of them.
    Episode e starts from the same initial state for every learner seed (reset seed
    `seed * 100_003 + e`), so that differences between learners are not differences in luck.

    Args:
      policy: how a state acts; its functions are static under jit, so pass the same object again
        to reuse the compiled program.
      states: pytree with a leading axis of N learner seeds.
      task: names the environment.
      episodes: E.
      seed: of initial states and, for a sampled policy, of actions.
      deterministic: act by the mode, rather than by a sample.
      target_return: for policies conditioned on a return, in the environment's own unit.
      progress: True shows a progress bar.

    Returns:
      Returns and lengths of all episodes.

    Raises:
      UserError: the environment cannot be made, the states have no seed axis, or the policy emits a
        NaN or an infinity.
    """
    sizes = {np.shape(x)[:1] for x in jax.tree.leaves(states)}
    if len(sizes) != 1 or () in sizes:
        raise UserError(
            "evaluate takes states with a leading axis of seeds; give the state of one seed such "
            "an axis with jax.tree.map(lambda x: x[None], state)"
        )
    ((num_seeds,),) = sizes
    shape = (num_seeds, episodes)
    with contextlib.ExitStack() as stack:
        # Plain environments, not Gymnasium's vector ones: those reset themselves at an episode's
        # end and would go on paying for episodes that do not count.
        runs = {}
        observation = np.zeros((*shape, task.observation_dim), np.float32)
        for index in np.ndindex(shape):
            runs[index] = env = envs.make(task)
            stack.callback(env.close)
            observation[index], _ = env.reset(seed=seed * 100_003 + index[1])
        bar = tqdm.tqdm(total=len(runs), unit="episode", desc="evaluate", disable=not progress)
        stack.enter_context(bar)

        key = jax.random.fold_in(jax.random.key(seed), 3)  # 0 to 2: training and generation
        carry = jax.vmap(lambda state: policy.init(state, episodes, target_return))(states)
        reward = np.zeros(shape, np.float32)
        returns, lengths = np.zeros(shape), np.zeros(shape, np.int32)
        for t in range(task.episode_length):
            # Fresh arrays: on a CPU, JAX may alias the ones that it is given.
            action, carry = _act(
                policy, states, carry, observation.copy(), reward.copy(), key, t, deterministic
            )
            action = np.asarray(action)  # [N, E, A]
            finite = np.isfinite(action).all(axis=-1)
            for index, env in list(runs.items()):
                if not finite[index]:
                    raise UserError(
                        f"the policy of learner {index[0]} diverged: its action at step {t} of an "
                        "evaluation episode is not finite"
                    )
                observation[index], r, terminated, truncated, _ = env.step(action[index])
                reward[index] = r
                returns[index] += r
                lengths[index] += 1
                if terminated or truncated:
                    del runs[index]
                    bar.update()
            if not runs:
                break
    return Evaluation(task, returns, lengths)


@functools.partial(jax.jit, static_argnames=("policy", "deterministic"))
def _act(
    policy: Policy,
    states: PyTree,
    carry: PyTree,
    observation: Array,  # [N, E, S]
    reward: Array,  # [N, E]
    key: PRNGKey,
    t: Array,
    deterministic: bool,
) -> tuple[Array, PyTree]:
    keys = jax.random.split(jax.random.fold_in(key, t), observation.shape[0])
    act = lambda *x: policy.act(*x, deterministic)  # noqa: E731
    return jax.vmap(act)(states, carry, observation, reward, keys)


def write_scores(path: str | os.PathLike, evaluation: Evaluation, seeds: Sequence[int]) -> None:
    """Writes `scores.csv`, one row for each learner seed, whole or not at all.

    Args:
      path: the file.
      evaluation: of N seeds.
      seeds: the N seeds' numbers. `normalized_score` stays empty if the task has no reference.
    """
    score = evaluation.normalized_score
    num_seeds, episodes = evaluation.returns.shape
    columns = (
        seeds,
        evaluation.return_mean,
        evaluation.return_std,
        [""] * num_seeds if score is None else score,
        [episodes] * num_seeds,
    )
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seed", "return_mean", "return_std", "normalized_score", "episodes"))
        writer.writerows(zip(*columns, strict=True))
