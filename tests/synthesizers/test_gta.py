import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax import tasks
from tgcvg_jax.data.dataset import episode_returns, episode_starts
from tgcvg_jax.models import window_denoiser
from tgcvg_jax.ops import edm
from tgcvg_jax.synthesizers import gta
from tgcvg_jax.types import UserError


@pytest.fixture(scope="module")
def config(configs):
    return configs["gta"]


class SmallNetwork(nn.Module):
    """In place of the U-Net, which takes long to compile and has tests of its own."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, noise_level, condition=None, keep=None):
        dtype = x.dtype
        w = self.variable("constants", "frequencies", lambda: jnp.ones(1)).value
        h = nn.Dense(x.shape[-1], dtype=self.dtype)(x) + jnp.sin(w * noise_level)[:, None, None]
        if condition is not None:
            embedding = nn.Dense(x.shape[-1], use_bias=False)(10.0 * condition)
            h = h + (keep[:, None] * embedding)[:, None]
        return jnp.tanh(h).astype(dtype)


@pytest.fixture(scope="module")
def generate(task, dataset, config, untrained):
    """A chunk under changed settings, with random weights."""
    cache = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_denoiser, "make_network", lambda c: SmallNetwork(c.dtype))
        yield make_run(task, dataset, config, untrained, cache)


def make_run(task, dataset, config, untrained, cache):

    def run(denoiser=None, chunk=0, **changes):
        changed = dataclasses.replace(config, **changes)
        changed = dataclasses.replace(
            changed, denoiser=dataclasses.replace(changed.denoiser, **(denoiser or {}))
        )
        key = changed, chunk
        if key not in cache:
            synthesizer = gta.make(task, changed)
            states, data = untrained(synthesizer, dataset), synthesizer.prepare(dataset)
            t = jax.jit(synthesizer.generate)(states, data, jax.random.key(0), jnp.int32(chunk))
            cache[key] = jax.tree.map(np.asarray, t)
        return cache[key]

    return run


def sources(trajectories, dataset, horizon):
    """Rows of the source windows, [B, H], found by what is inherited."""
    known = {
        (int(t), float(g)): i
        for i, (t, g) in enumerate(zip(dataset.timestep, dataset.return_to_go))
    }
    pairs = zip(trajectories.timestep[:, 0], trajectories.return_to_go[:, 0])
    starts = np.array([known[int(t), float(g)] for t, g in pairs])
    return starts[:, None] + np.arange(horizon)


def test_light_noise_stays_near_the_source(generate, dataset, config):
    """At the lowest noise level what comes out is the source window, transition by transition."""
    sampler = edm.Sampler(num_steps=12, sigma_max=80.0)
    level = 1.0 / 12.0
    sigma = edm.sigmas(sampler)[edm.first_step(sampler, level)]
    assert np.isclose(sigma, sampler.sigma_min)
    t = generate(sampler=sampler, noise_level=level, denoiser={"restore_rewards": True})
    rows = sources(t, dataset, config.denoiser.horizon)
    for name in ("observation", "action", "reward", "next_observation"):
        expected = np.asarray(getattr(dataset.transition, name))[rows]
        std = expected.std(axis=(0, 1))
        error = np.abs(getattr(t.transition, name) - expected) / std
        assert error.max() < 0.05, name
    assert np.all(np.asarray(dataset.remaining)[rows[:, 0]] >= config.denoiser.horizon)


def test_states_follow_each_other(generate):
    t = generate().transition
    np.testing.assert_array_equal(t.next_observation[:, :-1], t.observation[:, 1:])


def test_windows_of_an_epoch_are_distinct(generate, dataset, config):
    t = [generate(chunk=chunk) for chunk in (0, 1)]
    starts = np.concatenate([sources(x, dataset, config.denoiser.horizon)[:, 0] for x in t])
    assert len(set(starts)) == len(starts) == 2 * config.batch_size


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": 1.0},
        {"guidance": 0.0},
        {"guided_heun": True},
        {"drop_condition": False},
        {"amplification": 1.0},
        {"clip_actions": False},
        {"target": "highest"},
        {"noise_level": 1.0},
        {"inpaint_reward": True},
        {"use_reward_model": True},
        {"reweighting": "released", "num_bins": 4},
        {"denoiser": {"condition": "none"}},
        {"denoiser": {"condition": "window_return"}},
    ],
    ids=str,
)
def test_every_setting_changes_the_data(generate, changes):
    base, changed = generate().transition, generate(**changes).transition
    assert np.all(np.isfinite(changed.reward))
    reward_differs = not np.array_equal(base.reward, changed.reward)
    state_differs = not np.array_equal(base.observation, changed.observation)
    action_differs = not np.array_equal(base.action, changed.action)
    if "clip_actions" in changes:
        assert action_differs and not reward_differs
        np.testing.assert_array_equal(base.action, np.clip(changed.action, -1.0, 1.0))
    else:
        assert reward_differs and state_differs == ("use_reward_model" not in changes)


def test_what_the_sampler_is_given(task, dataset, config):
    """Start, condition and dropout of the condition, seen by a spy in the sampler's place."""
    seen = {}

    def spy(denoiser, start, condition, noise, keep, **settings):
        kept = np.stack([keep(jnp.int32(i)) for i in range(200)])
        seen.update(start=start, condition=condition, kept=kept, settings=settings)
        return start

    def run(data=dataset, **changes):
        changed = dataclasses.replace(config, **changes)
        synthesizer = gta.make(task, changed)
        prepared = synthesizer.prepare(data)
        states = {"denoiser": None}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(edm, "sample", spy)
            patch.setattr(gta.denoising, "make_denoiser", lambda *_: None)
            t = synthesizer.generate(states, prepared, jax.random.key(0), jnp.int32(0))
        return jax.tree.map(np.asarray, t), prepared.windows

    levels = edm.sigmas(config.sampler)
    t, data = run(amplification=1.5)
    starts = sources(t, dataset, config.denoiser.horizon)[:, 0]
    condition = np.asarray(data.condition)[starts]
    np.testing.assert_allclose(seen["condition"][:, 0], gta.amplify(condition, 1.5), rtol=1e-6)
    assert seen["settings"]["first"] == 3 and seen["settings"]["guidance"] == config.guidance
    noise = np.asarray(seen["start"] - window_denoiser.take(data, starts, config.denoiser.horizon))
    noise = noise / levels[3]
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.1)
    assert abs(seen["kept"].mean() - 0.75) < 0.03

    run(drop_condition=False)
    assert np.all(seen["kept"] == 1.0)
    run(target="highest")
    np.testing.assert_allclose(seen["condition"], data_max(data))
    run(noise_level=1.0)
    whole = np.asarray(seen["start"])
    shifted = dataset.replace(
        transition=dataset.transition._replace(action=dataset.transition.action + 3.0)
    )
    run(shifted, noise_level=1.0)
    np.testing.assert_array_equal(seen["start"], whole)  # the data has no part in it
    np.testing.assert_allclose(whole.std(), 80.0, rtol=0.1)


