"""What every synthesizer, model and learner module promises to the apps."""

import dataclasses

import pytest

from tgcvg_jax import config as config_lib
from tgcvg_jax.learners import LEARNERS
from tgcvg_jax.models import MODELS
from tgcvg_jax.synthesizers import SYNTHESIZERS
from tgcvg_jax.tasks import TASKS

TASK = TASKS["hopper-medium-v2"]
PRESETS = ("paper", "quick")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SYNTHESIZERS)
def test_synthesizers(name, preset):
    module = SYNTHESIZERS[name]
    config = module.for_task(TASK, preset)
    config_lib.check(config)
    config_lib.check(module.as_paper(config))
    assert config_lib.from_dict(module.Config, config_lib.to_dict(config)) == config
    assert module.NUM_TRANSITIONS[preset] > 0
    synthesizer = module.make(TASK, config)
    assert set(synthesizer.models) == set(module.MODEL_KINDS)
    for model, learner in synthesizer.models.items():
        kind = MODELS[module.MODEL_KINDS[model]]
        assert isinstance(getattr(config, model), kind.Config)
        length = "num_steps" if learner.validate is None else "max_epochs"
        assert getattr(getattr(config, model), length) > 0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", LEARNERS)
def test_learners(name, preset):
    module = LEARNERS[name]
    config = dataclasses.replace(module.Config(), **module.PRESETS[preset])
    config_lib.check(config)
    assert config.num_steps > 0
    assert module.make(TASK, config).policy is not None
