import h5py
import jax
import numpy as np
import pytest

from tgcvg_jax.data.synthetic import SyntheticStore
from tgcvg_jax.synthesizers import pipeline
from tgcvg_jax.types import Synthesizer, Trajectories, Transition, UserError


@pytest.fixture
def synthesizer():
    """Draws noise; chunk 1 is dropped whole, and every chunk loses its first trajectory."""
    n, t = 4, 3

    def generate(states, data, key, chunk):
        key = jax.random.fold_in(key, chunk)
        draw = lambda *shape: jax.random.normal(key, (n, t, *shape)).clip(-1, 1)  # noqa: E731
        transition = Transition(draw(3), draw(2), draw(), draw() * 0 + 1, draw(3))
        keep = (np.arange(n) > 0) & (chunk != 1) & (states["share"] > 0)
        timestep = np.broadcast_to(np.arange(t), (n, t))
        mask = keep[:, None] & (timestep >= 0)
        return Trajectories(transition, timestep, draw(), mask)

    return Synthesizer({}, lambda dataset: (), generate)


def assert_same(a, b):
    with h5py.File(a) as f, h5py.File(b) as g:
        assert set(f) == set(g)
        for name in (name for name in f if name != "metadata"):
            np.testing.assert_array_equal(f[name][:], g[name][:], err_msg=name)


def stream(synthesizer, path, num_transitions, share=1.0, **kwargs):
    store = SyntheticStore(path, {"share": share})
    states = {"share": np.float32(share)}
    return pipeline.stream(
        synthesizer, states, None, store, num_transitions=num_transitions, **kwargs
    )


def test_exact_number_resumed_or_not(synthesizer, tmp_path, monkeypatch):
    result = stream(synthesizer, tmp_path / "once.hdf5", 50)
    assert result.compile_seconds > 0 and 0.25 < result.dropped < 0.5
    assert result.generated >= 50
    assert stream(synthesizer, tmp_path / "once.hdf5", 50).generated == 0

    add, calls = SyntheticStore.add, []

    def killed(self, flat):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        add(self, flat)

    with monkeypatch.context() as m:
        m.setattr(SyntheticStore, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            stream(synthesizer, tmp_path / "resumed.hdf5", 50)
    assert not (tmp_path / "resumed.hdf5").exists()
    stream(synthesizer, tmp_path / "resumed.hdf5", 50)
    assert_same(tmp_path / "once.hdf5", tmp_path / "resumed.hdf5")


def test_another_seed_gives_other_data(synthesizer, tmp_path):
    stream(synthesizer, tmp_path / "a.hdf5", 20, seed=0)
    stream(synthesizer, tmp_path / "b.hdf5", 20, seed=1)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "a.hdf5", tmp_path / "b.hdf5")


def test_gives_up_when_nothing_survives(synthesizer, tmp_path):
    with pytest.raises(UserError, match="implausible"):
        stream(synthesizer, tmp_path / "none.hdf5", 50, share=0.0)
    assert not (tmp_path / "none.hdf5").exists()
