import os
import random
import runpy
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
if keras.config.backend() != "torch":
    pytest.skip(f"Keras is set to the {keras.config.backend()} backend here", allow_module_level=True)

from thalweg.step import keras as keras_model  # noqa: E402
from thalweg.tensors import seeds  # noqa: E402
from thalweg.tensors.named import assign, copied  # noqa: E402

layers = keras.layers


def network(**options):
    """Everything with a state: dropout with a seed of its own, batch norm, L2."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, activation="relu", kernel_regularizer=keras.regularizers.L2(0.1)),
            layers.BatchNormalization(),
            layers.Dropout(0.4, seed=7),
            layers.Dense(3),
        ],
        **options,
    )


class Listed(keras.Model):
    """Layers in a list, no `training` in `call`, unbuilt until called."""

    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(4), layers.Dropout(0.5, seed=3), layers.Dense(2)]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Noisy(keras.layers.Layer):
    """Draws in every call, also where nothing is trained, from its own generator and from Keras's global one."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(5)

    def build(self, input_shape):
        self.late = keras.random.SeedGenerator(6)
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")
        self.calls = self.add_weight(shape=(), trainable=False, initializer="zeros", name="calls")

    def call(self, x):
        for generator in (self.generator, self.late, None):
            x = x + keras.random.normal(keras.ops.shape(x), seed=generator)
        return x * self.scale


class Unnamed(keras.layers.Layer):
    """A weight without a name."""

    def __init__(self):
        super().__init__()
        self.scale = keras.Variable(2.0)

    def call(self, x):
        return x * self.scale


class SameName(keras.layers.Layer):
    """Two weights of one path, of which Keras's own state_dict keeps one."""

    def __init__(self):
        super().__init__()
        self.first = self.add_weight(shape=(2,), name="w")
        self.second = self.add_weight(shape=(3,), name="w")

    def call(self, x):
        return x * self.first * keras.ops.sum(self.second)


def test_a_keras_model_is_known_by_its_ancestry():
    assert keras_model.is_keras(network())
    assert keras_model.is_keras(Listed())
    assert not keras_model.is_keras(torch.nn.Linear(2, 3))
    similar = type("Model", (), {"__module__": "keras_like.models"})
    assert not keras_model.is_keras(similar())


def test_the_torch_backend_passes():
    assert keras_model.require_torch_backend(network()) is None
    assert keras_model.require_torch_backend(torch.nn.Linear(2, 3)) is None


@pytest.mark.parametrize(
    ("module", "backend"),
    [
        ("keras.src.backend.jax.layer", "jax"),
        ("keras.src.backend.tensorflow.layer", "tensorflow"),
        ("tf_keras.src.engine", "tensorflow"),
    ],
)
def test_another_backend_is_told_which_line_to_add(module, backend):
    # A stand-in with the ancestry of such a model: a process has one backend, and this one's is torch.
    ancestor = type("Layer", (), {"__module__": module})
    model = type("Mine", (ancestor,), {})()
    assert keras_model.is_keras(model)
    with pytest.raises(TypeError, match=backend) as caught:
        keras_model.require_torch_backend(model)
    assert 'import os; os.environ["KERAS_BACKEND"] = "torch"  # before the first import of keras' in str(caught.value)
    assert "build the model again" in str(caught.value)


def test_layers_are_found_that_torch_does_not_list():
    model = keras.Sequential([keras.Input((6,)), network()])
    kinds = {type(layer) for layer in keras_model.layers(model)}
    assert {layers.Dense, layers.BatchNormalization, layers.Dropout} <= kinds
    assert layers.BatchNormalization not in {type(module) for module in model.modules()}


def test_build_makes_the_weights_and_leaves_every_generator_as_found():
    model = keras.Sequential([layers.Dense(4), Noisy(), layers.Dropout(0.5, seed=1)])
    keras_model.global_seed()
    before = copied({"own": model.layers[1].generator.state.value, "global": keras_model.global_seed()})
    torch_state, python_state = torch.get_rng_state(), random.getstate()

    keras_model.build(model, torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))

    assert model.built
    assert set(keras_model.trainable_parameters(model)) == {"dense.kernel", "dense.bias", "noisy.scale"}
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert torch.equal(model.layers[1].generator.state.value, before["own"])
    assert torch.equal(keras_model.global_seed(), before["global"])
    assert model.layers[1].late.state.value.tolist() == [6, 0]


