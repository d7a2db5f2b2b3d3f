"""Many sites at once come to what each of them comes to alone: layer by layer, optimizer by optimizer, and by name
where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import foedus as fd
from foedus import build
from foedus.core import Fit
from foedus.errors import Alone, Refused
from foedus.params import Params
from foedus.torch import TorchLearner, together
from torch_models import Rich

SIZES = (7, 1, 23, 8, 12)  # examples a site: steps of 8 that are full, padded, several and one


class Plain(nn.Module):
    """A model whose forward pass is `f(self, x)`."""

    def __init__(self, f: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


def tied() -> nn.Module:
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b, nn.Linear(6, 3))


def frozen() -> nn.Module:
    made = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    made[0].weight.requires_grad_(False)
    return made


def unused() -> nn.Module:
    return Plain(lambda m, x: m.used(x), used=nn.Linear(6, 3), idle=nn.Linear(2, 2))


def branching() -> nn.Module:
    """What cannot be traced: the way depends on a value."""
    return Plain(
        lambda m, x: m.a(x) if float(x.shape[-1]) * bool(x.ndim > 1) else m.b(x), a=nn.Linear(6, 3), b=nn.Linear(6, 3)
    )


def reshaping() -> nn.Module:
    return Plain(lambda m, x: m.a(x.view(-1, 2, 3)).reshape(x.size(0), -1)[:, :3], a=nn.Linear(3, 2))


def flattening() -> nn.Module:
    return Plain(
        lambda m, x: m.a(torch.flatten(x, 1)) * 2 + m.b(x.flatten(1)), a=nn.Linear(128, 3), b=nn.Linear(128, 3)
    )


def skipping() -> nn.Module:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    return Plain(lambda m, x: m.b(torch.cat([x, m.a(x).relu() + x], 1).mean((2, 3))), a=conv, b=nn.Linear(4, 3))


def images_to(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


def sized(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    model(torch.zeros(2, *shape))
    return model


ROW, IMAGE, WORDS, SERIES = (6,), (2, 8, 8), (5,), (4, 6)
LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "linear": (ROW, lambda: nn.Linear(6, 3)),
    "linear without bias": (ROW, lambda: nn.Linear(6, 3, bias=False)),
    "linear over a sequence": (SERIES, lambda: nn.Sequential(nn.Linear(6, 4), nn.Flatten(), nn.Linear(16, 3))),
    **{
        type(m).__name__: (ROW, lambda m=m: nn.Sequential(nn.Linear(6, 8), m, nn.Linear(8, 3)))
        for m in (nn.ReLU(), nn.GELU(), nn.SiLU(), nn.ELU(), nn.LeakyReLU(), nn.Sigmoid(), nn.Softplus(), nn.PReLU())
    },
    "layer norm": (ROW, lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))),
    "layer norm of a sequence": (SERIES, lambda: nn.Sequential(nn.LayerNorm(6), nn.Flatten(), nn.Linear(24, 3))),
    "layer norm of two axes": (SERIES, lambda: nn.Sequential(nn.LayerNorm((4, 6)), nn.Flatten(), nn.Linear(24, 3))),
    "embedding": (WORDS, lambda: nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 3))),
    "embedding with padding": (WORDS, lambda: nn.Sequential(nn.Embedding(11, 4, 0), nn.Flatten(), nn.Linear(20, 3))),
    "conv": (IMAGE, images_to(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2))),
    "conv with stride and padding": (IMAGE, images_to(nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.ReLU())),
    "conv in groups": (IMAGE, images_to(nn.Conv2d(2, 4, 3, padding="same", groups=2, dilation=2), nn.AvgPool2d(2))),
    "conv that wraps": (IMAGE, images_to(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"))),
    "conv of a series": (SERIES, images_to(nn.Conv1d(4, 3, 2), nn.AdaptiveAvgPool1d(2))),
    "conv transposed": (IMAGE, images_to(nn.ConvTranspose2d(2, 3, 2, 2))),
    "group norm": (IMAGE, images_to(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU())),
    "instance norm": (IMAGE, images_to(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU())),
    "instance norm without scale": (IMAGE, images_to(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4))),
    "pools": (IMAGE, images_to(nn.AdaptiveMaxPool2d(4), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(2))),
    "softmax": (ROW, lambda: nn.Sequential(nn.Linear(6, 8), nn.Softmax(1), nn.Linear(8, 3))),
    "tied": (ROW, tied),
    "frozen": (ROW, frozen),
    "unused": (ROW, unused),
    "traced in part": (ROW, branching),
    "reshaped": (ROW, reshaping),
    "flattened": (IMAGE, flattening),
    "own parameters": (
        ROW,
        lambda: Plain(
            lambda m, x: F.relu(m.a(x) * m.scale + m.shift) @ m.w, a=nn.Linear(6, 4), scale=nn.Parameter(torch.rand(4)),
            shift=nn.Parameter(torch.rand(())), w=nn.Parameter(torch.rand(4, 3)),
        ),
    ),
    "skipped and joined": (IMAGE, skipping),
}  # fmt: skip


def split(shape: tuple[int, ...], n: int, seed: int, loss: str = "classes") -> fd.Split:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 11, (n, *shape)) if shape == WORDS else rng.normal(size=(n, *shape)).astype(np.float32)
    y = {"classes": rng.integers(0, 3, n), "numbers": rng.normal(size=(n, 3)).astype(np.float32)}[loss]
    return fd.Split((x, y))


def calls(
    learner: TorchLearner,
    shape: tuple[int, ...],
    loss: str = "classes",
    apart: float = 0.0,
    correct: Any = None,
    round: int = 0,
) -> list[Any]:
    """The arguments of `train` at five sites; `apart`: how far from one another their models are."""
    first, found = learner.init(fd.key(1)), []
    for i, n in enumerate(SIZES):
        params = first if not apart else first.map(lambda x, i=i: (x * (1 + apart * i)).astype(x.dtype))
        key = fd.key(3, round, 0, f"s{i}", "train")
        found.append((params, split(shape, n, i, loss), key, correct(first, i) if correct else None))
    return found


def one_by_one(learner: TorchLearner, asked: list[Any]) -> list[Fit]:
    with build.exactly():
        return [learner.train(*call) for call in asked]


def near(together: list[Fit | Refused], alone: list[Fit]) -> None:
    for many, one in zip(together, alone, strict=True):
        assert isinstance(many, Fit)
        assert (many.examples, many.steps) == (one.examples, one.steps)
        assert many.path == pytest.approx(one.path)
        assert many.params.spec == one.params.spec
        for name, x in one.params.items():
            assert np.abs(many.params[name] - x).max(initial=0) <= 1e-5, name
        assert many.metrics["train_loss"] == pytest.approx(one.metrics["train_loss"], rel=1e-4)


def learner(model: Callable[[], nn.Module], **more: Any) -> TorchLearner:
    settings = {"loss": F.cross_entropy, "optimizer": partial(torch.optim.SGD, lr=0.1), "batch_size": 8, **more}
    return TorchLearner(model, **settings)


def small(**more: Any) -> TorchLearner:
    return learner(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), **more)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_trains_as_it_does_alone(layer: str) -> None:
    shape, make = LAYERS[layer]
    made = learner(lambda: sized(make(), shape) if shape == IMAGE or layer == "conv of a series" else make())
    asked = calls(made, shape)
    near(made.together(asked), one_by_one(made, asked))


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        partial(torch.optim.Adam, lr=0.01),
        lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
        partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
        partial(torch.optim.Adagrad, lr=0.1),
        lambda ps: torch.optim.SGD([{"params": ps[:2], "lr": 0.2}, {"params": ps[2:]}], lr=0.05, momentum=0.9),
    ],
)
def test_each_optimizer_keeps_its_state_site_by_site(optimizer: Any) -> None:
    made = small(optimizer=optimizer, epochs=3, batch_size=4)
    asked = calls(made, ROW)
    near(made.together(asked), one_by_one(made, asked))


@pytest.mark.parametrize(
    "more",
    [
        {"epochs": 3},
        {"steps": 7},
        {"steps": 2},
        {"epochs": 2, "drop_last": True},
        {"clip": 0.05},
        {"schedule": lambda round: 1 / (1 + round)},
        {"batch_size": 1},
        {"batch_size": 100},
        {"loss": partial(F.cross_entropy, label_smoothing=0.1)},
        {"dtype": "float64"},
    ],
    ids=lambda more: ",".join(f"{k}={v}" for k, v in more.items() if not callable(v)) or next(iter(more)),
)
def test_batches_steps_and_rates_are_those_of_one_site(more: dict[str, Any]) -> None:
    made = small(**more)
    asked = calls(made, ROW, round=2)
    near(made.together(asked), one_by_one(made, asked))


@pytest.mark.parametrize(
    "loss", [F.mse_loss, nn.L1Loss(), F.binary_cross_entropy_with_logits], ids=["mse", "l1", "bce"]
)
def test_losses_of_many_outputs_are_averaged_as_alone(loss: Any) -> None:
    made = small(loss=loss)
    asked = [(p, fd.Split((s.train.x, np.abs(s.train.y) % 1)), k, c) for p, s, k, c in calls(made, ROW, "numbers")]
    near(made.together(asked), one_by_one(made, asked))


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """As people write it: a mean, and no `reduction`."""
    return F.cross_entropy(outputs, targets) + 0.1 * (outputs.logsumexp(1) ** 2).mean()


class Focal(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        right = outputs.softmax(1).gather(1, targets[:, None])[:, 0]
        return -((1 - right) ** 2 * right.log()).mean()


def overlap(outputs: Tensor, targets: Tensor) -> Tensor:
    """No mean of the examples': it looks at the whole batch."""
    right = outputs.softmax(1).gather(1, targets[:, None])
    return 1 - 2 * right.sum() / (outputs.softmax(1).sum() + right.sum())


