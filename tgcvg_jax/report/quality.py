"""A report's table of what synthetic data is like, beside the data it was made from."""

from __future__ import annotations

from tgcvg_jax import config as config_lib
from tgcvg_jax import metrics
from tgcvg_jax.report.document import MISSING, Cell, Notes, Table
from tgcvg_jax.report.records import Quality
from tgcvg_jax.report.results import Results


def quality_table(results: Results, env: str) -> Table | None:
    """One task's data in numbers: metrics x original and synthetic data."""
    found = {label: results.quality[env, label] for label in results.labels(env)
             if (env, label) in results.quality}  # fmt: skip
    if not found:
        return None
    notes, rows = Notes(), []
    known = {name for quality in found.values() for name in quality.metrics}
    base = next(iter(found))
    for name in sorted(known, key=metrics.order):
        original, marks = None, []
        for label, quality in found.items():
            value = quality.metrics.get(name, (None, None))[0]
            if original is None:
                original, measured = value, label
            elif value is not None and _value(name, value) != _value(name, original):
                text = f"as measured with {measured}; with {label}: {_value(name, value)}"
                marks.append(notes.add(text))
        cells = [Cell(_value(name, original), notes=tuple(marks))]
        cells += [Cell(_value(name, q.metrics.get(name, (None, None))[1])) for q in found.values()]
        rows.append((Cell(name.replace("_", " ")), *cells, Cell(metrics.describe(name))))
    header = [Cell("metric"), Cell("original")]
    for label, quality in found.items():
        remark = _sample_remark(base, found[base], quality)
        header.append(Cell(label, notes=(notes.add(remark),) if remark else ()))
    caption = f"{results.names[env]}: quality of the data. {MISSING}: not measured, or unknown."
    header = (*header, Cell("what it is"))
    return Table(caption, header, tuple(rows), tuple(notes.texts), wide=(0, len(header) - 1))


def _value(name: str, value: float | None) -> str:
    return metrics.show(name, value, MISSING)


def _sample_remark(base: str, first: Quality, other: Quality) -> str:
    """How the second was measured, where that is not how the first was."""
    common = {name: first.settings[name] for name in first.settings if name in other.settings}
    lines = config_lib.difference(common, {name: other.settings[name] for name in common})
    changes = ", ".join(line.replace(":", "", 1) for line in lines)
    return f"measured otherwise than {base}: {changes}" if changes else ""
