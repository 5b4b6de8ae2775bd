"""Golden parameters of the denoisers in this library's layout, and states made of them."""

import golden
import jax
import jax.numpy as jnp

from tgcvg_jax.models import denoiser


def _noise_embedding(p):
    return {"mlp": {"layer_0": golden.linear(p, "time_mlp/1"),
                    "layer_1": golden.linear(p, "time_mlp/3")}}  # fmt: skip


def residual_mlp(p):
    """Parameters of SynthER's network, or their gradients."""
    layers = len({k.split("/")[2] for k in p if "/network/" in k}) - 1
    blocks = {
        f"block_{i}": golden.linear(p, f"residual_mlp/network/{i + 1}/linear")
        for i in range(layers)
    }
    return {
        "embed": golden.linear(p, "proj"),
        "noise_embedding": _noise_embedding(p),
        "expand": golden.linear(p, "residual_mlp/network/0"),
        "head": golden.linear(p, "residual_mlp/final_linear"),
        **blocks,
    }


def _columns_first(vector, channels):
    """The last axis of rows, from channel after channel to column after column."""
    width = vector.shape[-1] // channels
    split = vector.reshape(*vector.shape[:-1], channels, width)
    return split.swapaxes(-1, -2).reshape(vector.shape)


def _mixer(p, name):
    names = {"row_norm": "ln1", "row_in": "block1/net/0", "row_out": "block1/net/3",
             "time_norm": "ln2", "time_in": "block2/net/0", "time_out": "block2/net/3",
             "embed": "mlp/1"}  # fmt: skip
    make = lambda ours: golden.norm if ours.endswith("norm") else golden.linear  # noqa: E731
    params = {ours: make(ours)(p, f"{name}/{theirs}") for ours, theirs in names.items()}
    channels = params["row_in"]["bias"].shape[-1] // 4
    move = lambda x: _columns_first(x, channels)  # noqa: E731
    params["row_norm"] = {k: move(v) for k, v in params["row_norm"].items()}
    params["row_in"]["kernel"] = move(params["row_in"]["kernel"].T).T
    params["row_out"] = {k: move(v) for k, v in params["row_out"].items()}
    for ours, theirs in (("project", "output_conv"), ("skip", "res_conv")):
        if f"{name}/{theirs}/weight" in p:
            weight, bias = p[f"{name}/{theirs}/weight"], p[f"{name}/{theirs}/bias"]
            params[ours] = {"kernel": weight[..., 0, 0].T, "bias": bias}
    return params


def _attention(p, name):
    return {
        "norm": golden.norm(p, f"{name}/fn/norm"),
        "qkv_kernel": p[f"{name}/fn/fn/to_qkv/weight"][..., 0, 0].T,
        "out_kernel": p[f"{name}/fn/fn/to_out/weight"][..., 0, 0].T,
        "out_bias": p[f"{name}/fn/fn/to_out/bias"],
    }


def _conv(p, name, up=False):
    """A transposed convolution is one with the kernel turned round."""
    weight = p[f"{name}/weight"]
    kernel = weight.transpose(2, 3, 0, 1)[::-1, ::-1] if up else weight.transpose(2, 3, 1, 0)
    return {"kernel": kernel, "bias": p[f"{name}/bias"]}


def mixer_unet(p, stages=4):
    """Parameters of GTA's network, or their gradients."""
    params = {
        "noise_embedding": _noise_embedding(p),
        "condition_embedding": {"layer_0": golden.linear(p, "cond_mlp/0"),
                                "layer_1": golden.linear(p, "cond_mlp/2")},
        "middle_block_0": _mixer(p, "mid_block1"),
        "middle_attention": _attention(p, "mid_attn"),
        "middle_block_1": _mixer(p, "mid_block2"),
        "head_conv": _conv(p, "final_conv/0/block/0"),
        "head_norm": golden.norm(p, "final_conv/0/block/1"),
        "head": {"kernel": p["final_conv/1/weight"][..., 0, 0].T, "bias": p["final_conv/1/bias"]},
    }  # fmt: skip
    for i in range(stages):
        for ours, theirs in ((f"down_{i}", f"downs/{i}"), (f"up_{i}", f"ups/{i}")):
            if ours.startswith("up") and i == stages - 1:
                continue
            params[f"{ours}_block_0"] = _mixer(p, f"{theirs}/0")
            params[f"{ours}_block_1"] = _mixer(p, f"{theirs}/1")
            params[f"{ours}_attention"] = _attention(p, f"{theirs}/2")
            if f"{theirs}/3/conv/weight" in p:
                params[f"{ours}_conv"] = _conv(p, f"{theirs}/3/conv", up=ours.startswith("up"))
    return params


def training_settings(z):
    """The fields that all denoisers' configs share."""
    assert float(z["hp/weight_decay"]) == 0.0
    names = {
        "learning_rate": "lr", "beta_2": "adam_beta2", "max_grad_norm": "clip_grad_norm",
        "sigma_data": "sigma_data", "p_mean": "P_mean", "p_std": "P_std",
    }  # fmt: skip
    settings = {ours: float(z[f"hp/{theirs}"]) for ours, theirs in names.items()}
    # The golden learning rate does not fall.
    return settings | {"num_steps": 10**9, "num_periods": 1}


def initial_state(z, convert, config, normalizer):
    """The state before training; `convert` is one of the functions above."""
    p = golden.select(z, "init")
    params = jax.tree.map(jnp.asarray, convert(p))
    frequencies = jnp.asarray(p["time_mlp/0/weights"])
    return denoiser.State(
        params=params,
        ema=params,
        constants={"noise_embedding": {"frequencies": frequencies}},
        opt_state=denoiser.optimizer(config).init(params),
        normalizer=normalizer,
        key=jax.random.key(0),
        step=jnp.zeros((), jnp.int32),
    )
