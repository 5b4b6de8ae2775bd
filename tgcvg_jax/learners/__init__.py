"""What a user trains on the data. A new learner is one module here and one line below.

Each module has `Config`, `PRESETS` and `make(task, config) -> Learner`.
"""

from tgcvg_jax.learners import td3_bc

LEARNERS = {"td3_bc": td3_bc}
