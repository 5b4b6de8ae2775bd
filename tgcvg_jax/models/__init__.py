"""What a synthesizer trains. A new model is one module here and one line below.

Each module has `make(task, config) -> Learner` and `Config`, which says how long to train: in a
field `num_steps`, or `max_epochs` if the learner validates. (The apps read it; `training.fit` takes
the number as an argument; `training.fit_models` reads it from a synthesizer's config.) `denoiser`
and `any_step_disagreement` are none themselves: the one is what the two denoisers share, the other
is how the any-step model's predictions differ, for `admpo_policy`. That one learns in a trained
dynamics model, which its `make` takes as well; to act it needs none.
"""

from tgcvg_jax.models import (
    admpo_policy,
    any_step_dynamics,
    ensemble_dynamics,
    reward_model,
    terminal_classifier,
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
    "terminal_classifier": terminal_classifier,
    "ensemble_dynamics": ensemble_dynamics,
    "admpo_policy": admpo_policy,
}