def test_build_draws_weights_from_the_generators_as_found():
    def built():
        keras.utils.set_random_seed(4)
        model = Listed()
        keras_model.build(model, torch.zeros(8, 3))
        return keras_model.state_tensors(model)["dense.kernel"]

    assert torch.equal(built(), built())


def test_build_does_not_call_what_is_built(monkeypatch):
    model = network()
    monkeypatch.setattr(keras_model, "call", lambda *_, **__: pytest.fail("called"))
    assert keras_model.build(model, torch.zeros(2, 6)) is None


def test_build_takes_several_inputs():
    class Sum(keras.Model):
        def __init__(self):
            super().__init__()
            self.left, self.right = layers.Dense(2), layers.Dense(2)

        def call(self, x):
            return self.left(x[0]) + self.right(x[1])

    model = Sum()
    keras_model.build(model, (torch.zeros(5, 3), torch.zeros(5, 4)))
    shapes = [list(parameter.shape) for parameter in keras_model.trainable_parameters(model).values()]
    assert shapes == [[3, 2], [2], [4, 2], [2]]


def test_training_is_passed_and_not_the_mode_of_the_module():
    model, x = network(), torch.arange(24.0).reshape(4, 6)
    model.train()
    assert torch.equal(keras_model.call(model, x, training=False), keras_model.call(model, x, training=False))
    model.eval()
    assert not torch.equal(keras_model.call(model, x, training=True), keras_model.call(model, x, training=True))


def test_training_reaches_layers_of_a_model_whose_call_does_not_take_it():
    model, x = Listed(), torch.ones(16, 3)
    keras_model.build(model, x)
    assert torch.equal(keras_model.call(model, x, training=False), model(x))
    assert not torch.equal(keras_model.call(model, x, training=True), model(x))


def test_a_tuple_of_inputs_and_a_dict_of_inputs():
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    joined = layers.Concatenate()([left, right])
    a, b = torch.randn(4, 2), torch.randn(4, 3)
    expected = torch.cat([a, b], dim=1)
    assert torch.equal(keras_model.call(keras.Model([left, right], joined), (a, b), training=True), expected)
    by_name = keras.Model({"left": left, "right": right}, joined)
    assert torch.equal(keras_model.call(by_name, {"right": b, "left": a}, training=True), expected)

    class Seen(keras.Model):
        def call(self, x):
            self.kind = type(x)
            return x[0]

    model = Seen()
    keras_model.call(model, (a, b), training=True)
    assert model.kind is list


def test_a_model_stays_on_the_device_of_its_inputs(monkeypatch):
    with keras.device("cpu"):
        model = network()
    # As on a machine with an accelerator: Keras would move every input there, and without one it fails.
    monkeypatch.setattr(sys.modules["keras.src.backend.torch.core"], "DEFAULT_DEVICE", "cuda")
    x = torch.ones(2, 6)
    with pytest.raises((RuntimeError, AssertionError)):
        model(x)
    assert keras_model.call(model, x, training=True).device == x.device
    assert keras_model.regularisation(model).device == x.device


def test_regularisation_sums_regularisers_and_added_losses():
    class Adds(keras.layers.Layer):
        def call(self, x, training=False):
            if training:
                self.add_loss(x.mean())
            return x

    model = keras.Sequential(
        [keras.Input((6,)), Adds(), layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))]
    )
    x = torch.full((4, 6), 2.0)
    weights = (keras_model.state_tensors(model)["dense.kernel"] ** 2).sum().item()
    keras_model.call(model, x, training=False)
    assert keras_model.regularisation(model).item() == pytest.approx(0.1 * weights, rel=1e-6)
    for _ in range(2):  # each call begins anew
        keras_model.call(model, x, training=True)
        assert keras_model.regularisation(model).item() == pytest.approx(0.1 * weights + 2.0, rel=1e-6)


