"""Compiled steps: what they give is what the function gives; on the simulator, to the bit."""

from collections import Counter

import numpy as np
import pytest
from cuda_device import Training, adam, convnet, eager, momentum, on_gpu, perceptron, require_same

import numbagrad as ng
from numbagrad import cuda_support, kernels_cuda
from numbagrad.errors import DeviceError, GraphError

L = ng.layers


@pytest.mark.parametrize(
    ("network", "optimizer", "sizes", "shape"),
    [
        pytest.param(perceptron, momentum, (3, 3, 2), (4,), marks=pytest.mark.smoke),
        pytest.param(convnet, adam, (3, 3, 3), (2, 2, 1)),
    ],
)
def test_training(network, optimizer, sizes, shape):
    expected_losses, expected = Training(network, optimizer, eager).run(sizes, shape)
    losses, states = Training(network, optimizer).run(sizes, shape)
    require_same(losses, expected_losses)
    assert states.keys() == expected.keys()
    for name, state in states.items():
        require_same(state, expected[name], name)


def launches_of(monkeypatch, run):
    """Return what `run` launches: kernels, grids, numbers, and where arrays lie."""

    def noted(argument):
        if isinstance(argument, tuple):
            return tuple(map(noted, argument))
        if hasattr(argument, "_ary"):
            return argument._ary.__array_interface__["data"], tuple(argument.shape), argument.dtype
        return type(argument), argument

    launches = []
    simulate = cuda_support._simulate

    def note(kernel, grid, block, args):
        launches.append((kernel, grid, block, tuple(map(noted, args))))
        simulate(kernel, grid, block, args)

    with monkeypatch.context() as patch:
        patch.setattr(cuda_support, "_simulate", note)
        run()
    return launches


@pytest.mark.simulator
def test_launches_of_two_steps_are_the_same(monkeypatch):
    training = Training(convnet, adam)
    x, labels = on_gpu(np.ones((2, 2, 2, 1))), on_gpu([0, 2], np.int64)
    training.step(x, labels)
    results = []
    first = launches_of(monkeypatch, lambda: results.append(training.step(x, labels)))
    training.opt.lr = 0.5
    second = launches_of(monkeypatch, lambda: results.append(training.step(x, labels)))
    assert first == second
    assert len(first) >= len(training.step.graph.nodes)
    assert results[0].item() != results[1].item()  # another dropout, another learning rate


@pytest.mark.simulator
def test_a_chain_is_one_launch(monkeypatch):
    def chain(x, row, column, number):
        y = ng.exp(x * row) + column
        return y, ng.tanh(y / number) - x

    rng = np.random.default_rng(0)
    shapes = (3, 5), (5,), (3, 1), ()
    arrays = [on_gpu(rng.uniform(1, 2, size=shape)) for shape in shapes]
    compiled = ng.compile(chain)
    compiled(*arrays)
    launches = launches_of(monkeypatch, lambda: compiled(*arrays))
    assert [launch[0].fn.__name__ for launch in launches] == ["_fused_multiply_exp_add_divide"]
    for out, expected in zip(compiled(*arrays), chain(*arrays), strict=True):
        require_same(out.numpy(), expected.numpy())


@pytest.mark.simulator
def test_another_batch_finds_the_kernels(monkeypatch):
    doubled = ng.compile(lambda x: ng.exp(x + x), dynamic=["batch"])
    (launch,) = launches_of(monkeypatch, lambda: doubled(on_gpu([1.0, 2.0])))
    (another,) = launches_of(monkeypatch, lambda: doubled(on_gpu([1.0, 2.0, 3.0])))
    assert launch[0] is another[0]


def test_booleans_are_fused_too():
    def masked(x, mask):
        positive = (x > 0) & ~mask
        return ng.where(positive, x * 2, 0.0), positive

    rng = np.random.default_rng(0)
    arrays = on_gpu(rng.normal(size=(3, 4))), on_gpu(rng.normal(size=(3, 4)) > 0, bool)
    compiled = ng.compile(masked)
    for out, expected in zip(compiled(*arrays), masked(*arrays), strict=True):
        assert out.dtype == expected.dtype
        require_same(out.numpy(), expected.numpy())
    assert len(compiled.graph.nodes) < 5


