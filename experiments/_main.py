"""How every app starts: flags, errors, `--help`; and what several apps share."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import jax
from absl import app, flags, logging

from tgcvg_jax.types import Task, UserError

FLAGS = flags.FLAGS

flags.DEFINE_string("env", None, "D4RL name (walker2d-medium-v2), bundled task "
                    "(hopper-medium-mini), Minari id, or Gymnasium id with --dataset.")  # fmt: skip
flags.DEFINE_string("workdir", "runs", "Results go to <workdir>/<env>/.")
flags.DEFINE_integer("seed", 0, "Seed of the run, or the first of several.", lower_bound=0)
flags.DEFINE_enum("preset", "paper", ["paper", "quick"], "Scale: the papers', or a short small "
                  "run that exercises the same code on a CPU.")  # fmt: skip
flags.DEFINE_string("data_dir", None, "Folder with D4RL files or Minari datasets. Without it: "
                    "$TGCVG_DATA, ~/.d4rl/datasets, and Minari's own store.")  # fmt: skip
flags.DEFINE_string("dataset", None, "The data, in place of the task's own: an HDF5 file in D4RL "
                    "format, a Minari directory, or a Minari id.")  # fmt: skip
flags.DEFINE_multi_string("set", [], "Changes a config field, as in --set policy.batch_size=64; "
                          "repeatable. Unknown fields list the known ones.")  # fmt: skip
COMMON = ("env", "workdir", "seed", "preset", "data_dir", "dataset", "set")


def run(main: Callable[[], None], without: tuple[str, ...] = ()) -> None:
    """Runs an app: every error of the user's becomes one `error:` line and exit status 2.

    Args:
      main: the app.
      without: flags of all apps that this one has no use for, and so refuses.
    """
    module = sys.modules["__main__"]

    def parse(argv: list[str]) -> list[str]:
        if any(a in ("-h", "-help", "--help", "--helpfull", "--helpshort") for a in argv[1:]):
            print(_help(module, without))
            sys.exit(0)
        try:
            rest = FLAGS(argv)
        except flags.Error as e:
            _fail(str(e))
        if len(rest) > 1:
            _fail(f"unexpected argument {rest[1]!r}; flags are written --name=value")
        for name in without:
            if FLAGS[name].present:
                _fail(f"--{name} has no effect here; leave it out")
        if FLAGS.env is None:
            _fail("--env is required, for example --env=hopper-medium-mini; see --help")
        return rest

    def guarded(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.ERROR)  # JAX and Orbax say much at INFO
        if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:
            # JAX's default is TF32 on recent GPUs, bfloat16 on TPUs; the references use float32.
            jax.config.update("jax_default_matmul_precision", "float32")
        try:
            main()
        except UserError as e:
            _fail(str(e))
        except OSError as e:  # a full disk, a workdir that can't be written
            _fail(f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}")
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last save", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def task_dir(task: Task, *parts: str) -> Path:
    """<workdir>/<env>/..., with `/` in a name as `_`."""
    return Path(FLAGS.workdir).expanduser().joinpath(task.name.replace("/", "_"), *parts)


def require_writable(directory: Path) -> None:
    """Makes the folder, or says at once, not after hours of training, that it can't be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as e:
        raise UserError(
            f"--workdir={FLAGS.workdir}: {directory} can't be written ({e.strerror})"
        ) from e


def slow_hint() -> str:
    """What to say beside a long estimate."""
    on_cpu = jax.default_backend() == "cpu"
    return " (on a CPU try --preset=quick)" if on_cpu and FLAGS.preset == "paper" else ""


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Aligned columns: the first to the left, numbers to the right."""
    rows = [header, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _help(module: ModuleType, without: tuple[str, ...]) -> str:
    key_flags = {f.name: f for f in FLAGS.get_key_flags_for_module(module)}
    own = [f for name, f in key_flags.items() if name not in COMMON]
    shared = [FLAGS[name] for name in COMMON if name not in without]

    def describe(flag: flags.Flag) -> str:
        values = (
            f" ({'|'.join(flag.parser.enum_values)})" if hasattr(flag.parser, "enum_values") else ""
        )
        default = "" if flag.default in (None, []) else f" Default: {flag.default}."
        text = re.sub(r"^<.*?>: |;\s+repeat this option.*", "", flag.help, flags=re.DOTALL)
        text = textwrap.fill(f"{text}{default}", 76)
        return f"  --{flag.name}{values}\n{textwrap.indent(text, '      ')}"

    parts = [(module.__doc__ or "").strip()]
    if own:
        parts.append("Flags of this app:\n" + "\n".join(map(describe, own)))
    parts.append("Flags of all apps:\n" + "\n".join(map(describe, shared)))
    return "\n\n".join(parts)
