"""D4RL's Maze2D: a ball with two motors in a maze, and the controller that made D4RL's data.

Own model with the constants of D4RL's `pointmaze/maze_model.py` and `waypoint_controller.py`.

Coordinates: a position is (row, column) of the grid, in cells. The ball starts 1.2 from the map's
corner and the walls 1, so that the walls stand 0.2 up and left of the whole numbers: in a free
cell i the ball's centre can be anywhere in [i - 0.6, i + 0.2].
"""

from __future__ import annotations

import functools
import math
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

from tgcvg_jax.envs import grid as grids
from tgcvg_jax.envs.grid import Cell, Grid
from tgcvg_jax.envs.physics import old_margins
from tgcvg_jax.types import UserError

MAPS = {
    "umaze": grids.parse("#####/#GOO#/###O#/#OOO#/#####"),
    "medium": grids.parse(
        "########/#OO##OO#/#OO#OOO#/##OOO###/#OO#OOO#/#O#OO#O#/#OOO#OG#/########"
    ),
    "large": grids.parse(
        "############/#OOOO#OOOOO#/#O##O#O#O#O#/#OOOOOO#OOO#/#O####O###O#/#OO#O#OOOOO#"
        "/##O#O#O#O###/#OO#OOO#OGO#/############"
    ),
}
MAX_VELOCITY = 5.0  # cells/s along each axis before a step; after one 0.24 more, at corners 2
GOAL_RADIUS = 0.5  # cells
CELL_NOISE = 0.1  # uniform, about the cell of a start or of a collector's target
_ORIGIN = 1.2  # where the ball's body stands; D4RL's walls are at the whole numbers + 1


@functools.lru_cache(maxsize=16)
def compile_model(grid: Grid) -> mujoco.MjModel:
    """The MuJoCo model of a maze. It is shared by all that ask: do not change it.

    The solver's warm start is off: a step then depends on the state and the action alone, and is
    the exact solution within 1e-13, where a warm start stops up to 1e-5 from it.
    """
    walls = "".join(
        f'<geom type="box" size=".5 .5 .2" pos="{i + 1} {j + 1} 0" rgba=".5 .4 .3 1"/>'
        for i, j in grid.walls()
    )
    goals = "".join(
        f'<site size=".15" pos="{i + _ORIGIN} {j + _ORIGIN} 0" rgba=".8 .2 .2 1"/>'
        for i, j in grid.cells("G")
    )
    height, width = len(grid.rows), len(grid.rows[0])
    model = mujoco.MjModel.from_xml_string(
        f"""
        <mujoco model="maze2d">
          <option timestep=".01" gravity="0 0 0" integrator="Euler" iterations="20">
            <flag warmstart="disable"/>
          </option>
          <default>
            <joint type="slide" damping="1"/>
            <geom density="1000" friction=".5 .1 .1" condim="1" margin=".002"
                  contype="2" conaffinity="1"/>
            <motor gear="100" ctrllimited="true" ctrlrange="-1 1"/>
          </default>
          <worldbody>
            <geom type="plane" size="{height / 2} {width / 2} 1" rgba=".9 .9 .9 1"
                  pos="{(height + 1) / 2} {(width + 1) / 2} -.2" contype="0" conaffinity="0"/>
            {walls}{goals}
            <body name="ball" pos="{_ORIGIN} {_ORIGIN} 0">
              <joint name="row" axis="1 0 0"/>
              <joint name="column" axis="0 1 0"/>
              <geom type="sphere" size=".1" contype="1" rgba=".2 .4 .8 1"/>
            </body>
          </worldbody>
          <actuator>
            <motor joint="row"/>
            <motor joint="column"/>
          </actuator>
        </mujoco>
        """
    )
    return old_margins(model)


