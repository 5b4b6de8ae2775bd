"""The real simulator as ground truth for single steps: set a state, act, compare.

In Hopper, Walker2d and HalfCheetah an observation is the whole state but for the x coordinate, on
which nothing depends; in D4RL's mazes it is the whole state. So the true successor of any (state,
action) is known, also of those that a model made up.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator

import gymnasium
import mujoco
import numpy as np

from tgcvg_jax.envs import make, mujoco_warnings
from tgcvg_jax.types import Task, Transition, UserError

# How the ids of environments with an oracle begin, after the namespace, and the largest
# |velocity| that their observations can show: Gymnasium clips there, and the rest is lost.
VELOCITY_LIMIT = {
    "Hopper-v": 10.0,
    "Walker2d-v": 10.0,
    "HalfCheetah-v": np.inf,
    "Maze2D-": np.inf,
    "AntMaze-": np.inf,
}
# Data that follows its simulator may be off by more than OFF in a few transitions; in recordings
# of Gymnasium's v2 and v4 robots 0.4 % are at worst (HalfCheetah), and 14 % at best where capsules,
# contacts or friction are those of another version.
OFF = 1e-2
OFF_SHARE = 0.05

# Rows are stepped in pieces of CHUNK; from PARALLEL on, other processes are worth their start.
CHUNK = 1_000
PARALLEL = 100_000

# MuJoCo resets a diverged simulation by itself; only these counters tell.
_DIVERGED = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


def require(task: Task) -> float:
    """The velocity limit of the task's environment; a UserError if it has no oracle."""
    if (limit := _velocity_limit(task)) is not None:
        return limit
    known = ", ".join(prefix.split("-")[0] for prefix in VELOCITY_LIMIT)
    raise UserError(
        f"no one-step oracle for environment {task.environment or '(none)'}; there is one "
        f"for {known}"
    )


def is_known(task: Task) -> bool:
    """Whether the task's environment has an oracle."""
    return _velocity_limit(task) is not None


