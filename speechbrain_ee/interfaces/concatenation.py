"""All layers side by side, made narrower.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import linear

from speechbrain_ee.encoders.base import padding_mask
from speechbrain_ee.interfaces.base import LayerInterface


class ConcatProjection(LayerInterface):
    """All states concatenated, and one linear layer.

    As in arXiv 2406.12209: from L x D to D channels.

    Arguments
    ---------
    input_sizes : sequence of int
        See ``LayerInterface``; they may differ.
    output_size : int, optional
        Channels of the output (default: those of the last state).
    normalize : bool
        See ``LayerInterface``.

    Example
    -------
    >>> interface = ConcatProjection([4, 8, 8])
    >>> interface.projection
    Linear(in_features=20, out_features=8, bias=True)
    """

    def __init__(
        self,
        input_sizes: Sequence[int],
        output_size: int | None = None,
        normalize: bool = False,
    ):
        super().__init__(input_sizes, normalize)
        self.output_size = output_size or self.input_sizes[-1]
        self.projection = torch.nn.Linear(
            sum(self.input_sizes), self.output_size
        )

    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """See ``LayerInterface``."""
        return self.projection(torch.cat(self.filled(states), dim=-1))


class PCAConcat(LayerInterface):
    """The principal components of each state, side by side.

    As in arXiv 2406.12209: a PCA per layer, so that together they have D
    channels; where L does not divide D, the first layers keep one component
    more. They are found by ``fit`` on a random sample of real frames, before
    anything is trained, and stand in the checkpoint. What is missing on the
    first n states is filled with the mean of the sample, so that its components
    are zero.

    Arguments
    ---------
    input_sizes : sequence of int
        See ``LayerInterface``; they may differ.
    output_size : int, optional
        Channels of the output (default: those of the last state).
    samples : int
        Frames kept for the fit. At float32 they take samples x L x D x 4 bytes:
        400 MB for 13 states of 768 channels by default.
    seed : int
        Of the sample.
    normalize : bool
        See ``LayerInterface``.

    Example
    -------
    >>> interface = PCAConcat([8] * 3)
    >>> interface.num_components
    [3, 3, 2]
    >>> states = list(torch.randn(3, 2, 10, 8))
    >>> interface.fit([(states, torch.tensor([10, 6]))])
    >>> interface(states).shape
    torch.Size([2, 10, 8])
    """

    needs_fit = True

    def __init__(
        self,
        input_sizes: Sequence[int],
        output_size: int | None = None,
        samples: int = 10_000,
        seed: int = 1234,
        normalize: bool = False,
    ):
        super().__init__(input_sizes, normalize)
        layers = len(self.input_sizes)
        self.output_size = output_size or self.input_sizes[-1]
        least, longer = divmod(self.output_size, layers)
        self.num_components = [least + (k < longer) for k in range(layers)]
        for layer, (kept, width) in enumerate(
            zip(self.num_components, self.input_sizes)
        ):
            if not 1 <= kept <= width:
                raise ValueError(
                    f"output_size: {self.output_size} over {layers} states "
                    f"leaves {kept} components of state {layer}, which has "
                    f"{width} channels. Set it between {layers} and what the "
                    "narrowest state allows."
                )
            self.register_buffer(f"mean_{layer}", torch.zeros(width))
            self.register_buffer(
                f"components_{layer}", torch.zeros(kept, width)
            )
        self.samples = samples
        self.seed = seed
        self.register_buffer("fitted", torch.tensor(False))

    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """See ``LayerInterface``."""
        if not self.fitted:
            raise RuntimeError(
                "PCAConcat has no components yet: call fit with states of the "
                "training data, or load a checkpoint."
            )
        kept = [
            linear(state - mean, components)
            for state, (mean, components) in zip(
                self.filled(states), self._buffers_by_layer()
            )
        ]
        return torch.cat(kept, dim=-1)

    def absent(self, layer: int, like: torch.Tensor) -> torch.Tensor:
        """See ``LayerInterface``; the mean, whose components are zero."""
        mean = self.get_buffer(f"mean_{layer}").to(like.dtype)
        return mean.expand(*like.shape[:2], -1)

    @torch.no_grad()
    def fit(
        self, batches: Iterable[tuple[Sequence[torch.Tensor], torch.Tensor]]
    ) -> None:
        """Find the components of each state.

        Arguments
        ---------
        batches : iterable of tuple
            States and real frames of each batch, as for ``forward``. All frames
            are as likely to be in the sample.

        Raises
        ------
        ValueError
            If there are fewer frames than components.
        """
        # Takes a second to import, and is needed here only.
        from sklearn.decomposition import PCA

        sample = self._sample(batches)
        most = max(self.num_components)
        if len(sample) < most:
            raise ValueError(
                f"PCAConcat keeps {most} components of a state and has "
                f"{len(sample)} frames to find them: fit it on more speech, "
                f"raise samples ({self.samples}), or lower output_size."
            )
        for frames, (mean, components) in zip(
            sample.split(self.input_sizes, dim=1), self._buffers_by_layer()
        ):
            pca = PCA(len(components), svd_solver="covariance_eigh")
            pca.fit(frames.double().numpy())
            mean.copy_(torch.from_numpy(pca.mean_))
            components.copy_(torch.from_numpy(pca.components_))
        self.fitted.fill_(True)

    def _buffers_by_layer(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (self.get_buffer(f"mean_{k}"), self.get_buffer(f"components_{k}"))
            for k in range(len(self.input_sizes))
        ]

    def _sample(self, batches) -> torch.Tensor:
        """At most ``samples`` real frames, all states side by side."""
        generator = torch.Generator().manual_seed(self.seed)
        sample = torch.empty(self.samples, sum(self.input_sizes))
        # Each frame draws a key below 1; those with the lowest keys stay.
        keys = torch.full((self.samples,), 2.0)
        for states, frames in batches:
            states = self._prepared(states)
            if len(states) < len(self.input_sizes):
                raise ValueError(
                    f"PCAConcat is fitted on all {len(self.input_sizes)} "
                    f"states and got {len(states)}: run every layer."
                )
            real = (~padding_mask(states[0], frames)).flatten().nonzero()[:, 0]
            drawn = torch.rand(len(real), generator=generator)
            lowest = torch.cat([keys, drawn]).topk(self.samples, largest=False)
            stays = lowest.indices[lowest.indices < self.samples]
            comes = lowest.indices[lowest.indices >= self.samples]
            free = torch.ones_like(keys, dtype=torch.bool)
            free[stays] = False
            comes = comes - self.samples
            keys[free] = drawn[comes]
            rows = real[comes.to(real.device)]
            sample[free] = torch.cat(
                [state.flatten(end_dim=1)[rows] for state in states], dim=1
            ).to(sample)
        return sample[keys < 1]
