"""Where dropout acts: with fixed masks injected, networks must equal a plain numpy pass."""

import math

import flax.linen as nn
import jax
import numpy as np

from tgcvg_jax.networks.decision_transformer import DecisionTransformer
from tgcvg_jax.networks.gru import AnyStepNetwork
from tgcvg_jax.networks.transformer import TransformerPolicy

B, T, S, A, H = 2, 4, 3, 2, 6


def apply_with_masks(module, params, masks, *inputs):
    """Runs with the i-th call of dropout replaced by a product with masks[i]."""
    calls = []

    def intercept(next_function, args, kwargs, context):
        if not isinstance(context.module, nn.Dropout):
            return next_function(*args, **kwargs)
        deterministic = args[1] if len(args) > 1 else kwargs["deterministic"]
        assert not deterministic and context.module.rate == module.dropout
        calls.append(context.module.name)
        return args[0] * masks[len(calls) - 1]

    with nn.intercept_methods(intercept):
        out = jax.jit(lambda p: module.apply(p, *inputs, deterministic=False))(params)
    assert len(calls) == len(masks)
    return out


def random_params(module, *inputs):
    """No zero bias and no unit scale, so that nothing cancels."""
    init = jax.jit(lambda key: module.init(key, *inputs, deterministic=True))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape), init(jax.random.key(0)))


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def layer_norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def transformer(p, x, masks):
    masks = iter(masks)
    x = layer_norm(p["embed_norm"], dense(p["embed"], x))
    for i in range(2):
        block = p[f"block_{i}"]
        q, k, v = (dense(block["attention"][name], x) for name in ("query", "key", "value"))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(H)
        weights = np.exp(scores) * np.tril(np.ones((T, T)))
        attended = weights / weights.sum(-1, keepdims=True) @ v
        attended = attended * next(masks)  # on the attention's output, not its weights
        projected = dense(block["attention"]["out"], attended) * next(masks)
        x = layer_norm(block["norm_1"], x + projected)
        h = dense(block["mlp_out"], gelu(dense(block["mlp_in"], x))) * next(masks)
        x = layer_norm(block["norm_2"], x + h)
    mean, raw = np.split(dense(p["head"], x), 2, axis=-1)
    return mean, np.clip(p["log_std_multiplier"] * raw + p["log_std_offset"], -20, 2)


def decision_transformer(p, observation, action, return_to_go, timestep, masks):
    masks = iter(masks)
    time = p["embed_timestep"]["embedding"][timestep]
    inputs = {"return": return_to_go[..., None], "observation": observation, "action": action}
    tokens = [dense(p[f"embed_{name}"], x) + time for name, x in inputs.items()]
    x = np.stack(tokens, axis=2).reshape(B, 3 * T, H)
    x = layer_norm(p["embed_norm"], x) * next(masks)
    for i in range(2):
        block = p[f"block_{i}"]
        q, k, v = np.split(dense(block["in_proj"], layer_norm(block["norm_1"], x)), 3, axis=-1)
        causal = np.tril(np.ones((3 * T, 3 * T)))
        if i == 1:
            x, q, causal = x[:, 1::3], q[:, 1::3], causal[1::3]
        weights = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(H)) * causal
        weights = weights / weights.sum(-1, keepdims=True) * next(masks)  # on the weights
        x = x + dense(block["out_proj"], weights @ v) * next(masks)
        h = gelu(dense(block["mlp_in"], layer_norm(block["norm_2"], x)))
        x = x + dense(block["mlp_out"], h) * next(masks)
    return np.tanh(dense(p["head"], layer_norm(p["out_norm"], x)))


def any_step(p, observation, actions, k, masks):
    masks = iter(masks)
    hidden = [np.zeros((B, H))] * 2
    for j in range(k):
        x = np.concatenate([observation, actions[:, j]], axis=-1)
        for i in range(2):
            cell, h = p[f"gru_{i}"], hidden[i]
            from_x = np.split(x @ cell["input_kernel"] + cell["input_bias"], 3, axis=-1)
            from_h = np.split(h @ cell["hidden_kernel"] + cell["hidden_bias"], 3, axis=-1)
            r, z = sigmoid(from_x[0] + from_h[0]), sigmoid(from_x[1] + from_h[1])
            hidden[i] = x = (1 - z) * np.tanh(from_x[2] + r * from_h[2]) + z * h
    for i in range(3):
        y = dense(p[f"block_{i}"], x)
        y = y * sigmoid(y) * next(masks)  # after swish, before the residual sum
        x = layer_norm(p[f"norm_{i}"], x + y)
    mean, log_var = np.split(dense(p["head"], x), 2, axis=-1)
    log_var = p["max_log_var"] - softplus(p["max_log_var"] - log_var)
    return mean, p["min_log_var"] + softplus(log_var - p["min_log_var"])


def test_transformer(x64):
    module = TransformerPolicy(A, hidden_dim=H, num_blocks=2, dropout=0.3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, S))
    params = random_params(module, x)
    masks = (rng.random((6, B, T, H)) < 0.5).astype(float)
    actual = apply_with_masks(module, params, masks, x)
    expected = transformer(jax.tree.map(np.asarray, params["params"]), x, masks)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


def test_decision_transformer(x64):
    module = DecisionTransformer(A, hidden_dim=H, num_blocks=2, num_timesteps=9, dropout=0.3)
    rng = np.random.default_rng(0)
    inputs = (
        rng.normal(size=(B, T, S)), rng.normal(size=(B, T, A)), rng.normal(size=(B, T)),
        rng.integers(0, 9, (B, T)),
    )  # fmt: skip
    params = random_params(module, *inputs)
    all_tokens = [(B, 3 * T, 3 * T), (B, 3 * T, H), (B, 3 * T, H)]
    state_tokens = [(B, T, 3 * T), (B, T, H), (B, T, H)]  # all that the last block computes
    shapes = [(B, 3 * T, H), *all_tokens, *state_tokens]
    masks = [(rng.random(shape) < 0.5).astype(float) for shape in shapes]
    actual = apply_with_masks(module, params, masks, *inputs)
    p = jax.tree.map(np.asarray, params["params"])
    expected = decision_transformer(p, *inputs, masks)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


def test_any_step_network(x64):
    k = 2
    module = AnyStepNetwork(S + 1, hidden_dim=H, num_layers=2, num_blocks=3, dropout=0.3)
    rng = np.random.default_rng(0)
    observation, actions = rng.normal(size=(B, S)), rng.normal(size=(B, 3, A))
    params = random_params(module, observation, actions, k)
    masks = (rng.random((3, B, H)) < 0.5).astype(float)
    actual = apply_with_masks(module, params, masks, observation, actions, k)
    p = jax.tree.map(np.asarray, params["params"])
    expected = any_step(p, observation, actions, k, masks)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)
