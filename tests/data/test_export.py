"""Ways out: what is written, read again, is the same to the last bit."""

import dataclasses
import io
import json
import subprocess
import sys

import gymnasium
import h5py
import jax
import minari as minari_package
import numpy as np
import pytest
from minari.namespace import list_local_namespaces

from tgcvg_jax import data, reporting
from tgcvg_jax.data import d4rl, export, minari
from tgcvg_jax.data.dataset import fingerprint, make_dataset
from tgcvg_jax.types import Task, Transition, UserError

TASK = Task("toy-v0", "", observation_dim=3, action_dim=1, episode_length=6)
ID = "toys/hopper/generated-v0"
# Length, and whether the episode ends in a terminal. The last one is cut off by the end of a file.
EPISODES = ((4, True), (6, False), (1, True), (1, False), (5, True), (6, False), (2, False))
ROWS = sum(length for length, _ in EPISODES)
PLAIN = ("timestep", "remaining", "return_to_go", "source", "order", "num_starts")


def columns(seed=0):
    """Episodes under D4RL's names; within one, states follow each other."""
    rng = np.random.default_rng(seed)
    lengths = [length for length, _ in EPISODES]
    states = [rng.normal(size=(length + 1, 3)).astype(np.float32) for length in lengths]
    last = np.cumsum(lengths) - 1
    terminal = np.array([ended for _, ended in EPISODES])
    timeouts = np.isin(np.arange(ROWS), last[~terminal][:-1])
    return {
        "observations": np.concatenate([s[:-1] for s in states]),
        "next_observations": np.concatenate([s[1:] for s in states]),
        "actions": rng.uniform(-1, 1, (ROWS, 1)).astype(np.float32),
        "rewards": rng.normal(size=ROWS) * 1e3,
        "terminals": np.isin(np.arange(ROWS), last[terminal]),
        "timeouts": timeouts,
    }


def write(path, arrays):
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    return path


@pytest.fixture
def recorded(tmp_path):
    """Whole episodes and a trailing partial one, read from a file."""
    return d4rl.read(write(tmp_path / "recorded.hdf5", columns()), TASK)


@pytest.fixture
def segments(recorded):
    """The same as synthetic segments from the middle of other episodes."""
    rng = np.random.default_rng(1)
    episode = np.cumsum(np.asarray(recorded.remaining) == 1) - (np.asarray(recorded.remaining) == 1)
    return make_dataset(
        TASK,
        recorded.transition,
        recorded.remaining == 1,
        timestep=recorded.timestep + rng.integers(0, 900, len(EPISODES))[episode],
        return_to_go=rng.normal(size=ROWS) * 1e3,
    )


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Where Minari keeps its datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


def check_same(found, expected, but=()):
    bits = lambda x: np.asarray(x).view(f"u{x.dtype.itemsize}")  # noqa: E731
    for name, value in zip(Transition._fields, found.transition):
        expected_bits = bits(getattr(expected.transition, name))
        np.testing.assert_array_equal(bits(value), expected_bits, err_msg=name)
    for name in set(PLAIN) - set(but):
        np.testing.assert_array_equal(
            bits(getattr(found, name)), bits(getattr(expected, name)), err_msg=name
        )
    assert but or fingerprint(found) == fingerprint(expected)


@pytest.mark.parametrize("kind", ["recorded", "segments"])
def test_round_trips(kind, request, store, tmp_path):
    dataset = request.getfixturevalue(kind)
    path = export.to_d4rl(dataset, tmp_path / "out" / "toy.hdf5")
    check_same(d4rl.read(path, TASK), dataset)
    for domain in ("maze2d", "antmaze"):  # whose own files are read by other rules
        task = dataclasses.replace(TASK, family=f"{domain}-umaze")
        read = d4rl.read(path, task)
        if domain == "maze2d":  # never terminates
            read = read.replace(transition=read.transition._replace(
                discount=dataset.transition.discount
            ))  # fmt: skip
        check_same(read, dataset)
    assert export.to_minari(d4rl.read(path, TASK), ID) == store / ID
    check_same(minari.read(ID), dataset)
    infos = {"timesteps", "returns_to_go"} if kind == "segments" else set()
    assert all(set(e.infos) == infos for e in minari_package.load_dataset(ID))
    export.to_d4rl(minari.read(ID), path)  # and on
    check_same(d4rl.read(path, TASK), dataset)


