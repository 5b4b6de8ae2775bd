import h5py
import numpy as np
import pytest

from tgcvg_jax.data import d4rl
from tgcvg_jax.data.dataset import Flat
from tgcvg_jax.data.synthetic import CHUNK_ENDS, COLUMNS, SyntheticStore
from tgcvg_jax.types import SYNTHETIC, Task, Transition, UserError

S, A, H = 3, 2, 5
IDENTITY = {"config": {"window": 7, "sizes": (1, 2)}, "seed": 0}
TASK = Task("toy", "", S, A, 1000)


def chunk(number: int, segments: int = 4) -> Flat:
    """Segments of H rows; the first of each chunk ends in a terminal."""
    rng = np.random.default_rng(number)
    size = segments * H
    end = np.arange(size) % H == H - 1
    discount = np.ones(size, np.float32)
    if segments:
        discount[H - 1] = 0.0
    draw = lambda *shape: rng.uniform(-1, 1, (size, *shape)).astype(np.float32)  # noqa: E731
    transition = Transition(draw(S), draw(A), draw(), discount, draw(S))
    timestep = np.tile(np.arange(10, 10 + H), segments)
    return Flat(transition, timestep, draw(), end)


def fill(store: SyntheticStore, rows: int) -> None:
    while store.progress().rows < rows:
        store.add(chunk(store.progress().chunks))


def read(path) -> dict[str, np.ndarray]:
    with h5py.File(path) as f:
        return {name: f[name][:] for name in (*COLUMNS, CHUNK_ENDS)}


def assert_same(a, b):
    a, b = read(a), read(b)
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def once(tmp_path):
    """73 rows in one go: the last segment is cut after 3 of its 5 rows."""
    store = SyntheticStore(tmp_path / "once.hdf5", IDENTITY)
    fill(store, 73)
    store.finish(73, {"note": "x"})
    return store.path


def test_cut_segment_ends_in_a_time_out(once):
    data = read(once)
    assert len(data["rewards"]) == 73
    assert data["timeouts"][-1] and not data["terminals"][-1]
    assert data["terminals"].sum() == 4 and not np.any(data["terminals"] & data["timeouts"])


def test_loads_as_a_dataset(once, recwarn):
    """Rows that do not follow each other, and actions out of bounds: a file of ours is trusted."""
    with h5py.File(once, "a") as f:
        f["actions"][3] = 1.5
    dataset = d4rl.read(once, TASK, source=SYNTHETIC)
    assert dataset.size == 73 and set(np.asarray(dataset.source)) == {SYNTHETIC}
    np.testing.assert_array_equal(dataset.timestep, read(once)["timesteps"])
    np.testing.assert_array_equal(dataset.return_to_go, read(once)["returns_to_go"])
    assert int(dataset.remaining[-1]) == 1 and int(dataset.remaining[70]) == 3
    np.testing.assert_array_equal(dataset.transition.discount == 0, read(once)["terminals"])
    assert float(dataset.transition.action[3, 0]) == 1.5 and not recwarn.list
    with h5py.File(once, "a") as f:
        del f.attrs["identity"]
    with pytest.raises(UserError, match=r"actions holds 1\.5 in row 3"):
        d4rl.read(once, TASK, source=SYNTHETIC)


def test_resumes_from_its_parts(once, tmp_path):
    path = tmp_path / "resumed.hdf5"
    fill(SyntheticStore(path, IDENTITY), 40)  # and then the process is killed
    (tmp_path / ".resumed.hdf5.123.tmp").write_bytes(b"half a file")
    (tmp_path / "resumed.parts" / ".chunk_000002.hdf5.123.tmp").write_bytes(b"half a file")
    store = SyntheticStore(path, IDENTITY)
    assert store.progress().rows == 40 and not store.is_finished(73)
    fill(store, 73)
    store.finish(73, {})
    assert_same(path, once)
    assert not (tmp_path / "resumed.parts").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("first", [20, 33, 60, 72])
