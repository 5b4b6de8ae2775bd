"""The policy that made data, as its run used it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tgcvg_jax import config as config_lib
from tgcvg_jax import training
from tgcvg_jax.evaluation import loading
from tgcvg_jax.types import Policy, PyTree, UserError

HISTORY = 20  # real steps that a policy is told before it acts, if nothing says how many


class Generator(NamedTuple):
    """A policy, and how the run that made the data used it.

    Attributes:
      policy: how its state acts.
      state: of one seed.
      about: what tells it from others, ready for JSON.
      history: real steps that it is told before it acts, if it takes any.
      deterministic: act by the mode, rather than by a sample.
      return_factor: a policy conditioned on a return asks for this times the recorded one.
    """

    policy: Policy
    state: PyTree
    about: dict[str, Any]
    history: int = HISTORY
    deterministic: bool = False
    return_factor: float = 1.0


def recorded(config: Mapping[str, Any], own: Path) -> tuple[Path, int | None]:
    """Where the policy of a run is, and which of its seeds it is, None for the first.

    It is the run's own, that of another run, or a learner's.

    Args:
      config: the run's config.json; {} if there is none.
      own: folder of the run's own policy, <env>/<label>/policy.
    """
    try:
        if "generator" in config:
            generator = config["generator"]
            return Path(generator["folder"]).expanduser(), generator.get("seed")
        if other := config.get("models_from", {}).get("policy"):
            return own.parents[1] / other / own.name, None
    except (AttributeError, KeyError, TypeError):
        pass
    return own, None


def usage(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a run has its policy act, fields of `Generator`; those that its config.json tells."""
    settings = config.get("config")
    if not isinstance(settings, dict):
        return {}
    told = {
        "deterministic": settings.get("deterministic_policy"),
        "return_factor": settings.get("return_factor"),
    }
    if isinstance(policy := settings.get("policy"), dict) and "context_length" in policy:
        told["history"] = policy["context_length"] - 1
    return {name: value for name, value in told.items() if value is not None}


def make(trained: loading.Trained, seed: int | None = None, **settings: Any) -> Generator:
    """One seed of a trained policy as a generator.

    Args:
      trained: it has a policy.
      seed: which of its seeds; None: the first.
      settings: fields of `Generator`, from `usage`.

    Raises:
      UserError: it has no such seed.
    """
    seed = trained.seeds[0] if seed is None else seed
    if seed not in trained.seeds:
        raise UserError(f"the policy of the run is that of seed {seed}, but its checkpoint has "
                        f"{trained.seeds} now; measure without it: --generator=none")  # fmt: skip
    state = training.select_seed(trained.state, trained.seeds.index(seed))
    about = {
        "kind": trained.kind,
        "seed": seed,
        "step": int(state.step),
        "config": json.loads(json.dumps(config_lib.to_dict(trained.config))),  # tuples as lists
        "crc32": checksum(state),
    }
    return Generator(trained.learner.policy, state, about, **settings)


def checksum(tree: PyTree) -> str:
    """Of all numbers in a pytree."""
    value = 0
    for leaf in jax.tree.leaves(tree):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        value = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, value)
    return f"{value:08x}"
