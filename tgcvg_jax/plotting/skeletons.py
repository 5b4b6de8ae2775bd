"""A real trajectory and a synthetic one, drawn from their observations: a strip and an animation.

Neither OpenGL nor a display is needed. Of the planar robots an observation tells all but where they
are along the track: MuJoCo's forward kinematics says where the limbs are, and the place follows
from the observed velocity. In mazes the path is drawn from above.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from tgcvg_jax.envs import antmaze, maze2d, termination
from tgcvg_jax.envs.kinematics import Capsules, capsules, outline
from tgcvg_jax.files import atomic_path
from tgcvg_jax.plotting import drawing
from tgcvg_jax.plotting.drawing import CURVE_COLORS, SYNTHETIC_COLOR
from tgcvg_jax.tasks import robot_of
from tgcvg_jax.types import Task

STRIP_FRAMES, GIF_FRAMES = 10, 25
FRAME_MS = 90  # of the animation; the last frame stays for LAST_MS
LAST_MS = 1200
MUTED, FALLEN_COLOR, FALLEN_BACK, WALL_COLOR = "#7b8794", "#b91c1c", "#fdeaea", "#cbd2d9"
# Trunk; then the limbs of one leg from the trunk on, then of the other, which is drawn behind.
BODY_COLORS = ("#334155", "#c2410c", "#f97316", "#fdba74", "#1d4ed8", "#3b82f6", "#93c5fd")
Fallen = Callable[[np.ndarray], np.ndarray]


def trajectory_strip(
    path_png: str | os.PathLike,
    path_gif: str | os.PathLike,
    task: Task,
    real: np.ndarray,
    synthetic: np.ndarray,
) -> bool:
    """Draws frames of a real trajectory above those of a synthetic one, and both moving.

    Steps in which a robot has fallen by its environment's own rule are red; in mazes, those in
    which it is inside a wall.

    Args:
      path_png: the strip. Written whole or not at all.
      path_gif: the animation, the two beside each other.
      task: names the environment.
      real: observations [T, S], raw.
      synthetic: observations [T', S].

    Returns:
      False, with nothing written, where the environment's observations do not tell where the robot
      is: it is no planar robot and no maze.

    Raises:
      UserError: the environment can't be made.
    """
    pair = {"real": np.asarray(real, np.float64), "synthetic": np.asarray(synthetic, np.float64)}
    if min(map(len, pair.values())) == 0:
        return False
    scene = _robot_scene(task, pair) or _maze_scene(task, pair)
    if scene is None:
        return False
    drawing.save(scene.strip(), path_png)
    length = max(map(len, pair.values()))
    with atomic_path(path_gif) as temporary:
        _animate(temporary, scene, _steps(length, GIF_FRAMES))
    return True


class _Robots:
    """Draws planar robots. The camera follows them along the track.

    Args:
      task: names the figure.
      bodies: `real` and `synthetic`.
      fallen: of each, [T] bool.
    """

    def __init__(
        self, task: Task, bodies: Mapping[str, Capsules], fallen: Mapping[str, np.ndarray]
    ):
        self.task, self.bodies, self.fallen = task, bodies, fallen
        # Limbs keep their length whatever the data says, but the height may be anything: a robot
        # that has flown off or sunk gets a bit more room than the real one and is then cut.
        real = _extent([bodies["real"]])
        self.left, self.right, *both = _extent(bodies.values())
        room = 0.4 * (real[3] - real[2])
        self.left, self.right = self.left - 0.05, self.right + 0.05
        self.bottom = max(both[0], -room) - 0.08
        self.top = min(both[1], real[3] + room) + 0.08
        if (narrow := (self.top - self.bottom) / 1.3 - (self.right - self.left)) > 0:
            self.left, self.right = self.left - narrow / 2, self.right + narrow / 2

    def strip(self) -> Figure:
        """Two rows of frames at the same steps."""
        length = max(len(body.root) for body in self.bodies.values())
        steps = _steps(length, STRIP_FRAMES)
        inches = 14 / len(steps) * (self.top - self.bottom) / (self.right - self.left)
        figure = Figure(figsize=(14.4, 2 * inches + 1.3), dpi=100, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
        title = f"{self.task.name}: a real and a synthetic trajectory"
        figure.suptitle(title, fontsize=12, weight="bold")
        axes = figure.subplots(2, len(steps), squeeze=False)
        for row, name in zip(axes, self.bodies):
            for axis, t in zip(row, steps):
                self.frame(axis, name, t)
            row[0].set_ylabel(name, fontsize=11, weight="bold")
        dt = next(iter(self.bodies.values())).dt
        note = f"a step is {1000 * dt:g} ms; metres: the way since the first step"
        if any(fallen.any() for fallen in self.fallen.values()):
            note += "; red: fallen by the rule of the environment"
        figure.supxlabel(note, fontsize=8, color=MUTED)
        return figure

    def frame(self, axis: Axes, name: str, t: int) -> None:
        """One robot at one step."""
        body = self.bodies[name]
        _bare(axis)
        axis.set_aspect("equal")
        axis.set(ylim=(self.bottom, self.top))
        if t >= len(body.root):
            axis.set_xlim(self.left, self.right)
            _say(axis, "ended")
            return
        center = body.root[t]
        axis.set_xlim(center + self.left, center + self.right)
        axis.fill_between(axis.get_xlim(), self.bottom, 0, color="#eef1f4", linewidth=0, zorder=0)
        axis.axhline(0, color=MUTED, linewidth=1.2, zorder=1)
        marks = np.arange(np.ceil((center + self.left) / 0.5), (center + self.right) / 0.5) * 0.5
        axis.vlines(marks, -0.05, 0, color=MUTED, linewidth=1, zorder=1)  # every half metre
        fallen = bool(self.fallen[name][t])
        axis.set_title(f"step {t}", fontsize=9, color=FALLEN_COLOR if fallen else "black", pad=3)
        if fallen:
            axis.set_facecolor(FALLEN_BACK)
            axis.text(0.96, 0.95, "fallen", transform=axis.transAxes, ha="right", va="top",
                      fontsize=8, color=FALLEN_COLOR)  # fmt: skip
        if not np.isfinite(body.ends[t]).all():
            _say(axis, "not finite")
            return
        axis.text(0.04, 0.95, f"{center:+.2f} m", transform=axis.transAxes, va="top", fontsize=7,
                  color=MUTED)  # fmt: skip
        order = sorted(range(len(body.body)), key=lambda g: (body.body[g] <= 4, -body.body[g]))
        shapes = [outline(body.ends[t, g], body.radius[g]) for g in order]
        colors = [BODY_COLORS[(body.body[g] - 1) % len(BODY_COLORS)] for g in order]
        limbs = PolyCollection(
            shapes, facecolors=colors, edgecolors="white", linewidths=0.6, zorder=2
        )
        axis.add_collection(limbs)

    def shape(self) -> tuple[float, float]:
        """Width and height of a frame, in any unit."""
        return self.right - self.left, self.top - self.bottom


class _Mazes:
    """Draws paths from above.

    Args:
      task: names the figure.
      paths: `real` and `synthetic`, [T, 2], x to the right and y as drawn.
      walls: lower left corner and side of each.
      goal: [2], if it is known.
      down: whether y grows downwards, as rows of a map do.
    """

    def __init__(
        self,
        task: Task,
        paths: Mapping[str, np.ndarray],
        walls: np.ndarray,
        side: float,
        goal: np.ndarray | None,
        down: bool,
    ):
        self.task, self.paths, self.walls, self.side = task, paths, walls, side
        self.goal, self.down = goal, down
        points = np.concatenate(list(paths.values()))
        points = points[np.isfinite(points).all(axis=1)].reshape(-1, 2)
        if len(walls):
            self.low, self.high = walls.min(axis=0), walls.max(axis=0) + side
        else:
            margin = 0.08 * np.ptp(points, axis=0).max() + 0.2
            self.low, self.high = points.min(axis=0) - margin, points.max(axis=0) + margin
        self.inside = {name: self._inside(path) for name, path in paths.items()}

    def strip(self) -> Figure:
        """The whole paths beside each other, numbered at the same steps."""
        width, height = self.shape()
        inches = min(6.0, 6.0 * width / height)
        figure = Figure(
            figsize=(2 * inches + 0.6, inches * height / width + 1.1), dpi=100, layout="constrained"
        )
        title = f"{self.task.name}: a real and a synthetic trajectory"
        figure.suptitle(title, fontsize=12, weight="bold")
        for axis, name in zip(figure.subplots(1, 2), self.paths):
            last = len(self.paths[name]) - 1
            self.frame(axis, name, last)
            axis.set_title(name, fontsize=11, weight="bold")
            numbered = np.full((1, 2), np.inf)
            for t in _steps(last + 1, STRIP_FRAMES):
                point = self.paths[name][t]
                axis.scatter(*point, s=14, color="black", zorder=4)
                if np.abs(numbered - point).max(axis=1).min() > 0.04 * width:  # else unreadable
                    axis.annotate(f"{t}", point, (3, 3), textcoords="offset points", fontsize=7,
                                  zorder=5)  # fmt: skip
                    numbered = np.concatenate([numbered, point[None]])
        note = "ring: start; numbers: steps"
        note += "; star: goal" if self.goal is not None else ""
        note += "; red: inside a wall" if any(x.any() for x in self.inside.values()) else ""
        figure.supxlabel(note, fontsize=8, color=MUTED)
        return figure

    def frame(self, axis: Axes, name: str, t: int) -> None:
        """The path up to a step."""
        _bare(axis)
        axis.set_aspect("equal")
        axis.set(xlim=(self.low[0], self.high[0]), ylim=(self.low[1], self.high[1]))
        if self.down:
            axis.invert_yaxis()
        corners = self.side * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        squares = self.walls[:, None] + corners if len(self.walls) else []
        axis.add_collection(PolyCollection(squares, facecolors=WALL_COLOR, edgecolors=WALL_COLOR))
        color = CURVE_COLORS[0] if name == "real" else SYNTHETIC_COLOR
        path, inside = self.paths[name][: t + 1], self.inside[name][: t + 1]
        axis.plot(*path.T, color=color, linewidth=1.5, zorder=2)
        axis.scatter(*path[inside].T, s=12, color=FALLEN_COLOR, zorder=3)
        axis.scatter(*path[0], s=60, facecolors="none", edgecolors=color, zorder=3)
        axis.scatter(*path[-1], s=40, color=color, zorder=4)
        if self.goal is not None:
            axis.scatter(*self.goal, s=110, marker="*", color=CURVE_COLORS[2], zorder=3)
        axis.set_title(f"step {min(t, len(self.paths[name]) - 1)}", fontsize=9, pad=3)

    def shape(self) -> tuple[float, float]:
        """Width and height of a frame, in any unit."""
        return tuple(self.high - self.low)

    def _inside(self, path: np.ndarray) -> np.ndarray:
        """[T] bool: the middle of the robot is inside a wall."""
        if not len(self.walls):
            return np.zeros(len(path), bool)
        offset = path[:, None] - self.walls  # [T, walls, 2]
        return ((offset > 0) & (offset < self.side)).all(axis=2).any(axis=1)


def _robot_scene(task: Task, pair: Mapping[str, np.ndarray]) -> _Robots | None:
    bodies = {name: capsules(task, observations) for name, observations in pair.items()}
    if any(body is None or not np.isfinite(body.ends).any() for body in bodies.values()):
        return None
    fallen = {name: _fallen(task, observations) for name, observations in pair.items()}
    return _Robots(task, bodies, fallen)


def _maze_scene(task: Task, pair: Mapping[str, np.ndarray]) -> _Mazes | None:
    """Our mazes observe the place first; Gymnasium-Robotics' as place, goal, observation."""
    name = robot_of(task.environment)
    paths = {key: x[:, :2] for key, x in pair.items()}
    if not all(np.isfinite(path).any() for path in paths.values()):
        return None
    if name.startswith("Maze2D-"):
        grid = maze2d.MAPS[name.removeprefix("Maze2D-").removesuffix("-dense")]
        # In the ball's coordinates the walls, of side 1, stand 0.2 up and left of whole numbers.
        walls = np.array([(j - 0.7, i - 0.7) for i, j in grid.walls()])
        goal = np.array(grid.cells("G")[0][::-1], np.float64)
        flipped = {key: path[:, ::-1] for key, path in paths.items()}  # (row, column) to (x, y)
        return _Mazes(task, flipped, walls, 1.0, goal, down=True)
    if task.environment.startswith("tgcvg/AntMaze-"):
        grid, side = antmaze.MAPS[name.removeprefix("AntMaze-")], antmaze.CELL_SIZE
        walls = np.array([antmaze.centre(grid, cell) - side / 2 for cell in grid.walls()])
        goal = antmaze.centre(grid, grid.cells("G")[0])
        return _Mazes(task, paths, walls, side, goal, down=True)
    if name.startswith(("PointMaze_", "AntMaze_")):
        goal = pair["real"][0, 2:4]
        return _Mazes(task, paths, np.zeros((0, 2)), 1.0, goal, down=False)
    return None


def _fallen(task: Task, observations: np.ndarray) -> np.ndarray:
    """[T] bool; all False where the environment has no rule."""
    rule: Fallen | None = termination.rule(task)
    if rule is None:
        return np.zeros(len(observations), bool)
    return np.asarray(rule(observations), bool)


def _animate(path: os.PathLike, scene: _Robots | _Mazes, steps: np.ndarray) -> None:
    width, height = scene.shape()
    inches = min(3.6, 4.0 * width / height)
    size = 2 * inches + 0.2, inches * height / width + 0.75
    frames = []
    for t in steps:
        figure = Figure(figsize=size, dpi=80)
        for i, name in enumerate(("real", "synthetic")):
            box = (i / 2 + 0.01, 0.02, 0.48, 1 - 0.65 / size[1])
            axis = figure.add_axes(box)
            scene.frame(axis, name, int(t))
            figure.text(i / 2 + 0.25, 1 - 0.06 / size[1], name, ha="center", va="top",
                        fontsize=11, weight="bold")  # fmt: skip
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        frames.append(image.quantize(64, dither=Image.Dither.NONE))
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0,
                   disposal=1, optimize=True)  # fmt: skip


def _steps(length: int, count: int) -> np.ndarray:
    """At most `count` steps from the first to the last, equally far apart."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(int))


def _extent(bodies: Iterable[Capsules]) -> tuple[float, float, float, float]:
    """Least and largest x, relative to the root, and z of any limb."""
    x, z = [], []
    for body in bodies:
        reach = body.radius[None, :, None]
        relative = body.ends[..., 0] - body.root[:, None, None]
        x += [np.nanmin(relative - reach), np.nanmax(relative + reach)]
        z += [np.nanmin(body.ends[..., 1] - reach), np.nanmax(body.ends[..., 1] + reach)]
    return min(x), max(x), min(0.0, *z), max(z)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#e4e7eb")


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=9,
              color=MUTED, style="italic")  # fmt: skip
