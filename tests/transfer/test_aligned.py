"""What is added to the source's loss: features of the very views, the target's after them, statistics kept."""

import timm
import torch
from torch import Tensor

from ssl_ft.transfer.aligned import AlignPenalty, kept_statistics


def test_it_sees_what_the_head_sees_and_leaves_no_trace():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).train()
    source, target = torch.randn(4, 3, 32, 32), torch.randn(5, 3, 32, 32) + 2
    seen: list[tuple[Tensor, Tensor, int]] = []

    def align(one: Tensor, other: Tensor, step: int) -> dict[str, Tensor]:
        seen.append((one, other, step))
        return {"gap": (one.mean(0) - other.mean(0)).square().sum()}

    critic = torch.nn.Linear(2, 2)
    penalty = AlignPenalty(model, next_views=lambda: target, align=align, critic=critic)
    assert list(penalty.parameters()) == list(critic.parameters())  # the model is not its own
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    for step in range(2):
        model(source)
        with torch.no_grad():
            model.eval()(torch.randn(7, 3, 32, 32))  # somebody looks at val in between
            model.train()
        logits = model(source)
        before = norm.running_mean.clone()
        terms = penalty(source)
        assert torch.equal(norm.running_mean, before), "the target's batch is not remembered"
        one, other, number = seen[-1]
        assert torch.equal(model.get_classifier()(one), logits)
        assert (len(one), len(other), number) == (4, 5, step)
        terms["gap"].backward()
        assert next(model.parameters()).grad is not None
    penalty.release()
    assert not model.get_classifier()._forward_pre_hooks


def test_statistics_are_kept_only_inside():
    norm = torch.nn.BatchNorm2d(2, momentum=0.3)
    with kept_statistics(norm):
        norm(torch.randn(3, 2, 4, 4) + 5)
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert norm.momentum == 0.3
    norm(torch.randn(3, 2, 4, 4) + 5)
    assert norm.running_mean.min() > 1
