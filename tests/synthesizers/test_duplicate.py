"""Naive duplication copies the best episodes and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tgcvg_jax.data.dataset import flatten, segment_lengths
from tgcvg_jax.data.subsets import best_episodes
from tgcvg_jax.synthesizers import duplicate


def copy(task, dataset, config, chunk=0):
    synthesizer = duplicate.make(task, config)
    assert not synthesizer.models
    data = synthesizer.prepare(dataset)
    return flatten(synthesizer.generate({}, data, jax.random.key(0), jnp.int32(chunk)))


def sorted_rows(transition):
    parts = [np.asarray(x).reshape(len(transition.reward), -1) for x in transition]
    rows = np.concatenate(parts, axis=1)
    return rows[np.lexsort(rows.T)]


def test_whole_episodes_once_in_a_pass(task, dataset):
    """Segments longer than any episode: each chunk is a permutation of the best episodes."""
    config = duplicate.Config(top_fraction=0.4, segment_length=40, batch_size=100)
    best = best_episodes(dataset, 0.4)
    assert 0.4 * dataset.size <= best.size < dataset.size
    chunks = [copy(task, dataset, config, chunk) for chunk in (0, 1)]
    for flat in chunks:
        np.testing.assert_array_equal(sorted_rows(flat.transition), sorted_rows(best.transition))
        starts = np.append(True, flat.segment_end[:-1])
        assert np.all(flat.timestep[starts] == 0)
        assert flat.segment_end.sum() == int((best.remaining == 1).sum())
    assert not np.array_equal(chunks[0].transition.action, chunks[1].transition.action)


def test_segments_of_a_length(task, dataset):
    """Shorter ones cover the same rows; a terminal stays on its row."""
    config = duplicate.Config(top_fraction=0.4, segment_length=40, batch_size=100)
    whole = copy(task, dataset, config)
    cut = copy(task, dataset, dataclasses.replace(config, segment_length=6))
    np.testing.assert_array_equal(sorted_rows(cut.transition), sorted_rows(whole.transition))
    lengths = segment_lengths(cut.segment_end)
    assert lengths.max() == 6 and len(lengths) > whole.segment_end.sum()
    assert (cut.transition.discount == 0).sum() == (whole.transition.discount == 0).sum()
