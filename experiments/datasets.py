"""Lists, describes, downloads and converts datasets.

    python -m experiments.datasets list
    python -m experiments.datasets info --env=hopper-medium-mini
    python -m experiments.datasets info --env=E --dataset=runs/E/tgcvg/synthetic.hdf5
    python -m experiments.datasets download --env=walker2d-medium-v2
    python -m experiments.datasets export --env=E --to=d4rl --out=mine.hdf5
    python -m experiments.datasets export --env=E --to=minari --id=mine/hopper/medium-v0
    python -m experiments.datasets export --env=E --to=d4rl --out=augmented.hdf5
        --augmented_with=runs/E/tgcvg/synthetic.hdf5

list      all names that --env takes, and whether their data is on this machine
info      a dataset in numbers, and what they suggest for TGCVG; writes returns.png and info.json to
          <workdir>/<env>/info/
download  fetches a D4RL file or a Minari dataset, so that later runs need no network
export    writes --dataset, or the task's own data, as a D4RL file or a Minari dataset. Synthetic
          data is better kept in D4RL's format: Minari spends about 20 kB on every segment.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

import gymnasium
from absl import flags

from experiments import _main
from tgcvg_jax import config as config_lib
from tgcvg_jax import data, plotting, reporting, tasks
from tgcvg_jax.data import export, minari, statistics, synthetic
from tgcvg_jax.data.validate import is_synthetic, open_hdf5
from tgcvg_jax.files import atomic_path
from tgcvg_jax.ops import scores
from tgcvg_jax.types import Dataset, Source, Task, UserError

FLAGS = flags.FLAGS
flags.DEFINE_enum("to", None, ["d4rl", "minari"], "export: the format.")
flags.DEFINE_string("out", None, "export: the HDF5 file to write, or the Minari store, by default "
                    "$MINARI_DATASETS_PATH or ~/.minari/datasets.")  # fmt: skip
flags.DEFINE_string("id", None, "export --to=minari: the new dataset's id, namespace/name-v0.")
flags.DEFINE_string("augmented_with", None, "export: a synthetic.hdf5 to add to the data.")
flags.DEFINE_bool("padded", False, "export --to=d4rl: for readers that ignore next_observations, "
                  "add a row after each episode that they drop.")  # fmt: skip

USES = {  # the flags that a command takes
    "list": ("data_dir",),
    "info": ("env", "workdir", "data_dir", "dataset", "after_goal"),
    "download": ("env", "data_dir"),
    "export": ("env", "data_dir", "dataset", "after_goal", "to", "out", "id", "augmented_with",
               "padded"),
}  # fmt: skip


def main(command: str) -> None:
    """Runs one of the four."""
    every = dict.fromkeys(name for names in USES.values() for name in names)
    _main.refuse([name for name in every if name not in USES[command]])
    if command != "list":
        _main.require_env()
    {"list": show_list, "info": info, "download": download, "export": export_data}[command]()


def show_list() -> None:
    """All tasks and environments. Wide on purpose: a line is never cut or wrapped."""
    kinds = {"d4rl": "D4RL", "bundled": "Bundled", "minari": "Minari"}
    sections = {
        title: [task for task in tasks.TASKS.values() if task.sources[0].kind == kind]
        for kind, title in kinds.items()
    }
    sections["Environments to collect in (python -m experiments.collect)"] = list(
        tasks.ENVIRONMENTS.values()
    )
    rows = [_row(task) for section in sections.values() for task in section]
    header = ("name", "S", "A", "horizon", "REF_MIN", "REF_MAX", "episodes", "here",
              "environment", "source")  # fmt: skip
    top, rule, *lines = _main.table(rows, header, left=(0, 7, 8, 9)).splitlines()
    print(f"{top}\n{rule}")
    for title, section in sections.items():
        print(f"\n{title}")
        print("\n".join(lines[: len(section)]))
        del lines[: len(section)]
    print(
        "\nepisodes: of an evaluation, for each seed. --env also takes any other Minari id, and, "
        "with --dataset=FILE, any Gymnasium id with box spaces, such as Ant-v5."
    )


def _row(task: Task) -> tuple[str, ...]:
    here, where = "-", "-"
    if task.sources:
        source = task.sources[0]
        where = source.path or {"bundled": "bundled", "minari": "Minari"}[source.kind]
        here = "no" if data.locate(source, FLAGS.data_dir) is None else "yes"
        if here == "yes" and source.kind == "minari":
            with contextlib.suppress(UserError):  # damage is said when the data is used
                task = minari.make_task(task.name, FLAGS.data_dir)  # knows the reference scores
    bounds = ("-" if x is None else repr(float(x)) for x in (task.min_score, task.max_score))
    return (
        task.name, str(task.observation_dim), str(task.action_dim), str(task.episode_length),
        *bounds, str(task.eval_episodes), here, task.environment, where,
    )  # fmt: skip


def info() -> None:
    """A dataset in numbers."""
    task, dataset, where = _load()
    directory = _main.task_dir(task, "info")
    _main.require_writable(directory)
    found = statistics.describe(dataset)
    whole = task.domain != "maze2d" and not found.segments  # a segment's return is no score
    score = scores.normalized_score(found.returns.mean, task) if whole else None
    suggestion = None if found.segments else statistics.suggest_tgcvg(found, task)
    plotting.return_histogram(directory / "returns.png", task, data.episode_returns(dataset))
    paper = _paper_settings(task)
    numbers = {
        "env": task.name,
        "source": str(where),
        "task": config_lib.to_dict(task),
        "statistics": config_lib.to_dict(found)
        | {"length": found.length._asdict(), "returns": found.returns._asdict()},
        "normalized_score": None if score is None else float(score),
        "tgcvg_table_6": None if paper is None else paper._asdict(),
        "tgcvg_suggestion": None if suggestion is None else suggestion._asdict(),
    }
    with atomic_path(directory / "info.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=2) + "\n")
    print(task.name)
    for name, value in _lines(task, found, score, where):
        print(f"  {name:<23}{value}")
    print()
    print("\n".join(_settings(task, suggestion)))
    print(f"\nwritten to {directory}/: returns.png, info.json")


def _lines(
    task: Task, found: statistics.Statistics, score: float | None, where: Path
) -> Iterable[tuple[str, str]]:
    pieces, r, n = found.episodes, found.returns, found.length
    yield "source", str(where)
    yield "environment", f"{task.environment or '-'}, at most {task.episode_length} steps"
    yield "transitions", f"{found.transitions:,}"
    yield "episodes", f"{pieces:,}"
    if found.segments:
        yield "", f"{found.segments:,} of them are segments, which begin later than at step 0;"
        yield "", "their return is what the file says will follow, the segment included"
    yield "length", f"{n.mean:.1f}, min {n.min:.0f}, median {n.median:g}, max {n.max:.0f}"
    middle = f"min {r.min:.1f}, median {r.median:.1f}, max {r.max:.1f}"
    yield "return", f"{r.mean:.1f} ± {r.std:.1f}, {middle}"
    if score is not None:
        bounds = f"0: {task.min_score!r}, 100: {task.max_score!r}"
        yield "normalised score", f"{score:.1f} of the mean return ({bounds})"
    least = f"{100 * statistics.MODE_SHARE:.0f} % of the episodes"
    yield "modes of the return", f"{found.return_modes} (groups of at least {least})"
    yield "end in a terminal", f"{found.terminals:,} episodes, {100 * found.terminal_share:.1f} %"
    yield "are cut or time out", f"{pieces - found.terminals:,} episodes"
    yield "reward of a step", f"{found.reward_min:.6g} to {found.reward_max:.6g}"
    yield "actions at the bounds", f"{100 * found.actions_at_bounds:.1f} % of all entries"
    constant = ", ".join(map(str, found.constant_dims))
    yield "state never changes in", f"dimension {constant}" if constant else "no dimension"


def _paper_settings(task: Task) -> tasks.TGCVGSettings | None:
    """The row of Table 6 for the task's family."""
    known = task.family in tasks.TGCVG_SETTINGS and not task.family.endswith("-random")
    return tasks.TGCVG_SETTINGS[task.family] if known else None


