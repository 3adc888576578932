"""What runs when, in which memory."""

import numpy as np
import pytest

import numbagrad as ng

L = ng.layers


def memory_of(run):
    """Return where a compiled function's local values lie, and its whole ones, by their names."""
    plan = run._compiled().plan
    local = {x.name: start for region in plan.regions for x, start in region.scratch.items()}
    return local, {x.name: start for x, start in plan.places.items()}


def test_an_elementwise_loop_writes_where_it_reads():
    @ng.compile
    def run(x, weight):
        h = ng.exp(x @ weight)
        return ng.tanh(h @ weight) @ weight + h

    rng = np.random.default_rng(0)
    x, weight = (ng.asarray(rng.normal(size=s).astype(np.float32)) for s in ((6, 4), (4, 4)))
    expected = run.function(x, weight).numpy()
    np.testing.assert_allclose(run(x, weight).numpy(), expected, rtol=1e-5)
    local, _ = memory_of(run)
    assert local["exp"] == local["matmul"]
    assert local["tanh"] == local["matmul_2"] != local["exp"]  # which is read later


def test_a_whole_value_is_written_where_it_was_read():
    @ng.compile(chunk=2)
    def run(x):
        y = ng.exp(x * 0.5)
        z = x @ x + ng.tanh(y - y.mean(axis=0))
        return ng.tanh(z - z.mean(axis=0))

    x = ng.asarray(np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32))
    np.testing.assert_allclose(run(x).numpy(), run.function(x).numpy(), rtol=1e-5, atol=1e-6)
    _, whole = memory_of(run)
    assert whole["add"] == whole["exp"]


def test_what_other_pieces_read_whole_is_not_overwritten():
    @ng.compile
    def run(x, weight):
        y = ng.exp(weight)
        z = weight @ y + y  # piece by piece, with the product
        return x @ (z @ z)

    rng = np.random.default_rng(0)
    x, weight = (ng.asarray(rng.normal(size=(n, 256)).astype(np.float32) / 16) for n in (2, 256))
    assert_close = np.testing.assert_allclose
    assert_close(run(x, weight).numpy(), run.function(x, weight).numpy(), rtol=1e-4, atol=1e-3)
    _, whole = memory_of(run)
    assert whole["add"] != whole["exp"]


@pytest.mark.parametrize("rows", [256, 512, 768])
def test_a_large_product_whose_rows_are_a_multiple_of_its_columns(rows):
    @ng.compile
    def run(x, a, b):
        return x.sum() + a @ ng.exp(b)

    rng = np.random.default_rng(0)
    x, a, b = (
        ng.asarray(rng.normal(size=shape).astype(np.float32) / 16)
        for shape in [(3,), (rows, 128), (128, 256)]
    )
    np.testing.assert_allclose(run(x, a, b).numpy(), run.function(x, a, b).numpy(), atol=1e-5)


def test_what_a_state_was_is_not_computed_again_from_what_it_is():
    shift = L.Parameter(np.zeros(3, np.float32))

    @ng.compile
    def step(x):
        moved = x + shift
        center = moved.mean(axis=0)
        with ng.no_grad():
            ng.assign(shift, shift - center)
        return (moved * (moved.mean(axis=0) - center + 2.0)).sum(axis=0)

    x = ng.asarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    np.testing.assert_allclose(step(x).numpy(), 2 * x.numpy().sum(axis=0))
    np.testing.assert_allclose(shift.numpy(), -x.numpy().mean(axis=0))


# ------------------------------------------------- what is settled runs once


def counted(run):
    """Return how often each region of a compiled function ran, those that are settled first."""
    return [len(seconds) for seconds in run._compiled().seconds]


def test_what_weights_alone_make_is_made_once():
    model = L.Sequential(L.Conv2d(3, 20, 3), L.ReLU(), L.Flatten(), L.Linear(20 * 16, 2)).eval()
    optimizer = ng.optim.SGD(model.parameters(), 0.1)
    x = ng.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32))
    run = ng.compile(lambda x: model(x))

    def check(times, calls):
        with ng.no_grad():
            np.testing.assert_array_equal(run(x).numpy(), model(x).numpy())
        settled, *others = counted(run)
        assert settled == times
        assert all(count == calls for count in others)

    for calls in (1, 2, 3):
        check(1, calls)
    model(x).sum().backward()  # by the function itself: the compiled one is not asked
    optimizer.step()
    check(2, 4)
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    check(3, 5)

    @ng.compile
    def step(x):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    step(x)
    check(4, 6)
    check(4, 7)
    assert "once" in str(run.report())
    assert "Of weights alone." in run.source
    assert "Of weights alone." not in step.source


def test_a_frozen_layer_is_settled_in_a_training_step():
    frozen, trained = L.Conv2d(3, 20, 3), L.Conv2d(20, 20, 3)
    optimizer = ng.optim.SGD(trained.parameters(), 0.1)
    x = ng.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32))

    def step(x):
        optimizer.zero_grad()
        with ng.no_grad():
            y = frozen(x)
        loss = (trained(y) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    start = trained.state_dict()
    compiled = ng.compile(step)
    losses = [compiled(x).item() for _ in range(3)]
    assert counted(compiled)[0] == 1
    trained.load_state_dict(start)
    np.testing.assert_allclose([step(x).item() for _ in range(3)], losses, rtol=1e-5)


def test_what_the_caller_gets_is_made_at_each_call():
    weight = L.Parameter(np.ones((3, 3), np.float32))

    @ng.compile
    def run(x):
        square = weight @ weight
        return square, x @ square + x @ (weight * 2.0)

    x = ng.asarray(np.ones((2, 3), np.float32))
    with ng.no_grad():
        first, second = run(x), run(x)
        assert first[0]._data is not second[0]._data
        for square, product in (first, second):
            np.testing.assert_array_equal(square.numpy(), np.full((3, 3), 3.0))
            np.testing.assert_array_equal(product.numpy(), np.full((2, 3), 15.0))
