"""Many copies of the simulator, each in a state of its own, stepped side by side.

For what a single step of `oracle` cannot tell: where a sequence of actions leads from a state of
the data, chosen beforehand (a generated trajectory replayed) or by a policy on the way.
"""

from __future__ import annotations

import contextlib

import mujoco
import numpy as np

from tgcvg_jax.envs import mujoco_warnings
from tgcvg_jax.envs.oracle import has_diverged, known_states, open_simulator
from tgcvg_jax.types import Task


class Simulation:
    """B independent runs of a task's environment, from states that observations show.

    All share one MuJoCo model; each carries its own positions, velocities and solver warm start in
    float64, so that it goes as an environment of its own would, but for rounding: x starts at 0,
    the solver's first start is a cold one, and the state is as exact as its observation is (float32
    data leaves 1e-7 of an error). Contacts let such differences grow, tenfold in some ten steps.

    Use it as a context manager.

    Args:
      task: a task whose environment has an oracle.
      observations: [B, S], raw: where the runs start.

    Attributes:
      known: [B] bool, the starting state is fully known; no velocity stands at the limit.

    Raises:
      UserError: the environment has no oracle.
    """

    def __init__(self, task: Task, observations: np.ndarray):
        self._task = task
        self._stack = contextlib.ExitStack()
        self._simulator = self._stack.enter_context(open_simulator(task))
        model = self._simulator.model
        observations = np.asarray(observations, np.float64)
        hidden = np.zeros((len(observations), model.nq + model.nv - observations.shape[1]))
        state = np.concatenate([hidden, observations], axis=1)
        self._qpos, self._qvel = state[:, : model.nq].copy(), state[:, model.nq :].copy()
        self._warm_start = np.full(self._qvel.shape, np.nan)
        actions = np.zeros((len(observations), task.action_dim))
        self.known = known_states(task, self._simulator, observations, actions)
        self._running = self.known.copy()

    @property
    def running(self) -> np.ndarray:
        """[B] bool, neither terminated nor diverged, and known; a copy."""
        return self._running.copy()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of every run that goes on.

        Args:
          actions: [B, A]; clipped to the action box. One that is not finite ends its run.

        Returns:
          observations [B, S] and rewards [B], float64, and terminated [B] bool. Runs that have
          ended before, or whose start is not known, have NaN; so has the step in which a
          simulation diverges. In AntMaze nothing terminates and all rewards are NaN: both depend
          on a goal that is no part of the observation.
        """
        simulator, data = self._simulator, self._simulator.data
        actions = np.asarray(actions, np.float64)
        box = simulator.action_space
        observations = np.full((len(actions), self._task.observation_dim), np.nan)
        rewards, terminated = np.full(len(actions), np.nan), np.zeros(len(actions), bool)
        self._running &= np.isfinite(actions).all(axis=1)
        with mujoco_warnings(lambda message: None):  # divergence is looked for below
            for i in np.flatnonzero(self._running):
                mujoco.mj_resetData(simulator.model, data)
                simulator.set_state(self._qpos[i], self._qvel[i])
                if np.isfinite(self._warm_start[i]).all():
                    data.qacc_warmstart[:] = self._warm_start[i]
                observation, reward, terminated[i], *_ = simulator.step(
                    np.clip(actions[i], box.low, box.high)
                )
                if has_diverged(data):
                    self._running[i] = terminated[i] = False
                    continue
                observations[i], rewards[i] = observation, reward
                self._qpos[i], self._qvel[i] = data.qpos, data.qvel
                self._warm_start[i] = data.qacc_warmstart
        if self._task.environment.startswith("tgcvg/AntMaze-"):
            rewards[:], terminated[:] = np.nan, False
        self._running &= ~terminated
        return observations, rewards, terminated
