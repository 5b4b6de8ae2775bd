import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tgcvg_jax.ops import edm
from tgcvg_jax.types import UserError

CONFIG = edm.Sampler()
SHORT = edm.Sampler(num_steps=16)
B, T, D, C = 4, 3, 2, 1
# The exact model of data N(0, 0.5^2).
GAUSSIAN_STD = 0.5


def gaussian_denoiser(x, sigma, condition=None, keep=None):
    del condition, keep
    gain = GAUSSIAN_STD**2 / (GAUSSIAN_STD**2 + sigma**2)
    return gain.reshape((-1,) + (1,) * (x.ndim - 1)) * x


def toy_denoiser(xp, x, sigma, embedding):
    """Not linear in anything; the rows [n, T, D] differ by noise level and condition."""
    sigma, embedding = sigma[:, None, None], embedding[:, :, None]
    mixed = xp.tanh(0.7 * x + 0.3 * x[:, ::-1] + embedding) + 0.2 * xp.sin(sigma) * embedding
    return x / (1.0 + sigma**2) + sigma / (1.0 + sigma) * mixed


def jax_denoiser(x, sigma, condition, keep):
    if condition is None:
        assert keep is None
        return toy_denoiser(jnp, x, sigma, jnp.zeros((len(x), C)))
    return toy_denoiser(jnp, x, sigma, condition * keep[:, None])


def loop(denoiser, x, condition, churn, keep, config, first, guidance=1.0, guided_heun=False,
         from_unchurned=False):  # fmt: skip
    """Algorithm 2, written step by step in numpy; all calls apart.

    `from_unchurned` is a common bug: the Euler predictor starts from x, not from x_hat.
    """
    n = config.num_steps
    low, high = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
    t = [(high + i / (n - 1) * (low - high)) ** config.rho for i in range(n)] + [0.0]
    for i in range(first, n):
        inside = config.churn_min <= t[i] <= config.churn_max
        gamma = min(config.churn / n, 2**0.5 - 1) if inside else 0.0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + (t_hat**2 - t[i] ** 2) ** 0.5 * config.churn_noise * churn[i]

        def slope(x, t, kept, w):
            level = np.full(len(x), t)
            uncond = (x - denoiser(np, x, level, np.zeros((len(x), C)))) / t
            if condition is None:
                return uncond
            cond = (x - denoiser(np, x, level, condition * kept[:, None])) / t
            return uncond + w * (cond - uncond)

        kept = keep[i] if condition is not None else (None, None)
        d = slope(x_hat, t_hat, kept[0], guidance)
        euler = (x if from_unchurned else x_hat) + (t[i + 1] - t_hat) * d
        if t[i + 1] == 0:
            return euler
        second = guidance if guided_heun else min(guidance, 1.0)
        d_next = slope(euler, t[i + 1], kept[1], second)
        x = x_hat + (t[i + 1] - t_hat) * 0.5 * (d + d_next)


def draws(num_steps, seed=0):
    rng = np.random.default_rng(seed)
    start, churn = rng.normal(size=(B, T, D)), rng.normal(size=(num_steps, B, T, D))
    condition = rng.normal(size=(B, C))
    keep = rng.integers(0, 2, size=(num_steps, 2, B)).astype(float)
    return start, condition, churn, keep


def indexed(array):
    array = jnp.asarray(array)
    return lambda i: array[i]


def sample(denoiser, start, condition, churn, keep, **options):
    """The library's, compiled, with the draws as arrays."""
    arrays = jax.tree.map(jnp.asarray, (start, condition, churn, keep))

    @jax.jit
    def run(start, condition, churn, keep):
        keep = None if keep is None else keep.__getitem__
        return edm.sample(denoiser, start, condition, churn.__getitem__, keep, **options)

    return run(*arrays)


@pytest.mark.parametrize("n", [1, 2, 16, 128])
def test_sigmas(n):
    sigma = edm.sigmas(edm.Sampler(num_steps=n))
    assert sigma.shape == (n + 1,) and sigma.dtype == np.float64
    np.testing.assert_allclose(sigma[0], 80.0, rtol=1e-14)
    assert sigma[-1] == 0.0 and np.all(np.diff(sigma) < 0)
    if n > 1:
        np.testing.assert_allclose(sigma[-2], 0.002, rtol=1e-13)
        # Equal steps in the seventh root.
        np.testing.assert_allclose(np.diff(sigma[:-1] ** (1 / 7), 2), 0.0, atol=1e-14)


