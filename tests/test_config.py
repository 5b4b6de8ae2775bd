import dataclasses
import re
from typing import Literal

import pytest

from tgcvg_jax import config as config_lib
from tgcvg_jax.synthesizers import tgcvg
from tgcvg_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    widths: tuple[int, ...] = (8, 8)
    tau: float = 0.5
    mode: Literal["mean", "half_sum"] = "mean"


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    steps: int = 10
    on: bool = True
    limit: int | None = 5
    name: str = "a"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("steps=20", Outer(steps=20)),
        ("steps=1_000", Outer(steps=1000)),
        (" steps = 20 ", Outer(steps=20)),
        ("on=false", Outer(on=False)),
        ("on=True", Outer(on=True)),
        ("limit=None", Outer(limit=None)),
        ("limit=7", Outer(limit=7)),
        ("name=b=c", Outer(name="b=c")),
        ("inner.rate=1", Outer(inner=Inner(rate=1.0))),
        ("inner.rate=3e-4", Outer(inner=Inner(rate=3e-4))),
        ("inner.widths=(4, 5)", Outer(inner=Inner(widths=(4, 5)))),
        ("inner.widths=4,5", Outer(inner=Inner(widths=(4, 5)))),
        ("inner.widths=64", Outer(inner=Inner(widths=(64,)))),
        ("inner.mode=half_sum", Outer(inner=Inner(mode="half_sum"))),
    ],
)
def test_override(assignment, expected):
    result = config_lib.override(Outer(), [assignment])
    assert result == expected
    assert repr(result) == repr(expected)  # 1 is not 1.0


def test_later_assignments_win_and_the_original_stays():
    original = Outer()
    changed = config_lib.override(original, ["steps=1", "inner.rate=2", "steps=3"])
    assert changed == Outer(steps=3, inner=Inner(rate=2.0))
    assert original == Outer()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("steps", "field.path=value"),
        ("stepps=3", "there are inner, limit, name, on, steps"),
        ("inner.x=3", "mode, rate, tau, widths"),
        ("inner=3", "rate, widths, tau, mode"),
        ("steps.x=3", "no fields of its own"),
        ("steps=1.5", "'1.5' is not of type int"),
        ("steps=true", "not of type int"),
        ("steps=none", "not of type int"),
        ("limit=x", "int or NoneType"),
        ("on=yes", "not of type bool"),
        ("inner.rate=fast", "not of type float"),
        ("inner.widths=a", "'a' is not of type int"),
        ("inner.widths=(1.7,8)", "'1.7' is not of type int"),
        ("inner.mode=max", "one of mean, half_sum"),
    ],
)
def test_errors_name_the_assignment(assignment, words):
    with pytest.raises(UserError) as error:
        config_lib.override(Outer(), [assignment])
    message = str(error.value)
    assert words in message and assignment in message
    assert "\n" not in message


def test_every_field_of_the_real_config_parses_back():
    config = tgcvg.Config()

    def paths(value, prefix):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner):
                yield from paths(inner, f"{prefix}{field.name}.")
            else:
                yield f"{prefix}{field.name}={inner}"

    assignments = list(paths(config, ""))
    assert len(assignments) > 30
    assert config_lib.override(config, assignments) == config


def test_replace_nested():
    result = config_lib.replace_nested(Outer(), {"inner": {"rate": 2.0}, "steps": 3})
    assert result == Outer(steps=3, inner=Inner(rate=2.0))


def test_difference():
    old = config_lib.to_dict(Outer())
    new = config_lib.to_dict(Outer(steps=3, inner=Inner(rate=2.0)))
    assert config_lib.difference(old, new) == ["inner.rate: 0.5 -> 2.0", "steps: 10 -> 3"]
    assert config_lib.difference(old, old) == []


def test_difference_counts_missing_fields_as_defaults():
    """As in what was written before the fields came."""
    new = config_lib.to_dict(Outer(limit=7, inner=Inner(rate=2.0)))
    old = {"inner": {"rate": 2.0, "widths": (8, 8), "mode": "mean"}, "limit": 7, "name": "a"}
    assert config_lib.difference(old, new) == [
        "inner.tau: None -> 0.5", "on: None -> True", "steps: None -> 10"
    ]  # fmt: skip
    defaults = config_lib.to_dict(Outer())
    assert config_lib.difference(old, new, defaults=defaults) == []
    new["inner"]["tau"], new["steps"] = 0.7, 11
    assert config_lib.difference(old, new, defaults=defaults) == [
        "inner.tau: 0.5 -> 0.7", "steps: 10 -> 11"
    ]  # fmt: skip
    # A whole group, and fields that no longer are.
    del old["inner"]
    assert config_lib.difference(old, new, defaults=defaults) == [
        "inner.rate: 0.5 -> 2.0", "inner.tau: 0.5 -> 0.7", "steps: 10 -> 11"
    ]  # fmt: skip
    gone = config_lib.difference({**new, "gone": 1}, new, defaults=defaults)
    assert gone == ["gone: 1 -> None"]


@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_presets_name_real_fields(preset):
    config = config_lib.replace_nested(tgcvg.Config(), tgcvg.PRESETS[preset])
    assert config.horizon == config.window_length + 1 - config.policy.context_length


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("inner.widths=", "inner.widths: must not be empty"),
        ("inner.widths=(8,0)", "inner.widths=0: must be at least 1"),
        ("steps=-3", "steps=-3: must be a number of at least 0"),
        ("inner.tau=1.5", "inner.tau=1.5: must be at most 1"),
        ("inner.rate=nan", "inner.rate=nan"),
        ("inner.rate=inf", "inner.rate=inf"),
        ("inner.rate=-1", "inner.rate=-1.0"),
    ],
)
def test_numbers_out_of_range(assignment, words):
    with pytest.raises(UserError, match=re.escape(words)):
        config_lib.override(Outer(), [assignment])
