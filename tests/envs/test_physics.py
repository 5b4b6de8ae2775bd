import copy
import dataclasses
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from tgcvg_jax import envs
from tgcvg_jax.envs import oracle, physics
from tgcvg_jax.tasks import TASKS
from tgcvg_jax.types import UserError

ROBOTS = ("Hopper", "HalfCheetah", "Walker2d")
# Recordings of the old environments have no licence and are not distributed.
OLD = Path(__file__).parents[3] / "shared" / "data" / "recorded_gym_v2"
# kg, of all bodies but the world: MuJoCo 2.0, today.
MASSES = {
    "Hopper": ((3.5343, 3.9270, 2.7143, 5.0894), (3.6652, 4.0579, 2.7814, 5.3156)),
    "HalfCheetah": (
        (6.3603, 1.5352, 1.5809, 1.0692, 1.4256, 1.1789, 0.8499),
        (6.2502, 1.5435, 1.5874, 1.0954, 1.4381, 1.2008, 0.8845),
    ),
    "Walker2d": (
        (3.5343, 3.9270, 2.7143, 2.9405, 3.9270, 2.7143, 2.9405),
        (3.6652, 4.0579, 2.7814, 3.1667, 4.0579, 2.7814, 3.1667),
    ),
}
MODEL = """
<mujoco>
  <compiler settotalmass="{total}"/>
  <default><geom density="700" margin="{margin}"/></default>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <geom type="capsule" size=".1 .2" pos="3 0 0"/>
    <body>
      <joint type="free"/>
      <geom type="sphere" size=".2"/>
      <geom type="box" size=".1 .2 .3" pos=".1 .2 -.3"/>
      <body pos="1 0 0">
        <joint/>
        <geom type="{capsule}" size=".1 {half}" pos=".1 0 .2" euler="30 40 50"/>
        <geom type="sphere" size=".15" pos="-.1 .2 0"/>
        <body pos="0 1 0">
          <joint axis="1 0 0"/>
          <geom type="{capsule}" size=".1 {half}" euler="0 20 0"/>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


def compiled(capsule="capsule", half=0.3, total=-1, margin=0.01):
    with envs.mujoco_warnings(lambda message: None):
        xml = MODEL.format(capsule=capsule, half=half, total=total, margin=margin)
        return mujoco.MjModel.from_xml_string(xml)


def task_in(environment):
    robot = environment.split("/")[-1].split("-")[0].lower()
    return dataclasses.replace(TASKS[f"{robot}-medium-v2"], environment=environment)


def largest_errors(environment, rows):
    """[B] largest error of each row whose successor is known, and the number of such rows."""
    truth, _, valid = oracle.one_step(task_in(environment), rows["observation"], rows["action"])
    return np.abs(truth - rows["next_observation"]).max(axis=1)[valid], valid


@pytest.mark.parametrize("robot", ROBOTS)
def test_body_masses(robot):
    for environment, masses in zip((f"tgcvg/{robot}-v2", f"{robot}-v4"), MASSES[robot]):
        env = envs.make(task_in(environment))
        np.testing.assert_allclose(env.unwrapped.model.body_mass[1:], masses, atol=5e-5)
        env.close()


@pytest.mark.parametrize("total", (-1, 5))
def test_equals_the_model_with_cylinders(total):
    """What MuJoCo 2.0 took a capsule for, here written out in the XML."""
    model = physics.d4rl_physics(compiled(total=total), total if total > 0 else None)
    expected = compiled("cylinder", half=0.3 + 0.1 / 2, total=total)
    for field in ("mass", "inertia", "ipos", "iquat", "subtreemass", "invweight0"):
        name = f"body_{field}"
        np.testing.assert_allclose(getattr(model, name), getattr(expected, name), 1e-10, 1e-12)
    np.testing.assert_allclose(model.dof_invweight0, expected.dof_invweight0, 1e-10)
    assert model.body_mass[2] < compiled(total=total).body_mass[2]


def test_a_capsule_by_hand():
    radius, length, density = 0.1, 2 * 0.3 + 0.1, 700.0
    mass = density * np.pi * radius**2 * length
    across = mass * (3 * radius**2 + length**2) / 12
    model = physics.d4rl_physics(compiled())
    np.testing.assert_allclose(model.body_mass[3], mass)
    np.testing.assert_allclose(model.body_inertia[3], (across, across, mass * radius**2 / 2))


def test_the_argument_is_left_as_it_is():
    model, untouched = compiled(), compiled()
    physics.d4rl_physics(model)
    physics.old_margins(model)
    for name in ("body_mass", "body_inertia", "body_ipos", "dof_invweight0", "geom_margin"):
        np.testing.assert_array_equal(getattr(model, name), getattr(untouched, name))


def test_correcting_twice_is_an_error():
    model = physics.d4rl_physics(compiled(margin=0))
    with pytest.raises(ValueError, match="at one density"):
        physics.d4rl_physics(model)


@pytest.mark.parametrize(("adds_up", "margin"), [(True, 0.005), (False, 0.01)])
def test_margins(monkeypatch, adds_up, margin):
    monkeypatch.setattr(physics, "MARGINS_ADD_UP", adds_up)
    np.testing.assert_allclose(physics.old_margins(compiled()).geom_margin, margin)


def test_different_margins_are_a_user_error(monkeypatch):
    monkeypatch.setattr(physics, "MARGINS_ADD_UP", True)
    model = compiled()
    model.geom_margin[0] = 0.02
    with pytest.raises(UserError, match="different contact margins"):
        physics.old_margins(model)
    model.geom_contype[0] = model.geom_conaffinity[0] = 0  # touches nothing
    assert physics.old_margins(model).geom_margin[1] == 0.005


@pytest.mark.parametrize("robot", ROBOTS)
def test_recorded_steps_of_v4(robot):
    """They are of MuJoCo < 3.5 and float32; in Hopper's a foot is on the floor."""
    with np.load(Path(__file__).parent / "data" / "recorded_v4.npz") as file:
        names = ("observation", "action", "next_observation")
        rows = {name: file[f"{robot}.{name}"] for name in names}
    as_is, valid = largest_errors(f"{robot}-v4", rows)
    assert valid.all() and len(as_is) == 20
    if robot == "Hopper" and physics.MARGINS_ADD_UP:
        assert as_is.min() > 1e-3
    else:
        assert as_is.max() < 2e-5
    if robot == "Hopper":
        old, _ = largest_errors("tgcvg-minari/Hopper-v5", rows)
        assert old.max() < 3e-6  # float32
    corrected, _ = largest_errors(f"tgcvg/{robot}-v2", rows)
    assert np.median(corrected) > 1e-3  # another robot


