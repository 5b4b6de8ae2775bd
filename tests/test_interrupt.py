"""Runs that a signal or a kill ended go on as if nothing had happened, and say where."""

import os
import signal
import threading

import jax
import numpy as np
import pytest

from tgcvg_jax import training
from tgcvg_jax.checkpoint import Checkpointer
from tgcvg_jax.interruption import Interrupted
from tgcvg_jax.reporting import Console
from tgcvg_jax.training import Callback, fit
from tgcvg_jax.types import UserError

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def sigint():
    """As in a terminal: a shell starts background jobs, such as tests, with SIGINT ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def send(number):
    os.kill(os.getpid(), number)


class Sender(Console):
    """Sends signals once a step is reached, between a chunk and what follows it."""

    def __init__(self, step, *numbers):
        super().__init__(enabled=False)
        self.left, self.numbers = step, numbers

    def advance(self, count):
        self.left -= count
        if self.left <= 0:
            numbers, self.numbers = self.numbers, ()
            for number in numbers:
                send(number)


class Run:
    """A run of 24 steps of a toy that logs every 5 and is evaluated every 6."""

    def __init__(self, toy, dataset, folder):
        self.learner, self.dataset, self.folder = toy(), dataset, folder
        self.seen = []

    def evaluate(self, step, state):
        self.seen.append(step)
        return {"score": np.asarray(state.weight)}

    def __call__(self, **arguments):
        callback = arguments.pop("callback", self.evaluate)
        self.keeper = Checkpointer(self.folder / "run", {})
        return fit(
            self.learner, self.dataset, num_steps=24, seeds=(0, 4), checkpointer=self.keeper,
            metrics_path=self.folder / "metrics.csv", log_every=5, save_every=10,
            chunk_seconds=1e-9, callbacks=[Callback(6, callback)], **arguments,
        )  # fmt: skip

    def rows(self):
        return (self.folder / "metrics.csv").read_text()

    def leftovers(self):
        return list((self.folder / "run").glob(".*"))


@pytest.fixture
def run(toy, dataset, tmp_path):
    return Run(toy, dataset, tmp_path)


@pytest.fixture(scope="module")
def whole(toy, dataset, tmp_path_factory):
    run = Run(toy, dataset, tmp_path_factory.mktemp("whole"))
    run.result = run()
    assert run.seen == [6, 12, 18, 24]
    return run


def assert_equal(run, result, whole):
    """The state, the log, and what is on disk."""
    for found in (result.state, run.keeper.restore(result.state)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole.result.state), strict=True):
            if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(a, b)
    assert run.rows() == whole.rows()
    assert not run.leftovers()


# Twice within an interval, at a row, at a callback, at the end.
@pytest.mark.parametrize(("step", "number"), zip([1, 7, 10, 18, 24], BOTH * 3))
def test_a_signal_saves_and_the_run_goes_on_in_the_same_bits(run, whole, number, step):
    before = [signal.getsignal(n) for n in BOTH]
    with pytest.raises(Interrupted, match=f"step {step} is saved") as error:
        run(console=Sender(step, number))
    assert (error.value.signal, error.value.step) == (number, step) == (number, run.keeper.latest())
    assert isinstance(error.value, KeyboardInterrupt)
    assert [signal.getsignal(n) for n in BOTH] == before
    assert run.seen == [6, 12, 18, 24][: (step - 1) // 6]  # the evaluation is left for later
    result = run()
    assert run.seen == [6, 12, 18, 24]
    assert_equal(run, result, whole)


@pytest.mark.parametrize("step", [12, 24])
def test_a_callback_is_interrupted_at_once_and_called_again(run, whole, step):
    def callback(now, state):
        if now == step:
            send(signal.SIGTERM)
            raise AssertionError("goes on")
        return run.evaluate(now, state)

    with pytest.raises(Interrupted) as error:
        run(callback=callback)
    assert (error.value.signal, error.value.step) == (signal.SIGTERM, step)
    result = run()
    assert run.seen == [6, 12, 18, 24]
    assert_equal(run, result, whole)
    seen = list(run.seen)
    run()  # finished: nothing is called again
    assert run.seen == seen


def test_a_second_sigint_does_not_wait(run, whole):
    with pytest.raises(Interrupted) as error:
        run(console=Sender(13, signal.SIGINT, signal.SIGINT))
    assert error.value.step == run.keeper.latest() == 10
    assert_equal(run, run(), whole)


def test_a_second_sigterm_waits(run, whole):
    with pytest.raises(Interrupted, match="step 13"):
        run(console=Sender(13, signal.SIGTERM, signal.SIGTERM))
    assert_equal(run, run(), whole)


def test_a_signal_in_the_last_save_is_not_lost(run, whole, monkeypatch):
    save = Checkpointer.save

    def interrupted_save(self, step, state):
        save(self, step, state)
        if step == 24:
            send(signal.SIGTERM)

    monkeypatch.setattr(Checkpointer, "save", interrupted_save)
    with pytest.raises(Interrupted, match="step 24"):
        run()
    assert_equal(run, run(), whole)


def test_before_anything_is_saved(toy, dataset, tmp_path):
    def update(state, batch):
        send(signal.SIGINT)
        raise AssertionError("goes on")

    keeper = Checkpointer(tmp_path / "run", {})
    with pytest.raises(Interrupted, match="nothing is saved yet"):
        fit(toy()._replace(update=update), dataset, num_steps=5, checkpointer=keeper)
    with pytest.raises(Interrupted, match="nothing is saved yet"):
        fit(toy(), dataset, num_steps=5, console=Sender(1, signal.SIGINT))


def test_other_threads_and_ignored_signals(toy, dataset):
    results = []
    thread = threading.Thread(target=lambda: results.append(fit(toy(), dataset, num_steps=5)))
    thread.start()
    thread.join()
    assert results[0].step == 5
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts a background job
    try:
        assert fit(toy(), dataset, num_steps=5, console=Sender(1, signal.SIGINT)).step == 5
    finally:
        signal.signal(signal.SIGINT, old)


@pytest.mark.parametrize("number", BOTH)
def test_validation_and_patience_go_on(toy, dataset, tmp_path, number):
    """Interrupted at the step of a validation, which is not done twice."""

    def start(folder, console=None):
        keeper = Checkpointer(tmp_path / folder / "run", {})
        return fit(
            toy(errors=[3.0, 2.0, 1.0, 2.0, 0.0]), dataset, num_steps=100, checkpointer=keeper,
            metrics_path=tmp_path / folder / "metrics.csv", console=console, log_every=3,
        )  # fmt: skip

    expected = start("whole")
    with pytest.raises(Interrupted, match="step 8 "):
        start("parts", Sender(8, number))
    result = start("parts")
    assert result.step == expected.step == 16 and int(result.state.validations[0]) == 4
    assert float(result.state.best_weight[0]) == float(expected.state.best_weight[0])
    files = [(tmp_path / folder / "metrics.csv").read_text() for folder in ("whole", "parts")]
    assert files[0] == files[1]


def test_saves_by_the_clock_between_rows(run, whole):
    """Killed without warning: what was saved at step 13 is enough."""

    class Killer(Console):
        left = 14

        def advance(self, count):
            self.left -= count
            if not self.left:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        run(console=Killer(enabled=False), save_minutes=0)
    assert run.keeper.latest() == 13
    assert [path.name for path in run.leftovers()] == [".interval_13.npz"]
    result = run()
    assert_equal(run, result, whole)


def test_a_damaged_file_of_sums_is_no_reason_to_stop(run, whole):
    with pytest.raises(Interrupted):
        run(console=Sender(13, signal.SIGINT))
    (path,) = run.leftovers()
    path.write_bytes(b"x")
    result = run()
    np.testing.assert_array_equal(result.state.weight, whole.result.state.weight)


def test_log_is_flushed_once_a_minute(run, monkeypatch):
    minutes, found = iter(range(1000)), {}
    monkeypatch.setattr(training.time, "monotonic", lambda: 40.0 * next(minutes))

    class Reader(Console):
        done = 0

        def advance(self, count):
            self.done += count
            path = run.folder / "metrics.csv"
            found[self.done] = path.read_text().count("\n") if path.exists() else 0

    run(callback=lambda step, state: None, save_minutes=100, console=Reader(enabled=False))
    # Two chunks are 80 s; the first row is of step 5.
    assert found[5] == 0 and found[8] == 3


def test_divergence_is_in_the_log_and_names_a_remedy(toy, dataset, tmp_path):
    learner = toy(metric=lambda t: jax.numpy.where(t == 25, jax.numpy.inf, 1.0))
    keeper = Checkpointer(tmp_path / "run", {})
    path = tmp_path / "metrics.csv"
    words = "not finite at step 30; .* step 20; a smaller learning rate may help"
    with pytest.raises(training.DivergenceError, match=words):
        fit(learner, dataset, num_steps=100, log_every=10, save_every=10, checkpointer=keeper,
            metrics_path=path)  # fmt: skip
    assert path.read_text().splitlines()[-1].startswith("30,0,inf")
    with pytest.raises(training.DivergenceError, match="there is no checkpoint"):
        fit(learner, dataset, num_steps=30)


def test_a_schedule_is_for_its_number_of_steps(toy, dataset):
    learner = toy(steps_per_update=2)._replace(num_steps=11)
    with pytest.raises(UserError, match=r"depends on num_steps.* 11 steps, not for 14"):
        fit(learner, dataset, num_steps=13)
    assert fit(learner, dataset, num_steps=11).step == 12


@pytest.mark.parametrize(("minutes", "said"), [(9, False), (11, True)])
def test_hint_is_for_long_runs(toy, dataset, monkeypatch, minutes, said):
    lines = []
    console = Console(enabled=False)
    console.print = lines.append
    rate = property(lambda self: 39 / (60 * minutes), lambda self, value: None)
    monkeypatch.setattr(training._Rate, "mean", rate)
    fit(toy(), dataset, num_steps=40, console=console, hint=" (hint)", chunk_seconds=1e-9)
    assert len(lines) == 2 and lines[1].endswith("(hint)") == said  # the first: compiling