def _settings(task: Task, suggestion: statistics.Suggestion | None) -> Iterable[str]:
    """What to train TGCVG with."""
    default, rows = tasks.tgcvg_settings(task), []
    name = f"Table 6, {task.family}" if _paper_settings(task) else "synthesize's default"
    rows.append((name, f"{default.context_length}", f"{default.cql_weight:g}",
                 f"{default.window_length}"))  # fmt: skip
    if suggestion is not None:
        spans = map(_span, (suggestion.cql_weight, suggestion.window_length))
        rows.append(("suggested by this data", f"{suggestion.context_length}", *spans))
    yield _main.table(rows, ("settings of TGCVG", "L", "lambda", "K"))
    if suggestion is None:
        yield "\nSegments suggest nothing: run info on the data that they were made from."
        return
    yield "\n" + "; ".join(suggestion.reasons) + "."
    yield (
        "The suggestion takes the criteria of the paper's Appendix C and puts numbers on them "
        "that\nwere fitted to its Table 6: a heuristic, not a formula of the paper. synthesize "
        "takes the\nfirst row at the papers' scale; to change it: "
        "--set=policy.context_length=L\n--set=policy.cql_weight=LAMBDA --set=window_length=K"
    )


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g} to {ends[1]:g}"


def download() -> None:
    """The task's data to this machine."""
    source = _source(FLAGS.env)
    place = data.locate(source, FLAGS.data_dir)
    if source.kind == "bundled":
        print(f"{FLAGS.env} is bundled, nothing to download: {place}")
    elif place is not None:
        with open_hdf5(place if place.is_file() else place / "data" / "main_data.hdf5"):
            print(f"already there: {place}")
    else:
        start = time.perf_counter()
        place = data.obtain(source, FLAGS.data_dir)
        size = sum(file.stat().st_size for file in (place, *place.rglob("*")) if file.is_file())
        took = reporting.duration(time.perf_counter() - start)
        print(f"downloaded: {place} ({size / 1e6:,.1f} MB, {took})")


