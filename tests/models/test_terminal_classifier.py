import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import training
from tgcvg_jax.data.dataset import make_dataset
from tgcvg_jax.models import terminal_classifier as classifier
from tgcvg_jax.types import Transition

BOUND = -1.6  # s'[0] below it is terminal: 5 rows in a hundred


@pytest.fixture(scope="module")
def config(configs):
    return dataclasses.replace(
        configs["terminal_classifier"], batch_size=64, hidden_dims=(32,), learning_rate=1e-2,
        weight_decay=0.0, terminal_share=0.25,
    )  # fmt: skip


def walk(task, size=3_000, terminals="below"):
    """Rows whose terminals follow a bound on s', or chance, or are none, or all."""
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(size, 3))
    following = rng.normal(size=(size, 3))
    ended = {
        "below": following[:, 0] < BOUND,
        "chance": rng.random(size) < 0.05,
        "none": np.zeros(size, bool),
        "all": np.ones(size, bool),
    }[terminals]
    action = rng.uniform(-1, 1, (size, 2))
    transition = Transition(observation, action, np.zeros(size), 1.0 - ended, following)
    return make_dataset(task, transition, np.ones(size, bool))


@pytest.fixture(scope="module")
def trained(task, config):
    """Data by kind of terminals, and the probabilities of its rows after 400 steps."""
    learner = classifier.make(task, config)
    predict = jax.jit(
        lambda state, t: classifier.probability(
            state, t.observation, t.action, t.next_observation, task=task, config=config
        )
    )

    def get(terminals):
        dataset = walk(task, terminals=terminals)
        result = training.fit(learner, dataset, num_steps=400)
        state = training.select_seed(result.state, 0)
        return dataset, np.asarray(predict(state, dataset.transition))

    return get


def test_finds_the_terminals(trained):
    dataset, probability = trained("below")
    following = np.asarray(dataset.transition.next_observation)[:, 0]
    clear = np.abs(following - BOUND) > 0.3
    assert np.all((probability > 0.5) == (following < BOUND), where=clear)
    ended = np.asarray(dataset.transition.discount) == 0
    assert 100 < ended.sum() < 250
    assert probability.sum() == pytest.approx(ended.sum(), rel=0.3)


def test_is_calibrated_for_the_datas_own_share(trained):
    """Where terminals come by chance, as many are predicted as there are; a batch has 25 %."""
    dataset, probability = trained("chance")
    share = np.mean(np.asarray(dataset.transition.discount) == 0)
    assert probability.mean() == pytest.approx(share, rel=0.35)
    assert np.median(probability) < 0.1


@pytest.mark.parametrize(("terminals", "low", "high"), [("none", 0, 1e-3), ("all", 0.999, 1)])
def test_data_of_one_kind(trained, terminals, low, high):
    _, probability = trained(terminals)
    assert np.all((low <= probability) & (probability <= high))


def test_none_without_training(task, config):
    """The share alone says so, not training."""
    learner = classifier.make(task, config)
    dataset = walk(task, 500, "none")
    data = learner.prepare(dataset)
    state = learner.init(jax.random.key(0), data)
    t = dataset.transition
    probability = classifier.probability(
        state, t.observation, t.action, t.next_observation, task=task, config=config
    )
    assert probability.max() < 0.02


def test_batches(task, config, dataset):
    learner = classifier.make(task, config)
    data = learner.prepare(dataset)
    assert int(data.num_terminals) == 4
    batch = np.asarray(
        jax.vmap(learner.sample, (0, None))(jax.random.split(jax.random.key(0), 9), data)
    )
    assert batch.shape == (9, 64, 9)
    np.testing.assert_array_equal(batch[..., -1].sum(axis=1), 16)
    rows = np.asarray(data.normalizer.inverse(batch[0, :, :-1]))
    t = dataset.transition
    known = np.concatenate([t.observation, t.action, t.next_observation], axis=1)
    for row, label in zip(rows, batch[0, :, -1], strict=True):
        i = np.argmin(np.abs(known - row).sum(axis=1))
        np.testing.assert_allclose(known[i], row, atol=1e-5)
        assert label == (t.discount[i] == 0)


@pytest.mark.parametrize(("share", "drawn"), [(0.0, 1), (0.5, 32), (1.0, 63)])
def test_both_kinds_are_always_drawn(config, share, drawn):
    changed = dataclasses.replace(config, terminal_share=share)
    assert classifier.num_drawn(changed) == drawn
    assert np.isfinite(classifier.logit_shift(jnp.int32(0), 10, changed))


def test_shift_undoes_the_share_of_the_batch(config):
    """A logit of 0 in the batch's world is the batch's odds times this."""
    balanced = dataclasses.replace(config, terminal_share=0.5)
    shift = float(classifier.logit_shift(jnp.int32(99), 998, balanced))
    assert jax.nn.sigmoid(shift) == pytest.approx(99.5 / 999, rel=1e-5)
