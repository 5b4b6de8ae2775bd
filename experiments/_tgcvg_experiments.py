"""The experiments of TGCVG's tables.

An experiment is a function (env, scale) -> commands. Each command has a folder of its own, so that
all experiments can share one workdir; what several need is run once.
"""

from __future__ import annotations

from collections.abc import Iterator

from experiments._commands import Command, Scale, evaluate, quality, synthesize, train

S4RL_NOISE = "--state_noise=0.0003"


def locomotion(env: str, scale: Scale) -> Iterator[Command]:
    """All learners on all data; SynthER's single transitions are nothing for DT."""
    for name in ("synther", "gta", "tgcvg"):
        yield synthesize(env, name)
    for learner in ("td3_bc", "cql", "iql", "dt"):
        yield train(env, "none", learner, scale.seeds)
        yield train(env, "none", learner, scale.seeds, S4RL_NOISE, name="s4rl")
        for label in ("synther", "gta", "tgcvg"):
            if (label, learner) != ("synther", "dt"):
                yield train(env, label, learner, scale.seeds)
    yield evaluate(env, "tgcvg", "policy")


def mazes(env: str, scale: Scale) -> Iterator[Command]:
    """IQL on all data."""
    for name in ("synther", "gta", "tgcvg"):
        yield synthesize(env, name)
    yield train(env, "none", "iql", scale.seeds)
    yield train(env, "none", "iql", scale.seeds, S4RL_NOISE, name="s4rl")
    for label in ("synther", "gta", "tgcvg"):
        yield train(env, label, "iql", scale.seeds)


def action_synthesizer(env: str, scale: Scale) -> Iterator[Command]:
    """{Transformer, MLP} x {lambda of Table 6, 10} x {n-step, one-step}, in every combination."""
    yield synthesize(env, "tgcvg")
    labels = ["tgcvg"]
    for architecture in ("transformer", "mlp"):
        for weight in (None, 10.0):
            for target in ("n_step", "one_step"):
                changes = [
                    ("architecture", architecture, "transformer"),
                    ("target", target, "n_step"),
                    ("cql_weight", weight, None),
                ]
                flags = [f"--set=policy.{k}={v}" for k, v, usual in changes if v != usual]
                if not flags:
                    continue
                name = "-".join([
                    architecture, "lambda10" if weight else "own", target.replace("_", "")
                ])  # fmt: skip
                yield synthesize(env, "tgcvg", *flags, name=name, models=["dynamics:tgcvg"])
                labels.append(f"tgcvg-{name}")
    for label in labels:
        yield evaluate(env, label, "policy")
        yield quality(env, label, scale)
    yield train(env, "none", "td3_bc", scale.seeds)
    for label in labels:
        yield train(env, label, "td3_bc", scale.seeds)


def data_quality(env: str, scale: Scale) -> Iterator[Command]:
    """Novelty, optimality, dynamics error, and how the error grows, of all synthesizers."""
    for name in ("s4rl", "synther", "gta", "tgcvg"):
        yield synthesize(env, name)
        yield quality(env, name, scale, "--all_novelty")


def transformer_td3bc(env: str, scale: Scale) -> Iterator[Command]:
    """The loss of QT as a learner by itself."""
    yield train(env, "none", "transformer_td3bc", scale.seeds)
    yield train(env, "none", "td3_bc", scale.seeds)
    yield synthesize(env, "tgcvg")
    yield train(env, "tgcvg", "td3_bc", scale.seeds)


def generators(env: str, scale: Scale) -> Iterator[Command]:
    """TD3+BC and CQL on data of Transformer-CQL, of Transformer-TD3BC, and with return tokens."""
    yield synthesize(env, "tgcvg")
    yield train(env, "none", "transformer_td3bc", 1, name="generator")
    given = "--generator={runs}/none/transformer_td3bc-generator"
    yield synthesize(env, "tgcvg", given, name="td3bc", models=["dynamics:tgcvg"])
    tokens = "--set=policy.return_to_go=true"
    yield synthesize(env, "tgcvg", tokens, name="rtg", models=["dynamics:tgcvg"])
    for label in ("none", "tgcvg", "tgcvg-td3bc", "tgcvg-rtg"):
        for learner in ("td3_bc", "cql"):
            yield train(env, label, learner, scale.seeds)
    for label in ("tgcvg", "tgcvg-td3bc", "tgcvg-rtg"):
        yield quality(env, label, scale)


def policies(env: str, scale: Scale) -> Iterator[Command]:
    """The generator's own score beside that of a learner on its data."""
    yield synthesize(env, "tgcvg")
    yield evaluate(env, "tgcvg", "policy")
    for learner in ("td3_bc", "cql", "iql"):
        yield train(env, "none", learner, scale.seeds)
        yield train(env, "tgcvg", learner, scale.seeds)


def times(env: str, scale: Scale) -> Iterator[Command]:
    """Training and generating, which synthesize times; GTA at its own length and at TGCVG's."""
    yield synthesize(env, "tgcvg")
    yield synthesize(env, "gta")
    short = f"--set=denoiser.num_steps={scale.short}"
    yield synthesize(env, "gta", short, name="short")


def window_length(env: str, scale: Scale) -> Iterator[Command]:
    """K, the length of the source windows."""
    yield synthesize(env, "tgcvg")
    for length in scale.windows:
        change = f"--set=window_length={length}"
        yield synthesize(
            env, "tgcvg", change, name=f"k{length}", models=["tgcvg"], count=scale.swept
        )
        yield quality(env, f"tgcvg-k{length}", scale)
        yield train(env, f"tgcvg-k{length}", "td3_bc", scale.seeds)


def conservatism(env: str, scale: Scale) -> Iterator[Command]:
    """lambda, the weight of the conservative term."""
    yield synthesize(env, "tgcvg")
    for weight in scale.weights:
        label, change = f"tgcvg-lambda{weight:g}", f"--set=policy.cql_weight={weight:g}"
        yield synthesize(
            env, "tgcvg", change, name=f"lambda{weight:g}", models=["dynamics:tgcvg"],
            count=scale.swept,
        )  # fmt: skip
        yield evaluate(env, label, "policy")
        yield quality(env, label, scale)
        yield train(env, label, "td3_bc", scale.seeds)


def admpo(env: str, scale: Scale) -> Iterator[Command]:
    """ADMPO's own policy, IQL on what it rolls out, and IQL on TGCVG's data."""
    yield synthesize(env, "tgcvg")
    yield synthesize(env, "admpo", models=["dynamics:tgcvg"])
    yield evaluate(env, "admpo", "policy")
    for label in ("none", "admpo", "tgcvg"):
        yield train(env, label, "iql", scale.seeds)
