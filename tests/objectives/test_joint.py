"""Joint objectives: the sum of their parents on the same batch, and the agreement of gradients against autograd."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ssl_ft.models.decoders import MapDecoder, TokenDecoder
from ssl_ft.models.encoders import EncoderSpec, build_encoder, feature_map, num_features
from ssl_ft.models.heads import Projector
from ssl_ft.objectives.joint import Joint, SharedJoint, gradient_agreement
from ssl_ft.objectives.masked import Imputer, Masked, imputation_loss
from ssl_ft.objectives.nt_xent import dcl, nt_xent
from ssl_ft.objectives.simclr import SimCLR
from tests.pools import batch_of, view_maker
from tests.references.losses import dcl_by_loops, nt_xent_by_loops

VIT = EncoderSpec("vit_tiny_patch16_224", 3, 16, patch_size=4, args={"depth": 2, "embed_dim": 32, "num_heads": 2})
CONVNET = EncoderSpec("test_resnet", 3, 32)
WEIGHT = 0.7


def masked_on(spec: EncoderSpec) -> Masked:
    encoder = build_encoder(spec, seed=0)
    torch.manual_seed(1)
    decoder: TokenDecoder | MapDecoder
    if spec is VIT:
        decoder = TokenDecoder(32, width=32, depth=1, num_heads=1, num_patches=16, num_out=48)
    else:
        _, width, side, _ = feature_map(encoder.eval(), torch.zeros(1, 3, 32, 32)).shape
        decoder = MapDecoder(width, width=16, cell=32 // side, channels=3)
    imputer = Imputer(encoder, decoder, patch=4)
    return Masked(imputer, views=view_maker(spec.size), hidden_share=0.6, is_target_normalised=True)


def joint_on(spec: EncoderSpec) -> Joint:
    masked = masked_on(spec)
    masked.views = replace(masked.views, recipe=replace(masked.views.recipe, jitter=0.0, grey=0.0, blur=0.0))
    projector = Projector(num_features(masked.encoder), num_hidden=16, num_out=8)
    simclr = SimCLR(masked.encoder, projector, views=view_maker(spec.size), loss=nt_xent, temperature=0.2)
    return Joint(simclr, masked, weight=WEIGHT).double().train()


def shared_on(spec: EncoderSpec, *, loss=nt_xent) -> SharedJoint:
    masked = masked_on(spec)
    projector = Projector(num_features(masked.encoder), num_hidden=16, num_out=8)
    return SharedJoint(masked, projector, loss=loss, temperature=0.2, weight=WEIGHT).double().train()


def gradients(total: Tensor, module: nn.Module) -> dict[str, Tensor]:
    module.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("spec", [VIT, CONVNET], ids=["vit", "convnet"])
def test_joint_is_the_weighted_sum_of_its_parents_on_the_same_batch(spec):
    objective, batch = joint_on(spec), batch_of(6, side=spec.size)
    parts = objective(batch)
    found = gradients(parts.total, objective)
    alone = {"contrast": objective.simclr(batch).total, "imputation": objective.masked(batch).total}
    torch.testing.assert_close(parts.total, alone["contrast"] + WEIGHT * alone["imputation"], rtol=1e-12, atol=1e-12)
    expected = gradients(alone["contrast"] + WEIGHT * alone["imputation"], objective)
    assert set(found) == set(expected) == {name for name, _ in objective.named_parameters()}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9, msg=name)
    for name, value in alone.items():
        torch.testing.assert_close(parts.parts[name], value.detach(), rtol=1e-12, atol=1e-12)
        assert not parts.parts[name].requires_grad
    torch.testing.assert_close(parts.terms["imputation"], WEIGHT * alone["imputation"], rtol=1e-12, atol=1e-12)


def test_running_statistics_end_on_full_views():
    objective, batch = joint_on(CONVNET), batch_of(6, side=32)
    first = next(m for m in objective.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    first.momentum = 1.0  # remembers the last pass alone
    objective(batch)
    together = first.running_mean.clone()
    objective.simclr(batch)
    torch.testing.assert_close(first.running_mean, together, rtol=1e-12, atol=1e-12)
    objective.masked(batch)
    assert not torch.allclose(first.running_mean, together)


def test_two_encoders_are_our_mistake():
    one, other = joint_on(VIT), joint_on(VIT)
    with pytest.raises(AssertionError, match="one encoder"):
        Joint(one.simclr, other.masked, weight=1.0)


@pytest.mark.parametrize(("loss", "reference"), [(nt_xent, nt_xent_by_loops), (dcl, dcl_by_loops)])
def test_shared_form_encodes_each_view_from_its_visible_patches_and_feeds_both_terms(loss, reference):
    # Without batch norm in a ViT, views encoded one at a time give the same; the projector still sees them together.
    objective, batch = shared_on(VIT, loss=loss), batch_of(6, side=16)
    parts = objective(batch)
    losses, features = [], []
    for view in (0, 1):
        images, mask = objective.masked.views(batch, view=view), objective.masked.mask(batch, view=view)
        prediction, pooled = objective.masked.imputer(images, mask)
        losses.append(imputation_loss(prediction, objective.masked.target(images), mask))
        features.append(pooled)
    embeddings = objective.projector(torch.cat(features))
    expected = {"contrast": reference(embeddings[:6], embeddings[6:], 0.2), "imputation": (losses[0] + losses[1]) / 2}
    for name, value in expected.items():
        torch.testing.assert_close(parts.parts[name], value.detach(), rtol=1e-9, atol=1e-9)
    total = expected["contrast"] + WEIGHT * expected["imputation"]
    torch.testing.assert_close(parts.total, total, rtol=1e-9, atol=1e-9)
    assert not torch.equal(objective.masked.mask(batch, view=0), objective.masked.mask(batch, view=1))


@pytest.mark.parametrize("spec", [VIT, CONVNET], ids=["vit", "convnet"])
def test_shared_form_is_one_masked_pass_over_both_views_that_trains_everything(spec):
    objective, batch = shared_on(spec), batch_of(6, side=spec.size)
    passes = []
    objective.masked.imputer.register_forward_pre_hook(lambda module, inputs: passes.append(inputs))
    found = gradients(objective(batch).total, objective)
    assert set(found) == {name for name, _ in objective.named_parameters()}
    ((images, mask),) = passes
    assert len(images) == len(mask) == 12
    assert mask.sum(1).unique().tolist() == [round(0.6 * mask.shape[1])]


def test_gradient_agreement_equals_autograd_by_hand():
    objective, batch = joint_on(VIT), batch_of(6, side=16)
    parts = objective(batch)
    parameters = list(objective.encoder.parameters())
    row = gradient_agreement(parts.terms, parameters)
    by_hand = {}
    for name, term in (("contrast", objective.simclr(batch).total), ("imputation", objective.masked(batch).total)):
        objective.zero_grad()
        (term if name == "contrast" else WEIGHT * term).backward()
        by_hand[name] = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    assert set(row) == {"gradient_norm_contrast", "gradient_norm_imputation", "gradient_cosine"}
    for name, flat in by_hand.items():
        assert row[f"gradient_norm_{name}"] == pytest.approx(flat.square().sum().sqrt().item(), rel=1e-9)
    dot = (by_hand["contrast"] * by_hand["imputation"]).sum()
    product = row["gradient_norm_contrast"] * row["gradient_norm_imputation"]
    assert row["gradient_cosine"] == pytest.approx(dot.item() / product, rel=1e-9)
    # Measuring leaves the graph as it was: the step that follows has the gradient of the whole.
    objective.zero_grad()
    parts.total.backward()
    whole = torch.cat([p.grad.flatten() for p in parameters])
    torch.testing.assert_close(whole, sum(by_hand.values()), rtol=1e-9, atol=1e-12)


def test_gradient_agreement_of_known_vectors_and_of_parameters_out_of_reach():
    a, b = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    terms = {"first": 3 * a[0] + 4 * b[0], "second": 5 * a[0], "third": 2 * a[1]}
    assert gradient_agreement(terms, [a, b]) == pytest.approx(
        {"gradient_norm_first": 5, "gradient_norm_second": 5, "gradient_norm_third": 2, "gradient_cosine": 0.6}
    )
    opposed = {"first": a[0], "second": -2 * a[0]}
    assert gradient_agreement(opposed, [a, b])["gradient_cosine"] == pytest.approx(-1)
