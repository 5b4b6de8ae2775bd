import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.data import windows
from tgcvg_jax.learners import td3_bc
from tgcvg_jax.models import any_step_dynamics
from tgcvg_jax.synthesizers import tgcvg
from tgcvg_jax.synthesizers.model_rollout import plausible, until
from tgcvg_jax.types import Task, Transition, UserError


@pytest.fixture(scope="module")
def config(configs):
    return configs["tgcvg"]


@pytest.fixture(scope="module")
def data(synthesizer, dataset):
    return synthesizer.prepare(dataset)


@pytest.fixture(scope="module")
def generator(synthesizer):
    """The compiled `generate`, and the list to which each trace adds an entry."""
    traces = []

    @jax.jit
    def run(*arguments):
        traces.append(1)
        return synthesizer.generate(*arguments)

    return run, traces


@pytest.fixture(scope="module")
def epoch(generator, model_states, data, config):
    """All chunks of the first epoch."""
    chunks = len(data.positions) // config.rollout_batch
    assert chunks >= 3
    run = lambda i: generator[0](model_states, data, jax.random.key(0), jnp.int32(i))  # noqa: E731
    return [jax.tree.map(np.asarray, run(i)) for i in range(chunks)]


def source_rows(trajectories, data):
    """Dataset rows of the first generated transitions, found by their real observation."""
    first = trajectories.transition.observation[:, 0]
    distance = np.abs(first[:, None] - np.asarray(data.transition.observation)).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-5
    return distance.argmin(axis=1)


def outer_scans(jaxpr):
    """Lengths of the scans that are in no other loop; through pjit and other calls."""
    lengths = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            lengths.append(equation.params["length"])
        elif equation.primitive.name != "while":  # the random generator's
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    lengths += outer_scans(inner)
    return lengths


def test_the_rollout_is_one_scan(synthesizer, model_states, data, config):
    jaxpr = jax.make_jaxpr(synthesizer.generate)(
        model_states, data, jax.random.key(0), jnp.int32(0)
    )
    assert config.horizon == 9 + 1 - 3
    assert outer_scans(jaxpr.jaxpr) == [config.horizon]


def test_compiled_once_for_all_chunks(generator, epoch):
    assert len(generator[1]) == 1 and len(epoch) > 1


def test_shapes(epoch, config):
    b, h = config.rollout_batch, config.horizon
    t = epoch[0]
    assert t.transition.observation.shape == t.transition.next_observation.shape == (b, h, 3)
    assert t.transition.action.shape == (b, h, 2)
    for x in (t.transition.reward, t.transition.discount, t.timestep, t.return_to_go, t.mask):
        assert x.shape == (b, h)
    assert np.all(np.abs(t.transition.action) <= 1.0)


def test_starts_from_real_states_and_inherits(epoch, data, config):
    """Transition i stands where transition L - 1 + i of the source window stood."""
    terminals = 0
    for trajectories in epoch:
        rows = source_rows(trajectories, data)
        index = rows[:, None] + np.arange(config.horizon)
        np.testing.assert_array_equal(trajectories.timestep, np.asarray(data.timestep)[index])
        np.testing.assert_array_equal(
            trajectories.return_to_go, np.asarray(data.return_to_go)[index]
        )
        np.testing.assert_array_equal(
            trajectories.transition.discount, np.asarray(data.transition.discount)[index]
        )
        assert np.all(trajectories.timestep[:, 0] >= config.policy.context_length - 1)
        assert np.all(np.diff(trajectories.timestep, axis=1) == 1)
        terminals += np.sum(trajectories.transition.discount == 0.0)
        assert np.all(trajectories.transition.discount[:, :-1] == 1.0)
    assert terminals > 0


def test_states_follow_each_other(epoch):
    for t in epoch:
        np.testing.assert_allclose(
            t.transition.next_observation[:, :-1], t.transition.observation[:, 1:], atol=1e-5
        )


def test_windows_of_an_epoch_are_distinct(epoch, data, config, dataset):
    starts = np.concatenate([source_rows(t, data) for t in epoch]) - 2
    assert len(set(starts)) == len(starts) == len(epoch) * config.rollout_batch
    assert np.all(np.asarray(dataset.remaining)[starts] >= config.window_length)
    assert len(data.positions) == windows.num_windows(dataset, config.window_length)
    assert len(data.positions) - len(starts) < config.rollout_batch


