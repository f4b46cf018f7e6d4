"""A student's whole loss, its teacher, heads on earlier layers: values, gradients, nothing left behind."""

import copy
from functools import partial

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_ft.artifact import InputContract
from ssl_ft.compress.depth_heads import DepthHeads, earlier_widths
from ssl_ft.compress.distill_losses import soft_target_loss, squared_loss
from ssl_ft.compress.distilled import Distilled
from ssl_ft.compress.feature_distilled import FeatureDistilled
from ssl_ft.compress.teacher import Teacher
from ssl_ft.errors import UserError
from ssl_ft.objectives.mixing import Mixing
from tests.pools import batch_of, view_maker
from tests.references.distillation import labels_by_loops, soft_targets_by_loops, squared_by_loops
from tests.transfer.classifiers import CLASSES, SIDE, classifier_of

LABELS = torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, 60))
TAU = 3.0
CPU = torch.device("cpu")


def linear(seed: int, *, outputs: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, outputs)).double()


def student_of(teacher, *, share: float, model: nn.Module | None = None, **more) -> Distilled:
    return Distilled(
        model or linear(0), LABELS, views=view_maker(6), class_weights_K=torch.ones(CLASSES), share=share,
        teach=partial(soft_target_loss, temperature=TAU), teacher=teacher, **more,
    )  # fmt: skip


def gradient_of(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])


class TestWholeLoss:
    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_is_a_mean_of_labels_and_teacher_with_its_gradient(self, share):
        teacher, batch = linear(1), batch_of(7)
        objective = student_of(teacher, share=share)
        found = objective(batch)
        views = objective.views(batch, view=0)
        logits, told = objective.encoder(views), teacher(views).detach()
        wanted = share * labels_by_loops(logits, LABELS[batch.indices_B])
        wanted = wanted + (1 - share) * soft_targets_by_loops(logits, told, TAU)
        torch.testing.assert_close(found.total, wanted, rtol=1e-9, atol=1e-12)
        own, exact = (gradient_of(loss, objective.encoder) for loss in (found.total, wanted))
        torch.testing.assert_close(own, exact, rtol=1e-9, atol=1e-12)
        assert set(found.parts) == {"cross_entropy", "distillation"}

    def test_with_labels_alone_is_plain_cross_entropy(self):
        batch = batch_of(7)
        taught, alone = student_of(linear(1), share=1.0), student_of(None, share=0.2)
        plain = nn.functional.cross_entropy(taught.encoder(taught.views(batch, view=0)), LABELS[batch.indices_B])
        torch.testing.assert_close(taught(batch).total, plain, rtol=1e-12, atol=0)
        torch.testing.assert_close(alone(batch).total, plain, rtol=1e-12, atol=0)

    def test_of_a_student_that_is_its_teacher_without_labels_is_zero(self):
        assert student_of(linear(0), share=0.0)(batch_of(7)).total.item() == pytest.approx(0, abs=1e-12)

    def test_of_unlabelled_images_the_teacher_alone_speaks(self):
        teacher, batch, others = linear(1), batch_of(5), batch_of(3, seed=9)
        views = view_maker(6)
        objective = student_of(teacher, share=0.4, more=lambda: views(others, view=0))
        both = torch.cat([views(batch, view=0), views(others, view=0)])
        logits = objective.encoder(both)
        wanted = 0.4 * labels_by_loops(logits[:5], LABELS[batch.indices_B])
        wanted = wanted + 0.6 * soft_targets_by_loops(logits, teacher(both).detach(), TAU)
        torch.testing.assert_close(objective(batch).total, wanted, rtol=1e-9, atol=1e-12)

    def test_teacher_and_student_see_the_same_mixture(self):
        seen: list[Tensor] = []
        objective = student_of(lambda views: seen.append(views) or linear(1)(views).detach(), share=0.5,
                               mixing=Mixing(1.0, 0.0, 3))  # fmt: skip
        objective.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        batch = batch_of(6)
        objective(batch)
        assert torch.equal(seen[0], seen[1])
        assert not torch.equal(seen[0], objective.views(batch, view=0))

    def test_the_teacher_is_no_part_of_what_is_trained_or_saved(self):
        contract = InputContract(6, 3, (0.5,) * 3, (0.2,) * 3)
        objective = student_of(Teacher(linear(1), contract, student=contract, device=CPU), share=0.1)
        assert len(list(objective.parameters())) == 2
        assert {name.partition(".")[0] for name in objective.state_dict()} == {"encoder"}


