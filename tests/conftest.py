"""Small things that many tests share."""

import dataclasses
import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes, one GPU

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import training
from tgcvg_jax.data.dataset import make_dataset
from tgcvg_jax.learners import bc, cql, dt, iql, mcq, rebrac, td3_bc, transformer_td3bc
from tgcvg_jax.models import (
    admpo_policy,
    any_step_dynamics,
    ensemble_dynamics,
    reward_model,
    terminal_classifier,
    transformer_cql,
    transition_denoiser,
    window_denoiser,
)
from tgcvg_jax.ops.edm import Sampler
from tgcvg_jax.synthesizers import admpo, duplicate, gta, s4rl, synther, tgcvg
from tgcvg_jax.types import Learner, Task, Transition

S, A = 3, 2
# Length, and whether the episode ends in a terminal (else in a time-out).
EPISODES = ((12, True), (30, False), (7, True), (21, True), (16, False), (25, True), (30, False))


@pytest.fixture(scope="session", autouse=True)
def quick_compilation(tmp_path_factory):
    """Equal programs, such as those of a run and of its resumption, are compiled once.

    Nearly all time goes into compiling tiny programs, so the compiler is told to try less hard.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64():
    """The test runs in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def task():
    return Task("toy", "", observation_dim=S, action_dim=A, episode_length=30)


@pytest.fixture(scope="session")
def dataset(task):
    """141 transitions of a damped linear system under random actions, in 7 episodes."""
    rng = np.random.default_rng(0)
    parts, ends = [], []
    for length, terminal in EPISODES:
        action = rng.uniform(-1, 1, (length, A))
        states = [rng.normal(size=S)]
        for a in action:
            push = np.array([a[0], a[1], a[0] - a[1]])
            states.append(0.9 * states[-1] + 0.3 * push + 0.05 * rng.normal(size=S))
        states = np.stack(states)
        discount = np.ones(length)
        discount[-1] = 0.0 if terminal else 1.0
        reward = 1.0 - 0.1 * np.sum(states[1:] ** 2, axis=1)
        parts.append(Transition(states[:-1], action, reward, discount, states[1:]))
        ends.append(np.arange(length) == length - 1)
    transition = Transition(*(np.concatenate(field) for field in zip(*parts)))
    return make_dataset(task, transition, np.concatenate(ends))