def test_source_is_read_as_the_models():
    training = Training(perceptron, adam)
    training.run((2,), (4,))
    source = training.step.source
    for text in ("def step(memory, stream):", "model_0_weight", "@cuda.jit", "opt_lr", "labels"):
        assert text in source
    counts = Counter(node.does for node in training.step.graph.nodes)
    assert counts["adam_update"] == 4
    assert "model_3_bias.grad" in str(training.step.graph)
    report = training.step.report()
    assert len(report.lines) == sum(counts.values())
    assert "not measured" in str(report)
    assert "matmul" in str(report)
    with pytest.raises(GraphError, match="'cpu'"):
        training.step.export("step.py")


@pytest.mark.smoke
def test_a_bad_label_shows_at_the_next_read():
    @ng.compile
    def loss(logits, labels):
        return ng.softmax_cross_entropy(logits, labels + 1)

    logits = on_gpu(np.ones((2, 3)))
    bad = loss(logits, on_gpu([0, 2], np.int64))
    good = loss(logits, on_gpu([0, 1], np.int64))
    with pytest.raises(IndexError) as caught:
        bad.numpy()
    assert good.item() == pytest.approx(np.log(3))
    with pytest.raises(IndexError) as expected:
        loss(ng.asarray(logits.numpy()), ng.asarray(np.array([0, 2])))
    assert str(caught.value) == str(expected.value)


def test_results_are_values():
    weight = L.Parameter(np.ones(2, np.float32), device="cuda")

    @ng.compile
    def step(x):
        (x * weight).sum().backward()
        return x * 2, x, weight.reshape(1, 2)

    first = step(on_gpu([1.0, 2.0]))
    grad = weight.grad
    second = step(on_gpu([3.0, 4.0]))
    assert [x.tolist() for x in first] == [[2, 4], [1, 2], [[1, 1]]]
    assert [x.tolist() for x in second] == [[6, 8], [3, 4], [[1, 1]]]
    assert grad.tolist() == [1, 2]
    assert weight.grad.tolist() == [4, 6]  # gradients add up


def test_what_lies_outside_is_read_at_each_call():
    shift = on_gpu([1.0, 2.0])

    @ng.compile
    def shifted(x, scale):
        return (x + shift)[1:] * scale

    x = on_gpu([0.0, 0.0])
    assert shifted(x, 0.5).tolist() == [1.0]
    shift[1] = 10.0
    assert shifted(x, 0.25).tolist() == [2.5]


def test_a_state_is_read_before_and_after_it_changes():
    state = L.Buffer(np.array([1.0, 2.0], np.float32), device="cuda")

    @ng.compile
    def step(x):
        before = state * 2
        ng.assign(state, before + x)
        return before + state

    assert step(on_gpu([1.0, 1.0])).tolist() == [5, 9]
    assert step(on_gpu([0.0, 0.0])).tolist() == [12, 20]
    assert state.tolist() == [6, 10]
    assert state.version == 2


def test_custom_op():
    def twice(x, out, stream):
        kernels_cuda.add_forward(x, x, np.array([[x.size], [1], [1]]), out, stream)

    def twice_on_cpu(x, out):
        out[:] = x + x

    op = ng.custom_op("twice", cpu=twice_on_cpu, cuda=twice, infer=lambda x: (x.shape, x.dtype))
    compiled = ng.compile(lambda x: op(x) + 1)
    assert compiled(on_gpu([1.0, 2.0])).tolist() == [3.0, 5.0]
    assert "twice_kernel" in compiled.source


def test_an_op_without_a_cuda_kernel():
    def nothing(x, out):
        """Leave `out` as it is."""

    op = ng.custom_op("nothing", cpu=nothing, infer=lambda x: (x.shape, x.dtype))
    with pytest.raises(DeviceError, match="nothing has no kernel for device 'cuda'"):
        ng.compile(lambda x: op(x))(on_gpu([1.0]))


def test_nothing_to_do():
    same = ng.compile(lambda x: x)
    x = on_gpu([1.0])
    assert same(x) is x
    assert str(same.report()).startswith("  ")