def test_epochs_differ_and_chunks_repeat(generator, model_states, data, epoch):
    run = lambda key, i: generator[0](  # noqa: E731
        model_states, data, jax.random.key(key), jnp.int32(i)
    )
    jax.tree.map(np.testing.assert_array_equal, run(0, 1), epoch[1])
    again, other = run(0, len(epoch)), run(1, 0)
    for x in (again, other):
        assert not np.array_equal(x.timestep, epoch[0].timestep)
        assert not np.array_equal(x.transition.action, epoch[0].transition.action)
    assert len(generator[1]) == 1


@pytest.mark.parametrize("field", ["dynamics_dropout", "deterministic_policy"])
def test_switches(task, config, model_states, data, epoch, field):
    other = dataclasses.replace(config, **{field: not getattr(config, field)})
    run = jax.jit(tgcvg.make(task, other).generate)
    t = jax.tree.map(np.asarray, run(model_states, data, jax.random.key(0), jnp.int32(0)))
    base = epoch[0].transition
    np.testing.assert_array_equal(t.transition.observation[:, 0], base.observation[:, 0])
    same_actions = np.allclose(t.transition.action[:, 0], base.action[:, 0])
    same_next = np.allclose(t.transition.next_observation[:, 0], base.next_observation[:, 0])
    assert (same_actions, same_next) == ((True, False) if "dropout" in field else (False, False))


def test_generates_fewer_windows_than_a_batch(task, config, model_states, data):
    few = data.replace(positions=data.positions[:3])
    shapes = jax.eval_shape(
        tgcvg.make(task, config).generate, model_states, few, jax.random.key(0), jnp.int32(5)
    )
    assert shapes.timestep.shape == (3, config.horizon)


@pytest.mark.parametrize("name", ["few", "none", "late"])
def test_stops(name):
    stop = {"few": [0, 1, 0, 1], "none": [0, 0, 0, 0], "late": [0, 0, 0, 1]}[name]
    stop = jnp.array([stop], bool)
    before = {"few": [1, 0, 0, 0], "none": [1, 1, 1, 1], "late": [1, 1, 1, 0]}[name]
    upto = {"few": [1, 1, 0, 0], "none": [1, 1, 1, 1], "late": [1, 1, 1, 1]}[name]
    np.testing.assert_array_equal(until(stop, inclusive=False)[0], np.array(before, bool))
    np.testing.assert_array_equal(until(stop, inclusive=True)[0], np.array(upto, bool))


PLAUSIBLE = {
    "good": [1.0, 0.5], "low": [-3.0, 0.0], "at the lowest": [-1.0, -1.0],
    "at twice the highest": [4.0, 4.0], "exploded": [4.0, 4.5], "nan": [1.0, np.nan],
    "infinite": [np.inf, 1.0], "minus infinity": [1.0, -np.inf],
}  # fmt: skip


def test_plausible():
    kept = ("good", "at the lowest", "at twice the highest")
    n = len(PLAUSIBLE)
    transition = Transition(
        observation=jnp.zeros((n, 2, 3)),
        action=jnp.zeros((n, 2, 2)),
        reward=jnp.array(list(PLAUSIBLE.values())),
        discount=jnp.ones((n, 2)),
        next_observation=jnp.zeros((n, 2, 3)),
    )
    mask, bounds = jnp.ones((n, 2), bool), jnp.array([-1.0, 2.0])
    keep = plausible(transition, mask, bounds, 0.0, 2.0)
    actual = dict(zip(PLAUSIBLE, np.asarray(keep)))
    assert actual == {name: name in kept for name in PLAUSIBLE}
    for field in ("observation", "action", "next_observation"):
        bad = getattr(transition, field).at[0, 1, 0].set(jnp.nan)
        bad = transition._replace(**{field: bad})
        keep = plausible(bad, mask, bounds, 0.0, 2.0)
        assert not keep[0] and keep[2]
        # What comes after a rollout's end does not count.
        assert plausible(bad, mask.at[0, 1].set(False), bounds, 0.0, 2.0)[0]


@pytest.mark.parametrize(
    ("low", "high", "slack", "mean", "kept"),
    [
        (-1.0, -1.0, 0.0, -1.0, True),  # constant negative rewards
        (-2.0, -0.5, 0.0, -0.4, True),
        (-2.0, -0.5, 0.0, 0.1, False),
        (0.0, 1.0, 0.0, -0.001, False),  # sparse rewards need the slack that mazes get
        (0.0, 1.0, 1.0, -0.001, True),
        (0.0, 1.0, 1.0, -1.001, False),
    ],
)
def test_filter_where_rewards_are_not_positive(low, high, slack, mean, kept):
    transition = Transition(*(jnp.full((1, 2), mean) for _ in Transition._fields))
    mask = jnp.ones((1, 2), bool)
    assert bool(plausible(transition, mask, jnp.array([low, high]), slack, 2.0)[0]) == kept


