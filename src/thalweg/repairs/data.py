"""Changes of scale: inputs standardised as they come in, predictions put back into the targets' units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.layers.moved import Moved
from thalweg.repairs.change import Body, Undo, Words, as_count, names
from thalweg.repairs.passes import MANY, Call, Pass, evaluating, forward, is_closed, look, shares, unshaped
from thalweg.repairs.structure import Around, owners, put, slots
from thalweg.step.kinds import kind_of
from thalweg.tensors.named import leaves

#: A deviation below this share of the largest value is rounding: the feature is constant.
CONSTANT = 1e-6
#: Means and deviations this near to 0 and 1 are standard already.
NEAR = 0.1
#: From so many axes on, an input is an image: one scale for each channel.
IMAGE = 4
#: Channels of an image stand on the last axis where there are so few there, and more on the second.
CHANNELS = 4
_SGD = ("sgd", "momentum", "nesterov")


class Standardise(nn.Module):
    """(x − mean) / deviation, feature by feature along an axis, counted from the last, −1.

    Both are buffers `[features, 1, …]` with a one for each axis behind that of the features, or `[1]` for all.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int, axis: int, like: Tensor) -> None:
        super().__init__()
        self.axis = axis
        shape = (features, *[1] * (-1 - axis))
        self.register_buffer("mean", like.new_zeros(shape))
        self.register_buffer("deviation", like.new_ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x."""
        return (x - self.mean) / self.deviation


class Rescale(nn.Module):
    """mean + deviation · x; both are buffers `[features]` of the last axis, or `[1]` for all."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", like.new_zeros(features))
        self.register_buffer("deviation", like.new_ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x."""
        return self.mean + self.deviation * x


class StandardiseInputs:
    """Every input of floats has mean 0 and deviation 1, feature by feature, ahead of the module that takes it first.

    Images by channel, all else by feature of the last axis; means and deviations are those of the sample's finite
    numbers, and are kept in the network, so that validation and later predictions see the same ones. A constant
    feature is only centred. LeCun et al. 1998, section 4.3. The function changes: that is what it is for.
    """

    code = "standardise_inputs"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """The modules, and for each the axis and the number of features."""
        if is_closed(body):
            return None
        found = list(_consumers(body, look(body)))
        if not found:
            return None
        taken = _inputs(body, {call.module: (axis, features) for call, axis, features in found})
        if all(_is_standard(mean, deviation) for mean, deviation in taken.values()):
            return None
        return {
            "where": " ".join(call.name for call, _, _ in found),
            "axes": " ".join(str(axis) for _, axis, _ in found),
            "features": " ".join(str(features) for _, _, features in found),
        }

    def apply(self, body: Body, words: Words) -> Undo:
        """Put the layers in, with the sample's statistics."""
        modules = [body.model.get_submodule(name) for name in names(words["where"])]
        axes, features = ([as_count(n) for n in names(words[key])] for key in ("axes", "features"))
        taken = _inputs(body, dict(zip(modules, zip(axes, features, strict=True), strict=True)))
        instead: dict[nn.Module, nn.Module] = {}
        for module, axis, count in zip(modules, axes, features, strict=True):
            mean, deviation = taken[module]
            layer = Standardise(count, axis, mean)
            layer.mean.copy_(mean.view_as(layer.mean))
            layer.deviation.copy_(deviation.view_as(layer.mean))
            instead[module] = Around(module, ahead=layer)
        return put(body.model, instead)

    def lines(self, words: Words) -> list[str]:
        """Statistics of the training inputs, used on all others."""
        return [
            "mean, deviation = x_train.mean(0), x_train.std(0)  # of images: over all but the channels",
            "x_train = (x_train - mean) / deviation  # and the same numbers for every other x",
        ]


def _consumers(body: Body, passed: Pass) -> Iterator[tuple[Call, int, int]]:
    """The innermost modules that take an input as it is and do not standardise it, each with axis and features."""
    for call, x in takers(body, passed):
        if not isinstance(call.module, Standardise):
            assert call.input is not None
            yield call, *_features(call.module, call.input, x)


def takers(body: Body, passed: Pass) -> list[tuple[Call, Tensor]]:
    """The innermost modules that take an input of floats as it is, once, each with that input."""
    places = slots(body.model)
    inside = {id(c.module): {id(m) for m in c.module.modules()} - {id(c.module)} for c in passed.calls[:-1]}
    calls = [c for c in passed.calls[:-1] if not isinstance(c.module, Moved)]  # which does nothing but in training
    takes = [(c, x) for c in calls for x in passed.inputs if shares(c.input, x) and x.is_floating_point()]
    taking = {id(call.module) for call, _ in takes}
    found = []
    for call, x in takes:
        handed_on = any(c.output is call.input and shares(c.output, x) for c, _ in takes)
        twice = passed.times(call.module) > 1 or any(shares(other, x) for other in call.others)
        if not (handed_on or twice or taking & inside[id(call.module)] or call.module not in places):
            found.append((call, x))
    return found


def _features(module: nn.Module, given: Tensor, x: Tensor) -> tuple[int, int]:
    """Axis, counted from the last, and number of the features: one for all where an image comes flattened."""
    if given.ndim < 2 or (x.ndim >= IMAGE and given.ndim == 2):
        return -1, 1
    axis = -1
    if isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase):
        axis = 1 - given.ndim
    elif given.ndim >= IMAGE:
        axis = -1 if given.shape[-1] <= CHANNELS < given.shape[1] else 1 - given.ndim
    return axis, given.shape[axis]


