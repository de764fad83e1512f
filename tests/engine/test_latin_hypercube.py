"""Noise that is spread over its law: exact for each sample, and even over the samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from illia_fn.engine import _latin_hypercube
from illia_fn.engine._latin_hypercube import _ORDERS, Strata, stratified_normals

KEYS = 4096


def noise(key, size, samples, count, dtype=jnp.float32, batch_size=1, **options):
    like = [jax.ShapeDtypeStruct((size,), dtype)]
    return stratified_normals(key, like, batch_size, Strata(jnp.asarray(np.asarray(samples)), count, **options))[0]


def drawn(seed, *args, **options):
    """`noise` as one program."""
    return np.asarray(jax.jit(lambda key: noise(key, *args, **options))(jax.random.key(seed)))


def many(size, samples, count, keys=KEYS, seed=0, **options):
    """Noise of one example for many keys, (keys, samples, size)."""
    draw = jax.jit(jax.vmap(lambda key: noise(key, size, samples, count, **options)[:, 0]))
    return np.asarray(draw(jax.random.split(jax.random.key(seed), keys)), np.float64)


@pytest.mark.parametrize(("place", "count", "mirrored"), [(0, 1, False), (1, 2, True), (3, 7, True), (5, 8, False)])
def test_every_sample_is_of_independent_standard_normals(place, count, mirrored):
    z = many(4, [place], count, mirrored=mirrored)[:, 0]
    assert min(stats.kstest(column, "norm").pvalue for column in z.T) > 1e-4
    for statistic in (z, z**2 - 1, np.abs(z) * z):  # of two numbers together
        products = statistic[:, :, None] * statistic[:, None]
        error = products.std(axis=0) / np.sqrt(KEYS)
        deviation = np.abs(products.mean(axis=0) / error)[np.triu_indices(4, 1)]
        assert deviation.max() < 5


def places_of(z):
    """Where they are in their law, on (-1, 1)."""
    return 2 * stats.norm.cdf(z) - 1


@pytest.mark.parametrize("count", [2, 8, 7])
def test_samples_are_in_all_parts_of_the_law(count):
    """Half of them are 4 / S apart on a circle of length 2, and the others their mirror images."""
    z = drawn(1, 300, range(count), count)[:, 0].astype(np.float64)
    half = -(-count // 2)
    turned = places_of(z[:1]) + 2 * np.arange(half)[:, None] / half
    turned -= 2 * np.round(turned / 2)
    expected = np.sort(np.concatenate([turned, -turned]), axis=0)
    if count == 2 * half:
        np.testing.assert_allclose(z.sum(axis=0), 0.0, atol=1e-5)
        np.testing.assert_allclose(np.sort(places_of(z), axis=0), expected, atol=1e-5)
    else:  # all but one
        distances = np.abs(places_of(z)[:, None] - expected[None]).min(axis=0)
        np.testing.assert_array_equal(np.sum(distances > 1e-5, axis=0), 1)


def test_mirrored_samples_are_not_mirrored_once_more():
    z = drawn(1, 300, range(4), 4, mirrored=True)[:, 0].astype(np.float64)
    both = np.sort(places_of(np.concatenate([z, -z])), axis=0)
    turned = places_of(z[:1]) + np.arange(4)[:, None] / 2
    turned -= 2 * np.round(turned / 2)
    np.testing.assert_allclose(both, np.sort(np.concatenate([turned, -turned]), axis=0), atol=1e-5)


def test_what_is_additive_averages_out_and_what_is_not_is_as_with_independent_samples():
    count, size, keys = 8, 64, 512
    z = many(size, range(count), count, keys=keys)
    independent = np.random.default_rng(0).normal(size=z.shape)

    def variance(f):
        """Of the mean over samples, on average over many functions of the same kind, against independent samples."""
        ours, others = (f(some).mean(axis=1).var(axis=0).mean() for some in (z, independent))
        return ours / others

    assert variance(lambda z: z + np.sin(2 * z) + z**3) < 1e-6
    assert variance(np.abs) < 0.2
    assert variance(np.square) < 0.7
    assert 0.8 < variance(lambda z: z[..., ::2] * z[..., 1::2]) < 1.25
    assert 0.8 < variance(lambda z: z[..., :-2] * z[..., 1:-1] * z[..., 2:]) < 1.25


@pytest.mark.parametrize("count", [2, 8])
def test_two_numbers_alone(count):
    """Their product varies as with independent samples, or little more; at S = 2, two mirror images are one value."""
    z = many(2, range(count), count)
    ratio = count * z.prod(axis=2).mean(axis=1).var()
    error = 5 * np.sqrt(8 / KEYS)  # the square of a product of normals has a kurtosis below 8 + 1
    assert ratio < {2: 2.0, 8: 8 / 7}[count] * (1 + error)


def test_chunks_are_parts_of_the_whole():
    """Whatever the samples that are drawn at once, and however many blocks the draw takes."""
    size, batch_size = 3 * _ORDERS + 5, 12
    whole = drawn(2, size, range(4), 4, batch_size=batch_size)
    assert whole.shape == (4, batch_size, size)
    for samples in ([2], [1, 2]):
        part = drawn(2, size, samples, 4, batch_size=batch_size)
        np.testing.assert_array_equal(part, whole[samples])
    assert len(np.unique(whole[0])) > 0.99 * whole[0].size


def test_in_float64(x64):
    z = drawn(3, 10_000, [1], 4, jnp.float64)
    assert z.dtype == jnp.float64
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-4
    assert len(np.unique(z)) == 10_000


def test_the_ends_of_the_law_are_finite(monkeypatch):
    """A uniform number that lands on the end of (-1, 1) after its shift has no quantile."""

    @jax.jit
    @jax.vmap
    def at(end):
        monkeypatch.setattr(jax.random, "uniform", lambda _, shape, dtype, *of: jnp.full(shape, end, dtype))
        monkeypatch.setattr(_latin_hypercube, "uniform", lambda _, shape, first: jnp.full(shape, end))
        return [noise(jax.random.key(5), size, range(8), 8) for size in (100, 40_000)]  # which is drawn in one pass

    for z in at(np.float32([-1.0, -0.5, 0.0, 0.5])):
        np.testing.assert_allclose(np.abs(z).max(axis=(1, 2, 3)), 5.4, atol=0.1)


@pytest.mark.parametrize("size", [30_003, 40_001])
def test_odd_numbers_of_numbers(size):
    z = drawn(6, size, range(1), 1)
    assert z.shape == (1, 1, size)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-4


def test_dtypes_apart():
    like = [jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((), jnp.float16)]
    strata = Strata(jnp.arange(2), 2)
    first, second = jax.eval_shape(lambda key: stratified_normals(key, like, 5, strata), jax.random.key(4))
    assert (first.shape, first.dtype) == ((2, 5, 2, 3), jnp.float32)
    assert (second.shape, second.dtype) == ((2, 5), jnp.float16)
    assert stratified_normals(jax.random.key(4), [], 5, strata) == []
