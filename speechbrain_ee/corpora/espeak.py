"""Text to speech with eSpeak NG, the same samples for the same input.

Needs the package ``espeakng-loader`` (``pip install speechbrain-ee[demo]``), on
Linux or macOS.

Authors
 * SpeechBrain-EE contributors 2026
"""

import _ctypes
import ctypes
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torchaudio.functional import resample

from speechbrain_ee.encoders.base import SAMPLE_RATE

try:
    import espeakng_loader
except ImportError as error:
    raise ImportError(
        "Synthetic speech needs eSpeak NG: pip install speechbrain-ee[demo]."
    ) from error

# Names and values of the library's header speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_POSITION_CHARACTER = 1
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_IPA = 2

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_lock = threading.Lock()


@dataclass(frozen=True)
class Synthesizer:
    """One speaker: a voice with its rate and pitch.

    Arguments
    ---------
    voice : str
        eSpeak NG's name of the voice, with a variant if wanted, such as
        "en-us", "en-gb-x-rp+f3" or "de+m2". An unknown variant is ignored.
    rate : int
        Words per minute, 80 to 450.
    pitch : int
        Base pitch, 0 to 100.
    pitch_range : int
        How lively the intonation is, 0 (monotone) to 100.

    Example
    -------
    >>> speaker = Synthesizer("en-us+f2", pitch=60)
    >>> wave = speaker("hello world")
    >>> wave.dtype, wave.dim()
    (torch.float32, 1)
    >>> bool((wave == speaker("hello world")).all())
    True
    """

    voice: str = "en-us"
    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50

    def __call__(self, text: str) -> torch.Tensor:
        """Speaks a text.

        Arguments
        ---------
        text : str
            What to say. Words in capitals may be spelled letter by letter.

        Returns
        -------
        torch.Tensor
            The waveform at 16 kHz, float32 of shape (samples,).

        Raises
        ------
        ValueError
            If there is no such voice, or nothing to say.
        """
        if not text.strip():
            raise ValueError("There is nothing to say: the text is empty.")
        with _lock:
            samples, rate = self._speak(text.encode())
        wave = torch.frombuffer(samples, dtype=torch.int16) / 2**15
        return resample(wave, rate, SAMPLE_RATE)

    def _speak(self, text: bytes) -> tuple[bytearray, int]:
        """Returns 16-bit samples and their rate in Hz."""
        samples = bytearray()

        @_Callback
        def collect(block, count, events):
            """Take the samples that eSpeak NG hands over."""
            if block:
                samples.extend(ctypes.string_at(block, 2 * count))
            return 0

        with _started(self.voice) as (library, rate):
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            library.espeak_SetSynthCallback(collect)
            library.espeak_SetParameter(_RATE, self.rate, 0)
            library.espeak_SetParameter(_PITCH, self.pitch, 0)
            library.espeak_SetParameter(_RANGE, self.pitch_range, 0)
            status = library.espeak_Synth(
                text,
                ctypes.c_size_t(len(text) + 1),
                0,
                _POSITION_CHARACTER,
                0,
                _CHARS_UTF8,
                None,
                None,
            )
            if status:
                raise RuntimeError(f"eSpeak NG failed with status {status}.")
        return samples, rate


def phonemize(texts: Sequence[str], voice: str = "en-us") -> list[str]:
    """How texts are pronounced, in the International Phonetic Alphabet.

    Arguments
    ---------
    texts : sequence of str
        What to say, without punctuation. Words in capitals may be spelled
        letter by letter.
    voice : str
        As of a ``Synthesizer``.

    Returns
    -------
    list of str
        Stress marks stand before the vowels.

    Raises
    ------
    ValueError
        If there is no such voice.

    Example
    -------
    >>> phonemize(["hello"])
    ['həlˈoʊ']
    """
    with _lock, _started(voice) as (library, _):
        spell = library.espeak_TextToPhonemes
        spell.restype = ctypes.c_char_p
        return [
            spell(
                ctypes.byref(ctypes.c_char_p(text.encode())), _CHARS_UTF8, _IPA
            ).decode()
            for text in texts
        ]


@contextmanager
def _started(voice):
    """The library, ready to speak, and the rate in Hz that it speaks at."""
    # Intonation, flutter and breath noise depend on what was said before,
    # through static variables that nothing but unloading resets.
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS,
            0,
            espeakng_loader.get_data_path().encode(),
            _INITIALIZE_DONT_EXIT,
        )
        if rate <= 0:
            raise RuntimeError("eSpeak NG did not start.")
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"eSpeak NG has no voice '{voice}'.")
        yield library, rate
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)
