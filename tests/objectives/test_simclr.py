"""SimCLR: its loss is that of the paper on the embeddings of both views, which pass the encoder together."""

import pytest
import torch
from torch import Tensor, nn

from ssl_ft.models.heads import Projector
from ssl_ft.objectives.nt_xent import dcl, nt_xent
from ssl_ft.objectives.simclr import ContrastiveLoss, SimCLR, contrast
from tests.pools import batch_of, view_maker
from tests.references.losses import dcl_by_loops, nt_xent_by_loops

SIZE = 6


class Tiny(nn.Module):
    """Pixels to features through one batch norm, so that it matters who is normalised together; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3 * SIZE * SIZE, 9), nn.BatchNorm1d(9)
        self.batch_sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batch_sizes.append(len(images))
        features: Tensor = self.norm(self.linear(images.flatten(1))).relu()
        return features


def objective_with(loss: ContrastiveLoss) -> SimCLR:
    torch.manual_seed(0)
    projector = Projector(9, num_hidden=8, num_out=5)
    return SimCLR(Tiny(), projector, views=view_maker(SIZE), loss=loss, temperature=0.3).double()


@pytest.mark.parametrize(("loss", "reference"), [(nt_xent, nt_xent_by_loops), (dcl, dcl_by_loops)])
def test_the_loss_is_the_papers_on_the_embeddings_of_both_views(loss, reference):
    objective, batch = objective_with(loss), batch_of(8)
    parts = objective(batch)
    both = torch.cat([objective.views(batch, view=0), objective.views(batch, view=1)])
    embeddings = objective.projector(objective.encoder(both))
    expected = reference(embeddings[:8], embeddings[8:], 0.3)
    torch.testing.assert_close(parts.total, expected, rtol=1e-9, atol=1e-9)
    assert parts.parts["contrast"] == parts.total
    assert not parts.parts["contrast"].requires_grad
    assert parts.terms == {}


def test_both_views_go_through_the_encoder_at_once():
    objective = objective_with(nt_xent)
    objective(batch_of(8))
    assert objective.encoder.batch_sizes == [16]


def test_the_loss_depends_on_the_images_numbers_and_epoch_through_the_views_alone():
    objective = objective_with(nt_xent)
    first, again, later = (objective(batch_of(8, epoch=epoch)).total for epoch in (0, 0, 1))
    assert first == again
    assert first != later


def test_every_parameter_is_trained():
    objective = objective_with(nt_xent)
    objective(batch_of(8)).total.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_contrast_pairs_the_first_half_with_the_second():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    expected = nt_xent_by_loops(rows[:3], rows[3:], 0.5)
    torch.testing.assert_close(contrast(rows, loss=nt_xent, temperature=0.5), expected, rtol=1e-9, atol=1e-9)
