"""The experiments of TGCVG's tables, and those on how much data there is, and how good.

An experiment is a function (env, scale) -> commands. Each command has a folder of its own, so that
all experiments can share one workdir; what several need is run once.
"""

from __future__ import annotations

from collections.abc import Iterator

from experiments._commands import Command, Scale, evaluate, quality, synthesize, train

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)
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


def beyond(env: str, scale: Scale) -> Iterator[Command]:
    """This project's own changes to TGCVG, one at a time, and the most useful of them together."""
    both = ["policy:tgcvg", "dynamics:tgcvg"]
    policy = ["policy:tgcvg"]
    rule, calibrated = "--set=terminals=rule", "--set=dynamics_noise=calibrated"
    quiet = "--set=dynamics_dropout=false"
    ensemble = "--set=dynamics_model=ensemble"
    variants = {
        "rule": ([rule], both),
        "classifier": (["--set=terminals=classifier"], both),
        "nodropout": ([quiet], both),
        "mean": ([quiet, "--set=dynamics_noise=mean"], both),
        "calibrated": ([quiet, calibrated], both),
        "ensemble": ([ensemble], policy),
        "truncated": ([ensemble, "--set=disagreement_quantile=0.99"], policy),
        "starts": (["--set=start_temperature=1"], both),
        "padded": (["--set=left_padded=true"], both),
        "candidates": (["--set=policy.num_candidates=10"], ["dynamics:tgcvg"]),
        "together": ([quiet, calibrated, rule, "--set=left_padded=true"], both),
    }
    yield synthesize(env, "tgcvg")
    yield quality(env, "tgcvg", scale)
    yield train(env, "tgcvg", "td3_bc", scale.seeds)
    for name, (flags, models) in variants.items():
        yield synthesize(env, "tgcvg", *flags, name=name, models=models, count=scale.swept)
        yield quality(env, f"tgcvg-{name}", scale)
        yield train(env, f"tgcvg-{name}", "td3_bc", scale.seeds)
    for learner in ("rebrac", "iql"):
        yield train(env, "none", learner, 1, name="generator")
        given = f"--generator={{runs}}/none/{learner}-generator"
        yield synthesize(
            env, "tgcvg", given, name=learner, models=["dynamics:tgcvg"], count=scale.swept
        )
        yield quality(env, f"tgcvg-{learner}", scale)
        yield train(env, f"tgcvg-{learner}", "td3_bc", scale.seeds)


def amounts(env: str, scale: Scale) -> Iterator[Command]:
    """The number of synthetic transitions with half of every batch original; then that share."""
    for synthesizer in ("tgcvg", "gta"):
        yield synthesize(env, synthesizer)
        for count in scale.amounts:
            number = f"--num_synthetic={count}"
            half = "--set=learner.replay.original_share=0.5"
            yield train(
                env, synthesizer, "td3_bc", scale.seeds, number, half, name=f"n{count}-half"
            )
            yield train(env, synthesizer, "td3_bc", scale.seeds, number, name=f"n{count}")
        for share in FRACTIONS:
            change = f"--set=learner.replay.original_share={share}"
            yield train(env, synthesizer, "td3_bc", scale.seeds, change, name=f"share{share}")


def subsets(env: str, scale: Scale) -> Iterator[Command]:
    """1 %, 10 % and all of the original episodes, to synthesizer and learner alike."""
    for fraction in (*scale.fractions, None):
        chosen = [f"--subset=random:{fraction}"] if fraction else []
        name = f"{100 * fraction:g}pct" if fraction else None
        label = lambda base: f"{base}-{name}" if name else base  # noqa: E731, B023
        yield train(env, label("none"), "td3_bc", scale.seeds, *chosen)
        for synthesizer in ("tgcvg", "gta"):
            yield synthesize(env, synthesizer, *chosen, name=name)
            yield train(env, label(synthesizer), "td3_bc", scale.seeds, *chosen)


def mixed(env: str, scale: Scale) -> Iterator[Command]:
    """Medium and a few expert episodes: plain, the best duplicated, augmented, or those alone."""
    robot, _, level = env.partition("-")
    added = scale.expert.format(robot=robot) if scale.expert and level == "medium-v2" else None
    chosen = [f"--mix={added}"] if added else []
    # A tenth of an expert file, which is as large as the medium one, is 1 / 11 of both.
    best = 0.09 if added else 0.1
    duplicated = f"--set=top_fraction={best}"
    yield synthesize(env, "duplicate", duplicated, *chosen, name="mixed", count=scale.swept)
    for synthesizer in ("tgcvg", "gta"):
        if not added:  # nothing is mixed in, so the models are those of the data
            yield synthesize(env, synthesizer)
        models = () if added else (synthesizer,)
        yield synthesize(env, synthesizer, *chosen, name="mixed", models=models, count=scale.swept)
    for label in ("none", "duplicate", "tgcvg", "gta"):
        yield train(env, f"{label}-mixed", "td3_bc", scale.seeds, *chosen)
    if added:
        expert, _, fraction = added.rpartition(":")
        few = f"--subset=random:{fraction}"
        yield train(expert, "none-few", "td3_bc", scale.seeds, few)
    else:
        yield train(env, "none-best", "td3_bc", scale.seeds, f"--subset=top:{best}")
