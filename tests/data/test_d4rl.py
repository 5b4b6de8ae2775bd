"""D4RL's format: what the flags mean, and what is refused."""

import dataclasses
import pickle

import h5py
import numpy as np
import pytest

from tgcvg_jax.data import d4rl
from tgcvg_jax.types import SYNTHETIC, Task, UserError

TASK = Task("toy-v0", "", observation_dim=2, action_dim=1, episode_length=4)


def rows(n=6, **changes):
    """Observation i is [i, -i], its successor in the file [i + 0.5, -i]."""
    i = np.arange(n, dtype=np.float32)
    arrays = {
        "observations": np.stack([i, -i], 1),
        "next_observations": np.stack([i + 0.5, -i], 1),
        "actions": (i[:, None] / n),
        "rewards": i + 1,
        "terminals": np.zeros(n, bool),
        "timeouts": np.zeros(n, bool),
    }
    return {k: v for k, v in (arrays | changes).items() if v is not None}


@pytest.fixture(autouse=True)
def no_jumps(request, monkeypatch):
    """The successors above tell which of two was read, but do not follow each other."""
    if "jump" not in request.node.name:
        monkeypatch.setattr(d4rl, "JUMP", np.inf)


def test_no_window_crosses_a_jump(tmp_path):
    i = np.arange(200, dtype=np.float32)
    following = np.stack([i + 1, -i - 1], 1)
    noise = 1e-5 * np.random.default_rng(0).normal(size=following.shape)
    data = read(tmp_path, rows(200, next_observations=following + noise))
    assert data.timestep[-1] == 199  # rounding is no jump
    following[49] += 3.0
    data = read(tmp_path, rows(200, next_observations=following))
    np.testing.assert_array_equal(np.flatnonzero(data.remaining == 1), [49, 199])
    assert np.all(np.asarray(data.transition.discount) == 1.0)


def test_shuffled_rows_jump_everywhere_and_it_is_said(tmp_path):
    order = np.random.default_rng(0).permutation(200)
    shuffled = {k: v[order] for k, v in rows(200).items()}
    with pytest.warns(UserWarning, match="of the rows are not followed by their next observation"):
        data = read(tmp_path, shuffled)
    assert len(data.num_starts) < 5  # hardly a window of more than one


def save(path, arrays):
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    return path


def read(tmp_path, arrays, **options):
    return d4rl.read(save(tmp_path / "toy.hdf5", arrays), TASK, **options)


MAZE2D = dataclasses.replace(TASK, family="maze2d-umaze")
ANTMAZE = dataclasses.replace(TASK, family="antmaze-umaze")


def read_as(task, tmp_path, arrays, **options):
    return d4rl.read(save(tmp_path / "toy.hdf5", arrays), task, **options)


def flags(n, *true):
    return np.isin(np.arange(n), true)