def _inputs(body: Body, modules: dict[nn.Module, tuple[int, int]]) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Mean and deviation of what comes to each module."""
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def take(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[module] = moments(args[0], *modules[module])

    hooks = [module.register_forward_pre_hook(take) for module in modules]
    try:
        with evaluating(body.model):
            forward(body, MANY)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def moments(x: Tensor, axis: int, features: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature over its finite numbers `[features]`; the deviation of a constant one is 1.

    >>> x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [torch.nan, 5.0]])
    >>> mean, deviation = moments(x, -1, 2)
    >>> mean.tolist(), deviation.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    rows = (x.reshape(1, -1) if features == 1 else x.movedim(axis, 0).reshape(features, -1)).double()
    finite = rows.isfinite()
    rows, count = rows.where(finite, 0), finite.sum(1).clamp_min(1)
    mean = rows.sum(1) / count
    deviation = (((rows - mean[:, None]) * finite).square().sum(1) / count).sqrt()
    constant = deviation <= CONSTANT * rows.abs().amax(1)
    return mean.to(x.dtype), deviation.where(~constant, 1).to(x.dtype)


def _is_standard(mean: Tensor, deviation: Tensor) -> bool:
    return bool((mean.abs() <= NEAR).all()) and bool(((deviation - 1).abs() <= NEAR).all())


class ScaleTargets:
    """The network learns targets of mean 0 and deviation 1, and its predictions are put back into their units.

    mean + deviation · f(x), behind the module that makes the output. If what f predicts is better than the targets'
    mean, its last layer is divided, so that predictions stay; in any case it is centred on the sample and brought to a
    deviation of at most 1, as far as it is a dense layer with weights of its own. The gradient grows by the deviation
    (for `mse` by its square), so the rate of plain SGD goes down by as much; rules that divide by the gradient's size
    take no notice.
    """

    code = "scale_targets"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """The module, the number of outputs, and the rate where it changes."""
        kind, y = kind_of(body.loss), body.sample[1]
        if is_closed(body) or kind is None or kind.task != "regression" or not isinstance(y, Tensor):
            return None
        passed = look(body)
        found = _last(body, passed)
        if found is None or isinstance(found.module, Rescale) or not isinstance(passed.output, Tensor):
            return None
        shape = passed.output.shape
        # Of numbers and sequences each feature by itself; of images all alike.
        features = shape[-1] if 1 < len(shape) < IMAGE and not isinstance(found.module, nn.modules.conv._ConvNd) else 1
        mean, deviation = moments(y.to(passed.output.dtype), -1, features)
        if _is_standard(mean, deviation):
            return None
        words: dict[str, float | str] = {"where": found.name, "features": features}
        if isinstance(body.settings.optimizer, str) and body.settings.optimizer in _SGD:
            words["learning_rate"] = body.rate / _steeper(kind.name, float(deviation.square().mean().sqrt()))
        return words

    def apply(self, body: Body, words: Words) -> Undo:
        """Put the layer in and bring the last layer's numbers into the new units."""
        module = body.model.get_submodule(str(words["where"]))
        settings, rate = body.settings, body.rate
        y = body.sample[1]
        output = _output(body)
        mean, deviation = moments(y.to(output), -1, as_count(words["features"]))
        rescale = Rescale(len(mean), mean)
        rescale.mean.copy_(mean)
        rescale.deviation.copy_(deviation)
        held: list[tuple[Tensor, Tensor]] = []
        if isinstance(module, nn.Linear) and owners(body.model, module.weight) == 1:
            held = [(p, p.detach().clone()) for p in module.parameters()]
            _into_units(module, output, y[: len(output)].to(output), mean, deviation)
        put_back = put(body.model, {module: Around(module, behind=rescale)})
        if "learning_rate" in words:
            body.rate = float(words["learning_rate"])
            body.settings = replace(settings, learning_rate=body.rate)

        def undo() -> None:
            put_back()
            body.settings, body.rate = settings, rate
            with torch.no_grad():
                for p, value in held:
                    p.copy_(value)

        return undo

    def lines(self, words: Words) -> list[str]:
        """Targets standardised, predictions put back."""
        return [
            "mean, deviation = y_train.mean(0), y_train.std(0)",
            "y_train = (y_train - mean) / deviation  # and the same for every other y",
            "prediction = mean + deviation * model(x)",
        ]


