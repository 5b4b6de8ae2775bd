"""The benchmark app: what it measures is written, and not measured twice."""

import json

import pytest
from launch import run
from test_apps import ENV

SMALL = ["--learners=bc", "--batch_sizes=8", "--seed_counts=1,2", "--repeats=1"]


def benchmark(folder, *arguments):
    return run("benchmark", f"--env={ENV}", "--seconds=0.05", *arguments, cwd=folder)


def test_measures_once(tmp_path):
    path = tmp_path / "speed.json"
    first = benchmark(tmp_path, *SMALL, "--json=speed.json")
    assert first.returncode == 0, first.stderr
    records = json.loads(path.read_text())
    assert [(r["name"], r["sizes"]["num_seeds"], r["dispatch"]) for r in records] == [
        ("bc", seeds, dispatch) for seeds in (1, 2) for dispatch in ("loop", "call")
    ]
    for r in records:
        low, high = r["rate_range"]
        assert 0 < low <= r["rate"] <= high and r["compile_seconds"] > 0
        assert "CPU" in r["hardware"] and "jax" in r["versions"]

    before = path.read_bytes()
    again = benchmark(tmp_path, *SMALL, "--json=speed.json")
    assert path.read_bytes() == before
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--learners=td3"], "choose from"),
        (["--seed_counts=0"], "positive whole numbers"),
        (["--json=damaged.json"], "no list of records"),
        (["--workdir=x"], "has no effect"),
    ],
)
def test_errors(tmp_path, arguments, message):
    (tmp_path / "damaged.json").write_text("{")
    result = benchmark(tmp_path, *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
