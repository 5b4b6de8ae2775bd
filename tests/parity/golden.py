"""Golden arrays of public PyTorch code, and their parameters in this library's layout.

The files hold parameters under their state-dict names with `/` for `.`.
"""

from pathlib import Path

import jax
import numpy as np

from tgcvg_jax.types import Task, Transition

DATA = Path(__file__).parent / "data"
TASK = Task("golden", "", observation_dim=5, action_dim=3, episode_length=1)


def load(name):
    """All arrays of a file."""
    with np.load(DATA / f"{name}.npz") as f:
        return {key: f[key] for key in f.files}


def select(arrays, prefix, index=None):
    """The arrays below a prefix, without it; with `index`, that entry of their leading axis."""
    prefix = prefix.rstrip("/") + "/"
    found = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    return found if index is None else {k: v[index] for k, v in found.items()}


def batch(z, u, done="dones"):
    """The transitions of update `u`."""
    return Transition(
        observation=z["in/observations"][u],
        action=z["in/actions"][u],
        reward=z["in/rewards"][u],
        discount=1.0 - z[f"in/{done}"][u],
        next_observation=z["in/next_observations"][u],
    )


def linear(p, name):
    return {"kernel": p[f"{name}/weight"].T, "bias": p[f"{name}/bias"]}


def norm(p, name):
    return {"scale": p[f"{name}/weight"], "bias": p[f"{name}/bias"]}


def mlp(p, name):
    """Layers 0, 2, 4, ... of a torch Sequential are ours 0, 1, 2, ..."""
    numbers = sorted(int(k.split("/")[1]) for k in p if k.startswith(name) and "weight" in k)
    return {f"layer_{i}": linear(p, f"{name}/{n}") for i, n in enumerate(numbers)}


def twin(first, second, name):
    """Two critics, stacked."""
    stack = lambda a, b: np.stack([a, b])  # noqa: E731
    return {"params": {"q": jax.tree.map(stack, mlp(first, name), mlp(second, name))}}


def actor(p):
    """The Transformer policy."""
    params = {
        "embed": linear(p, "embed_state"),
        "embed_norm": norm(p, "embed_ln"),
        "head": linear(p, "base_network"),
        "log_std_multiplier": p["log_std_multiplier/constant"],
        "log_std_offset": p["log_std_offset/constant"],
    }
    names = {"query": "q_net", "key": "k_net", "value": "v_net", "out": "proj_net"}
    for i in range(3):
        block = f"transformer/{i}"
        params[f"block_{i}"] = {
            "attention": {k: linear(p, f"{block}/attention/{v}") for k, v in names.items()},
            "norm_1": norm(p, f"{block}/ln1"),
            "norm_2": norm(p, f"{block}/ln2"),
            "mlp_in": linear(p, f"{block}/mlp/0"),
            "mlp_out": linear(p, f"{block}/mlp/2"),
        }
    return {"params": params}


def dynamics(p):
    """The any-step network; the bounds of the log variance may be missing."""
    params = {"head": linear(p, "model/out_layer/4")}
    for i in range(3):
        rnn = "model/rnn_layer"
        params[f"gru_{i}"] = {
            "input_kernel": p[f"{rnn}/weight_ih_l{i}"].T,
            "hidden_kernel": p[f"{rnn}/weight_hh_l{i}"].T,
            "input_bias": p[f"{rnn}/bias_ih_l{i}"],
            "hidden_bias": p[f"{rnn}/bias_hh_l{i}"],
        }
    for i in range(4):
        params[f"block_{i}"] = linear(p, f"model/out_layer/{i}/linear")
        params[f"norm_{i}"] = norm(p, f"model/out_layer/{i}/layer_norm")
    for ours, theirs in (("max_log_var", "max_logvar"), ("min_log_var", "min_logvar")):
        if theirs in p:
            params[ours] = p[theirs]
    return {"params": params}


def assert_close(actual, expected, atol=1e-10, rtol=1e-9):
    """|difference| <= 1e-10 + 1e-9 |expected| in every leaf, all of them float64."""
    actual, tree = jax.tree_util.tree_flatten_with_path(actual)
    assert tree == jax.tree.structure(expected), f"{tree}\n{jax.tree.structure(expected)}"
    for (path, ours), theirs in zip(actual, jax.tree.leaves(expected), strict=True):
        ours = np.asarray(ours)
        assert ours.dtype == np.float64, jax.tree_util.keystr(path)
        np.testing.assert_allclose(
            ours, theirs, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path)
        )
