"""A head that tells which cluster each frame belongs to.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import torch


class ClusterHead(torch.nn.Module):
    """The prediction head of HuBERT (arXiv 2106.07447, Eq. 3).

    The logit of a cluster is the cosine between the projected state and the
    cluster's embedding, divided by a temperature. Keys of the ``state_dict``
    are those of fairseq's HuBERT.

    Arguments
    ---------
    input_size : int
        Channels of the states.
    num_clusters : int
        How many clusters there are.
    proj_size : int
        Size of the embeddings; 256 in HuBERT Base, 768 in Large.
    temperature : float
        What cosines are divided by.

    Example
    -------
    >>> head = ClusterHead(input_size=8, num_clusters=100)
    >>> head(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 100])
    >>> list(head.state_dict())
    ['label_embs_concat', 'final_proj.weight', 'final_proj.bias']
    """

    def __init__(
        self,
        input_size: int,
        num_clusters: int,
        proj_size: int = 256,
        temperature: float = 0.1,
    ):
        super().__init__()
        self.temperature = temperature
        self.final_proj = torch.nn.Linear(input_size, proj_size)
        self.label_embs_concat = torch.nn.Parameter(
            torch.rand(num_clusters, proj_size)  # as fairseq starts them
        )

    @property
    def num_clusters(self) -> int:
        """How many clusters there are."""
        return len(self.label_embs_concat)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of every frame.

        Arguments
        ---------
        hidden : torch.Tensor
            States of shape (…, input_size).

        Returns
        -------
        torch.Tensor
            Logits of shape (…, num_clusters), not yet a distribution.
        """
        normalize = torch.nn.functional.normalize
        projected = normalize(self.final_proj(hidden), dim=-1)
        embeddings = normalize(self.label_embs_concat, dim=-1)
        return projected @ embeddings.T / self.temperature
