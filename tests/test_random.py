"""Random numbers: the published vectors of Philox, their distribution, their state, dropout."""

import math

import numpy as np
import pytest
from cases.random import philox

import numbagrad as ng
from numbagrad import kernels_cpu, simd
from numbagrad.compiler.trace import trace
from numbagrad.errors import DTypeError, ShapeError
from numbagrad.jit import njit

KNOWN = [  # counter, key, words: Random123's known answers for philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def joined(low, high):
    return low | high << 32


@njit
def philox_of_one_block(seed, call, block, out):
    for k, words in enumerate(kernels_cpu._philox(seed, call, simd.words(block, 0))):
        simd.store(out, k * out.shape[1], words)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    inputs = joined(*key), joined(*counter[2:]), joined(*counter[:2])  # seed, call, block
    assert tuple(philox(*inputs)) == words
    inputs = np.array(inputs, np.uint64).astype(np.int64)
    out = np.empty((4, 8), np.int64)
    philox_of_one_block(*inputs, out)
    assert tuple(out[:, 0]) == words


@pytest.fixture
def generator():
    return ng.random.Generator(17)


@pytest.fixture
def threads():
    before = ng.get_num_threads()
    yield
    ng.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_stream_does_not_depend_on_threads(threads, dtype):
    def draws():
        generator, x = ng.random.Generator(3), ng.asarray(np.ones(100_001, dtype))
        options = {"dtype": dtype, "generator": generator}
        uniform = ng.random.uniform(100_001, **options)
        normal = ng.random.normal(100_001, **options)
        return uniform, normal, ng.dropout(x, generator=generator)

    most = ng.get_num_threads()
    ng.set_num_threads(1)
    alone = draws()
    ng.set_num_threads(most)
    for one, other in zip(alone, draws(), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_the_stream_does_not_depend_on_the_size():
    short, long = (ng.random.normal(n, generator=ng.random.Generator(1)).numpy() for n in (5, 99))
    np.testing.assert_array_equal(short, long[:5])


def test_draws_differ_and_seeding_starts_again(generator):
    first, second = (ng.random.uniform(8, generator=generator).numpy() for _ in range(2))
    assert not np.isin(first, second).any()
    generator.seed(17)
    np.testing.assert_array_equal(ng.random.uniform(8, generator=generator).numpy(), first)
    generator.seed(18)
    assert not np.isin(first, ng.random.uniform(8, generator=generator).numpy()).any()


def test_seed_restarts_the_shared_generator():
    x = ng.asarray(np.ones(64, np.float32))
    ng.random.seed(5)
    before = [ng.random.normal(3).numpy(), ng.dropout(x).numpy()]
    ng.random.seed(5)
    np.testing.assert_array_equal(ng.random.normal(3).numpy(), before[0])
    np.testing.assert_array_equal(ng.dropout(x).numpy(), before[1])


def test_a_replayed_trace_draws_fresh_numbers(generator):
    x = ng.asarray(np.ones(64, np.float32))
    traced = trace(lambda x: ng.dropout(x, generator=generator), x)
    eager = ng.random.Generator(17)
    for _ in range(3):
        expected = ng.dropout(x, generator=eager).numpy()
        np.testing.assert_array_equal(traced(x).numpy(), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_is_uniform(generator, dtype):
    x = ng.random.uniform(200_000, dtype=dtype, generator=generator).numpy()
    assert x.dtype == dtype
    assert 0 <= x.min() < 1e-4
    assert 1 - 1e-4 < x.max() < 1
    counts, _ = np.histogram(x, 50, (0, 1))
    # chi squared with 49 degrees of freedom: mean 49, deviation 10
    assert ((counts - 4000) ** 2 / 4000).sum() < 100
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.01


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_is_normal(generator, dtype):
    x = ng.random.normal(200_000, 2.0, 3.0, dtype=dtype, generator=generator).numpy()
    assert x.dtype == dtype
    z = (x - 2) / 3
    for q in (-2, -1, 0, 1, 2):
        assert abs((z < q).mean() - (1 + math.erf(q / 2**0.5)) / 2) < 0.005
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert abs((z**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(z[::2], z[1::2])[0, 1]) < 0.01  # the two of a pair


def test_initial_weights(generator):
    options = {"generator": generator}
    shape = (300, 100)
    for weight, std in [
        (ng.random.kaiming_uniform(shape, 300, **options), (2 / 300) ** 0.5),
        (ng.random.kaiming_normal(shape, 300, **options), (2 / 300) ** 0.5),
        (ng.random.xavier_uniform(shape, 300, 100, **options), (2 / 400) ** 0.5),
        (ng.random.xavier_normal(shape, 300, 100, **options), (2 / 400) ** 0.5),
    ]:
        assert weight.shape == shape
        assert weight.numpy().std() == pytest.approx(std, rel=0.02)
        assert abs(weight.numpy().mean()) < 0.02 * std * 3


def test_dropout_keeps_the_expected_value(generator):
    x = ng.asarray(np.ones(100_000, np.float32))
    out = ng.dropout(x, 0.3, generator=generator).numpy()
    assert set(np.unique(out)) == {0, np.float32(1 / 0.7)}
    assert (out == 0).mean() == pytest.approx(0.3, abs=0.01)


def test_dropout_masks_the_gradient_alike(generator):
    x = ng.asarray(np.ones(100, np.float32), requires_grad=True)
    out = ng.dropout(x, 0.4, generator=generator)
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), out.numpy())


def test_dropout_that_drops_nothing_is_the_identity():
    x = ng.asarray([1.0, 2.0])
    assert ng.dropout(x, 0.5, training=False).tolist() == [1, 2]
    assert ng.dropout(x, 0.0).tolist() == [1, 2]


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_dropout_refuses_other_probabilities(p):
    with pytest.raises(ValueError, match="p must be at least 0 and less than 1"):
        ng.dropout(ng.asarray([1.0]), p)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, "a"])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match="a seed must be an integer"):
        ng.random.Generator(seed)


def test_only_floats():
    with pytest.raises(DTypeError, match=r"random_uniform: draws .*, got dtype int32"):
        ng.random.uniform(3, dtype="int32")
    with pytest.raises(DTypeError, match="dropout: needs float32 or float64, got int64"):
        ng.dropout(ng.asarray([1, 2]))
    with pytest.raises(ShapeError, match="negative"):
        ng.random.uniform(-3)


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: ng.random.uniform(2.5), TypeError, "shape must be an int or a tuple of ints"),
        (lambda: ng.random.kaiming_uniform(3, 0), ValueError, "kaiming_uniform: fan_in must be"),
        (lambda: ng.random.kaiming_normal(3, 0), ValueError, "kaiming_normal: fan_in must be"),
        (lambda: ng.random.xavier_uniform(3, 0, 0), ValueError, r"fan_in \+ fan_out must be"),
        (lambda: ng.random.xavier_normal(3, 0, 0), ValueError, r"fan_in \+ fan_out must be"),
    ],
)
def test_arguments_that_do_not_fit(draw, error, message):
    with pytest.raises(error, match=message):
        draw()