def data_max(data):
    return np.max(np.asarray(data.condition)[np.asarray(data.starts)])


def test_terminals_are_the_source_s(generate, dataset, config):
    """All windows of the data, some of which end in a terminal."""
    h = config.denoiser.horizon
    t = generate(batch_size=10_000)
    rows = sources(t, dataset, h)
    expected = np.asarray(dataset.transition.discount)[rows]
    np.testing.assert_array_equal(t.transition.discount, expected)
    assert np.sum(expected == 0.0) == 4  # of the episodes of 12, 7, 21 and 25 steps


def test_inpainted_rewards_are_amplified_ones(generate, dataset, config):
    """A terminal's penalty of 2 stays what it is."""
    t = generate(inpaint_reward=True, amplification=1.5, batch_size=10_000)
    rows = sources(t, dataset, config.denoiser.horizon)
    reward, discount = (np.asarray(x)[rows] for x in
                        (dataset.transition.reward, dataset.transition.discount))  # fmt: skip
    expected = np.asarray(gta.amplify(reward, 1.5)) - 2.0 * (discount == 0.0)
    assert np.any(discount == 0.0)
    np.testing.assert_allclose(t.transition.reward, expected, atol=1e-5)


def test_amplify():
    y = jnp.array([2.0, 0.0, -2.0])
    np.testing.assert_allclose(gta.amplify(y, 1.3), [2.6, 0.0, -1.4], rtol=1e-6)


