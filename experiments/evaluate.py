"""Scores a trained model in the real environment.

    python -m experiments.evaluate --env=E --checkpoint=runs/E/tgcvg/td3_bc --episodes=100
    python -m experiments.evaluate --env=E --checkpoint=runs/E/tgcvg/policy
    python -m experiments.evaluate --env=E --checkpoint=runs/E/none/dt --target_return=1800
    python -m experiments.evaluate --env=E --checkpoint=runs/E/tgcvg/dynamics
    python -m experiments.evaluate --env=E --checkpoint=runs/E/gta/denoiser

A learner is scored seed by seed. The policy of a synthesizer is scored twice, with sampled and with
mean actions: the generator's own score stands beside every learner trained on its data. A dynamics
model is compared with the simulator: each state of the dataset is set, one step taken, and the two
next states compared, in standard deviations of the data. GTA's denoiser is asked for the returns of
windows of the data, and its rewards are compared with theirs.

Scores go to evaluation.json in the checkpoint's folder, where experiments.report finds those of a
synthesizer's policy.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import _main
from tgcvg_jax import data, training
from tgcvg_jax.envs import oracle
from tgcvg_jax.evaluation import guidance, loading, rollout
from tgcvg_jax.files import write_json
from tgcvg_jax.models import MODELS, any_step_dynamics
from tgcvg_jax.ops import scores
from tgcvg_jax.types import Dataset, Task, UserError

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
    trained = loading.load(FLAGS.checkpoint)
    task = trained.task
    if FLAGS.env not in (task.name, task.environment):
        raise UserError(f"{FLAGS.checkpoint} was trained on {task.name}, not on {FLAGS.env}")
    if FLAGS.target_return is not None and trained.kind != "dt":
        raise UserError("--target_return is for dt; no other policy is conditioned on a return")
    if trained.learner.policy is not None:
        score_policy(trained)
    elif trained.kind == "any_step_dynamics":
        score_dynamics(task, trained.config, trained.state)
    elif trained.kind == "window_denoiser":
        score_denoiser(trained)
    else:
        raise UserError(f"{FLAGS.checkpoint}: nothing to score in a {trained.kind}")


def score_policy(trained: loading.Trained) -> None:
    """Returns and normalised scores in the real environment."""
    kind, task, seeds = trained.kind, trained.task, trained.seeds
    name = kind
    if kind == "dt":
        asked = (FLAGS.target_return, trained.config.target_return, trained.state.best_return[0])
        name += f" for {next(target for target in asked if target is not None):.6g}"
    # A synthesizer's policy generates with sampled actions; both are worth knowing.
    modes = {"sampled": False, "mean": True} if kind in MODELS else {"": True}
    rows, found = [], {}
    for mode, deterministic in modes.items():
        evaluation = rollout.evaluate(
            trained.learner.policy, trained.state, task,
            episodes=FLAGS.episodes or task.eval_episodes, seed=FLAGS.seed,
            deterministic=deterministic, target_return=FLAGS.target_return, progress=True,
        )  # fmt: skip
        score = evaluation.normalized_score
        values = evaluation.return_mean if score is None else score
        found[mode] = {
            "return": evaluation.return_mean.tolist(),
            "score": None if score is None else score.tolist(),
        }
        for i, seed in enumerate(seeds):
            rows.append((
                f"{name} {mode}".strip(), str(seed), f"{evaluation.return_mean[i]:.1f}",
                f"{evaluation.return_std[i]:.1f}", f"{evaluation.lengths[i].mean():.0f}",
                "-" if score is None else f"{score[i]:.1f}",
            ))  # fmt: skip
        if len(seeds) > 1:
            s = scores.summarize(values)
            rows.append(
                (f"{name} {mode}".strip(), "all", "", "", "", f"{s.mean:.1f} ± {s.std:.1f}")
            )
    print(_main.table(rows, ("policy", "seed", "return", "± episodes", "length", "score")))
    write_evaluation(trained, found)


def write_evaluation(trained: loading.Trained, modes: dict[str, Any]) -> None:
    """evaluation.json beside the checkpoint; a warning if that folder can't be written.

    Args:
      trained: what was scored.
      modes: `sampled`, `mean` or, where there is one way to act, an empty name -> returns and
        scores of the seeds.
    """
    folder = Path(FLAGS.checkpoint).expanduser()
    folder = folder.parent if folder.name.isdigit() else folder  # as `loading.load` reads it
    content = {
        "kind": trained.kind,
        "env": trained.task.name,
        "seeds": [int(seed) for seed in trained.seeds],
        "episodes": FLAGS.episodes or trained.task.eval_episodes,
        "modes": modes,
    }
    path = folder / "evaluation.json"
    try:
        write_json(path, content)
    except OSError as e:
        warnings.warn(f"{path} can't be written ({e.strerror})", stacklevel=1)
    else:
        print(f"written to {path}")


def score_dynamics(task: Task, config: any_step_dynamics.Config, states: Any) -> None:
    """One-step error of the mean prediction against the simulator."""
    oracle.require(task)  # before the data is looked for
    dataset = load_data(task)
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


def score_denoiser(trained: loading.Trained) -> None:
    """Whether higher returns, when asked for, bring higher rewards."""
    if trained.config.condition == "none":
        raise UserError(f"{FLAGS.checkpoint}: nothing to score in a denoiser without a condition")
    state = training.select_seed(trained.state, 0)
    response = guidance.condition_response(
        trained.task, trained.config, state, load_data(trained.task), seed=FLAGS.seed
    )
    generated, original = response.correlations()
    print(
        f"{len(response.wanted)} windows of {trained.config.horizon} transitions from noise, each "
        f"for the return of one of the dataset ({trained.config.condition})"
    )
    rows = [
        ("generated", f"{response.generated.mean():.3f}", f"{generated:.3f}"),
        ("of the dataset", f"{response.original.mean():.3f}", f"{original:.3f}"),
    ]
    print(_main.table(rows, ("window", "mean reward", "correlation with the return")))


def load_data(task: Task) -> Dataset:
    """The task's dataset, or that of the command line."""
    where = dict(data_dir=FLAGS.data_dir, dataset=FLAGS.dataset)
    return data.load(task, **where, after_goal=FLAGS.after_goal)


if __name__ == "__main__":
    _main.run(main, without=("workdir", "preset", "set"))