def test_real_data(store, tmp_path):
    dataset = data.load("hopper-medium-mini")
    export.to_minari(dataset, ID)
    found = minari.read(ID)
    check_same(found, dataset)
    task = found.task
    assert (task.environment, task.min_score, task.max_score, task.family) == (
        "Hopper-v4", -20.272305, 3234.3, "hopper"
    )  # fmt: skip
    check_same(d4rl.read(export.to_d4rl(dataset, tmp_path / "x.hdf5"), dataset.task), dataset)


def test_columns_and_attributes(recorded, tmp_path):
    task = dataclasses.replace(TASK, environment="Toy-v0")
    dataset = recorded.replace(task=task)
    path = export.to_d4rl(dataset, tmp_path / "toy.hdf5", attributes={"seed": 3, "note": "x"})
    with h5py.File(path) as file:
        assert set(file) == set(columns()) | {"timesteps", "returns_to_go"}
        assert dict(file.attrs) == {"environment": "Toy-v0", "seed": "3", "note": "x"}
        ends = file["terminals"][:] | file["timeouts"][:]
        np.testing.assert_array_equal(ends, np.asarray(dataset.remaining) == 1)
        assert not (file["terminals"][:] & file["timeouts"][:]).any()
        assert file["rewards"].dtype == np.float32 and file["terminals"].dtype == bool


def shifting_reader(path):
    """A reader like D4RL's: the next row is the successor, and time-out rows are dropped."""
    with h5py.File(path) as file:
        rows = {name: file[name][:] for name in file}
    found = []
    for i in range(len(rows["rewards"]) - 1):
        if not rows["timeouts"][i]:
            names = ("observations", "actions", "rewards", "terminals")
            row = [np.ravel(rows[name][i]) for name in names]
            found.append(np.concatenate([*row, rows["observations"][i + 1]]))
    return np.array(found)


def test_readers_that_shift_observations_lose_nothing_of_a_padded_file(recorded, tmp_path):
    t = jax.tree.map(np.asarray, recorded.transition)
    expected = np.concatenate(
        [t.observation, t.action, t.reward[:, None], 1 - t.discount[:, None], t.next_observation],
        axis=1,
    )
    path = export.to_d4rl(recorded, tmp_path / "padded.hdf5", padded=True)
    np.testing.assert_array_equal(shifting_reader(path), expected)
    # Without the padding they lose each cut-off episode's last row, and see wrong successors.
    plain = shifting_reader(export.to_d4rl(recorded, tmp_path / "plain.hdf5"))
    cut_off = sum(not terminal for _, terminal in EPISODES)
    assert len(plain) == ROWS - cut_off
    wrong = ~(plain[:, None] == expected[None]).all(axis=2).any(axis=1)
    np.testing.assert_array_equal(plain[wrong, -4], 1)  # the terminal rows alone
    assert wrong.sum() == len(EPISODES) - cut_off


def test_padding_is_no_transition_for_our_own_reader(segments, tmp_path):
    path = export.to_d4rl(segments, tmp_path / "padded.hdf5", padded=True)
    found = d4rl.read(path, TASK)
    terminal = np.asarray(segments.transition.discount) == 0
    following = np.where(
        terminal[:, None], segments.transition.observation, segments.transition.next_observation
    )
    expected = segments.transition._replace(next_observation=jax.numpy.asarray(following))
    check_same(found, segments.replace(transition=expected))
    task = dataclasses.replace(TASK, family="antmaze-umaze")  # there the successor is kept
    for after_goal in ("drop", "keep"):
        check_same(d4rl.read(path, task, after_goal=after_goal), segments)


