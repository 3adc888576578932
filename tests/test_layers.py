"""Modules: what they hold, how they are saved, and what they say when something does not fit."""

import copy
import pickle

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import layers
from numbagrad.errors import DataError, DTypeError, GraphError, ShapeError, TraceError
from numbagrad.layers import BatchNorm2d, Conv2d, Linear, ModuleList, ReLU, Sequential


class Tied(layers.Module):
    """A weight under two names, a buffer, a list of layers."""

    def __init__(self):
        self.blocks = ModuleList(Linear(2, 2, bias=False), ReLU())
        self.again = self.blocks[0]
        self.scale = layers.Parameter([3.0])
        self.offset = layers.Buffer([1.0])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.again(x) * self.scale + self.offset


def zeros(*shape):
    return ng.asarray(np.zeros(shape, np.float32))


def test_what_is_inside_in_order_and_once():
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["scale", "blocks.0.weight"]
    assert [id(buffer) for buffer in model.buffers()] == [id(model.offset)]
    assert [name for name, _ in model.named_modules()] == ["", "blocks", "blocks.0", "blocks.1"]
    assert list(model.state_dict()) == ["scale", "offset", "blocks.0.weight"]


def test_layers_hidden_in_a_list_are_refused():
    model = layers.Module()
    with pytest.raises(TypeError, match="would not be found by parameters"):
        model.blocks = [Linear(2, 2)]


def test_modes_and_gradients():
    model = Tied()
    assert model.training
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    model.train()
    with model.evaluating():
        assert not model.blocks[1].training
        assert not model(zeros(1, 2)).requires_grad
    assert model.blocks[1].training
    model(zeros(1, 2)).sum().backward()
    assert model.scale.grad is not None
    model.zero_grad()
    assert model.scale.grad is None


def test_state_dict_is_a_snapshot():
    model = Linear(2, 2)
    state = model.state_dict()
    before = state["weight"].copy()
    ng.assign(model.weight, np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(state["weight"], before)
    data = model.weight._data
    model.load_state_dict(state)
    np.testing.assert_array_equal(model.weight.numpy(), before)
    assert model.weight._data is data


def test_one_error_names_all_that_does_not_fit_and_nothing_changes():
    model = Sequential(Linear(2, 3), Linear(3, 1))
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    del state["0.bias"]
    state["2.weight"] = np.zeros(4)
    state["1.weight"] = np.zeros((3, 2), np.float32)
    state["1.bias"] = np.zeros(1)
    with pytest.raises(DataError) as caught:
        model.load_state_dict(state)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: 0.bias, (3,)",
        "  unexpected: 2.weight, (4,)",
        "  does not fit: 1.weight is float32 of shape (3, 2), needs float32 of shape (3, 1)",
        "  does not fit: 1.bias is float64 of shape (1,), needs float32 of shape (1,)",
    ]
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_not_strict_takes_what_is_there():
    model = Sequential(Linear(2, 3))
    model.load_state_dict({"0.bias": np.ones(3, np.float32), "other": np.zeros(1)}, strict=False)
    assert model[0].bias.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copies_are_whole_and_apart(duplicate):
    model = Tied()
    model.blocks[0].weight.requires_grad = False
    twin = duplicate(model)
    assert twin.again is twin.blocks[0]
    assert isinstance(twin.scale, layers.Parameter)
    assert isinstance(twin.offset, layers.Buffer)
    assert not twin.again.weight.requires_grad
    ng.assign(twin.scale, [0.0])
    assert model.scale.item() == 3.0


def test_parameters_own_their_values():
    value = ng.asarray([1.0, 2.0])
    parameter = layers.Parameter(value)
    ng.assign(parameter, [5.0, 6.0])
    assert value.tolist() == [1.0, 2.0]
    with pytest.raises(DTypeError, match="Parameter: needs float32 or float64, got int64"):
        layers.Parameter([1, 2])


