import itertools
import json

import numpy as np
import pytest

from tgcvg_jax.collection.policies import MLPPolicy, read_policy, write_policy
from tgcvg_jax.tasks import ENVIRONMENTS
from tgcvg_jax.types import UserError

TASK = ENVIRONMENTS["hopper"]


def arrays(seed=0, **more):
    rng = np.random.default_rng(seed)
    sizes = (11, 6, 5, 3)
    found = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        found[f"W{i}"], found[f"b{i}"] = rng.normal(size=(b, a)), rng.normal(size=b)
    return found | {"log_std": np.full(3, -1.0)} | more


def test_the_mean_by_hand():
    a = arrays(obs_mean=np.full(11, 0.5), obs_std=np.full(11, 2.0), obs_clip=np.array(0.2))
    x = np.linspace(-3, 3, 11)
    h = np.clip((x - 0.5) / 2.0, -0.2, 0.2)
    h = np.tanh(a["W1"] @ np.tanh(a["W0"] @ h + a["b0"]) + a["b1"])
    expected = np.clip(a["W2"] @ h + a["b2"], -1, 1)
    policy = MLPPolicy(a, hidden_act="tanh", squash="clip[-1,1]")
    np.testing.assert_allclose(policy.act(x), expected, rtol=1e-5)


def test_samples_have_the_standard_deviation():
    zero = {name: 0.0 * x for name, x in arrays().items()}
    free = MLPPolicy(zero | {"log_std": np.log([0.1, 0.2, 0.3])})
    given = {k: v for k, v in zero.items() if k != "log_std"}
    given |= {"log_std_W": np.zeros((3, 5)), "log_std_b": np.log([0.1, 0.2, 0.3])}
    for policy in (free, MLPPolicy(given)):
        rng = np.random.default_rng(0)
        u = np.arctanh([policy.act(np.zeros(11), rng) for _ in range(4000)])
        np.testing.assert_allclose(u.std(axis=0), [0.1, 0.2, 0.3], rtol=0.05)


def test_round_trip(tmp_path):
    policy = MLPPolicy({k: v.astype(np.float32) for k, v in arrays().items()}, "tanh")
    write_policy(tmp_path / "p.npz", policy, step=3)
    back = read_policy(tmp_path / "p.npz", TASK)
    x = np.linspace(-1, 1, 11)
    np.testing.assert_array_equal(policy.act(x), back.act(x))
    assert (back.hidden_act, back.squash) == ("tanh", "tanh")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W0": np.zeros((6, 12))}, "12 observations and 3 actions.*11 and 3"),
        ({"b1": None}, "b1.*expected an npz file"),
        ({"W1": np.zeros((5, 9))}, "expected an npz file"),
        ({"W0": np.array(["x"])}, "expected an npz file"),
        ({"b0": np.full(6, np.nan)}, "NaN in b0"),
        ({"meta": json.dumps({"env": "HalfCheetah"})}, "is for HalfCheetah, but hopper is Hopper"),
        ({"meta": json.dumps({"environment": "tgcvg/Walker2d-v2"})}, "is for Walker2d"),
        ({"meta": json.dumps({"hidden_act": "gelu"})}, "gelu"),
        ({"meta": json.dumps({"time_feature": True})}, "see the time"),
        ({"meta": "{"}, "expected an npz file"),
        ({"meta": "[]"}, "expected an npz file"),
    ],
)
def test_files_that_are_no_policy(tmp_path, change, message):
    kept = {k: v for k, v in (arrays() | change).items() if v is not None}
    np.savez(tmp_path / "p.npz", **kept)
    with pytest.raises(UserError, match=message):
        read_policy(tmp_path / "p.npz", TASK)


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "p.npz", **arrays(), meta=np.array({"a": 1}, dtype=object))
    with pytest.raises(UserError, match="expected an npz file"):
        read_policy(tmp_path / "p.npz", TASK)
    (tmp_path / "q.npz").write_bytes(b"no zip")
    for name in ("q.npz", "absent.npz"):
        with pytest.raises(UserError, match="expected an npz file"):
            read_policy(tmp_path / name, TASK)
