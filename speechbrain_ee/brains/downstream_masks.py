"""Brains that clean or take apart speech behind a frozen upstream.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.logger import get_logger

from speechbrain_ee.analysis import quality
from speechbrain_ee.analysis.statistics import Bootstrap, Interval
from speechbrain_ee.brains.downstream_utterance import UtteranceBrain
from speechbrain_ee.downstreams.masks import MaskLoss
from speechbrain_ee.encoders.base import sample_counts

logger = get_logger(__name__)


class DownstreamMasks(UtteranceBrain):
    """What the Brains of this module have in common: masks on a spectrum.

    Batches have ``id``, ``sig``, ``mixture`` (the same waveform, which is there
    with a feature cache too) and ``sources`` of shape (batch, samples,
    sources). The module ``downstream`` is a ``MaskEstimator``.

    As errors of an utterance its loss counts, and each utterance as one.

    Arguments
    ---------
    objective : MaskLoss
        What is trained for.
    **kwargs
        Those of ``DownstreamBrain``.
    """

    figure_names: Mapping[str, str]  # in results, by column of the traces

    def __init__(self, objective: MaskLoss, **kwargs):
        super().__init__(metric="loss", **kwargs)
        self.objective = objective
        self.downstream = self.unwrapped["downstream"]

    @abstractmethod
    def measure(
        self,
        sources: torch.Tensor,
        estimates: torch.Tensor,
        mixture: torch.Tensor,
    ) -> dict[str, float]:
        """How good what is heard of an utterance is.

        Arguments
        ---------
        sources : torch.Tensor
            What should be heard, of shape (samples, sources), on the CPU.
        estimates : torch.Tensor
            What is, of the same shape.
        mixture : torch.Tensor
            What the model heard, of shape (samples,).

        Returns
        -------
        dict
            Value of each of ``figure_names``.
        """

    def downstream_inputs(self, batch):
        """The number of samples, which decides how many spectra there are."""
        return {"samples": sample_counts(*batch.mixture)}

    def loss(self, predictions, batch):
        """Mean of the objective over utterances.

        Arguments
        ---------
        predictions : torch.Tensor
            Masks.
        batch : PaddedBatch
            With ``mixture`` and ``sources``.

        Returns
        -------
        torch.Tensor
            A scalar.
        """
        return self._losses(predictions, batch).mean()

    def _losses(self, masks, batch):
        """Of each utterance."""
        waves, lengths = batch.mixture
        sources = batch.sources.data.transpose(1, 2)
        spectra = self.downstream.spectra(sources.flatten(0, 1))
        spectra = spectra.unflatten(0, sources.shape[:2]).movedim(1, -1)
        frames = self.downstream.frames_of(sample_counts(waves, lengths))
        mixture = self.downstream.spectra(waves)
        return self.objective(masks, mixture, spectra, frames)

    def judge(self, predictions, batch):
        """The loss of each utterance, and how good what is heard is.

        Arguments
        ---------
        predictions : torch.Tensor
            Masks.
        batch : PaddedBatch
            With ``id``, ``mixture`` and ``sources``.

        Returns
        -------
        list of dict
            ``id``; ``errors``, which is the loss; ``ref_len``, 1; and those of
            ``measure``.
        """
        waves, lengths = batch.mixture
        samples = sample_counts(waves, lengths).tolist()
        spectra = self.downstream.spectra(waves)
        losses = self._losses(predictions, batch).tolist()
        rows = []
        for row, (name, count) in enumerate(zip(batch.id, samples)):
            frames = count // self.downstream.hop_length + 1
            estimates = self.downstream.waveforms(
                predictions[row, :frames], spectra[row, :frames], count
            )
            heard = (batch.sources.data[row, :count], estimates)
            figures = self.measure(
                *(x.float().cpu() for x in (*heard, waves[row, :count]))
            )
            given = {"id": name, "errors": losses[row], "ref_len": 1}
            rows.append(given | figures)
        return rows

    def summary(self, rows):
        """Means over those utterances that have a value."""
        means = {
            column: float(_mean([row[column] for row in rows]).value)
            for column in self.figure_names
        }
        return {**means, **self.depth(rows)}

    def error_rate(self, dataset, loader_kwargs=None):
        """The loss of a set, as the model is now.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With what batches need.
        loader_kwargs : mapping, optional
            For the data loader.

        Returns
        -------
        float
            Mean over utterances.
        """
        rows = self.judge_set(dataset, loader_kwargs)
        return float(np.mean([row["errors"] for row in rows]))

    def results(self, traces):
        """Means over those utterances that have a value.

        Arguments
        ---------
        traces : pandas.DataFrame
            From ``evaluate_set``.

        Returns
        -------
        pandas.DataFrame
            As of ``DownstreamBrain``.
        """
        rows = []
        for column, metric in self.figure_names.items():
            rows.append(
                {
                    "metric": metric,
                    "group": "all",
                    **_mean(traces[column])._asdict(),
                    "utterances": int(traces[column].notna().sum()),
                }
            )
        return pd.DataFrame(rows)


class DownstreamEnhancer(DownstreamMasks):
    """Speech in noise is cleaned: PESQ, STOI, SI-SDR improvement.

    Where PESQ has no value the utterance is counted, see ``quality.pesq``.

    Arguments
    ---------
    **kwargs
        Those of ``DownstreamMasks``.

    Raises
    ------
    ImportError
        If the packages that judge are missing.
    """

    rising = frozenset({"pesq", "stoi", "si_sdri"})
    figure_names = {
        "pesq": "PESQ",
        "stoi": "STOI",
        "si_sdri": "SI-SDRi",
        "pesq_failed": "PESQ_failed",
    }

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        quality.check_libraries()

    def measure(self, sources, estimates, mixture):
        """See ``DownstreamMasks``.

        Arguments
        ---------
        sources : torch.Tensor
            Clean speech.
        estimates : torch.Tensor
            What is heard.
        mixture : torch.Tensor
            Noisy speech.

        Returns
        -------
        dict
            ``pesq``, ``stoi`` (percent), ``si_sdri`` (dB), and ``pesq_failed``,
            100 where PESQ gave no value.
        """
        waves = (sources[:, 0].numpy(), estimates[:, 0].numpy())
        pesq, failed = quality.pesq(*waves)
        return {
            "pesq": pesq,
            "stoi": quality.stoi(*waves),
            "si_sdri": _improvement(sources, estimates, mixture),
            "pesq_failed": 100 * failed,
        }

    def check_lengths(self, dataset: DynamicItemDataset) -> None:
        """Raise, before hours are spent, if an utterance is too short.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With the items ``id`` and ``duration`` (s).

        Raises
        ------
        ValueError
            If it is so for the upstream, or for PESQ.
        """
        super().check_lengths(dataset)
        with dataset.output_keys_as(["id", "duration"]):
            short = [
                item["id"]
                for item in dataset
                if float(item["duration"]) < quality.PESQ_SECONDS
            ]
        if short:
            raise ValueError(
                f"{len(short)} utterances are shorter than the "
                f"{quality.PESQ_SECONDS} s that PESQ needs: "
                f"{', '.join(short[:5])}. Leave them out when the data is "
                "prepared."
            )

    def judge_set(self, dataset, loader_kwargs=None, name=""):
        """As of ``DownstreamBrain``; says where PESQ failed.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With what batches need.
        loader_kwargs : mapping, optional
            For the data loader.
        name : str
            Of the set.

        Returns
        -------
        list of mapping
            As ``judge`` gives them.
        """
        rows = super().judge_set(dataset, loader_kwargs, name)
        failed = [row["id"] for row in rows if row["pesq_failed"]]
        if failed:
            logger.warning(
                f"{name}: PESQ has no value for {len(failed)} of {len(rows)} "
                f"utterances, such as {', '.join(failed[:5])}: what is heard "
                f"of them is silent, which counts as {quality.LOWEST_PESQ:g}, "
                "or the clean speech is, which leaves them out."
            )
        return rows


class DownstreamSeparator(DownstreamMasks):
    """People who talk at once are taken apart: SI-SDR and its improvement.

    Arguments
    ---------
    **kwargs
        Those of ``DownstreamMasks``.
    """

    rising = frozenset({"si_sdr", "si_sdri"})
    figure_names = {"si_sdri": "SI-SDRi", "si_sdr": "SI-SDR"}

    def measure(self, sources, estimates, mixture):
        """See ``DownstreamMasks``.

        Arguments
        ---------
        sources : torch.Tensor
            What each of them says.
        estimates : torch.Tensor
            What is heard of each, in any order.
        mixture : torch.Tensor
            All at once.

        Returns
        -------
        dict
            ``si_sdr`` and ``si_sdri`` in dB.
        """
        return {
            "si_sdr": quality.si_sdr(sources, estimates),
            "si_sdri": _improvement(sources, estimates, mixture),
        }


def _improvement(sources, estimates, mixture) -> float:
    """Of SI-SDR over that of the mixture, in dB."""
    before = mixture[:, None].expand_as(sources)
    return quality.si_sdr(sources, estimates) - quality.si_sdr(sources, before)


def _mean(values) -> Interval:
    """Of those that are there; NaN if none is."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    return Bootstrap(len(values)).mean_interval(values)
