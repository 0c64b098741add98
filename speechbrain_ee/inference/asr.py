"""Speech recognition by a trained model whose depth can be set.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from speechbrain.dataio import audio_io
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import FetchSource
from torch.nn.utils.rnn import pad_sequence

from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.encoders.base import sample_counts
from speechbrain_ee.exits import (
    ExitSelector,
    FixedLayer,
    MaxLayers,
    Score,
    get_selector,
)
from speechbrain_ee.heads import ExitOutput
from speechbrain_ee.runtime import EarlyExitLoop
from speechbrain_ee.tokenizer import decode_labels


@dataclass(frozen=True)
class Transcript:
    """What was heard in an utterance, and what it took.

    Arguments
    ---------
    text : str
        The words.
    exit_layer : int
        The exit taken.
    layers_run : int
        Encoder layers executed.
    score : float, optional
        Value of the selector's score at the exit taken; None for a selector
        that reads none.
    macs : float
        MACs of layers and heads, without padding.
    seconds : float
        The utterance's share of the time of layers, heads, scores and
        transcripts.
    duration : float
        Length of the audio in seconds.

    Example
    -------
    >>> transcript = Transcript("ONE TWO", 4, 4, 0.02, 1.5e9, 0.1, 2.0)
    >>> transcript.text
    'ONE TWO'
    """

    text: str
    exit_layer: int
    layers_run: int
    score: float | None
    macs: float
    seconds: float
    duration: float


class EarlyExitASR(Pretrained):
    """A speech recogniser with early exits, ready to use.

    Load one with :meth:`from_hparams`. Its YAML, as ``write_inference`` makes
    it, has the modules ``encoder`` and ``exits``.

    Arguments
    ---------
    *args : tuple
        Those of ``speechbrain.inference.interfaces.Pretrained``.
    selector : ExitSelector, str, Path or Mapping, optional
        As for :meth:`set_depth`.
    exit_layer : int, optional
        As for :meth:`set_depth`.
    max_layers : int, optional
        As for :meth:`set_depth`.
    target_layers : float, optional
        As for :meth:`set_depth`.
    max_seconds : float
        Longer files are refused.
    **kwargs : dict
        Those of ``Pretrained``.

    Example
    -------
    >>> import sentencepiece
    >>> from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
    >>> from speechbrain_ee.heads import CTCHeads
    >>> model = getfixture("tmp_path") / "char"
    >>> sentencepiece.SentencePieceTrainer.train(
    ...     sentence_iterator=iter(["ONE TWO"]),
    ...     model_prefix=str(model),
    ...     model_type="char",
    ...     vocab_size=8,
    ...     minloglevel=2,
    ... )
    >>> small = {"num_hidden_layers": 2, "hidden_size": 48, "conv_dim": [8] * 7}
    >>> asr = EarlyExitASR(
    ...     modules={
    ...         "encoder": HuggingFaceEncoder(
    ...             "hubert", pretrained=False, config=small
    ...         ),
    ...         "exits": CTCHeads([1, 2], input_size=48, vocab_size=8),
    ...     },
    ...     hparams={
    ...         "sample_rate": 16000,
    ...         "tokenizer": sentencepiece.SentencePieceProcessor(
    ...             f"{model}.model"
    ...         ),
    ...         "selector": "never",
    ...     },
    ...     run_opts={"device": "cpu"},
    ... )
    >>> wavs, wav_lens = torch.randn(2, 8000), torch.tensor([1.0, 0.5])
    >>> [one.exit_layer for one in asr.transcribe_batch(wavs, wav_lens)]
    [2, 2]
    >>> asr.set_depth(exit_layer=1)
    >>> [one.exit_layer for one in asr.transcribe_batch(wavs, wav_lens)]
    [1, 1]
    """

    HPARAMS_NEEDED = ["sample_rate", "tokenizer", "selector"]
    MODULES_NEEDED = ["encoder", "exits"]

    def __init__(
        self,
        *args,
        selector: ExitSelector | str | Path | Mapping | None = None,
        exit_layer: int | None = None,
        max_layers: int | None = None,
        target_layers: float | None = None,
        max_seconds: float = 120.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.audio_normalizer = AudioNormalizer(self.hparams.sample_rate)
        self.max_seconds = max_seconds
        self.costs = ExitCosts(self.mods.encoder, self.mods.exits)
        self.set_depth(selector, exit_layer, max_layers, target_layers)

    @classmethod
    def from_hparams(
        cls,
        source,
        hparams_file: str = "inference.yaml",
        savedir: str | Path | None = None,
        selector: ExitSelector | str | Path | Mapping | None = None,
        exit_layer: int | None = None,
        max_layers: int | None = None,
        target_layers: float | None = None,
        run_opts: Mapping | None = None,
        overrides: Mapping | None = None,
        **kwargs,
    ) -> EarlyExitASR:
        """Load a model that ``write_inference`` has written.

        Arguments
        ---------
        source : str, Path or FetchSource
            A folder, or a name on the Hub. Its YAML can run any code: trust
            who wrote it.
        hparams_file : str
            The YAML in it.
        savedir : str or Path, optional
            Where links to the files, or downloads, go (default: nowhere, or
            the Hub's cache).
        selector : ExitSelector, str, Path or Mapping, optional
            As for :meth:`set_depth`.
        exit_layer : int, optional
            As for :meth:`set_depth`.
        max_layers : int, optional
            As for :meth:`set_depth`.
        target_layers : float, optional
            As for :meth:`set_depth`.
        run_opts : Mapping, optional
            SpeechBrain's, e.g. ``{"device": "cuda", "precision": "bf16"}``.
        overrides : Mapping, optional
            Changes to the YAML.
        **kwargs : dict
            ``max_seconds``, and those of
            ``speechbrain.inference.interfaces.pretrained_from_hparams``.

        Returns
        -------
        EarlyExitASR
            In evaluation mode.

        Raises
        ------
        FileNotFoundError
            If the source or its YAML is not there.
        ValueError
            If a file does not hold what it should.
        """
        if isinstance(source, FetchSource):
            place = str(source.path)
        else:
            place = source = str(source)
        _check_source(place, hparams_file)
        try:
            return super().from_hparams(
                source,
                hparams_file,
                savedir=savedir,
                overrides={"pretrained_path": place, **(overrides or {})},
                selector=selector,
                exit_layer=exit_layer,
                max_layers=max_layers,
                target_layers=target_layers,
                run_opts=run_opts,
                **kwargs,
            )
        except OSError as error:
            if Path(place).is_dir():
                raise
            raise FileNotFoundError(
                f"source: {place!r} cannot be loaded: there is no such folder, "
                "and the Hub did not give it (offline?). Download it where "
                "there is a network, and give that folder as source."
            ) from error

    def set_depth(
        self,
        selector: ExitSelector | str | Path | Mapping | None = None,
        exit_layer: int | None = None,
        max_layers: int | None = None,
        target_layers: float | None = None,
    ) -> None:
        """Say where utterances leave, and how many layers run, from now on.

        Arguments
        ---------
        selector : ExitSelector, str, Path or Mapping, optional
            What ``get_selector`` takes, such as the file that ``speechbrain-ee
            calibrate`` writes (default: what the model's YAML says).
        exit_layer : int, optional
            The one exit where all leave.
        max_layers : int, optional
            The most layers that may run, whatever the selector says.
        target_layers : float, optional
            How many layers each utterance keeps, of a model whose gate serves
            any number (default: what its YAML says).

        Raises
        ------
        ValueError
            If the settings contradict each other, do not fit the exits or the
            gate, or were calibrated for a score that the model defines
            otherwise.
        """
        if exit_layer is None:
            if selector is None:
                selector = self.hparams.selector
            if max_layers is not None:
                selector = MaxLayers(max_layers, selector)
        elif selector is None and max_layers is None:
            selector = FixedLayer(exit_layer)
        else:
            raise ValueError(
                "exit_layer lets all utterances leave there: give it without "
                "selector and max_layers."
            )
        gate = self.mods.encoder.gate
        if gate is not None:
            gate.set_target(target_layers)
        elif target_layers is not None:
            raise ValueError(
                "target_layers: no gate chooses the layers of this model, and "
                "all run. Give exit_layer or max_layers instead."
            )
        loop = EarlyExitLoop(
            self.mods.encoder, self.mods.exits, selector, self.costs
        )
        loop.selector.check_scores(get_selector(self.hparams.selector).scores)
        self.loop = loop

    def transcribe_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[Transcript]:
        """Transcribe waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            At the model's sample rate, of shape (batch, samples).
        wav_lens : torch.Tensor, optional
            Lengths relative to the longest, of shape (batch,).

        Returns
        -------
        list of Transcript
            One per utterance.
        """
        return self._transcribe(
            wavs, wav_lens, list(map(str, range(len(wavs))))
        )

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[Transcript]:
        """See :meth:`transcribe_batch`."""
        return self.transcribe_batch(wavs, wav_lens)

    def transcribe_file(self, path: str | Path) -> Transcript:
        """Transcribe an audio file.

        Arguments
        ---------
        path : str or Path
            Of a kind that soundfile reads, with any sample rate and number of
            channels.

        Returns
        -------
        Transcript
            What was heard.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it cannot be transcribed, with the reason.
        """
        return self.transcribe_files([path])[0]

    def transcribe_files(
        self, paths: Sequence[str | Path], batch_size: int = 8
    ) -> list[Transcript]:
        """Transcribe audio files, those of similar length together.

        Arguments
        ---------
        paths : sequence of str or Path
            As for :meth:`transcribe_file`. All headers are looked at before
            the first file is transcribed.
        batch_size : int
            How many files are transcribed at a time.

        Returns
        -------
        list of Transcript
            In the order of the paths.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If one cannot be transcribed, with the reason.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} must be at least 1.")
        durations = {str(path): self._duration(str(path)) for path in paths}
        # The longest first: if there is not enough memory, it shows at once.
        names = sorted(durations, key=durations.get, reverse=True)
        transcripts = {}
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            wavs = [self._load(name) for name in batch]
            lengths = torch.tensor([len(wav) for wav in wavs]).double()
            results = self._transcribe(
                pad_sequence(wavs, batch_first=True),
                lengths / lengths.max(),
                batch,
            )
            transcripts.update(zip(batch, results, strict=True))
        return [transcripts[str(path)] for path in paths]

    def decode(self, hypotheses: Sequence[Sequence[int]]) -> list[str]:
        """Transcripts of label sequences.

        Arguments
        ---------
        hypotheses : sequence of sequence of int
            Without blanks.

        Returns
        -------
        list of str
            Words, separated by spaces.
        """
        return decode_labels(self.hparams.tokenizer, hypotheses)

    def _transcribe(self, wavs, wav_lens, ids) -> list[Transcript]:
        """Walk one batch; ids must differ."""
        scores = [_ScoreAtExit(one) for one in self.loop.selector.scores[:1]]

        def on_exit(output, account):
            """Note the scores that the selector has read."""
            for score in scores:
                score.note(output, output.ids)

        wavs = wavs.to(self.device, torch.float32)
        with self.inference_ctx:
            left = self.loop(wavs, wav_lens, ids=ids, on_exit=on_exit)
            for score in scores:
                score.note(None, ())
        values = scores[0].values if scores else dict.fromkeys(ids)
        samples = sample_counts(wavs, wav_lens)
        return [
            Transcript(
                text=text,
                exit_layer=int(left.exit_layer[row]),
                layers_run=int(left.layers_run[row]),
                score=values[ids[row]],
                macs=float(left.macs[row]),
                seconds=float(left.seconds[row]),
                duration=int(samples[row]) / self.hparams.sample_rate,
            )
            for row, text in enumerate(self.decode(left.hypotheses))
        ]

    def _duration(self, path: str) -> float:
        """Seconds of a file by its header; raises if it cannot be used."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: there is no such audio file.")
        if Path(path).stat().st_size == 0:
            raise ValueError(
                f"{path} is empty (0 bytes): record or copy it again."
            )
        try:
            info = audio_io.info(path)
        except RuntimeError as error:
            raise _unreadable(path) from error
        if info.frames == 0:
            raise ValueError(f"{path} holds no samples: record it again.")
        if info.duration > self.max_seconds:
            raise ValueError(
                f"{path} lasts {info.duration:.0f} s, more than max_seconds: "
                f"{self.max_seconds:g}. Attention takes memory and time by the "
                "square of the length: cut the recording into utterances, or "
                "load the model with a larger max_seconds."
            )
        return info.duration

    def _load(self, path: str) -> torch.Tensor:
        """Samples of a file, mono, at the model's rate."""
        try:
            wav = self.load_audio(path)
        except RuntimeError as error:
            raise _unreadable(path) from error
        encoder = self.mods.encoder
        frames = int(encoder.frames_of(torch.tensor([len(wav)])))
        if frames < encoder.least_frames:
            raise ValueError(
                f"{path} is too short: {len(wav)} samples at "
                f"{self.hparams.sample_rate} Hz leave {frames} frames, and the "
                f"encoder needs {encoder.least_frames}. Leave such files out."
            )
        return wav


class _ScoreAtExit:
    """The value of a score for each utterance at the exit that it took.

    Who has left shows once the next exit is read; so nothing is computed for
    those who go on.

    Arguments
    ---------
    score : Score
        Of the loop's selector, so that what it reads is there.
    """

    def __init__(self, score: Score):
        self.score = score
        self.values = {}
        self.last = None

    def note(self, output: ExitOutput | None, running: Sequence[str]) -> None:
        """Look at those who left at the last exit, then keep this one.

        Arguments
        ---------
        output : ExitOutput, optional
            The reading of the next exit; None when all have left.
        running : sequence of str
            Who has reached it.
        """
        if self.last is not None:
            running = set(running)
            ids = self.last.ids
            rows = [i for i, name in enumerate(ids) if name not in running]
            if rows:
                left = self.last.keep(rows, history=self.score.previous)
                values = self.score(left).tolist()
                self.values.update(zip(left.ids, values, strict=True))
        self.last = output


def _unreadable(path: str) -> ValueError:
    return ValueError(
        f"{path} cannot be read as audio: it is damaged, or of a kind that "
        f"soundfile does not know. Convert it, e.g. 'ffmpeg -i {path} OUT.wav'."
    )


def _check_source(source: str, hparams_file: str) -> None:
    """Raise if a local model is not there, before the Hub is asked for it."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / hparams_file).is_file():
            raise FileNotFoundError(
                f"source: {source!r} has no {hparams_file}. Give a folder that "
                "write_inference has written, such as the output_folder of a "
                "finished run."
            )
    elif "://" not in source and (
        source.startswith((".", "/", "~")) or source.count("/") != 1
    ):
        raise FileNotFoundError(
            f"source: {source!r} is no folder here, nor a Hub name "
            "(owner/model). Give a folder with an inference.yaml."
        )