@pytest.mark.parametrize("window_length", (1, 2))
def test_window_shorter_than_the_context_is_an_error(task, config, window_length):
    with pytest.raises(UserError, match=r"K must be at least L"):
        tgcvg.make(task, dataclasses.replace(config, window_length=window_length))


def test_implausible_trajectories_are_masked_whole(generator, model_states, data):
    narrow = data.replace(reward_range=jnp.array([1e6, 1e6]))
    t = generator[0](model_states, narrow, jax.random.key(0), jnp.int32(0))
    assert not np.any(t.mask)
    wide = data.replace(reward_range=jnp.array([-1e6, 1e6]))
    assert np.all(generator[0](model_states, wide, jax.random.key(0), jnp.int32(0)).mask)


@pytest.mark.parametrize("length", (31, 1000))
def test_no_window_is_an_error(task, config, dataset, length):
    long = tgcvg.make(task, dataclasses.replace(config, window_length=length))
    with pytest.raises(UserError, match=rf"window of {length} transitions \(the source window K"):
        long.prepare(dataset)


def test_settings_of_the_papers():
    Case = collections.namedtuple("Case", "length weight window steps hidden")
    cases = {
        "halfcheetah-medium": Case(5, 0.1, 60, 2, 200),
        "halfcheetah-medium-expert": Case(20, 10.0, 60, 2, 400),
        "hopper-medium-replay": Case(20, 2.0, 40, 5, 200),
        "walker2d-medium-expert": Case(20, 10.0, 40, 3, 200),
        "unheard-of": Case(20, 5.0, 60, 5, 200),
    }
    for family, case in cases.items():
        config = tgcvg.for_task(Task("x", "", 3, 2, 10, family=family))
        found = Case(
            config.policy.context_length, config.policy.cql_weight, config.window_length,
            config.dynamics.max_steps, config.dynamics.hidden_dim,
        )  # fmt: skip
        assert found == case, family
        assert config.horizon == case.window + 1 - case.length
    assert not tgcvg.as_paper(tgcvg.Config()).dynamics_dropout


FIRST = 2  # L - 1: rows of an episode where published rollouts never begin


def generate(task, config, states, dataset, chunks=1, generator=None):
    synthesizer = tgcvg.make(task, config, generator)
    run, data = jax.jit(synthesizer.generate), synthesizer.prepare(dataset)
    key = jax.random.key(0)
    made = [jax.tree.map(np.asarray, run(states, data, key, jnp.int32(i))) for i in range(chunks)]
    return jax.tree.map(lambda *x: np.concatenate(x), *made)


def test_left_padded_starts_reach_every_step(task, config, model_states, dataset, epoch):
    published = np.concatenate([t.timestep[:, 0] for t in epoch])
    assert published.min() == FIRST
    other = dataclasses.replace(config, left_padded=True)
    data = tgcvg.make(task, other).prepare(dataset)
    chunks = len(data.positions) // config.rollout_batch
    t = generate(task, other, model_states, dataset, chunks)
    assert {0, 1} <= set(t.timestep[:, 0])


def test_left_padded_histories_hide_other_episodes(task, config, model_states, dataset):
    """The first action of an episode depends on its first state alone."""
    other = dataclasses.replace(config, left_padded=True, deterministic_policy=True)
    t = generate(task, other, model_states, dataset, chunks=5)
    rows = np.flatnonzero(t.timestep[:, 0] == 0)
    policy = tgcvg.make(task, other).models["policy"].policy
    state = model_states["policy"]
    observation = jnp.asarray(t.transition.observation[rows, 0])
    carry = policy.init(state, len(rows))
    key = jax.random.key(0)
    action, _ = policy.act(state, carry, observation, jnp.zeros(len(rows)), key, True)
    np.testing.assert_allclose(t.transition.action[rows, 0], action, atol=1e-6)


