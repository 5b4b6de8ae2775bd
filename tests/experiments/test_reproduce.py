"""The commands of the papers' tables: each must mean something to the app that it names."""

import json
import re
from pathlib import Path

import pytest
from launch import run
from test_apps import ENV

from experiments import _tables
from experiments._commands import SCALES

ALL = tuple(_tables.TABLES)
ISSUE = {
    *(f"tgcvg/table{i}" for i in (1, 2, 3, 4, 7, 8, 9, 10, 11)),
    *(f"tgcvg/figure{i}" for i in range(2, 7)),
    *(f"gta/table{i}" for i in (1, 4, 5, *range(10, 21), *range(26, 30))),
    *(f"gta/figure{i}" for i in (4, *range(6, 12))),
}


# Run as a script, for the flags of two apps do not go together in one process.
CHECK = """
import importlib, json, sys
from experiments import _main, _stages
from tgcvg_jax import data
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.synthesizers import SYNTHESIZERS
app = importlib.import_module(f"experiments.{sys.argv[1]}")
FLAGS, configs = _main.FLAGS, {}
for line in json.load(open(sys.argv[2])):
    FLAGS.unparse_flags()
    FLAGS(["app", *line])
    try:
        if FLAGS.env is None:
            continue
        task = data.resolve(FLAGS.env)
        if sys.argv[1] == "synthesize":
            module = SYNTHESIZERS[FLAGS.synthesizer]
            config = _stages.synthesizer_config(module, task)
            about = (FLAGS.preset, task.name, *FLAGS.mix, FLAGS.subset)
            configs[(*about, _main.labelled(FLAGS.synthesizer))] = config
            models = module.make(task, config).models
            for model, label in _stages.models_from(FLAGS.models_from, models).items():
                assert getattr(configs[(*about, label)], model) == getattr(config, model)
        elif sys.argv[1] == "train_offline":
            app.make_config(task, LEARNERS[FLAGS.learner])
            app.synthesizer_of(FLAGS.synthesizer)
            _main.labelled(FLAGS.learner)
    except Exception as error:
        sys.exit(f"{line}: {error!r}")
"""


def value(command, flag, default=None):
    found = [f.partition("=")[2] for f in command.flags if f.startswith(f"--{flag}=")]
    return found[-1] if found else default


def labelled(command, base):
    return "-".join(filter(None, (base, value(command, "name"))))


def output(command):
    """The folder that a command writes to."""
    base = value(command, "synthesizer")
    if command.app == "synthesize":
        return labelled(command, base)
    if command.app == "train_offline":
        return f"{base}/{labelled(command, value(command, 'learner'))}"
    return f"{command.app} {base or value(command, 'checkpoint')}"


@pytest.mark.parametrize("preset", SCALES)
def test_one_workdir_holds_all(preset):
    """No two commands of all tables want one folder for different things."""
    commands = _tables.commands((*ALL, *_tables.EXPERIMENTS), SCALES[preset])
    assert set(ALL) >= ISSUE and len(commands) == len(set(commands)) > 100
    assert commands[-1].app == "report"
    folders = {}
    for command in commands:
        folder = (command.env, output(command))
        if command.app == "quality":  # measured in full or in part, in the same folder
            continue
        assert folders.setdefault(folder, command) == command
    made = {c for c in commands if c.app == "synthesize"}
    for command in commands:
        # The best episodes and the rest of the data must be the synthesizer's.
        base = value(command, "synthesizer")
        if command.app == "train_offline" and base.partition("-")[0] != "none":
            source = next(m for m in made if (m.env, output(m)) == (command.env, base))
            for flag in ("subset", "mix"):
                assert value(source, flag) == value(command, flag)


@pytest.mark.parametrize("preset", SCALES)
@pytest.mark.parametrize("name", [*ALL, *_tables.EXPERIMENTS])
def test_what_a_command_needs_comes_before_it(name, preset):
    there = set()
    for command in _tables.commands((name,), SCALES[preset])[:-1]:
        env = command.env
        needed = [f.rpartition(":")[2] for f in command.flags if f.startswith("--models_from=")]
        needed = [label.removeprefix("--models_from=") for label in needed]
        base = value(command, "synthesizer", "none")
        if command.app == "quality" or (
            command.app == "train_offline" and base.partition("-")[0] != "none"
        ):
            needed.append(base)
        for flag in ("generator", "checkpoint"):
            if path := value(command, flag):
                assert path.startswith("{runs}/")
                path = path.removeprefix("{runs}/")
                needed.append(path if path.startswith("none") else path.partition("/")[0])
        assert {(env, label) for label in needed} <= there, command
        there.add((env, output(command)))


@pytest.mark.parametrize("app", ["synthesize", "train_offline", "evaluate", "quality", "report"])
def test_apps_take_their_flags(app, tmp_path):
    """Every flag is the app's, every --set a field, every synthesizer and learner there.

    Models that are taken from another run are of the same settings and data.
    """
    lines = []
    for preset, scale in SCALES.items():
        for command in _tables.commands(tuple(_tables.EXPERIMENTS), scale):
            if command.app == app:
                line = [f"--env={command.env}"] if command.env else []
                lines.append([*line, *command.flags, f"--preset={preset}"])
    assert lines
    (tmp_path / "check.py").write_text(CHECK)
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    result = run("check.py", app, "lines.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]


def test_shared_flags_are_those_that_apps_take():
    from experiments import reproduce

    folder = Path(reproduce.__file__).parent
    for app in ("synthesize", "train_offline", "evaluate", "quality", "report"):
        found = re.search(r"without=(\(.*?\))", (folder / f"{app}.py").read_text())
        without = re.findall(r'"(\w+)"', found[1]) if found else []
        assert set(reproduce.REFUSED.get(app, ())) == set(without) & set(reproduce.SHARED)


def test_lists_prints_and_runs(tmp_path):
    listed = run("reproduce", "list", cwd=tmp_path)
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) < 80
    assert all(len(line) <= 125 for line in listed.stdout.splitlines())
    for name in ("tgcvg/table1", "gta/figure4", "both/mixed", "beyond/tgcvg"):
        assert f"\n{name} " in listed.stdout
    also = (
        "gta/table10 (and table11 to table19, table26, table28, figure6 to figure11) contents not"
    )
    assert also in " ".join(listed.stdout.split())
    wanted = ("--table=tgcvg/table4", f"--env={ENV}", "--preset=quick", "--workdir=a b")
    printed = run("reproduce", "commands", *wanted, cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    lines = printed.stdout.splitlines()
    first = f"python -m experiments.synthesize --env={ENV} --synthesizer=s4rl"
    assert lines[0] == f"{first} '--workdir=a b' --preset=quick"
    assert lines[-1] == "python -m experiments.report '--workdir=a b'"
    for arguments, words in (
        (("run",), "run needs --table"),
        (("commands", "--table=tgcvg/table99"), "--table=tgcvg/table99: no such table"),
        (("list", "--env=x"), "--env has no effect here"),
        # The first command fails, and none follows.
        (("run", "--table=tgcvg/table4", "--env=no-such"), "synthesize ended with status 2"),
    ):
        result = run("reproduce", *arguments, cwd=tmp_path)
        assert result.returncode == 2, result.stderr
        assert words in result.stderr.splitlines()[-1]
    assert "unknown env 'no-such'" in result.stderr
    assert result.stdout.count("python -m") == 1
