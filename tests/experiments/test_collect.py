"""Collecting as a user does it, and what the main job makes of what was collected."""

import json
import re

import minari
import numpy as np
import pytest
from launch import run
from test_apps import TINY

from tgcvg_jax import data
from tgcvg_jax.tasks import tgcvg_settings

SAC = ["--set=sac.hidden_dims=(8,)", "--set=sac.batch_size=8", "--set=sac.start_steps=50",
       "--train_steps=300", "--medium_return=-1000", "--num_transitions=400"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run in, with a Minari store of its own."""
    folder = tmp_path_factory.mktemp("collect")
    return folder, {"MINARI_DATASETS_PATH": str(folder / "store")}


@pytest.fixture(scope="module")
def ant_policy(place):
    rng = np.random.default_rng(0)
    path = place[0] / "ant.npz"
    np.savez(path, W0=0.1 * rng.normal(size=(8, 29)), b0=np.zeros(8), log_std=np.full(8, -1.0))
    return path


def collect(place, *arguments):
    folder, env = place
    return run("collect", *arguments, cwd=folder, env=env)


@pytest.fixture(scope="module")
def maze(place):
    result = collect(place, "--env=maze2d-umaze", "--num_transitions=6000")
    assert result.returncode == 0, result.stderr
    return result


def test_minari_opens_it_with_the_environment(maze, place, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", place[1]["MINARI_DATASETS_PATH"])
    dataset = minari.load_dataset("tgcvg/maze2d-umaze/generated-v0")
    assert 6000 <= dataset.total_steps < 6400
    env = dataset.recover_environment()
    assert env.spec.id == "tgcvg/Maze2D-umaze-v1"
    env.close()
    task = data.resolve("tgcvg/maze2d-umaze/generated-v0")
    assert tgcvg_settings(task).window_length == 7 and task.eval_episodes == 100
    assert (task.min_score, task.max_score) == (23.85, 161.86)
    assert "maze2d-umaze: " in maze.stdout and "0 terminals" in maze.stdout


@pytest.mark.slow
def test_the_main_job_on_a_maze(maze, place):
    folder, env = place
    name = "tgcvg/maze2d-umaze/generated-v0"
    tiny = [x for x in TINY if "learning_rate" not in x]
    result = run("synthesize", f"--env={name}", *tiny, "--num_transitions=600", cwd=folder, env=env)
    assert result.returncode == 0, result.stderr
    directory = folder / "runs" / name.replace("/", "_") / "tgcvg"
    config = json.loads((directory / "config.json").read_text())["config"]
    assert config["window_length"] == 7 and config["dynamics"]["reward_bias"] == 1.0
    train = ["--preset=quick", "--num_steps=20", "--num_seeds=1", "--episodes=1",
             "--num_evaluations=1", "--synthesizer=tgcvg"]  # fmt: skip
    result = run("train_offline", f"--env={name}", *train, cwd=folder, env=env)
    assert result.returncode == 0, result.stderr
    assert "normalised score" in result.stdout
    checkpoint = f"--checkpoint={directory}/dynamics"
    error = run("evaluate", f"--env={name}", checkpoint, cwd=folder, env=env)
    assert error.returncode == 0, error.stderr
    assert "learned dynamics" in error.stdout


def test_ants(place, ant_policy):
    arguments = ["--env=antmaze-medium", f"--policy={ant_policy}", "--num_transitions=1500"]
    result = collect(place, *arguments)
    assert result.returncode == 0, result.stderr
    assert "--env=tgcvg/antmaze-medium-play/generated-v0" in result.stdout
    again = collect(place, *arguments)
    assert again.returncode == 0 and "collected already" in again.stdout
    other = collect(place, *arguments, "--seed=1")
    assert other.returncode == 2 and "exists already" in other.stderr


def test_levels_share_one_training(place):
    result = collect(place, "--env=hopper", "--level=medium-expert", *SAC)
    assert result.returncode == 0, result.stderr
    assert "medium: return" in result.stderr
    folder = place[0] / "runs" / "hopper" / "collect"
    assert {p.name for p in folder.iterdir()} == {"sac", "rollouts", "written.json"}
    assert {p.name for p in (folder / "rollouts").iterdir()} == {"medium", "expert"}
    assert (folder / "sac" / "learning_curve.png").exists()
    replay = collect(place, "--env=hopper", "--level=medium-replay", *SAC[:-1])
    assert replay.returncode == 0, replay.stderr
    assert "collected: 3" in replay.stdout or "collected: 4" in replay.stdout


def test_any_gymnasium_environment(place):
    """Pendulum's torque is in [-2, 2]; what is recorded is in [-1, 1]."""
    random = ["--set=sac.hidden_dims=(8,)", "--num_transitions=400"]
    result = collect(place, "--env=Pendulum-v1", "--level=random", *random)
    assert result.returncode == 0, result.stderr
    assert "--env=tgcvg/pendulum-v1/random-v0" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env=hopper-medium-v2"], "names a dataset.*--env=hopper or tgcvg/Hopper-v2"),
        (["--env=antmaze-umaze-v2"], "names a dataset.*--env=antmaze-umaze or tgcvg/AntMaze-uma"),
        (["--env=maze2d-umaze", "--train_steps=7"], "--train_steps is for SAC"),
        (["--env=hopper", "--policy="], "--policy is empty"),
        (["--env=maze2d-umaze", "--level=medium"], "--level=medium is not for this"),
        (["--env=maze2d-umaze", "--policy=p.npz"], "leave --policy out"),
        (["--env=antmaze-umaze"], "needs --policy"),
        (["--env=hopper", "--policy=absent.npz"], "expected an npz file"),
        (["--env=hopper", "--id=nonsense"], "is not a Minari id"),
        (["--env=Pendulum-v1"], "give --medium_return"),
        (["--env=CartPole-v1"], "only one-dimensional Box"),
        (["--env=hopper", "--preset=quick"], "--preset has no effect"),
    ],
)
def test_errors(tmp_path, arguments, message):
    result = run("collect", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "runs").exists()
