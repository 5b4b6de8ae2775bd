"""The autoregressive rollout of actor and dynamics against TGCVG's."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data.normalize import Normalizer, fit_normalizer
from tgcvg_jax.models import any_step_dynamics, transformer_cql
from tgcvg_jax.networks import memory as memory_lib
from tgcvg_jax.synthesizers import model_rollout, tgcvg
from tgcvg_jax.types import Task

TASK = Task("golden", "", observation_dim=5, action_dim=3, episode_length=1)


@pytest.fixture(scope="module")
def z():
    return golden.load("tgcvg_rollout")


def act_with_noise(state, memory, observation, reward, noise, config):
    """The policy's `act`, but for where the noise comes from."""
    memory = memory_lib.push(memory, state.normalizer(observation), reward)
    return transformer_cql.choose_action(state, memory, noise, task=TASK, config=config), memory


@pytest.fixture(scope="module")
def transitions(z):
    length = int(z["hp/context_length"])
    config = tgcvg.Config(
        # Dropout is off when the noise has no keys: the rates below must not matter.
        policy=transformer_cql.Config(context_length=length, hidden_dim=16, dropout=0.5),
        dynamics=any_step_dynamics.Config(hidden_dim=int(z["hp/dynamics_hidden"]), dropout=0.5),
    )
    with jax.enable_x64(True):
        w = {name: jnp.asarray(value) for name, value in z.items()}
        zero = jnp.int32(0)
        policy = transformer_cql.State(
            params={"actor": golden.actor(golden.select(w, "init/actor"))},
            target_critic=None,
            opt_state=None,
            normalizer=fit_normalizer(w["in/normalizer_data"], eps=1e-5, ddof=1),
            key=jax.random.key(0),
            step=zero,
        )
        params = golden.dynamics(golden.select(w, "init/dynamics"))
        dynamics = any_step_dynamics.State(
            params=None,
            opt_state=None,
            best_params=params,
            best_loss=None,
            stale_epochs=zero,
            finished=zero,
            observation_normalizer=Normalizer(w["in/obs_mean"], w["in/obs_std"]),
            action_normalizer=Normalizer(w["in/act_mean"], w["in/act_std"]),
            key=policy.key,
            step=zero,
        )
        golden.assert_close(policy.normalizer.mean, z["out/normalizer_mean"])
        golden.assert_close(policy.normalizer.std, z["out/normalizer_std"])
        context = w["in/context_states"]
        memory = transformer_cql.make_policy(TASK, config.policy).init(policy, len(context))
        memory = jax.tree.map(lambda x: x.astype(jnp.float64) if x.ndim > 1 else x, memory)
        for i in range(length - 1):
            memory = memory_lib.push(memory, policy.normalizer(context[:, i]), 0.0)
        result = model_rollout.rollout(
            lambda *x: act_with_noise(policy, *x, config.policy),
            lambda *x: any_step_dynamics.step_model(
                dynamics, *x, task=TASK, config=config.dynamics
            ),
            memory,
            context[:, -1],
            jnp.zeros(len(context)),
            model_rollout.Noise(w["noise/actor"], w["noise/dynamics"], None),
        )
        return jax.tree.map(np.asarray, result)


def test_states(z, transitions):
    golden.assert_close(transitions.observation, z["out/states"][:, :-1])
    golden.assert_close(transitions.next_observation, z["out/states"][:, 1:])


def test_actions(z, transitions):
    golden.assert_close(transitions.action, z["out/actions"])


def test_rewards(z, transitions):
    golden.assert_close(transitions.reward, z["out/rewards"])
    assert np.all(transitions.discount == 1.0)
