"""Trains the dynamics model that TGCVG rolls its policy out in: any-step dynamics.

    python -m experiments.train_dynamics --env=walker2d-medium-v2

Writes checkpoints and metrics.csv to <workdir>/<env>/tgcvg/dynamics/. `experiments.synthesize`
trains it too if it is missing; this app exists to train policy and dynamics side by side. Run it
again to resume. Fields for --set start with `dynamics.`, as in --set dynamics.hidden_dim=400.
"""

from experiments import _main, _stages

_stages.define_variant()
_stages.define_data()

if __name__ == "__main__":
    _main.run(lambda: _stages.train_one("tgcvg", "dynamics"))
