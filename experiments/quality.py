"""How good is a synthetic dataset? Its metrics, and those of the original data as the floor.

    python -m experiments.quality --env=hopper-medium-mini --synthesizer=tgcvg
    python -m experiments.quality --env=walker2d-medium-v2 --synthesizer=tgcvg-rule

Single steps are compared with the simulator, set to each state; whole trajectories are replayed in
it; and the policy that generated them is run in it, from random states of the original data whose
outcome is recorded: the same for all variants of a file. Rows in which a velocity is clipped are
left out of these, as their true state is unknown (`masked`). What has been measured is not measured
again. Writes to <workdir>/<env>/<synthesizer>/quality/:

    quality.json    all numbers and curves
    quality.png     the same, and where the data lies
    trajectory.png  a synthetic trajectory beside a real one; trajectory.gif, the same in motion
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from absl import flags

from experiments import _main, _stages
from tgcvg_jax import metrics, plotting
from tgcvg_jax.data import synthetic as synthetic_data
from tgcvg_jax.data.dataset import fingerprint
from tgcvg_jax.envs import oracle, termination
from tgcvg_jax.evaluation import generators, loading, measures, novelty, segments
from tgcvg_jax.files import write_json
from tgcvg_jax.types import Task, UserError, one_line

FLAGS = flags.FLAGS
flags.DEFINE_string("synthesizer", "tgcvg", "Whose data: the folder's name, <synthesizer> or "
                    "<synthesizer>-<name>.")  # fmt: skip
flags.DEFINE_string("synthetic", None, "The data, in place of <workdir>/<env>/<synthesizer>/"
                    "synthetic.hdf5; results go to quality-<its name>/.")  # fmt: skip
flags.DEFINE_integer("num_transitions", 1_000_000, "Most rows that are measured, as whole segments "
                     "drawn at random.", lower_bound=1)  # fmt: skip
flags.DEFINE_integer("num_segments", 300, "Segments that are replayed.", lower_bound=1)
flags.DEFINE_integer("novelty_rows", 10_000, "Rows whose nearest neighbour in the original data is "
                     "looked for.", lower_bound=1)  # fmt: skip
flags.DEFINE_integer("novelty_subset", 100_000, "With --all_novelty: rows of the subset of the "
                     "original data.", lower_bound=1)  # fmt: skip
flags.DEFINE_bool("all_novelty", False, "Novelty in all variants that the papers may have meant: "
                  "of states, actions, both, or all columns; raw or standardised; distance or its "
                  "square; to all data or a subset.")  # fmt: skip
flags.DEFINE_string("generator", "auto", "Checkpoint of the policy to run in the simulator. auto: "
                    "the one that the run used, if it is there; none: no such run.")  # fmt: skip
_stages.define_data()

PICTURES = ("quality.png", "trajectory.png", "trajectory.gif")  # the last two not for all tasks
PARTS = ("metrics", "curves", "distributions")


def main() -> None:
    """Measures what is missing, prints and draws all."""
    label = FLAGS.synthesizer
    task, dataset = _stages.load()
    data = fingerprint(dataset)
    path, identity = locate(task, data)
    generator = find_generator(task, label)
    horizon = identity["longest_segment"]
    own = _main.task_dir(task, label, "synthetic.hdf5")
    folder = "quality" if path.absolute() == own.absolute() else f"quality-{path.stem}"
    directory = _main.task_dir(task, label, folder)
    _main.require_writable(directory)
    results_path = directory / "quality.json"
    record = read_record(results_path)

    groups = choose_groups(task, generator, horizon)
    base = {"file": identity, "data": data, "seed": FLAGS.seed}
    base |= {"num_transitions": FLAGS.num_transitions, "num_segments": FLAGS.num_segments}
    wanted = {name: {**base, **settings} for name, (settings, _) in groups.items()}
    done = record["settings"].get("groups", {})
    missing = [name for name in groups if settings_of(done.get(name)) != wanted[name]]
    drawn = f"{zlib.crc32(json.dumps(wanted, sort_keys=True).encode()):08x}"
    if missing or record["settings"].get("drawn") != drawn:
        inputs = measures.prepare(
            task, dataset, path, num_transitions=FLAGS.num_transitions,
            num_segments=FLAGS.num_segments, novelty_rows=FLAGS.novelty_rows,
            novelty_subset=FLAGS.novelty_subset, seed=FLAGS.seed, processes=oracle.num_cpus(),
        )  # fmt: skip
        for name in missing:
            found = groups[name][1](inputs)
            # Another file's numbers must not stand beside this one's.
            current = {
                n: about for n, about in done.items()
                if settings_of(about) == wanted.get(n, {**(settings_of(about) or {}), **base})
            }  # fmt: skip
            record, done = merge(record, found, name, wanted[name], current)
            record |= {
                "env": task.name,
                "environment": task.environment,
                "synthesizer": label,
                "synthetic": str(path),
                "seed": FLAGS.seed,
                "rows": len(inputs.sample.timestep),
                "versions": _main.versions(),
            }
            write_json(results_path, record)
        draw(directory, inputs, record)
        record["settings"]["drawn"] = drawn
        write_json(results_path, record)
    print_table(record["metrics"])
    for line in remarks(task, generator, record["metrics"]):
        print(line)
    written = [name for name in ("quality.json", *PICTURES) if (directory / name).exists()]
    print(f"written to {directory}/: {', '.join(written)}")


def locate(task: Task, data: str) -> tuple[Path, dict[str, Any]]:
    """The synthetic file, and what tells it from others; `data` is the original's fingerprint."""
    label = FLAGS.synthesizer
    path = _main.task_dir(task, label, "synthetic.hdf5")
    if FLAGS.synthetic is not None:
        path = Path(FLAGS.synthetic).expanduser()
    if not path.exists():
        name, _, ending = label.partition("-")
        command = f"python -m experiments.synthesize --env={task.name} --synthesizer={name}"
        command += f" --name={ending}" if ending else ""
        raise UserError(f"{path}: not there; make it with: {command} --workdir={FLAGS.workdir}")
    made_in = synthetic_data.environment_of(path)
    if made_in not in (None, task.environment):
        raise UserError(f"{path}: was made for {made_in}, but {task.name} is in {task.environment}")
    try:
        with h5py.File(path) as f:
            rewards, about = f["rewards"][:], json.loads(f.attrs.get("identity", "{}"))
            ends = f["terminals"][:].astype(bool) | f["timeouts"][:].astype(bool)
        ends[-1] = True
    except (OSError, KeyError, ValueError, IndexError) as e:
        raise UserError(f"{path}: damaged, or no synthetic dataset ({one_line(e)})") from e
    if about.get("data", data) != data:
        warnings.warn(
            "the file was made from other data than this, so distances to it and the generator's "
            "starts say little; give --dataset, --subset and --mix as then",
            stacklevel=1,
        )
    checksum = zlib.crc32(np.ascontiguousarray(rewards).view(np.uint8).data)
    longest = int(np.diff(np.flatnonzero(ends), prepend=-1).max())
    return path, {
        "rows": len(rewards), "crc32_rewards": f"{checksum:08x}", "longest_segment": longest,
    }  # fmt: skip


