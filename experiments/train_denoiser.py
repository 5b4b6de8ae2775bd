"""Trains the diffusion model of GTA or SynthER.

    python -m experiments.train_denoiser --env=walker2d-medium-v2 --synthesizer=gta

Writes checkpoints and metrics.csv to <workdir>/<env>/<synthesizer>/denoiser/.
`experiments.synthesize --synthesizer=gta|synther` trains it too if it is missing. Run it again to
resume. Fields for --set start with `denoiser.`, as in --set denoiser.batch_size=64.
"""

from absl import flags

from experiments import _main, _stages
from tgcvg_jax.synthesizers import SYNTHESIZERS

FLAGS = flags.FLAGS
flags.DEFINE_enum("synthesizer", "gta", [n for n in sorted(SYNTHESIZERS) if "denoiser" in
                  SYNTHESIZERS[n].MODEL_KINDS], "Whose denoiser.")  # fmt: skip
_stages.define_variant()
_stages.define_data()

if __name__ == "__main__":
    _main.run(lambda: _stages.train_one(FLAGS.synthesizer, "denoiser"))