def test_errors_name_the_layer_once():
    inner = Sequential(Linear(3, 4), ReLU())
    model = Sequential(inner, Linear(5, 2))
    with pytest.raises(ShapeError) as caught:
        model(zeros(2, 3))
    assert str(caught.value).startswith("in layer '1' (Linear(5, 2)): linear: x (2, 4) and weight")
    with pytest.raises(ShapeError, match=r"^in layer '0.0' \(Linear\(3, 4\)\): linear"):
        model(zeros(2, 7))
    with pytest.raises(ShapeError, match=r"^in Linear\(3, 4\): linear"):
        inner[0](zeros(2, 7))


def test_any_error_in_forward_tells_where():
    class Broken(layers.Module):
        def forward(self, x):
            raise KeyError("x")

    with pytest.raises(KeyError) as caught:
        Sequential(ReLU(), Broken())(zeros(1))
    assert caught.value.__notes__ == ["in layer '1' (Broken())"]


@pytest.mark.parametrize("shape", [(8, 8, 3), (5, 8, 8, 3)])
def test_summary(shape):
    model = Sequential(
        Conv2d(3, 4, 3, padding=1), BatchNorm2d(4), layers.MaxPool2d(2), layers.Flatten(),
        layers.Dropout(), Linear(64, 2),
    )  # fmt: skip
    before = model.state_dict()
    summary = model.summary(shape)
    batch = shape[0] if len(shape) == 4 else 1
    assert [layer.output_shape for layer in summary.layers] == [
        (batch, 8, 8, 4), (batch, 8, 8, 4), (batch, 4, 4, 4), (batch, 64), (batch, 64), (batch, 2)
    ]  # fmt: skip
    assert summary.parameters == 3 * 3 * 3 * 4 + 4 + 8 + 64 * 2 + 2
    conv, norm, pool, flat, dropout, linear = summary.layers
    assert conv.flops == 2 * batch * 64 * 27 * 4
    assert linear.flops == 2 * batch * 64 * 2
    assert (pool.nbytes, flat.nbytes, dropout.nbytes) == (4 * batch * 64, 0, 0)
    assert summary.flops == conv.flops + norm.flops + linear.flops
    assert summary.nbytes == 4 * batch * (2 * 256 + 64 + 2)
    assert "Conv2d(3, 4, 3, padding=1)" in str(summary)
    assert summary._repr_html_().count("<tr>") == 8
    assert model.training
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_summary_counts_what_a_block_does_itself():
    rows = {row.name: row for row in ng.models.resnet8().summary((32, 32, 3)).layers}
    assert rows["3"].layer == "ResidualBlock, itself"
    assert (rows["3"].parameters, rows["3"].flops) == (0, 32 * 32 * 16)  # the sum


def test_summary_runs_no_kernel_and_draws_nothing(monkeypatch):
    model = Sequential(Linear(3, 2), layers.Dropout())
    monkeypatch.setattr(ng.dispatch, "plan_for", lambda *arguments: pytest.fail("a kernel ran"))
    model.summary((3,))


def test_summary_counts_a_shared_weight_once_and_names_what_does_not_fit():
    assert Tied().summary((2,)).parameters == 4 + 1
    with pytest.raises(ShapeError, match=r"in layer '0' \(Conv2d.*has 3 channels"):
        Sequential(Conv2d(1, 4, 3)).summary((8, 8, 3))


