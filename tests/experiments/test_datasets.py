"""`experiments.datasets`, each command in a process of its own."""

import contextlib
import dataclasses
import http.server
import json
import re
import threading

import h5py
import jax
import launch
import numpy as np
import pytest
from PIL import Image

from tgcvg_jax import data, tasks
from tgcvg_jax.data import export

ENV = "hopper-medium-mini"
FILE = "hopper_medium-v2.hdf5"


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    """Runs the app in an empty folder, on a machine without data or network."""

    def run(*arguments, **env):
        env = {
            "HOME": str(tmp_path_factory.mktemp("home")), "TGCVG_DATA": "",
            "MINARI_DATASETS_PATH": "", "TGCVG_URL": "http://127.0.0.1:9/",
            "HF_ENDPOINT": "http://127.0.0.1:9/", "no_proxy": "127.0.0.1", **env,
        }  # fmt: skip
        return launch.run("datasets", *arguments, cwd=tmp_path, env=env)

    return run


@pytest.fixture(scope="module")
def mini():
    return data.load(ENV)


def part(dataset, size):
    return data.split(dataset, size)[0]


def segments(dataset, number=6, length=20):
    """A synthetic file's kind of data: pieces from the middle of episodes."""
    size = number * length
    rows = slice(10, 10 + size)
    return data.make_dataset(
        dataset.task,
        jax.tree.map(lambda x: np.asarray(x)[rows], dataset.transition),
        np.arange(size) % length == length - 1,
        timestep=np.asarray(dataset.timestep)[rows],
        return_to_go=np.asarray(dataset.return_to_go)[rows],
    )


