import sys

import numpy as np
import pytest
from PIL import Image

from tgcvg_jax import plotting
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import Task, Transition


def transitions(size, observation_dim, action_dim, seed=0):
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(size, observation_dim)).astype(np.float32)
    return Transition(
        observation=observation,
        action=rng.uniform(-1, 1, (size, action_dim)).astype(np.float32),
        reward=rng.normal(size=size).astype(np.float32),
        discount=np.ones(size, np.float32),
        next_observation=observation + 0.1,
    )


STEPS = np.arange(1, 21) * 100
CURVES = {
    "policy": {"critic_loss": (STEPS, np.exp(-STEPS / 1000))},
    "td3_bc": {"q": (STEPS, np.random.default_rng(0).normal(size=(20, 3)))},
}


def colors(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {"#" + bytes(c).hex() for c in np.unique(pixels, axis=0)}


def test_summary(tmp_path):
    path = tmp_path / "summary.png"
    task = TASKS["walker2d-medium-v2"]
    plotting.summary(path, task, transitions(3000, 17, 6), transitions(2000, 17, 6, 1), CURVES)
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width == 1400
    assert path.stat().st_size < 400_000
    # The synthetic data's lines, and the first model's curve.
    assert {plotting.SYNTHETIC_COLOR, plotting.CURVE_COLORS[0]} <= colors(path)
    assert list(tmp_path.iterdir()) == [path]
    assert "matplotlib.pyplot" not in sys.modules


def test_summary_of_odd_data(tmp_path):
    """Unnamed dimensions, constants, non-finite synthetic values, no curves."""
    task = Task("mine", "", 4, 1, 100)
    original = transitions(200, 4, 1)
    original.reward[:] = 1.0
    synthetic = transitions(5, 4, 1, seed=1)
    synthetic.observation[0, 0] = np.nan
    synthetic.reward[0] = np.inf
    plotting.summary(tmp_path / "a.png", task, original, synthetic)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_subsampling_keeps_rows_together_and_repeats():
    data = transitions(plotting.MAX_ROWS + 10, 2, 1)
    first, again = plotting._subsample(data), plotting._subsample(data)
    assert len(first.reward) == plotting.MAX_ROWS
    np.testing.assert_array_equal(first.reward, again.reward)
    np.testing.assert_allclose(first.next_observation - first.observation, 0.1, atol=1e-5)


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_every_dimension_has_a_label(name):
    task = TASKS[f"{name}-medium-v2"]
    assert len(plotting._state_labels(task)) == task.observation_dim
    assert len(plotting._action_labels(task)) == task.action_dim


def test_learning_curve(tmp_path):
    curves = {"plain": CURVES["policy"]["critic_loss"], "augmented": CURVES["td3_bc"]["q"]}
    path = tmp_path / "curve.png"
    plotting.learning_curve(path, curves, "hopper", "normalised score")
    assert set(plotting.CURVE_COLORS[:2]) <= colors(path)
    plotting.learning_curve(path, {"one": ([100], [2.0])}, "hopper", "score")
    assert list(tmp_path.iterdir()) == [path]


def test_return_histogram(tmp_path):
    path, task = tmp_path / "returns.png", TASKS["hopper-medium-v2"]
    returns = np.random.default_rng(0).normal(1500, 300, 400)
    plotting.return_histogram(path, task, returns)
    # Both references lie outside, so no line of theirs is drawn.
    assert plotting.CURVE_COLORS[1] not in colors(path)
    plotting.return_histogram(path, task, np.append(returns, 3500))
    assert plotting.CURVE_COLORS[1] in colors(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("returns", [[0.0] * 5, [7.5], [-1e5, 1e5]])
@pytest.mark.parametrize("name", ["antmaze-umaze-v2", "mujoco/hopper/medium-v0"])
def test_return_histogram_of_odd_returns(tmp_path, name, returns):
    plotting.return_histogram(tmp_path / "a.png", TASKS[name], np.array(returns))
    assert (tmp_path / "a.png").stat().st_size > 5_000