def random_position(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """A point [2] near the middle of a random free cell: where D4RL puts starts and targets."""
    cells = grid.free()
    return cells[rng.integers(len(cells))] + rng.uniform(-CELL_NOISE, CELL_NOISE, 2)


class Maze2D(gymnasium.Env):
    """D4RL's Maze2D: 100 steps a second, no end but the registration's time limit.

    Observation [4] float64: row, column and their velocities, the whole state. Action [2] in
    [-1, 1]: forces along rows and columns. An episode starts at random, in any free cell.

    Attributes:
      grid: the maze.
      goal: [2] float64, the cell of the goal.
      model, data: MuJoCo's; the model is shared by all environments of the same maze.

    Args:
      maze: a key of `MAPS`.
      dense: whether the reward is exp(-distance to the goal); else 1 within `GOAL_RADIUS` and 0
        outside. It is paid for the state that a step leads to.
      render_mode: None or `rgb_array`.

    Raises:
      UserError: there is no such maze.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012

    def __init__(self, maze: str = "umaze", dense: bool = False, render_mode: str | None = None):
        if maze not in MAPS:
            raise UserError(f"unknown maze {maze}; choose one of {', '.join(MAPS)}")
        self.grid = MAPS[maze]
        self.dense = dense
        self.render_mode = render_mode
        self.goal = np.array(self.grid.cells("G")[0], np.float64)
        self.model = compile_model(self.grid)
        self.data = mujoco.MjData(self.model)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._renderer: MujocoRenderer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode at random, or in `options["state"]` [4]."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        if options and "state" in options:
            self.set_state(options["state"][:2], options["state"][2:])
        else:
            position = random_position(self.grid, self.np_random)
            self.set_state(position, 0.1 * self.np_random.standard_normal(2))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One hundredth of a second. Actions and velocities are clipped before it."""
        data = self.data
        data.ctrl[:] = action  # the model's range clips it
        data.qvel[:] = np.clip(data.qvel, -MAX_VELOCITY, MAX_VELOCITY)
        mujoco.mj_step(self.model, data)
        observation = self._observation()
        distance = math.dist(observation[:2], self.goal)
        reward = math.exp(-distance) if self.dense else float(distance <= GOAL_RADIUS)
        return observation, reward, False, False, {}

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Puts the ball at a position [2] with a velocity [2], both as observed."""
        self.data.qpos[:] = qpos
        self.data.qvel[:] = qvel

    def render(self) -> np.ndarray | None:
        """The maze from above, as its map reads: [480, 480, 3] uint8."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            center = [(n + 1) / 2 for n in (len(self.grid.rows), len(self.grid.rows[0]))]
            camera = dict(
                lookat=np.array([*center, 0.0]),
                distance=1.3 * max(center) * 2,
                azimuth=180.0,
                elevation=-90.0,
            )
            self._renderer = MujocoRenderer(self.model, self.data, camera, 480, 480)
        mujoco.mj_kinematics(self.model, self.data)  # a step leaves the geoms where they were
        return self._renderer.render("rgb_array")

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])


class WaypointController:
    """The controller that collected D4RL's Maze2D data: PD control along a shortest path.

    It ends at the middle of the target's cell, not at the target, as D4RL's does.

    Usage:
      controller.start(observation, target), then action, reached = controller.act(observation).

    Args:
      grid: the maze.
      rng: draws the waypoints' noise, anew for every plan.
    """

    P_GAIN = 10.0
    D_GAIN = -1.0
    RADIUS = 0.1  # a waypoint nearer than this is reached
    WAYPOINT_NOISE = 0.2  # waypoints are shifted by up to this, towards the middle of a corridor

    def __init__(self, grid: Grid, rng: np.random.Generator):
        self.grid = grid
        self.rng = rng
        self._waypoints: list[tuple[float, float]] = []  # still ahead; the last is the target

    def start(self, observation: np.ndarray, target: np.ndarray) -> None:
        """Plans a way.

        Args:
          observation: [4], or a position [2].
          target: [2], in a free cell.

        Raises:
          ValueError: the target's cell is a wall.
        """
        goal = _cell(target)
        if not self.grid.is_free(goal):
            raise ValueError(f"the target's cell {goal} is no free cell")
        path = grids.shortest_path(self.grid, self._free_cell(observation[:2]), goal)
        noise = self.rng.uniform(0.0, self.WAYPOINT_NOISE, (len(path), 2)).tolist()
        between = zip(path[1:-1], noise)
        self._waypoints = [(i - di, j - dj) for (i, j), (di, dj) in between] + [goal]

    def act(self, observation: np.ndarray) -> tuple[np.ndarray, bool]:
        """The action [2] float32 in [-1, 1], and whether the ball is at the target.

        The action keeps aiming at the target when it is reached.
        """
        row, column, row_velocity, column_velocity = observation.tolist()
        target = self._waypoints[-1]
        reached = math.dist((row, column), target) < self.RADIUS
        waypoint = target if reached else self._waypoints[0]
        if not reached and math.dist((row, column), waypoint) < self.RADIUS:
            del self._waypoints[0]  # from the next step on; the target itself stays
        force = (
            self.P_GAIN * (waypoint[0] - row) + self.D_GAIN * row_velocity,
            self.P_GAIN * (waypoint[1] - column) + self.D_GAIN * column_velocity,
        )
        return np.array([min(1.0, max(-1.0, f)) for f in force], np.float32), reached

    def random_target(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """A point [2] in a random free cell; by default drawn with the controller's `rng`."""
        return random_position(self.grid, self.rng if rng is None else rng)

    def _free_cell(self, position: np.ndarray) -> Cell:
        """The cell of a position; next to a wall, where that can be the wall's, the nearest."""
        cell = _cell(position)
        if self.grid.is_free(cell):
            return cell
        return min(self.grid.free(), key=lambda free: math.dist(free, position))


def _cell(position: np.ndarray) -> Cell:
    return round(float(position[0])), round(float(position[1]))