def _steeper(loss: str, deviation: float) -> float:
    """By how much the gradient grows: huber is the one beyond 1, the other below."""
    squared = loss == "mse" or (loss == "huber" and deviation < 1)
    return deviation**2 if squared else deviation


def _last(body: Body, passed: Pass) -> Call | None:
    """The call that made the output, of a module that can be replaced and was called once."""
    places = slots(body.model)
    if not isinstance(passed.output, Tensor):
        return None
    makers = [c for c in passed.calls[:-1] if shares(c.output, passed.output)]
    makers = [c for c in makers if c.module in places and passed.times(c.module) == 1]
    made = unshaped(passed.output.grad_fn)
    # A dense layer can take the scale in at the end; not one whose output an activation has changed in place since.
    dense = [c for c in makers if isinstance(c.module, nn.Linear) and unshaped(c.node) is made]
    inner = [c for c in makers if not any(True for _ in c.module.children()) and unshaped(c.node) is made]
    return next(iter([*dense, *reversed(inner), *makers]), None)


def _output(body: Body) -> Tensor:
    """What the model predicts for the sample now."""
    with evaluating(body.model):
        _, output = forward(body, MANY)
    made: Any = next(leaves(output))
    return made


@torch.no_grad()
def _into_units(layer: nn.Linear, output: Tensor, target: Tensor, mean: Tensor, deviation: Tensor) -> None:
    """W, b → those that give standardised predictions."""
    features = len(mean)
    columns, wanted = (t.reshape(-1, features).double() for t in (output, target))
    if float((columns - wanted).square().sum()) < float((wanted - wanted.mean(0)).square().sum()):
        layer.weight.div_(deviation[:, None])
        columns = (columns - mean) / deviation
        if layer.bias is not None:
            layer.bias.sub_(mean).div_(deviation)
    size = columns.std(0, correction=0).clamp_min(1.0)
    layer.weight.div_(size.to(layer.weight)[:, None])
    if layer.bias is not None:
        layer.bias.sub_(columns.mean(0).to(layer.bias)).div_(size.to(layer.bias))
