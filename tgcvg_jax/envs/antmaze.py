"""D4RL's AntMaze: a four-legged ant is to walk to a goal in a maze.

The ant is the one of D4RL (`locomotion/assets/ant.xml`): Gymnasium's has the same shape, but other
motors, another time step and other contacts, so neither policies nor data carry over. The plane's
coordinates are x along the map's columns and y along its rows, 4 metres a cell; the start cell's
centre is the origin.

`Navigator` leads a policy that walks in a given direction along the maze's shortest path, as in
the collection of D4RL's data (`generate_ant_maze_datasets.py`, `locomotion/maze_env.py`).
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

from tgcvg_jax.envs import grid as grids
from tgcvg_jax.envs.grid import Cell, Grid
from tgcvg_jax.envs.physics import d4rl_physics
from tgcvg_jax.types import UserError

CELL_SIZE = 4.0  # metres
FRAME_SKIP = 5  # simulator steps a step of the environment, which takes 0.1 s
MAX_TORQUE = 30.0  # of an action of 1
GOAL_RADIUS = 0.5
GOAL_NORM = 10.0  # length of the direction that the goal-reaching policy was trained on

MAPS = {  # of the evaluation, with one goal each
    "umaze": grids.parse("#####/#ROO#/###O#/#GOO#/#####"),
    "medium": grids.parse(
        "########/#RO##OO#/#OO#OOO#/##OOO###/#OO#OOO#/#O#OO#O#/#OOO#OG#/########"
    ),
    "large": grids.parse(
        "############/#ROOO#OOOOO#/#O##O#O#O#O#/#OOOOOO#OOO#/#O####O###O#/#OO#O#OOOOO#"
        "/##O#O#O#O###/#OO#OOO#OGO#/############"
    ),
}
# Goals while data is collected; D4RL's maps U_MAZE, BIG_MAZE and HARDEST_MAZE.
COLLECTION_GOALS = {
    "umaze": ((3, 1),),
    "medium": ((2, 6), (5, 1), (6, 5)),
    "large": ((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)),
}
_MOVES = ((0, -1), (0, 1), (1, 0), (-1, 0))  # in the order of D4RL's search, not `grid.MOVES`
# Each leg: where it points in the plane, and the range of its ankle in degrees.
_LEGS = (((1, 1), (30, 70)), ((-1, 1), (-70, -30)), ((-1, -1), (-70, -30)), ((1, -1), (30, 70)))
_MOTORS = (4, 1, 2, 3)  # the legs in the order of the actions
# The default class also holds for the walls. Legs do not collide with each other (conaffinity).
_MJCF = """
<mujoco model="antmaze">
  <compiler angle="degree"/>
  <option timestep="0.02" integrator="RK4">
    <flag warmstart="disable"/>
  </option>
  <default>
    <joint armature="1" damping="1" limited="true"/>
    <geom density="5" friction="1 .5 .5" margin=".01" solref=".02 1" solimp=".8 .8 .01"
          condim="3" contype="1" conaffinity="0"/>
    <motor gear="1" ctrllimited="true" ctrlrange="-{torque} {torque}"/>
  </default>
  <worldbody>
    <geom name="floor" type="plane" size="40 40 40" conaffinity="1"/>
    {walls}
    <body name="torso" pos="0 0 .75">
      <joint name="root" type="free" armature="0" damping="0" limited="false"/>
      <geom name="torso" type="sphere" size=".25"/>
      {legs}
    </body>
  </worldbody>
  <actuator>
    {motors}
  </actuator>
