"""Killed at random moments and started again, the main job ends in the same bits."""

import csv
import random
import subprocess
import sys

import numpy as np
import pytest
from launch import environment
from test_apps import ENV, TINY, rows, synthesize

COMMAND = ["-m", "experiments.synthesize", f"--env={ENV}", *TINY, "--num_transitions=3000"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_main_job_survives_sigkill(seed, tmp_path):
    once, killed = tmp_path / "once", tmp_path / "killed"
    for folder in (once, killed):
        folder.mkdir()
    assert synthesize(once, "--num_transitions=3000").returncode == 0
    rng, kills = random.Random(seed), 0
    while True:
        process = subprocess.Popen(
            [sys.executable, *COMMAND], cwd=killed, env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            # Longer with every kill, so that there is progress between saves.
            code = process.wait(timeout=rng.uniform(5, 20) + 5 * kills)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert code == 0 and kills > 0
    directories = [folder / "runs" / ENV / "tgcvg" for folder in (once, killed)]
    a, b = (rows(d / "synthetic.hdf5") for d in directories)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    a, b = (list(csv.reader((d / "metrics.csv").open())) for d in directories)
    assert a == b
    assert not list(killed.rglob("*.tmp")) and not list(killed.rglob("*.parts"))