def test_regularisation_has_a_gradient():
    model = network()
    keras_model.call(model, torch.ones(4, 6), training=True)
    keras_model.regularisation(model).backward()
    kernel = keras_model.trainable_parameters(model)["dense.kernel"]
    assert torch.allclose(kernel.grad, 0.2 * kernel)


def test_no_regularisation_is_none():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    keras_model.call(model, torch.ones(4, 6), training=True)
    assert keras_model.regularisation(model) is None


def test_constraints_are_applied_to_what_has_one():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, kernel_constraint="non_neg"), layers.Dense(2)])
    before = copied(keras_model.state_tensors(model))
    assert keras_model.is_constrained(model)
    assert not keras_model.is_constrained(network())
    keras_model.apply_constraints(model)
    after = keras_model.state_tensors(model)
    assert torch.equal(after["dense.kernel"], before["dense.kernel"].clamp(min=0))
    assert torch.equal(after["dense_1.kernel"], before["dense_1.kernel"])


def test_what_is_frozen_in_keras_or_in_torch_does_not_train():
    model = network()
    names = ["dense.kernel", "dense.bias", "batch_normalization.gamma", "batch_normalization.beta"]
    assert list(keras_model.trainable_parameters(model)) == [*names, "dense_1.kernel", "dense_1.bias"]
    model.layers[0].trainable = False
    assert list(keras_model.trainable_parameters(model)) == [*names[2:], "dense_1.kernel", "dense_1.bias"]
    model.layers[0].trainable = True
    model.layers[0].bias.value.requires_grad_(False)
    assert "dense.bias" not in keras_model.trainable_parameters(model)
    assert "dense.kernel" in keras_model.trainable_parameters(model)


def test_what_is_frozen_before_it_is_built_does_not_train():
    model = keras.Sequential([layers.Dense(4), layers.Dense(2, trainable=False)])
    model.layers[0].trainable = False
    keras_model.build(model, torch.zeros(2, 6))
    assert len(keras_model.state_tensors(model)) == 4
    assert keras_model.trainable_parameters(model) == {}
    model.layers[1].trainable = True
    assert set(keras_model.trainable_parameters(model)) == {"dense_1.kernel", "dense_1.bias"}


def test_a_model_frozen_as_a_whole_trains_nothing_though_its_tensors_ask_for_gradients():
    model = network(trainable=False)
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert keras_model.trainable_parameters(model) == {}


def test_seed_tensors_are_the_generators_and_nothing_else():
    model = network()
    (state,) = keras_model.seed_tensors(model)
    assert state is model.layers[2].seed_generator.state.value
    keras_model.call(model, torch.ones(4, 6), training=True)
    assert state.tolist() == [7, 1]


def test_dropout_without_a_seed_draws_from_torch_itself():
    model = keras.Sequential([keras.Input((6,)), layers.Dropout(0.5)])
    (state,) = keras_model.seed_tensors(model)
    drawn, found = state.clone(), torch.get_rng_state()
    keras_model.call(model, torch.ones(4, 6), training=True)
    assert torch.equal(state, drawn)
    assert not torch.equal(torch.get_rng_state(), found)


def recurrent():
    """Layers within layers, which Keras names after each other."""
    inputs = keras.Input((6,))
    sequence = layers.Reshape((3, 2))(inputs)
    attended = layers.MultiHeadAttention(2, 3, dropout=0.1)(sequence, sequence)
    states = layers.Bidirectional(layers.LSTM(2, dropout=0.1, return_sequences=True))(attended)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(2))(states))


def noisy():
    return keras.Sequential([layers.Dense(3), Noisy(), Noisy(), Unnamed()])


@pytest.mark.parametrize("make", [network, Listed, recurrent, noisy])
def test_names_are_the_same_in_each_build(make):
    first, second = make(), make()
    for model in (first, second):
        keras_model.build(model, torch.zeros(2, 6))
    assert list(first.state_dict()) != list(second.state_dict())
    assert list(keras_model.state_tensors(first)) == list(keras_model.state_tensors(second))
    assert len(keras_model.state_tensors(first)) == len(first.variables)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, while it saves
