"""Trains the policy that TGCVG rolls out: Transformer-CQL.

    python -m experiments.train_policy --env=walker2d-medium-v2

Writes checkpoints and metrics.csv to <workdir>/<env>/tgcvg/policy/. `experiments.synthesize` trains
it too if it is missing; this app exists to train policy and dynamics side by side. Run it again to
resume. Fields for --set start with `policy.`, as in --set policy.num_steps=50000.
"""

from experiments import _main, _stages

_stages.define_variant()
_stages.define_data()

if __name__ == "__main__":
    _main.run(lambda: _stages.train_one("tgcvg", "policy"))