@pytest.mark.parametrize("loss", [own_loss, Focal()], ids=["a function", "a module"])
def test_a_loss_of_ones_own_that_is_a_mean_trains_together(loss: Any) -> None:
    made = small(loss=loss, epochs=2)
    asked = calls(made, ROW)
    near(made.together(asked), one_by_one(made, asked))


def test_a_loss_of_the_whole_batch_trains_alone_and_says_why() -> None:
    made = small(loss=overlap)
    with pytest.raises(Alone, match="treat the examples one by one"):
        made.together(calls(made, ROW))


def test_each_site_has_its_own_model_and_correction() -> None:
    def correct(first: Params, i: int) -> Any:
        start = first.trainable()
        return None if i == 1 else lambda grads, params: grads + 0.1 * (i + 1) * (params - start)

    made = small(epochs=2)
    asked = calls(made, ROW, apart=0.1, correct=correct)
    near(made.together(asked), one_by_one(made, asked))


def test_groups_that_memory_makes_smaller_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = small(epochs=2)
    asked = calls(made, ROW)
    whole = made.together(asked)
    monkeypatch.setattr(together, "MOST_BYTES", 2 * asked[0][0].nbytes)
    near(made.together(asked), [fit for fit in whole if isinstance(fit, Fit)])


def test_a_site_whose_loss_is_no_number_is_refused_alone() -> None:
    made = small()
    asked = calls(made, ROW)
    asked[2][1].train.x[5] = np.nan
    found = made.together(asked)
    assert [type(fit) for fit in found] == [Fit, Fit, Refused, Fit, Fit]
    assert "site 's2', training: the loss of step" in str(found[2])


