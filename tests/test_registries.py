"""What every synthesizer, model and learner module promises to the apps."""

import pytest

from tgcvg_jax import config as config_lib
from tgcvg_jax import tasks
from tgcvg_jax.learners import HYPERPARAMETERS, LEARNERS
from tgcvg_jax.models import MODELS
from tgcvg_jax.synthesizers import SYNTHESIZERS

TASK = tasks.TASKS["hopper-medium-v2"]
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
    assert set(synthesizer.models) <= set(module.MODEL_KINDS)
    for model, learner in synthesizer.models.items():
        kind = MODELS[module.MODEL_KINDS[model]]
        assert isinstance(getattr(config, model), kind.Config)
        validates = getattr(learner, "validate", None) is not None  # a function doesn't say
        length = "max_epochs" if validates else "num_steps"
        assert getattr(getattr(config, model), length) > 0


@pytest.mark.parametrize("hyperparameters", HYPERPARAMETERS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", LEARNERS)
def test_learners(name, preset, hyperparameters):
    module = LEARNERS[name]
    for task in tasks.TASKS.values():
        config = module.for_task(task, hyperparameters)
        config = config_lib.replace_nested(config, module.PRESETS[preset])
        config_lib.check(config)
        assert config_lib.from_dict(module.Config, config_lib.to_dict(config)) == config
        assert config.num_steps > 0
        assert module.make(task, config).policy is not None
