"""Mazes on a grid: D4RL's maps, free cells, shortest paths."""

from __future__ import annotations

import functools
from collections import deque
from typing import NamedTuple

Cell = tuple[int, int]  # row, column
# Order in which D4RL's planner tries the moves; of several shortest paths it takes the first.
MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))


class Grid(NamedTuple):
    """A maze.

    Attributes:
      rows: `#` is a wall, anything else is free; `G` marks goals and `R` the start, where a map
        has them.
    """

    rows: tuple[str, ...]

    def cells(self, kinds: str) -> list[Cell]:
        """Cells of the given kinds, row by row."""
        return [(i, j) for i, row in enumerate(self.rows) for j, c in enumerate(row) if c in kinds]

    def free(self) -> list[Cell]:
        """All cells that are not walls, row by row."""
        return [(i, j) for i, row in enumerate(self.rows) for j, c in enumerate(row) if c != "#"]

    def walls(self) -> list[Cell]:
        """All walls, row by row."""
        return self.cells("#")

    def is_free(self, cell: Cell) -> bool:
        """Whether a cell is inside the map and not a wall."""
        i, j = cell
        inside = 0 <= i < len(self.rows) and 0 <= j < len(self.rows[0])
        return inside and self.rows[i][j] != "#"


def parse(text: str) -> Grid:
    """A map written with `/` between its rows."""
    return Grid(tuple(text.split("/")))


@functools.lru_cache(maxsize=4096)
def distances(grid: Grid, goal: Cell) -> dict[Cell, int]:
    """Steps to `goal` from every cell that it can be reached from."""
    found = {goal: 0}
    queue = deque([goal])
    while queue:
        i, j = queue.popleft()
        for di, dj in MOVES:
            cell = (i + di, j + dj)
            if grid.is_free(cell) and cell not in found:
                found[cell] = found[i, j] + 1
                queue.append(cell)
    return found


def shortest_path(grid: Grid, start: Cell, goal: Cell) -> list[Cell]:
    """Cells from `start` to `goal`, both included; ties go to the first move in `MOVES`.

    Raises:
      ValueError: there is no path.
    """
    distance = distances(grid, goal)
    if start not in distance:
        raise ValueError(f"no path from {start} to {goal}")
    path = [start]
    while path[-1] != goal:
        i, j = path[-1]
        steps = ((i + di, j + dj) for di, dj in MOVES)
        path.append(next(c for c in steps if distance.get(c, 1e9) < distance[i, j]))
    return path
