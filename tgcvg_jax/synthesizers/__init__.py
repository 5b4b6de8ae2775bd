"""The systems that augment a dataset. A new one is one module here and one line below.

Each module has

    Config           frozen dataclass with a field for each model, named as in `Synthesizer.models`
    MODEL_KINDS      model -> its module's name in `tgcvg_jax.models.MODELS`; a config may leave
                     some out
    PRESETS          {"paper": ..., "quick": ...}, nested changes to Config that `for_task` applies
    NUM_TRANSITIONS  preset -> how many to generate if the user doesn't say
    for_task(task, preset) -> Config
    as_paper(config) -> Config
    make(task, config) -> Synthesizer
"""

from tgcvg_jax.synthesizers import gta, s4rl, synther, tgcvg

SYNTHESIZERS = {"tgcvg": tgcvg, "gta": gta, "synther": synther, "s4rl": s4rl}
