"""What every synthesizer's `generate` promises."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.synthesizers import SYNTHESIZERS

# SynthER makes single transitions from noise, which have no source; ADMPO's rollouts leave the
# episode that they start in.
SEQUENCES = [name for name in SYNTHESIZERS if name not in ("synther", "admpo")]


@pytest.fixture(scope="module")
def made(task, dataset, configs, untrained):
    """By name: two chunks of a key, and how often `generate` was traced for all of them."""
    cache = {}

    def get(name):
        if name not in cache:
            synthesizer = SYNTHESIZERS[name].make(task, configs[name])
            states, data = untrained(synthesizer, dataset), synthesizer.prepare(dataset)
            traces = []

            @jax.jit
            def generate(*arguments):
                traces.append(1)
                return synthesizer.generate(*arguments)

            def run(key, chunk):
                key = jax.random.key(key)
                return jax.tree.map(np.asarray, generate(states, data, key, jnp.int32(chunk)))

            cache[name] = types.SimpleNamespace(
                run=run, traces=traces, chunks=[run(0, 0), run(0, 1)], states=states, data=data
            )
        return cache[name]

    return get


@pytest.mark.parametrize("name", SYNTHESIZERS)
def test_shapes(made, task, name):
    t = made(name).chunks[0]
    batch, length = t.mask.shape
    s, a = task.observation_dim, task.action_dim
    assert t.transition.observation.shape == (batch, length, s)
    assert t.transition.next_observation.shape == (batch, length, s)
    assert t.transition.action.shape == (batch, length, a)
    for x in (t.transition.reward, t.transition.discount, t.timestep, t.return_to_go):
        assert x.shape == (batch, length)
    assert t.mask.dtype == bool and t.mask.any()
    assert np.all(t.mask[:, :-1] >= t.mask[:, 1:])  # left-aligned
    assert np.issubdtype(t.timestep.dtype, np.integer)
    assert np.all(np.isin(t.transition.discount, (0.0, 1.0)))


@pytest.mark.parametrize("name", SYNTHESIZERS)
def test_chunks_repeat_and_differ(made, name):
    """The same key and chunk give the same bits; another of either, other data; one trace."""
    m = made(name)
    jax.tree.map(np.testing.assert_array_equal, m.run(0, 0), m.chunks[0])
    for other in (m.chunks[1], m.run(1, 0)):
        x, y = other.transition.observation, m.chunks[0].transition.observation
        assert not np.array_equal(x, y)
    assert len(m.traces) == 1


@pytest.mark.parametrize("name", SEQUENCES)
def test_inherits_from_one_episode(made, dataset, name):
    """Each segment's time steps, returns-to-go and terminals are those of some rows of the data."""
    known = {
        (int(t), float(g)): float(d)
        for t, g, d in zip(dataset.timestep, dataset.return_to_go, dataset.transition.discount)
    }
    rows = 0
    for chunk in made(name).chunks:
        for steps, returns, discounts, mask in zip(
            chunk.timestep, chunk.return_to_go, chunk.transition.discount, chunk.mask
        ):
            steps, returns, discounts = steps[mask], returns[mask], discounts[mask]
            assert np.all(np.diff(steps) == 1)
            for step, value, discount in zip(steps, returns, discounts):
                assert known[int(step), float(value)] == discount
            assert np.all(discounts[:-1] == 1.0)
            rows += len(steps)
    assert rows > 0
