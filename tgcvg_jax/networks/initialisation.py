"""Fast initialisation of networks with hundreds of parameters."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from tgcvg_jax.types import Array, PRNGKey, PyTree


def initialise(network: nn.Module, key: PRNGKey, *inputs: Any) -> PyTree:
    """What `network.init(key, *inputs)` returns, equal in distribution, with one draw for all.

    Flax draws each parameter by itself, and for the 250 of a U-Net XLA compiles that for longer
    than a training step.

    Args:
      network: its kernels and biases start as in PyTorch, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), where
        the fan-in of a kernel is its size without the last axis. A bias `bias` or `x_bias` belongs
        to the kernel beside it, `kernel` or `x_kernel`; without one it belongs to a norm and starts
        from 0, and `scale` from 1. Variables that are no parameters start from N(0, 1).
      key: for the draws.
      *inputs: of the network; only shapes and types matter.

    Returns:
      The variables, by collection.
    """
    variables = flatten_dict(jax.eval_shape(network.init, key, *inputs))
    params_key, others_key = jax.random.split(key)
    drawn: dict[tuple[str, ...], Array] = {}
    uniform = {}  # bound by path
    for path, leaf in variables.items():
        kernel = variables.get((*path[:-1], path[-1].replace("bias", "kernel")))
        if path[0] != "params":
            others_key, leaf_key = jax.random.split(others_key)
            drawn[path] = jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        elif path[-1] == "scale":
            drawn[path] = jnp.ones(leaf.shape, leaf.dtype)
        elif kernel is None:
            drawn[path] = jnp.zeros(leaf.shape, leaf.dtype)
        else:
            uniform[path] = math.prod(kernel.shape[:-1]) ** -0.5
    sizes = [math.prod(variables[path].shape) for path in uniform]
    draws = jax.random.uniform(params_key, (sum(sizes),), minval=-1.0, maxval=1.0)
    start = 0
    for (path, bound), size in zip(uniform.items(), sizes, strict=True):
        leaf = variables[path]
        flat = bound * draws[start : start + size]
        drawn[path] = flat.reshape(leaf.shape).astype(leaf.dtype)
        start += size
    return unflatten_dict({path: drawn[path] for path in variables})
