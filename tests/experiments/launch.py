"""Runs the apps as a user does, each in a process of its own, without paying for it each time.

The processes are forked from one that has the imports behind it, and share a cache of compiled
programs: importing and compiling take much longer than what is tested.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

SERVER = """
import json, os, runpy, sys, traceback
import experiments._main, experiments._stages
import tgcvg_jax.collection, tgcvg_jax.data.export, tgcvg_jax.data.mini, tgcvg_jax.data.statistics
import tgcvg_jax.evaluation.loading, tgcvg_jax.evaluation.rollout, tgcvg_jax.plotting
import tgcvg_jax.report.page, tgcvg_jax.synthesizers.pipeline
for line in sys.stdin:
    job = json.loads(line)
    if not (pid := os.fork()):
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT), number)
        sys.argv = [job["module"], *job["arguments"]]
        try:
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)  # the interpreter's own way out takes half a second
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def environment(changes=None):
    """Compiling tiny programs is most of the time, so the compiler is told to try less hard."""
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    return {**os.environ, **quick, **(changes or {})}


@functools.cache
def server():
    """The process that forks, one for each process of the tests."""
    folder = tempfile.TemporaryDirectory()
    cache = {
        "JAX_COMPILATION_CACHE_DIR": f"{folder.name}/xla",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=environment(cache), cwd=Path(__file__).parents[2],
    )  # fmt: skip

    def close():
        process.stdin.close()
        process.wait(10)
        folder.cleanup()

    atexit.register(close)
    return process, Path(folder.name)


def run(app, *arguments, cwd, env=None):
    """Runs an app, or with a name in .py a script of the folder, with changes to the environment.

    Returns:
      returncode, stdout and stderr.
    """
    process, folder = server()
    logs = {name: folder / name for name in ("stdout", "stderr")}
    for path in logs.values():
        path.unlink(missing_ok=True)
    module = app.removesuffix(".py") if app.endswith(".py") else f"experiments.{app}"
    job = {"module": module, "cwd": str(cwd), "arguments": list(map(str, arguments))}
    job |= {"env": env or {}, **{name: str(path) for name, path in logs.items()}}
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    code = int(process.stdout.readline())
    return SimpleNamespace(
        returncode=code, **{name: path.read_text() for name, path in logs.items()}
    )
