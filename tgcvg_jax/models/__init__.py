"""What a synthesizer trains. A new model is one module here and one line below.

Each module has `make(task, config) -> Learner` and `Config`, which says how long to train: in a
field `num_steps`, or `max_epochs` if the learner validates. (The apps read it; `training.fit` takes
the number as an argument.)
"""

from tgcvg_jax.models import any_step_dynamics, transformer_cql

MODELS = {"transformer_cql": transformer_cql, "any_step_dynamics": any_step_dynamics}
