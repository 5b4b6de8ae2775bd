import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import config as config_lib
from tgcvg_jax import tasks, training
from tgcvg_jax.data import concatenate, make_dataset
from tgcvg_jax.learners import bc
from tgcvg_jax.types import SYNTHETIC, Task, Transition, UserError

CONFIG = bc.Config(num_steps=20, batch_size=8, hidden_dims=(8,))
TASK = Task("toy", "", observation_dim=1, action_dim=1, episode_length=20)


def episodes(lengths, rewards, **options):
    """Episodes of the given length and reward per step; the observation is the row's number."""
    size = sum(lengths)
    row = np.arange(size)[:, None]
    reward = np.repeat(rewards, lengths)
    transition = Transition(row, np.zeros((size, 1)), reward, np.ones(size), row + 1)
    end = np.zeros(size, bool)
    end[np.cumsum(lengths) - 1] = True
    return make_dataset(TASK, transition, end, **options)


def kept(dataset, fraction):
    return np.asarray(bc.keep_best(dataset, fraction).transition.observation)[:, 0].tolist()


@pytest.fixture(scope="module")
def learner(task):
    return bc.make(task, CONFIG)


@pytest.fixture(scope="module")
def data(learner, dataset):
    return learner.prepare(dataset)


@pytest.fixture(scope="module")
def state(learner, data):
    return jax.jit(learner.init)(jax.random.key(0), data)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (1.0, [*range(13)]),
        (0.75, [*range(7), *range(8, 13)]),  # three of four, in the order they had
        (0.74, [*range(7)]),  # two: rounded down
        (0.01, [4, 5, 6]),  # one at least
    ],
)
def test_the_best_episodes(fraction, expected):
    """Returns 8, 9, 1 and 5: by the sum of rewards, not by reward or length."""
    dataset = episodes((4, 3, 1, 5), (2.0, 3.0, 1.0, 1.0))
    assert kept(dataset, fraction) == expected
    best = bc.keep_best(dataset, fraction)
    rows = np.array(expected)
    for name in ("timestep", "remaining", "return_to_go", "source"):
        np.testing.assert_array_equal(getattr(best, name), np.asarray(getattr(dataset, name))[rows])


def test_of_equal_episodes_the_earlier_are_kept():
    assert kept(episodes((2, 2, 2, 2), (0.0, 1.0, 1.0, 1.0)), 0.5) == [2, 3, 4, 5]


def test_synthetic_segments_compete_among_themselves():
    """By return-to-go at their first row, not by the rewards inside them."""
    original = episodes((2, 2), (1.0, 2.0))
    made = episodes(
        (2, 2, 2, 2), (9.0, 8.0, 7.0, 6.0), source=SYNTHETIC,
        return_to_go=np.array([20.0, 99.0, 30.0, 1.0, 50.0, 1.0, 40.0, 1.0]),
    )  # fmt: skip
    for fused in (concatenate([original, made]), concatenate([made, original])):
        best = bc.keep_best(fused, 0.5)
        assert best.size == 2 + 4
        reward, source = np.asarray(best.transition.reward), np.asarray(best.source)
        assert set(reward[source == SYNTHETIC]) == {7.0, 6.0}
        assert set(reward[source != SYNTHETIC]) == {2.0}


def test_top_fraction_reaches_the_buffer(task, dataset, data):
    """Statistics are those of what is kept, as in CORL."""
    learner = bc.make(task, dataclasses.replace(CONFIG, top_fraction=0.3))
    buffer = learner.prepare(dataset)
    best = bc.keep_best(dataset, 0.3)
    assert len(data.rows) == dataset.size > len(buffer.rows) == best.size
    mean = np.asarray(best.transition.observation).mean(axis=0)
    np.testing.assert_allclose(buffer.normalizer.mean, mean, atol=1e-5)
    with pytest.raises(UserError, match="top_fraction"):
        config_lib.override(CONFIG, ["top_fraction=10"])


def test_loss_and_gradient_by_hand(task, learner, data, state):
    batch = learner.sample(jax.random.key(1), data)
    observation, action = np.asarray(batch.observation), np.asarray(batch.action)
    first, last = (jax.tree.map(np.asarray, state.actor["params"][f"layer_{i}"]) for i in (0, 1))
    hidden = np.maximum(observation @ first["kernel"] + first["bias"], 0)
    mean = np.tanh(hidden @ last["kernel"] + last["bias"])
    loss = lambda p: bc.actor_loss(p, batch, task, CONFIG)  # noqa: E731
    (value, info), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.actor)
    np.testing.assert_allclose(value, np.mean((mean - action) ** 2), rtol=1e-5)
    assert value == info["actor_loss"]
    to_output = 2 * (mean - action) * (1 - mean**2) / action.size
    to_hidden = to_output @ last["kernel"].T * (hidden > 0)
    expected = {
        "layer_0": {"kernel": observation.T @ to_hidden, "bias": to_hidden.sum(axis=0)},
        "layer_1": {"kernel": hidden.T @ to_output, "bias": to_output.sum(axis=0)},
    }
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)  # noqa: E731
    jax.tree.map(close, grads["params"], expected)


def test_a_step_is_adams(learner, data, state):
    """The first one has the length of the learning rate in every coordinate."""
    after, _ = jax.jit(learner.update)(state, learner.sample(jax.random.key(1), data))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.actor, state.actor)
    np.testing.assert_allclose(jax.tree.leaves(moved), 3e-4, rtol=1e-2)
    assert after.step == 1


def test_training_finds_the_behaviour(task):
    """Actions that are a function of the state: the error falls to a small part of theirs."""
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(200, 3))
    action = np.tanh(observation[:, :2])
    transition = Transition(observation, action, np.zeros(200), np.ones(200), observation)
    dataset = make_dataset(task, transition, np.arange(200) % 20 == 19)
    config = bc.Config(num_steps=300, batch_size=64, hidden_dims=(32,), learning_rate=1e-2)
    learner = bc.make(task, config)
    result = training.fit(learner, dataset, num_steps=300)
    state = training.select_seed(result.state, 0)
    found = learner.policy.act(state, (), jnp.asarray(observation), jnp.zeros(200), None, True)[0]
    assert np.mean((found - action) ** 2) < 0.02 * np.mean(action**2)


@pytest.mark.parametrize("name", ["hopper-medium-v2", "maze2d-umaze-v1", "antmaze-umaze-v2"])
def test_whose_hyper_parameters(name):
    task = tasks.TASKS[name]
    assert bc.for_task(task, "tgcvg") == bc.for_task(task, "corl") == bc.Config()
    assert bc.for_task(task, "gta") == bc.Config(batch_size=1024)
