"""Trains the policy that TGCVG rolls out: Transformer-CQL.

    python -m experiments.train_policy --env=walker2d-medium-v2

Writes checkpoints and metrics.csv to <workdir>/<env>/tgcvg/policy/. `experiments.synthesize` trains
it too if it is missing; this app exists to train policy and dynamics side by side. Run it again to
resume. Fields for --set start with `policy.`, as in --set policy.num_steps=50000.
"""

from experiments import _main, _stages
from tgcvg_jax.synthesizers import tgcvg

_stages.define_variant()


def main() -> None:
    """Trains or resumes the model."""
    task, dataset = _stages.load()
    config = _stages.synthesizer_config(tgcvg, task)
    synthesizer = tgcvg.make(task, config)
    _stages.train_model("tgcvg", "policy", synthesizer, task, config, dataset)


if __name__ == "__main__":
    _main.run(main)