class TestTeacher:
    def test_is_left_as_it_was_while_the_student_trains(self):
        model = classifier_of("resnet")
        before = copy.deepcopy(model.state_dict())
        contract = InputContract(SIDE, 3, (0.5,) * 3, (0.2,) * 3)
        teacher = Teacher(model, contract, student=contract, device=CPU)
        student = classifier_of("resnet", seed=1)
        views = view_maker(SIDE, dtype=torch.float32)
        objective = Distilled(
            student, LABELS, views=views, class_weights_K=torch.ones(CLASSES), share=0.1,
            teach=partial(soft_target_loss, temperature=TAU), teacher=teacher,
        ).train()  # fmt: skip
        images = views(batch_of(4), view=0)
        told = teacher(images)
        objective(batch_of(4)).total.backward()
        assert not told.requires_grad
        assert not teacher.model.training
        torch.testing.assert_close(teacher(images), model(images), rtol=0, atol=0)
        assert all(torch.equal(value, teacher.model.state_dict()[name]) for name, value in before.items())
        assert all(p.grad is None for p in teacher.model.parameters())

    def test_sees_the_same_pixels_in_its_own_size_and_scale(self):
        own = InputContract(8, 3, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        student = InputContract(4, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
        pixels = torch.full((1, 3, 4, 4), 102, dtype=torch.uint8)
        seen = Teacher(nn.Identity(), own, student=student, device=CPU)(student.normalise(pixels))
        assert seen.shape == (1, 3, 8, 8)
        wanted = own.normalise(torch.full((1, 3, 8, 8), 102, dtype=torch.uint8))
        torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=1e-6)


class TestDepthHeads:
    @pytest.mark.parametrize(("family", "count"), [("resnet", 3), ("convnext", 3), ("vit", 1)])
    def test_stand_on_the_earlier_layers_and_leave_no_trace(self, family, count):
        model = classifier_of(family)
        images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        before, state = model(images), copy.deepcopy(model.state_dict())
        heads = DepthHeads(model, widths=earlier_widths(model, images), num_classes=CLASSES, seed=0)
        torch.testing.assert_close(model(images), before, rtol=0, atol=0)
        outputs = heads.outputs()
        assert [tuple(each.shape) for each in outputs] == [(2, CLASSES)] * count
        sum(each.square().sum() for each in outputs).backward()
        assert all(p.grad is not None for p in heads.parameters())
        # The last layer's own weights learn nothing from heads below it.
        assert all(p.grad is None for p in model.get_classifier().parameters())
        assert next(model.parameters()).grad is not None
        heads.release()
        assert not any(module._forward_hooks for module in model.modules())
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())

    def test_learn_from_labels_and_from_the_last_layer_which_learns_nothing_from_them(self):
        # Float64 by its weights; views of the maker are float64 already.
        model, batch = classifier_of("vit").double(), batch_of(4)
        blank = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
        heads = DepthHeads(model, widths=earlier_widths(model, blank), num_classes=CLASSES, seed=0).double()
        objective = Distilled(
            model, LABELS, views=view_maker(SIDE), class_weights_K=torch.ones(CLASSES), share=0.3,
            teach=partial(soft_target_loss, temperature=TAU), teacher=None, depth=heads, depth_weight=0.7,
        )  # fmt: skip
        found, labels = objective(batch), LABELS[batch.indices_B]
        logits, (early,) = model(objective.views(batch, view=0)), heads.outputs()
        wanted = 0.3 * labels_by_loops(early, labels) + 0.7 * soft_targets_by_loops(early, logits.detach(), TAU)
        wanted = labels_by_loops(logits, labels) + 0.7 * wanted
        torch.testing.assert_close(found.total, wanted, rtol=1e-9, atol=1e-12)
        last = model.get_classifier().weight
        (own,), (exact,) = (torch.autograd.grad(loss, last) for loss in (found.total, labels_by_loops(logits, labels)))
        torch.testing.assert_close(own, exact, rtol=1e-9, atol=1e-12)

    def test_are_refused_where_layers_are_not_known(self):
        model = timm.create_model("test_efficientnet", num_classes=CLASSES)
        with pytest.raises(UserError, match=r"defined for ResNet, ConvNeXt and ViT .*EfficientNet.*teacher=model"):
            earlier_widths(model, torch.zeros(1, 3, SIDE, SIDE))


class TestFeatures:
    def objective(self, mean: Tensor, teacher=None) -> FeatureDistilled:
        return FeatureDistilled(
            linear(0, outputs=4), views=view_maker(6), teacher=teacher or linear(1, outputs=7), mean_E=mean, width=4,
            loss=squared_loss, seed=0,
        )  # fmt: skip

    def test_are_mapped_and_held_to_the_teachers_about_its_mean(self):
        mean = torch.linspace(-1, 1, 7, dtype=torch.float64)
        objective, batch = self.objective(mean), batch_of(6)
        views = objective.views(batch, view=0)
        mapped = objective.encoder(views) @ objective.map.weight.T + objective.map.bias
        wanted = squared_by_loops(mapped, objective.teacher(views).detach() - mean)
        found = objective(batch).total
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        own, exact = (gradient_of(loss, objective.map) for loss in (found, wanted))
        torch.testing.assert_close(own, exact, rtol=1e-9, atol=1e-12)

    def test_that_the_map_gives_already_lose_nothing(self):
        objective, batch = self.objective(torch.zeros(7, dtype=torch.float64)), batch_of(40)
        weight = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        student = objective.encoder
        objective = self.objective(torch.zeros(7, dtype=torch.float64), lambda x: student(x).detach() @ weight.T + 0.5)
        with torch.no_grad():
            objective.map.weight.copy_(weight)
            objective.map.bias.fill_(0.5)
        assert objective(batch).total.item() == pytest.approx(0, abs=1e-20)