def test_first_action_sees_the_real_history(task, config, model_states, data, dataset):
    """The generator acts as if it had lived through the window's first L states."""
    other = dataclasses.replace(config, deterministic_policy=True)
    t = generate(task, other, model_states, dataset)
    rows = source_rows(t, data)
    policy, state = tgcvg.make(task, other).models["policy"].policy, model_states["policy"]
    carry = policy.init(state, len(rows))
    for i in range(-FIRST, 1):
        observation = data.transition.observation[rows + i]
        zeros = jnp.zeros(len(rows))
        action, carry = policy.act(state, carry, observation, zeros, jax.random.key(0), True)
    np.testing.assert_allclose(t.transition.action[:, 0], action, atol=1e-5)


def test_weighted_starts_prefer_good_episodes(task, config, model_states, dataset):
    first = np.flatnonzero(np.asarray(dataset.timestep) == 0)
    returns = np.asarray(dataset.return_to_go)[first]

    def mean_return(temperature):
        other = dataclasses.replace(config, start_temperature=temperature)
        synthesizer = tgcvg.make(task, other)
        data = synthesizer.prepare(dataset)
        t = generate(task, other, model_states, dataset, chunks=4)
        episode = np.searchsorted(first, source_rows(t, data), side="right") - 1
        return returns[episode].mean()

    longest = returns[np.diff(np.append(first, dataset.size)) >= config.window_length]
    assert mean_return(0.01) == pytest.approx(longest.max())
    assert mean_return(1e6) < mean_return(0.3) < mean_return(0.01)


def test_softmax_cdf():
    cdf = tgcvg.softmax_cdf(np.array([1.0, 1.0, 3.0]), 1.0)
    assert cdf[-1] == 1.0 and np.all(np.diff(cdf) > 0)
    z = np.exp(np.array([-1.0, -1.0, 2.0]) / np.sqrt(2))
    np.testing.assert_allclose(cdf, np.cumsum(z) / z.sum(), rtol=1e-5)
    np.testing.assert_allclose(tgcvg.softmax_cdf(np.ones(4), 1.0), [0.25, 0.5, 0.75, 1])


def test_noise_of_the_dynamics(task, config, model_states, dataset):
    """mean: none at all, so only the policy's draws tell two rollouts apart."""
    quiet = dict(dynamics_dropout=False, deterministic_policy=True)
    runs = {}
    for noise in ("mean", "sampled", "calibrated"):
        other = dataclasses.replace(config, dynamics_noise=noise, **quiet)
        runs[noise] = generate(task, other, model_states, dataset).transition
    t = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), runs["mean"])
    following, reward = any_step_dynamics.step_model(
        model_states["dynamics"], t.observation, t.action, 0.0, None,
        task=task, config=config.dynamics,
    )  # fmt: skip
    np.testing.assert_allclose(t.next_observation, following, atol=1e-5)
    np.testing.assert_allclose(t.reward, reward, atol=1e-5)
    spread = lambda name: np.std(  # noqa: E731
        runs[name].next_observation[:, 0] - runs["mean"].next_observation[:, 0]
    )
    assert spread("sampled") > 0 and spread("calibrated") > 0
    assert spread("sampled") != pytest.approx(spread("calibrated"), rel=1e-3)


def test_terminals_by_rule_end_a_rollout(task, config, model_states, dataset, monkeypatch):
    fallen = lambda x: x[..., 0] > 0.0  # noqa: E731
    monkeypatch.setattr(tgcvg.termination, "rule", lambda task: fallen)
    other = dataclasses.replace(config, terminals="rule")
    t = generate(task, other, model_states, dataset, chunks=3)
    down = fallen(t.transition.next_observation)
    assert down.any() and not down.all()
    for row in range(len(down)):
        length = int(t.mask[row].sum())
        if not length:  # implausible rewards
            continue
        expected = np.argmax(down[row]) + 1 if down[row].any() else config.horizon
        assert length == expected
        np.testing.assert_array_equal(t.transition.discount[row, :length], 1.0 - down[row, :length])


def test_rule_for_an_unknown_environment_is_an_error(task, config):
    with pytest.raises(UserError, match="terminals=classifier"):
        tgcvg.make(task, dataclasses.replace(config, terminals="rule"))


def test_disagreement_needs_an_ensemble(task, config):
    with pytest.raises(UserError, match="dynamics_model=ensemble"):
        tgcvg.make(task, dataclasses.replace(config, disagreement_quantile=0.99))