def test_initialisation_is_pytorchs_and_fixed_by_the_seed():
    ng.random.seed(5)
    model = Conv2d(8, 32, 3, groups=2)
    assert model.weight.shape == (3, 3, 4, 32)
    bound = 1 / 6  # 1 / sqrt(3 * 3 * 4)
    for values in (model.weight.numpy(), model.bias.numpy()):
        assert np.abs(values).max() <= bound
    assert model.weight.numpy().std() == pytest.approx(bound / 3**0.5, rel=0.1)
    ng.random.seed(5)
    np.testing.assert_array_equal(Conv2d(8, 32, 3, groups=2).bias.numpy(), model.bias.numpy())
    table = layers.Embedding(100, 10).weight.numpy()
    assert (table.mean(), table.std()) == (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Linear(2, 3, bias=False), "Linear(2, 3, bias=False)"),
        (Conv2d(1, 6, 5, padding=2), "Conv2d(1, 6, 5, padding=2)"),
        (BatchNorm2d(3, momentum=0.2), "BatchNorm2d(3, momentum=0.2)"),
        (layers.Dropout(0.25), "Dropout(p=0.25)"),
        (layers.MaxPool2d(2, stride=1), "MaxPool2d(2, stride=1)"),
        (
            Sequential(Sequential(ReLU()), layers.Flatten()),
            "Sequential(\n  0: Sequential(\n    0: ReLU()\n  )\n  1: Flatten()\n)",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (ReLU(), ng.relu),
        (layers.LeakyReLU(0.2), lambda x: ng.leaky_relu(x, 0.2)),
        (layers.GELU(), ng.gelu),
        (layers.Sigmoid(), ng.sigmoid),
        (layers.Tanh(), ng.tanh),
        (layers.Flatten(), lambda x: x.reshape(2, 3)),
        (layers.MaxPool2d(1), lambda x: x),
        (layers.AvgPool2d(1), lambda x: x),
        (layers.Dropout().eval(), lambda x: x),
    ],
)
def test_layers_without_weights(layer, function):
    x = ng.asarray(np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 1, 1, 3))
    np.testing.assert_array_equal(layer(x).numpy(), function(x).numpy())


def test_batch_norm_keeps_running_statistics_in_place():
    layer = layers.BatchNorm1d(2)
    data = layer.running_mean._data
    x = ng.asarray([[0.0, 2.0], [4.0, 2.0]])
    np.testing.assert_allclose(layer(x).numpy(), [[-1, 0], [1, 0]], atol=1e-4)
    assert layer.running_mean._data is data
    np.testing.assert_allclose(layer.running_mean.numpy(), [0.2, 0.2], rtol=1e-6)
    with pytest.raises(ShapeError, match="needs 2 dimensions"):
        layer(zeros(1, 1, 1, 2))
    layer.eval()(x)
    np.testing.assert_allclose(layer.running_mean.numpy(), [0.2, 0.2], rtol=1e-6)


def test_embedding_looks_up():
    layer = layers.Embedding(3, 2)
    rows = layer(ng.asarray([2, 0])).numpy()
    np.testing.assert_array_equal(rows, layer.weight.numpy()[[2, 0]])


