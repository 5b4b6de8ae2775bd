"""The figure of a synthetic dataset's quality says what was measured, and what was not."""

import importlib.util
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tgcvg_jax.plotting import drawing
from tgcvg_jax.plotting import quality as quality_plots
from tgcvg_jax.types import Task, Transition

TASK = Task("toy", "", 4, 2, 100)


def transitions(size, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(size, 4)) + shift
    action, reward = rng.uniform(-1, 1, (size, 2)), rng.normal(size=size)
    return Transition(observation, action, reward, np.ones(size), observation + 0.1)


def curve(**values):
    return {"step": [0, 1, 2], **values}


@pytest.fixture
def quality():
    both = lambda a, b: {"original": a, "synthetic": b}  # noqa: E731
    return {
        "synthesizer": "tgcvg-rule",
        "metrics": {
            "transitions": both(1000, 5_000_000),
            "dynamics_mse": both(1.5e-7, 0.0125),
            "novelty": both(None, 0.25),
            "after_fall_share": both(0.0, 0.125),
            "claimed_return": both(124.0, 131.0),
            "oracle_return": both(123.0, None),
        },
        "curves": {
            "compounding_error": curve(
                original=[0.0, 0.1, 0.2], synthetic=[0.0, 1.0, 2.0],
                synthetic_low=[0.0, 0.5, 1.0], synthetic_high=[0.0, 2.0, 5.0],
            ),
            "dynamics_mse_by_step": curve(original=[1e-6] * 3, synthetic=[0.01, 0.02, None]),
            "reward_by_step": curve(original=[1.0, 1.0, 1.0], synthetic=[1.0, 2.0, 3.0]),
            "oracle_reward_by_step": curve(original=None, synthetic=[1.0, 0.5, 0.0]),
        },
    }  # fmt: skip


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """Draws with PCA and returns the figure's axes by title."""
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    figures = []

    def keep(figure, path):
        figures.append(figure)
        figure.draw_without_rendering()

    monkeypatch.setattr(drawing, "save", keep)

    def draw(quality, original=None, synthetic=None):
        original = transitions(300) if original is None else original
        synthetic = transitions(200, 1) if synthetic is None else synthetic
        quality_plots.quality_figure(tmp_path / "a.png", TASK, quality, original, synthetic)
        return {axis.get_title(): axis for axis in all_axes(figures[-1])}, figures[-1]

    return draw


def all_axes(figure: Figure):
    return [axis for part in figure.subfigs for axis in part.axes]


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_all_panels(panels, quality):
    axes, figure = panels(quality)
    assert list(axes) == [
        "States and actions, PCA of 300 + 200 rows",
        "Compounding error: generated against replayed",
        "Dynamics error of single steps",
        "Reward by step",
        "Rewards",
        "Segment returns: claimed against replayed",
        "Metrics",
    ]
    assert not any("not measured" in texts(axis) for axis in axes.values())
    growth = axes["Compounding error: generated against replayed"]
    np.testing.assert_array_equal(growth.lines[1].get_ydata(), [0, 1, 2])
    assert growth.lines[1].get_color() == drawing.SYNTHETIC_COLOR
    (band,) = growth.collections  # of the synthetic data alone
    assert band.get_datalim(growth.transData).y1 == 5.0
    assert growth.get_yscale() == "linear"  # it has zeros
    notes = [text.get_text() for text in growth.get_legend().get_texts()]
    assert notes == ["all segments", "middle half of them"]
    single = axes["Dynamics error of single steps"]
    assert single.get_yscale() == "log"
    assert np.isnan(single.lines[1].get_ydata()[2])
    reward = axes["Reward by step"]
    assert [line.get_linestyle() for line in reward.lines] == ["-", "-", "--"]
    header = figure.subfigs[0].legends[0].get_texts()
    assert [t.get_text() for t in header] == [
        "original (1,000 transitions)",
        "synthetic (5,000,000 transitions)",
    ]


