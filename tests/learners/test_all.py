"""What holds for every learner."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data import concatenate
from tgcvg_jax.data.normalize import Normalizer
from tgcvg_jax.learners import LEARNERS, cql, dt, mcq, sac
from tgcvg_jax.types import SYNTHETIC, Transition

# The published values, but for `replay`; their sources are beside the fields.
TD3 = {
    "num_steps": 1_000_000, "batch_size": 256, "hidden_dims": (256, 256), "discount": 0.99,
    "tau": 0.005, "policy_noise": 0.2, "noise_clip": 0.5, "policy_freq": 2,
}  # fmt: skip
DEFAULTS = {
    "td3_bc": TD3 | {"learning_rate": 3e-4, "alpha": 2.5},
    "rebrac": TD3
    | {
        "batch_size": 1024, "hidden_dims": (256, 256, 256), "actor_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3, "actor_bc_coef": 0.01, "critic_bc_coef": 0.01,
        "normalize_q": True, "actor_layer_norm": False, "critic_layer_norm": True,
    },
    "bc": {
        "num_steps": 1_000_000, "batch_size": 256, "hidden_dims": (256, 256),
        "learning_rate": 3e-4, "top_fraction": 1.0,
    },
    "iql": {
        "num_steps": 1_000_000, "batch_size": 256, "hidden_dims": (256, 256),
        "learning_rate": 3e-4, "cosine": True, "discount": 0.99, "tau": 0.005, "expectile": 0.7,
        "beta": 3.0, "max_weight": 100.0, "deterministic": False, "tanh_mean": True,
        "min_log_std": -20.0, "max_log_std": 2.0,
    },
    "cql": {
        "num_steps": 1_000_000, "batch_size": 256, "hidden_dims": (256, 256, 256),
        "critic_hidden_dims": (256, 256, 256), "actor_init": "torch", "last_layer_gain": 0.01,
        "policy_learning_rate": 3e-5, "critic_learning_rate": 3e-4, "discount": 0.99,
        "tau": 0.005, "min_log_std": -20.0, "max_log_std": 2.0, "backup_entropy": False,
        "max_target_backup": False, "num_action_samples": 10, "cql_alpha": 10.0,
        "cql_temperature": 1.0, "clip_diff_min": None, "clip_diff_max": None, "lagrange": False,
        "target_action_gap": 5.0, "micro_batch": None,
    },
    "mcq": {
        "num_steps": 1_000_000, "batch_size": 256, "hidden_dims": (400, 400), "dropout": 0.1,
        "vae_hidden_dim": 750, "learning_rate": 3e-4, "vae_learning_rate": 1e-3, "discount": 0.99,
        "tau": 0.005, "data_weight": 0.9, "num_sampled_actions": 10, "latent_clip": 0.5,
        "min_log_std": -5.0, "max_log_std": 2.0, "initial_temperature": 1.0,
    },
    "dt": {
        "num_steps": 100_000, "context_length": 20, "batch_size": 1024, "hidden_dim": 128,
        "num_blocks": 3, "dropout": 0.1, "learning_rate": 1e-4, "warmup_steps": 10_000,
        "weight_decay": 1e-4, "max_grad_norm": 0.25, "episode_length": 1000,
        "reward_scale": 0.001, "synthetic_return_factor": 1.2, "target_return": None,
    },
    "transformer_td3bc": {
        "num_steps": 100_000, "context_length": 20, "batch_size": 256, "hidden_dim": 256,
        "num_blocks": 3, "dropout": 0.1, "critic_hidden_dims": (256, 256, 256),
        "learning_rate": 3e-4, "cosine_steps": 500_000, "cosine_interval": 1_000,
        "actor_weight_decay": 1e-4, "q_weight": 1.0, "bc_weight": 1.0, "max_grad_norm": 9.0,
        "discount": 0.99, "tau": 0.005, "ema_decay": 0.995, "ema_start": 1_000, "ema_every": 5,
        "target": "qt", "target_dropout": True,
    },
    "sac": {
        "num_steps": 3_000_000, "start_steps": 5_000, "block_steps": 50, "capacity": 1_000_000,
        "batch_size": 256, "hidden_dims": (256, 256), "learning_rate": 3e-4, "discount": 0.99,
        "tau": 0.005, "min_log_std": -20.0, "max_log_std": 2.0, "initial_temperature": 1.0,
    },
}  # fmt: skip
REPLAY = {
    "original_share": None, "statistics": "union", "normalize_states": True, "state_eps": 1e-3,
    "normalize_return": False, "reward_shift": 0.0, "reward_scale": 1.0,
}  # fmt: skip
MIXTURE = {name: REPLAY[name] for name in tuple(REPLAY)[:4]}
REPLAYS = {
    "rebrac": REPLAY | {"normalize_states": False},
    "mcq": REPLAY | {"normalize_states": False},
    "dt": MIXTURE | {"state_eps": 1e-6},
    "transformer_td3bc": MIXTURE | {"state_eps": 1e-6},
}
SAC = sac.Config(batch_size=8)


@pytest.mark.parametrize("name", DEFAULTS)
def test_published_defaults(name):
    values = dataclasses.asdict((LEARNERS | {"sac": sac})[name].Config())
    assert values.pop("replay", REPLAY) == REPLAYS.get(name, REPLAY)
    assert values == DEFAULTS[name]


def test_no_learner_is_left_out():
    assert set(DEFAULTS) == {*LEARNERS, "sac"}


@pytest.fixture(scope="module")
def fused(dataset):
    """Original rows, and synthetic ones whose actions are all 0.5."""
    action = jnp.full_like(dataset.transition.action, 0.5)
    source = jnp.full_like(dataset.source, SYNTHETIC)
    transition = dataset.transition._replace(action=action)
    return concatenate([dataset, dataset.replace(source=source, transition=transition)])


@pytest.fixture(scope="module")
def made(task, dataset, configs):
    """For each learner, on demand: itself, its data and a state."""

    @functools.cache
    def get(name):
        learner = LEARNERS[name].make(task, configs[name])
        data = learner.prepare(dataset)
        return learner, data, jax.jit(learner.init)(jax.random.key(0), data)

    return get


@pytest.mark.parametrize("name", LEARNERS)
def test_the_mixture_reaches_the_batch(task, fused, configs, name):
    """And what is done to states reaches the data."""
    replay = dataclasses.replace(configs[name].replay, original_share=0.25, normalize_states=False)
    learner = LEARNERS[name].make(task, dataclasses.replace(configs[name], replay=replay))
    data = learner.prepare(fused)
    np.testing.assert_array_equal(data.normalizer.std, np.ones(3))
    batch = jax.vmap(learner.sample, (0, None))(jax.random.split(jax.random.key(0), 5), data)
    action = (batch[0] if name == "rebrac" else batch).action
    if name in ("dt", "transformer_td3bc"):
        action = action[:, :, 0]  # the first of each window
    original = np.any(np.asarray(action) != 0.5, axis=-1)  # [5, 8], or [5, 2, 8]
    np.testing.assert_array_equal(original.sum(axis=-1), 2)


@pytest.mark.parametrize("name", LEARNERS)
def test_policies_normalise_raw_observations(made, name):
    learner, _, state = made(name)

    @jax.jit
    def act(state, observation):
        """By the mode, and drawn."""
        observation = jnp.full((4, 3), observation)
        carry, key = learner.policy.init(state, 4), jax.random.key(1)
        run = lambda mode: learner.policy.act(state, carry, observation, jnp.zeros(4), key, mode)  # noqa: E731
        return run(True)[0], run(False)[0]

    identity = state.replace(normalizer=Normalizer(jnp.zeros(3), jnp.ones(3)))
    state = state.replace(normalizer=Normalizer(jnp.full(3, 900.0), jnp.full(3, 50.0)))
    for raw, normalised, wrong in zip(act(state, 1e3), act(identity, 2.0), act(identity, 1e3)):
        assert raw.shape == (4, 2) and np.all(np.abs(raw) <= 1)
        np.testing.assert_allclose(raw, normalised, atol=1e-6)
        assert not np.allclose(raw, wrong, atol=1e-5)


@pytest.mark.parametrize("name", LEARNERS)
def test_updates_keep_the_shape_of_the_state_and_metrics_are_scalars(made, name):
    learner, data, state = made(name)
    update = lambda s: learner.update(s, learner.sample(s.key, data))  # noqa: E731
    after, metrics = jax.eval_shape(update, state)
    assert after == jax.eval_shape(lambda s: s, state)
    assert metrics and all(x.shape == () for x in metrics.values())
    assert "actor_loss" in metrics
    critic = hasattr(state, "target_critic")
    assert critic == ("critic_loss" in metrics)


def sac_noise(key, batch, config):
    return jax.random.normal(key, (2, *batch.action.shape))


# How the noise of an update is drawn: (key, batch, config) -> noise.
NOISE = {
    "cql": (cql, cql.draw_noise),
    "mcq": (mcq, mcq.draw_noise),
    "dt": (dt, lambda key, batch, config: key),
    "sac": (sac, sac_noise),
}


@pytest.mark.parametrize("name", NOISE)
def test_an_update_applies_the_noise_of_its_step(monkeypatch, task, configs, name):
    """TD3+BC and ReBRAC, whose updates are several steps, have tests of their own."""
    (module, draw), config = NOISE[name], configs.get(name, SAC)
    batch = Transition(None, jnp.zeros((8, 2)), None, None, None)

    def show_noise(state, batch, noise, *, task, config):
        return state.replace(params=noise), {"loss": jnp.array([1.0, 3.0])}

    monkeypatch.setattr(module, "apply_update", show_noise)
    update = jax.jit(module.make(task, config).update)
    fields = dict.fromkeys(field.name for field in dataclasses.fields(module.State))
    state = module.State(**fields | {"key": jax.random.key(5)})
    for step in (0, 7):
        after, metrics = update(state.replace(step=step), batch)
        assert metrics == {"loss": 2.0} and after.step == step
        expected = draw(jax.random.fold_in(state.key, step), batch, config)
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_allclose(a, b, rtol=1e-6)


def cql_draws(noise):
    """The four normal ones are parts of one array."""
    normal = (noise.policy, noise.target, noise.current, noise.next)
    return np.concatenate(normal, axis=1), np.asarray(noise.random)


def mcq_draws(noise):
    assert len(np.unique(jax.random.key_data(noise.dropout), axis=0)) == 3
    names = ("vae", "target", "prior", "ood", "policy")
    return [np.asarray(getattr(noise, name)) for name in names]


@pytest.mark.parametrize(
    ("module", "config", "draws"),
    [
        (cql, cql.Config(num_action_samples=4), cql_draws),
        (mcq, mcq.Config(num_sampled_actions=3), mcq_draws),
    ],
    ids=("cql", "mcq"),
)
def test_draws_are_independent(module, config, draws):
    """Those of one update, and of two."""
    size = 2_000
    batch = Transition(None, np.zeros((size, 2), np.float32), None, None, None)
    draw = jax.jit(lambda key: module.draw_noise(key, batch, config))
    fields = [x for key in jax.random.split(jax.random.key(0)) for x in draws(draw(key))]
    columns = np.concatenate([x.reshape(size, -1) for x in fields], axis=1)
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.12
    for a, b in itertools.combinations(map(np.ravel, fields), 2):  # as two draws from one key
        length = min(len(a), len(b))
        assert abs(np.corrcoef(a[:length], b[:length])[0, 1]) < 0.12
