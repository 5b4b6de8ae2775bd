"""The any-step dynamics model against ADMPO's: each k alone, a sequence, a sample."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.models import any_step_dynamics as dyn
from tgcvg_jax.types import Task

TASK = Task("golden", "", observation_dim=5, action_dim=3, episode_length=1)
M = 3


@pytest.fixture(scope="module")
def z():
    return golden.load("any_step_dynamics")


@pytest.fixture(scope="module")
def config(z):
    return dyn.Config(
        max_steps=M,
        hidden_dim=int(z["hp/hidden"]),
        learning_rate=float(z["hp/lr"]),
        dropout=0.0,
    )


@pytest.fixture(scope="module")
def initial(z, config):
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, golden.dynamics(golden.select(z, "init")))
        return dyn.State(
            params=params,
            opt_state=optax.adam(config.learning_rate).init(params),
            best_params=params,
            best_loss=jnp.full((M,), jnp.inf),
            stale_epochs=jnp.int32(0),
            finished=jnp.zeros((), bool),
            observation_normalizer=Normalizer(
                jnp.asarray(z["in/obs_mean"]), jnp.asarray(z["in/obs_std"])
            ),
            action_normalizer=Normalizer(
                jnp.asarray(z["in/act_mean"]), jnp.asarray(z["in/act_std"])
            ),
            key=jax.random.key(0),
            step=jnp.int32(0),
        )


@pytest.fixture(scope="module")
def batches(z):
    """The batches of k = 1, 2, 3; the actions after the k-th hold garbage."""
    result = {}
    with jax.enable_x64(True):
        for k in range(1, M + 1):
            b = golden.select(z, f"in/k{k}")
            actions = np.full((len(b["actions"]), M, 3), 7.0)
            actions[:, :k] = b["actions"]
            change = b["next_states"][:, -1] - b["states"][:, 0]
            target = np.concatenate([change, b["rewards"][:, -1:]], axis=1)
            result[k] = jax.tree.map(
                jnp.asarray, dyn.Batch(b["states"][:, 0], actions, target, np.int32(k))
            )
    return result


@pytest.fixture(scope="module")
def step(config):
    """One update, compiled once for all k, with what it is made of."""
    static = dict(task=TASK, config=config)

    @jax.jit
    def run(state, batch):
        grads, info = jax.grad(dyn.loss, has_aux=True)(state.params, state, batch, None, **static)
        prediction = dyn.predict(
            state.params, state, batch.observation, batch.actions, batch.k, None, **static
        )
        return dyn.apply_update(state, batch, None, **static)[0], info, grads, prediction

    return run


@pytest.mark.parametrize("k", (1, 2, 3))
def test_one_update(z, initial, batches, step, x64, k):
    out = golden.select(z, f"out/k{k}")
    state, info, grads, (mean, log_var) = step(initial, batches[k])
    golden.assert_close(mean, out["mean"])
    golden.assert_close(log_var, out["logvar"])
    golden.assert_close(info["loss"], out["loss"])
    golden.assert_close(grads, golden.dynamics(golden.select(out, "grad")))
    golden.assert_close(state.params, golden.dynamics(golden.select(out, "params")))


def test_three_updates_in_a_row(z, initial, batches, step, x64):
    state = initial
    for i, k in enumerate((2, 1, 3)):
        state, info, _, _ = step(state, batches[k])
        golden.assert_close(info["loss"], z["out/sequence/loss"][i])
    expected = golden.dynamics(golden.select(z, "out/sequence/params"))
    ours = {name: state.params["params"][name] for name in expected["params"]}
    golden.assert_close({"params": ours}, expected)
    assert int(state.step) == 3


def test_sampled_step(z, initial, config, x64):
    state, action = z["in/sample_state"], z["in/sample_action"]
    mean, log_var = dyn.predict(
        initial.params, initial, state, action[:, None], 1, None, task=TASK, config=config
    )
    golden.assert_close(mean, z["out/sample/mean"])
    golden.assert_close(log_var, z["out/sample/logvar"])
    next_state, reward = dyn.step_model(
        initial, state, action, z["noise/sample"], None, task=TASK, config=config
    )
    golden.assert_close(next_state, z["out/sample/next_state"])
    golden.assert_close(reward, z["out/sample/reward"])
