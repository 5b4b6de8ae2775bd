"""The systems that augment a dataset. A new one is one module here and one line below.

Each module has `Config`, `PRESETS`, `NUM_TRANSITIONS`, `KINDS`, `for_task(task) -> Config`,
`as_paper(config) -> Config` and `make(task, config) -> Synthesizer`.
"""

from tgcvg_jax.synthesizers import tgcvg

SYNTHESIZERS = {"tgcvg": tgcvg}