def one_step(
    task: Task,
    observations: np.ndarray,
    actions: np.ndarray,
    *,
    processes: int = 1,
    advance: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the simulator does in given states under given actions.

    Rows are independent of each other: the solver's warm start is cleared between them. So many
    rows may be split over processes, with the same numbers. These are started afresh, not forked
    (JAX has threads): a script that asks for them must have an `if __name__ == "__main__"`.

    Args:
      task: a task whose environment has an oracle (see `VELOCITY_LIMIT`).
      observations: [B, S], raw.
      actions: [B, A]; clipped to the action box.
      processes: how many step the rows; 1: this one alone. Others are worth their start from
        `PARALLEL` rows on, see also `num_cpus`.
      advance: called with the number of rows done, piece by piece.

    Returns:
      next_observations [B, S] and rewards [B], float64, and valid [B] bool. Where `valid` is False
      the other two are NaN: the state is not finite, or a velocity stands at the limit so that the
      true one is unknown, or the simulation diverged. In AntMaze all rewards are NaN: they depend
      on a goal that is drawn anew at each reset and is no part of the observation.

    Raises:
      UserError: the environment has no oracle.
    """
    require(task)
    pieces = [slice(i, i + CHUNK) for i in range(0, max(len(observations), 1), CHUNK)]
    done = {}
    if min(processes, len(pieces)) > 1:
        try:
            for i, result in _in_processes(task, observations, actions, pieces, processes):
                done[i] = result
                if advance:
                    advance(len(result[1]))
        except concurrent.futures.BrokenExecutor:
            warnings.warn("helper processes cannot be started; going on in this one", stacklevel=2)
    with open_simulator(task) as simulator:
        for i, piece in enumerate(pieces):
            if i not in done:
                done[i] = _one_step(task, simulator, observations[piece], actions[piece])
                if advance:
                    advance(len(done[i][1]))
    return tuple(np.concatenate(x) for x in zip(*(done[i] for i in range(len(pieces)))))


def check_physics(task: Task, transition: Transition, rows: int = 200, seed: int = 0) -> str | None:
    """Whether recorded transitions are those of the task's simulator.

    A share of rows is judged, not their median: contact margins and friction, for example, matter
    only while a foot is on the floor.

    Args:
      task: any task.
      transition: fields [M, ...] as the file has them, raw. Rows with discount 0 are not looked at:
        in some files their next observation is the next episode's first.
      rows: size of the random sample.
      seed: of the sample.

    Returns:
      None if they agree, or if that cannot be known: no oracle, no row with a full state. Else one
      line for the user, which names the version of the environment that does agree, if one does.
    """
    error = _sampled_errors(task, transition, rows, seed)
    if not error.size or _share_off(error) <= OFF_SHARE:
        return None
    answer = "perhaps it was collected in another environment, or changed since"
    for other in _versions(task):
        other_error = _sampled_errors(other, transition, rows, seed)
        if other_error.size and _share_off(other_error) <= OFF_SHARE:
            name = other.environment
            answer = f"it follows {name}, so use --env={name} --dataset=FILE"
            break
    return (
        f"the data does not follow the simulator {task.environment}: {_share_off(error):.0%} of "
        f"{error.size} sampled steps are off by more than {OFF} (median {np.median(error):.1g}). "
        f"Scores are comparable only in the simulator of the data; {answer}"
    )


def dynamics_error(
    task: Task,
    observation: np.ndarray,
    action: np.ndarray,
    next_observation: np.ndarray,
    reward: np.ndarray,
    scale: np.ndarray | float = 1.0,
) -> dict[str, float | int | np.ndarray]:
    """One-step error of predicted transitions against the simulator.

    Args:
      task: a task whose environment has an oracle.
      observation: [B, S], raw.
      action: [B, A].
      next_observation: [B, S], the prediction.
      reward: [B], the prediction.
      scale: [S] or a scalar, the unit of the state's errors: usually the data's standard deviation
        of the observations, or of their one-step changes.

    Returns:
      rms: root mean square over rows and dimensions, in units of `scale`.
      median: median absolute error over rows and dimensions, in units of `scale`.
      rms_per_dimension: [S], in units of `scale`.
      reward_rms: in the reward's own unit; NaN in AntMaze, see `one_step`.
      no_change_rms, no_change_median: the same of the predictor s' = s, the bar to beat.
      num_rows: rows compared.
      num_masked: rows left out because their true successor is unknown.
      All errors are NaN if no row is left.

    Raises:
      UserError: the environment has no oracle.
    """
    truth, true_reward, valid = one_step(task, observation, action)
    error = ((np.asarray(next_observation, np.float64) - truth) / scale)[valid]
    no_change = ((np.asarray(observation, np.float64) - truth) / scale)[valid]
    reward_error = (np.asarray(reward, np.float64) - true_reward)[valid]
    return dict(
        rms=_rms(error),
        median=_median(error),
        rms_per_dimension=np.array([_rms(column) for column in error.T]),
        reward_rms=_rms(reward_error),
        no_change_rms=_rms(no_change),
        no_change_median=_median(no_change),
        num_rows=int(valid.sum()),
        num_masked=int((~valid).sum()),
    )


def _velocity_limit(task: Task) -> float | None:
    name = task.environment.split("/")[-1]
    limits = (limit for prefix, limit in VELOCITY_LIMIT.items() if name.startswith(prefix))
    return next(limits, None)


@contextlib.contextmanager
def open_simulator(task: Task) -> Iterator[gymnasium.Env]:
    """The bare environment: it counts no steps and so never truncates."""
    require(task)
    env = make(task)
    env.reset(seed=0)  # some have no goal before
    try:
        yield env.unwrapped
    finally:
        env.close()


def known_states(
    task: Task, simulator: gymnasium.Env, observations: np.ndarray, actions: np.ndarray
) -> np.ndarray:
    """[B] bool: the true state and the action are known. The velocities come last."""
    velocity = observations[:, -simulator.model.nv :]
    known = np.isfinite(observations).all(axis=1) & np.isfinite(actions).all(axis=1)
    return known & (np.abs(velocity) < require(task)).all(axis=1)


def has_diverged(data: mujoco.MjData) -> bool:
    """Whether MuJoCo has given up on the state since the last `mj_resetData`."""
    return any(data.warning[kind].number for kind in _DIVERGED)


def _one_step(
    task: Task, simulator: gymnasium.Env, observations: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`one_step` in a simulator that is there already."""
    observations = np.asarray(observations, np.float64)
    actions = np.asarray(actions, np.float64)
    model, data = simulator.model, simulator.data
    valid = known_states(task, simulator, observations, actions)
    next_observations = np.full_like(observations, np.nan)
    rewards = np.full(len(observations), np.nan)
    hidden = np.zeros(model.nq + model.nv - observations.shape[1])  # x, or nothing
    # Clipping is all that the wrappers do to a step.
    actions = np.clip(actions, simulator.action_space.low, simulator.action_space.high)
    with mujoco_warnings(lambda message: None):  # divergence is counted below
        for i in np.flatnonzero(valid):
            mujoco.mj_resetData(model, data)
            state = np.concatenate([hidden, observations[i]])
            simulator.set_state(state[: model.nq], state[model.nq :])
            next_observation, reward, *_ = simulator.step(actions[i])
            if has_diverged(data):
                valid[i] = False
            else:
                next_observations[i], rewards[i] = next_observation, reward
    if task.environment.startswith("tgcvg/AntMaze-"):
        rewards[:] = np.nan
    return next_observations, rewards, valid


def _in_processes(
    task: Task,
    observations: np.ndarray,
    actions: np.ndarray,
    pieces: list[slice],
    processes: int,
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """(number, results) of the pieces as other processes finish them."""
    pool = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(pieces)), multiprocessing.get_context("spawn"), _start_worker, (task,)
    )
    try:
        futures = {
            pool.submit(_work, observations[piece], actions[piece]): i
            for i, piece in enumerate(pieces)
        }
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_worker = None  # in a helper process: its task and simulator, and what keeps it open


