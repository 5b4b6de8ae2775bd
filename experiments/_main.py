"""How every app starts: flags, errors, `--help`; and what several apps share."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO

import jax
from absl import app, flags, logging

from tgcvg_jax.files import write_json
from tgcvg_jax.interruption import Interrupted
from tgcvg_jax.types import Task, UserError, one_line

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
flags.DEFINE_enum("after_goal", "drop", ["drop", "keep"], "AntMaze files: what follows the first "
                  "arrival at the goal in an episode: drop (TGCVG's rule) or keep (as "
                  "CORL).")  # fmt: skip
COMMON = ("env", "workdir", "seed", "preset", "data_dir", "dataset", "set", "after_goal")


def run(
    main: Callable[..., None], without: tuple[str, ...] = (), commands: tuple[str, ...] = ()
) -> None:
    """Runs an app: every error of the user's becomes one `error:` line and exit status 2.

    Warnings become one `warning:` line each.

    Args:
      main: the app; called with the command if there are `commands`.
      without: flags of all apps that this one has no use for, and so refuses.
      commands: what the app can do; the first argument that is no flag names one of them. Such an
        app says itself when it needs --env, see `require_env`.
    """
    module = sys.modules["__main__"]

    def parse(argv: list[str]) -> list[str]:
        if any(a in ("-h", "-help", "--help", "--helpfull", "--helpshort") for a in argv[1:]):
            print(_help(module, without, commands))
            sys.exit(0)
        try:
            rest = FLAGS(argv)
        except flags.Error as e:
            _fail(str(e))
        try:
            _check_arguments(rest[1:], commands)
            refuse(without)
            if not commands:
                require_env()
        except UserError as e:
            _fail(str(e))
        return rest

    def guarded(argv: list[str]) -> None:
        warnings.showwarning = _show_warning
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
        logging.set_verbosity(logging.ERROR)  # JAX and Orbax say much at INFO
        if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:
            # JAX's default is TF32 on recent GPUs, bfloat16 on TPUs; the references use float32.
            jax.config.update("jax_default_matmul_precision", "float32")
        try:
            main(*argv[1:])
            sys.stdout.flush()
        except UserError as e:
            _fail(str(e))
        except BrokenPipeError:  # as in `list | head`: no error, but nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as e:  # a full disk, a workdir that can't be written
            _fail(f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}")
        except (MemoryError, jax.errors.JaxRuntimeError) as e:
            if not isinstance(e, MemoryError) and "RESOURCE_EXHAUSTED" not in str(e):
                raise
            remedy = "fewer --num_seeds or a" if "num_seeds" in FLAGS else "a"
            _fail(f"out of memory ({one_line(e)[:120]}); {remedy} smaller batch_size may help")
        except KeyboardInterrupt as e:
            number = getattr(e, "signal", signal.SIGINT)  # training knows, and what it saved last
            how = "terminated" if number == signal.SIGTERM else "interrupted"
            step = getattr(e, "step", 0)
            where = f"step {step:,}" if step else "the last save"
            goes_on = f"the same command goes on from {where}"
            print(f"{how}; {'nothing is saved yet' if step is None else goes_on}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + number)  # a compiler's thread may be alive, and would crash at exit

    app.run(guarded, flags_parser=parse)


def refuse(names: Sequence[str]) -> None:
    """A UserError if one of these flags is given: it would do nothing."""
    for name in names:
        if FLAGS[name].present:
            raise UserError(f"--{name} has no effect here; leave it out")


def require_env() -> None:
    """A UserError if there is no --env."""
    if FLAGS.env is None:
        raise UserError("--env is required, for example --env=hopper-medium-mini; see --help")


def labelled(base: str) -> str:
    """A folder's name: `base`, or `<base>-<name>` with --name.

    Raises:
      UserError: the name can't end a folder's.
    """
    if FLAGS.name is None:
        return base
    if not re.fullmatch(r"[A-Za-z0-9._-]+", FLAGS.name):
        raise UserError(f"--name={FLAGS.name}: letters, digits and . _ - only")
    return f"{base}-{FLAGS.name}"


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


def write_config(directory: Path, settings: dict[str, Any]) -> None:
    """config.json: the settings of a run, and the versions of what ran."""
    write_json(directory / "config.json", settings | {"versions": versions()})


def versions() -> dict[str, str]:
    """Of the packages that compute."""
    packages = ("jax", "jaxlib", "flax", "optax", "tgcvg_jax")
    return {package: importlib.metadata.version(package) for package in packages}


def slow_hint() -> str:
    """What to say beside a long estimate."""
    on_cpu = jax.default_backend() == "cpu"
    return " (on a CPU try --preset=quick)" if on_cpu and FLAGS.preset == "paper" else ""


def table(
    rows: list[tuple[str, ...]], header: tuple[str, ...], left: tuple[int, ...] = (0,)
) -> str:
    """Aligned columns: the first, or those in `left`, to the left, numbers to the right."""
    rows = [header, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _terminate(number: int, _: object) -> NoReturn:
    """SIGTERM ends an app as Ctrl-C does: with a line, and what is saved stays."""
    raise Interrupted(number, 0)


def _check_arguments(arguments: list[str], commands: tuple[str, ...]) -> None:
    """Exactly one command where there are some, nothing otherwise."""
    if commands and (not arguments or arguments[0] not in commands):
        problem = f"unknown command {arguments[0]!r}" if arguments else "which command?"
        raise UserError(f"{problem}; there are {', '.join(commands)}; see --help")
    stray = arguments[1:] if commands else arguments
    if stray:
        raise UserError(f"unexpected argument {stray[0]!r}; flags are written --name=value")


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,
) -> None:  # fmt: skip
    """`warnings.showwarning` for users: what, not where in the code."""
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning):
        print(f"warning: {' '.join(str(message).split())}", file=file or sys.stderr)


def _help(module: ModuleType, without: tuple[str, ...], commands: tuple[str, ...]) -> str:
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
    if commands:
        parts.append(f"Commands: {', '.join(commands)}")
    if own:
        parts.append("Flags of this app:\n" + "\n".join(map(describe, own)))
    parts.append("Flags of all apps:\n" + "\n".join(map(describe, shared)))
    return "\n\n".join(parts)