@pytest.mark.skipif(not OLD.is_dir(), reason="recordings of gym v2 are not distributed")
@pytest.mark.parametrize(
    ("robot", "count", "median", "mse", "mse_as_is"),
    [
        ("Hopper", 1590, 2.1e-7, 1.1e-14, 1.0e-4),
        ("HalfCheetah", 2000, 6.0e-7, 2.1e-7, 7.4e-3),
        ("Walker2d", 226, 5.7e-7, 2.5e-8, 1.7e-2),
    ],
)
def test_recorded_steps_of_v2(robot, count, median, mse, mse_as_is):
    with np.load(OLD / f"cs285_{robot}-v2_2eps.npz") as file:
        observation, action, next_observation, reward = (
            file[name].astype(np.float64)
            for name in ("observations", "actions", "next_observations", "rewards")
        )
    errors = {}
    for environment in (f"tgcvg/{robot}-v2", f"{robot}-v4"):
        truth, true_reward, valid = oracle.one_step(task_in(environment), observation, action)
        assert valid.sum() == count
        error = np.abs(truth - next_observation)[valid]
        # The recorded actions were not clipped before they were paid for.
        weight = 0.1 if robot == "HalfCheetah" else 1e-3
        excess = np.sum(action**2 - np.clip(action, -1, 1) ** 2, axis=1)
        reward_error = np.abs(true_reward - weight * excess - reward)[valid]
        rows = error.max(axis=1)
        errors[environment] = np.median(rows), np.mean(error**2), np.median(reward_error)
    corrected, as_is = errors.values()
    np.testing.assert_allclose(corrected[:2], (median, mse), rtol=0.06)
    np.testing.assert_allclose(as_is[1], mse_as_is, rtol=0.06)
    assert corrected[2] < 5e-7 and as_is[2] > 1e-4


@pytest.mark.parametrize("robot", ROBOTS)
def test_actions_beyond_the_box_pay_the_clipped_cost(robot):
    results = []
    for size in (1.0, 30.0):
        env = envs.make(task_in(f"tgcvg/{robot}-v2"))
        env.reset(seed=0)
        _, reward, _, _, info = env.step(np.full(env.action_space.shape, size))
        results.append(reward)
        env.close()
    cost = 0.1 * 6 if robot == "HalfCheetah" else 1e-3 * env.action_space.shape[0] - 1.0  # healthy
    assert results[0] == results[1]
    np.testing.assert_allclose(results[0], info["x_velocity"] - cost)


@pytest.mark.parametrize(("robot", "version"), [*((r, "v2") for r in ROBOTS), ("Hopper", "v5")])
def test_environments(robot, version, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log file to the current folder
    arguments = dict(reset_noise_scale=0.0, ctrl_cost_weight=0.5)
    if version == "v5":
        arguments["frame_skip"] = 2
    namespace = {"v2": "tgcvg", "v5": "tgcvg-minari"}[version]
    env = gymnasium.make(f"{namespace}/{robot}-{version}", **arguments)
    assert env.spec.max_episode_steps == 1000
    simulator = env.unwrapped
    observation, _ = env.reset(seed=0)
    again = copy.deepcopy(simulator)  # by the same protocol as pickling
    np.testing.assert_array_equal(again.reset(seed=1)[0], observation)  # no noise: kept arguments
    np.testing.assert_array_equal(again.model.body_mass, simulator.model.body_mass)
    assert again.frame_skip == simulator.frame_skip
    assert simulator.mujoco_renderer.model is simulator.model
    assert simulator.mujoco_renderer.data is simulator.data
    assert simulator.model.vis.global_.offwidth >= simulator.width  # set by Gymnasium
    assert capfd.readouterr().err == "" and not list(tmp_path.iterdir())
