import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import training
from tgcvg_jax.checkpoint import Checkpointer
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.models import MODELS, any_step_dynamics
from tgcvg_jax.training import Callback, DivergenceError, fit, fit_models

MODULES = LEARNERS | MODELS
# Long to compile: a U-Net, which shares its training with the other denoiser; and learners whose
# updates go through the same vmap as those of the others.
CASES = [pytest.param(n, marks=pytest.mark.slow) if n == "window_denoiser" else n for n in MODULES]
LONG = ("transformer_td3bc", "mcq", "dt", "rebrac")
SINGLE = [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in LEARNERS]


def numbers(tree):
    """Leaves as numpy arrays, keys as their data."""

    def convert(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return [np.asarray(convert(x)) for x in jax.tree.leaves(tree)]


def assert_same_bits(a, b):
    for x, y in zip(numbers(a), numbers(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def differs(a, b):
    return any(np.any(x != y) for x, y in zip(numbers(a), numbers(b), strict=True))


@pytest.fixture(scope="module")
def runs(task, dataset, configs, model_states, tmp_path_factory):
    """For each learner: an uninterrupted run of 12 steps, made on demand, with its trace count."""
    cache = {}

    def get(name):
        if name not in cache:
            traces = []
            learns_in = ()
            if name == "admpo_policy":
                learns_in = (configs["any_step_dynamics"], model_states["dynamics"])
            learner = MODULES[name].make(task, configs[name], *learns_in)

            def update(state, batch, learner=learner):
                traces.append(1)
                return learner.update(state, batch)

            directory = tmp_path_factory.mktemp(name)
            result = fit(
                learner._replace(update=update),
                dataset,
                num_steps=12,
                seeds=(3, 5),
                checkpointer=Checkpointer(directory / "run", {"kind": name}),
                metrics_path=directory / "metrics.csv",
                log_every=3,
                save_every=6,
            )
            cache[name] = learner, directory, result, len(traces)
        return cache[name]

    return get


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", CASES)
def test_resumed_run_ends_in_the_same_bits(runs, dataset, tmp_path, name):
    """Killed after the checkpoint of step 8, between two rows of metrics; other chunks, too."""
    learner, directory, expected, _ = runs(name)
    arguments = dict(
        dataset=dataset, seeds=(3, 5), metrics_path=tmp_path / "metrics.csv", save_every=6,
        log_every=3,
    )  # fmt: skip

    def kill(step, state):
        raise Killed

    killer = [Callback(10, lambda step, state: kill(step, state))]
    with pytest.raises(Killed):
        checkpointer = Checkpointer(tmp_path / "run", {"kind": name})
        fit(learner, num_steps=12, callbacks=killer, checkpointer=checkpointer, **arguments)
    checkpointer = Checkpointer(tmp_path / "run", {"kind": name})
    assert 0 < checkpointer.latest() < 10
    result = fit(learner, num_steps=12, checkpointer=checkpointer, chunk_seconds=1e-9, **arguments)
    assert result.step == expected.step == 12
    assert_same_bits(result.state, expected.state)
    # What is on disk is the state, and the metrics tell nothing of the interruption.
    assert_same_bits(checkpointer.restore(result.state), expected.state)
    rows = (directory / "metrics.csv").read_text()
    assert (tmp_path / "metrics.csv").read_text() == rows
    assert rows.count("\n") >= 1 + 2 * 3


@pytest.mark.parametrize("name", CASES)
def test_one_trace_of_the_update(runs, name):
    assert runs(name)[3] == 1


@pytest.mark.parametrize("name", CASES)
def test_training_changes_every_seed_its_own_way(runs, dataset, name):
    learner, _, result, _ = runs(name)
    start = training.init(learner, learner.prepare(dataset), (3, 5))
    weights = lambda s: s.actor if hasattr(s, "actor") else s.params  # noqa: E731
    assert differs(weights(start), weights(result.state))
    first, second = (training.select_seed(result.state, i) for i in (0, 1))
    assert differs(weights(first), weights(second))
    assert np.all(np.asarray(result.state.step) == 12)


def test_finished_run_is_a_no_op(runs, dataset):
    learner, directory, expected, _ = runs("td3_bc")
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*")}

    def forbidden(*_):
        raise AssertionError("traced")

    result = fit(
        learner._replace(update=forbidden),
        dataset,
        num_steps=12,
        seeds=(3, 5),
        checkpointer=Checkpointer(directory / "run", {"kind": "td3_bc"}),
        metrics_path=directory / "metrics.csv",
    )
    assert result.compile_seconds == 0 and result.step == 12
    assert_same_bits(result.state, expected.state)
    assert {p: p.stat().st_mtime_ns for p in directory.rglob("*")} == before
    assert len(result.log.curves()["critic_loss"][0]) == 3


@pytest.mark.parametrize("name", SINGLE)
def test_seeds_under_vmap_equal_separate_runs(task, dataset_x64, configs, x64, name):
    learner = LEARNERS[name].make(task, configs[name])
    data, step = learner.prepare(dataset_x64), training.make_chunk(learner).step

    @jax.jit
    def run(keys):
        widen = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731
        state = jax.tree.map(widen, jax.vmap(learner.init, (0, None))(keys, data))
        return jax.lax.fori_loop(0, 12, lambda _, state: step(state, keys, data)[0], state)

    together, alone = run(training.seed_keys((0, 3))), run(training.seed_keys((3,)))
    for a, b in zip(numbers(together), numbers(alone), strict=True):
        assert a.dtype != np.float32
        np.testing.assert_allclose(a[1], b[0], rtol=1e-10, atol=1e-10)
    assert differs(*(training.select_seed(together, i) for i in (0, 1)))


def test_every_update_has_a_batch_of_its_own(toy, dataset):
    """Whose key is that of seed and step alone."""

    def update(state, batch):
        return dataclasses.replace(state, step=state.step + 1), {"batch": batch}

    learner = toy()._replace(sample=lambda key, data: jax.random.uniform(key), update=update)
    result = fit(learner, dataset, num_steps=5, seeds=(0, 4), log_every=1)
    _, rows = result.log.curves(by_seed=True)["batch"]
    assert len(np.unique(rows)) == rows.size == 10
    for (step, i), value in np.ndenumerate(rows):
        key = jax.random.fold_in(jax.random.key((0, 4)[i]), 1)
        batch = jax.random.uniform(jax.random.fold_in(key, step))
        np.testing.assert_allclose(value, batch, rtol=1e-5)


def test_longer_run_continues_a_shorter_one(toy, dataset, tmp_path):
    def run(steps, where):
        keeper = Checkpointer(tmp_path / where / "run", {"config": {"num_steps": steps}})
        path = tmp_path / where / "metrics.csv"
        return fit(toy(), dataset, num_steps=steps, checkpointer=keeper, metrics_path=path,
                   log_every=5, save_every=10)  # fmt: skip

    whole = run(40, "whole")
    assert run(20, "parts").step == 20
    parts = run(40, "parts")
    assert_same_bits(whole.state, parts.state)
    files = [(tmp_path / w / "metrics.csv").read_text() for w in ("whole", "parts")]
    assert files[0] == files[1]


@pytest.mark.parametrize("chunk_seconds", (1e-9, 1e-4))
def test_chunks_do_not_matter(toy, dataset, chunk_seconds):
    states = [
        fit(toy(), dataset, num_steps=37, log_every=10, chunk_seconds=seconds).state
        for seconds in (chunk_seconds, 1.0)
    ]
    assert_same_bits(*states)


def test_rows_are_means_over_their_interval(toy, dataset, tmp_path):
    path = tmp_path / "metrics.csv"
    result = fit(toy(), dataset, num_steps=12, log_every=5, metrics_path=path, seeds=(0, 4))
    steps, values = result.log.curves()["metric"]
    np.testing.assert_array_equal(steps, [5, 10, 12])
    np.testing.assert_allclose(values, [3.0, 8.0, 11.5])
    lines = path.read_text().splitlines()
    assert lines[0] == "step,seed,metric,weight"
    assert [line.split(",")[:2] for line in lines[1:3]] == [["5", "0"], ["5", "4"]]


@pytest.mark.parametrize(("per_update", "expected"), [(1, [15, 30, 40]), (2, [16, 32, 40])])
def test_callbacks_come_at_their_steps(toy, dataset, per_update, expected):
    seen = []

    def callback(step, state):
        assert np.all(np.asarray(state.step) == step)
        seen.append(step)
        return {"score": np.array([float(step)])}

    result = fit(
        toy(steps_per_update=per_update), dataset, num_steps=40, log_every=10,
        callbacks=[Callback(15, callback)],
    )  # fmt: skip
    assert seen == expected
    np.testing.assert_array_equal(result.log.curves()["score"][0], expected)
    np.testing.assert_array_equal(result.log.curves()["score"][1], expected)


def test_steps_are_rounded_up_to_whole_updates(toy, dataset):
    result = fit(toy(steps_per_update=3), dataset, num_steps=10, log_every=4)
    assert result.step == 12 and int(result.state.step[0]) == 12
    np.testing.assert_array_equal(result.log.curves()["metric"][0], [6, 12])


def test_divergence_is_an_error_and_the_checkpoint_before_survives(toy, dataset, tmp_path):
    learner = toy(metric=lambda t: jnp.where(t == 25, jnp.nan, 1.0))
    keeper = Checkpointer(tmp_path / "run", {})
    path = tmp_path / "metrics.csv"
    with pytest.raises(DivergenceError, match=r"seed 0 is not finite at step 30.* step 20"):
        fit(learner, dataset, num_steps=100, log_every=10, save_every=10, checkpointer=keeper,
            metrics_path=path)  # fmt: skip
    assert keeper.latest() == 20
    like = training.init(learner, learner.prepare(dataset), (0,))
    assert int(keeper.restore(like).step[0]) == 20
    assert path.read_text().splitlines()[-1].startswith("30,0,nan")


def test_early_stopping_keeps_the_best(toy, dataset, tmp_path):
    learner = toy(errors=[3.0, 1.0, 2.0, 0.0])
    keeper = Checkpointer(tmp_path / "run", {})
    weights = {}
    watch = Callback(4, lambda step, state: weights.update({step: float(state.weight[0])}))
    result = fit(learner, dataset, num_steps=100, checkpointer=keeper, callbacks=[watch])
    assert result.step == 12 and bool(result.state.finished[0])
    assert float(result.state.best_weight[0]) == weights[8] != weights[12]
    np.testing.assert_array_equal(result.log.curves()["error"][0], [4, 8, 12])
    again = fit(learner, dataset, num_steps=1000, checkpointer=keeper)
    assert again.step == 12 and again.compile_seconds == 0
    assert_same_bits(again.state, result.state)


def test_dynamics_stop_early(task, dataset, configs):
    """A model that can only get worse: validation at step 4 is its best."""
    config = dataclasses.replace(configs["any_step_dynamics"], learning_rate=10.0, patience=1)
    result = fit(any_step_dynamics.make(task, config), dataset, num_steps=400)
    assert result.step < 400 and result.step % 4 == 0
    assert bool(result.state.finished[0])
    steps, best = result.log.curves()["best_holdout_mse"]
    assert steps[-1] == result.step
    _, error = result.log.curves()["holdout_mse"]
    np.testing.assert_allclose(best[-1], error[:-1].min(), rtol=1e-5)
    assert differs(result.state.best_params, result.state.params)


def test_models_are_trained_in_order(dataset, toy):
    """By epochs or steps as their configs say; a function gets the states before it."""
    seen = []

    def second(states):
        seen.append({name: int(state.step) for name, state in states.items()})
        return toy()

    config = types.SimpleNamespace(
        first=types.SimpleNamespace(max_epochs=2), second=types.SimpleNamespace(num_steps=3)
    )
    models = {"first": toy(errors=[2.0, 1.0], epoch=4), "second": second}
    states = fit_models(models, dataset, config, seed=4)
    assert seen == [{"first": 8}] and list(states) == ["first", "second"]
    alone = fit(toy(), dataset, num_steps=3, seeds=[4]).state
    assert_same_bits(states["second"], training.select_seed(alone, 0))