def test_bin_weights_by_hand(config):
    """Three bins of 4, 0 and 1 windows."""
    returns = np.array([0.0, 1.0, 2.0, 1.0, 9.0])
    settings = dict(num_bins=3, bin_smoothing=0.5, bin_temperature=2.0)
    released = dataclasses.replace(config, reweighting="released", **settings)
    index, weight = gta.bin_weights(returns, released)
    np.testing.assert_array_equal(index, [0, 0, 0, 0, 2])
    preference = np.exp(np.array([3.0, 6.0, 9.0]) / 2.0)
    preference = preference / preference.sum()
    share = np.array([0.8, 0.0, 0.2])
    value = preference * share / (share + 0.5)
    value = value / value.sum()
    each = np.minimum(value / np.maximum(share, 1e-12), 5.0)
    expected = each * [4, 0, 1]
    np.testing.assert_allclose(weight, expected / expected.sum(), rtol=1e-5, atol=1e-9)

    scale = config.denoiser.condition_scale
    paper = dataclasses.replace(config, reweighting="paper", **settings)
    index, weight = gta.bin_weights(scale * returns, paper)
    np.testing.assert_array_equal(index, [0, 0, 0, 0, 2])
    value = np.array([4 / 4.5, 0.0, 1 / 1.5]) * np.exp(np.array([1.5, 4.5, 7.5]) / 2.0)
    np.testing.assert_allclose(weight, value / value.sum(), rtol=1e-6)


@pytest.mark.parametrize("reweighting", ["released", "paper", "success"])
def test_draws_by_weight(task, dataset, config, reweighting):
    """Frequencies of 20,000 drawn windows against weights computed window by window."""
    changed = dataclasses.replace(
        config, reweighting=reweighting, num_bins=5, bin_temperature=0.5, success_weight=4.0
    )
    if reweighting == "success":  # lower the rewards of the first episodes below 0
        index = np.cumsum(episode_starts(dataset)) - 1
        shift = np.where(index < 4, -100.0, 0.0)
        dataset = dataset.replace(return_to_go=dataset.return_to_go + jnp.asarray(shift, float))
    data = gta.make(task, changed).prepare(dataset)
    starts = np.asarray(data.windows.starts)
    draws = np.asarray(gta.draw_starts(jax.random.key(0), data.groups, 20_000))
    if reweighting == "success":
        index = (np.cumsum(episode_starts(dataset)) - 1)[starts]
        weight = np.where(episode_returns(dataset) > 0, 4.0, 1.0)
        present = np.unique(index)
        assert {1.0, 4.0} == set(weight[present])
        probability = weight[index] / np.bincount(index)[index] / weight[present].sum()
    else:
        index, weight = gta.bin_weights(np.asarray(data.windows.condition, float)[starts], changed)
        probability = weight[index] / np.bincount(index)[index]
    assert abs(probability.sum() - 1.0) < 1e-5
    count = np.array([np.sum(draws == s) for s in starts])
    assert count.sum() == len(draws)  # nothing but windows of the data
    error = np.sqrt(len(draws) * probability) + 1.0
    assert np.all(np.abs(count - len(draws) * probability) < 4.5 * error)
    assert np.ptp(probability) > 0.3 * probability.max()


def test_settings_of_tasks():
    of = lambda name: gta.for_task(tasks.TASKS[name])  # noqa: E731
    assert of("halfcheetah-medium-v2").reweighting == "none"
    assert of("walker2d-medium-v2").num_bins == 100
    expert = of("halfcheetah-medium-expert-v2")
    assert (expert.noise_level, expert.amplification, expert.num_bins) == (0.25, 1.1, 20)
    maze = of("maze2d-umaze-v1")
    assert maze.reweighting == "success" and maze.denoiser.terminal_penalty == 0.0
    assert of("maze2d-umaze-dense-v1").reweighting == "none"
    assert of("antmaze-large-play-v2").noise_level == 0.1
    assert gta.as_paper(of("hopper-medium-v2")).reweighting == "paper"


def test_errors(task, config):
    with pytest.raises(UserError, match="noise_level"):
        gta.make(task, dataclasses.replace(config, noise_level=1.5))
    denoiser = dataclasses.replace(window_denoiser.Config(), horizon=32)
    with pytest.raises(UserError, match=r"horizon=32.*such as 31"):
        gta.make(task, dataclasses.replace(config, denoiser=denoiser))
