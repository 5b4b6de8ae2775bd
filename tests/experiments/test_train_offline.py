"""The app that trains offline learners, as its user meets it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from launch import environment, run
from test_apps import ENV

TINY = ["--learner=bc", "--set=learner.hidden_dims=8", "--num_seeds=2", "--episodes=1"]
RUN = [f"--env={ENV}", *TINY, "--num_steps=40", "--num_evaluations=2", "--name=tiny.1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    result = run("train_offline", *RUN, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_named_run_tells_its_settings_and_scores(made):
    folder, result = made
    directory = folder / "runs" / ENV / "none" / "bc-tiny.1"
    settings = r"bc, tgcvg settings: hidden_dims \(256, 256\) -> \(8,\), num_steps 1000000 -> 40\n"
    assert re.search(settings, result.stdout)
    config = json.loads((directory / "config.json").read_text())
    assert config["learner"] == "bc" and config["hyperparameters"] == "tgcvg"
    assert config["config"]["hidden_dims"] == [8] and config["seeds"] == [0, 1]
    assert config["synthetic"] is None and "jax" in config["versions"] and "crc32" in config["data"]

    with (directory / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["normalized_score"]]
    assert [row["step"] for row in rows] == ["20", "20", "40", "40"]
    first = [float(row["normalized_score"]) for row in rows[:2]]
    mean, std = sum(first) / 2, abs(first[0] - first[1]) / 2
    line = f"bc-tiny.1: step 20, normalised score {mean:.1f} ± {std:.1f}"
    assert line in result.stderr and "bc-tiny.1: step 40, " in result.stderr
    assert (directory / "learning_curve.png").stat().st_size > 0


def test_bad_settings_are_one_line(made):
    """All in one process: most of the time goes into imports."""
    folder, _ = made
    cases = {
        "--name=a/b": "--name=a/b: letters, digits and . _ - only",
        "--name=": "--name=: letters",
        "--num_steps=5 --set=learner.num_steps=6": "differ; leave one out",
        "--set=top_fraction=0.1": "did you mean learner.top_fraction?",
        "--set=original_share=0.1": "did you mean learner.replay.original_share?",
        "--set=learner.original_share=0.1": "did you mean learner.replay.original_share?",
        "--set=learner.top_fraction=0": "learner.top_fraction=0.0: must be above 0",
        "--learner=mcq --set=learner.dropout=1.0": "learner.dropout=1.0: must be below 1",
        "--set=learner.replay.original_share=0.5": "or leave original_share unset",
        "--synthesizer=gta --workdir=a\\ b --preset=quick": "python -m experiments.synthesize "
        f"--env={ENV} --synthesizer=gta '--workdir=a b' --preset=quick, or",
        "--synthesizer=tgcgv-k40": "did you mean tgcvg? there are none, tgcvg, ",
        "--synthesizer=gta/x": "there are none, ",
        "--synthesizer=gta-x --subset=top:0.2": f"experiments.synthesize --env={ENV} "
        "--synthesizer=gta --name=x --subset=top:0.2, or",
        "--num_synthetic=5": "--num_synthetic needs --synthesizer",
        "--subset=half": "subset 'half': write all, top:FRACTION",
        "--mix=hopper-expert-v2": "write ENV:FRACTION",
        f"--mix={ENV}:2": "subset 'random:2'",
        "--mix=walker2d-medium-mini:0.1": f"walker2d-medium-mini can't be mixed into {ENV}",
        # Of the run in this folder.
        " ".join([*RUN, "--subset=top:0.5"]): "crc32",
        " ".join([*RUN, "--state_noise=0.1"]): "state_noise: None -> 0.1); choose another --name",
        " ".join([*RUN, "--set=learner.batch_size=8"]): "batch_size: 256 -> 8); choose another "
        "--name or --workdir",
    }
    script = """if True:
        import json, shlex, sys
        from experiments import train_offline
        from tgcvg_jax.types import UserError
        found = []
        for case in json.loads(sys.argv[1]):
            train_offline.FLAGS.unparse_flags()
            train_offline.FLAGS(["app", "--learner=bc", *shlex.split(case)])
            try:
                train_offline.main()
            except UserError as error:
                found.append(str(error))
        print(json.dumps(found))
    """
    given = [case if case.startswith("--env") else f"--env={ENV} {case}" for case in cases]
    result = subprocess.run(
        [sys.executable, "-c", script, json.dumps(given)], cwd=folder, env=environment(),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    for (case, words), message in zip(cases.items(), found, strict=True):
        assert words in message, case
        assert "\n" not in message
    assert sorted(p.name for p in (folder / "runs" / ENV / "none").iterdir()) == ["bc-tiny.1"]


def test_sigterm_saves_and_iql_keeps_its_length(tmp_path):
    """IQL, whose learning rate depends on the number of steps; more of them are refused."""
    command = [f"--env={ENV}", *TINY[1:], "--learner=iql", "--set=learner.batch_size=8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train_offline", *command, "--num_steps=10000000"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if "steps/s after" in line:
            break
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    last = errors.strip().splitlines()[-1]
    goes_on = re.fullmatch(r"terminated; the same command goes on from step ([\d,]+)", last)
    assert goes_on and process.returncode == 143, errors
    directory = tmp_path / "runs" / ENV / "none" / "iql"
    (step,) = (p.name for p in directory.iterdir() if p.name.isdigit())
    assert f"{int(step):,}" == goes_on[1] and (directory / "config.json").exists()

    result = run("train_offline", *command, "--num_steps=20000000", cwd=tmp_path)
    assert result.returncode == 2
    assert "another --name or --workdir" in result.stderr
    assert "its learning rate depends on num_steps" in result.stderr


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("jnp.zeros(1 << 50)", 2, "error: out of memory (RESOURCE_EXHAUSTED"),
        ("raise Interrupted(2, None)", 130, "interrupted; nothing is saved yet"),
    ],
)
def test_what_ends_an_app_is_one_line(tmp_path, code, status, words):
    script = f"""if True:
        import jax.numpy as jnp
        from experiments import _main
        from tgcvg_jax.interruption import Interrupted
        def main():
            {code}
        _main.run(main)
    """
    result = subprocess.run(
        [sys.executable, "-c", script, "--env=any"], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == status and result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith(words)