def plain_file(path, size=40, observation_dim=11):
    """A D4RL file of a robot that stands still in a place where it would fall."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name in ("observations", "next_observations"):
            file[name] = np.ones((size, observation_dim), np.float32)
        file["actions"] = np.zeros((size, 3), np.float32)
        file["rewards"] = np.ones(size, np.float32)
        file["terminals"] = np.zeros(size, bool)
        file["timeouts"] = np.arange(size) % 20 == 19
    return path


def check_same(a, b, rows=slice(None)):
    for x, y in zip(jax.tree.leaves(a.transition), jax.tree.leaves(b.transition), strict=True):
        np.testing.assert_array_equal(x, y[rows])


def test_list_shows_everything(run, tmp_path):
    plain_file(tmp_path / "data" / FILE)
    result = run("list", "--data_dir=data", COLUMNS="20")
    assert result.returncode == 0 and not result.stderr
    lines = result.stdout.splitlines()
    for task in (tasks.TASKS | tasks.ENVIRONMENTS).values():
        (row,) = (line.split() for line in lines if line.startswith(f"{task.name} "))
        sizes = (task.observation_dim, task.action_dim, task.episode_length)
        assert row[1:4] == [str(size) for size in sizes]
        low, high = ("-" if x is None else repr(x) for x in (task.min_score, task.max_score))
        assert row[4:7] == [low, high, str(task.eval_episodes)]
        bundled = any(source.kind == "bundled" for source in task.sources)
        here = "yes" if bundled or task.name == "hopper-medium-v2" else "no"
        assert row[7] == (here if task.sources else "-")
        assert row[8] == task.environment
    headings = [line for line in lines if line in ("D4RL", "Bundled", "Minari")]
    assert len(headings) == 3 and "Gymnasium id" in lines[-1]
    assert any(line.startswith("Environments to collect in") for line in lines)
    assert "193.66285642381482" in result.stdout and not re.search(r"[ \t]\n", result.stdout)


def test_list_reads_the_metadata_of_what_is_here(run, tmp_path, mini, monkeypatch):
    monkeypatch.setattr(export, "PUBLISHED", ())  # else nobody may write there
    task = dataclasses.replace(mini.task, min_score=1.5, max_score=99.25)
    toy = dataclasses.replace(part(mini, 50), task=task)
    export.to_minari(toy, "mujoco/hopper/simple-v0", out=tmp_path)
    (row,) = (
        line.split()
        for line in run("list", f"--data_dir={tmp_path}").stdout.splitlines()
        if line.startswith("mujoco/hopper/simple-v0")
    )
    assert row[4:6] == ["1.5", "99.25"] and row[7] == "yes"


def test_info(run, tmp_path, mini):
    result = run("info", f"--env={ENV}")
    assert result.returncode == 0 and not result.stderr
    returns = data.episode_returns(mini)
    score = 100 * (returns.mean() + 20.272305) / (3234.3 + 20.272305)
    for words in (
        "20,113", f"{returns.mean():.1f} ± {returns.std():.1f}", f"{score:.1f} of the mean return",
        "bundled/hopper-medium-mini.hdf5", "Hopper-v4", "41 episodes, 89.1 %",
    ):  # fmt: skip
        assert words in result.stdout
    # Table 6, and what the data suggests.
    assert re.search(r"Table 6, hopper-medium +20 +2 +60\n", result.stdout)
    assert re.search(r"suggested by this data +20 +2 to 5 +40 to 60\n", result.stdout)
    assert "heuristic" in result.stdout
    folder = tmp_path / "runs" / ENV / "info"
    assert {p.name for p in folder.iterdir()} == {"returns.png", "info.json"}
    with Image.open(folder / "returns.png") as image:
        assert image.format == "PNG"
    found = json.loads((folder / "info.json").read_text())
    assert found["normalized_score"] == pytest.approx(score, rel=1e-6)
    assert found["statistics"]["transitions"] == 20_113
    assert found["statistics"]["returns"]["std"] == pytest.approx(returns.std(), rel=1e-6)
    assert found["tgcvg_table_6"]["cql_weight"] == 2.0
    assert found["tgcvg_suggestion"]["window_length"] == [40, 60]


def test_info_of_segments_suggests_nothing(run, tmp_path, mini):
    export.to_d4rl(segments(mini), tmp_path / "synthetic.hdf5")
    result = run("info", f"--env={ENV}", "--dataset=synthetic.hdf5", "--workdir=w")
    assert result.returncode == 0 and not result.stderr
    assert "6 of them are segments" in result.stdout and "suggested by" not in result.stdout
    found = json.loads((tmp_path / "w" / ENV / "info" / "info.json").read_text())
    assert found["tgcvg_suggestion"] is None and found["statistics"]["segments"] == 6


def test_warnings_are_one_line(run, tmp_path):
    plain_file(tmp_path / "still.hdf5")
    result = run("info", f"--env={ENV}", "--dataset=still.hdf5")
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: still.hdf5: ") and "simulator" in line
    assert "UserWarning" not in line and ".py" not in line


@contextlib.contextmanager
def serve(folder):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()


def test_download(run, tmp_path):
    published = plain_file(tmp_path / "server" / "gym_mujoco_v2" / FILE)
    command = ("download", "--env=hopper-medium-v2", "--data_dir=mine")
    with serve(tmp_path / "server") as url:
        result = run(*command, TGCVG_URL=url)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"downloaded: mine/{FILE} (0.0 MB")
    assert (tmp_path / "mine" / FILE).read_bytes() == published.read_bytes()
    again = run(*command)
    assert (again.returncode, again.stdout) == (0, f"already there: mine/{FILE}\n")


def test_download_of_what_is_bundled_or_in_the_store(run, tmp_path, mini):
    result = run("download", f"--env={ENV}")
    assert result.returncode == 0 and "is bundled, nothing to download" in result.stdout
    place = export.to_minari(part(mini, 50), "me/toy-v0", out=tmp_path / "store")
    result = run("download", "--env=me/toy-v0", MINARI_DATASETS_PATH=str(tmp_path / "store"))
    assert (result.returncode, result.stdout) == (0, f"already there: {place}\n")


def test_export_and_back(run, tmp_path, mini):
    result = run("export", f"--env={ENV}", "--to=d4rl", "--out=out/mine.hdf5")
    assert result.returncode == 0, result.stderr
    assert "written to out/mine.hdf5: 20,113 transitions, 46 episodes" in result.stdout
    check_same(data.load(ENV, dataset=tmp_path / "out" / "mine.hdf5"), mini)
    result = run(
        "export", f"--env={ENV}", "--dataset=out/mine.hdf5", "--to=minari",
        "--id=me/hopper/mini-v0", "--out=store",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "--env=me/hopper/mini-v0 --data_dir=store" in result.stdout
    found = data.load("me/hopper/mini-v0", data_dir=tmp_path / "store")
    check_same(found, mini)
    assert (found.task.min_score, found.task.max_score) == (-20.272305, 3234.3)
    # A Minari dataset as the source, and rows for readers that drop the last one.
    result = run(
        "export", f"--env={ENV}", "--dataset=me/hopper/mini-v0", "--data_dir=store", "--to=d4rl",
        "--out=padded.hdf5", "--padded",
    )  # fmt: skip
    assert result.returncode == 0 and "me/hopper/mini-v0 (20,113 transitions)" in result.stdout
    with h5py.File(tmp_path / "padded.hdf5") as file:
        assert len(file["rewards"]) == 20_113 + 46 and "next_observations" not in file
        assert "me/hopper/mini-v0" in file.attrs["description"]


def test_export_of_augmented_data(run, tmp_path, mini):
    synthetic = segments(mini)
    export.to_d4rl(synthetic, tmp_path / "synthetic.hdf5", attributes={"identity": "{}"})
    result = run(
        "export", f"--env={ENV}", "--augmented_with=synthetic.hdf5", "--to=d4rl", "--out=all.hdf5"
    )
    assert result.returncode == 0, result.stderr
    assert "(20,113 transitions) and synthetic.hdf5 (120 synthetic transitions)" in result.stdout
    both = data.load(ENV, dataset=tmp_path / "all.hdf5")
    check_same(mini, both, slice(20_113))
    check_same(synthetic, both, slice(20_113, None))


def test_help_shows_the_commands(run):
    result = run("export", "--help")
    assert result.returncode == 0 and not result.stderr
    assert "Commands: list, info, download, export\n" in result.stdout
    assert "\n  --to (d4rl|minari)\n" in result.stdout
    assert "\n  --after_goal (drop|keep)\n" in result.stdout and "--preset" not in result.stdout


D4RL = ("export", f"--env={ENV}", "--to=d4rl")
MINARI = ("export", f"--env={ENV}", "--to=minari")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "which command?; there are list, info, download, export"),
        (("lst",), "unknown command 'lst'; there are list, info, download, export"),
        (("list", "info"), "unexpected argument 'info'"),
        (("list", "--seed=1"), "--seed has no effect"),
        (("list", f"--env={ENV}"), "--env has no effect"),
        (("info", f"--env={ENV}", "--padded"), "--padded has no effect"),
        (("info",), "--env is required"),
        (("export", "--to=d4rl", "--out=new.hdf5"), "--env is required"),
        (("info", "--env=hoper-medium-v2"), "did you mean hopper-medium-v2"),
        (("info", f"--env={ENV}", "--dataset=wide.hdf5"), "observations have 17 columns"),
        (("info", f"--env={ENV}", "--dataset=text"), "text: is not an HDF5 file"),
        (("info", f"--env={ENV}", "--dataset=absent.hdf5"), "absent.hdf5: no such file"),
        (("info", f"--env={ENV}", "--dataset=cheetah.hdf5"), "was made for HalfCheetah-v4"),
        (("info", f"--env={ENV}", "--workdir=text"), "--workdir=text"),
        (("info", "--env=hopper"), "has no data of its own"),
        (("download", "--env=hopper"), "has no data of its own"),
        (("download", "--env=nonsense"), "unknown env 'nonsense'"),
        (("download", "--env=hopper-medium-v2", "--data_dir=d"), "cannot download http://127.0.0.1"),
        (("download", "--env=mujoco/hopper/medium-v0"), "cannot download the Minari dataset"),
        (("download", "--env=any/other-v3"), "cannot download the Minari dataset any/other-v3"),
        (("export", f"--env={ENV}"), "needs --to="),
        (("export", f"--env={ENV}", "--to=csv"), "--to"),
        (D4RL, "needs --out=FILE.hdf5"),
        ((*D4RL, "--out=text"), "must end in .hdf5"),
        ((*D4RL, "--out=wide.hdf5"), "exists already"),
        ((*D4RL, f"--out=new/{FILE}"), "name of a file of D4RL's"),
        ((*D4RL, "--out=new.hdf5", "--id=me/toy-v0"), "--id is for --to=minari"),
        ((*D4RL, "--out=new.hdf5", "--augmented_with=absent.hdf5"), "absent.hdf5: no such file"),
        ((*D4RL, "--out=text/new.hdf5"), "text/new.hdf5: cannot write there"),
        (MINARI, "needs --id=namespace/name-v0"),
        ((*MINARI, "--id=me/toy-v0", "--padded"), "--padded is for --to=d4rl"),
        ((*MINARI, "--id=me/toy"), "'me/toy' is not a Minari id"),
        ((*MINARI, "--id=toy-v0"), "needs a namespace, as in mine/toy-v0"),
        ((*MINARI, "--id=me/../toy-v0"), "is not a Minari id"),
        ((*MINARI, "--id=D4RL/hopper/medium-v2"), "namespace D4RL is for its published datasets"),
        ((*MINARI, "--id=mujoco/hopper/medium-v0"), "namespace mujoco is for its published"),
        ((*MINARI, "--id=me/there-v0", "--out=store"), "exists already"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, words, run, tmp_path):
    (tmp_path / "text").write_text("no dataset")
    (tmp_path / "store" / "me" / "there-v0").mkdir(parents=True)
    plain_file(tmp_path / "wide.hdf5", observation_dim=17)
    with h5py.File(plain_file(tmp_path / "cheetah.hdf5"), "a") as file:
        file.attrs["environment"] = "HalfCheetah-v4"
    before = set(tmp_path.rglob("*"))
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert words in lines[0] and not result.stdout
    assert set(tmp_path.rglob("*")) == before