def find_generator(task: Task, label: str) -> generators.Generator | None:
    """The policy that generated the data, as it did, if there is one."""
    folder, seed = FLAGS.generator, None
    if folder == "none" or not oracle.is_known(task):
        return None
    config = read_config(_main.task_dir(task, label, "config.json"))
    if folder == "auto":
        folder, seed = generators.recorded(config, _main.task_dir(task, label, "policy"))
        if not folder.exists():
            return None
    trained = loading.load(folder)
    if trained.learner.policy is None:
        raise UserError(f"--generator={folder}: {trained.kind} is no policy")
    dims = [(t.observation_dim, t.action_dim) for t in (trained.task, task)]
    if dims[0] != dims[1]:
        raise UserError(f"--generator={folder}: is a policy for {trained.task.name}")
    return generators.make(trained, seed, **generators.usage(config))


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a run; nothing if there is none that can be read."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def choose_groups(
    task: Task, generator: generators.Generator | None, horizon: int
) -> dict[str, tuple[dict[str, Any], Callable[[measures.Inputs], dict[str, Any]]]]:
    """What can be measured: name -> what it depends on beyond the data, and how."""
    groups = {"content": ({}, measures.content)}
    if oracle.is_known(task):
        groups["one_step"] = (
            {"original_rows": measures.ORIGINAL_ROWS, "near_limit": segments.NEAR_LIMIT},
            measures.one_step,
        )
        groups["replay"] = ({"near_limit": segments.NEAR_LIMIT}, measures.replay)
        if generator is not None:
            about = {
                "generator": generator.about,
                "near_limit": segments.NEAR_LIMIT,
                "horizon": horizon,
                "history": generator.history,
                "actions": "mean" if generator.deterministic else "sampled",
                "return_factor": generator.return_factor,
            }
            groups["generator"] = (about, lambda inputs: measures.generator(inputs, generator))
    rows = {"novelty_rows": FLAGS.novelty_rows, "held_out": novelty.HELD_OUT}
    groups["novelty"] = (rows, measures.novelty)
    if FLAGS.all_novelty:
        rows = {**rows, "novelty_subset": FLAGS.novelty_subset}
        groups["novelty_grid"] = (rows, measures.novelty_grid)
    return groups


