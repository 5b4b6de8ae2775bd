"""From names to datasets: where data is looked for, and what is said when there is none."""

import dataclasses

import gymnasium
import h5py
import numpy as np
import pytest
from minari import create_dataset_from_buffers
from minari.data_collector import EpisodeBuffer

from tgcvg_jax import data, tasks
from tgcvg_jax.data import download
from tgcvg_jax.types import Task, UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")  # no author etc.

ID = "toys/walker2d/medium-v0"
FILE = "hopper_medium-v2.hdf5"
BOX = gymnasium.spaces.Box(-1, 1, (3,))

# The files here are made up, and no simulator's.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not follow the simulator")


class Toy(gymnasium.Env):
    def __init__(self, observation_space=BOX, action_space=BOX):
        self.observation_space, self.action_space = observation_space, action_space


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No data in the usual places, and no network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TGCVG_DATA", raising=False)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.setattr(download, "fetch", lambda url, path: pytest.fail(f"fetch {url} {path}"))


@pytest.fixture
def toys(monkeypatch):
    registry = dict(gymnasium.registry)
    yield lambda name, **kwargs: gymnasium.register(
        name, Toy, max_episode_steps=kwargs.pop("limit", 25), kwargs=kwargs
    )
    gymnasium.registry.clear()
    gymnasium.registry.update(registry)


def write_file(path, reward=0.0, observation_dim=11, action_dim=3, size=5):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((size, observation_dim))
        file["next_observations"] = np.zeros((size, observation_dim))
        file["actions"] = np.zeros((size, action_dim))
        file["rewards"] = np.full(size, reward)
        file["terminals"] = np.zeros(size, bool)
    return path


@pytest.fixture
def store(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    episode = EpisodeBuffer(
        observations=np.zeros((6, 3), np.float32),
        actions=np.zeros((5, 3), np.float32),
        rewards=[7.0] * 5,
        terminations=[False] * 5,
        truncations=[False] * 4 + [True],
    )
    with monkeypatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        create_dataset_from_buffers(
            ID, [episode], observation_space=BOX, action_space=BOX, env=None
        )
    return folder


def first_reward(*args, **kwargs):
    return float(data.load(*args, **kwargs).transition.reward[0])


def test_d4rl_places_in_order(tmp_path, monkeypatch):
    places = [tmp_path / "given", tmp_path / "variable", tmp_path / "home/.d4rl/datasets"]
    monkeypatch.setenv("TGCVG_DATA", str(places[1]))
    for reward in (2, 1, 0):  # each place wins over the later ones
        write_file(places[reward] / FILE, reward)
        assert first_reward("hopper-medium-v2", data_dir=places[0]) == reward


def test_the_servers_layout_is_found_too(tmp_path):
    write_file(tmp_path / "gym_mujoco_v2" / FILE, 4)
    assert first_reward("hopper-medium-v2", data_dir=tmp_path) == 4


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        ("given", "variable", "given"),
        (None, "variable", "variable"),
        (None, None, "home/.d4rl/datasets"),
    ],
)
def test_downloads_go_to_the_first_place_given(tmp_path, monkeypatch, given, variable, expected):
    def fetch(url, path):
        assert url == f"gym_mujoco_v2/{FILE}" and path == tmp_path / expected / FILE
        return write_file(path, 5)

    monkeypatch.setattr(download, "fetch", fetch)
    if variable:
        monkeypatch.setenv("TGCVG_DATA", str(tmp_path / variable))
    assert first_reward("hopper-medium-v2", data_dir=given and tmp_path / given) == 5


def test_minari_id(store):
    task = data.resolve(ID, data_dir=store)
    assert task.family == "walker2d-medium" and task.episode_length == 5
    assert first_reward(ID, data_dir=store) == first_reward(task, data_dir=store) == 7
    # Not in a store, but the user's own data is that dataset: the task is read from there.
    own = data.resolve(ID, dataset=store / ID)
    assert dataclasses.replace(own, sources=()) == dataclasses.replace(task, sources=())
    assert first_reward(own) == 7


def test_dataset_overrides_the_source(tmp_path, store):
    task = Task("toy", "", observation_dim=3, action_dim=3, episode_length=5)
    file = write_file(tmp_path / "mine.h5", 3, observation_dim=3)
    assert first_reward(task, dataset=file) == 3
    assert first_reward(task, dataset=str(store / ID)) == 7
    assert first_reward(task, dataset=ID, data_dir=store) == 7
    assert first_reward(ID, dataset=file, data_dir=store) == 3
    assert first_reward("hopper-medium-mini", dataset=write_file(tmp_path / FILE, 6)) == 6


def test_gymnasium_id(tmp_path, toys):
    toys("TgcvgToy-v0")
    task = data.resolve("TgcvgToy-v0")
    assert (task.observation_dim, task.action_dim, task.episode_length) == (3, 3, 25)
    assert task.environment == "TgcvgToy-v0" and task.min_score is None
    file = write_file(tmp_path / "mine.hdf5", 3, observation_dim=3)
    assert first_reward("TgcvgToy-v0", dataset=file) == 3
    check_error("TgcvgToy-v0: has no data of its own.*--dataset", "TgcvgToy-v0")


def test_unsuitable_gymnasium_ids(toys):
    discrete = gymnasium.spaces.Discrete(2)
    toys("TgcvgDiscrete-v0", action_space=discrete)
    toys("TgcvgWide-v0", action_space=gymnasium.spaces.Box(-np.inf, np.inf, (1,)))
    toys("TgcvgEndless-v0", limit=None)
    toys("TgcvgBroken-v0", unknown=1)
    check_error("TgcvgDiscrete-v0: its action space is Discrete", "TgcvgDiscrete-v0")
    check_error(r"TgcvgWide-v0: its action box is not \[-1, 1\]", "TgcvgWide-v0")
    check_error("TgcvgEndless-v0: has no time limit", "TgcvgEndless-v0")
    check_error("TgcvgBroken-v0: Gymnasium cannot make it", "TgcvgBroken-v0")


def check_error(message, name, **options):
    with pytest.raises(UserError, match=message) as caught:
        data.load(name, **options)
    assert "\n" not in str(caught.value)


def test_unknown_names():
    check_error("unknown env 'hoper-medium-v2'; did you mean hopper-medium-v2", "hoper-medium-v2")
    check_error("unknown env 'foo'; --env takes .* `python -m experiments.datasets list`", "foo")
    check_error("unknown env ''", "")
    check_error("unknown env '../etc'", "../etc")
    check_error("`minari download foo/bar-v0`", "foo/bar-v0")


def test_unreadable_datasets(tmp_path):
    check_error("absent.hdf5: no such file", "hopper-medium-v2", dataset=tmp_path / "absent.hdf5")
    check_error("no Minari dataset there", "hopper-medium-v2", dataset=tmp_path)
    check_error("`minari download foo/bar-v0`", "hopper-medium-v2", dataset="foo/bar-v0")
    other = write_file(tmp_path / "other.hdf5", observation_dim=17)
    check_error(
        "observations have 17 columns, but hopper-medium-v2",
        tasks.TASKS["hopper-medium-v2"],
        dataset=other,
    )