def test_churn_is_inside_its_range():
    sigma, gamma = edm.sigmas(CONFIG), edm.gammas(CONFIG)
    assert gamma.shape == (128,)
    np.testing.assert_array_equal(np.flatnonzero(gamma), np.arange(11, 107))
    assert sigma[10] > 50.0 > sigma[11] and sigma[106] > 0.05 > sigma[107]
    np.testing.assert_allclose(gamma[11:107], np.sqrt(2) - 1, rtol=1e-15)  # 80 / 128 is more
    gamma = edm.gammas(edm.Sampler(num_steps=320))
    np.testing.assert_allclose(gamma.max(), 0.25)  # 80 / 320 is less
    assert not edm.gammas(dataclasses.replace(CONFIG, churn=0.0)).any()


@pytest.mark.parametrize(
    ("noise_level", "first", "sigma"),
    [
        (0.05, 121, 0.00591), (0.1, 115, 0.0151), (0.25, 96, 0.157), (0.5, 64, 2.428),
        (0.75, 32, 17.30), (1.0, 0, 80.0),
    ],
)  # fmt: skip
def test_partial_noising_starts_at(noise_level, first, sigma):
    assert edm.first_step(CONFIG, noise_level) == first
    np.testing.assert_allclose(edm.sigmas(CONFIG)[first], sigma, rtol=2e-3)


def test_first_step_rounds_as_released():
    assert edm.first_step(edm.Sampler(num_steps=10), 0.9) == 0  # 10 (1 - 0.9) is just below 1
    for noise_level in (0.0, 1.01, -0.5, float("nan")):
        with pytest.raises(UserError, match="noise_level"):
            edm.first_step(CONFIG, noise_level)


