"""Small modules that sit on an encoder: the projector of contrastive learning. Classifier heads are plain Linears."""

from torch import Tensor, nn


class Projector(nn.Module):
    """Two-layer MLP with batch norm, used for the contrastive loss and then thrown away (Chen et al. 2020, 4.2).

    [B, D] -> [B, num_out]. Batch norm after both layers as in the official code; biases would be cancelled by it.
    """

    def __init__(self, num_in: int, *, num_hidden: int, num_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_in, num_hidden, bias=False),
            nn.BatchNorm1d(num_hidden),
            nn.ReLU(),
            nn.Linear(num_hidden, num_out, bias=False),
            nn.BatchNorm1d(num_out, affine=False),
        )

    def forward(self, features_BD: Tensor) -> Tensor:
        """Embeddings [B, num_out] of features [B, D]."""
        embeddings: Tensor = self.layers(features_BD)
        return embeddings
