import dataclasses
import json

import jax
import numpy as np
import pytest

from tgcvg_jax.collection import online
from tgcvg_jax.collection.policies import read_policy
from tgcvg_jax.learners import sac
from tgcvg_jax.tasks import ENVIRONMENTS
from tgcvg_jax.training import DivergenceError
from tgcvg_jax.types import UserError

TASK = dataclasses.replace(ENVIRONMENTS["hopper"], episode_length=60)
CONFIG = sac.Config(
    num_steps=300, start_steps=60, block_steps=20, batch_size=16, hidden_dims=(16, 16)
)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(online, "SAVE_STEPS", 100)
    monkeypatch.setattr(online, "CHECK_STEPS", 50)
    monkeypatch.setattr(online, "EVAL_EPISODES", 1)


def run(directory, num_steps=300):
    config = dataclasses.replace(CONFIG, num_steps=num_steps)
    return online.OnlineRun(TASK, config, directory, 0)


def contents(directory):
    names = ("metrics.csv", "last.npz")
    found = {name: (directory / name).read_bytes() for name in names[:1]}
    with np.load(directory / "last.npz") as file:
        found |= {name: file[name].tobytes() for name in file.files if name != "meta"}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "SAVE_STEPS", 100)
        patch.setattr(online, "CHECK_STEPS", 50)
        patch.setattr(online, "EVAL_EPISODES", 1)
        directory = tmp_path_factory.mktemp("whole")
        run(directory).train()
    return directory


def test_it_trains_and_keeps_everything(whole):
    done = run(whole)
    assert 300 <= done.step < 360 and done.replay.size == done.step
    dataset = done.replay.read(TASK)
    ends = np.asarray(dataset.remaining) == 1
    assert np.all(np.asarray(dataset.timestep) < 60)
    terminal = np.asarray(dataset.transition.discount) == 0
    assert not np.any(terminal & ~ends) and terminal.any()
    before = online.initial_policy(TASK, CONFIG, 0)
    after = read_policy(whole / "last.npz", TASK)
    assert not np.allclose(before.arrays["W0"], after.arrays["W0"])
    assert done.milestone(1e9) is None


def test_finished_is_finished(whole):
    before = contents(whole)
    run(whole).train()
    assert contents(whole) == before


class Killed(Exception):
    pass


def test_killed_and_resumed_it_ends_in_the_same_bits(whole, tmp_path, monkeypatch):
    play = online._Trainer.play

    def play_until(self, env):
        if self.step > 240:
            raise Killed
        return play(self, env)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(online._Trainer, "play", play_until)
        run(tmp_path).train()
    again = run(tmp_path)
    assert 0 < again.step < 300
    again.replay.add([episode_of(again)])  # saved, but the kill came before the checkpoint
    again.train()
    assert contents(tmp_path) == contents(whole)
    a, b = (run(d).replay.read(TASK) for d in (tmp_path, whole))
    jax.tree.map(np.testing.assert_array_equal, a.transition, b.transition)


def test_a_longer_run_goes_on_as_if_it_had_been_long_at_once(whole, tmp_path):
    run(tmp_path, num_steps=150).train()
    assert run(tmp_path).step < 250
    run(tmp_path).train()
    one, other = contents(tmp_path), contents(whole)
    assert {k: v for k, v in one.items() if k != "metrics.csv"} == {
        k: v for k, v in other.items() if k != "metrics.csv"
    }


def episode_of(done):
    from tgcvg_jax.collection.parts import EpisodeBuilder

    builder = EpisodeBuilder(np.zeros(11))
    builder.add(np.zeros(3), 0.0, np.ones(11))
    return builder.finish(True)


def test_stops_at_the_medium_policy_and_goes_on(tmp_path, whole):
    done = run(tmp_path)
    done.train(until_return=-1e9)
    milestone = done.milestone(-1e9)
    assert milestone.step == milestone.reached == done.step < 200
    assert read_policy(milestone.policy, TASK).shape == (11, 3)
    done.train()
    assert done.step >= 300 and done.milestone(-1e9) == milestone


def test_medium_is_the_nearest_until_one_reaches_it(tmp_path, monkeypatch):
    """A jump over the target does not make an expert medium; any return may be medium later."""
    returns = iter([5.0, 33.0, 8.0, 90.0, 41.0, 95.0, 40.0, 40.0])
    monkeypatch.setattr(online, "_evaluate", lambda *_: next(returns))
    done = run(tmp_path)
    done.train()
    milestone = done.milestone(40.0)
    assert milestone.mean_return == 33.0 and milestone.reached > milestone.step
    with np.load(milestone.policy) as file:
        assert json.loads(str(file["meta"]))["mean_return"] == 33.0
    assert done.milestone(10.0).mean_return == 5.0
    assert done.milestone(89.0).mean_return == 90.0
    assert done.milestone(96.0) is None


def test_divergence_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(online._Trainer, "take_metrics", lambda self: {"q": np.array([np.nan])})
    done = run(tmp_path)
    with pytest.raises(DivergenceError, match="q is not finite"):
        done.train()
    assert done.step == 0


def test_a_longer_training_is_not_taken_for_a_shorter(whole):
    with pytest.raises(UserError, match="more than the 100 asked for"):
        run(whole, num_steps=100).train()


def test_the_file_policy_is_the_learners(whole):
    done = run(whole)
    trainer = online._Trainer(done._learner, TASK, CONFIG, 0)
    trainer.restore(done._checkpointer, done.replay.read(TASK))
    policy = online.to_mlp_policy(trainer.state, CONFIG)
    observation = np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)
    state = jax.tree.map(lambda x: x[0], trainer.state)
    expected, _ = done._learner.policy.act(state, (), observation, None, None, True)
    np.testing.assert_allclose([policy.act(x) for x in observation], expected, atol=1e-5)