def test_precondition_by_hand(x64):
    sigma = jnp.array([0.75, 1.0])
    c_skip, c_out, c_in, c_noise = edm.precondition(sigma, 1.0)
    np.testing.assert_allclose(c_skip, [0.64, 0.5])
    np.testing.assert_allclose(c_out, [0.6, 0.5**0.5])
    np.testing.assert_allclose(c_in, [0.8, 0.5**0.5])
    np.testing.assert_allclose(c_noise, [np.log(0.75) / 4, 0.0], atol=1e-16)
    np.testing.assert_allclose(edm.loss_weight(sigma, 1.0), [1 / 0.36, 2.0])


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_why_precondition(x64, sigma_data):
    """Karras et al., appendix B.6: what the factors were chosen for."""
    sigma = jnp.asarray(edm.sigmas(CONFIG)[:-1])
    c_skip, c_out, c_in, _ = edm.precondition(sigma, sigma_data)
    # The network's input and its target (z - c_skip x) / c_out have unit variance ...
    np.testing.assert_allclose(c_in**2 * (sigma**2 + sigma_data**2), 1.0, rtol=1e-12)
    spread = (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2
    np.testing.assert_allclose(spread / c_out**2, 1.0, rtol=1e-9)
    # ... and its error the same weight at all noise levels.
    np.testing.assert_allclose(edm.loss_weight(sigma, sigma_data) * c_out**2, 1.0, rtol=1e-12)


def test_denoise():
    x = jax.random.normal(jax.random.key(0), (2, T, D))
    sigma, condition, keep = jnp.array([0.75, 1.0]), jnp.ones((2, C)), jnp.array([1.0, 0.0])
    seen = []

    def network(*arguments):
        seen.append(arguments)
        return 3.0 + arguments[0]

    result = edm.denoise(network, x, sigma, condition, keep, 1.0)
    scaled, level, *rest = seen[0]
    np.testing.assert_allclose(scaled, np.array([0.8, 0.5**0.5])[:, None, None] * x, rtol=1e-6)
    np.testing.assert_allclose(level, np.log(sigma) / 4, atol=1e-7)
    assert rest[0] is condition and rest[1] is keep
    np.testing.assert_allclose(result[0], 0.64 * x[0] + 0.6 * (3.0 + 0.8 * x[0]), rtol=1e-5)
    assert edm.denoise(network, x[:, 0], sigma, None, None, 1.0).shape == (2, D)
    assert seen[1][2:] == (None, None)


def impulses(num_steps):
    """The sampler is then linear in its N + 1 draws: row 0 gets the first of them, row 1 + i is
    given that of step i. The sum of squared outputs is the variance of its samples."""
    start = edm.sigmas(edm.Sampler(num_steps=num_steps))[0] * np.eye(num_steps + 1)[:, 0]
    return start, np.eye(num_steps, num_steps + 1, 1)


@pytest.mark.parametrize(("num_steps", "std"), [(128, 0.50632), (256, 0.50339)])
def test_exact_spread_of_gaussian_samples(x64, num_steps, std):
    """Heun's error, and S_noise = 1.003, make them a bit wider than 0.5."""
    start, churn = impulses(num_steps)
    config = edm.Sampler(num_steps=num_steps)
    x = sample(gaussian_denoiser, start, None, churn, None, config=config)
    assert np.linalg.norm(x) == pytest.approx(std, abs=1e-5)


def test_spread_with_the_common_bug():
    """The test above would see a predictor that starts from the point without churn."""
    start, churn = impulses(128)
    plain = lambda xp, x, sigma, embedding: gaussian_denoiser(x, sigma)  # noqa: E731
    right = loop(plain, start, None, churn, None, CONFIG, 0)
    wrong = loop(plain, start, None, churn, None, CONFIG, 0, from_unchurned=True)
    assert np.linalg.norm(right) == pytest.approx(0.50632, abs=1e-5)
    assert np.linalg.norm(wrong) == pytest.approx(0.53451, abs=1e-5)


def test_gaussian_samples_in_float32():
    """As in production: noise drawn in the scan; 32,768 values, so one sigma is 0.002."""
    key = jax.random.key(0)
    start = edm.sigmas(CONFIG)[0] * jax.random.normal(jax.random.fold_in(key, 999), (4096, 8))
    churn = lambda i: jax.random.normal(jax.random.fold_in(key, i), start.shape)  # noqa: E731
    run = jax.jit(lambda x: edm.sample(gaussian_denoiser, x, None, churn, None, config=CONFIG))
    x = np.asarray(run(start))
    assert x.dtype == np.float32
    assert np.std(x) == pytest.approx(0.5063, abs=0.007)  # the bug above gives 0.5345
    assert np.mean(x) == pytest.approx(0.0, abs=0.01)


FULL, PARTIAL, LIGHT = (edm.first_step(SHORT, mu) for mu in (1.0, 0.5, 0.25))


@pytest.mark.parametrize(
    ("first", "guidance", "guided_heun"),
    [
        (FULL, 0.0, False), (FULL, 1.0, False), (FULL, 2.0, False), (FULL, 2.0, True),
        (PARTIAL, 0.0, True), (PARTIAL, 1.0, True), (PARTIAL, 2.0, False), (PARTIAL, 2.0, True),
        (LIGHT, 0.0, False), (LIGHT, 1.0, False), (LIGHT, 2.0, False),
    ],
)  # fmt: skip
def test_scan_is_the_loop(x64, first, guidance, guided_heun):
    start, condition, churn, keep = draws(SHORT.num_steps)
    start = edm.sigmas(SHORT)[first] * start
    options = dict(config=SHORT, first=first, guidance=guidance, guided_heun=guided_heun)
    expected = loop(toy_denoiser, start, condition, churn, keep, **options)
    actual = sample(jax_denoiser, start, condition, churn, keep, **options)
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("first", [LIGHT, 15])
def test_churn_in_all_steps_is_the_loop(x64, first):
    """The last one, too, although no released setting has it."""
    config = dataclasses.replace(SHORT, churn=2.0, churn_min=0.0, rho=5.0, churn_noise=1.1)
    start, condition, churn, keep = draws(config.num_steps)
    options = dict(config=config, first=first, guidance=2.0)
    expected = loop(toy_denoiser, start, condition, churn, keep, **options)
    actual = sample(jax_denoiser, start, condition, churn, keep, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-11)
    silent = loop(toy_denoiser, start, condition, 0.0 * churn, keep, **options)
    assert np.max(np.abs(silent - expected)) > 1e-5


def test_an_unconditional_model_is_the_loop(x64):
    start, _, churn, _ = draws(SHORT.num_steps)
    expected = loop(toy_denoiser, start, None, churn, None, SHORT, PARTIAL)
    for guidance in (1.0, 2.0):  # plays no role
        options = dict(config=SHORT, first=PARTIAL, guidance=guidance)
        actual = sample(jax_denoiser, start, None, churn, None, **options)
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-11)


