"""Minari datasets, made on the spot."""

import dataclasses
import json
import os
import shutil

import gymnasium
import h5py
import jax
import numpy as np
import pytest
from minari import create_dataset_from_buffers
from minari.data_collector import EpisodeBuffer

from tgcvg_jax.data import minari
from tgcvg_jax.types import Task, UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")  # no author etc.

ID = "toys/hopper/medium-v0"
BOX = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
LENGTHS, ENDS = (4, 3, 2), ("terminated", "truncated", "neither")


def episode(number, length, end):
    rng = np.random.default_rng(number)
    return EpisodeBuffer(
        observations=rng.normal(size=(length + 1, 3)),
        actions=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        rewards=list(rng.normal(size=length)),
        terminations=[False] * (length - 1) + [end == "terminated"],
        truncations=[False] * (length - 1) + [end == "truncated"],
    )


def create(name, buffers, observation_space=BOX, action_space=ACTIONS, **options):
    env = gymnasium.Env()  # only its specification is stored
    env.spec = gymnasium.envs.registration.EnvSpec(
        "Hopper-v4", "gymnasium:Env", max_episode_steps=50, disable_env_checker=True
    )
    options = dict(env=env, ref_min_score=-1.0, ref_max_score=9.0) | options
    create_dataset_from_buffers(
        name,
        buffers,
        observation_space=observation_space,
        action_space=action_space,
        **options,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with one dataset."""
    store = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(store))
        create(ID, [episode(i, n, end) for i, (n, end) in enumerate(zip(LENGTHS, ENDS))])
    return store


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """A copy of it that a test may spoil; the default stores are elsewhere."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "empty"))
    return shutil.copytree(made, tmp_path / "store")


def test_task_from_metadata(store):
    task = minari.make_task(ID, store)
    assert task.name == ID and task.environment == "Hopper-v4" and task.family == "hopper-medium"
    assert (task.observation_dim, task.action_dim, task.episode_length) == (3, 2, 50)
    assert (task.min_score, task.max_score) == (-1.0, 9.0)


def test_transitions_equal_the_episodes(store):
    data = minari.read(ID, store=store)
    buffers = [episode(i, n, end) for i, (n, end) in enumerate(zip(LENGTHS, ENDS))]
    observation = np.concatenate([b.observations[:-1] for b in buffers]).astype(np.float32)
    following = np.concatenate([b.observations[1:] for b in buffers]).astype(np.float32)
    np.testing.assert_array_equal(data.transition.observation, observation)
    np.testing.assert_array_equal(data.transition.next_observation, following)
    np.testing.assert_array_equal(data.transition.discount, [1, 1, 1, 0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(data.timestep, [0, 1, 2, 3, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(data.remaining, [4, 3, 2, 1, 3, 2, 1, 2, 1])
    returns = [sum(b.rewards) for b in buffers]
    np.testing.assert_allclose(data.return_to_go[data.timestep == 0], returns, rtol=1e-5)


def test_directory_default_store_and_given_store_agree(store, monkeypatch):
    before = dict(os.environ)
    given = minari.read(ID, store=store)
    directory = minari.read(store / ID)
    assert dict(os.environ) == before
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    default = minari.read(ID)
    for other in (directory, default):
        assert jax.tree.all(jax.tree.map(np.array_equal, given.transition, other.transition))
        assert other.task.name == ID


def test_home_is_the_last_resort(store, tmp_path, monkeypatch):
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert minari.find(ID) is None
    shutil.copytree(store, tmp_path / ".minari" / "datasets")
    assert minari.find(ID) == tmp_path / ".minari" / "datasets" / ID


def check_error(message, name=ID, **options):
    with pytest.raises(UserError, match=message) as caught:
        minari.read(name, **options)
    assert str(name) in str(caught.value) and "\n" not in str(caught.value)


def test_not_found(store, tmp_path):
    check_error("get it with `minari download nobody/nothing-v0`", "nobody/nothing-v0", store=store)
    check_error("no Minari dataset there", tmp_path)
    check_error("no Minari dataset there", "../store/toys/hopper/medium-v0", store=store / "toys")


def test_other_dimensions(store):
    task = Task("toy-v0", "", observation_dim=17, action_dim=2, episode_length=50)
    check_error("observations have 3 columns, but toy-v0 has 17", task=task, store=store)


def test_without_specification_the_longest_episode_is_the_limit(store):
    path = store / ID / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["env_spec"], metadata["ref_min_score"]
    path.write_text(json.dumps(metadata))
    task = minari.make_task(ID, store)
    assert (task.environment, task.episode_length, task.min_score) == ("", max(LENGTHS), None)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"observation_space": "x"}'])
def test_bad_metadata(store, content):
    path = store / ID / "data" / "metadata.json"
    path.unlink() if content is None else path.write_text(content)
    check_error("metadata.json is missing or damaged", store=store)


def test_bad_main_file(store):
    path = store / ID / "data" / "main_data.hdf5"
    whole = path.read_bytes()
    for content, message in (
        (b"", "is empty"),
        (b"text", "is not an HDF5 file"),
        (whole[: len(whole) // 2], "truncated or damaged"),
    ):
        path.write_bytes(content)
        check_error(message, store=store)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("observations", np.full((4, 3), np.nan), "observations holds nan in row 4"),
        ("rewards", np.full(3, np.inf), "rewards holds inf in row 4"),
        ("actions", np.full((3, 2), 2.0), "actions holds 2.0 in row 4"),
        ("observations", np.zeros((3, 3)), "episode 1 has 3 observations and 3 actions"),
        ("rewards", np.zeros(2), "rewards has 8 rows, but observations has 9"),
        ("rewards", None, "truncated or damaged.*rewards"),
        ("rewards", h5py.SoftLink("/x"), "episode_1/rewards is a link"),
    ],
)
def test_bad_fields(store, field, value, message):
    with h5py.File(store / ID / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"][field]
        if value is not None:
            file["episode_1"][field] = value
    check_error(message, store=store)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (gymnasium.spaces.Dict(x=BOX), ACTIONS, "its observation space is Dict"),
        (BOX, gymnasium.spaces.Discrete(3), "its action space is Discrete"),
        (BOX, gymnasium.spaces.Box(-0.4, 0.4, (2,)), r"its action box is not \[-1, 1\]"),
    ],
)
def test_other_spaces(observation_space, action_space, message):
    with pytest.raises(UserError, match=message):
        minari.flat_dims("toy", observation_space, action_space)


def test_dict_observations_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffer = episode(0, 3, "truncated")
    buffer = dataclasses.replace(buffer, observations={"x": buffer.observations})
    create("toys/maze-v0", [buffer], observation_space=gymnasium.spaces.Dict(x=BOX))
    check_error("its observation space is Dict", "toys/maze-v0")
