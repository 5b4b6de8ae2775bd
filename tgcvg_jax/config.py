"""Configs are frozen dataclasses; this module overrides, compares and prints them. Layer 0."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from tgcvg_jax.types import UserError

UNIT_INTERVAL = (
    "disagreement_quantile", "terminal_threshold",
    "dropout", "holdout_fraction", "discount", "tau", "original_share", "data_weight", "expectile",
    "top_fraction", "terminal_share", "min_improvement", "condition_dropout", "ema_decay", "beta_2",
    "real_ratio",
)  # fmt: skip
BELOW_ONE = ("dropout",)
POSITIVE = ("top_fraction",)
SIGNED = (
    "p_mean", "reward_shift", "min_log_std", "max_log_std", "clip_diff_min", "clip_diff_max",
    "target_action_gap", "target_return",
)  # fmt: skip


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON-ready nested dicts."""
    return dataclasses.asdict(config)


def override(config: Any, assignments: Iterable[str]) -> Any:
    """Applies `field.path=value` assignments.

    Args:
      config: a dataclass, possibly of dataclasses.
      assignments: such as `policy.batch_size=64`. Values are checked against the field's type.

    Returns:
      A copy with the values replaced.

    Raises:
      UserError: unknown field, or a value of another type or out of range (see `check`).
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"--set {assignment}: expected field.path=value")
        config = _assign(config, path.strip().split("."), text.strip(), assignment)
    check(config)
    return config


def check(config: Any, prefix: str = "") -> None:
    """Refuses numbers that no config means.

    None may be negative (but those in SIGNED), NaN or infinite; a whole number (a size or a count)
    may be 0 only if its default is; probabilities, fractions and factors of decay are at most 1
    (those in BELOW_ONE less, those in POSITIVE not 0).

    Raises:
      UserError: the field and its value.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if field.name in SIGNED and math.isfinite(number):
                continue
            if not 0 <= number < math.inf:
                raise UserError(f"{name}={number}: must be a number of at least 0")
            if isinstance(number, int) and number == 0 and field.default != 0:
                raise UserError(f"{name}={number}: must be at least 1")
            if field.name in UNIT_INTERVAL and number > 1:
                raise UserError(f"{name}={number}: must be at most 1")
            if field.name in BELOW_ONE and number == 1:
                raise UserError(f"{name}={number}: must be below 1")
            if field.name in POSITIVE and number == 0:
                raise UserError(f"{name}={number}: must be above 0")
        if isinstance(value, tuple) and not value:
            raise UserError(f"{name}: must not be empty")


def replace_nested(config: Any, values: Mapping[str, Any]) -> Any:
    """`dataclasses.replace` that descends: {'policy': {'batch_size': 64}} keeps policy's rest."""
    changes = {
        name: replace_nested(getattr(config, name), value) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }
    return dataclasses.replace(config, **changes)


def difference(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    prefix: str = "",
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """Lines such as `policy.batch_size: 256 -> 64` for all fields in which two dicts differ.

    Args:
      old: as found, perhaps of a version that had fewer fields.
      new: as wanted.
      prefix: before each name.
      defaults: what a field that `old` lacks counts as: a new field's default is what was done
        before it came. A field that is here neither counts as None.
    """
    lines = []
    defaults = defaults or {}
    for name in sorted({*old, *new}):
        default = defaults.get(name)
        a, b = old.get(name, default), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            below = default if isinstance(default, Mapping) else None
            lines += difference(a, b, f"{prefix}{name}.", below)
        elif a != b:
            lines.append(f"{prefix}{name}: {a} -> {b}")
    return lines


def _assign(config: Any, path: list[str], text: str, assignment: str) -> Any:
    hints = typing.get_type_hints(type(config))
    name, rest = path[0], path[1:]
    if name not in hints:
        before = assignment.partition("=")[0].strip().split(".")[: -len(path)]
        meant = " or ".join(".".join([*before, found]) for found in _find(config, name))
        names = f"did you mean {meant}?" if meant else f"there are {', '.join(sorted(hints))}"
        raise UserError(f"--set {assignment}: no field {name!r}; {names}")
    current = getattr(config, name)
    if rest:
        if not dataclasses.is_dataclass(current):
            raise UserError(f"--set {assignment}: {name!r} has no fields of its own")
        return dataclasses.replace(config, **{name: _assign(current, rest, text, assignment)})
    if dataclasses.is_dataclass(current):
        names = ", ".join(f.name for f in dataclasses.fields(current))
        raise UserError(
            f"--set {assignment}: {name!r} is a group; name one of its fields ({names})"
        )
    return dataclasses.replace(config, **{name: _parse(text, hints[name], assignment)})


def _find(config: Any, name: str) -> list[str]:
    """Paths of the fields of that name, however deep."""
    paths = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == name:
            paths.append(name)
        if dataclasses.is_dataclass(value):
            paths += [f"{field.name}.{path}" for path in _find(value, name)]
    return paths


def _parse(text: str, hint: Any, assignment: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in options and text.lower() == "none":
        return None
    for option in options:
        try:
            if option is str:
                return text
            if option is bool and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if option is int:
                return int(text.replace("_", ""))
            if option is float:
                return float(text)
            if typing.get_origin(option) is tuple:
                (item, *_) = typing.get_args(option)
                items = text.strip("()[] ").split(",")
                return tuple(_parse(x.strip(), item, assignment) for x in items if x.strip())
            if typing.get_origin(option) is typing.Literal and text in typing.get_args(option):
                return text
        except ValueError:
            continue
    expected = " or ".join(_name(option) for option in options)
    raise UserError(f"--set {assignment}: {text!r} is not of type {expected}")


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint))


def from_dict(kind: type, values: Mapping[str, Any]) -> Any:
    """The inverse of `to_dict` after a trip through JSON, where tuples become lists.

    Raises:
      UserError: a field that the config does not have, as after a change of version.
    """
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise UserError(f"{kind.__qualname__} has no field {', '.join(unknown)}; was this written "
                        "by another version?")  # fmt: skip
    fields = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value)
        elif isinstance(value, list):
            value = tuple(value)
        fields[name] = value
    return kind(**fields)
