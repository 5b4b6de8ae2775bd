import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import tasks, training
from tgcvg_jax.data import concatenate
from tgcvg_jax.data.dataset import make_dataset
from tgcvg_jax.data.replay import Mixture
from tgcvg_jax.learners import dt
from tgcvg_jax.types import SYNTHETIC, Task, Transition, UserError

L = 4
PLAIN = Mixture(normalize_states=False)


@pytest.fixture(scope="module")
def config():
    return dt.Config(
        num_steps=12, context_length=L, batch_size=32, hidden_dim=8, num_blocks=2,
        warmup_steps=4, episode_length=30, reward_scale=0.1, target_return=20.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learner(task, config):
    return dt.make(task, config)


@pytest.fixture(scope="module")
def data(learner, dataset):
    return learner.prepare(dataset)


@pytest.fixture(scope="module")
def state(learner, data):
    """Weights large enough that actions depend on everything."""
    state = jax.jit(learner.init)(jax.random.key(0), data)
    rng = np.random.default_rng(0)
    noise = lambda p: p + jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype)  # noqa: E731
    return state.replace(params=jax.tree.map(noise, state.params))


@pytest.fixture(scope="module")
def batch(learner, data):
    return jax.jit(learner.sample)(jax.random.key(1), data)


@pytest.fixture(scope="module")
def segments(task):
    """Two generated segments, of 4 and 3 steps, from the middle of episodes; rewards 1, 2, ..."""
    rng = np.random.default_rng(5)
    transition = Transition(
        rng.normal(size=(7, 3)), rng.uniform(-1, 1, (7, 2)), np.arange(1.0, 8.0), np.ones(7),
        rng.normal(size=(7, 3)),
    )  # fmt: skip
    return make_dataset(
        task, transition, np.arange(7) == 3, source=SYNTHETIC,
        timestep=np.array([9, 10, 11, 12, 4, 5, 6]),
        return_to_go=np.array([50.0, 7, 7, 7, 30.0, 7, 7]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def act(learner, state):
    """(window, observation [2, S], reward [2]) -> (action, window)."""
    return jax.jit(lambda w, o, r: learner.policy.act(state, w, o, r, None, True))


def test_windows_are_rows_of_one_episode(task, dataset, config):
    """Every item is rows start, start + 1, ... up to the episode's end, then padding."""
    learner = dt.make(task, dataclasses.replace(config, replay=PLAIN, batch_size=1500))
    batch = jax.tree.map(np.asarray, learner.sample(jax.random.key(0), learner.prepare(dataset)))
    known = jax.tree.map(np.asarray, dataset)
    starts = [
        np.flatnonzero((known.transition.observation == window[0]).all(axis=1)).item()
        for window in batch.observation
    ]
    assert set(starts) == set(range(dataset.size)), "every row is a start"
    for i, start in enumerate(starts):
        count = min(L, known.remaining[start])
        np.testing.assert_array_equal(batch.mask[i], np.arange(L) < count)
        rows = slice(start, start + count)
        for found, expected in (
            (batch.observation[i], known.transition.observation),
            (batch.action[i], known.transition.action),
            (batch.return_to_go[i], np.float32(0.1) * known.return_to_go),
        ):
            np.testing.assert_allclose(found[:count], expected[rows], rtol=1e-6)
            np.testing.assert_array_equal(found[count:], 0.0)
        np.testing.assert_array_equal(batch.timestep[i], known.timestep[start] + np.arange(L))
    assert not batch.mask.all()


def test_starts_are_uniform(task, dataset, config):
    learner = dt.make(task, dataclasses.replace(config, replay=PLAIN, batch_size=14_100))
    batch = learner.sample(jax.random.key(0), learner.prepare(dataset))
    first = np.asarray(dataset.transition.observation)[:, 0]
    counts = np.bincount(np.searchsorted(np.sort(first), batch.observation[:, 0, 0]))
    assert len(counts) == 141
    chi_square = np.sum((counts - 100.0) ** 2 / 100.0)  # mean 140, standard deviation 17
    assert 70 < chi_square < 230


def test_returns_to_go(dataset, segments):
    both = concatenate([segments, dataset])
    for factor in (1.0, 1.2):
        found = dt.returns_to_go(both, factor)
        np.testing.assert_array_equal(found[7:], dataset.return_to_go)
        a, b = 50 * factor, 30 * factor
        expected = [a, a - 1, a - 3, a - 6, b, b - 5, b - 11]
        np.testing.assert_allclose(found[:7], expected, rtol=1e-6)


def test_generated_windows_keep_their_steps(task, dataset, segments, config):
    """Also those that start inside a segment; and the mixture reaches the learner."""
    replay = Mixture(original_share=0.25, normalize_states=False)
    learner = dt.make(task, dataclasses.replace(config, replay=replay, batch_size=200))
    data = learner.prepare(concatenate([segments, dataset]))
    batch = jax.tree.map(np.asarray, learner.sample(jax.random.key(0), data))
    made = np.asarray(segments.transition.observation)
    is_made = np.isin(batch.observation[:, 0, 0], made[:, 0])
    np.testing.assert_array_equal(is_made, np.arange(200) >= 50)
    for i in np.flatnonzero(is_made):
        start = np.flatnonzero(made[:, 0] == batch.observation[i, 0, 0]).item()
        count = int(segments.remaining[start])
        assert batch.mask[i].sum() == count
        steps = np.asarray(segments.timestep)[start : start + count]
        np.testing.assert_array_equal(batch.timestep[i, :count], steps)
    starts = np.asarray(data.rows[-7:, -3]) / 0.1
    np.testing.assert_allclose(starts[[0, 4]], [1.2 * 50, 1.2 * 30], rtol=1e-5)


def test_data_without_sequences_is_refused(learner, dataset, segments):
    single = segments.replace(remaining=jnp.ones_like(segments.remaining))
    with pytest.raises(UserError, match=r"single transitions.*choose another --synthesizer"):
        learner.prepare(concatenate([dataset, single]))
    learner.prepare(concatenate([dataset, segments]))


def test_states_are_normalised(data, dataset):
    observation = np.asarray(dataset.transition.observation)
    np.testing.assert_allclose(data.normalizer.std, observation.std(axis=0) + 1e-6, rtol=1e-5)
    z = (observation - observation.mean(axis=0)) / (observation.std(axis=0) + 1e-6)
    np.testing.assert_allclose(data.rows[:, :3], z, atol=1e-5)


def test_padding_counts_as_zero_error(task, config, state, batch):
    """The sum over real entries, divided by all of them; and padding leads no gradient anywhere."""
    config = dataclasses.replace(config, dropout=0.0)
    network, key = dt.make_network(task, config), jax.random.key(0)

    @jax.jit
    def run(params, batch):
        grad = jax.value_and_grad(dt.loss, has_aux=True)
        predicted = network.apply(params, *batch, deterministic=True)
        return predicted, *grad(params, batch, key, task, config)

    assert not batch.mask.all()
    predicted, (value, _), grads = run(state.params, batch)
    squared = np.square(predicted - batch.action)[np.asarray(batch.mask)]
    np.testing.assert_allclose(value, squared.sum() / batch.action.size, rtol=1e-5)
    where = lambda x: batch.mask.reshape(*batch.mask.shape, *[1] * (x.ndim - 2))  # noqa: E731
    junk = jax.tree.map(lambda x: jnp.where(where(x), x, 7).astype(x.dtype), batch)
    _, (other, _), other_grads = run(state.params, junk._replace(mask=batch.mask))
    np.testing.assert_allclose(value, other, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, other_grads)


def test_dropout_draws_from_the_key(task, config, state, batch):
    @functools.partial(jax.jit, static_argnums=0)
    def run(rate, key):
        return dt.loss(state.params, batch, key, task, dataclasses.replace(config, dropout=rate))[0]

    one, other = jax.random.split(jax.random.key(0))
    assert run(0.0, one) == run(0.0, other) != run(0.5, one)
    assert abs(run(0.5, one) - run(0.5, other)) > 1e-4


def test_learns_which_return_needs_which_action(task, dataset, config):
    """Where the action is the sign of the return, asking for a return gives that sign."""
    sign = np.random.default_rng(0).choice([-1.0, 1.0], dataset.size).astype(np.float32)
    toy = dataset.replace(
        transition=dataset.transition._replace(action=0.8 * jnp.stack([sign, -sign], axis=1)),
        return_to_go=10.0 * jnp.asarray(sign),
    )
    config = dataclasses.replace(
        config, learning_rate=0.03, num_blocks=1, dropout=0.0, max_grad_norm=10.0, context_length=2
    )
    learner = dt.make(task, config)
    data = learner.prepare(toy)

    @jax.jit
    def train(data):
        def step(state, _):
            batch = learner.sample(jax.random.fold_in(state.key, state.step), data)
            return learner.update(state, batch)

        return jax.lax.scan(step, learner.init(jax.random.key(0), data), length=100)

    state, info = train(data)
    assert np.mean(info["actor_loss"][-20:]) < 0.1 * np.mean(info["actor_loss"][:20])
    observation = dataset.transition.observation[:4]
    act = jax.jit(lambda w: learner.policy.act(state, w, observation, jnp.zeros(4), None, True)[0])
    for target in (10.0, -10.0):
        action = act(learner.policy.init(state, 4, target))
        expected = np.sign(target) * np.tile([0.8, -0.8], (4, 1))
        np.testing.assert_allclose(action, expected, atol=0.2)


def test_the_rate_warms_up_whatever_the_number_of_steps(config):
    rates = [float(dt.learning_rate(jnp.int32(step), config)) for step in (0, 1, 3, 4, 100)]
    np.testing.assert_allclose(rates, 1e-4 * np.array([0.25, 0.5, 1, 1, 1]), rtol=1e-6)


@pytest.mark.parametrize("target", (None, 12.0))
def test_acts_as_a_plain_evaluation_loop(task, config, learner, state, act, target):
    """CORL's: the whole history so far, of which the last L steps without padding are fed."""
    rng = np.random.default_rng(3)
    network = dt.make_network(task, config)
    forward = jax.jit(lambda p, *x: network.apply(p, *x, deterministic=True))
    window = learner.policy.init(state, 2, target)
    observations, actions, steps = [], [], 2 * L + 2
    returns = [np.full(2, 0.1 * (20.0 if target is None else target))]
    reward = np.zeros(2)
    for t in range(steps):
        raw = rng.normal(size=(2, 3)).astype(np.float32)
        action, window = act(window, raw, reward)
        if t:
            returns.append(returns[-1] - 0.1 * reward)
        observations.append(np.asarray(state.normalizer(raw)))
        history = [np.stack(x, axis=1)[:, -L:] for x in (
            observations, [*actions, np.zeros((2, 2))], returns
        )]  # fmt: skip
        timestep = np.tile(np.arange(t + 1)[-L:], (2, 1))
        expected = forward(state.params, *map(jnp.float32, history), timestep)[:, -1]
        np.testing.assert_allclose(action, expected, atol=2e-6)
        assert np.all(np.abs(action) <= 1)
        actions.append(np.asarray(action))
        reward = rng.normal(size=2)
    assert np.std(actions, axis=0).min() > 0.05


def test_acts_as_it_was_trained(task, config, learner, dataset, data, state, act):
    """On an episode of the data, the policy's action is the prediction on its training window."""
    network = dt.make_network(task, config)
    steps, twice = 9, jax.tree.map(lambda x: np.stack([x, x], axis=1), dataset.transition)
    window = learner.policy.init(state, 2, dataset.return_to_go[0])
    for t in range(steps):
        reward = twice.reward[t - 1] if t else np.zeros(2, np.float32)
        action, window = act(window, twice.observation[t], reward)
        # Go on with the data's action in place of the policy's own.
        window = window._replace(action=window.action.at[:, -1].set(twice.action[t]))
    rows = data.rows[steps - L : steps][None]
    history = rows[..., :3], rows[..., 3:5], rows[..., 5], rows[..., 6].astype(jnp.int32)
    forward = jax.jit(lambda p, x: network.apply(p, *x, deterministic=True))
    predicted = forward(state.params, history)
    np.testing.assert_allclose(action[0], predicted[0, -1], atol=1e-5)


def test_the_target_without_one_is_the_datas_best(task, dataset, segments, config):
    learner = dt.make(task, dataclasses.replace(config, target_return=None))
    data = learner.prepare(concatenate([dataset, segments]))
    first = np.asarray(dataset.timestep) == 0
    best = float(np.asarray(dataset.return_to_go)[first].max())
    states = training.init(learner, data, (0, 1, 2))  # all at once, as in an evaluation
    window = jax.vmap(lambda state: learner.policy.init(state, 2, None))(states)
    assert window.observation.shape == (3, 2, L, 3)
    np.testing.assert_allclose(window.return_to_go, 0.1 * best, rtol=1e-6)


def test_settings_of_the_papers():
    make = lambda name, whose: dt.for_task(tasks.TASKS[name], whose)  # noqa: E731
    for whose, size, rate, factor in (
        ("tgcvg", 1024, 1e-4, 1.2), ("gta", 1024, 1e-4, 1.0), ("corl", 4096, 8e-4, 1.0)
    ):  # fmt: skip
        config = make("hopper-medium-v2", whose)
        assert (config.batch_size, config.learning_rate) == (size, rate)
        assert config.synthetic_return_factor == factor and config.reward_scale == 0.001
        assert (config.target_return, config.num_steps) == (3600.0, 100_000)
    targets = {
        "halfcheetah-medium-mini": 12_000.0,
        "walker2d-medium-expert-v2": 5_000.0,
        "maze2d-large-v1": 280.0,
        "maze2d-large-dense-v1": 303.4857382709002,
        "antmaze-large-play-v2": 1.0,
        "mujoco/hopper/expert-v0": 3600.0,
        "D4RL/pointmaze/umaze-v2": 280.0,
        "D4RL/pointmaze/umaze-dense-v2": None,
    }
    for name, target in targets.items():
        assert make(name, "tgcvg").target_return == target
    corl = make("antmaze-umaze-v2", "corl")
    assert (corl.batch_size, corl.learning_rate, corl.reward_scale) == (64, 1e-4, 1.0)
    assert make("maze2d-umaze-v1", "corl").reward_scale == 1.0
    assert make("maze2d-umaze-v1", "gta").reward_scale == 0.001
    unknown = Task("new", "", 3, 2, 30)
    assert dt.for_task(unknown).target_return is None


def test_priming_is_acting_before(task, learner, state, act, dataset):
    """With the data's actions in place of its own; a whole history, and one of two steps."""
    count, known, target = 6, (6, 2), np.array([20.0, 12.0], np.float32)
    t = jax.tree.map(lambda x: jnp.stack([x[:count]] * 2), dataset.transition)
    mask = jnp.arange(count) >= count - jnp.array(known)[:, None]
    primed = learner.policy.init(state, 2, target)
    primed = learner.policy.prime(state, primed, t, mask)
    now = jnp.stack([dataset.transition.observation[count]] * 2)
    found, _ = act(primed, now, t.reward[:, -1])
    for row, length in enumerate(known):
        window = learner.policy.init(state, 2, target)
        for i in range(count - length, count):
            reward = t.reward[:, i - 1] * (i > count - length)
            _, window = act(window, t.observation[:, i], reward)
            window = window._replace(action=window.action.at[:, -1].set(t.action[:, i]))
        for a, b in zip(primed, window):
            real = np.asarray(window.mask[row])
            np.testing.assert_allclose(a[row][real], b[row][real], atol=1e-5)
        expected, _ = act(window, now, t.reward[:, -1])
        np.testing.assert_allclose(found[row], expected[row], atol=1e-5)
    np.testing.assert_array_equal(primed.timestep[:, -1], [5, 1])
