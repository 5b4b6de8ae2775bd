"""Drawn robots stand where their observations say."""

import dataclasses

import mujoco
import numpy as np
import pytest
from PIL import Image

from tgcvg_jax import envs
from tgcvg_jax.envs import kinematics
from tgcvg_jax.plotting import skeletons
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import Task

ROBOTS = ("hopper", "walker2d", "halfcheetah")


@pytest.fixture(scope="module")
def recorded():
    """By robot: task, observations [T, S] of a random policy, and the true x of its root [T]."""
    found = {}
    for name in ROBOTS:
        task = TASKS[f"{name}-medium-v2"]
        env = envs.make(task)
        observation, _ = env.reset(seed=0)
        env.action_space.seed(0)
        rows, x = [], []
        for _ in range(30):
            rows.append(observation)
            x.append(float(env.unwrapped.data.qpos[0]))
            observation, *_ = env.step(env.action_space.sample())
        found[name] = task, np.array(rows), np.array(x)
        env.close()
    return found


@pytest.fixture(autouse=True)
def few_frames(monkeypatch):
    monkeypatch.setattr(skeletons, "GIF_FRAMES", 5)


def pixels(image):
    return np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)


def has_color(image, color, tolerance=12):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels(image) - wanted).max(axis=1) <= tolerance).any())


@pytest.mark.parametrize("name", ROBOTS)
def test_limbs_follow_the_observation(recorded, name):
    """The simulator's own geoms, moved by x, which no observation has."""
    task, observations, x = recorded[name]
    found = kinematics.capsules(task, observations)
    env = envs.make(task).unwrapped
    model, data = env.model, env.data
    limbs = [i for i in range(model.ngeom) if model.geom_bodyid[i] > 0]
    assert found.ends.shape == (len(observations), len(limbs), 2, 2)
    np.testing.assert_array_equal(found.radius, model.geom_size[limbs, 0])
    assert found.dt == pytest.approx(env.dt)
    for t in (0, 11, 29):
        data.qpos[:] = [found.root[t], *observations[t, : model.nq - 1]]
        mujoco.mj_forward(model, data)
        for g, geom in enumerate(limbs):
            middle = found.ends[t, g].mean(axis=0)
            np.testing.assert_allclose(middle, data.geom_xpos[geom][[0, 2]], atol=1e-9)
            length = np.linalg.norm(found.ends[t, g, 1] - found.ends[t, g, 0])
            assert length == pytest.approx(2 * model.geom_size[geom, 1], abs=1e-9)
    # x is integrated from the observed velocity, so it is right but for the rule's error.
    np.testing.assert_allclose(found.root, x - x[0], atol=0.03 * max(1, np.ptp(x)))
    env.close()


def test_known_posture_of_hopper():
    """Upright at 1.25 m: all limbs but the foot on one vertical line, in touch with each other."""
    task = TASKS["hopper-medium-v2"]
    upright = np.zeros((2, 11))
    upright[:, 0] = 1.25
    upright[:, 5] = 2.0  # m/s
    found = kinematics.capsules(task, upright)
    torso, thigh, leg, foot = found.ends[0]
    np.testing.assert_allclose(np.stack([torso, thigh, leg])[..., 0], 0.0, atol=1e-9)
    np.testing.assert_allclose(sorted(torso[:, 1]), [1.05, 1.45], atol=1e-9)
    assert min(torso[:, 1]) == pytest.approx(max(thigh[:, 1]), abs=1e-9)
    assert min(thigh[:, 1]) == pytest.approx(max(leg[:, 1]), abs=1e-9)
    assert foot[0, 1] == pytest.approx(foot[1, 1], abs=1e-9)
    assert found.root[1] == pytest.approx(2.0 * 0.008)
    # Pitched by a right angle about the hip's height, the torso lies.
    upright[0, 1] = np.pi / 2
    lying = kinematics.capsules(task, upright).ends[0, 0]
    assert lying[0, 1] == pytest.approx(lying[1, 1], abs=1e-9)