</mujoco>
"""


def centre(grid: Grid, cell: Cell) -> np.ndarray:
    """The centre of a cell, [2], in metres."""
    row, column = grid.cells("R")[0]
    return CELL_SIZE * np.array([cell[1] - column, cell[0] - row])


def _mjcf(grid: Grid) -> str:
    half = CELL_SIZE / 2
    walls = []
    for row, column in grid.walls():
        x, y = centre(grid, (row, column))
        walls.append(
            f'<geom name="wall_{row}_{column}" type="box" pos="{x} {y} 1" size="{half} {half} 1" '
            'conaffinity="1"/>'
        )
    legs = []
    for i, ((x, y), (low, high)) in enumerate(_LEGS, start=1):
        # The ankle's axis is across the leg; it is the same for opposite legs.
        axis = (-1, 1) if x == y else (1, 1)
        bone = '<geom name="{}_{}" type="capsule" size=".08" fromto="0 0 0 {} {} 0"/>'
        shoulder, thigh = (bone.format(n, i, 0.2 * x, 0.2 * y) for n in ("shoulder", "thigh"))
        legs.append(f"""
      <body name="shoulder_{i}">
        {shoulder}
        <body name="thigh_{i}" pos="{0.2 * x} {0.2 * y} 0">
          <joint name="hip_{i}" axis="0 0 1" range="-30 30"/>
          {thigh}
          <body name="shin_{i}" pos="{0.2 * x} {0.2 * y} 0">
            <joint name="ankle_{i}" axis="{axis[0]} {axis[1]} 0" range="{low} {high}"/>
            {bone.format("shin", i, 0.4 * x, 0.4 * y)}
          </body>
        </body>
      </body>""")
    motors = [f'<motor joint="{name}_{leg}"/>' for leg in _MOTORS for name in ("hip", "ankle")]
    return _MJCF.format(
        torque=MAX_TORQUE, walls="\n".join(walls), legs="\n".join(legs), motors="\n".join(motors)
    )


@functools.lru_cache
def _model(grid: Grid) -> mujoco.MjModel:
    """The simulator's model, for all environments with this maze: do not change it.

    Its warm start is off, so that a step depends on the state and the action alone.
    """
    return d4rl_physics(mujoco.MjModel.from_xml_string(_mjcf(grid)))


class AntMaze(gymnasium.Env):
    """The evaluation environments of D4RL's antmaze-*-v2.

    Observation, [29] float64: position [3], orientation as a quaternion [4], the joints' angles
    [8], and the velocities of all of these [6 + 8]; the whole state of the simulator. Action, [8]
    in [-1, 1]: the motors' torques in units of `MAX_TORQUE`. The reward is 1 and the episode ends
    if the torso comes within `GOAL_RADIUS` of the goal; a fall does not end it. The goal, which is
    not observed, is drawn at each reset: the centre of the goal's cell plus up to 1.5 metres in x
    and in y, 0.75 on average.

    Attributes:
      maze: its name.
      grid: its map.
      goal: [2] float64, in metres; may be set.
      model, data: MuJoCo's; the model is shared by all environments of the same maze.

    Args:
      maze: a key of `MAPS`.
      render_mode: None or `rgb_array`.

    Raises:
      UserError: there is no such maze.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, maze: str = "umaze", render_mode: str | None = None):
        if maze not in MAPS:
            raise UserError(f"unknown maze {maze}; choose one of {', '.join(MAPS)}")
        self.maze = maze
        self.render_mode = render_mode
        self._renderer: MujocoRenderer | None = None
        self.grid = MAPS[maze]
        self.model = _model(self.grid)
        self.data = mujoco.MjData(self.model)
        self._goal_cell = self.grid.cells("G")[0]
        self.goal = centre(self.grid, self._goal_cell)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (29,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (8,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Puts the ant to the start and draws a goal.

        Args:
          seed: see Gymnasium.
          options: `start` [2] puts the ant there instead, `goal` [2] is the goal; in metres.

        Returns:
          The observation, and an empty dict.
        """
        super().reset(seed=seed)
        options = options or {}
        self.goal = self.evaluation_goal(self.np_random)
        self.goal = np.asarray(options.get("goal", self.goal), np.float64)
        position = self.model.qpos0 + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        velocity = 0.1 * self.np_random.standard_normal(self.model.nv)
        if "start" in options:
            position[:2] = options["start"]
        self.set_state(position, velocity)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of 0.1 s; may be called after the goal has been reached, too."""
        self.data.ctrl[:] = MAX_TORQUE * np.asarray(action, np.float64)  # MuJoCo clips
        mujoco.mj_step(self.model, self.data, FRAME_SKIP)
        reached = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= GOAL_RADIUS)
        return self._observation(), float(reached), reached, False, {}

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Sets the simulator's state; what follows depends on nothing that was before.

        Args:
          qpos: [15], the first part of an observation.
          qvel: [14], the rest of it.
        """
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = qpos
        self.data.qvel[:] = qvel
        # MuJoCo did so itself in D4RL's days, so that D4RL's observations hold unit quaternions.
        mujoco.mj_normalizeQuat(self.model, self.data.qpos)
        mujoco.mj_forward(self.model, self.data)

    def render(self) -> np.ndarray | None:
        """The maze from above: [480, 480, 3] uint8."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            corners = np.array([centre(self.grid, cell) for cell in self.grid.walls()])
            camera = dict(
                lookat=np.append(corners.mean(axis=0), 0.0),
                distance=1.5 * np.ptp(corners),
                azimuth=90.0,
                elevation=-90.0,
            )
            self._renderer = MujocoRenderer(self.model, self.data, camera, 480, 480)
        return self._renderer.render("rgb_array")

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def evaluation_goal(self, rng: np.random.Generator) -> np.ndarray:
        """A goal as every reset draws one, [2]."""
        return _goal_in(self.grid, self._goal_cell, rng)

    def collection_goal(self, rng: np.random.Generator) -> np.ndarray:
        """A goal as D4RL's collection draws them, [2]: near a random one of `COLLECTION_GOALS`."""
        goals = COLLECTION_GOALS[self.maze]
        return _goal_in(self.grid, goals[rng.integers(len(goals))], rng)

    def random_goal(self, rng: np.random.Generator) -> np.ndarray:
        """A goal anywhere, [2]: near the centre of any free cell. D4RL does not say how it drew the
        goals of its `diverse` sets.
        """
        cells = self.grid.free()
        return _goal_in(self.grid, cells[rng.integers(len(cells))], rng)

    def collection_start(self, rng: np.random.Generator) -> np.ndarray:
        """A start as D4RL's multi-start collection draws them, [2]: in any cell but the goals'."""
        cells = [c for c in self.grid.free() if c not in COLLECTION_GOALS[self.maze]]
        corner = centre(self.grid, cells[rng.integers(len(cells))])
        return np.maximum(corner + rng.uniform(size=2), 0.0)


def _goal_in(grid: Grid, cell: Cell, rng: np.random.Generator) -> np.ndarray:
    """A random goal in a cell, [2]; D4RL adds both noises and never subtracts one."""
    noise = rng.uniform(size=2) + rng.uniform(high=0.5, size=2)
    return np.maximum(centre(grid, cell) + noise, 0.0)


@functools.lru_cache(maxsize=256)
def _next_cells(grid: Grid, goal: Cell) -> dict[Cell, Cell]:
    """The next cell on the way to the goal, from all free cells and from the walls beside them.

    Of several shortest ways it is D4RL's: the cell that a search from the goal comes to first.
    """
    following = {goal: goal}
    queue = deque([goal])
    while queue:
        here = queue.popleft()
        for i, j in _MOVES:
            cell = (here[0] + i, here[1] + j)
            if cell not in following:
                following[cell] = here
                if grid.is_free(cell):
                    queue.append(cell)
    return following


class Navigator:
    """Turns a policy that walks in a direction into one that walks to a goal in a maze.

    The policy is sent to the next cell of a shortest path, or to the goal itself from the goal's
    cell and the one before. There are two rules:

      `d4rl`: to the next cell's centre plus U(0, 1) metres in x and y, drawn anew at every step.
        The ant counts as in the cell whose centre it has passed last in x and y, even if that is a
        wall's; so it walks to the very middle of a crossing before it turns. That takes the noise:
        without it, the ant would stop just short of the middle.
      `centre`: to the next cell's centre, from the cell that the ant really is in.

    Args:
      grid: the maze.
      rng: draws the noise.
      rule: `d4rl` or `centre`.

    Raises:
      UserError: there is no such rule.
    """

    def __init__(self, grid: Grid, rng: np.random.Generator, rule: str = "d4rl"):
        if rule not in ("d4rl", "centre"):
            raise UserError(f"unknown waypoint rule {rule}; choose one of d4rl, centre")
        self.grid = grid
        self.rng = rng
        self.rule = rule

    def waypoint(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Where to walk next, [2], from a position [2] to a goal [2], all in metres."""
        here, there = self._cell(position), self._cell(goal)
        following = _next_cells(self.grid, there)
        if here not in following:  # on top of the walls, from where it may fall back
            here = min(following, key=lambda c: np.linalg.norm(centre(self.grid, c) - position))
        if following[here] == there:
            return np.array(goal, np.float64)
        noise = self.rng.uniform(size=2) if self.rule == "d4rl" else 0.0
        return centre(self.grid, following[here]) + noise

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """The policy's input.

        Args:
          observation: [29], of `AntMaze`.
          goal: [2], in metres.

        Returns:
          [29]: the observation without the position in the plane, then the direction of the next
          waypoint, of length `GOAL_NORM`.
        """
        direction = self.waypoint(observation[:2], goal) - observation[:2]
        direction *= GOAL_NORM / max(np.linalg.norm(direction), 1e-6)
        return np.concatenate([observation[2:], direction])

    def _cell(self, position: np.ndarray) -> Cell:
        row, column = self.grid.cells("R")[0]
        x, y = np.asarray(position) / CELL_SIZE
        if self.rule == "d4rl":
            return row + int(max(y, 0.0)), column + int(max(x, 0.0))
        return row + round(y), column + round(x)