def test_any_policy_generates(task, config, configs, model_states, dataset):
    """A learner without memory in place of the Transformer: its own actions, in real states."""
    learner = td3_bc.make(task, configs["td3_bc"])
    state = learner.init(jax.random.key(3), learner.prepare(dataset))
    states = {"dynamics": model_states["dynamics"], "policy": state}
    synthesizer = tgcvg.make(task, config, learner.policy)
    assert set(synthesizer.models) == {"dynamics"}
    other = dataclasses.replace(config, deterministic_policy=True)
    t = generate(task, other, states, dataset, generator=learner.policy).transition
    flat = t.observation.reshape(-1, 3)
    action, _ = learner.policy.act(state, (), flat, jnp.zeros(len(flat)), jax.random.key(0), True)
    np.testing.assert_allclose(t.action.reshape(-1, 2), action, atol=1e-5)


@pytest.fixture(scope="module")
def ensemble(task, config, configs, model_states, dataset):
    """Config and (untrained) states with an ensemble as the dynamics."""
    other = dataclasses.replace(
        config, dynamics_model="ensemble", ensemble=configs["ensemble_dynamics"]
    )
    learner = tgcvg.make(task, other).models["ensemble"]
    state = learner.init(jax.random.key(1), learner.prepare(dataset))
    return other, {"policy": model_states["policy"], "ensemble": state}


def test_rollouts_stop_where_the_ensemble_disagrees(task, ensemble, dataset):
    config, states = ensemble
    doubt = tgcvg.make_dynamics(task, config).disagreement
    known = tgcvg.some_rows(dataset.transition, 2_000)
    known = doubt(states["ensemble"], known.observation, known.action)
    lengths = {}
    for quantile in (None, 0.9, 0.5, 0.0):
        other = dataclasses.replace(config, disagreement_quantile=quantile)
        t = generate(task, other, states, dataset, chunks=2)
        lengths[quantile] = t.mask.sum(axis=1)
        if quantile is not None:
            doubts = doubt(states["ensemble"], t.transition.observation, t.transition.action)
            over = np.asarray(doubts) > np.quantile(known, quantile)
            first = np.where(over.any(axis=1), over.argmax(axis=1), config.horizon)
            assert set(lengths[quantile] - first) <= {0, *(-first)}  # or implausible as a whole
    kept = lengths[None] > 0
    assert np.all(lengths[None][kept] == config.horizon)
    means = [lengths[q].mean() for q in (0.0, 0.5, 0.9, None)]
    assert means == sorted(means) and means[0] < means[-1]


@pytest.mark.parametrize(("threshold", "terminal"), [(0.0, True), (1.0, False)])
def test_terminals_by_classifier(task, config, configs, model_states, dataset, threshold, terminal):
    other = dataclasses.replace(
        config, terminals="classifier", classifier=configs["terminal_classifier"],
        terminal_threshold=threshold,
    )  # fmt: skip
    learner = tgcvg.make(task, other).models["classifier"]
    state = learner.init(jax.random.key(1), learner.prepare(dataset))
    t = generate(task, other, model_states | {"classifier": state}, dataset)
    kept = t.mask.any(axis=1)
    assert kept.any()
    assert np.all(t.mask.sum(axis=1)[kept] == (1 if terminal else config.horizon))
    assert np.all(t.transition.discount[t.mask] == (0.0 if terminal else 1.0))


def test_a_conditioned_generator_wants_the_sources_return(task, config, model_states, dataset):
    """From the first state of the history on: what was had there, and what is wanted from now."""
    policy = dataclasses.replace(config.policy, return_to_go=True, return_scale=0.1)
    other = dataclasses.replace(
        config, policy=policy, deterministic_policy=True, return_factor=1.5, rollout_batch=4
    )
    synthesizer = tgcvg.make(task, other)
    learner, data = synthesizer.models["policy"], synthesizer.prepare(dataset)
    state = learner.init(jax.random.key(2), learner.prepare(dataset))
    t = generate(task, other, model_states | {"policy": state}, dataset)
    rows = source_rows(t, data)
    reward = np.asarray(dataset.transition.reward)
    before = [np.zeros(len(rows)), reward[rows - 2], reward[rows - 1]]
    wanted = 1.5 * np.asarray(dataset.return_to_go)[rows] + before[1] + before[2]
    for target, same in ((wanted, True), (0 * wanted, False)):
        carry = learner.policy.init(state, len(rows), jnp.asarray(target))
        for i in range(3):
            observation = dataset.transition.observation[rows - 2 + i]
            action, carry = learner.policy.act(
                state, carry, observation, jnp.asarray(before[i]), jax.random.key(0), True
            )
        assert np.allclose(t.transition.action[:, 0], action, atol=1e-5) == same
