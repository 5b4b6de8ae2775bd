"""What a user trains on the data.

A new learner is one module here, for which a copy of `bc.py` is a start, and an entry in
`LEARNERS`. It needs as well a tiny config in `tests/conftest.py`, by which the tests of all
learners run it; and a name in `config.SIGNED` or `config.UNIT_INTERVAL` for each field that may be
negative, or at most 1. (`sac` is no offline learner: `collection` runs it.) Each module has

    Config      frozen dataclass with a field `num_steps`, which the apps pass to `training.fit`
    PRESETS     {"paper": ..., "quick": ...}, changes to Config: the scale of a run
    for_task(task, hyperparameters) -> Config, for each of HYPERPARAMETERS
    make(task, config) -> Learner with a policy
"""

from tgcvg_jax.learners import bc, cql, dt, iql, mcq, rebrac, td3_bc, transformer_td3bc

# Whose settings: CORL's current defaults and per-task overrides; TGCVG's released copies of an
# older CORL, without overrides; GTA's command lines.
HYPERPARAMETERS = ("tgcvg", "corl", "gta")
LEARNERS = {
    "td3_bc": td3_bc,
    "cql": cql,
    "bc": bc,
    "iql": iql,
    "rebrac": rebrac,
    "mcq": mcq,
    "dt": dt,
    "transformer_td3bc": transformer_td3bc,
}
