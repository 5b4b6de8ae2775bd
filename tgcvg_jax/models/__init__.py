"""What a synthesizer trains. Each module has `Config` and `make(task, config) -> Learner`."""

from tgcvg_jax.models import any_step_dynamics, transformer_cql

MODELS = {"transformer_cql": transformer_cql, "any_step_dynamics": any_step_dynamics}
