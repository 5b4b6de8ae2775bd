"""The tables and figures of TGCVG and GTA: what each holds, and the experiments that make it.

Neither paper's text was at hand in full. Where it could not be established what a table holds, its
entry says so, and names the experiments that come closest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from experiments import _further_experiments as f
from experiments import _gta_experiments as g
from experiments import _tgcvg_experiments as t
from experiments._commands import Command, Scale

Experiment = Callable[[str, Scale], Iterator[Command]]


class Table(NamedTuple):
    """A table or figure.

    Attributes:
      about: one line.
      experiments: names in `EXPERIMENTS`.
    """

    about: str
    experiments: tuple[str, ...]


# name -> (function, field of Scale with its tasks)
EXPERIMENTS: dict[str, tuple[Experiment, str]] = {
    "tgcvg/locomotion": (t.locomotion, "locomotion"),
    "tgcvg/mazes": (t.mazes, "mazes"),
    "tgcvg/action-synthesizer": (t.action_synthesizer, "sweep"),
    "tgcvg/quality": (t.data_quality, "locomotion"),
    "tgcvg/qt": (t.transformer_td3bc, "locomotion"),
    "tgcvg/generators": (t.generators, "sweep"),
    "tgcvg/policies": (t.policies, "locomotion"),
    "tgcvg/times": (t.times, "sweep"),
    "tgcvg/window-length": (t.window_length, "sweep"),
    "tgcvg/lambda": (t.conservatism, "sweep"),
    "tgcvg/admpo": (t.admpo, "locomotion"),
    "both/amounts": (f.amounts, "sweep"),
    "both/subsets": (f.subsets, "sweep"),
    "both/mixed": (f.mixed, "sweep"),
    "gta/locomotion": (g.gta_locomotion, "locomotion"),
    "gta/safe": (g.gta_safe, "locomotion"),
    "gta/wide": (g.gta_wide, "lower"),
    "gta/grid": (g.gta_grid, "sweep"),
    "gta/noise-and-return": (g.gta_sweeps, "sweep"),
    "gta/horizon": (g.gta_horizon, "sweep"),
    "gta/guidance": (g.gta_guidance, "sweep"),
    "gta/reweighting": (g.gta_reweighting, "sweep"),
    "gta/target": (g.gta_target, "sweep"),
    "gta/rewards": (g.gta_rewards, "sweep"),
    "gta/dt": (g.gta_dt, "locomotion"),
    "gta/synther": (g.synther_width, "sweep"),
    "beyond/tgcvg": (f.beyond, "sweep"),
}

UNKNOWN = "contents not known to us; closest:"
TGCVG_REST = ("tgcvg/lambda", "both/amounts", "both/subsets", "both/mixed")
GTA_REST = (
    "gta/horizon", "gta/guidance", "gta/reweighting", "gta/target", "gta/rewards", "gta/dt",
    "gta/synther", "both/amounts", "both/subsets", "both/mixed",
)  # fmt: skip

GTA_UNKNOWN = Table(f"{UNKNOWN} what GTA varies and no other entry holds", GTA_REST)

TABLES: dict[str, Table] = {
    "tgcvg/table1": Table(
        "TD3+BC, CQL, IQL and DT on locomotion: no augmentation, S4RL, SynthER, GTA, TGCVG",
        ("tgcvg/locomotion",),
    ),
    "tgcvg/table2": Table(
        "the same comparison on Maze2D and AntMaze; the learner is IQL as far as we know",
        ("tgcvg/mazes",),
    ),
    "tgcvg/table3": Table(
        "the action synthesizer against an MLP with lambda 10 and one-step targets, which the "
        "paper changes at once; here all combinations (its learners are not known to us: TD3+BC)",
        ("tgcvg/action-synthesizer",),
    ),
    "tgcvg/table4": Table(
        "novelty, optimality and dynamics error of S4RL, SynthER, GTA and TGCVG",
        ("tgcvg/quality",),
    ),
    "tgcvg/table7": Table(
        "QT, which is not part of this project; closest: Transformer-TD3BC, its loss without its "
        "tokens, beside TD3+BC with TGCVG",
        ("tgcvg/qt",),
    ),
    "tgcvg/table8": Table(
        "the window length K from 25 to 100; the points between, and the tasks, are our choice",
        ("tgcvg/window-length",),
    ),
    "tgcvg/table9": Table(f"{UNKNOWN} lambda, amounts and quality of the data", TGCVG_REST),
    "tgcvg/table10": Table(f"{UNKNOWN} lambda, amounts and quality of the data", TGCVG_REST),
    "tgcvg/table11": Table("ADMPO, IQL on ADMPO's data, IQL on TGCVG's data", ("tgcvg/admpo",)),
    "tgcvg/figure2": Table(
        "TD3+BC and CQL on data of Transformer-TD3BC (2a: collapse under CQL) and TGCVG; and with "
        "return-to-go tokens (which part shows them is not known to us)",
        ("tgcvg/generators",),
    ),
    "tgcvg/figure3": Table(
        "the generating policy's own score (3b); 3a is not known to us; closest: scores of "
        "learners on its data",
        ("tgcvg/policies",),
    ),
    "tgcvg/figure4": Table(
        "time of training and of generating, TGCVG and GTA, at 200,000 training steps and GTA's "
        "own; synthesize prints them where it trains or generates anew",
        ("tgcvg/times",),
    ),
    "tgcvg/figure5": Table(
        f"{UNKNOWN} error against rollout step (the paper's B.6), in quality.json's curves",
        ("tgcvg/quality",),
    ),
    "tgcvg/figure6": Table(
        f"{UNKNOWN} error against rollout step (the paper's B.6), in quality.json's curves",
        ("tgcvg/quality",),
    ),
    "gta/table1": Table(
        "TD3+BC, CQL, IQL and MCQ on locomotion: no augmentation, S4RL, SynthER, GTA",
        ("gta/locomotion",),
    ),
    "gta/table4": Table(
        "one 'safe' setting for all tasks, mu = 0.25 and alpha = 1.1", ("gta/safe",)
    ),
    "gta/table5": Table(
        "noise levels mu = 0.5 and 0.75 at alpha = 1.3, medium and medium-replay",
        ("gta/wide",),
    ),
    **dict.fromkeys([f"gta/table{i}" for i in range(10, 20)], GTA_UNKNOWN),
    "gta/table20": Table(
        "scores by learner, those of IQL and CQL exchanged against Table 1; more is not known to "
        "us; closest: the runs of Table 1",
        ("gta/locomotion",),
    ),
    "gta/table26": GTA_UNKNOWN,
    "gta/table27": Table(
        "cost of training and of sampling; synthesize prints it where it trains or generates anew",
        ("tgcvg/times",),
    ),
    "gta/table28": GTA_UNKNOWN,
    "gta/table29": Table(
        "a grid of noise level mu and amplification alpha; its points are our choice",
        ("gta/grid",),
    ),
    "gta/figure4": Table(
        "noise level mu (4b), and amplification alpha (as we suppose, 4a)",
        ("gta/noise-and-return",),
    ),
    **dict.fromkeys([f"gta/figure{i}" for i in range(6, 12)], GTA_UNKNOWN),
    "beyond/tgcvg": Table(
        "no paper's: this project's changes to TGCVG (terminals, noise, ensemble, starts, "
        "generators), one at a time",
        ("beyond/tgcvg",),
    ),
}


def commands(names: tuple[str, ...], scale: Scale, env: str | None = None) -> list[Command]:
    """Commands of tables or experiments in order, each once, and the report of all.

    Args:
      names: of tables or experiments.
      scale: at which.
      env: in place of each experiment's own tasks.
    """
    found: dict[Command, None] = {}
    for name in names:
        for experiment in TABLES[name].experiments if name in TABLES else (name,):
            function, field = EXPERIMENTS[experiment]
            for task in (env,) if env else getattr(scale, field):
                found |= dict.fromkeys(function(task, scale))
    return [*found, Command("report", "", ())]