def read_record(path: Path) -> dict[str, Any]:
    """What has been measured already; nothing if the file can't be read."""
    empty = {"metrics": {}, "curves": {}, "distributions": {}, "settings": {}}
    try:
        found = json.loads(path.read_text())
        return {**empty, **found} if all(isinstance(found[k], dict) for k in empty) else empty
    except (OSError, ValueError, KeyError, TypeError):
        return empty


def settings_of(about: Any) -> dict[str, Any] | None:
    """How a group was measured; None if it was not, or by a version that did not say what."""
    if not isinstance(about, dict) or "measured" not in about:
        return None
    return {name: value for name, value in about.items() if name != "measured"}


def merge(
    record: dict[str, Any],
    found: dict[str, Any],
    group: str,
    settings: dict[str, Any],
    others: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record with a group's results and those of the other groups that are still true.

    Returns:
      It, and its groups: name -> settings, and in `measured` the names of the results.
    """
    others = {name: about for name, about in others.items() if name != group}
    measured = {part: sorted(found.get(part, {})) for part in PARTS}
    groups = {**others, group: {**settings, "measured": measured}}
    merged = {**record, "settings": {"groups": groups}}
    for part in PARTS:
        names = {name for about in others.values() for name in about["measured"].get(part, ())}
        kept = {name: value for name, value in record[part].items() if name in names}
        merged[part] = kept | found.get(part, {})
    return merged, groups


def draw(directory: Path, inputs: measures.Inputs, record: dict[str, Any]) -> None:
    """The pictures: the longest of the segments beside the real steps from the same state."""
    plotting.quality_figure(
        directory / "quality.png", inputs.task, record, inputs.original,
        inputs.sample.transition, seed=FLAGS.seed,
    )  # fmt: skip
    made, windows = inputs.made, inputs.windows
    rows = measures.find_starts(inputs, made)
    remaining = np.asarray(inputs.dataset.remaining)
    best = int(np.argmax(made.length + 0.5 * (rows >= 0)))  # one that starts in a real state
    length, row = int(made.length[best]), int(rows[best])
    if row >= 0:
        real = inputs.original.observation[row : row + min(length, int(remaining[row]))]
    else:
        real = windows.transition.observation[best, : windows.length[best]]
    plotting.trajectory_strip(
        directory / "trajectory.png", directory / "trajectory.gif", inputs.task, real,
        made.transition.observation[best, :length],
    )  # fmt: skip


def print_table(found: Mapping[str, Mapping[str, float | None]]) -> None:
    """All metrics, those without a name of their own last."""
    rows = [
        (metrics.label(n), *(metrics.show(n, found[n][k], "-") for k in ("original", "synthetic")))
        for n in sorted(found, key=metrics.order)
    ]
    print(_main.table(rows, ("", "original", "synthetic")))


def remarks(
    task: Task,
    generator: generators.Generator | None,
    found: Mapping[str, Mapping[str, float | None]],
) -> list[str]:
    """What was left out, and why, and what to beware of."""
    lines = metrics.warnings(found)
    if generator is not None and found.get("generator_starts", {}).get("synthetic") == 0:
        lines.append("the policy was not run in the simulator: no row's outcome over the length of "
                     "the longest segment is recorded")  # fmt: skip
    if not oracle.is_known(task):
        lines.append(f"not measured, as there is no oracle for {task.environment or '(none)'}: "
                     "errors of steps and rewards, replays, the generator itself")  # fmt: skip
    if termination.rule(task) is None:
        lines.append(f"not measured, as states of {task.environment or '(none)'} do not tell when "
                     "an episode ends: terminals")  # fmt: skip
    if oracle.is_known(task) and generator is None and FLAGS.generator != "none":
        lines.append("no policy was run in the simulator: there is none beside the data")
    return lines


if __name__ == "__main__":
    _main.run(main, without=("preset", "set"))
