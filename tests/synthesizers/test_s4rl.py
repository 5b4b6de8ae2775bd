import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data.dataset import flatten
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.synthesizers import s4rl


def test_the_data_with_noise_of_the_right_size(task, dataset):
    """One chunk holds the whole data: each row once, but for its states."""
    config = s4rl.Config(noise_std=0.01, segment_length=9, batch_size=1_000)
    synthesizer = s4rl.make(task, config)
    data = synthesizer.prepare(dataset)
    flat = flatten(synthesizer.generate({}, data, jax.random.key(0), jnp.int32(0)))
    assert len(flat.timestep) == dataset.size
    assert flat.segment_end.sum() == len(data.segments.starts)

    row = lambda t: np.concatenate([t.action, t.reward[:, None], t.discount[:, None]], axis=1)  # noqa: E731
    original = jax.tree.map(np.asarray, dataset.transition)
    new, old = (np.lexsort(row(t).T) for t in (flat.transition, original))
    np.testing.assert_array_equal(row(flat.transition)[new], row(original)[old])

    std = original.observation.std(axis=0)
    noise = []
    for name in ("observation", "next_observation"):
        x, y = getattr(flat.transition, name)[new], getattr(original, name)[old]
        noise.append((x - y) / std)
        np.testing.assert_allclose(noise[-1].std(axis=0), 0.01, rtol=0.25)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2  # independent


@pytest.mark.parametrize("name", LEARNERS)
def test_perturbed_learner(task, dataset, configs, name):
    """Same rows, states off by the noise; padding stays."""
    learner = LEARNERS[name].make(task, configs[name])
    data = learner.prepare(dataset)
    key = jax.random.key(1)
    before, after = (s4rl.perturb(learner, std).sample(key, data) for std in (0.0, 0.1))
    leaves = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    changed = []
    for (path, x), y in leaves:
        if not np.array_equal(x, y):
            changed.append(jax.tree_util.keystr(path[-1:]))
            difference = np.asarray(y - x)
            assert 0.05 < difference[difference != 0].std() < 0.2
    assert changed and set(changed) <= {".observation", ".next_observation"}
    if hasattr(after, "mask"):
        assert np.all(np.asarray(after.observation)[~np.asarray(after.mask)] == 0.0)


def test_repeated_noise_is_new(task, dataset, configs):
    config = dataclasses.replace(configs["s4rl"], batch_size=1_000)
    synthesizer = s4rl.make(task, config)
    data = synthesizer.prepare(dataset)
    run = lambda chunk: synthesizer.generate({}, data, jax.random.key(0), jnp.int32(chunk))  # noqa: E731
    first, second = (np.sort(run(c).transition.observation[..., 0].ravel()) for c in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first, second, atol=0.01)
