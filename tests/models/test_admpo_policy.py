import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import config as config_lib
from tgcvg_jax import training
from tgcvg_jax.checkpoint import Checkpointer
from tgcvg_jax.data import windows
from tgcvg_jax.envs import termination
from tgcvg_jax.evaluation import loading
from tgcvg_jax.learners import sac
from tgcvg_jax.models import admpo_policy as admpo
from tgcvg_jax.models import any_step_disagreement, any_step_dynamics
from tgcvg_jax.types import UserError

STEPS = 8


@pytest.fixture(scope="module")
def robot(task):
    """The toy task with a rule for its end, under which about every third state is healthy."""
    bounds = {"healthy_z_range": [-1.0, 1.0], "healthy_angle_range": [-1.0, 1.0]}
    return dataclasses.replace(task, environment="Hopper-v4", environment_kwargs=json.dumps(bounds))


@pytest.fixture(scope="module")
def config(configs):
    return dataclasses.replace(configs["admpo_policy"], dynamics_dropout=False)


@pytest.fixture(scope="module")
def dynamics_config(configs):
    return configs["any_step_dynamics"]


@pytest.fixture(scope="module")
def dynamics(model_states):
    return model_states["dynamics"]


def scaled(dynamics, factor):
    """The same model with its predictions of change, reward and log variance times a factor."""
    scale = lambda path, x: factor * x if "head" in jax.tree_util.keystr(path) else x  # noqa: E731
    params = jax.tree_util.tree_map_with_path(scale, dynamics.best_params)
    return dynamics.replace(best_params=params)


@pytest.fixture(scope="module")
def run(dataset, config, dynamics_config, dynamics, task):
    """The first updates of a learner one by one: states [T + 1, ...], batches and metrics [T]."""
    learner = admpo.make(task, config, dynamics_config, dynamics)
    data = learner.prepare(dataset)

    @jax.jit
    def all_steps(data):
        def step(state, i):
            batch = learner.sample(jax.random.fold_in(jax.random.key(7), i), data)
            after, metrics = learner.update(state, batch)
            return after, (after, batch.replace(dynamics=None), metrics)

        state = learner.init(jax.random.key(3), data)
        rest = jax.lax.scan(step, state, jnp.arange(STEPS))[1]
        return state, rest

    @functools.cache
    def get(factor=1.0):
        scaled_data = data.replace(dynamics=scaled(dynamics, factor))
        first, (states, batches, metrics) = all_steps(scaled_data)
        join = lambda a, b: jnp.concatenate([a[None], b])  # noqa: E731
        return jax.device_get((jax.tree.map(join, first, states), batches, metrics))

    return get


def at(tree, index):
    return jax.tree.map(lambda x: np.asarray(x[index]), tree)