def _source(name: str) -> Source:
    if name in tasks.TASKS:
        return tasks.TASKS[name].sources[0]
    if "/" in name and minari.is_id(name) and name not in gymnasium.registry:
        return Source("minari", name)
    task = data.resolve(name, data_dir=FLAGS.data_dir)
    raise UserError(f"--env={task.name} has no data of its own; collect it with "
                    "python -m experiments.collect")  # fmt: skip


def export_data() -> None:
    """Writes a dataset, augmented if asked for, in the other format."""
    _check_export()
    start = time.perf_counter()
    task, dataset, where = _load()
    name = where.name if where.is_file() else minari.make_task(where).name
    parts = [f"{name} ({dataset.size:,} transitions)"]
    if FLAGS.augmented_with:
        with open_hdf5(path := Path(FLAGS.augmented_with).expanduser()):
            if not is_synthetic(path):
                raise UserError(f"--augmented_with={path}: is no file that synthesize made")
        added = synthetic.read(path, task)
        name = Path(FLAGS.augmented_with).name
        parts.append(f"{name} ({added.size:,} synthetic transitions)")
        dataset = data.concatenate([dataset, added])
    description = f"{task.name}: {' and '.join(parts)}, exported by tgcvg_jax"
    if FLAGS.to == "d4rl":
        place = export.to_d4rl(dataset, Path(FLAGS.out).expanduser(), padded=FLAGS.padded,
                               attributes={"description": description})  # fmt: skip
        use = f"--env={task.name} --dataset={place}"
    else:
        place = export.to_minari(dataset, FLAGS.id, out=FLAGS.out, description=description,
                                 console=reporting.Console())  # fmt: skip
        use = f"--env={FLAGS.id}" + (f" --data_dir={FLAGS.out}" if FLAGS.out else "")
    pieces = len(data.episode_returns(dataset))
    took = reporting.duration(time.perf_counter() - start)
    print(f"{' and '.join(parts)}\nwritten to {place}: {dataset.size:,} transitions, "
          f"{pieces:,} episodes, {took}\nuse it with {use}")  # fmt: skip


def _check_export() -> None:
    """The flags of `export`, before anything is read."""
    if FLAGS.to is None:
        raise UserError("export needs --to=d4rl or --to=minari")
    for name, needed in (("id", "minari"), ("padded", "d4rl")):
        if FLAGS[name].present and FLAGS.to != needed:
            raise UserError(f"--{name} is for --to={needed}; leave it out")
    if FLAGS.to == "d4rl":
        if not FLAGS.out:
            raise UserError("--to=d4rl needs --out=FILE.hdf5")
        path = Path(FLAGS.out).expanduser()
        published = {s.name for t in tasks.TASKS.values() for s in t.sources if s.kind == "d4rl"}
        if path.name in published:
            raise UserError(f"--out={FLAGS.out}: that is the name of a file of D4RL's, for which "
                            "this one could be mistaken; choose another")  # fmt: skip
        if path.suffix not in (".hdf5", ".h5"):
            raise UserError(f"--out={FLAGS.out}: must end in .hdf5 or .h5")
        if path.exists():
            raise UserError(f"--out={FLAGS.out}: exists already; choose another name or delete it")
        return
    if not FLAGS.id:
        raise UserError("--to=minari needs --id=namespace/name-v0")
    export.require_new(FLAGS.id, FLAGS.out)


def _load() -> tuple[Task, Dataset, Path]:
    """The task and dataset of the command line, and where the data lies."""
    where = dict(data_dir=FLAGS.data_dir, dataset=FLAGS.dataset)
    task = data.resolve(FLAGS.env, **where)
    if FLAGS.dataset is None:
        dataset = data.load(task, **where, after_goal=FLAGS.after_goal)
        places = (data.locate(source, FLAGS.data_dir) for source in task.sources)
        return task, dataset, next(place for place in places if place is not None)
    path = Path(FLAGS.dataset).expanduser()
    dataset = data.load(task, **where, after_goal=FLAGS.after_goal)
    return task, dataset, path if path.exists() else minari.require(FLAGS.dataset, FLAGS.data_dir)


if __name__ == "__main__":
    _main.run(main, without=("seed", "preset", "set"), commands=tuple(USES))
