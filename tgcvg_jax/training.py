"""`fit`: the one training loop.

A chunk of updates is one compiled program: sampling, updates and the sums of their metrics run in
one loop on the device, vmapped over seeds, with the state donated. Its length is an argument, not
a constant, so that any number of steps, any logging interval and any remainder share one
compilation.

Exactness: the key of a batch is fold_in(key of the seed, step), and noise comes from the state's
own key and step, so a run does not depend on how it was cut into chunks, and one that is resumed
from a checkpoint ends in the same bits as one that never stopped (same program, shapes, devices).
A checkpoint between two rows of metrics has a file of their sums beside it, so the log is the same.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax import reporting
from tgcvg_jax.checkpoint import Checkpointer
from tgcvg_jax.interruption import PartialRow, Signals
from tgcvg_jax.types import Dataset, Learner, Model, PRNGKey, PyTree, UserError


class DivergenceError(UserError):
    """A metric became NaN or infinite. The last checkpoint is from before."""


class Callback(NamedTuple):
    """Called between chunks.

    Attributes:
      every: in gradient steps.
      function: (step, state with a leading seed axis) -> metrics [N] to log, or None.
    """

    every: int
    function: Callable[[int, PyTree], Mapping[str, np.ndarray] | None]


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: the final state, with a leading seed axis [N].
      step: gradient steps done.
      log: all logged metrics.
      compile_seconds: 0 if nothing was left to train.
      steps_per_second: steady state, compilation apart; each seed's steps count once.
    """

    state: PyTree
    step: int
    log: reporting.MetricsLog
    compile_seconds: float
    steps_per_second: float


def seed_keys(seeds: Sequence[int]) -> PRNGKey:
    """One key for each seed, [N]; a seed's run is the same whichever seeds run beside it."""
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def select_seed(state: PyTree, index: int) -> PyTree:
    """One seed's state."""
    return jax.tree.map(lambda x: x[index], state)


