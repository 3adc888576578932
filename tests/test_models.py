"""The zoo: shapes, sizes, names."""

import pytest

import numbagrad as ng


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet", 61_706), ("mlp", 101_770), ("convnet6", 307_946), ("resnet8", 78_042)],
)
def test_sizes(name, parameters):
    model = ng.models.get(name)
    assert sum(parameter.size for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", ng.models.NAMES)
@pytest.mark.parametrize("size", [8, 11, 12, 28, 32])
def test_any_size_of_image(name, size):
    model = ng.models.get(name, in_channels=2, classes=7, image_size=size)
    assert model.output_spec((3, size, size, 2)).shape == (3, 7)


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"no model is called 'lennet'; did you mean 'lenet'"):
        ng.models.get("lennet")


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("lenet", {"num_classes": 3}, TypeError, "'num_classes'; did you mean 'classes'"),
        ("convnet6", {"image_size": 4}, ValueError, "convnet6: image_size .* at least 8, got 4"),
        ("lenet", {"image_size": 1}, ValueError, "lenet: image_size .* at least 2, got 1"),
        ("mlp", {"image_size": 2.5}, ValueError, "mlp: image_size must be a whole number"),
    ],
)
def test_arguments_that_do_not_fit(name, arguments, error, message):
    with pytest.raises(error, match=message):
        ng.models.get(name, **arguments)


def test_one_hidden_layer_may_be_an_int():
    assert repr(ng.models.mlp(hidden=64)) == repr(ng.models.mlp(hidden=(64,)))