def written(states, config, step, task):
    """The transitions that update `step` wrote into the ring."""
    position = step % (config.ring_size // config.num_particles) * config.num_particles
    rows = states.ring.rows[step + 1, position : position + config.num_particles]
    return jax.tree.map(np.asarray, windows.unpack(rows, task.observation_dim, task.action_dim))


def test_disagreement_is_the_spread_of_the_means():
    mean = np.random.default_rng(0).normal(size=(3, 5, 4))
    expected = [np.sqrt(np.mean([np.var(mean[:, i, d]) for d in range(4)])) for i in range(5)]
    np.testing.assert_allclose(any_step_disagreement.disagreement(mean), expected, rtol=1e-5)
    assert np.all(any_step_disagreement.disagreement(mean[:1]) == 0.0)


def test_penalty_grows_with_disagreement(task, dataset, dynamics, dynamics_config):
    """The same state at all steps back: whatever the predictions differ by is the model's."""
    observation = jnp.repeat(dataset.transition.observation[:6, None], 2, axis=1)
    action = windows.take_windows(dataset.transition.action, jnp.arange(6), 2)
    noise, steps_back = jax.random.normal(jax.random.key(0), (6, 4)), jnp.ones(6, jnp.int32)

    @jax.jit
    def error(dynamics):
        return any_step_disagreement.step_model(
            dynamics, observation, action, noise, steps_back, None,
            task=task, config=dynamics_config,
        )[2]  # fmt: skip

    none, some, more = (np.asarray(error(scaled(dynamics, factor))) for factor in (0.0, 1.0, 3.0))
    assert np.all(none == 0.0) and np.all(some > 1e-5)
    np.testing.assert_allclose(more, 3.0 * some, rtol=1e-3)


def test_the_ring_holds_what_the_model_predicts(run, task, config, dynamics, dynamics_config):
    """Step by step, from the predictions of `any_step_dynamics`, in plain numpy."""
    states, _, _ = run()
    p, m = config.num_particles, config.max_steps
    particles, actor_params = jax.tree.map(
        lambda x: x[0], (states.particles, states.params["actor"])
    )
    keys = jax.random.split(jax.random.fold_in(states.key[0], 0), 3)
    noise = admpo.draw_noise(keys[0], p, task, config)

    observation = np.asarray(particles.observation)
    actor, _ = sac.make_networks(task, admpo.sac_config(config))
    mean, log_std = jax.jit(lambda p, x: sac.distribution(actor, p, x, admpo.sac_config(config)))(
        actor_params, observation[:, -1]
    )
    action = np.tanh(mean + np.exp(log_std) * noise.action)
    actions = np.concatenate([particles.action, action[:, None]], axis=1)
    padded = np.concatenate([actions, np.zeros_like(actions)], axis=1)  # what comes later is unseen

    @jax.jit
    def predict(first, actions, k):
        return any_step_dynamics.predict(
            dynamics.best_params, dynamics, first, actions, k, None, task=task,
            config=dynamics_config,
        )  # fmt: skip

    predictions = []
    for k in range(1, m + 1):
        first = observation[:, m - k]
        mean, log_var = predict(first, padded[:, m - k : 2 * m - k], k)
        mean = np.asarray(mean) + np.pad(first, ((0, 0), (0, 1)))
        predictions.append((mean, mean + np.exp(log_var / 2) * noise.dynamics))

    row = written(states, config, 0, task)
    spread = np.std([mean[:, :-1] for mean, _ in predictions], axis=0)
    penalty = config.penalty * np.sqrt(np.mean(np.square(spread), axis=-1))
    assert set(np.asarray(noise.steps_back)) == {1, 2} and np.all(penalty > 0)
    for i, k in enumerate(np.asarray(noise.steps_back)):
        sample = predictions[k - 1][1][i]
        np.testing.assert_allclose(row.next_observation[i], sample[:-1], atol=1e-5)
        np.testing.assert_allclose(row.reward[i], sample[-1] - penalty[i], atol=1e-5)
    np.testing.assert_allclose(row.action, action, atol=1e-5)
    np.testing.assert_array_equal(row.observation, observation[:, -1])
    assert np.all(row.discount == 1.0)


def test_rollouts_end_in_time_and_start_in_the_data(run, task, config, dataset):
    states, _, _ = run()
    real = np.asarray(windows.pack(dataset.transition))
    ends = np.asarray(dataset.remaining) == 1
    age = np.asarray(states.particles.age)
    assert age.min() == 0 and age.max() == config.rollout_length - 1
    assert len(set(age[0])) == config.rollout_length  # not all start at once
    for step in range(STEPS):
        p = at(states.particles, step + 1)
        row = written(states, config, step, task)
        restarted = age[step] == config.rollout_length - 1
        assert restarted.any() and np.all(age[step + 1][restarted] == 0)
        assert np.all(age[step + 1][~restarted] == age[step][~restarted] + 1)
        # Those that go on stand where the model took them, and remember the way.
        goes_on = p.observation[~restarted]
        np.testing.assert_array_equal(goes_on[:, -1], row.next_observation[~restarted])
        np.testing.assert_array_equal(goes_on[:, -2], row.observation[~restarted])
        np.testing.assert_array_equal(p.action[~restarted, -1], row.action[~restarted])
        for observation, action in zip(p.observation[restarted], p.action[restarted]):
            i = np.abs(real[:, :3] - observation[0]).sum(axis=1).argmin()
            assert not ends[i]
            np.testing.assert_array_equal(real[i, :5], np.concatenate([observation[0], action[0]]))
            np.testing.assert_array_equal(real[i + 1, :3], observation[1])


def test_the_environments_rule_ends_rollouts(run, robot, config, dynamics, dynamics_config):
    """One step from where the rollouts of all updates stood."""
    states, batches, _ = run()

    @jax.jit
    @jax.vmap
    def step(particles, actor_params, batch, key):
        return admpo.advance(
            actor_params, particles, batch.replace(dynamics=dynamics),
            admpo.draw_noise(key, config.num_particles, robot, config),
            task=robot, config=config, dynamics_config=dynamics_config,
        )  # fmt: skip

    before = jax.tree.map(lambda x: x[:-1], (states.particles, states.params["actor"]))
    after, row, metrics = step(*before, batches, jax.random.split(jax.random.key(0), STEPS))
    fallen = np.asarray(termination.rule(robot)(row.next_observation))
    np.testing.assert_array_equal(row.discount, 1.0 - fallen)
    assert np.all(np.asarray(after.age)[fallen] == 0)
    going = ~fallen & (before[0].age < config.rollout_length - 1)
    np.testing.assert_array_equal(np.asarray(after.age)[going], before[0].age[going] + 1)
    np.testing.assert_allclose(metrics["model_terminals"], fallen.mean(axis=1), rtol=1e-6)
    assert 0 < fallen.sum() < fallen.size and going.any()


def test_the_ring_fills_and_wraps(run, config, task):
    states, _, _ = run()
    p = config.num_particles
    assert config.ring_size == 18 and config.capacity == 15 and p == 6
    np.testing.assert_array_equal(states.ring.size, [0, 6, 12] + [18] * (STEPS - 2))
    rows = np.asarray(states.ring.rows)
    assert np.all(rows[1, p:] == 0) and np.all(np.abs(rows[3]).sum(axis=-1) > 0)
    np.testing.assert_array_equal(rows[4, p:], rows[3, p:])  # the fourth overwrites the first
    assert np.all(np.abs(rows[4, :p] - rows[3, :p]).sum(axis=-1) > 0)


def test_a_model_that_breaks_down_does_no_harm(run, config, task, dataset):
    states, batches, metrics = run(np.nan)
    assert np.all(np.asarray(metrics["broken_rollouts"]) == 1.0)
    for leaf in jax.tree.leaves((states.params, states.ring, states.particles)):
        assert np.all(np.isfinite(leaf))
    assert np.all(np.asarray(states.particles.age)[1:] == 0)
    for step in range(STEPS):
        real = jax.tree.map(lambda x: x[:, -1], at(batches.starts, step))
        jax.tree.map(np.testing.assert_array_equal, written(states, config, step, task), real)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.25, 2), (0.3, 2), (1.0, 8)])
