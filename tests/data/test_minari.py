"""Minari datasets, made on the spot."""

import dataclasses
import io
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

from tgcvg_jax import tasks
from tgcvg_jax.data import download as web
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


def change_metadata(folder, **changes):
    """Changes or, with None, removes entries."""
    path = folder / "data" / "metadata.json"
    metadata = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


def test_without_specification_the_longest_episode_is_the_limit(store):
    change_metadata(store / ID, env_spec=None, ref_min_score=None)
    task = minari.make_task(ID, store)
    assert (task.environment, task.episode_length, task.min_score) == ("", max(LENGTHS), None)


def as_known(store, name, **changes):
    """The store's dataset under another id."""
    shutil.copytree(store / ID, store / name)
    change_metadata(store / name, dataset_id=name, **changes)
    return minari.make_task(name, store)


def specification(name, **options):
    return gymnasium.envs.registration.EnvSpec(name, "gymnasium:Env", **options).to_json()


def test_evaluation_environment_and_its_arguments(store):
    kwargs = {"maze_map": [[1, "g"], [1, 1]], "continuing_task": True, "render_mode": None}
    spec = specification("PointMaze_UMaze-v3", max_episode_steps=300, kwargs=kwargs)
    task = as_known(store, "D4RL/pointmaze/umaze-v2", eval_env_spec=spec)
    assert (task.environment, task.episode_length) == ("PointMaze_UMaze-v3", 300)
    assert task.environment_kwargs == '{"continuing_task": true, "maze_map": [[1, "g"], [1, 1]]}'
    assert task.family == "pointmaze-umaze" and task.eval_episodes == tasks.MAZE_EPISODES
    assert minari.make_task(ID, store).eval_episodes == 10


def test_published_robots_keep_their_contact_margins(store):
    spec = specification("Hopper-v5", max_episode_steps=1000)
    assert as_known(store, "mujoco/hopper/simple-v0", env_spec=spec).environment == (
        "tgcvg-minari/Hopper-v5"
    )
    assert as_known(store, "other/hopper/simple-v0", env_spec=spec).environment == "Hopper-v5"
    spec = specification("Ant-v5", max_episode_steps=1000)
    assert as_known(store, "mujoco/ant/simple-v0", env_spec=spec).environment == "Ant-v5"


def test_own_environments_arguments_are_not_repeated(store):
    kwargs = {"maze": "umaze", "dense": False}
    spec = specification("tgcvg/Maze2D-umaze-v1", max_episode_steps=300, kwargs=kwargs)
    task = as_known(store, "toys/maze2d-umaze/generated-v0", env_spec=spec)
    assert (task.family, task.environment_kwargs) == ("maze2d-umaze", "")
    spec = specification("tgcvg/Maze2D-umaze-v1", kwargs=kwargs | {"dense": True})
    task = as_known(store, "toys/maze2d-umaze/generated-v1", env_spec=spec)
    assert task.environment_kwargs == '{"dense": true}'


def test_the_table_fills_what_metadata_lacks(store):
    task = as_known(store, "mujoco/hopper/medium-v0", env_spec=None)
    known = tasks.TASKS["mujoco/hopper/medium-v0"]
    assert (task.environment, task.episode_length) == (known.environment, known.episode_length)
    assert (task.min_score, task.max_score) == (-1.0, 9.0) and task.observation_dim == 3


def test_other_versions_of_the_robot_but_no_other_robot(store):
    task = Task("toy", "tgcvg/Hopper-v2", observation_dim=3, action_dim=2, episode_length=50)
    assert minari.read(ID, task, store).task == task
    task = dataclasses.replace(task, environment="tgcvg/Walker2d-v2")
    check_error("was collected in Hopper-v4, but toy is in tgcvg/Walker2d", task=task, store=store)


