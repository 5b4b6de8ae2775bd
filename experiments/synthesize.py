"""The main job: augments an offline dataset with synthetic trajectories.

    python -m experiments.synthesize --env=walker2d-medium-v2
    python -m experiments.synthesize --env=hopper-medium-mini --preset=quick

Trains the synthesizer's models, or reuses them if they are there, then generates exactly
--num_transitions. Run it again to resume after a kill, or with a larger --num_transitions to go on
from where the file ends. Writes to <workdir>/<env>/<synthesizer>/, or .../<synthesizer>-<name>/
with --name, by which runs with other settings stand side by side:

    synthetic.hdf5      the synthetic transitions, D4RL format
    policy/, dynamics/  checkpoints and metrics.csv of each model (gta, synther: denoiser/)
    config.json         every setting of the run
    metrics.csv         training metrics of all models
    summary.png         original and synthetic data compared, training curves
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import numpy as np
from absl import flags

from experiments import _main, _stages
from tgcvg_jax import config as config_lib
from tgcvg_jax import plotting, reporting, training
from tgcvg_jax.data.dataset import fingerprint
from tgcvg_jax.data.synthetic import SyntheticStore, read_sample
from tgcvg_jax.envs import oracle
from tgcvg_jax.evaluation import loading, segments
from tgcvg_jax.synthesizers import SYNTHESIZERS, pipeline
from tgcvg_jax.types import Dataset, Learner, Policy, PyTree, Task, Transition, UserError

FLAGS = flags.FLAGS
flags.DEFINE_enum("synthesizer", "tgcvg", sorted(SYNTHESIZERS), "What generates.")
flags.DEFINE_integer("num_transitions", None, "How many to generate. Without it: 5,000,000 (s4rl "
                     "1,000,000), or 50,000 with --preset=quick.")  # fmt: skip
flags.DEFINE_multi_string(
    "models_from", [], "Takes the trained models of another run of this env as they are: its "
    "folder's name (tgcvg), or for one model MODEL:NAME (dynamics:tgcvg), repeatable. Their "
    "settings and data must be the same.",
)  # fmt: skip
flags.DEFINE_string("generator", None, "tgcvg: folder of a trained learner whose policy is rolled "
                    "out in place of Transformer-CQL, such as runs/E/none/iql.")  # fmt: skip
flags.DEFINE_integer("generator_seed", None, "Which of its seeds. Without it: the first.")
_stages.define_variant()
_stages.define_data()


class Generator(NamedTuple):
    """A policy to roll out, and what tells it from others.

    Attributes:
      policy: how it acts.
      state: trained, one seed.
      identity: JSON-ready: what it is, its seed, step, checksum and settings.
    """

    policy: Policy
    state: PyTree
    identity: dict[str, Any]


def main() -> None:
    """Loads, trains, generates, summarises."""
    name = FLAGS.synthesizer
    label = _main.labelled(name)
    module = SYNTHESIZERS[name]
    num_transitions = FLAGS.num_transitions
    if num_transitions is None:
        num_transitions = module.NUM_TRANSITIONS[FLAGS.preset]
    if num_transitions < 1:
        raise UserError(f"--num_transitions={num_transitions}: must be at least 1")
    task, dataset = _stages.load()
    config = _stages.synthesizer_config(module, task)
    generator = load_generator(task) if FLAGS.generator else None
    if generator is None:
        synthesizer = module.make(task, config)
    else:
        synthesizer = module.make(task, config, generator.policy)
    # Before hours of training: refuse data without fitting windows, and what is there of another
    # configuration.
    synthesizer.prepare(dataset)
    for learner in synthesizer.models.values():
        if isinstance(learner, Learner):  # else it is not known before those it learns from
            learner.prepare(dataset)
    reused = _stages.models_from(
        FLAGS.models_from, synthesizer.models, functools.partial(_stages.is_trained, task)
    )
    checkpointers = _stages.open_checkpoints(
        name, synthesizer.models, task, config, dataset, reused
    )
    directory = _main.task_dir(task, label)
    identity = {
        "synthesizer": name,
        "env": task.name,
        "data": fingerprint(dataset),
        "seed": FLAGS.seed,
        "config": config_lib.to_dict(config),
    }
    if generator is not None:
        identity["generator"] = generator.identity
    with _stages.advising():
        path, standard = directory / "synthetic.hdf5", {"config": _stages.defaults(config)}
        store = SyntheticStore(path, identity, standard)
    store.is_finished(num_transitions)

    states = _stages.train_models(synthesizer.models, config, dataset, checkpointers)
    if generator is not None:
        states["policy"] = generator.state
    settings = {
        **identity,
        "environment": task.environment,
        "num_transitions": num_transitions,
        "models_from": reused,
        **_stages.data_settings(),
    }
    if generator is not None:
        folder = str(Path(FLAGS.generator).expanduser().absolute())
        settings["generator"] = {"folder": folder, **generator.identity}
    result = pipeline.stream(
        synthesizer,
        states,
        dataset,
        store,
        num_transitions=num_transitions,
        seed=FLAGS.seed,
        attributes=settings | {"versions": _main.versions()},
        console=reporting.Console(),
    )
    if result.generated:
        rate = result.generated / result.seconds
        print(
            f"generated: {num_transitions:,} transitions at {rate:,.0f}/s, "
            f"{result.compile_seconds:.0f} s of compilation, "
            f"{100 * result.dropped:.1f} % of trajectories dropped as implausible"
        )
    else:
        print(f"generated already: {num_transitions:,} transitions")
    _main.write_config(directory, settings)
    logs = {model: keeper.directory / "metrics.csv" for model, keeper in checkpointers.items()}
    reporting.join_logs(directory / "metrics.csv", logs)
    _summarise(task, dataset, store.path, logs)


def load_generator(task: Task) -> Generator:
    """The policy of --generator.

    Raises:
      UserError: it has none, or is of another environment; or the synthesizer takes none.
    """
    if FLAGS.synthesizer != "tgcvg":
        raise UserError("--generator is for --synthesizer=tgcvg; no other rolls a policy out")
    trained = loading.load(FLAGS.generator)
    if trained.learner.policy is None:
        raise UserError(f"{FLAGS.generator}: {trained.kind} has no policy to roll out")
    if trained.task.environment != task.environment:
        raise UserError(
            f"{FLAGS.generator}: acts in {trained.task.environment}, {task.name} is in "
            f"{task.environment}"
        )
    seed = trained.seeds[0] if FLAGS.generator_seed is None else FLAGS.generator_seed
    if seed not in trained.seeds:
        raise UserError(f"--generator_seed={seed}: {FLAGS.generator} has {trained.seeds}")
    state = training.select_seed(trained.state, trained.seeds.index(seed))
    identity = {
        "kind": trained.kind,
        "seed": seed,
        "step": int(state.step),
        "checksum": _stages.checksum(state),
        "config": config_lib.to_dict(trained.config),
    }
    return Generator(trained.learner.policy, state, identity)


def _summarise(task: Task, dataset: Dataset, path: Path, logs: dict[str, Path]) -> None:
    """The table that closes the run, and summary.png."""
    synthetic, synthetic_lengths, size = read_sample(path, plotting.MAX_ROWS)
    original = jax.tree.map(np.asarray, dataset.transition)
    curves = {model: reporting.read_curves(log) for model, log in logs.items()}
    plotting.summary(path.with_name("summary.png"), task, original, synthetic, curves, size)

    change_std = (original.next_observation - original.observation).std(axis=0) + 1e-6
    mean, std = original.observation.mean(axis=0), original.observation.std(axis=0) + 1e-6

    def describe(t: Transition, lengths: np.ndarray, reward: np.ndarray) -> dict[str, str]:
        change = (t.next_observation - t.observation) / change_std
        ends = t.discount == 0
        step = np.median(np.sqrt(np.mean(np.square(change), axis=1)))
        return {
            "transitions": f"{len(reward):,}",
            "segments": f"{len(lengths):,}",
            "mean length": f"{lengths.mean():.1f}",
            "reward": f"{reward.mean():.3f} ± {reward.std():.3f}",
            "reward of terminals": f"{t.reward[ends].mean():.3f}" if ends.any() else "-",
            **_simulated(task, t, std),
            "terminals per 1,000": f"{1e3 * np.mean(ends):.2f}",
            "median change per step (std)": f"{step:.3f}",
            "states beyond 5 std": f"{100 * np.mean(_is_far(t, mean, std)):.2f} %",
        }

    lengths = np.diff(np.flatnonzero(np.asarray(dataset.remaining) == 1), prepend=-1)
    with h5py.File(path) as f:
        rewards = f["rewards"][:]
    old = describe(original, lengths, original.reward)
    new = describe(synthetic, synthetic_lengths, rewards)
    print()
    rows = [(name, old.get(name, "-"), new.get(name, "-")) for name in old | new]
    print(_main.table(rows, ("", "original", "synthetic")))
    far = np.mean(_is_far(synthetic, mean, std))
    terminals = [np.mean(t.discount == 0) for t in (original, synthetic)]
    if far > 0.1 or terminals[1] > 10 * terminals[0] + 0.01:
        print("\nThe synthetic data is unlike the original: the models want longer training.")
    print(f"\nwritten to {path.parent}/: synthetic.hdf5, summary.png, metrics.csv, config.json")


def _is_far(t: Transition, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """[M] bool, states with a dimension beyond five standard deviations."""
    return (np.abs((t.observation - mean) / std) > 5).any(axis=1)


def _simulated(task: Task, t: Transition, std: np.ndarray) -> dict[str, str]:
    """What the simulator says of 3,000 transitions whose state is known; nothing without one."""
    if not oracle.is_known(task):
        return {}
    rows = np.random.default_rng(FLAGS.seed).choice(len(t.reward), min(len(t.reward), 3_000), False)
    t = jax.tree.map(lambda x: x[rows], t)
    following, reward, valid = oracle.one_step(task, t.observation, t.action)
    valid &= ~segments.is_clipped(task, t.observation)
    error = ((t.next_observation - following) / std)[valid]
    entries = {"error of the step (std, rms)": f"{np.sqrt(np.mean(np.square(error))):.4f}"}
    if np.isfinite(reward[valid]).all():
        known = f"{t.reward[valid].mean():.3f}"
        entries = {
            "reward where the state is known": known,
            "reward there in the simulator": f"{reward[valid].mean():.3f}",
            **entries,
        }
    return entries if valid.any() else {}


if __name__ == "__main__":
    _main.run(main)