def test_to_another_device_and_back():
    model = Linear(2, 2)
    weight = model.weight
    assert model.to("cpu") is model
    assert model.weight is weight
    with pytest.raises(ng.errors.DeviceError, match="cpuu"):
        model.to("cpuu")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0, 2), "Linear: in_features must be a whole number of at least 1, got 0"),
        (lambda: Conv2d(3, 4, 3, groups=2), "groups=2 must divide in_channels=3"),
        (lambda: Conv2d(3, 4, 0), "kernel_size"),
        (lambda: Conv2d(3, 4, 3.0), "Conv2d: kernel_size must be a whole number .*, got 3.0"),
        (
            lambda: Conv2d(3, 4, (3,)),
            r"Conv2d: kernel_size .* pair \(rows, columns\).*, got \(3,\)",
        ),
        (lambda: Conv2d(3, 4, 3, stride=1.5), "Conv2d: stride .*, got 1.5"),
        (lambda: Conv2d(3, 4, 3, stride=None), "Conv2d: stride .*, got None"),
        (lambda: Conv2d(3, 4, 3, stride=0), "Conv2d: stride .*, got 0"),
        (lambda: Conv2d(3, 4, 3, padding=-1), "Conv2d: padding must be .* at least 0"),
        (lambda: layers.MaxPool2d(0), "MaxPool2d: kernel_size .*, got 0"),
        (lambda: layers.AvgPool2d(2, stride=1.5), "AvgPool2d: stride .*, got 1.5"),
        (lambda: Linear(True, 2), "Linear: in_features .*, got True"),
        (lambda: layers.Dropout(1.0), "Dropout: p"),
        (lambda: layers.Dropout("0.5"), "Dropout: p must be a number .*, got '0.5'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_numpy_will_do():
    layer = Conv2d(np.int64(1), 8, np.int64(3), stride=(np.int32(2), 1))
    assert repr(layer) == "Conv2d(1, 8, 3, stride=(2, 1))"
    assert layer(zeros(1, 5, 5, 1)).shape == (1, 2, 3, 8)


@pytest.mark.parametrize("x", [np.zeros((1, 2, 2, 3), np.float32), [[1.0, 2.0, 3.0]]])
@pytest.mark.parametrize(
    "layer",
    [Linear(3, 2), Conv2d(3, 2, 1), BatchNorm2d(3), layers.MaxPool2d(1), layers.Flatten(),
     layers.Dropout().eval(), ng.models.GlobalAvgPool2d()],
)  # fmt: skip
def test_layers_take_arrays_only(layer, x):
    with pytest.raises(TypeError, match=r"x is an? .*pass ng\.asarray\(x\)"):
        layer(x)


def test_inputs_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"Flatten.*needs \(n, \.\.\.\), got a 0-d array"):
        layers.Flatten()(zeros())
    with pytest.raises(DTypeError, match="linear: operands have dtypes float32 and float64"):
        Linear(2, 2)(ng.asarray(np.zeros((1, 2))))
    with pytest.raises(DTypeError, match="linear: needs float32 or float64, got int64"):
        Linear(2, 2)(ng.asarray([[1, 2]]))


def test_a_state_is_a_mapping():
    with pytest.raises(TypeError, match=r"needs arrays by name.*got NoneType"):
        Linear(2, 2).load_state_dict(None)


def test_a_state_may_hold_arrays():
    model = Linear(2, 1, bias=False)
    model.load_state_dict({"weight": ng.asarray([[1.0], [2.0]])})
    assert model.weight.tolist() == [[1.0], [2.0]]


def test_shapes_alone_are_not_enough_for_a_model_that_looks_at_values():
    class Dynamic(layers.Module):
        def forward(self, x):
            return x * 2 if x.mean().item() > 1 else x

    with pytest.raises(TraceError, match=r"the forward\(\) of layer '1' looks at values") as caught:
        Sequential(ReLU(), Dynamic()).output_spec((2, 3))
    assert "traced" not in str(caught.value)
    with pytest.raises(TraceError, match="the model looks at values"):
        Dynamic().summary((3,))


def test_an_output_spec_is_of_one_array():
    class Two(layers.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match=r"Two\.forward\(\) returns a tuple; one Array is needed"):
        Two().output_spec((2, 3))


def test_sequential_takes_only_modules():
    with pytest.raises(TypeError, match="layer 1 is a function, not a Module"):
        Sequential(ReLU(), lambda x: x)


def test_parameters_are_updated_in_place_by_hand():
    layer = ng.layers.Linear(2, 1)
    weight, before = layer.weight, layer.weight.numpy()
    with pytest.raises(GraphError, match="no_grad"):
        layer.weight -= 1.0
    with ng.no_grad():
        layer.weight -= 0.5
        for parameter in layer.parameters():
            parameter *= 2.0
    assert layer.weight is weight
    np.testing.assert_allclose(layer.weight.numpy(), (before - 0.5) * 2, rtol=1e-6)


def test_a_parameter_is_not_replaced_by_a_value():
    layer = ng.layers.Linear(2, 1)
    with pytest.raises(TypeError, match=r"Linear\.weight is a Parameter.*no_grad"):
        layer.weight = np.ones((2, 1))
    layer.bias = None
    assert len(list(layer.parameters())) == 1
