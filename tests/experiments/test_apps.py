"""The apps as a user runs them: as processes, from a folder of their own."""

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from launch import run

ENV = "hopper-medium-mini"
# As small as it gets with every stage still real.
TINY = [
    "--preset=quick",
    "--set=policy.num_steps=20",
    "--set=policy.bc_steps=10",
    "--set=policy.hidden_dim=8",
    "--set=policy.num_blocks=1",
    "--set=policy.critic_hidden_dims=(8,)",
    "--set=policy.batch_size=8",
    "--set=dynamics.epoch_steps=150",  # enough for rewards that the filter lets through
    "--set=dynamics.max_epochs=2",
    "--set=dynamics.hidden_dim=32",
    "--set=dynamics.learning_rate=0.003",
    "--set=rollout_batch=50",
]


def synthesize(cwd, *arguments, env=None):
    return run("synthesize", f"--env={ENV}", *TINY, *arguments, cwd=cwd, env=env)


def rows(path):
    with h5py.File(path) as f:
        return {name: f[name][:] for name in f if name != "metadata"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder where the main job has run once."""
    folder = tmp_path_factory.mktemp("made")
    result = synthesize(folder, "--num_transitions=3000")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_writes_all_it_promises(made):
    folder, result = made
    directory = folder / "runs" / ENV / "tgcvg"
    for name in ("synthetic.hdf5", "config.json", "metrics.csv", "summary.png"):
        assert (directory / name).stat().st_size > 0
    for model in ("policy", "dynamics"):
        assert any(p.name.isdigit() for p in (directory / model).iterdir())
        assert (directory / model / "metrics.csv").exists()
    assert not list(directory.glob("*.parts")) and not list(directory.glob(".*tmp"))
    assert "terminals per 1,000" in result.stdout
    config = json.loads((directory / "config.json").read_text())
    assert config["config"]["policy"]["num_steps"] == 20 and config["num_transitions"] == 3000


def test_synthetic_file_is_d4rl_format(made):
    data = rows(made[0] / "runs" / ENV / "tgcvg" / "synthetic.hdf5")
    assert set(data) == {
        "observations", "actions", "rewards", "next_observations", "terminals", "timeouts",
        "timesteps", "returns_to_go",
    }  # fmt: skip
    assert {len(x) for x in data.values()} == {3000}
    assert data["observations"].shape == (3000, 11) and data["observations"].dtype == np.float32
    ends = data["terminals"] | data["timeouts"]
    assert ends[-1] and not np.any(data["terminals"] & data["timeouts"])
    # Inside a segment each observation is the last one's successor.
    inside = ~ends[:-1]
    np.testing.assert_array_equal(
        data["observations"][1:][inside], data["next_observations"][:-1][inside]
    )
    # K + 1 - L = 21 transitions each, and the last one cut to make 3,000.
    lengths = np.diff(np.flatnonzero(ends), prepend=-1)
    assert set(lengths[:-1]) == {21} and lengths[-1] == 3000 % 21
    assert np.all(np.diff(data["timesteps"])[inside] == 1)
    assert np.all(np.abs(data["actions"]) <= 1)


def test_again_is_a_no_op(made):
    folder, _ = made
    file = folder / "runs" / ENV / "tgcvg" / "synthetic.hdf5"
    before = file.stat().st_mtime_ns
    result = synthesize(folder, "--num_transitions=3000")
    assert result.returncode == 0, result.stderr
    assert "trained already" in result.stdout and "generated already" in result.stdout
    assert file.stat().st_mtime_ns == before


def test_more_transitions_go_on_from_the_file(made, tmp_path):
    """One run of 5,000 and a run of 3,000 that is extended give the same rows."""
    folder, _ = made
    found = []
    for name in ("extended", "once"):
        shutil.copytree(folder, tmp_path / name)
        file = tmp_path / name / "runs" / ENV / "tgcvg" / "synthetic.hdf5"
        if name == "once":
            file.unlink()
        result = synthesize(tmp_path / name, "--num_transitions=5000")
        assert result.returncode == 0, result.stderr
        assert "trained already" in result.stdout
        found.append(rows(file))
    extended, once = found
    assert len(once["rewards"]) == 5000
    for name in once:
        np.testing.assert_array_equal(once[name], extended[name], err_msg=name)


def test_another_configuration_is_refused(made):
    folder, _ = made
    result = synthesize(folder, "--num_transitions=3000", "--set=policy.cql_weight=9")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "cql_weight: 2.0 -> 9.0" in result.stderr and "Traceback" not in result.stderr


def test_runs_of_other_names_share_models(made):
    """Only what generates differs; models of other settings are refused, and nothing is written."""
    folder, _ = made
    other = ["--name=k20", "--models_from=tgcvg", "--num_transitions=1000"]
    refused = synthesize(folder, *other, "--set=policy.cql_weight=9")
    assert refused.returncode == 2 and not (folder / "runs" / ENV / "tgcvg-k20").exists()
    assert "cql_weight: 2.0 -> 9.0" in refused.stderr and "--models_from" in refused.stderr
    result = synthesize(folder, *other, "--set=window_length=20")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained already") == 2
    directory = folder / "runs" / ENV / "tgcvg-k20"
    assert not (directory / "policy").exists() and (directory / "summary.png").exists()
    config = json.loads((directory / "config.json").read_text())
    assert config["models_from"] == {"policy": "tgcvg", "dynamics": "tgcvg"}
    ends = rows(directory / "synthetic.hdf5")
    ends = np.flatnonzero(ends["terminals"] | ends["timeouts"])
    assert set(np.diff(ends[:-1], prepend=-1)) == {16}  # K + 1 - L


def test_train_offline_and_evaluate(made):
    folder, _ = made
    result = run(
        "train_offline", f"--env={ENV}", "--preset=quick", "--synthesizer=tgcvg", "--num_seeds=2",
        "--num_steps=20", "--episodes=2", "--num_evaluations=2", "--set=learner.hidden_dims=(8,8)",
        "--set=learner.batch_size=8", cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    directory = folder / "runs" / ENV / "tgcvg" / "td3_bc"
    with (directory / "scores.csv").open() as f:
        scores = list(csv.DictReader(f))
    assert list(scores[0]) == ["seed", "return_mean", "return_std", "normalized_score", "episodes"]
    assert [row["seed"] for row in scores] == ["0", "1"]
    assert (directory / "learning_curve.png").exists()

    for model, words in (
        ("tgcvg/td3_bc", "td3_bc"),
        ("tgcvg/policy", "transformer_cql sampled"),
        ("tgcvg/dynamics", "learned dynamics"),
    ):
        checkpoint = folder / "runs" / ENV / model
        result = run(
            "evaluate", f"--env={ENV}", f"--checkpoint={checkpoint}", "--episodes=2", cwd=folder
        )
        assert result.returncode == 0, result.stderr
        assert words in result.stdout
    # Data made for another robot of the same dimensions is refused.
    file = shutil.copy(folder / "runs" / ENV / "tgcvg" / "synthetic.hdf5", folder / "other.hdf5")
    with h5py.File(file, "a") as f:
        f.attrs["environment"] = "HalfCheetah-v4"
    result = run(
        "train_offline", f"--env={ENV}", "--synthesizer=tgcvg", f"--synthetic={file}", cwd=folder
    )
    assert result.returncode == 2 and "was made for HalfCheetah-v4" in result.stderr
    # The final score is of the checkpoint that was kept.
    result = run(
        "evaluate", f"--env={ENV}", f"--checkpoint={directory}", "--episodes=2", cwd=folder
    )
    assert f"{float(scores[0]['return_mean']):.1f}" in result.stdout
    wrong = run(
        "evaluate", f"--env={ENV}", f"--checkpoint={directory}", "--target_return=9", cwd=folder
    )
    assert wrong.returncode == 2 and "--target_return is for dt" in wrong.stderr


def test_dt_on_synthetic_sequences(made):
    folder, _ = made
    result = run(
        "train_offline", f"--env={ENV}", "--preset=quick", "--synthesizer=tgcvg", "--learner=dt",
        "--num_seeds=1", "--num_steps=4", "--episodes=1", "--num_evaluations=1",
        "--set=learner.hidden_dim=8", "--set=learner.num_blocks=1", "--set=learner.batch_size=4",
        cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    checkpoint = f"--checkpoint={folder / 'runs' / ENV / 'tgcvg' / 'dt'}"
    for target in ([], ["--target_return=1800"]):
        result = run("evaluate", f"--env={ENV}", checkpoint, "--episodes=1", *target, cwd=folder)
        assert result.returncode == 0 and result.stdout.count("dt ") == 1, result.stderr


def _hdf5(path: Path, **fields):
    with h5py.File(path, "w") as f:
        for name, values in fields.items():
            f[name] = values
    return path


def _bad_dataset(kind: str, folder: Path) -> Path:
    n = 100
    good = dict(
        observations=np.zeros((n, 11), np.float32),
        actions=np.zeros((n, 3), np.float32),
        rewards=np.zeros(n, np.float32),
        terminals=np.zeros(n, bool),
        timeouts=np.zeros(n, bool),
        next_observations=np.zeros((n, 11), np.float32),
    )
    path = folder / "data.hdf5"
    if kind == "text":
        path.write_text("not a dataset")
    elif kind == "missing key":
        _hdf5(path, **{k: v for k, v in good.items() if k != "rewards"})
    elif kind == "other environment":
        _hdf5(path, **good | {"observations": np.zeros((n, 17), np.float32)})
    elif kind == "nan":
        good["rewards"][7] = np.nan
        _hdf5(path, **good)
    elif kind == "short episodes":
        good["timeouts"][::10] = True
        _hdf5(path, **good)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset=tiny"], "--preset"),
        (["--nonsense=1"], "nonsense"),
        (["--env=hoper-medium-v2"], "did you mean hopper-medium-v2"),
        (["--num_transitions=0"], "--num_transitions"),
        (["--set=policy.nonsense=1"], "nonsense"),
        (["--set=policy.batch_size=many"], "int"),
        (["--set=policy.num_steps=0"], "policy.num_steps=0"),
        (["--set=window_length=3"], "K must be at least L"),
        (["stray"], "stray"),
        (["--dataset=text"], "HDF5"),
        (["--dataset=missing key"], "rewards"),
        (["--dataset=other environment"], "17"),
        (["--dataset=nan"], "rewards"),
        (["--dataset=short episodes", "--set=window_length=25"], "window of 25"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, words, tmp_path):
    arguments = [
        f"--dataset={_bad_dataset(a.removeprefix('--dataset='), tmp_path)}"
        if a.startswith("--dataset=")
        else a
        for a in arguments
    ]
    before = set(tmp_path.rglob("*"))
    result = run("synthesize", f"--env={ENV}", *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    if "window of 25" in words:  # a good file, but no simulator's
        assert lines.pop(0).startswith("warning: "), result.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert words in lines[0]
    assert set(tmp_path.rglob("*")) == before


def test_unusable_workdir_is_said_before_training(tmp_path):
    (tmp_path / "file").touch()
    result = synthesize(tmp_path, "--workdir=file", "--num_transitions=100")
    assert result.returncode == 2
    assert result.stderr.strip().startswith("error: --workdir=file"), result.stderr


@pytest.mark.parametrize("app", ["synthesize", "train_policy", "train_offline", "evaluate"])
def test_help_names_the_flags(app, tmp_path):
    result = run(app, "--help", cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr
    unused = ("workdir", "preset", "set") if app == "evaluate" else ()
    for flag in ("env", "workdir", "seed", "preset", "data_dir", "dataset", "set"):
        named = f"\n  --{flag}\n" in result.stdout or f"\n  --{flag} (" in result.stdout
        assert named == (flag not in unused)
    assert "python -m experiments." in result.stdout


def test_names_the_mini_tasks_without_a_network(tmp_path):
    result = run(
        "train_policy", "--env=walker2d-medium-v2", cwd=tmp_path,
        env={"TGCVG_URL": "http://127.0.0.1:9/", "HOME": str(tmp_path), "TGCVG_DATA": ""},
    )  # fmt: skip
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "walker2d_medium-v2.hdf5" in last and "-mini" in last