def test_what_the_loop_can_tell_apart():
    """The settings of the tests above differ by far more than their tolerance."""
    start, condition, churn, keep = draws(SHORT.num_steps)
    run = lambda keep, *options: loop(  # noqa: E731
        toy_denoiser, start, condition, churn, keep, SHORT, PARTIAL, *options
    )
    results = [
        run(keep, 1.0), run(keep, 2.0), run(keep, 0.0), run(keep, 2.0, True),
        run(np.ones_like(keep), 2.0), run(keep[:, ::-1], 2.0), run(keep, 2.0, False, True),
    ]  # fmt: skip
    for i, a in enumerate(results):
        assert all(np.max(np.abs(a - b)) > 1e-3 for b in results[:i])


@pytest.mark.parametrize("first", [-1, 16])
def test_no_such_step(first):
    with pytest.raises(ValueError, match="first"):
        edm.sample(jax_denoiser, jnp.zeros((B, D)), None, None, None, config=SHORT, first=first)


@pytest.mark.parametrize(
    ("conditional", "guidance", "guided_heun", "shapes"),
    [
        (True, 2.0, False, (2 * B, B, 2 * B)),
        (True, 2.0, True, (2 * B, 2 * B, 2 * B)),
        (True, 1.0, True, (B, B, B)),
        (True, 0.0, False, (B, B, B)),
        (False, 2.0, True, (B, B, B)),
    ],
)
@pytest.mark.parametrize("noise_level", [0.5, 1.0])
def test_calls_of_the_denoiser(conditional, guidance, guided_heun, shapes, noise_level):
    """Rows of the Euler and the Heun call of a scanned step, and of the last step's one call."""
    first = edm.first_step(CONFIG, noise_level)
    start, condition, churn, keep = draws(CONFIG.num_steps)
    seen = []

    def denoiser(x, sigma, condition, keep):
        assert sigma.shape == (len(x),)
        if conditional:
            assert condition.shape == (len(x), C) and keep.shape == (len(x),)
        seen.append(len(x))
        return x

    program = jax.make_jaxpr(
        lambda x: edm.sample(
            denoiser, x, condition if conditional else None, indexed(churn),
            indexed(keep) if conditional else None,
            config=CONFIG, first=first, guidance=guidance, guided_heun=guided_heun,
        )
    )(start)  # fmt: skip
    assert tuple(seen) == shapes
    (scan,) = (e for e in program.eqns if e.primitive.name == "scan")
    assert scan.params["length"] == CONFIG.num_steps - 1 - first
    # Forward passes of a sample with the settings of GTA's and of SynthER's released code.
    rows = (scan.params["length"] * (seen[0] + seen[1]) + seen[2]) / B
    if (noise_level, guidance, guided_heun) == (0.5, 2.0, False):
        assert rows == 191
    if not conditional and noise_level == 1.0:
        assert rows == 255


def test_it_compiles_once_and_keeps_the_dtype():
    traces = []

    @jax.jit
    def generate(key, start, condition):
        traces.append(start.dtype)
        churn = lambda i: jax.random.normal(  # noqa: E731
            jax.random.fold_in(key, i), start.shape, start.dtype
        )
        keep = lambda i: jnp.ones((2, B), start.dtype)  # noqa: E731
        return edm.sample(
            jax_denoiser, start, condition, churn, keep, config=SHORT, first=LIGHT, guidance=2.0
        )

    start, condition = jnp.ones((B, T, D)), jnp.ones((B, C))
    x = [generate(jax.random.key(seed), seed * start, seed * condition) for seed in (1, 2)]
    assert len(traces) == 1 and x[0].dtype == jnp.float32
    assert np.all(np.isfinite(x)) and not np.allclose(*x)
    with jax.enable_x64(True):  # float32 stays float32 although the schedule is float64
        assert generate(jax.random.key(1), start, condition).dtype == jnp.float32
