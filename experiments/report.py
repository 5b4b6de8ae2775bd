"""Gathers all scores, metrics and pictures of a workdir in one report.

    python -m experiments.report --workdir=runs
    python -m experiments.report --workdir=runs --env=hopper-medium-v2

Reads what the other apps have written below --workdir, and trains or evaluates nothing. Run it at
any time, also while training is under way. Writes to <workdir>/report/:

    report.md    the page, for GitHub or an editor
    report.html  the same in one file, with the pictures inside
    *.png, *.gif the pictures of report.md

Tables are shaped like the papers': a learner's scores by task and by the data that it was trained
on, with standard deviation, bootstrap interval and number of seeds; what is missing is shown as
missing, and runs with other settings than those beside them are marked. To have them in: scores,
experiments.train_offline; the generator policy's, experiments.evaluate --checkpoint=.../policy; the
quality of the data, experiments.quality.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

from absl import flags

from experiments import _main
from tgcvg_jax import report
from tgcvg_jax.report.document import Table, mark
from tgcvg_jax.report.results import ALL, REPORT
from tgcvg_jax.report.tables import score_table

FLAGS = flags.FLAGS


def main() -> None:
    """Gathers, writes, and shows the scores."""
    results = report.gather(Path(FLAGS.workdir).expanduser(), FLAGS.env)
    _main.require_writable(results.workdir / REPORT)
    folder = report.write(results)
    for problem in results.problems:
        warnings.warn(f"could not be read: {problem}", stacklevel=1)
    tables = [score_table(results, learner) for learner in results.learners]
    for learner, table in zip(results.learners, tables):
        print(as_text(learner, table))
        print()
    if not tables:
        print("no scores yet: none of experiments.train_offline was found\n")
    print(f"written to {folder}/: report.md, report.html, pictures")


def as_text(learner: str, table: Table) -> str:
    """A table for the terminal: `*` after the best, letters for notes, and the notes below."""

    def text(cell) -> str:
        letters = ",".join(map(mark, cell.notes))
        return f"{cell.text}{'*' * cell.strong}{f' ({letters})' if letters else ''}"

    header = dataclasses.replace(table.header[0], text=learner)
    rows = [tuple(map(text, row)) for row in table.rows]
    lines = [_main.table(rows, tuple(map(text, (header, *table.header[1:]))))]
    return "\n".join([*lines, *(f"({mark(i)}) {note}" for i, note in enumerate(table.notes))])


if __name__ == "__main__":
    FLAGS.set_default("env", ALL)
    _main.run(main, without=("seed", "preset", "data_dir", "dataset", "set", "after_goal"))
