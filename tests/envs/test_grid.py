import numpy as np
import pytest

from tgcvg_jax.envs import grid as grids
from tgcvg_jax.envs.maze2d import MAPS

SMALL = grids.parse("#####/#R.G#/###.#/#...#/#####")


def value_iteration_path(grid, start, goal):
    """The path that D4RL's tabular planner follows: greedy in Q after 50 sweeps, reward at goal."""
    cells = grid.free()
    moves = [(0, 0), *grids.MOVES]
    # Moves into walls leave the ball where it is.
    to = lambda c, m: n if grid.is_free(n := (c[0] + m[0], c[1] + m[1])) else c  # noqa: E731
    successor = np.array([[cells.index(to(c, m)) for m in moves] for c in cells])
    reward = np.array([float(c == goal) for c in cells])
    q = np.zeros(successor.shape)
    for _ in range(50):
        q = reward[:, None] + 0.99 * q.max(axis=1)[successor]
    path = [start]
    while path[-1] != goal:
        i = cells.index(path[-1])
        path.append(cells[successor[i, np.argmax(q[i])]])
        assert len(path) < 100
    return path


def test_cells():
    assert SMALL.cells("R") == [(1, 1)]
    assert SMALL.cells("RG") == [(1, 1), (1, 3)]
    assert SMALL.free() == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 1), (3, 2), (3, 3)]
    assert len(SMALL.walls()) + len(SMALL.free()) == 25
    assert not any(SMALL.is_free(c) for c in [(0, 0), (-1, 1), (1, -1), (5, 1), (1, 5), (2, 2)])


def test_distances():
    distance = grids.distances(SMALL, (1, 1))
    assert distance[1, 1] == 0
    assert distance[3, 1] == 6
    assert set(distance) == set(SMALL.free())


@pytest.mark.parametrize("maze", MAPS)
def test_paths_are_those_of_d4rls_planner(maze):
    """Also where several are equally short: the first move of the list wins."""
    grid = MAPS[maze]
    cells = grid.free()
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a in cells for b in cells]
    for k in rng.permutation(len(pairs))[:150]:
        start, goal = pairs[k]
        assert grids.shortest_path(grid, start, goal) == value_iteration_path(grid, start, goal)


def test_no_path():
    split = grids.parse("#####/#.#.#/#####")
    with pytest.raises(ValueError, match="no path"):
        grids.shortest_path(split, (1, 1), (1, 3))