def test_infos_of_segments_that_begin_in_mid_episode(tmp_path):
    buffers = [episode(i, n, end) for i, (n, end) in enumerate(zip(LENGTHS, ENDS))]
    infos = [{"timesteps": np.arange(n) + 7, "returns_to_go": np.arange(n) / 3} for n in LENGTHS]

    def data(infos):
        parts = [dataclasses.replace(b, infos=own) for b, own in zip(buffers, infos)]
        task = Task("toy", "", observation_dim=3, action_dim=2, episode_length=50)
        return minari.from_episodes("toy", task, parts)

    found = data(infos)
    assert found.timestep.tolist() == [7, 8, 9, 10, 7, 8, 9, 7, 8]
    expected = np.concatenate([own["returns_to_go"] for own in infos]).astype(np.float32)
    np.testing.assert_array_equal(found.return_to_go, expected)
    # Not of all episodes, or of another length (as what environments report): not ours.
    longer = [{"timesteps": np.arange(n + 1) + 7} for n in LENGTHS]
    for other in ([*infos[:2], None], longer):
        assert data(other).timestep.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]


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
        (gymnasium.spaces.Dict(x=gymnasium.spaces.Text(3)), ACTIONS, "observation space is Dict"),
        (BOX, gymnasium.spaces.Dict(x=ACTIONS), "its action space is Dict"),
        (BOX, gymnasium.spaces.Discrete(3), "its action space is Discrete"),
        (BOX, gymnasium.spaces.Box(-0.4, 0.4, (2,)), r"its action box is not \[-1, 1\]"),
    ],
)
def test_other_spaces(observation_space, action_space, message):
    with pytest.raises(UserError, match=message):
        minari.flat_dims("toy", observation_space, action_space)


def test_dict_observations_are_flattened_as_gymnasium_does(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    goal = gymnasium.spaces.Box(-9, 9, (2,), np.float64)
    inner = gymnasium.spaces.Dict({"z": goal, "b": goal})
    space = gymnasium.spaces.Dict(
        {"observation": BOX, "desired_goal": goal, "achieved_goal": inner}
    )
    space.seed(3)
    samples = [space.sample() for _ in range(4)]
    observations = jax.tree.map(lambda *x: np.stack(x), *samples)
    buffer = dataclasses.replace(episode(0, 3, "truncated"), observations=observations)
    create("toys/maze-v0", [buffer], observation_space=space)
    task = minari.make_task("toys/maze-v0")
    assert task.observation_dim == 9
    data = minari.read("toys/maze-v0", task)
    expected = [gymnasium.spaces.flatten(space, x).astype(np.float32) for x in samples]
    np.testing.assert_array_equal(data.transition.observation, expected[:-1])
    np.testing.assert_array_equal(data.transition.next_observation, expected[1:])
    np.testing.assert_array_equal(minari.episodes("toys/maze-v0")[0].observations.shape, (4, 9))
    with h5py.File(tmp_path / "toys/maze-v0/data/main_data.hdf5", "a") as file:
        del file["episode_0/observations/desired_goal"]
    check_error("truncated or damaged.*desired_goal", "toys/maze-v0")


# What the process that downloads runs, instead of Minari's own code.
DOWNLOAD = """
import os, pathlib, sys
place = pathlib.Path(os.environ["MINARI_DATASETS_PATH"], sys.argv[1], "data")
place.mkdir(parents=True)
print("noise", file=sys.stderr)
"""


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "mine"))
    monkeypatch.setattr(web, "open_url", lambda url: io.BytesIO())
    return lambda more: monkeypatch.setattr(web, "_MINARI", DOWNLOAD + more)


def test_download(server, made, tmp_path):
    whole = str(made / ID / "data")
    server(f"import shutil; shutil.copytree({whole!r}, place, dirs_exist_ok=True)")
    assert minari.download(ID) == tmp_path / "mine" / ID
    assert minari.read(ID).size == sum(LENGTHS)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["toys"]
    assert minari.download(ID, tmp_path / "given") == tmp_path / "given" / ID


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("print('ValueError no such\\nversion')", "ValueError no such version"),
        ("sys.exit(3)", "status 3"),
        ("", "it came without data/main_data.hdf5"),
    ],
)
def test_failed_downloads_leave_nothing(server, tmp_path, more, message):
    server(more)
    with pytest.raises(UserError, match=message) as caught:
        minari.download(ID)
    text = str(caught.value)
    assert f"`minari download {ID}`" in text and str(tmp_path / "mine" / ID) in text
    assert "\n" not in text and not list((tmp_path / "mine").iterdir())


def test_downloads_without_a_network(tmp_path, monkeypatch):
    def fail(url):
        raise TimeoutError("no answer within 20 s")

    monkeypatch.setattr(web, "open_url", fail)
    with pytest.raises(UserError, match="no answer within 20 s"):
        minari.download(ID, tmp_path)
    with pytest.raises(UserError, match=r"\.\./hopper: is not a Minari id"):
        minari.download("../hopper", tmp_path)
    assert not list(tmp_path.iterdir())
