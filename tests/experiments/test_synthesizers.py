"""The other synthesizers through the apps: make data, train on it."""

import json

import h5py
import numpy as np
import pytest
from launch import run
from test_apps import ENV

SETTINGS = {
    "s4rl": ["--set=segment_length=50"],
    "synther": [
        "--set=denoiser.num_steps=20", "--set=denoiser.width=16", "--set=denoiser.num_layers=1",
        "--set=sampler.num_steps=4", "--set=batch_size=500",
    ],
    "gta": [
        "--set=denoiser.num_steps=4", "--set=denoiser.batch_size=4", "--set=denoiser.base_dim=2",
        "--set=denoiser.dim_mults=1", "--set=denoiser.horizon=7", "--set=denoiser.num_heads=1",
        "--set=sampler.num_steps=4", "--set=batch_size=50",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["s4rl", "synther", pytest.param("gta", marks=pytest.mark.slow)]
)
def test_make_and_train(tmp_path, name):
    """However badly a denoiser is trained, learners can read what it makes."""
    arguments = (f"--env={ENV}", "--preset=quick", f"--synthesizer={name}")
    made = run("synthesize", *arguments, *SETTINGS[name], "--num_transitions=1000", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "reward there in the simulator" in made.stdout and "error of the step" in made.stdout
    with h5py.File(tmp_path / "runs" / ENV / name / "synthetic.hdf5") as file:
        assert len(file["rewards"]) == 1000
        assert np.abs(file["actions"][:]).max() <= 1.0
    trained = run(
        "train_offline", *arguments, "--learner=bc", "--num_steps=4", "--num_seeds=1",
        "--episodes=1", "--set=learner.hidden_dims=8", "--num_evaluations=1", cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0 and "warning" not in trained.stderr, trained.stderr
    assert f"with 1,000 synthetic transitions from runs/{ENV}/{name}/" in trained.stdout


def test_a_named_run_on_a_part_of_the_data(tmp_path):
    """Half of the episodes, and a tenth of all, which brings some of them twice."""
    chosen = (f"--env={ENV}", "--subset=random:0.5", f"--mix={ENV}:0.1", "--preset=quick")
    made = run(
        "synthesize", *chosen, "--synthesizer=duplicate", "--name=best", "--num_transitions=900",
        cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert f"(subset random:0.5, with {ENV}:0.1)" in made.stdout
    arguments = (
        *chosen, "--learner=bc", "--synthesizer=duplicate-best", "--num_steps=4", "--num_seeds=1",
        "--episodes=1", "--set=learner.hidden_dims=8", "--num_evaluations=1",
    )  # fmt: skip
    trained = run("train_offline", *arguments, "--num_synthetic=700", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert f"with 700 synthetic transitions from runs/{ENV}/duplicate-best/" in trained.stdout
    config = json.loads(
        (tmp_path / "runs" / ENV / "duplicate-best" / "bc" / "config.json").read_text()
    )
    assert config["num_synthetic"] == 700 and config["synthesizer"] == "duplicate-best"
    assert config["subset"] == "random:0.5" and config["mix"] == [f"{ENV}:0.1"]
    # All of the file is other data, in a folder of the same name.
    refused = run("train_offline", *arguments, cwd=tmp_path)
    assert refused.returncode == 2 and "data: " in refused.stderr
    assert "choose another --name or --workdir" in refused.stderr
    refused = run("train_offline", *arguments, "--num_synthetic=901", cwd=tmp_path)
    assert refused.returncode == 2 and "holds 900 transitions" in refused.stderr
    refused = run(
        "synthesize", *chosen, "--synthesizer=gta", "--generator=x", "--num_transitions=9",
        cwd=tmp_path,
    )  # fmt: skip
    assert refused.returncode == 2 and "--generator is for --synthesizer=tgcvg" in refused.stderr
    # What was trained generates, in a dynamics model.
    made = run(
        "synthesize", *chosen, f"--generator=runs/{ENV}/duplicate-best/bc", "--name=bc",
        "--set=dynamics.hidden_dim=8", "--set=dynamics.max_epochs=1",
        "--set=dynamics.epoch_steps=4", "--set=terminals=rule", "--num_transitions=500",
        cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    config = json.loads((tmp_path / "runs" / ENV / "tgcvg-bc" / "config.json").read_text())
    assert config["generator"]["kind"] == "bc" and config["generator"]["step"] == 4
    assert not (tmp_path / "runs" / ENV / "tgcvg-bc" / "policy").exists()
