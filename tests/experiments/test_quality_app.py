"""The quality app: what it measures, writes, and does not measure twice."""

import json

import h5py
import numpy as np
import pytest
from launch import run
from test_apps import ENV

from tgcvg_jax.metrics import METRICS, describe

SMALL = ["--num_transitions=600", "--num_segments=5", "--novelty_rows=50"]


def quality(folder, *arguments):
    return run("quality", f"--env={ENV}", "--synthesizer=s4rl", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data of S4RL, its quality measured, and a barely trained policy."""
    folder = tmp_path_factory.mktemp("quality")
    done = run(
        "synthesize", f"--env={ENV}", "--preset=quick", "--synthesizer=s4rl",
        "--set=segment_length=10", "--num_transitions=1000", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run(
        "train_offline", f"--env={ENV}", "--learner=bc", "--synthesizer=none", "--num_steps=4",
        "--num_seeds=1", "--episodes=1", "--set=learner.hidden_dims=8", "--num_evaluations=1",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = quality(folder, *SMALL, f"--generator=runs/{ENV}/none/bc")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_measures_once(made):
    folder, first = made
    directory = folder / "runs" / ENV / "s4rl" / "quality"
    for name in ("quality.json", "quality.png", "trajectory.png", "trajectory.gif"):
        assert (directory / name).stat().st_size > 0 and name in first.stdout
    record = json.loads((directory / "quality.json").read_text())
    assert record["env"] == ENV and record["synthesizer"] == "s4rl" and record["rows"] <= 600
    metrics, curves = record["metrics"], record["curves"]
    assert metrics["transitions"] == {"original": 20113, "synthetic": 1000}
    assert metrics["dynamics_mse"]["original"] < 1e-9 < metrics["dynamics_mse"]["synthetic"] < 1e-2
    assert metrics["novelty"]["synthetic"] < 0.01 < metrics["novelty"]["original"]
    assert set(metrics) <= set(METRICS)  # no number without a description
    assert metrics["generator_starts"] == {"original": 5, "synthetic": 5}
    generator = metrics["generator_return"]
    assert generator["original"] > 20 and generator["synthetic"] > 0  # hopping, for ten steps
    about = record["settings"]["groups"]["generator"]
    assert about["horizon"] == 10 and about["history"] == 20 and about["actions"] == "sampled"
    assert about["generator"]["kind"] == "bc" and about["generator"]["seed"] == 0
    returns = record["distributions"]["oracle_return"]["synthetic"]
    assert np.mean(returns) == pytest.approx(metrics["oracle_return"]["synthetic"], rel=1e-4)
    for name in (
        "compounding_error", "dynamics_mse_by_step", "reward_by_step", "oracle_reward_by_step"
    ):  # fmt: skip
        assert curves[name]["step"] == list(range(1, 11))
        assert len(curves[name]["original"]) == len(curves[name]["synthetic"]) == 10
        assert curves[name]["synthetic"][0] is not None
    assert "dynamics MSE" in first.stdout and "falls not marked" in first.stdout
    assert "warning" not in first.stdout + first.stderr

    before = (directory / "quality.json").stat().st_mtime_ns
    again = quality(folder, *SMALL, f"--generator=runs/{ENV}/none/bc")
    assert again.stdout == first.stdout
    assert (directory / "quality.json").stat().st_mtime_ns == before


def test_other_settings_replace_what_they_concern(made):
    folder, _ = made
    path = folder / "runs" / ENV / "s4rl" / "quality" / "quality.json"
    old = json.loads(path.read_text())
    more = [*SMALL[:2], "--novelty_rows=60", "--all_novelty", "--novelty_subset=300"]
    result = quality(folder, *more, "--generator=none")
    assert result.returncode == 0, result.stderr
    new = json.loads(path.read_text())
    assert "single steps" not in result.stderr and "nearest neighbours" in result.stderr
    assert new["metrics"]["dynamics_mse"] == old["metrics"]["dynamics_mse"]
    grid = [name for name in new["metrics"] if name.startswith("novelty")]
    assert all(describe(name) for name in new["metrics"])
    assert len(grid) == 3 + 4 * 2 * 2 * 2
    assert new["metrics"]["novelty"] == new["metrics"]["novelty_std_l2_full"]

    result = quality(folder, *more, "--generator=none", "--seed=1")
    assert result.returncode == 0, result.stderr
    newest = json.loads(path.read_text())
    assert "generator_return" not in newest["metrics"]  # of the other seed's segments
    assert newest["seed"] == 1


def test_without_an_oracle(made, tmp_path):
    """A Gymnasium task with a file of its own: what needs no simulator is measured."""
    rng = np.random.default_rng(0)
    ends = np.arange(60) % 20 == 19
    columns = {
        "observations": rng.normal(size=(60, 4)), "actions": rng.uniform(-1, 1, (60, 1)),
        "rewards": np.ones(60), "next_observations": rng.normal(size=(60, 4)),
        "terminals": ends, "timeouts": np.zeros(60, bool), "timesteps": np.arange(60) % 20,
        "returns_to_go": np.ones(60),
    }  # fmt: skip
    for name in ("data.hdf5", "made.hdf5"):
        with h5py.File(tmp_path / name, "w") as f:
            for column, values in columns.items():
                f[column] = np.asarray(values, bool if values.dtype == bool else np.float32)
    result = run(
        "quality", "--env=InvertedPendulum-v4", "--dataset=data.hdf5", "--synthetic=made.hdf5",
        "--synthesizer=mine", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "no oracle for InvertedPendulum-v4" in result.stdout
    assert "do not tell when an episode ends" in result.stdout
    found = json.loads(
        (tmp_path / "runs" / "InvertedPendulum-v4" / "mine/quality-made/quality.json").read_text()
    )
    assert found["metrics"]["novelty"]["synthetic"] == 0 and "dynamics_mse" not in found["metrics"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--synthesizer=gta-x"], "--synthesizer=gta --name=x"),
        (["--synthetic=nothing.hdf5"], "nothing.hdf5: not there"),
        (["--generator=nowhere"], "no checkpoint here"),
        (["--num_segments=0"], "num_segments"),
        (["--preset=quick"], "has no effect"),
    ],
)
def test_errors(made, arguments, message):
    result = quality(made[0], *arguments)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
