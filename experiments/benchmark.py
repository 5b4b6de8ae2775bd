r"""Measures speed, compilation apart from the steady state.

    python -m experiments.benchmark --env=hopper-medium-mini --learners=td3_bc,iql,cql \
        --batch_sizes=256,1024 --seed_counts=1,5 --json=speed.json

The suite `learners` trains each learner on the data, with CORL's settings but for the batch size,
in two ways: `loop` as `training.fit` does, many updates in one compiled loop on the device; `call`
with one jitted call for each update from a Python loop. There, too, batches are drawn on the device
and the state is donated, so only the dispatch differs. The two take turns; the median of --repeats
is reported. --json is written after every line; what it holds of the same hardware, versions and
sizes is not measured again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import _main, _stages
from tgcvg_jax import training
from tgcvg_jax.files import atomic_path
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.types import Dataset, Learner, UserError

FLAGS = flags.FLAGS
flags.DEFINE_enum("suite", "learners", ["learners"], "What to measure.")
flags.DEFINE_list("learners", sorted(LEARNERS), "Which of them.")
flags.DEFINE_list("batch_sizes", ["256"], "Batch sizes.")
flags.DEFINE_list("seed_counts", ["1", "5"], "Numbers of seeds in one program.")
flags.DEFINE_list("dispatch", ["loop", "call"], "loop, call, or both.")
flags.DEFINE_float("seconds", 3.0, "Length of one measurement.", lower_bound=0.0)
flags.DEFINE_integer("repeats", 5, "Measurements of each kind.", lower_bound=1)
flags.DEFINE_string("json", None, "Where to write the records, and read those that are there.")

Step = Callable[[Any, int], Any]  # (state, number of updates) -> state


def main() -> None:
    """Measures what the flags ask for, line by line."""
    sizes = [list(map(_positive, values)) for values in (FLAGS.batch_sizes, FLAGS.seed_counts)]
    for name, values, known in (
        ("learners", FLAGS.learners, set(LEARNERS)),
        ("dispatch", FLAGS.dispatch, {"loop", "call"}),
    ):
        if not values or set(values) - known:
            raise UserError(f"--{name}={','.join(values)}: choose from {', '.join(sorted(known))}")
    task, dataset = _stages.load()
    records = Records(FLAGS.json)
    print(records.environment["hardware"])
    print("learner   batch  seeds         compile    steps/s  x seeds")
    for name, batch_size, num_seeds in itertools.product(FLAGS.learners, *sizes):
        module = LEARNERS[name]
        config = module.for_task(task, "corl")
        config = dataclasses.replace(config, batch_size=batch_size)
        where = {
            "suite": FLAGS.suite,
            "name": name,
            "sizes": {"env": task.name, "batch_size": batch_size, "num_seeds": num_seeds},
        }
        keys = [where | {"dispatch": d} for d in FLAGS.dispatch]
        if not all(map(records.find, keys)):
            measured = measure(module.make(task, config), dataset, num_seeds, FLAGS.dispatch)
            for dispatch, result in measured.items():
                records.add(where | {"dispatch": dispatch}, result)
        for record in map(records.find, keys):
            print(
                f"{name:8s}{batch_size:7d}{num_seeds:7d}  {record['dispatch']:6s}"
                f"{record['compile_seconds']:6.1f} s{record['rate']:11.4g}"
                f"{record['rate'] * num_seeds:9.4g}",
                flush=True,
            )
    if FLAGS.json:
        print(f"\nwritten to {FLAGS.json}")


def measure(
    learner: Learner, dataset: Dataset, num_seeds: int, dispatch: list[str]
) -> dict[str, dict[str, Any]]:
    """Updates per second of a learner, each seed's counted once.

    Args:
      learner: what to train.
      dataset: on what.
      num_seeds: in one program.
      dispatch: `loop`, `call`, or both; see above.
    """
    data = learner.prepare(dataset)
    seeds = range(num_seeds)
    keys = training.seed_keys(seeds)
    chunk = training.make_chunk(learner)
    state = training.init(learner, data, seeds)
    runs, results, states = {}, {}, {}
    for name in dispatch:
        start = time.perf_counter()
        if name == "loop":
            sums = chunk.zero_sums(state, keys, data)
            compiled = chunk.run.lower(state, sums, keys, data, jnp.int32(1)).compile()
            runs[name] = functools.partial(_loop, compiled, sums, keys, data)
        else:
            step = jax.jit(chunk.step, donate_argnums=0)
            compiled = step.lower(state, keys, data).compile()
            runs[name] = functools.partial(_call, compiled, keys, data)
        results[name] = {"compile_seconds": round(time.perf_counter() - start, 3)}
        states[name] = jax.tree.map(jnp.copy, state)
    rates: dict[str, list[float]] = {name: [] for name in dispatch}
    updates = dict.fromkeys(dispatch, 1)
    for repeat in range(-2, FLAGS.repeats):  # the first two warm up and find the length
        for name, run in runs.items():
            start = time.perf_counter()
            states[name] = jax.block_until_ready(run(states[name], updates[name]))
            rate = updates[name] / (time.perf_counter() - start)
            updates[name] = max(1, int(rate * (FLAGS.seconds if repeat > -2 else 0.5)))
            if repeat >= 0:
                rates[name].append(rate * learner.steps_per_update)
    for name in dispatch:
        low, high = min(rates[name]), max(rates[name])
        results[name] |= {
            "rate": round(statistics.median(rates[name]), 3),
            "rate_range": [round(low, 3), round(high, 3)],
            "unit": "gradient steps of each seed per second",
        }
    return results


def _loop(compiled, sums, keys, data, state, updates):
    # The sums are donated; a copy serves the next run.
    return compiled(state, jax.tree.map(jnp.copy, sums), keys, data, jnp.int32(updates))[0]


def _call(compiled, keys, data, state, updates):
    for _ in range(updates):
        state, _ = compiled(state, keys, data)
    return state


class Records:
    """What was measured, on disk if there is a path.

    Args:
      path: of a JSON list; None keeps the records in memory.
    """

    def __init__(self, path: str | None):
        self._path = Path(path).expanduser() if path else None
        self._records: list[dict[str, Any]] = []
        if self._path and self._path.exists():
            try:
                self._records = json.loads(self._path.read_text())
                if not all(isinstance(r, dict) for r in self._records):
                    raise ValueError
            except (OSError, ValueError, TypeError) as e:
                raise UserError(f"--json={path}: is there, but no list of records") from e
        devices = jax.devices()
        self.environment = {
            "hardware": f"{len(devices)} x {devices[0].device_kind}, {_cores()} CPU cores "
            f"({platform.machine()})",
            "versions": _main.versions() | {"python": platform.python_version()},
        }

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The record of this name and these sizes, measured here, or None."""
        key = key | self.environment
        found = (r for r in self._records if all(r.get(k) == v for k, v in key.items()))
        return next(found, None)

    def add(self, key: dict[str, Any], result: dict[str, Any]) -> None:
        """Adds a record, and writes all of them."""
        self._records.append(key | self.environment | result)
        if self._path:
            with atomic_path(self._path) as temporary:
                temporary.write_text(json.dumps(self._records, indent=1) + "\n")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{text!r}: sizes are positive whole numbers, as in --seed_counts=1,5")
    return int(text)


if __name__ == "__main__":
    _main.run(main, without=("workdir", "preset", "set", "seed"))
