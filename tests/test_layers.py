"""Imports go down only: the picture of the layers in one table."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    ("types", "tasks", "config", "files"),
    ("ops", "networks"),
    (
        "data",
        "envs",
        "training",
        "checkpoint",
        "reporting",
        "plotting",
        "metrics",
        "interruption",
    ),
    ("learners", "models", "evaluation"),
    ("synthesizers", "collection", "report"),
)
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
ALONE = ("learners", "synthesizers")  # one file each; none needs another,
SHARED = ("copies", "model_rollout")  # but what several share
MODULES = sorted((ROOT / "tgcvg_jax").rglob("*.py"))


def imported(path):
    """Dotted names of all imports in a file, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts(path):
    return path.relative_to(ROOT).with_suffix("").parts


@pytest.mark.parametrize("path", MODULES, ids=lambda p: "/".join(parts(p)[1:]))
def test_imports_go_down(path):
    _, here, *rest = parts(path)
    for name in imported(path):
        package, *inner = name.split(".")
        assert package != "experiments", f"{path}: imports {name}"
        if package != "tgcvg_jax":
            continue
        # The package's own __init__ may be imported by nobody: it would bring everything in.
        assert inner and inner[0] in LAYER, f"{path}: {name} has no layer"
        if here == "__init__":
            continue
        assert here in LAYER, f"{here} has no layer; add it to the table"
        assert LAYER[inner[0]] <= LAYER[here], f"{path}: {name} is above"
        if LAYER[here] == 0 and here == "types":
            pytest.fail(f"{path}: types imports {name}")
        if here in ALONE and inner[0] == here:
            sibling = rest[0] == "__init__" or inner[1] in (rest[0], *SHARED)
            assert sibling, f"{path}: imports its sibling {name}"


def test_every_module_has_a_layer():
    top = {parts(path)[1] for path in MODULES} - {"__init__"}
    assert top <= set(LAYER)
