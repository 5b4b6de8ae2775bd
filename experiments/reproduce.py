"""The commands behind every table and figure of TGCVG and GTA, printed or run.

    python -m experiments.reproduce list
    python -m experiments.reproduce commands --table=tgcvg/table3 --preset=quick
    python -m experiments.reproduce run --table=tgcvg/table8,gta/figure4 --env=hopper-medium-v2

`list` shows all tables and the experiments that they consist of; --table takes the names of either.
`commands` prints what to run, in order; several tables share what they have in common, and so do
several calls with one --workdir. `run` runs it, one process after another, and stops at the first
that fails; run it again to go on from there. The last command gathers all scores and metrics into
<workdir>/report/. --preset=paper is the papers' scale, for accelerators; --preset=quick exercises
the same programs on bundled data, on a CPU.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import textwrap

from absl import flags

from experiments import _main, _tables
from experiments._commands import SCALES, Command
from tgcvg_jax.types import UserError

FLAGS = flags.FLAGS
flags.DEFINE_list("table", None, "Tables, figures or experiments of `list`, separated by commas.")
USES = ("list", "commands", "run")
# Flags of this app that others take as well; report alone takes no task, and so no others.
SHARED = ("workdir", "preset", "data_dir", "seed", "after_goal")
REFUSED = {
    "evaluate": ("workdir", "preset"),
    "quality": ("preset",),
    "report": ("preset", "data_dir", "seed", "after_goal"),
}


def main(use: str) -> None:
    """Lists, prints or runs."""
    if use == "list":
        _main.refuse(("table", "env"))
        show()
        return
    if not FLAGS.table:
        raise UserError(f"{use} needs --table, for example --table=tgcvg/table3; see `list`")
    known = (*_tables.TABLES, *_tables.EXPERIMENTS)
    for name in FLAGS.table:
        if name not in known:
            raise UserError(f"--table={name}: no such table or experiment; `list` shows all")
    lines = [
        argv(command)
        for command in _tables.commands(tuple(FLAGS.table), SCALES[FLAGS.preset], FLAGS.env)
    ]
    for number, line in enumerate(lines, 1):
        if use == "run":
            print(f"\n[{number}/{len(lines)}]", end=" ")
        print(shlex.join(["python", *line]), flush=True)
        if use == "run":
            run(line)


def show() -> None:
    """All tables and all experiments; tables that are alike share an entry."""
    alike: dict[_tables.Table, list[str]] = {}
    for name, table in _tables.TABLES.items():
        alike.setdefault(table, []).append(name)
    rows = []
    for table, (name, *others) in alike.items():
        also = f"(and {ranges(others)}) " if others else ""
        text = f"{also}{table.about} [{', '.join(table.experiments)}]"
        lines = textwrap.wrap(text, 84, break_on_hyphens=False)
        rows += zip([name, *[""] * (len(lines) - 1)], lines)
    print(_main.table(rows, ("table", "what it holds, and [its experiments]"), left=(0, 1)))
    rows = [
        (name, " ".join(function.__doc__.split()))
        for name, (function, _) in _tables.EXPERIMENTS.items()
    ]
    print()
    print(_main.table(rows, ("experiment", "what it varies"), left=(0, 1)))


def ranges(names: list[str]) -> str:
    """Tables of one paper, those in a row as one: table11 to table19, table26."""
    found: list[list[tuple[str, int]]] = []
    for name in names:
        kind, number = re.fullmatch(r"\w+/([a-z]+)(\d+)", name).groups()
        if found and found[-1][-1] == (kind, int(number) - 1):
            found[-1].append((kind, int(number)))
        else:
            found.append([(kind, int(number))])
    ends = [dict.fromkeys((row[0], row[-1])) for row in found]
    return ", ".join(" to ".join(f"{kind}{number}" for kind, number in row) for row in ends)


def argv(command: Command) -> list[str]:
    """A command's arguments for Python, with those flags of this run that the app takes."""
    folder = command.env.replace("/", "_")
    given = [f"--env={command.env}"] if command.env else []
    given += [flag.replace("{runs}", f"{FLAGS.workdir}/{folder}") for flag in command.flags]
    for name in SHARED:
        if name not in REFUSED.get(command.app, ()) and FLAGS[name].value != FLAGS[name].default:
            given.append(f"--{name}={FLAGS[name].value}")
    return ["-m", f"experiments.{command.app}", *given]


def run(line: list[str]) -> None:
    """One command, to its end. It is told to end by what tells this process to.

    Raises:
      UserError: it failed.
      KeyboardInterrupt: SIGINT or SIGTERM; the command has saved what it does.
    """
    received: list[int] = []
    process = None

    def receive(number: int, _: object) -> None:
        received.append(number)
        if number == signal.SIGTERM and process is not None:
            process.send_signal(number)  # the terminal itself sends Ctrl-C to both

    handlers = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen([sys.executable, *line])
        status = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received or status in (130, 143):
        error = KeyboardInterrupt()
        error.signal = received[0] if received else status - 128
        raise error
    if status:
        raise UserError(
            f"experiments.{line[1].rpartition('.')[2]} ended with status {status}; the same "
            "command goes on from there"
        )


if __name__ == "__main__":
    _main.run(main, without=("dataset", "set"), commands=USES)
