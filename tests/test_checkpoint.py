import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import checkpoint
from tgcvg_jax.checkpoint import Checkpointer
from tgcvg_jax.types import UserError


class State(NamedTuple):
    weights: dict
    key: jax.Array
    step: jax.Array
    finished: jax.Array


def make_state(step=3):
    return State(
        weights={"a": jnp.arange(6.0).reshape(2, 3) * step},
        key=jax.random.split(jax.random.key(step)),
        step=jnp.full((2,), step, jnp.int32),
        finished=jnp.array([True, False]),
    )


def metadata(**config):
    base = {"num_steps": 10, "widths": (8, 8), "rate": 0.5, "inner": {"alpha": 1.0}}
    return {"kind": "toy", "task": "t", "seeds": [0, 1], "config": base | config}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "run"
    keeper = Checkpointer(directory, metadata())
    assert keeper.latest() is None
    keeper.save(3, make_state(3))
    keeper.save(7, make_state(7))
    return directory


def test_round_trip(saved):
    keeper = Checkpointer(saved, metadata())
    assert keeper.latest() == 7
    restored = keeper.restore(jax.eval_shape(make_state))
    expected = make_state(7)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if not jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(ours, theirs)


def test_typed_keys_survive(saved):
    key = checkpoint.restore(saved, make_state()).key
    draw = jax.vmap(lambda k: jax.random.normal(k, (3,)))
    np.testing.assert_array_equal(draw(key), draw(make_state(7).key))


def test_metadata_tells_what_it_is(saved):
    found = checkpoint.read_metadata(saved)
    assert found["kind"] == "toy" and found["config"]["inner"] == {"alpha": 1.0}


def test_another_configuration_is_refused(saved):
    other = metadata(rate=0.25, inner={"alpha": 2.0}) | {"seeds": [0]}
    with pytest.raises(UserError) as error:
        Checkpointer(saved, other)
    message = str(error.value)
    for words in ("config.rate: 0.5 -> 0.25", "config.inner.alpha: 1.0 -> 2.0", "seeds: ["):
        assert words in message
    assert "widths" not in message and "\n" not in message


def test_a_field_that_came_later_counts_as_its_default(saved):
    wanted = metadata(gain=2.0, inner={"alpha": 1.0, "sizes": (3,)})
    defaults = {"config": {"gain": 2.0, "rate": 9.0, "inner": {"alpha": 9.0, "sizes": (3,)}}}
    assert Checkpointer(saved, wanted, defaults=defaults).latest() == 7
    for other in (metadata(gain=3.0), metadata(inner={"alpha": 1.0, "sizes": (4,)})):
        with pytest.raises(UserError, match=r"gain: 2\.0 -> 3\.0|sizes: \[3\] -> \[4\]"):
            Checkpointer(saved, other, defaults=defaults)
    with pytest.raises(UserError, match=r"gain: None -> 2\.0"):
        Checkpointer(saved, wanted)


@pytest.mark.parametrize("field", checkpoint.EXTENDABLE)
def test_a_run_may_be_extended(saved, field):
    assert Checkpointer(saved, metadata(**{field: 20})).latest() == 7


def test_missing_folder(tmp_path):
    for read in (
        lambda: checkpoint.restore(tmp_path / "no", make_state()),
        lambda: checkpoint.read_metadata(tmp_path / "no"),
        lambda: checkpoint.read_metadata(tmp_path),
    ):
        with pytest.raises(UserError, match="no checkpoint here"):
            read()
    assert not (tmp_path / "no").exists()
    assert checkpoint.read_metadata(tmp_path / "no", missing_ok=True) is None


@pytest.mark.parametrize("lost", ["state", "metadata", "contents"])
def test_damaged_folder(saved, tmp_path, lost):
    directory = tmp_path / "run"
    shutil.copytree(saved, directory)
    if lost == "contents":
        for path in (directory / "7" / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(b"x")
    else:
        shutil.rmtree(directory / "7" / lost)
    with pytest.raises(UserError, match="can't be read") as error:
        Checkpointer(directory, metadata()).restore(make_state())
    assert "\n" not in str(error.value)


def test_other_shapes_are_refused(saved):
    other = make_state()
    other.weights["a"] = jnp.zeros((2, 4))
    with pytest.raises(UserError, match="can't be read"):
        checkpoint.restore(saved, other)
    other.weights["c"] = other.weights.pop("a")
    with pytest.raises(UserError, match="can't be read"):
        checkpoint.restore(saved, other)


def test_unfinished_saves_are_not_seen(saved, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(saved, directory)
    (directory / "9.orbax-checkpoint-tmp-1").mkdir()
    keeper = Checkpointer(directory, metadata())
    assert keeper.latest() == 7
    keeper.save(9, make_state(9))
    assert [p.name for p in directory.iterdir() if p.name.isdigit()] == ["9"]