def test_real_ratio(task, dataset, config, ratio, count):
    config = dataclasses.replace(config, real_ratio=ratio)
    learner = admpo.make(task, config)
    batch = jax.jit(learner.sample)(jax.random.key(0), learner.prepare(dataset))
    assert batch.real.reward.shape == (count,)
    known = set(np.asarray(dataset.transition.reward).tolist())
    assert known.issuperset(np.asarray(batch.real.reward).tolist())
    ring = sac.insert(sac.empty_ring(task, 18), jnp.full((6, windows.width(task)), 9.0), 0)
    mixed = admpo.mix(batch.real, ring, jax.random.key(1), task, config)
    assert mixed.observation.shape == (8, 3) and mixed.action.shape == (8, 2)
    np.testing.assert_array_equal(mixed.reward[:count], batch.real.reward)
    assert np.all(np.asarray(mixed.reward[count:]) == 9.0)  # filled rows alone


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-2}, 0, (1e-3, 1e-2, 0.0)),
        ({"learn_temperature": True, "temperature_learning_rate": 0.1}, 0, (1e-4, 3e-4, 0.1)),
        ({"num_steps": 4}, 2, (5e-5, 3e-4, 0.0)),
        ({"num_steps": 4}, 4, (0.0, 3e-4, 0.0)),
    ],
)
def test_learning_rates(config, changes, step, expected):
    """Each part has its own; alpha is fixed unless told otherwise; the actor's falls to 0."""
    optimizers = admpo.make_optimizers(dataclasses.replace(config, **changes))
    gradient = jnp.array([1.0, -5.0])  # the same again and again: Adam's steps are its signs
    for name, rate in zip(("actor", "critic", "log_alpha"), expected, strict=True):
        state = optimizers[name].init(jnp.zeros(2))
        for _ in range(step + 1):
            update, state = optimizers[name].update(gradient, state)
        np.testing.assert_allclose(update, [-rate, rate], rtol=1e-3, atol=1e-9)


