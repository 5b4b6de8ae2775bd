import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.envs import termination
from tgcvg_jax.models import any_step_dynamics
from tgcvg_jax.synthesizers import admpo
from tgcvg_jax.tasks import ENVIRONMENTS, TASKS, admpo_settings
from tgcvg_jax.types import UserError


@pytest.fixture(scope="module")
def config(configs):
    policy = dataclasses.replace(configs["admpo"].policy, rollout_length=4)
    return dataclasses.replace(configs["admpo"], policy=policy, rollout_batch=40)


@pytest.fixture(scope="module")
def robot(task):
    """The toy task with a rule for its end and a tight time limit."""
    bounds = {"healthy_z_range": [-1.5, 1.5], "healthy_angle_range": [-1.5, 1.5]}
    return dataclasses.replace(
        task, environment="Hopper-v4", environment_kwargs=json.dumps(bounds), episode_length=15
    )


@pytest.fixture(scope="module")
def made(robot, dataset, config, untrained):
    """States of the models, and what `generate` makes of them under a config."""
    states = untrained(admpo.make(robot, config), dataset)

    def generate(states=states, **changes):
        synthesizer = admpo.make(robot, dataclasses.replace(config, **changes))
        data = synthesizer.prepare(dataset)
        run = jax.jit(synthesizer.generate)
        return jax.tree.map(np.asarray, run(states, data, jax.random.key(0), jnp.int32(0)))

    return states, generate


@pytest.fixture(scope="module")
def plain(made):
    return made[1]()


def test_starts_from_real_states_and_goes_on_from_there(plain, dataset, config):
    t = plain.transition
    real = np.asarray(dataset.transition.observation)
    distance = np.abs(t.observation[:, :1] - real).max(axis=-1)  # [B, M]
    rows = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-6 and len(set(rows)) == len(rows) == 40
    first = np.asarray(dataset.timestep)[rows]
    assert first.min() == config.policy.max_steps - 1  # m - 1 real steps come before
    np.testing.assert_array_equal(plain.timestep, first[:, None] + np.arange(4))
    np.testing.assert_allclose(
        plain.return_to_go[:, 0], np.asarray(dataset.return_to_go)[rows], rtol=1e-6
    )
    np.testing.assert_allclose(
        plain.return_to_go[:, 1:], plain.return_to_go[:, :-1] - t.reward[:, :-1], atol=1e-4
    )
    np.testing.assert_array_equal(t.observation[:, 1:], t.next_observation[:, :-1])


def test_ends_at_terminals_and_at_the_time_limit(plain, robot):
    t, mask = plain.transition, plain.mask
    fallen = termination.rule(robot)(t.next_observation)
    np.testing.assert_array_equal(t.discount, 1.0 - fallen)
    earlier = np.cumsum(fallen, axis=1) - fallen
    np.testing.assert_array_equal(mask, (earlier == 0) & (plain.timestep < 15))
    assert (t.discount[mask] == 0).any() and not mask.all() and (plain.timestep >= 15).any()


def test_rewards_with_and_without_penalty(made, plain, config):
    """The same rollouts; the penalty is positive, and linear in its coefficient."""
    one = made[1](penalised_rewards=True)
    policy = dataclasses.replace(config.policy, penalty=3.0)
    three = made[1](penalised_rewards=True, policy=policy)
    np.testing.assert_allclose(one.transition.observation, plain.transition.observation, atol=1e-6)
    penalty = plain.transition.reward - one.transition.reward
    assert penalty.min() > 0
    np.testing.assert_allclose(
        plain.transition.reward - three.transition.reward, 3.0 * penalty, rtol=1e-2, atol=1e-5
    )


def test_nothing_is_kept_of_a_model_that_breaks_down(made):
    states, generate = made
    broken = jax.tree.map(lambda x: x * jnp.nan, states["dynamics"].best_params)
    states = states | {"dynamics": states["dynamics"].replace(best_params=broken)}
    assert not generate(states).mask.any()


def test_the_policy_learns_in_the_trained_dynamics(made, robot, config, dataset):
    synthesizer = admpo.make(robot, config)
    assert list(synthesizer.models) == ["dynamics", "policy"]
    states, _ = made
    trained = states["dynamics"].replace(step=jnp.int32(77))
    data = synthesizer.models["policy"]({"dynamics": trained}).prepare(dataset)
    assert isinstance(data.dynamics, any_step_dynamics.State) and int(data.dynamics.step) == 77


def test_jumps_beyond_the_dynamics_are_refused_at_once(robot, config):
    policy = dataclasses.replace(config.policy, max_steps=7)
    with pytest.raises(UserError, match="max_steps=7 is beyond"):
        admpo.make(robot, dataclasses.replace(config, policy=policy))


@pytest.mark.parametrize("preset", ["paper", "quick"])
@pytest.mark.parametrize("name", ["hopper-medium-v2", "walker2d-medium-expert-v2"])
def test_released_settings(name, preset):
    config = admpo.for_task(TASKS[name], preset)
    admpo.make(TASKS[name], config)
    if preset == "quick":
        return
    found = (config.policy.max_steps, config.policy.rollout_length, config.policy.penalty,
             config.policy.real_ratio, config.policy.temperature)  # fmt: skip
    assert found == {"h": (5, 10, 1.0, 0.05, 0.05), "w": (3, 2, 6.0, 0.5, 0.011)}[name[0]]
    # 50,000 rollouts in 1,000 gradient steps.
    assert config.policy.num_particles == 50 * config.policy.rollout_length


def test_every_task_has_settings():
    for task in (TASKS | ENVIRONMENTS).values():
        settings = admpo_settings(task)
        assert settings.rollout_length >= 1 and 0 < settings.real_ratio <= 1
        assert admpo.make(task, admpo.for_task(task)).models
    assert admpo_settings(TASKS["halfcheetah-medium-replay-v2"]).actor_learning_rate == 7e-5