def test_minari_episodes_are_cut_where_states_do_not_follow(recorded, store):
    following = np.array(recorded.transition.next_observation)
    observation = np.array(recorded.transition.observation)
    following[5, 1] = np.nextafter(following[5, 1], np.float32(9))
    observation[7, 0], following[6, 0] = 0.0, -0.0  # equal, but not to the last bit
    discount = np.array(recorded.transition.discount)
    discount[18] = 0.0  # a terminal in mid-episode
    transition = recorded.transition._replace(
        next_observation=jax.numpy.asarray(following),
        observation=jax.numpy.asarray(observation),
        discount=jax.numpy.asarray(discount),
    )
    dataset = recorded.replace(transition=transition)
    export.to_minari(dataset, ID)
    found = minari.read(ID)
    check_same(found, dataset, but=("remaining", "order", "num_starts"))
    expected = np.asarray(dataset.remaining) == 1
    assert not expected[[5, 6, 18]].any()
    expected[[5, 6, 18]] = True
    np.testing.assert_array_equal(np.asarray(found.remaining) == 1, expected)
    episodes = list(minari_package.load_dataset(ID))
    assert len(episodes) == len(EPISODES) + 3
    assert [bool(e.terminations[-1]) for e in episodes] == [1, 0, 0, 0, 1, 0, 1, 1, 0, 0]
    for episode in episodes:
        flags = episode.terminations.astype(int) + episode.truncations
        assert flags[-1] == 1 and not flags[:-1].any()


def test_metadata(recorded, store):
    kwargs = '{"g": 9.0}'
    task = dataclasses.replace(
        TASK, environment="Pendulum-v1", environment_kwargs=kwargs, min_score=-1.5, max_score=3.0
    )
    export.to_minari(
        recorded.replace(task=task), ID, description="what", algorithm="how", author="who",
        code_permalink="where",
    )  # fmt: skip
    dataset = minari_package.load_dataset(ID)
    assert dataset.id == ID and dataset.total_steps == ROWS == len(recorded.timestep)
    assert len(dataset) == dataset.total_episodes == len(EPISODES)
    metadata = dataset.storage.metadata
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-1.5, 3.0)
    described = [metadata[k] for k in ("description", "algorithm_name", "author", "code_permalink")]
    assert described == ["what", "how", {"who"}, "where"]
    box = gymnasium.spaces.Box
    assert dataset.observation_space == box(-np.inf, np.inf, (3,), np.float32)
    assert dataset.action_space == box(-1, 1, (1,), np.float32)
    env = dataset.recover_environment()
    assert env.unwrapped.g == 9.0 and env.spec.max_episode_steps == 6
    assert env.reset(seed=0)[0].shape == (3,)
    assert env.action_space == dataset.action_space  # Pendulum's own is [-2, 2]
    env.step(np.ones(1, np.float32))
    read = minari.make_task(ID)
    same = ("environment", "environment_kwargs", "episode_length", "min_score", "max_score")
    assert [getattr(read, name) for name in same] == [getattr(task, name) for name in same]
    assert list(minari_package.list_local_datasets()) == [ID]
    assert list_local_namespaces() == ["toys", "toys/hopper"]


def test_environments_that_cannot_be_made_are_not_named(recorded, store):
    stream = io.StringIO()
    export.to_minari(
        recorded, ID, environment="Nowhere-v0", console=reporting.Console(stream=stream)
    )
    assert minari.make_task(ID).environment == ""
    assert "cannot make environment Nowhere-v0" in stream.getvalue()
    assert f"{ROWS}" in stream.getvalue() and "transition" in stream.getvalue()  # the bar


def test_stores(recorded, store, tmp_path):
    assert export.to_minari(recorded, ID, out=tmp_path / "given") == tmp_path / "given" / ID
    assert not store.exists()
    check_error("needs a namespace, as in mine/short-v1", recorded, "short-v1")
    check_error("namespace mujoco is for its published", recorded, "mujoco/hopper/mine-v0")
    check_error("Minari keeps `data` for itself", recorded, "mine/data/x-v0")
    assert not store.exists()


def test_many_batches(recorded, store, monkeypatch):
    monkeypatch.setattr(export, "_BATCH", 2)
    export.to_minari(recorded, ID)
    check_same(minari.read(ID), recorded)


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_error(message, recorded, name=ID, **options):
    with pytest.raises(UserError, match=message) as caught:
        export.to_minari(recorded, name, **options)
    assert "\n" not in str(caught.value)


def test_an_existing_dataset_is_left_alone(recorded, segments, store):
    export.to_minari(recorded, ID)
    before = contents(store)
    check_error("exists already; use it with .* or choose another id", segments)
    check_error("is a dataset; choose another namespace", segments, f"{ID}/inner-v0")
    assert contents(store) == before


