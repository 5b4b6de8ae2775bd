"""Scores a trained model in the real environment.

    python -m experiments.evaluate --env=E --checkpoint=runs/E/tgcvg/td3_bc --episodes=100
    python -m experiments.evaluate --env=E --checkpoint=runs/E/tgcvg/policy
    python -m experiments.evaluate --env=E --checkpoint=runs/E/none/dt --target_return=1800
    python -m experiments.evaluate --env=E --checkpoint=runs/E/tgcvg/dynamics

A learner is scored seed by seed. The policy of a synthesizer is scored twice, with sampled and with
mean actions: the generator's own score stands beside every learner trained on its data. A dynamics
model is compared with the simulator: each state of the dataset is set, one step taken, and the two
next states compared, in standard deviations of the data.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import _main
from tgcvg_jax import config as config_lib
from tgcvg_jax import data, training
from tgcvg_jax.checkpoint import read_metadata, restore
from tgcvg_jax.envs import oracle
from tgcvg_jax.evaluation import rollout
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.models import MODELS, any_step_dynamics
from tgcvg_jax.ops import scores
from tgcvg_jax.types import Learner, Source, Task, UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "Folder of a trained model, such as "
                    "runs/hopper-medium-v2/tgcvg/td3_bc.")  # fmt: skip
flags.DEFINE_integer("episodes", None, "Evaluation episodes for each seed. Without it: the task's "
                     "own, 10 (mazes 100).", lower_bound=1)  # fmt: skip
flags.DEFINE_float("target_return", None, "Return that dt acts for, in the environment's unit. "
                   "Without it: its config's.")  # fmt: skip
DYNAMICS_ROWS = 10_000


def main() -> None:
    """Restores and scores."""
    if FLAGS.checkpoint is None:
        raise UserError("--checkpoint is required, for example runs/hopper-medium-v2/tgcvg/policy")
    checkpoint = Path(FLAGS.checkpoint).expanduser()
    if checkpoint.name.isdigit():  # the folder of one step, where tab completion leads
        checkpoint = checkpoint.parent
    metadata = read_metadata(checkpoint)
    kinds = LEARNERS | MODELS
    if metadata.get("kind") not in kinds:
        raise UserError(f"{FLAGS.checkpoint}: {metadata.get('kind')!r} is no model of this version")
    trained = metadata["task"]
    task = _task(trained)
    if FLAGS.env not in (task.name, task.environment):
        raise UserError(f"{FLAGS.checkpoint} was trained on {task.name}, not on {FLAGS.env}")
    module = kinds[metadata["kind"]]
    config = config_lib.from_dict(module.Config, metadata["config"])
    learner = module.make(task, config)
    states = restore(checkpoint, _abstract_state(task, learner, len(metadata["seeds"])))
    if FLAGS.target_return is not None and metadata["kind"] != "dt":
        raise UserError("--target_return is for dt; no other policy is conditioned on a return")
    if learner.policy is not None:
        score_policy(metadata["kind"], task, learner, states, metadata["seeds"])
    elif metadata["kind"] == "any_step_dynamics":
        score_dynamics(task, config, states)
    else:
        raise UserError(f"{FLAGS.checkpoint}: nothing to score in a {metadata['kind']}")


def score_policy(kind: str, task: Task, learner: Learner, states: Any, seeds: list[int]) -> None:
    """Returns and normalised scores in the real environment."""
    # A synthesizer's policy generates with sampled actions; both are worth knowing.
    modes = {"sampled": False, "mean": True} if kind in MODELS else {"": True}
    rows = []
    for mode, deterministic in modes.items():
        evaluation = rollout.evaluate(
            learner.policy, states, task, episodes=FLAGS.episodes or task.eval_episodes,
            seed=FLAGS.seed, deterministic=deterministic, target_return=FLAGS.target_return,
            progress=True,
        )  # fmt: skip
        score = evaluation.normalized_score
        values = evaluation.return_mean if score is None else score
        for i, seed in enumerate(seeds):
            rows.append((
                f"{kind} {mode}".strip(), str(seed), f"{evaluation.return_mean[i]:.1f}",
                f"{evaluation.return_std[i]:.1f}", f"{evaluation.lengths[i].mean():.0f}",
                "-" if score is None else f"{score[i]:.1f}",
            ))  # fmt: skip
        if len(seeds) > 1:
            s = scores.summarize(values)
            rows.append(
                (f"{kind} {mode}".strip(), "all", "", "", "", f"{s.mean:.1f} ± {s.std:.1f}")
            )
    print(_main.table(rows, ("policy", "seed", "return", "± episodes", "length", "score")))


def score_dynamics(task: Task, config: any_step_dynamics.Config, states: Any) -> None:
    """One-step error of the mean prediction against the simulator."""
    oracle.require(task)  # before the data is looked for
    dataset = data.load(
        task, data_dir=FLAGS.data_dir, dataset=FLAGS.dataset, after_goal=FLAGS.after_goal
    )
    count = min(DYNAMICS_ROWS, dataset.size)
    rows = np.random.default_rng(FLAGS.seed).choice(dataset.size, count, replace=False)
    t = jax.tree.map(lambda x: np.asarray(x)[rows], dataset.transition)
    state = training.select_seed(states, 0)
    predicted, reward = any_step_dynamics.step_model(
        state, t.observation, t.action, 0.0, None, task=task, config=config
    )
    scale = np.asarray(state.observation_normalizer.std)
    error = oracle.dynamics_error(task, t.observation, t.action, predicted, reward, scale)
    print(
        f"one-step error on {error['num_rows']:,} states of the dataset, in standard deviations "
        f"of the data ({error['num_masked']:,} more are clipped, so not a full state)"
    )
    rows = [
        ("learned dynamics", f"{error['rms']:.4f}", f"{error['median']:.4f}"),
        ("no change", f"{error['no_change_rms']:.4f}", f"{error['no_change_median']:.4f}"),
    ]
    print(_main.table(rows, ("", "root mean square", "median")))
    reward_error = error["reward_rms"]
    unknown = "unknown, the goal is not part of the state"  # in AntMaze
    known = f"{reward_error:.4f}" if np.isfinite(reward_error) else unknown
    print(f"reward error, root mean square: {known}")


def _abstract_state(task: Task, learner: Learner, num_seeds: int) -> Any:
    """Shapes of the state. They do not depend on the data, so a blank dataset serves."""
    blank = data.blank(task)
    prepared = learner.prepare(blank)
    return jax.eval_shape(lambda: training.init(learner, prepared, range(num_seeds)))


def _task(values: dict[str, Any]) -> Task:
    task = config_lib.from_dict(Task, values)
    return dataclasses.replace(task, sources=tuple(Source(*s) for s in task.sources))


if __name__ == "__main__":
    _main.run(main, without=("workdir", "preset", "set"))
