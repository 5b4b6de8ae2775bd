"""What a synthesizer trains. A new model is one module here and one line below.

Each module has `make(task, config) -> Learner` and `Config`, which says how long to train: in a
field `num_steps`, or `max_epochs` if the learner validates. (The apps read it; `training.fit` takes
the number as an argument.) `denoiser` is none itself: it is what the two denoisers share.
"""

from tgcvg_jax.models import (
    any_step_dynamics,
    reward_model,
    transformer_cql,
    transition_denoiser,
    window_denoiser,
)

MODELS = {
    "transformer_cql": transformer_cql,
    "any_step_dynamics": any_step_dynamics,
    "window_denoiser": window_denoiser,
    "transition_denoiser": transition_denoiser,
    "reward_model": reward_model,
}