def test_outline():
    """A capsule from (0, 0) to (2, 0) of radius 0.5 reaches from -0.5 to 2.5."""
    edge = kinematics.outline(np.array([[0.0, 0.0], [2.0, 0.0]]), 0.5)
    np.testing.assert_allclose(edge.min(axis=0), [-0.5, -0.5], atol=1e-9)
    np.testing.assert_allclose(edge.max(axis=0), [2.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(
        np.linalg.norm(edge - np.clip(edge, [0, 0], [2, 0]), axis=1), 0.5, atol=1e-9
    )


@pytest.mark.parametrize("name", ROBOTS)
def test_strip_and_animation(tmp_path, recorded, name):
    task, observations, _ = recorded[name]
    png, gif = tmp_path / "a.png", tmp_path / "a.gif"
    noise = 0.05 * np.random.default_rng(0).normal(size=observations.shape)
    assert skeletons.trajectory_strip(png, gif, task, observations, (observations + noise)[:20])
    assert sorted(tmp_path.iterdir()) == [gif, png]
    with Image.open(png) as image:
        assert image.format == "PNG" and image.width == 1440
        for color in skeletons.BODY_COLORS[:4]:
            assert has_color(image, color)
    assert gif.stat().st_size < 1_000_000
    with Image.open(gif) as image:
        assert image.format == "GIF" and image.n_frames == skeletons.GIF_FRAMES
        first = pixels(image)
        image.seek(image.n_frames - 1)
        assert (first != pixels(image)).any()
        assert has_color(image, skeletons.BODY_COLORS[1], 40)


def test_falls_are_red(tmp_path):
    task = TASKS["hopper-medium-v2"]
    standing = np.zeros((12, 11))
    standing[:, 0] = 1.25
    falling = standing.copy()
    falling[6:, 0] = 0.4
    png, gif = tmp_path / "a.png", tmp_path / "a.gif"
    skeletons.trajectory_strip(png, gif, task, standing, falling)
    with Image.open(png) as image:
        upper = image.crop((0, 0, image.width, image.height // 2))
        lower = image.crop((0, image.height // 2, image.width, image.height))
        left = lower.crop((0, 0, image.width // 3, lower.height))
        assert has_color(lower, skeletons.FALLEN_BACK, 2)
        assert not has_color(upper, skeletons.FALLEN_BACK, 2)
        assert not has_color(left, skeletons.FALLEN_BACK, 2)
    with Image.open(gif) as image:
        assert not has_color(image, skeletons.FALLEN_BACK, 6)
        image.seek(image.n_frames - 1)
        assert has_color(image, skeletons.FALLEN_BACK, 6)


def test_data_that_has_come_apart(tmp_path, recorded):
    """Not finite, or a kilometre up: drawn as far as it goes, in a picture of usual size."""
    task, observations, _ = recorded["hopper"]
    broken = observations.copy()
    broken[10:15] = np.nan
    broken[15:, 0] = 1e3
    found = kinematics.capsules(task, broken)
    assert np.isnan(found.ends[12]).all() and np.isfinite(found.ends[20]).all()
    assert np.isfinite(found.root).all()
    png, gif = tmp_path / "a.png", tmp_path / "a.gif"
    assert skeletons.trajectory_strip(png, gif, task, observations, broken)
    with Image.open(png) as image:
        assert image.height < 1000
    # Nothing to draw at all.
    assert not skeletons.trajectory_strip(png, gif, task, observations, np.full((3, 11), np.nan))
    assert not skeletons.trajectory_strip(png, gif, task, observations, observations[:0])


def test_maze(tmp_path):
    """The ball's path; red where it is inside a wall."""
    task = TASKS["maze2d-umaze-v1"]
    free = np.tile([1.0, 1.0, 0.0, 0.0], (20, 1))
    free[:, 1] += np.linspace(0, 2, 20)
    through = free.copy()
    through[:, 0] = np.linspace(1, 3, 20)  # straight down: row 2 is a wall there
    through[:, 1] = 1.0
    scene = skeletons._maze_scene(task, {"real": free, "synthetic": through})
    assert not scene.inside["real"].any()
    # The ball's middle can be anywhere in [i - 0.6, i + 0.2] of a free cell: so far from a wall.
    inside = (through[:, 0] > 1.3) & (through[:, 0] < 2.3)
    np.testing.assert_array_equal(scene.inside["synthetic"], inside)
    png, gif = tmp_path / "a.png", tmp_path / "a.gif"
    assert skeletons.trajectory_strip(png, gif, task, free, through)
    with Image.open(png) as image:
        assert has_color(image, skeletons.FALLEN_COLOR) and has_color(image, skeletons.WALL_COLOR)
    with Image.open(gif) as image:
        assert image.n_frames == skeletons.GIF_FRAMES


def test_other_mazes(tmp_path):
    png, gif = tmp_path / "a.png", tmp_path / "a.gif"
    for name, size in (("antmaze-umaze-v2", 29), ("D4RL/pointmaze/umaze-v2", 8)):
        path = np.zeros((5, size))
        path[:, 0] = np.arange(5)
        assert skeletons.trajectory_strip(png, gif, TASKS[name], path, path)
        assert png.stat().st_size > 5_000


def test_what_can_not_be_drawn(tmp_path):
    png, gif = tmp_path / "a.png", tmp_path / "a.gif"
    other = Task("mine", "Ant-v4", 27, 8, 1000)
    assert not skeletons.trajectory_strip(png, gif, other, np.ones((4, 27)), np.ones((4, 27)))
    wide = dataclasses.replace(TASKS["hopper-medium-v2"], environment="Hopper-v4")
    assert kinematics.capsules(wide, np.ones((2, 11))) is not None
    assert not list(tmp_path.iterdir())