def init(learner: Learner, data: PyTree, seeds: Sequence[int]) -> PyTree:
    """Initial states, with a leading seed axis [N]."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(seed_keys(seeds))
    return jax.jit(jax.vmap(learner.init, in_axes=(0, None)))(keys, data)


class Chunk(NamedTuple):
    """The compiled loop of `fit`, before compilation.

    Attributes:
      step: (state, keys, data) -> (state, metrics), one update of all seeds; the loop's body.
      run: (state, metric sums, keys, data, number of updates) -> (state, metric sums), jitted.
        State and sums have a leading seed axis and are donated.
      zero_sums: (state, keys, data) -> zeros in the shape of the metrics.
    """

    step: Callable[..., tuple[PyTree, PyTree]]
    run: Callable[..., tuple[PyTree, PyTree]]
    zero_sums: Callable[..., PyTree]


def make_chunk(learner: Learner) -> Chunk:
    """The loop over updates."""

    @jax.jit  # traced once, for the shapes of the metrics and for the loop
    def step_once(state: PyTree, key: PRNGKey, data: PyTree) -> tuple[PyTree, PyTree]:
        batch = learner.sample(jax.random.fold_in(key, state.step), data)
        return learner.update(state, batch)

    step_seeds = jax.vmap(step_once, in_axes=(0, 0, None))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(state, sums, keys, data, num_updates):
        def body(_, carry):
            state, metrics = step_seeds(carry[0], keys, data)
            return state, jax.tree.map(jnp.add, carry[1], metrics)

        return jax.lax.fori_loop(0, num_updates, body, (state, sums))

    def zero_sums(state, keys, data):
        _, metrics = jax.eval_shape(step_seeds, state, keys, data)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

    return Chunk(step_seeds, run, zero_sums)


def refuse_fewer_steps(checkpointer: Checkpointer, num_steps: int) -> None:
    """A UserError if the last checkpoint is beyond `num_steps`."""
    step = checkpointer.latest() or 0
    if step > num_steps:
        raise UserError(
            f"{checkpointer.directory} holds {step:,} steps already, more than the {num_steps:,} "
            "asked for; ask for at least as many, or choose another --workdir"
        )


def fit(
    learner: Learner,
    dataset: Dataset,
    *,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    seeds: Sequence[int] = (0,),
    checkpointer: Checkpointer | None = None,
    metrics_path: str | Path | None = None,
    log_every: int | None = None,
    save_every: int | None = None,
    save_minutes: float = 5.0,
    callbacks: Sequence[Callback] = (),
    console: reporting.Console | None = None,
    label: str = "training",
    hint: str = "",
    chunk_seconds: float = 1.0,
) -> FitResult:
    """Trains a learner, all seeds at once, from the last checkpoint if there is one.

    A run that is finished (enough steps, or stopped early) returns at once with its last state.
    SIGINT and SIGTERM end it after the chunk in flight, or at once in a callback, and the state is
    saved; a second SIGINT does not wait for that.

    Args:
      learner: what to train.
      dataset: what to train on.
      num_steps: gradient steps in all, rounded up to a multiple of `learner.steps_per_update`. With
        early stopping, the most.
      num_epochs: in place of `num_steps`, for learners that validate.
      seeds: one run each, under one vmap.
      checkpointer: where to save and resume; None does neither.
      metrics_path: CSV file of the metrics.
      log_every: gradient steps between rows of metrics, which are means over that interval. Without
        it 1,000, or a twentieth of a short run.
      save_every: gradient steps between checkpoints, rounded up to a multiple of `log_every`.
        Without it 10,000, or a quarter of a short run.
      save_minutes: a checkpoint is made after so many minutes without one, too.
      callbacks: for example evaluation. The log is on disk when the next one is called.
      console: progress bar and messages; None is silent.
      label: the bar's.
      hint: added to the estimate of the time left, if that is above ten minutes.
      chunk_seconds: length of a chunk, at most; short enough for a live progress bar.

    Returns:
      The result.

    Raises:
      DivergenceError: a metric is NaN or infinite.
      Interrupted: by a signal; only in the main thread.
      UserError: the dataset is not fit for the learner, or the checkpoint not of this run, or of
        more steps than `num_steps`, or the learner made for another number of steps.
    """
    console = console or reporting.Console(enabled=False)
    per_update = learner.steps_per_update
    round_up = lambda steps, unit: -(-steps // unit) * unit  # noqa: E731
    seeds = list(seeds)

    data = learner.prepare(dataset)
    epoch = 0
    if learner.validate is not None:
        epoch = round_up(learner.steps_per_epoch(data), per_update)
        validate = jax.jit(jax.vmap(learner.validate, in_axes=(0, None)))
    if (num_steps is None) == (num_epochs is None) or (num_epochs is not None and not epoch):
        raise ValueError("fit takes num_steps, or num_epochs for a learner that validates")
    if num_steps is None:
        num_steps = num_epochs * epoch
    num_steps = round_up(num_steps, per_update)
    if learner.num_steps is not None and round_up(learner.num_steps, per_update) != num_steps:
        raise UserError(
            f"{label}: the learning rate depends on num_steps, and this learner is made for "
            f"{learner.num_steps:,} steps, not for {num_steps:,}; make it with that num_steps"
        )
    log_every = round_up(log_every or min(1_000, max(num_steps // 20, 1)), per_update)
    save_every = round_up(save_every or min(10_000, max(num_steps // 4, 1)), log_every)
    intervals = [log_every, save_every, *([epoch] if epoch else [])]
    intervals += [round_up(callback.every, per_update) for callback in callbacks]

    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(seed_keys(seeds))
    step = (checkpointer.latest() or 0) if checkpointer else 0
    if checkpointer:
        refuse_fewer_steps(checkpointer, num_steps)
    log = reporting.MetricsLog(metrics_path, resume_step=step)

    def call_back() -> None:
        for callback in callbacks:
            if step % round_up(callback.every, per_update) == 0 or step >= num_steps:
                if metrics := callback.function(step, state):
                    log.write(step, metrics, seeds)
                log.flush()

    with Signals(checkpointer) as signals:
        with signals.at_once():
            if step:
                like = jax.eval_shape(lambda: init(learner, data, seeds))
                state = checkpointer.restore(like)
            else:
                state = init(learner, data, seeds)
            partial = PartialRow(checkpointer, step)
            if partial.interrupted:
                call_back()
            finished = bool(jnp.all(state.finished)) if epoch else False
            if step >= num_steps or finished:
                partial.clear()
                return FitResult(state, step, log, 0.0, float("nan"))

            start = time.perf_counter()
            console.print(f"{label}: compiling")
            chunk = make_chunk(learner)
            sums = chunk.zero_sums(state, keys, data)
            run = chunk.run.lower(state, sums, keys, data, jnp.int32(1)).compile()
            sums = partial.restore(sums)
            compile_seconds = time.perf_counter() - start
        rate, first, estimated = _Rate(), step, False
        size = 1  # updates in the next chunk
        saved = flushed = time.monotonic()

        def save(interrupted: bool = False) -> None:
            log.flush()
            if checkpointer is not None:
                partial.save(step, sums, interrupted)
                checkpointer.save(step, state)
                partial.clear(but=step)

        with reporting.progress(console, label, num_steps, step) as advance:
            while step < num_steps and not finished:
                boundary = min(num_steps, *(step + i - step % i for i in intervals))
                updates = min(size, -(-(boundary - step) // per_update))
                start = time.perf_counter()
                state, sums = run(state, sums, keys, data, jnp.int32(updates))
                jax.block_until_ready((state, sums))
                rate.add(updates * per_update, time.perf_counter() - start)
                size = max(1, int(rate.latest * chunk_seconds / per_update))
                step += updates * per_update
                partial.updates += updates
                advance(updates * per_update)

                if not estimated and rate.seconds > 2 * chunk_seconds:
                    estimated = True
                    left = (num_steps - step) / rate.mean
                    console.print(
                        f"{label}: {rate.mean:.3g} steps/s after {compile_seconds:.0f} s of "
                        f"compilation; {'at most ' if epoch else ''}{reporting.duration(left)} to "
                        f"go{hint if left > 600 else ''}"
                    )
                if step % log_every == 0 or step >= num_steps:
                    row = {k: np.asarray(total) / partial.updates for k, total in sums.items()}
                    log.write(step, row, seeds)
                    _check_finite(label, step, row, seeds, log, checkpointer)
                    sums, partial.updates = jax.tree.map(jnp.zeros_like, sums), 0
                if epoch and (step % epoch == 0 or step >= num_steps):
                    state, metrics = validate(state, data)
                    log.write(step, {k: np.asarray(v) for k, v in metrics.items()}, seeds)
                    finished = bool(jnp.all(state.finished))
                try:
                    with signals.at_once():
                        call_back()
                except KeyboardInterrupt:
                    save(interrupted=True)
                    raise
                now = time.monotonic()
                late = now - saved > 60 * save_minutes
                if late or step % save_every == 0 or step >= num_steps or finished:
                    save()
                    saved = flushed = now
                elif now - flushed > 60:
                    log.flush()
                    flushed = now
    return FitResult(state, step, log, compile_seconds, rate.mean if step > first else float("nan"))


def fit_models(
    models: Mapping[str, Model], dataset: Dataset, config: Any, *, seed: int = 0
) -> dict[str, PyTree]:
    """Trains a synthesizer's models, in their order, without checkpoints.

    Args:
      models: the synthesizer's.
      dataset: what to train on.
      config: the synthesizer's; each model's own, in the field of its name, says how long: in
        `max_epochs` if the model validates, else in `num_steps`.
      seed: of all of them.

    Returns:
      What `generate` takes: their trained states, one seed, by name.
    """
    states: dict[str, PyTree] = {}
    for name, model in models.items():
        learner = model if isinstance(model, Learner) else model(states)
        own = getattr(config, name)
        if learner.validate is None:
            length = {"num_steps": own.num_steps}
        else:
            length = {"num_epochs": own.max_epochs}
        result = fit(learner, dataset, **length, seeds=[seed], label=name)
        states[name] = select_seed(result.state, 0)
    return states


class _Rate:
    """Steps per second, over all chunks and in the last one."""

    def __init__(self):
        self.steps, self.seconds, self.latest = 0, 0.0, 1.0

    def add(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        self.latest = steps / max(seconds, 1e-9)

    @property
    def mean(self) -> float:
        return self.steps / max(self.seconds, 1e-9)


def _check_finite(
    label: str,
    step: int,
    row: Mapping[str, np.ndarray],
    seeds: list[int],
    log: reporting.MetricsLog,
    checkpointer: Checkpointer | None,
) -> None:
    for name, values in row.items():
        if bad := [str(seed) for seed, value in zip(seeds, values) if not np.isfinite(value)]:
            log.flush()
            kept = checkpointer.latest() if checkpointer else None
            saved = f"the last checkpoint is of step {kept}" if kept else "there is no checkpoint"
            raise DivergenceError(
                f"{label}: {name} of seed {', '.join(bad)} is not finite at step {step}; {saved}; "
                "a smaller learning rate may help; the log has the metrics before"
            )