def test_numbers_and_missing_numbers(panels, quality):
    axes, _ = panels(quality)
    table = texts(axes["Metrics"])
    assert ["dynamics MSE (std)", "1.5e-07", "0.0125"] == table[2:5]
    assert ["novelty (std)", "—", "0.25"] == table[5:8]
    assert "12.5 %" in table
    returns = axes["Segment returns: claimed against replayed"]
    assert texts(returns) == ["124", "131", "123", "—", "—", "—"]
    assert [bar.get_height() for bar in returns.patches] == [124, 131, 123]  # nothing is zero


def test_what_was_not_measured_is_said(panels, quality):
    axes, _ = panels({})
    silent = [title for title, axis in axes.items() if "not measured" in texts(axis)]
    assert silent == [*list(axes)[1:4], *list(axes)[5:]]
    del quality["curves"]["oracle_reward_by_step"]
    quality["curves"]["compounding_error"]["original"] = None
    quality["curves"]["dynamics_mse_by_step"].update(original=[None] * 3, synthetic=[])
    axes, _ = panels(quality)
    silent = [title for title, axis in axes.items() if "not measured" in texts(axis)]
    assert silent == ["Dynamics error of single steps"]
    assert len(axes["Reward by step"].lines) == 2
    assert len(axes["Compounding error: generated against replayed"].lines) == 1


def test_distributions_of_returns(panels, quality):
    claimed, replayed = [10.0] * 50 + [11.0] * 50, [1.0] * 50 + [10.0] * 49 + [None]
    quality["distributions"] = {
        "claimed_return": {"synthetic": claimed},
        "oracle_return": {"synthetic": replayed},
    }
    axes, _ = panels(quality)
    steps = axes["Segment returns: claimed against replayed"].patches
    for patch, share_below_5 in zip(steps, (50 / 99, 0.0), strict=True):
        heights, edges, _ = patch.get_data()
        shares = heights * np.diff(edges)
        assert shares.sum() == pytest.approx(1)
        assert shares[edges[1:] < 5].sum() == pytest.approx(share_below_5)


def test_points_of_the_embedding():
    """In the original's unit, a fixed choice of at most POINTS each; rows of NaN are left out."""
    original, synthetic = transitions(5000), transitions(700, 1, shift=3.0)
    synthetic.observation[:100] = np.nan
    points, is_synthetic = quality_plots.state_actions(original, synthetic)
    assert points.shape == (quality_plots.POINTS + 600, 6)
    old = points[~is_synthetic]
    np.testing.assert_allclose(old.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(old.std(axis=0), 1, atol=1e-9)
    assert points[is_synthetic, :4].mean() == pytest.approx(3, abs=0.15)
    again, _ = quality_plots.state_actions(original, synthetic)
    np.testing.assert_array_equal(points, again)
    # Copies are not drawn beside their own originals.
    points, is_synthetic = quality_plots.state_actions(original, original)
    assert (points[is_synthetic] != points[~is_synthetic]).any(axis=1).mean() > 0.9


def test_pca_finds_the_wide_directions(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 5)) * [1, 10, 1, 5, 1] + 7
    found, method = quality_plots.embed(points)
    assert method == "PCA" and found.shape == (500, 2)
    for column, true in ((0, 1), (1, 3)):
        correlation = np.corrcoef(found[:, column], points[:, true])[0, 1]
        assert abs(correlation) > 0.99


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")
def test_tsne_separates_and_repeats():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(60, 4)), 20 + rng.normal(size=(60, 4))])
    found, method = quality_plots.embed(points, seed=1)
    assert method == "t-SNE"
    first, second = found[:60], found[60:]
    gap = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
    assert gap > 2 * max(first.std(), second.std())
    np.testing.assert_array_equal(found, quality_plots.embed(points, seed=1)[0])


def test_file(tmp_path, quality, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    synthetic = transitions(200, 1)
    synthetic.reward[0] = np.nan
    path = tmp_path / "quality.png"
    quality_plots.quality_figure(path, TASK, quality, transitions(300), synthetic)
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as image:
        assert image.size == (1500, 720)
