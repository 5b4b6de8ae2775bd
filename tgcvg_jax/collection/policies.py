"""Policies as plain arrays: the format of `--policy=FILE.npz`."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tgcvg_jax.files import atomic_path
from tgcvg_jax.tasks import LOCOMOTION, robot_of
from tgcvg_jax.types import Task, UserError, one_line

DEFAULT_BOUNDS = (-np.inf, 2.0)  # of log_std
ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0.0), "tanh": np.tanh}


@dataclasses.dataclass(frozen=True)
class MLPPolicy:
    """A Gaussian MLP policy.

    Arrays: `W0 b0 W1 b1 ...`, hidden layers and then the mean, `x = act(W x + b)`; `log_std` [A],
    or `log_std_W, log_std_b` on the last hidden layer; optionally `log_std_bounds` [2] (without it
    at most 2) and `obs_mean, obs_std, obs_clip`. `meta` of a file is JSON with `hidden_act` (relu
    or tanh) and `squash` (tanh, or clip[-1,1]).

    Attributes:
      arrays: by these names.
      hidden_act: of the hidden layers.
      squash: how a sample comes into the box.
    """

    arrays: Mapping[str, np.ndarray]
    hidden_act: str = "relu"
    squash: str = "tanh"

    def act(self, observation: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """An action [A] for an observation [S]: sampled with `rng`, else the mean's."""
        a = self.arrays
        x = observation.astype(np.float32)
        if "obs_mean" in a:
            x = (x - a["obs_mean"]) / a["obs_std"]
            if "obs_clip" in a:
                x = np.clip(x, -a["obs_clip"], a["obs_clip"])
        activation = ACTIVATIONS[self.hidden_act]
        last = self.num_layers - 1
        for i in range(last):
            x = activation(a[f"W{i}"] @ x + a[f"b{i}"])
        u = a[f"W{last}"] @ x + a[f"b{last}"]
        if rng is not None:
            log_std = a["log_std"] if "log_std" in a else a["log_std_W"] @ x + a["log_std_b"]
            noise = rng.standard_normal(u.shape, np.float32)
            low, high = a.get("log_std_bounds", DEFAULT_BOUNDS)
            u = u + np.exp(np.clip(log_std, low, high)) * noise
        return np.tanh(u) if self.squash == "tanh" else np.clip(u, -1.0, 1.0)

    @functools.cached_property
    def num_layers(self) -> int:
        """Hidden layers and the mean's."""
        return len([name for name in self.arrays if name.startswith("W")])

    @property
    def shape(self) -> tuple[int, int]:
        """(S, A)."""
        return self.arrays["W0"].shape[1], self.arrays[f"W{self.num_layers - 1}"].shape[0]


def read_policy(path: str | Path, task: Task) -> MLPPolicy:
    """Reads a policy file for a task.

    Raises:
      UserError: no such file, no policy in it, or one of other dimensions.
    """
    path = Path(path).expanduser()
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta", "{}")))
        policy = MLPPolicy(
            {name: np.asarray(x, np.float32) for name, x in arrays.items()},
            meta.get("hidden_act", "relu"),
            meta.get("squash", "tanh"),
        )
        if policy.hidden_act not in ACTIVATIONS or policy.squash not in ("tanh", "clip[-1,1]"):
            raise ValueError(f"unknown hidden_act {policy.hidden_act} or squash {policy.squash}")
        if meta.get("time_feature"):
            raise ValueError("policies that see the time are not supported")
        policy.act(np.zeros(policy.shape[0]), np.random.default_rng(0))
        if bad := [name for name, x in arrays.items() if np.isnan(x.astype(np.float32)).any()]:
            raise ValueError(f"NaN in {bad[0]}")
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise UserError(
            f"{path}: can't be read as a policy ({one_line(e)}); expected an npz file with W0, b0, "
            "..., log_std, as BUILD.md describes"
        ) from e
    robot, made_for = robot_of(task.environment), robot_of(str(meta.get("environment", "")))
    made_for = made_for or str(meta.get("env", ""))
    if {robot, made_for} <= {r.name for r in LOCOMOTION.values()} and robot != made_for:
        raise UserError(f"{path}: is for {made_for}, but {task.name} is {robot}")
    if policy.shape != (task.observation_dim, task.action_dim):
        raise UserError(
            f"{path}: is for {policy.shape[0]} observations and {policy.shape[1]} actions, but "
            f"{task.name} has {task.observation_dim} and {task.action_dim}"
        )
    return policy


def write_policy(path: Path, policy: MLPPolicy, **meta: Any) -> None:
    """Writes a policy file, whole or not at all."""
    meta |= {"hidden_act": policy.hidden_act, "squash": policy.squash}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, meta=json.dumps(meta), **policy.arrays)