def attending() -> nn.Module:
    attention = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(m: Any, x: Tensor) -> Tensor:
        series = x.view(-1, 3, 2)
        return m.last(m.a(series, series, series, need_weights=False)[0].flatten(1))

    return Plain(forward, a=attention, last=nn.Linear(6, 3))


class Odd(torch.optim.Optimizer):
    """Steps by the norm of a whole array."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None: ...


def after(module: nn.Module) -> TorchLearner:
    return learner(lambda: nn.Sequential(nn.Linear(6, 3), module))


REASONS: dict[str, tuple[Callable[[], TorchLearner], str]] = {
    "batch norm": (lambda: after(nn.BatchNorm1d(3)), r"BatchNorm1d '1' computes with all"),
    "dropout": (lambda: after(nn.Dropout(0.5)), r"Dropout '1' .* or draws numbers"),
    "own dropout": (lambda: after(Plain(lambda m, x: F.dropout(x))), "cannot be mapped over sites"),
    "what it keeps": (lambda: learner(Keeping), "keeps something from one step"),
    "own batch statistics": (lambda: after(Plain(lambda m, x: x - x.mean(0))), "treat the examples one by one"),
    "a counter": (lambda: learner(Counting), "its model changes its buffers"),
    "weighted classes": (lambda: small(loss=nn.CrossEntropyLoss(torch.rand(3))), "treat the examples one by one"),
    "an optimizer": (lambda: small(optimizer=Odd), "the optimizer Odd is not known to treat every number alike"),
    "lbfgs": (lambda: small(optimizer=torch.optim.LBFGS), "the optimizer LBFGS is not known"),
    "an own loop": (lambda: TorchLearner(lambda: nn.Linear(6, 3), train=lambda *_: {}), "its own training loop"),
    "attention": (lambda: learner(attending), "batching rule for aten::_scaled_dot_product"),
    "mixed precision": (lambda: small(mixed=True), "computes in two precisions"),
    "half precision": (lambda: small(dtype="bfloat16"), "the model is torch.bfloat16"),
}  # fmt: skip


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        out: Tensor = self.a(x)
        return out


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.steps = self.steps + 1
        out: Tensor = self.a(x)
        return out


@pytest.mark.parametrize("what", REASONS)
def test_what_cannot_train_together_says_why(what: str) -> None:
    make, why = REASONS[what]
    made = make()
    with pytest.raises(Alone, match=why):
        made.together(calls(made, ROW))


UNLIKE: dict[str, Any] = {
    "weights": nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 10.0])),
    "a class left out": nn.CrossEntropyLoss(ignore_index=2),
    "by keyword": partial(F.cross_entropy, ignore_index=1),
    "a sum": nn.CrossEntropyLoss(reduction="sum"),
    "log likelihood": nn.NLLLoss(torch.tensor([1.0, 5.0, 10.0])),
}


@pytest.mark.parametrize("loss", UNLIKE.values(), ids=UNLIKE)
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_loss_that_weighs_classes_unlike_is_seen_though_the_first_site_has_one_class(loss: Any, rows: int) -> None:
    made = small(loss=loss)
    (params, held, key, correct), *rest = calls(made, ROW)
    first = fd.Split((held.train.x[:rows], np.zeros(rows, np.int64)))
    with pytest.raises(Alone, match=r"its loss of a batch is not the mean|treat the examples one by one"):
        made.together([(params, first, key, correct), *rest])


def test_targets_that_the_loss_leaves_out_train_alone() -> None:
    made = small(loss=nn.CrossEntropyLoss())
    (params, held, key, correct), *rest = calls(made, ROW)
    y = np.array(held.train.y)
    y[-1] = -100
    with pytest.raises(Alone, match="leaves out examples whose class is below 0"):
        made.together([*rest, (params, fd.Split((held.train.x, y)), key, correct)])


@pytest.mark.parametrize("rows", [1, 2])
def test_a_model_that_looks_at_the_batch_is_seen_though_the_first_site_has_few_rows(rows: int) -> None:
    made = after(Plain(lambda m, x: x - x.mean(0)))
    (params, held, key, correct), *rest = calls(made, ROW)
    with pytest.raises(Alone, match="treat the examples one by one"):
        made.together([(params, fd.Split(held.train[list(range(rows))]), key, correct), *rest])


def test_a_dataset_of_single_examples_trains_alone() -> None:
    made = small()
    (params, held, key, correct), *rest = calls(made, ROW)
    odd = fd.Split([(x, y) for x, y in zip(held.train.x, held.train.y, strict=True)])
    with pytest.raises(Alone, match="its examples are list"):
        made.together([(params, odd, key, correct), *rest])


def test_a_model_with_all_that_a_state_dict_may_hold_trains_alone() -> None:
    made = learner(Rich)
    with pytest.raises(Alone, match="BatchNorm2d 'norm'"):
        made.together(calls(made, (1, 6, 6)))