def _start_worker(task: Task) -> None:
    """What a helper process does first."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    threading.Thread(target=_follow_parent, daemon=True).start()
    stack = contextlib.ExitStack()
    _worker = task, stack.enter_context(open_simulator(task)), stack


def _follow_parent() -> None:
    """Ends a helper process whose parent was killed; it would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(
    observations: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One piece of `one_step`, in a helper process."""
    task, simulator, _ = _worker
    return _one_step(task, simulator, observations, actions)


def num_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sampled_errors(task: Task, transition: Transition, rows: int, seed: int) -> np.ndarray:
    """Largest absolute error of each of up to `rows` random transitions of known successor.

    None of them if the environment has no oracle, or cannot be made.
    """
    size = len(transition.observation)
    # In fast gaits nine of ten rows have a clipped velocity.
    sample = np.random.default_rng(seed).choice(size, min(size, 50 * rows), replace=False)
    observation, action, _, discount, next_observation = (
        np.asarray(field[sample], np.float64) for field in transition
    )
    try:
        with open_simulator(task) as simulator:
            known = known_states(task, simulator, observation, action) & (discount > 0)
            known &= np.isfinite(next_observation).all(axis=1)
            chosen = np.flatnonzero(known)[:rows]
            truth, _, valid = _one_step(task, simulator, observation[chosen], action[chosen])
    except UserError:
        return np.zeros(0)
    return np.abs(truth - next_observation[chosen]).max(axis=1)[valid]


def _share_off(error: np.ndarray) -> float:
    return float(np.mean(error > OFF))


def _versions(task: Task) -> list[Task]:
    """The task in the other versions of its robot, as they are; none for mazes."""
    robot, version = task.environment.split("/")[-1].split("-", 1)
    if not version.startswith("v") or task.environment_kwargs:
        return []
    names = (f"{robot}-v4", f"tgcvg/{robot}-v2", f"{robot}-v5", f"tgcvg-minari/{robot}-v5")
    return [dataclasses.replace(task, environment=n) for n in names if n != task.environment]


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else float("nan")


def _median(x: np.ndarray) -> float:
    return float(np.median(np.abs(x))) if x.size else float("nan")
