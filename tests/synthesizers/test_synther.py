import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import training
from tgcvg_jax.models import transition_denoiser
from tgcvg_jax.ops import edm
from tgcvg_jax.synthesizers import synther


@pytest.fixture(scope="module")
def trained(task, dataset):
    """The data's statistics after a short training."""
    denoiser = transition_denoiser.Config(
        num_steps=1_500, batch_size=64, width=64, num_layers=2, embedding_dim=32
    )
    config = synther.Config(denoiser, edm.Sampler(num_steps=24), batch_size=2_000)
    synthesizer = synther.make(task, config)
    fitted = training.fit(synthesizer.models["denoiser"], dataset, num_steps=1_500)
    states = {"denoiser": training.select_seed(fitted.state, 0)}
    run = jax.jit(synthesizer.generate)
    return config, states, run(states, None, jax.random.key(0), jnp.int32(0))


def test_samples_look_like_the_data(trained, dataset):
    """Means, deviations, terminals; and the dynamics: s' is nearer to 0.9 s + push than s is."""
    t = jax.tree.map(lambda x: np.asarray(x)[:, 0], trained[2].transition)
    real = jax.tree.map(np.asarray, dataset.transition)
    for name in ("observation", "action", "reward", "next_observation"):
        x, y = getattr(t, name), getattr(real, name)
        assert np.all(np.abs(x.mean(axis=0) - y.mean(axis=0)) < 0.3 * y.std(axis=0)), name
        np.testing.assert_allclose(x.std(axis=0), y.std(axis=0), rtol=0.3, err_msg=name)
    assert 0.0 < np.mean(t.discount == 0.0) < 0.15  # 4 of 141 in the data
    push = np.stack([t.action[:, 0], t.action[:, 1], t.action[:, 0] - t.action[:, 1]], axis=1)
    error = t.next_observation - (0.9 * t.observation + 0.3 * push)
    change = t.next_observation - t.observation
    assert error.std() < 0.85 * change.std()


def test_terminal_threshold(task, trained):
    config, states, _ = trained
    share = []
    for threshold in (-10.0, 0.5, 10.0):
        changed = dataclasses.replace(config, terminal_threshold=threshold, batch_size=200)
        t = synther.make(task, changed).generate(states, None, jax.random.key(0), jnp.int32(0))
        share.append(np.mean(np.asarray(t.transition.discount) == 0.0))
    assert share[0] == 1.0 and share[2] == 0.0 and share[1] < 0.2


def test_rows_and_back(task, dataset):
    rows = transition_denoiser.pack(dataset.transition)
    assert rows.shape == (dataset.size, 2 * task.observation_dim + task.action_dim + 2)
    back = transition_denoiser.unpack(rows, task, 0.5)
    jax.tree.map(np.testing.assert_array_equal, back, dataset.transition)
