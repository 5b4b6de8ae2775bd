import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from tgcvg_jax import plotting
from tgcvg_jax.ops.scores import bootstrap_interval
from tgcvg_jax.plotting import datasets, drawing
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
    assert {drawing.SYNTHETIC_COLOR, drawing.CURVE_COLORS[0]} <= colors(path)
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
    first, again = drawing.subsample(data), drawing.subsample(data)
    assert len(first.reward) == plotting.MAX_ROWS
    np.testing.assert_array_equal(first.reward, again.reward)
    np.testing.assert_allclose(first.next_observation - first.observation, 0.1, atol=1e-5)


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_every_dimension_has_a_label(name):
    task = TASKS[f"{name}-medium-v2"]
    assert len(datasets._state_labels(task)) == task.observation_dim
    assert len(datasets._action_labels(task)) == task.action_dim


def test_learning_curve(tmp_path):
    curves = {"plain": CURVES["policy"]["critic_loss"], "augmented": CURVES["td3_bc"]["q"]}
    path = tmp_path / "curve.png"
    plotting.learning_curve(path, curves, "hopper", "normalised score")
    assert set(drawing.CURVE_COLORS[:2]) <= colors(path)
    plotting.learning_curve(path, {"one": ([100], [2.0])}, "hopper", "score")
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def figures(monkeypatch, tmp_path):
    """The figures that are drawn, instead of files."""
    found = []

    def keep(figure, path):
        figure.draw_without_rendering()
        found.append(figure)

    monkeypatch.setattr(drawing, "save", keep)
    return found


def test_band_is_the_bootstrap_interval(figures):
    """Of the seeds that are there; one seed has a line and no band."""
    values = np.random.default_rng(0).normal(size=(4, 5)) * 10
    values[2, 1:] = np.nan
    values[3] = np.nan
    curves = {"many": (np.arange(4), values), "one": (np.arange(4), np.arange(4.0))}
    plotting.learning_curve("a.png", curves, "hopper", "score")
    (axis,) = figures[0].axes
    many, one = axis.lines
    np.testing.assert_allclose(many.get_ydata()[:2], values[:2].mean(axis=1))
    assert many.get_ydata()[2] == values[2, 0] and len(many.get_ydata()) == 3
    (band,) = axis.collections
    corners = band.get_paths()[0].vertices
    for t in range(3):
        found = corners[corners[:, 0] == t, 1]
        known = values[t][~np.isnan(values[t])]
        low, high = bootstrap_interval(known, num_resamples=drawing.RESAMPLES)
        assert found.min() == pytest.approx(low) and found.max() == pytest.approx(high)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["many (5 seeds)", "one (1 seed)"]
    assert "95 % bootstrap interval" in figures[0].texts[0].get_text()
    assert list(one.get_ydata()) == [0, 1, 2, 3]


def test_more_methods_than_colors(figures):
    curves = {f"m{i}": ([0, 1], [0.0, float(i)]) for i in range(9)} | {"none": ([0, 1], [0.0, 1.0])}
    plotting.learning_curve("a.png", curves, "hopper", "score")
    lines = figures[0].axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10
    assert lines[-1].get_color() == drawing.ORIGINAL_COLOR


SCORES = {
    "hopper / td3_bc": {"none": (40.0, 38.0, 45.0), "tgcvg": (-5.0, -6.0, -1.0)},
    "hopper / iql": {"none": None, "gta": (0.0, 0.0, 0.0), "tgcvg": (float("nan"), 0.0, 0.0)},
}


def test_score_bars(figures):
    """A zero is a bar; what is missing is a dash."""
    plotting.score_bars("a.png", SCORES, "scores", "normalised score")
    (axis,) = figures[0].axes
    assert [bar.get_height() for bar in axis.patches] == [40.0, -5.0, 0.0]
    first, second = (line.get_segments()[0] for line in axis.collections)
    np.testing.assert_array_equal(first[:, 1], [38, 45])
    np.testing.assert_array_equal(second[:, 1], [-6, -1])
    # Columns: none, tgcvg, gta. The first row has no gta, the second none and tgcvg.
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["40.0", "-5.0", "—", "—", "—", "0"]
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["none", "tgcvg", "gta"]
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["hopper\ntd3_bc", "hopper\niql"]


def test_long_tables_are_wrapped(figures):
    cells = {f"method {j}": (float(j), j - 1.0, j + 1.0) for j in range(6)}
    plotting.score_bars("a.png", {f"task {i}": cells for i in range(12)}, "scores", "score")
    assert [len(axis.patches) for axis in figures[0].axes] == [24, 24, 24]
    assert figures[0].get_figwidth() <= 14


def test_score_files(tmp_path):
    plotting.score_bars(tmp_path / "a.png", SCORES, "scores", "score")
    plotting.score_bars(tmp_path / "b.png", {}, "scores", "score")
    assert len(list(tmp_path.iterdir())) == 2


def test_trade_off(figures):
    """Labels cover neither each other nor the points; what can't be drawn is named."""
    rng = np.random.default_rng(0)
    points = {f"method-{i}": tuple(0.5 + 0.04 * rng.normal(size=2)) for i in range(10)}
    points |= {"original": (0.1, 0.2), "rt": None, "gta": (float("nan"), 1.0), "s4rl": (0.0, 0.3)}
    plotting.trade_off("a.png", points, "error", "reward", "hopper", log_x=True)
    (axis,) = figures[0].axes
    assert len(axis.texts) == 11
    assert axis.get_xlabel() == "error\nnot measured: rt, gta, s4rl"
    renderer = FigureCanvasAgg(figures[0]).get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in axis.texts]  # without the lines
    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            overlap = Bbox.intersection(box, other)
            assert overlap is None or overlap.width * overlap.height < 0.1 * box.width * box.height
    stars = [c for c in axis.collections if len(c.get_offsets()) and c.get_sizes()[0] > 100]
    np.testing.assert_allclose(stars[0].get_offsets(), [[0.1, 0.2]])


def test_trade_off_of_nothing(tmp_path):
    plotting.trade_off(tmp_path / "a.png", {"original": None}, "error", "reward", "hopper")
    assert (tmp_path / "a.png").stat().st_size > 3_000


def test_return_histogram(tmp_path):
    path, task = tmp_path / "returns.png", TASKS["hopper-medium-v2"]
    returns = np.random.default_rng(0).normal(1500, 300, 400)
    plotting.return_histogram(path, task, returns)
    # Both references lie outside, so no line of theirs is drawn.
    assert drawing.CURVE_COLORS[1] not in colors(path)
    plotting.return_histogram(path, task, np.append(returns, 3500))
    assert drawing.CURVE_COLORS[1] in colors(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("returns", [[0.0] * 5, [7.5], [-1e5, 1e5]])
@pytest.mark.parametrize("name", ["antmaze-umaze-v2", "mujoco/hopper/medium-v0"])
def test_return_histogram_of_odd_returns(tmp_path, name, returns):
    plotting.return_histogram(tmp_path / "a.png", TASKS[name], np.array(returns))
    assert (tmp_path / "a.png").stat().st_size > 5_000