def test_discount_is_zero_only_at_terminals(tmp_path):
    data = read(tmp_path, rows(terminals=flags(6, 1), timeouts=flags(6, 3)))
    np.testing.assert_array_equal(data.transition.discount, [1, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(data.timestep, [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(data.remaining, [2, 1, 2, 1, 2, 1])
    np.testing.assert_array_equal(data.return_to_go, [3, 2, 7, 4, 11, 6])


def test_row_with_both_flags_is_terminal(tmp_path):
    data = read(tmp_path, rows(terminals=flags(6, 2), timeouts=flags(6, 2)))
    np.testing.assert_array_equal(data.transition.discount, [1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.timestep, [0, 1, 2, 0, 1, 2])


def test_timeout_keeps_its_transition_and_bootstraps(tmp_path):
    data = read(tmp_path, rows(timeouts=flags(6, 2)))
    assert data.size == 6 and float(data.transition.discount[2]) == 1
    np.testing.assert_array_equal(data.transition.next_observation[2], [2.5, -2])


def test_trailing_partial_episode_is_kept_as_truncated(tmp_path):
    data = read(tmp_path, rows(terminals=flags(6, 3)))
    np.testing.assert_array_equal(data.remaining, [4, 3, 2, 1, 2, 1])
    assert float(data.transition.discount[-1]) == 1


def test_without_timeouts_episodes_end_at_terminals_or_the_time_limit(tmp_path):
    data = read(tmp_path, rows(11, terminals=flags(11, 1), timeouts=None))
    # Limit 4: rows 0-1 terminal, 2-5 and 6-9 run out of time, 10 is a trailing episode.
    np.testing.assert_array_equal(data.timestep, [0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(data.transition.discount, 1 - flags(11, 1))


def test_terminal_in_the_last_row_of_the_time_limit(tmp_path):
    data = read(tmp_path, rows(8, terminals=flags(8, 3), timeouts=None))
    np.testing.assert_array_equal(data.timestep, [0, 1, 2, 3] * 2)
    np.testing.assert_array_equal(data.transition.discount, 1 - flags(8, 3))


def test_without_next_observations_the_next_row_is_taken(tmp_path):
    arrays = rows(8, terminals=flags(8, 2), timeouts=flags(8, 5), next_observations=None)
    data = read(tmp_path, arrays)
    # Row 2 is terminal and stays; row 5 (time-out) and row 7 (end of file) have no successor.
    np.testing.assert_array_equal(data.transition.observation[:, 0], [0, 1, 2, 3, 4, 6])
    np.testing.assert_array_equal(data.transition.next_observation[:, 0], [1, 2, 2, 4, 5, 7])
    np.testing.assert_array_equal(data.transition.discount, [1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.timestep, [0, 1, 2, 0, 1, 0])
    np.testing.assert_array_equal(data.remaining, [3, 2, 1, 2, 1, 1])
    np.testing.assert_array_equal(data.return_to_go, [6, 5, 3, 9, 5, 7])


def test_an_episode_of_one_row_without_successor_vanishes(tmp_path):
    arrays = rows(5, timeouts=flags(5, 1, 2), next_observations=None)
    data = read(tmp_path, arrays)
    np.testing.assert_array_equal(data.transition.observation[:, 0], [0, 3])
    np.testing.assert_array_equal(data.remaining, [1, 1])


def test_no_successor_at_all_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"toy\.hdf5: next_observations is missing"):
        read(tmp_path, rows(3, timeouts=np.ones(3, bool), next_observations=None))


def test_column_vectors_other_types_and_own_fields(tmp_path):
    plain = read(tmp_path, rows(terminals=flags(6, 3)))
    arrays = rows(terminals=flags(6, 3).astype(np.uint8)[:, None])
    arrays["rewards"] = arrays["rewards"].astype(np.float64)[:, None]
    other = read(tmp_path, arrays)
    np.testing.assert_array_equal(plain.transition.reward, other.transition.reward)
    np.testing.assert_array_equal(plain.transition.discount, other.transition.discount)
    assert all(x.dtype == np.float32 for x in other.transition)
    own = {"timesteps": np.arange(6) + 10, "returns_to_go": np.arange(6) * 2.0}
    data = read(tmp_path, arrays | own, source=SYNTHETIC)
    np.testing.assert_array_equal(data.timestep, own["timesteps"])
    np.testing.assert_array_equal(data.return_to_go, own["returns_to_go"])
    assert int(data.source.min()) == SYNTHETIC


def test_actions_slightly_outside_are_kept_exactly(tmp_path):
    actions = np.full((6, 1), np.float32(1.0005))
    data = read(tmp_path, rows(actions=actions))
    np.testing.assert_array_equal(data.transition.action, actions)


def check_rows(data, observation, following, timestep):
    np.testing.assert_array_equal(data.transition.observation[:, 0], observation)
    np.testing.assert_array_equal(data.transition.next_observation[:, 0], following)
    np.testing.assert_array_equal(data.timestep, timestep)


def test_groups_are_ignored(tmp_path):
    arrays = rows() | {"infos/qpos": np.zeros((6, 9)), "metadata/policy/fc0/bias": np.zeros(3)}
    assert read(tmp_path, arrays).size == 6


def test_maze2d_flags_end_segments_but_nothing_terminates(tmp_path):
    goal = {"infos/goal": np.arange(12.0).reshape(6, 2)}  # not asked where there are flags
    arrays = rows(terminals=flags(6, 1), timeouts=flags(6, 3), next_observations=None)
    data = read_as(MAZE2D, tmp_path, arrays | goal)
    # The last row of a segment has no successor, a terminal one neither.
    check_rows(data, [0, 2, 4], [1, 3, 5], [0, 0, 0])
    np.testing.assert_array_equal(data.transition.discount, [1, 1, 1])
    data = read_as(MAZE2D, tmp_path, rows(terminals=flags(6, 1), timeouts=flags(6, 3)) | goal)
    check_rows(data, range(6), np.arange(6) + 0.5, [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(data.transition.discount, np.ones(6))


@pytest.mark.parametrize("timeouts", [None, np.zeros(7, bool), np.zeros((7, 1), np.uint8)])
def test_maze2d_without_flags_is_cut_where_the_target_changes(tmp_path, timeouts):
    arrays = rows(7, timeouts=timeouts, next_observations=None, rewards=flags(7, 4) * 1.0)
    goals = np.array([[1, 1], [1, 1], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2]])
    data = read_as(MAZE2D, tmp_path, arrays | {"infos/goal": goals})
    check_rows(data, [0, 2, 3, 4, 5], [1, 3, 4, 5, 6], [0, 0, 1, 2, 3])
    for own in ({}, {"infos/goal": np.ones((7, 2))}):  # no goals, or always the same
        data = read_as(MAZE2D, tmp_path, arrays | own)  # the reward falls from row 4 to row 5
        check_rows(data, [0, 1, 2, 3, 5], [1, 2, 3, 4, 6], [0, 1, 2, 3, 0])


def test_maze2d_goals_that_do_not_fit(tmp_path):
    for goals in (np.ones((5, 2)), np.ones(6)):
        path = save(tmp_path / "toy.hdf5", rows(timeouts=None) | {"infos/goal": goals})
        check_error(path, "infos/goal has shape .*each of the 6 observations", MAZE2D)
    path = save(tmp_path / "toy.hdf5", rows() | {"infos/goal": h5py.SoftLink("/rewards")})
    check_error(path, "infos/goal is a link", MAZE2D)


def test_antmaze_after_the_goal(tmp_path):
    # Two episodes: the goal in rows 2, 3 and 5 of 0-6, then 7-9 without it.
    arrays = rows(
        10, terminals=flags(10, 2, 3, 5), timeouts=flags(10, 6, 9), next_observations=None
    )
    data = read_as(ANTMAZE, tmp_path, arrays)
    check_rows(data, [0, 1, 2, 7, 8], [1, 2, 3, 8, 9], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(data.transition.discount, [1, 1, 0, 1, 1])
    np.testing.assert_array_equal(data.remaining, [3, 2, 1, 2, 1])
    np.testing.assert_array_equal(data.return_to_go, [6, 5, 3, 17, 9])
    data = read_as(ANTMAZE, tmp_path, arrays, after_goal="keep")
    kept = [0, 1, 2, 3, 4, 5, 7, 8]
    check_rows(data, kept, np.add(kept, 1), [0, 1, 2, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(data.transition.discount, [1, 1, 0, 0, 1, 0, 1, 1])
    with pytest.raises(ValueError, match="after_goal is 'drop' or 'keep', not 'cut'"):
        read_as(ANTMAZE, tmp_path, arrays, after_goal="cut")


@pytest.mark.parametrize("seed", range(5))
def test_antmaze_against_plain_loops(tmp_path, seed):
    rng = np.random.default_rng(seed)
    terminals, timeouts = rng.random(60) < 0.2, rng.random(60) < 0.15
    arrays = rows(60, terminals=terminals, timeouts=timeouts, next_observations=None)
    observation = arrays["observations"][:, 0]
    keep, drop, reached = [], [], False
    for i in range(60):
        over = timeouts[i] or i == 59
        if terminals[i] or not over:
            following = observation[i] if over else observation[i + 1]
            row = (observation[i], following, 1 - terminals[i])
            keep.append(row)
            if not reached:
                drop.append(row)
        reached = (reached or terminals[i]) and not over
    for after_goal, expected in (("keep", keep), ("drop", drop)):
        data = read_as(ANTMAZE, tmp_path, arrays, after_goal=after_goal)
        transition = data.transition
        found = (transition.observation[:, 0], transition.next_observation[:, 0])
        np.testing.assert_array_equal(np.stack([*found, transition.discount], 1), expected)
        ends = np.asarray(data.remaining) == 1
        assert ends[np.asarray(transition.discount) == 0].all()
        jumps = np.diff(transition.observation[:, 0]) != 1
        assert ends[:-1][jumps].all()


@pytest.mark.parametrize("timeouts", [None, np.zeros(2500, bool)])
def test_antmaze_without_timeouts_has_episodes_of_1001_rows(tmp_path, timeouts):
    arrays = rows(2500, terminals=flags(2500, 7), timeouts=timeouts, next_observations=None)
    data = read_as(ANTMAZE, tmp_path, arrays)
    expected = [*range(8), *range(1001, 2001), *range(2002, 2499)]
    check_rows(data, expected, np.add(expected, 1), [*range(8), *range(1000), *range(497)])


def test_antmaze_files_with_next_observations_are_whole_episodes(tmp_path):
    arrays = rows(terminals=flags(6, 1), timeouts=flags(6, 4))
    for after_goal in ("drop", "keep"):
        data = read_as(ANTMAZE, tmp_path, arrays, after_goal=after_goal)
        check_rows(data, range(6), np.arange(6) + 0.5, [0, 1, 0, 1, 2, 0])
        np.testing.assert_array_equal(data.transition.discount, 1 - flags(6, 1))


def put(name, index, value):
    array = rows()[name].astype(np.float32)
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "has no rewards; it holds actions, next_observations, observations"),
        (put("observations", (3, 1), np.nan), "observations holds nan in row 3"),
        (put("next_observations", (5, 0), np.inf), "next_observations holds inf in row 5"),
        ({"rewards": np.full(6, 1e300)}, "rewards holds inf in row 0"),
        (put("actions", (2, 0), np.nan), "actions holds nan in row 2"),
        (put("actions", (2, 0), 1.01), "actions holds 1.0[0-9]* in row 2; .*-1, 1"),
        (put("terminals", 4, 0.5), "terminals holds 0.5 in row 4; only 0 and 1"),
        (put("timeouts", 4, np.nan), "timeouts holds nan in row 4; only 0 and 1"),
        ({"actions": np.zeros((5, 1))}, "actions has 5 rows, but observations has 6"),
        ({"timeouts": np.zeros(7)}, "timeouts has 7 rows, but observations has 6"),
        ({"observations": np.zeros(6)}, r"observations has shape \[6\]; expected \[rows, col"),
        ({"rewards": np.zeros((6, 2))}, r"rewards has shape \[6, 2\]; expected \[rows\]"),
        ({"rewards": 3.0}, r"rewards has shape \[\]; expected \[rows\]"),
        ({"actions": np.array([b"left"] * 6)}, "actions holds |S4 data; expected numbers"),
        ({"actions": ["left"] * 6}, "actions holds object data; expected numbers"),
        ({"rewards": np.zeros(6, complex)}, "rewards holds complex128 data; expected numbers"),
        ({"rewards": h5py.Empty("f")}, "rewards holds object data; expected numbers"),
        ({"rewards": None, "rewards/inner": np.zeros(6)}, "rewards is a group"),
        ({k: v[:0] for k, v in rows().items()}, "observations has no rows"),
        ({"rewards": h5py.SoftLink("/terminals")}, "rewards is a link to another place"),
        ({"rewards": h5py.ExternalLink("other.hdf5", "/x")}, "rewards is a link to another"),
        (
            {"observations": np.zeros((6, 17))},
            "observations have 17 columns, but toy-v0 has 2; is this file of another environment",
        ),
        ({"actions": np.zeros((6, 3))}, "actions have 3 columns, but toy-v0 has 1"),
        ({"next_observations": np.zeros((6, 3))}, "next_observations have 3 columns"),
    ],
)
def test_bad_fields(tmp_path, changes, message):
    check_error(save(tmp_path / "toy.hdf5", rows(**changes)), message)


def check_error(path, message, task=TASK):
    with pytest.raises(UserError, match=message) as caught:
        d4rl.read(path, task)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_virtual_and_external_storage_are_refused(tmp_path):
    path = save(tmp_path / "toy.hdf5", rows(rewards=None))
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout((6,), "f4")
        layout[:] = h5py.VirtualSource("other.hdf5", "x", (6,))
        file.create_virtual_dataset("rewards", layout)
    check_error(path, "rewards is stored in another file")
    path = save(tmp_path / "toy2.hdf5", rows(rewards=None))
    (tmp_path / "raw").write_bytes(bytes(24))
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", (6,), "f4", external=[(str(tmp_path / "raw"), 0, 24)])
    check_error(path, "rewards is stored in another file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"observations,actions\n1,2\n", "is not an HDF5 file"),
        (pickle.dumps({"observations": [1.0]}), "is not an HDF5 file"),
        (b"<!DOCTYPE html><html>404</html>", "is not an HDF5 file"),
    ],
)
def test_not_hdf5(tmp_path, content, message):
    path = tmp_path / "toy.hdf5"
    path.write_bytes(content)
    check_error(path, message)


def test_missing_directory_and_truncated(tmp_path):
    check_error(tmp_path / "absent.hdf5", "no such file")
    check_error(tmp_path, "is a directory")
    whole = save(tmp_path / "toy.hdf5", rows(1000)).read_bytes()
    for size in (600, len(whole) // 2, len(whole) - 1):
        (tmp_path / "part.hdf5").write_bytes(whole[:size])
        check_error(tmp_path / "part.hdf5", "truncated or damaged")


def test_damaged_in_the_middle(tmp_path):
    path = tmp_path / "toy.hdf5"
    with h5py.File(path, "w") as file:
        for name, value in rows(2000).items():
            file.create_dataset(name, data=value, compression="gzip", fletcher32=True)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    check_error(path, "truncated or damaged")


def test_a_task_without_dimensions_checks_no_widths(tmp_path):
    task = Task("any", "", observation_dim=0, action_dim=0, episode_length=4)
    path = save(tmp_path / "toy.hdf5", rows(observations=np.zeros((6, 9)), next_observations=None))
    assert d4rl.read(path, task).transition.observation.shape == (5, 9)
