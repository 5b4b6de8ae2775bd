"""The systems that augment a dataset. A new one is one module here and one line below.

Each module has

    Config           frozen dataclass with a field for each model, named as in `Synthesizer.models`
    MODEL_KINDS      model -> its module's name in `tgcvg_jax.models.MODELS`; a config may leave
                     some out
    NUM_TRANSITIONS  preset -> how many to generate if the user doesn't say
    for_task(task, preset) -> Config
    as_paper(config) -> Config
    make(task, config) -> Synthesizer

and an entry in tests/conftest.py's `configs`, so that the tests of all synthesizers take it in; a
field whose values may be negative, or must lie between 0 and 1, is named in config.py. Training,
checkpoints, resuming, streaming, tables and pictures then work as they are.
"""

from tgcvg_jax.synthesizers import admpo, duplicate, gta, s4rl, synther, tgcvg

SYNTHESIZERS = {
    "tgcvg": tgcvg,
    "gta": gta,
    "synther": synther,
    "s4rl": s4rl,
    "duplicate": duplicate,
    "admpo": admpo,
}
