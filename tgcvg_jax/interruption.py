"""Ending `training.fit` early without a loss: by a signal, and between two rows of metrics."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax.checkpoint import Checkpointer
from tgcvg_jax.files import atomic_path


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended `fit`.

    Attributes:
      signal: which of them.
      step: of the last checkpoint, None if there is none.
    """

    def __init__(self, number: int, step: int | None):
        self.signal, self.step = number, step
        super().__init__("nothing is saved yet" if step is None else f"step {step:,} is saved")


class Signals:
    """SIGINT and SIGTERM as a flag, in the main thread.

    An exception inside a chunk would leave nothing to save: its state is donated.
    """

    def __init__(self, checkpointer: Checkpointer | None):
        self._checkpointer, self._handlers = checkpointer, {}
        self._received, self._at_once = None, False

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as in nohup
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt or (kind is None and self._received is not None):
            kept = self._checkpointer.latest() if self._checkpointer else None
            raise Interrupted(self._received or signal.SIGINT, kept) from None

    def _receive(self, number: int, _: object) -> None:
        again = self._received is not None and number == signal.SIGINT
        self._received = self._received or number
        if again or self._at_once:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal, also one from before, ends by a KeyboardInterrupt."""
        self._at_once = True
        try:
            if self._received is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False


class PartialRow:
    """What a checkpoint between two rows of metrics needs besides the state: a file beside it.

    Attributes:
      updates: how many are in the sums of the metrics.
      interrupted: whether the callbacks of the checkpoint's step are still to come.
    """

    def __init__(self, checkpointer: Checkpointer | None, step: int):
        self._directory = checkpointer.directory if checkpointer else None
        self.updates, self.interrupted, self._sums = 0, False, {}
        if checkpointer and self._path(step).exists():
            # A damaged file is no reason to stop: a row of the log will be of fewer updates.
            with contextlib.suppress(Exception), np.load(self._path(step)) as file:
                self._sums = dict(zip(file["names"], file["sums"]))
                self.updates, self.interrupted = int(file["updates"]), bool(file["interrupted"])

    def _path(self, step: int) -> Path:
        return self._directory / f".interval_{step}.npz"

    def restore(self, zeros: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The sums [N] of the metrics since the last row."""
        return {k: jnp.asarray(self._sums.get(k, x), x.dtype) for k, x in zeros.items()}

    def save(self, step: int, sums: Mapping[str, jax.Array], interrupted: bool) -> None:
        """To be called before the checkpoint is made, and `clear` after it."""
        if self.updates or interrupted:
            values = np.array([np.asarray(x, np.float64) for x in sums.values()])
            with atomic_path(self._path(step)) as temporary, temporary.open("wb") as file:
                np.savez(file, names=list(sums), sums=values, updates=self.updates,
                         interrupted=interrupted)  # fmt: skip
        elif self._directory:
            self._path(step).unlink(missing_ok=True)

    def clear(self, but: int | None = None) -> None:
        """Removes the files of earlier checkpoints."""
        for path in self._directory.glob(".interval_*.npz") if self._directory else ():
            if but is None or path != self._path(but):
                path.unlink()