def test_extends_a_finished_file(once, tmp_path, first):
    path = tmp_path / "extended.hdf5"
    for rows in (first, 73):
        store = SyntheticStore(path, IDENTITY)
        fill(store, rows)
        store.finish(rows, {})
    assert_same(path, once)


def test_refuses_to_shrink(once):
    """A mistyped number must not throw a finished file away."""
    with pytest.raises(UserError, match="73 transitions already"):
        SyntheticStore(once, IDENTITY).is_finished(33)


def test_chunk_ends_are_no_attribute(once):
    """Attributes are limited to 64 KB: 8,192 chunks."""
    with h5py.File(once) as f:
        assert isinstance(f[CHUNK_ENDS], h5py.Dataset)
        np.testing.assert_array_equal(f[CHUNK_ENDS], [20, 40, 60])


def test_parts_without_an_owner_are_nobody_s(tmp_path):
    store = SyntheticStore(tmp_path / "synthetic.hdf5", IDENTITY)
    store.add(chunk(0))
    (tmp_path / "synthetic.parts" / "identity.json").unlink()
    assert SyntheticStore(store.path, IDENTITY).progress().rows == 0


def test_a_damaged_part_is_named(tmp_path):
    store = SyntheticStore(tmp_path / "synthetic.hdf5", IDENTITY)
    store.add(chunk(0))
    part = tmp_path / "synthetic.parts" / "chunk_000000.hdf5"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"chunk_000000\.hdf5: damaged"):
        SyntheticStore(store.path, IDENTITY)


def test_a_chunk_may_be_empty(once, tmp_path):
    """All trajectories of a chunk filtered out: nothing is written, but the chunk counts."""
    store = SyntheticStore(tmp_path / "gap.hdf5", IDENTITY)
    store.add(chunk(0))
    store.add(chunk(1, segments=0))
    store.add(chunk(2))
    assert store.progress().chunks == 3 and store.progress().rows == 40
    store.finish(40, {})
    store = SyntheticStore(store.path, IDENTITY)
    assert store.progress().chunks == 3 and store.progress().rows == 40


def test_another_identity_is_refused(once):
    with pytest.raises(UserError, match=r"config\.window: 7 -> 8"):
        SyntheticStore(once, IDENTITY | {"config": {"window": 8, "sizes": (1, 2)}})


def test_a_field_that_came_later_counts_as_its_default(once, tmp_path):
    """Of a finished file, and of parts."""
    parts = SyntheticStore(tmp_path / "parts.hdf5", IDENTITY)
    parts.add(chunk(0))
    config = {"window": 7, "sizes": (1, 2), "shape": (3, 4)}
    defaults = {"config": {"window": 9, "shape": (3, 4)}}
    for path, rows in ((once, 60), (parts.path, 20)):
        store = SyntheticStore(path, IDENTITY | {"config": config}, defaults)
        assert store.progress().rows == rows
        with pytest.raises(UserError, match=r"config\.shape: \[3, 4\] -> \[3, 5\]"):
            SyntheticStore(path, IDENTITY | {"config": config | {"shape": (3, 5)}}, defaults)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "synthetic.hdf5"
    with h5py.File(path, "w") as f:
        f["rewards"] = np.zeros(3)
    with pytest.raises(UserError, match="not a synthetic dataset"):
        SyntheticStore(path, IDENTITY)
    path.write_text("text")
    with pytest.raises(UserError, match="not a synthetic dataset"):
        SyntheticStore(path, IDENTITY)


def test_a_failing_join_leaves_parts_and_no_file(tmp_path, monkeypatch):
    store = SyntheticStore(tmp_path / "synthetic.hdf5", IDENTITY)
    fill(store, 40)

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as m:
        m.setattr(h5py.Group, "create_dataset", full)
        with pytest.raises(OSError, match="No space"):
            store.finish(40, {})
    assert not store.path.exists() and store.progress().rows == 40
    assert not list(tmp_path.glob(".*tmp"))
    store.finish(40, {})
    assert len(read(store.path)["rewards"]) == 40