@pytest.mark.parametrize(
    "name", ["", "toy", "toys/toy", "../toy-v0", "/toys/toy-v0", "a b-v0", "toy-v0/", "toy-v0\n"]
)
def test_malformed_ids(recorded, store, name):
    check_error("is not a Minari id; it looks like namespace/name-v0", recorded, name)
    assert not store.exists()


@pytest.mark.parametrize("error", [OSError("No space\nleft"), KeyboardInterrupt()])
def test_failures_leave_nothing(recorded, store, monkeypatch, error):
    export.to_minari(recorded, ID)
    before = contents(store)

    def fail(self, episodes):
        next(iter(episodes))
        raise error

    monkeypatch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episodes", fail)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is UserError else None):
        export.to_minari(recorded, "toys/hopper/other-v0")
    assert contents(store) == before
    assert {p.name for p in store.iterdir()} == {"toys"}


def test_leftovers_of_a_killed_run_do_not_matter(recorded, store):
    leftover = store / ".toys.hopper.generated-v0.tmp" / "data"
    leftover.mkdir(parents=True)
    (leftover / "metadata.json").write_text("half")
    export.to_minari(recorded, ID)
    check_same(minari.read(ID), recorded)
    assert {p.name for p in store.iterdir()} == {"toys"}


def test_places_that_cannot_be_written(recorded, tmp_path):
    (tmp_path / "file").write_text("")
    check_error("cannot write there", recorded, out=tmp_path / "file")
    for path in (tmp_path / "file" / "toy.hdf5", tmp_path):
        with pytest.raises(UserError, match="cannot write there") as caught:
            export.to_d4rl(recorded, path)
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


# d3rlpy 2.8.1's own get_minari takes the T + 1 observations of each episode for T.
D3RLPY = """
import json, sys
import d3rlpy, minari, numpy as np
episodes = list(minari.load_dataset(sys.argv[1]))
join = lambda name: np.concatenate([getattr(e, name) for e in episodes])
dataset = d3rlpy.dataset.MDPDataset(
    observations=np.concatenate([e.observations[:-1] for e in episodes]),
    actions=join("actions"),
    rewards=join("rewards"),
    terminals=join("terminations").astype(np.float32),
    timeouts=join("truncations").astype(np.float32),
)
learner = d3rlpy.algos.TD3PlusBCConfig(batch_size=64).create(device="cpu:0")
quiet = d3rlpy.logging.NoopAdapterFactory()
history = learner.fit(
    dataset, n_steps=100, n_steps_per_epoch=50, logger_adapter=quiet, show_progress=False
)
second = episodes[0].observations[None, 1]
batch = dataset.episodes[1].observations[:3]
print(json.dumps({
    "episodes": len(dataset.episodes),
    "transitions": dataset.transition_count,
    "follows": bool((dataset.episodes[0].observations[1] == second).all()),
    "aligned": bool((batch == episodes[1].observations[:3]).all()),
    "losses": [metrics["critic_loss"] for _, metrics in history],
    "action": learner.predict(second).tolist(),
}))
"""


@pytest.mark.slow
def test_d3rlpy_trains_on_the_export(tmp_path, store):
    """In an environment of its own: d3rlpy pins a Gymnasium that this library cannot use."""
    dataset = data.load("hopper-medium-mini")
    export.to_minari(dataset, ID)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    packages = ["d3rlpy==2.8.1", "torch==2.13.0", "minari[hdf5]", "pillow"]
    install = subprocess.run(
        [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True
    )
    if install.returncode:
        pytest.skip(f"d3rlpy cannot be installed here: {install.stderr.strip()[-200:]}")
    run = subprocess.run(
        [python, "-c", D3RLPY, ID], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    last = np.asarray(dataset.remaining) == 1
    truncated = int((last & (np.asarray(dataset.transition.discount) == 1)).sum())
    # d3rlpy has no successor for the last row of an episode that was cut off.
    assert found["transitions"] == dataset.size - truncated
    assert found["episodes"] == last.sum() and found["aligned"] and found["follows"]
    assert np.isfinite(found["losses"]).all() and len(found["losses"]) == 2
    assert np.shape(found["action"]) == (1, 3) and np.abs(found["action"]).max() <= 1
