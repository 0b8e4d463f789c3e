import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from thalweg.optim.averages import WeightAverage


def walk(tensors, steps, seed=0):
    """Weights as a training would move them."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
            else:
                tensor.add_(1)
        yield step


def live():
    return [torch.zeros(3, dtype=torch.float64), torch.ones(2, 2), torch.tensor(0)]


def averaged(average, tensors):
    with average.averaged():
        return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize(("start", "every"), [(0, 1), (4, 1), (3, 5)])
def test_swa_is_the_mean(start, every):
    tensors = live()
    average, seen = WeightAverage("swa", tensors, start, every), []
    for step in walk(tensors, 20):
        average.update(step)
        if step >= start and (step - start) % every == 0:
            seen.append([tensor.clone() for tensor in tensors])
    assert average.num_averaged == len(seen)
    result = averaged(average, tensors)
    for i in (0, 1):
        torch.testing.assert_close(result[i], torch.stack([weights[i] for weights in seen]).mean(0))
    assert result[2] == seen[-1][2], "counters are copied"


def test_swa_is_torchs_averaged_model():
    model = torch.nn.Linear(3, 2)
    theirs = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
    tensors = [parameter.detach() for parameter in model.parameters()]
    ours = WeightAverage("swa", list(model.parameters()))
    for step in walk(tensors, 10):
        theirs.update_parameters(model)
        ours.update(step)
    with ours.averaged():
        for mine, other in zip(model.parameters(), theirs.module.parameters(), strict=True):
            assert torch.equal(mine, other)


def test_ema_is_its_formula():
    tensors = live()
    average, expected = WeightAverage("ema", tensors), None
    for t in walk(tensors, 50):
        average.update(t)
        decay = min(0.999, (1 + t) / (10 + t))
        expected = tensors[0].clone() if t == 0 else decay * expected + (1 - decay) * tensors[0]
    torch.testing.assert_close(averaged(average, tensors)[0], expected, rtol=1e-13, atol=1e-13)


def test_ema_ends_at_its_decay():
    tensors = [torch.zeros(1, dtype=torch.float64)]
    average = WeightAverage("ema", tensors)
    average.update(0)
    average.num_averaged = 100_000
    tensors[0].fill_(1.0)
    average.update(1)
    assert averaged(average, tensors)[0].item() == pytest.approx(0.001, rel=1e-12)


def test_half_precision_is_averaged_in_float32():
    tensors = [torch.zeros(1, dtype=torch.bfloat16)]
    average = WeightAverage("ema", tensors)
    average.update(0)
    average.num_averaged = 100_000
    tensors[0].fill_(1.0)
    for step in range(1, 2001):
        average.update(step)
    with average.averaged():
        assert tensors[0].dtype is torch.bfloat16
        assert tensors[0].item() == pytest.approx(1 - 0.999**2000, rel=1e-2)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_swap_is_exact_also_after_an_error(kind):
    tensors = live()
    average = WeightAverage(kind, tensors)
    for step in walk(tensors, 7):
        average.update(step)
    before, places = [t.clone() for t in tensors], [t.data_ptr() for t in tensors]
    with pytest.raises(KeyError), average.averaged():
        assert not torch.equal(tensors[0], before[0])
        raise KeyError
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))
    assert places == [t.data_ptr() for t in tensors]
    average.adopt()
    assert not torch.equal(tensors[0], before[0])


def test_before_the_first_average_the_live_weights_stand():
    tensors = live()
    average = WeightAverage("ema", tensors, start_step=100)
    for step in walk(tensors, 3):
        average.update(step)
    assert all(torch.equal(a, b) for a, b in zip(averaged(average, tensors), tensors, strict=True))


@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize("cut", [0, 1, 6, 12])
def test_resume_is_exact(kind, cut):
    whole, tensors = live(), live()
    reference, average = WeightAverage(kind, whole, 2, 3), WeightAverage(kind, tensors, 2, 3)
    for step, _ in zip(walk(whole, 20), walk(tensors, 20), strict=True):
        if step == cut:
            state = {key: v.clone() if isinstance(v, torch.Tensor) else v for key, v in average.state_dict().items()}
            average = WeightAverage(kind, tensors, 2, 3)
            average.load_state_dict(state)
        reference.update(step)
        average.update(step)
    for a, b in zip(averaged(reference, whole), averaged(average, tensors), strict=True):
        assert torch.equal(a, b)


def test_what_is_refused():
    with pytest.raises(ValueError, match="'mean'"):
        WeightAverage("mean", live())
    average = WeightAverage("ema", live())
    for tensors in (live()[:2], [*live(), torch.ones(1)], [torch.zeros(4), *live()[1:]]):
        with pytest.raises(ValueError, match="other tensors"):
            average.load_state_dict(WeightAverage("ema", tensors).state_dict())
