"""The experiments of GTA's tables, with its settings of learners; see `_tgcvg_experiments`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from experiments._commands import Command, Scale, evaluate, quality, synthesize, train
from experiments._tgcvg_experiments import S4RL_NOISE

# GTA's text: SynthER's learners see its data alone.
SYNTHETIC_ONLY = (
    "--set=learner.replay.original_share=0",
    "--set=learner.replay.statistics=original",
)


def gta_locomotion(env: str, scale: Scale) -> Iterator[Command]:
    """Four learners on all data, with GTA's settings."""
    for name in ("synther", "gta"):
        yield synthesize(env, name)
    for learner in ("td3_bc", "cql", "iql", "mcq"):
        theirs = "--hyperparameters=gta"
        yield train(env, "none", learner, scale.gta_seeds, theirs, name="gta")
        yield train(env, "none", learner, scale.gta_seeds, theirs, S4RL_NOISE, name="gta-s4rl")
        for label in ("synther", "gta"):
            alone = SYNTHETIC_ONLY if label == "synther" else ()
            yield train(env, label, learner, scale.gta_seeds, theirs, *alone, name="gta")


def gta_variant(
    env: str, scale: Scale, name: str, *flags: str, models: Iterable[str] = ("gta",),
    measured: bool = True,
) -> Iterator[Command]:  # fmt: skip
    """GTA with other settings: its data, their quality, and TD3+BC's score."""
    yield synthesize(env, "gta", *flags, name=name, models=models, count=scale.swept)
    if measured:
        yield quality(env, f"gta-{name}", scale)
    yield train(env, f"gta-{name}", "td3_bc", scale.gta_seeds, "--hyperparameters=gta", name="gta")


def noise_and_return(
    env: str, scale: Scale, noise_levels: Iterable[float], factors: Iterable[float]
) -> Iterator[Command]:
    """mu and alpha, all combinations."""
    yield synthesize(env, "gta")
    for mu in noise_levels:
        for alpha in factors:
            flags = (f"--set=noise_level={mu}", f"--set=amplification={alpha}")
            yield from gta_variant(env, scale, f"mu{mu}-a{alpha}", *flags)


def gta_safe(env: str, scale: Scale) -> Iterator[Command]:
    """mu = 0.25 and alpha = 1.1 for all tasks."""
    yield from noise_and_return(env, scale, (0.25,), (1.1,))


def gta_wide(env: str, scale: Scale) -> Iterator[Command]:
    """mu = 0.5 and 0.75 at alpha = 1.3."""
    yield from noise_and_return(env, scale, (0.5, 0.75), (1.3,))


def gta_grid(env: str, scale: Scale) -> Iterator[Command]:
    """A grid of mu and alpha; its points are our choice, around the paper's settings."""
    yield from noise_and_return(env, scale, (0.1, 0.25, 0.5, 0.75), (1.0, 1.1, 1.3, 1.5))


def gta_sweeps(env: str, scale: Scale) -> Iterator[Command]:
    """alpha at mu = 0.5, and mu, up to noise alone, at alpha = 1.3."""
    yield from noise_and_return(env, scale, (0.5,), (1.0, 1.1, 1.3, 1.5, 2.0))
    yield from noise_and_return(env, scale, (0.1, 0.25, 0.75, 1.0), (1.3,))


def gta_horizon(env: str, scale: Scale) -> Iterator[Command]:
    """H, the length of the windows."""
    for horizon in scale.horizons:
        change = f"--set=denoiser.horizon={horizon}"
        yield from gta_variant(env, scale, f"h{horizon}", change, models=())


def gta_guidance(env: str, scale: Scale) -> Iterator[Command]:
    """Strength and ways of guidance, and what becomes of a return that is asked for."""
    yield synthesize(env, "gta")
    yield evaluate(env, "gta", "denoiser")
    for strength in (0.0, 1.0, 1.5, 2.0, 3.0):
        change = f"--set=guidance={strength}"
        yield from gta_variant(env, scale, f"w{strength:g}", change)
    yield from gta_variant(env, scale, "heun", "--set=guided_heun=true")
    yield from gta_variant(env, scale, "keep", "--set=drop_condition=false")
    yield from gta_variant(
        env, scale, "uncond", "--set=denoiser.condition=none", "--set=reweighting=none", models=()
    )


def gta_reweighting(env: str, scale: Scale) -> Iterator[Command]:
    """Which windows are augmented."""
    yield synthesize(env, "gta")
    yield from gta_variant(env, scale, "rw-none", "--set=reweighting=none")
    for bins in (20, 50, 100):
        for kind in ("released", "paper"):
            flags = (f"--set=reweighting={kind}", f"--set=num_bins={bins}")
            yield from gta_variant(env, scale, f"rw-{kind}-{bins}", *flags)


def gta_target(env: str, scale: Scale) -> Iterator[Command]:
    """A multiple of each window's own return, or the highest of the data for all."""
    yield synthesize(env, "gta")
    yield from gta_variant(env, scale, "highest", "--set=target=highest")
    window = "--set=denoiser.condition=window_return"
    yield from gta_variant(env, scale, "window-return", window, models=())


def gta_rewards(env: str, scale: Scale) -> Iterator[Command]:
    """Where rewards come from: the denoiser, an inpainting, a regression; and their penalty."""
    yield synthesize(env, "gta")
    yield from gta_variant(env, scale, "inpaint", "--set=inpaint_reward=true")
    yield from gta_variant(
        env, scale, "regression", "--set=use_reward_model=true", models=["denoiser:gta"]
    )
    yield from gta_variant(env, scale, "restored", "--set=denoiser.restore_rewards=true", models=())


def gta_dt(env: str, scale: Scale) -> Iterator[Command]:
    """Decision Transformer with GTA's data."""
    yield synthesize(env, "gta")
    for label in ("none", "gta"):
        yield train(env, label, "dt", scale.gta_seeds, "--hyperparameters=gta", name="gta")


def synther_width(env: str, scale: Scale) -> Iterator[Command]:
    """SynthER's network, and its data alone or mixed with the original."""
    yield synthesize(env, "synther")
    small = 64 if scale.preset == "quick" else 1024
    yield synthesize(
        env, "synther", f"--set=denoiser.width={small}", name=f"width{small}", count=scale.swept
    )
    theirs = "--hyperparameters=gta"
    for label in ("synther", f"synther-width{small}"):
        yield quality(env, label, scale)
        for name, flags in (("gta", SYNTHETIC_ONLY), ("gta-mixed", ())):
            yield train(env, label, "td3_bc", scale.gta_seeds, theirs, *flags, name=name)
