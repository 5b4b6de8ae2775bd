"""Training a synthesizer's models, one of which learns from another."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from experiments import _main, _stages
from tgcvg_jax.synthesizers import SYNTHESIZERS
from tgcvg_jax.types import Task, UserError


@dataclasses.dataclass(frozen=True)
class Model:
    num_steps: int = 8
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    first: Model = Model()
    second: Model = Model()


@pytest.fixture
def stages(monkeypatch, tmp_path, toy, dataset):
    """`train(config, label, reused)`: what was trained, and what each learner was given."""
    module = types.SimpleNamespace(MODEL_KINDS={"first": "a", "second": "b"})
    monkeypatch.setitem(SYNTHESIZERS, "toy", module)
    made = []

    def second(states):
        made.append({name: float(state.weight) for name, state in states.items()})
        offset = states["first"].weight  # of one seed
        return toy(metric=lambda t: offset + t)

    def train(config=Config(), name=None, reused=None):
        flags = types.SimpleNamespace(workdir=tmp_path, name=name, seed=0, preset="quick")
        monkeypatch.setattr(_main, "FLAGS", flags)
        monkeypatch.setattr(_stages, "FLAGS", flags)
        models = {"first": toy(), "second": second}
        task = dataset.task
        keepers = _stages.open_checkpoints("toy", models, task, config, dataset, reused)
        return _stages.train_models(models, config, dataset, keepers)

    return types.SimpleNamespace(train=train, made=made, folder=tmp_path / "toy" / "toy")


def test_a_model_gets_the_states_of_those_before_it(stages):
    states = stages.train()
    assert list(states) == ["first", "second"] and states["second"].step == 8
    assert jnp.ndim(states["first"].weight) == 0
    assert stages.made == [{"first": float(states["first"].weight)}]
    assert sorted(p.name for p in stages.folder.iterdir()) == ["first", "second"]


def test_it_counts_what_its_teachers_were(stages):
    stages.train()
    with pytest.raises(UserError) as error:  # also where that may be extended by itself
        stages.train(Config(first=Model(num_steps=12)))
    message = str(error.value)
    assert "models.first.num_steps: 8 -> 12" in message and "another --name or" in message
    # Nothing was trained before all folders had been looked at.
    assert not (stages.folder / "first" / "12").exists()


def test_it_is_refused_when_its_teacher_went_on_alone(stages, dataset, toy):
    stages.train()
    longer = Config(first=Model(num_steps=12))
    keepers = _stages.open_checkpoints("toy", {"first": toy()}, dataset.task, longer, dataset)
    _stages.train_models({"first": toy()}, longer, dataset, keepers)
    for config, words in ((longer, r"models.first.num_steps: 8 -> 12"), (Config(), "holds 12")):
        with pytest.raises(UserError, match=words):
            stages.train(config)


def test_checksum_is_of_all_float_numbers():
    state = {"a": jnp.ones(3), "b": {"c": jnp.zeros(2, jnp.bfloat16)}, "step": jnp.int32(1)}
    known = _stages.checksum(state)
    assert known == _stages.checksum(state | {"step": jnp.int32(2), "key": jax.random.key(0)})
    changed = state["a"].at[2].set(1 + 1e-7), state["b"]["c"].at[1].set(1)
    assert len({known, *(_stages.checksum(state | {"a": changed[0]}),
                         _stages.checksum(state | {"b": {"c": changed[1]}}))}) == 3  # fmt: skip
    params = types.SimpleNamespace(params=state, moments=jnp.ones(2))
    assert _stages.checksum(params) == known


def test_models_of_another_run_are_taken_as_they_are(stages, tmp_path):
    first = stages.train()
    reused = _stages.models_from(["toy"], ["first", "second"])
    again = stages.train(name="other", reused=reused)
    assert again["second"].weight == first["second"].weight
    assert [p.name for p in (tmp_path / "toy").iterdir()] == ["toy"]
    one = stages.train(
        Config(second=Model(rate=0.1)), name="other", reused=_stages.models_from(
            ["first:toy"], ["first", "second"]
        )
    )  # fmt: skip
    assert one["first"].weight == first["first"].weight
    assert [p.name for p in (tmp_path / "toy" / "toy-other").iterdir()] == ["second"]
    with pytest.raises(UserError, match=r"num_steps: 8 -> 9.*or another --models_from"):
        stages.train(Config(first=Model(num_steps=9)), name="x", reused={"first": "toy"})
    with pytest.raises(UserError, match="toy-none/first holds no trained model"):
        stages.train(name="x", reused={"first": "toy-none"})


def test_models_from():
    parse = lambda *texts: _stages.models_from(texts, ["policy", "dynamics"])  # noqa: E731
    assert parse() == {}
    assert parse("tgcvg") == {"policy": "tgcvg", "dynamics": "tgcvg"}
    assert parse("tgcvg", "policy:b") == {"policy": "b", "dynamics": "tgcvg"}
    only = _stages.models_from(["a"], ["policy", "classifier"], lambda model, _: model == "policy")
    assert only == {"policy": "a"}
    with pytest.raises(UserError, match="--models_from=a: no model has been trained there"):
        _stages.models_from(["a"], ["policy"], lambda *_: False)
    with pytest.raises(UserError, match="no model 'actor'; there are policy, dynamics"):
        parse("actor:b")


def test_labels(monkeypatch):
    for name, label in ((None, "gta"), ("k40.1_a", "gta-k40.1_a")):
        monkeypatch.setattr(_main, "FLAGS", types.SimpleNamespace(name=name))
        assert _main.labelled("gta") == label
    for name in ("", "a/b", "a b", "ü"):
        monkeypatch.setattr(_main, "FLAGS", types.SimpleNamespace(name=name))
        with pytest.raises(UserError, match="letters, digits"):
            _main.labelled("gta")


def test_every_config_has_defaults():
    task = Task("toy", "", 3, 2, 30, family="hopper-medium")
    for module in SYNTHESIZERS.values():
        assert _stages.defaults(module.for_task(task))
