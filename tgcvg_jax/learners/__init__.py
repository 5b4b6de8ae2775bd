"""What a user trains on the data. A new learner is one module here and one line below.

Each module has `Config` with a field `num_steps` (read by the apps; `training.fit` takes it as an
argument), `PRESETS` ({"paper": ..., "quick": ...}, changes to Config) and
`make(task, config) -> Learner` with a policy.
"""

from tgcvg_jax.learners import td3_bc

LEARNERS = {"td3_bc": td3_bc}
