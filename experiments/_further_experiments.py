"""Experiments on how much data there is and how good, and on this project's changes to TGCVG.

See `_tgcvg_experiments`.
"""

from __future__ import annotations

from collections.abc import Iterator

from experiments._commands import Command, Scale, quality, synthesize, train

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)


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