def test_the_dynamics_are_an_argument(task, dataset, config, dynamics_config, dynamics):
    learner = admpo.make(task, config, dynamics_config, dynamics)
    data = learner.prepare(dataset)
    state = jax.eval_shape(learner.init, jax.random.key(0), data)
    jaxpr = jax.make_jaxpr(lambda s, k, d: learner.update(s, learner.sample(k, d)))
    constants = jaxpr(state, jax.random.key(1), data).consts
    assert sum(np.size(x) for x in constants) < 20
    for a, b in zip(*map(jax.tree.leaves, (data.dynamics.params, dynamics.params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_is_loaded_and_acts_without_dynamics(task, dataset, config, run, tmp_path):
    """As the apps that evaluate do, which know the folder alone; but it can't learn on."""
    states, _, _ = run()
    state = jax.tree.map(lambda x: x[-1:], states)
    metadata = {"kind": "admpo_policy", "seeds": [0]}
    metadata |= {"task": config_lib.to_dict(task), "config": config_lib.to_dict(config)}
    Checkpointer(tmp_path, metadata).save(STEPS, state)
    found = loading.load(tmp_path)
    assert (found.task, found.config) == (task, config)
    observation = dataset.transition.observation[:5]
    act = lambda state: found.learner.policy.act(  # noqa: E731
        training.select_seed(state, 0), (), observation, None, jax.random.key(0), True
    )[0]
    action = act(found.state)
    assert action.shape == (5, 2) and np.all(np.abs(action) < 1)
    np.testing.assert_array_equal(action, act(state))
    data = found.learner.prepare(dataset)
    with pytest.raises(ValueError, match="without a dynamics model"):
        found.learner.update(state, found.learner.sample(jax.random.key(0), data))


def test_asks_for_no_more_than_the_dynamics_learn(task, config, dynamics_config):
    beyond = dataclasses.replace(config, max_steps=3)
    with pytest.raises(UserError, match=r"max_steps=3 is beyond dynamics\.max_steps=2"):
        admpo.make(task, beyond, dynamics_config)


@pytest.mark.slow
def test_one_step_back_has_no_penalty(task, dataset, config, dynamics_config, dynamics, run):
    config = dataclasses.replace(config, max_steps=1, dynamics_dropout=True)
    learner = admpo.make(task, config, dynamics_config, dynamics)
    data = learner.prepare(dataset)
    assert jax.eval_shape(learner.init, jax.random.key(0), data).particles.action.shape == (6, 0, 2)

    @jax.jit
    def step(actor_params, key):
        batch = learner.sample(key, data)
        particles = admpo.start(batch.starts, jnp.zeros(6, jnp.int32))
        noise = admpo.draw_noise(key, 6, task, config)
        return admpo.advance(
            actor_params, particles, batch, noise,
            task=task, config=config, dynamics_config=dynamics_config,
        )  # fmt: skip

    particles, row, metrics = step(at(run()[0].params["actor"], 0), jax.random.key(0))
    assert float(metrics["disagreement"]) == float(metrics["broken_rollouts"]) == 0.0
    assert np.all(np.isfinite(row.reward))
    np.testing.assert_array_equal(particles.observation[:, -1], row.next_observation)


@pytest.mark.slow
def test_a_seeds_run_is_the_same_whichever_run_beside_it(
    task, dataset_x64, config, dynamics_config, dynamics, x64
):
    widen = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731
    learner = admpo.make(task, config, dynamics_config, jax.tree.map(widen, dynamics))
    data, step = learner.prepare(dataset_x64), training.make_chunk(learner).step

    @jax.jit
    def train(keys):
        state = jax.tree.map(widen, jax.vmap(learner.init, (0, None))(keys, data))
        return jax.lax.fori_loop(0, 9, lambda _, state: step(state, keys, data)[0], state)

    one, other = train(training.seed_keys((0, 3))), train(training.seed_keys((3, 5)))
    for name in ("params", "particles", "ring"):
        leaves = (jax.tree.leaves(getattr(state, name)) for state in (one, other))
        for a, b in zip(*leaves, strict=True):
            assert a.dtype != np.float32
            np.testing.assert_allclose(a[1], b[0], rtol=1e-10, atol=1e-10)
