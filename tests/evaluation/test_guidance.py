import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import training
from tgcvg_jax.evaluation import guidance
from tgcvg_jax.models import window_denoiser


class Obedient(nn.Module):
    """D is the condition times `gain` in every entry, where it is kept; else 0."""

    gain: float

    @nn.compact
    def __call__(self, x, noise_level, condition=None, keep=None):
        self.variable("constants", "none", lambda: jnp.zeros(1))
        self.param("none", nn.initializers.zeros_init(), (1,))
        sigma = jnp.exp(4.0 * noise_level)[:, None, None]
        wanted = self.gain * (keep * condition[:, 0])[:, None, None]
        c_out = sigma / jnp.sqrt(sigma**2 + 1.0)
        c_skip = 1.0 / (sigma**2 + 1.0)
        return (wanted - c_skip * x * jnp.sqrt(sigma**2 + 1.0)) / c_out


@pytest.mark.parametrize("gain", [1.0, -1.0])
def test_response(task, dataset, configs, gain):
    config = configs["window_denoiser"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_denoiser, "make_network", lambda config: Obedient(gain))
        learner = window_denoiser.make(task, config)
        data = learner.prepare(dataset)
        state = training.select_seed(training.init(learner, data, (0,)), 0)
        response = guidance.condition_response(
            task, config, state, dataset, num_windows=64, guidance=2.0
        )
    generated, original = response.correlations()
    np.testing.assert_allclose(generated, gain, atol=1e-3)
    assert -1.0 <= original < 0.999
    known = np.asarray(data.condition)[np.asarray(data.starts)] / config.condition_scale
    assert all(np.min(np.abs(known - w)) < 1e-4 for w in response.wanted)
    # The last step is guided: D = 2 wanted, in standardised units.
    reward_std = float(data.normalizer.std[-1])
    slope = np.polyfit(response.wanted, response.generated, 1)[0]
    np.testing.assert_allclose(slope, 2 * gain * config.condition_scale * reward_std, rtol=1e-3)