def test_names_are_the_same_in_a_model_read_from_a_file(tmp_path):
    model = recurrent()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert list(keras_model.state_tensors(again)) == list(keras_model.state_tensors(model))


def test_given_names_stay():
    inputs = keras.Input((2,))
    outputs = layers.Dense(2, name="block_2")(layers.Dense(2, name="block_1")(inputs))
    names = list(keras_model.state_tensors(keras.Model(inputs, outputs)))
    assert names == ["block_1.kernel", "block_1.bias", "block_2.kernel", "block_2.bias"]


def test_state_tensors_miss_nothing_where_weights_share_a_path():
    model = keras.Sequential([keras.Input((2,)), SameName()])
    assert len({id(value) for value in model.state_dict(keep_vars=True).values()}) == 1
    assert [list(tensor.shape) for tensor in keras_model.state_tensors(model).values()] == [[2], [3]]
    assert len(keras_model.trainable_parameters(model)) == 2


def test_state_tensors_hold_the_buffers_of_wrapped_torch_modules():
    def wrapped():
        return layers.TorchModuleWrapper(torch.nn.BatchNorm1d(3))

    model = keras.Sequential([keras.Input((3,)), wrapped(), wrapped()])
    tensors = keras_model.state_tensors(model)
    before = copied(tensors)
    keras_model.call(model, torch.randn(8, 3), training=True)
    changed = {name for name in tensors if not torch.equal(tensors[name], before[name])}
    per_module = {"buffers.module.running_mean", "buffers.module.running_var", "buffers.module.num_batches_tracked"}
    assert changed == per_module | {f"{name}.2" for name in per_module}


def train(model, batches):
    """Plain gradient descent written with these functions alone; returns the losses."""
    losses = []
    for x, target in batches:
        output = keras_model.call(model, x, training=True)
        loss = torch.nn.functional.cross_entropy(output, target) + keras_model.regularisation(model)
        parameters = keras_model.trainable_parameters(model).values()
        gradients = torch.autograd.grad(loss, list(parameters))
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("same_model", [True, False])
def test_a_restored_model_goes_on_bit_for_bit(same_model):
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 6, generator=generator), torch.arange(8) % 3) for _ in range(6)]
    model = network()
    train(model, batches[:3])
    saved = copied(keras_model.state_tensors(model))
    losses = train(model, batches[3:])
    ended = copied(keras_model.state_tensors(model))
    assert not any(torch.equal(saved[name], ended[name]) for name in saved)

    twin = model if same_model else network()
    assign(keras_model.state_tensors(twin), saved)

    assert train(twin, batches[3:]) == losses
    again = keras_model.state_tensors(twin)
    assert all(torch.equal(again[name], ended[name]) for name in ended)
    assert torch.equal(twin.layers[0].kernel.value, ended["dense.kernel"])  # the Keras model's own weights


def test_the_page_for_keras_users_shows_the_example_as_it_is():
    root = Path(__file__).parents[2]
    example = (root / "examples" / "seed.py").read_text(encoding="utf-8")
    program = example[example.index("import os") :]
    assert f"```python\n{program}```" in (root / "docs" / "from-keras.md").read_text(encoding="utf-8")


def test_the_page_for_keras_users_shows_the_error_as_it_is():
    model = type("Mine", (type("Layer", (), {"__module__": "keras.src.backend.jax.layer"}),), {})()
    with pytest.raises(TypeError) as caught:
        keras_model.require_torch_backend(model)
    page = Path(__file__).parents[2] / "docs" / "from-keras.md"
    assert f"TypeError: {caught.value}\n" in page.read_text(encoding="utf-8")


def test_the_example_runs_and_trains_the_keras_models_own_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with seeds.untouched():
        names = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "seed.py"))
    assert names["run"].model is names["model"]
    outputs = keras_model.call(names["model"], torch.from_numpy(names["x_test"]), training=False)
    accuracy = (outputs.argmax(1) == torch.from_numpy(names["y_test"]).argmax(1)).double().mean().item()
    assert accuracy >= 0.94
    assert f"held-out accuracy: {accuracy:.3f}" in capsys.readouterr().out