@pytest.fixture(scope="session")
def dataset_x64(dataset):
    """The same with float64 fields; use it with `x64`."""
    with jax.enable_x64(True):
        wide = lambda x: jnp.asarray(x, jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731
        return jax.tree.map(wide, dataset)


@pytest.fixture(scope="session")
def configs():
    """Tiny configs by module name."""
    policy = transformer_cql.Config(
        num_steps=12, context_length=3, batch_size=5, hidden_dim=8, num_blocks=1,
        critic_hidden_dims=(8,), num_action_samples=2, initial_temperature=0.5,
    )  # fmt: skip
    dynamics = any_step_dynamics.Config(
        max_steps=2, hidden_dim=8, num_layers=1, num_blocks=1, batch_size=8, epoch_steps=4,
        validation_size=16,
    )  # fmt: skip
    window = window_denoiser.Config(
        num_steps=12, batch_size=4, horizon=7, base_dim=2, dim_mults=(1,), norm_groups=1,
        num_heads=1, head_dim=4, terminal_penalty=2.0,
    )  # fmt: skip
    transition = transition_denoiser.Config(
        num_steps=12, batch_size=8, width=8, num_layers=1, embedding_dim=8
    )
    reward = reward_model.Config(num_steps=12, batch_size=8, hidden_dims=(8,))
    sampler = Sampler(num_steps=6)
    admpo_sac = admpo_policy.Config(
        num_steps=12, max_steps=2, rollout_length=3, rollouts_per_step=2, capacity=15,
        batch_size=8, real_ratio=0.25, hidden_dims=(8,),
    )  # fmt: skip
    td3_transformer = transformer_td3bc.Config(
        num_steps=12, batch_size=8, context_length=3, hidden_dim=8, num_blocks=1,
        critic_hidden_dims=(8,), ema_start=3, ema_every=2,
    )  # fmt: skip
    return {
        "td3_bc": td3_bc.Config(num_steps=12, batch_size=8, hidden_dims=(8,)),
        "iql": iql.Config(num_steps=12, batch_size=8, hidden_dims=(8,)),
        "bc": bc.Config(num_steps=12, batch_size=8, hidden_dims=(8,), top_fraction=0.5),
        "rebrac": rebrac.Config(num_steps=12, batch_size=8, hidden_dims=(8, 8)),
        "cql": cql.Config(
            num_steps=12, batch_size=8, hidden_dims=(8,), critic_hidden_dims=(8,), lagrange=True,
            num_action_samples=2, micro_batch=4,
        ),
        "mcq": mcq.Config(
            num_steps=12, batch_size=8, hidden_dims=(8,), vae_hidden_dim=8, num_sampled_actions=2
        ),
        "dt": dt.Config(
            num_steps=12, batch_size=8, context_length=4, hidden_dim=8, num_blocks=1,
            warmup_steps=5, episode_length=40,
        ),
        "transformer_td3bc": td3_transformer,
        "transformer_cql": policy,
        "any_step_dynamics": dynamics,
        "window_denoiser": window,
        "transition_denoiser": transition,
        "reward_model": reward,
        "terminal_classifier": terminal_classifier.Config(
            num_steps=12, batch_size=8, hidden_dims=(8,)
        ),
        "ensemble_dynamics": ensemble_dynamics.Config(
            num_members=3, hidden_dims=(8, 8), batch_size=8, epoch_steps=4
        ),
        "gta": gta.Config(window, sampler, reward_model=reward, batch_size=9),
        "synther": synther.Config(transition, sampler, batch_size=9),
        "s4rl": s4rl.Config(segment_length=8, batch_size=9),
        "duplicate": duplicate.Config(top_fraction=0.7, segment_length=8, batch_size=5),
        "admpo_policy": admpo_sac,
        "admpo": admpo.Config(policy=admpo_sac, dynamics=dynamics, rollout_batch=9),
        "tgcvg": tgcvg.Config(policy=policy, dynamics=dynamics, window_length=9, rollout_batch=7),
    }


@pytest.fixture(scope="session")
def synthesizer(task, configs):
    return tgcvg.make(task, configs["tgcvg"])


@pytest.fixture(scope="session")
def model_states(synthesizer, dataset, untrained):
    return untrained(synthesizer, dataset)


@pytest.fixture(scope="session")
def untrained():
    """Initial states of a synthesizer's models, one seed."""

    def make(synthesizer, dataset):
        states = {}
        for name, learner in synthesizer.models.items():
            if callable(learner):
                learner = learner(states)
            state = training.init(learner, learner.prepare(dataset), (0,))
            states[name] = training.select_seed(state, 0)
        return states

    return make


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ToyState:
    weight: jax.Array
    best_weight: jax.Array
    best_error: jax.Array
    validations: jax.Array
    finished: jax.Array
    key: jax.Array
    step: jax.Array


class Toy:
    """A learner that costs nothing: counts steps, and reports what it is told to.

    The metric at step t is `metrics(t)`; with `errors`, validation i sees errors[i] and stops
    after one that is no improvement, keeping the value that the weight had at the best one.
    """

    def __init__(self, metric=lambda t: 1.0 * t, steps_per_update=1, errors=None, epoch=4):
        def init(key, data):
            zero = jnp.zeros(())
            none = jnp.zeros((), jnp.int32)
            return ToyState(zero, zero, jnp.full((), jnp.inf), none, jnp.zeros((), bool), key, none)

        def update(state, batch):
            noise = jax.random.normal(jax.random.fold_in(state.key, state.step))
            step = state.step + steps_per_update
            weight = state.weight + batch + noise
            state = dataclasses.replace(state, weight=weight, step=step)
            return state, {"metric": jnp.asarray(metric(step), jnp.float32), "weight": weight}

        def validate(state, data):
            error = jnp.asarray(errors, jnp.float32)[state.validations]
            better = (error < state.best_error) & ~state.finished
            state = dataclasses.replace(
                state,
                best_weight=jnp.where(better, state.weight, state.best_weight),
                best_error=jnp.where(better, error, state.best_error),
                validations=state.validations + 1,
                finished=state.finished | ~better,
            )
            return state, {"error": error}

        self.learner = Learner(
            prepare=lambda dataset: dataset.transition.reward,
            init=init,
            sample=lambda key, data: jax.random.choice(key, data),
            update=update,
            steps_per_update=steps_per_update,
            validate=validate if errors is not None else None,
            steps_per_epoch=(lambda data: epoch) if errors is not None else None,
        )


@pytest.fixture(scope="session")
def toy():
    """Makes toy learners."""
    return lambda **arguments: Toy(**arguments).learner
