"""From words to phones: pronunciation lexica, and eSpeak NG for the rest.

Phones are those of CMUdict (ARPAbet), vowels with their stress: 0 none, 1
primary, 2 secondary.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_STRESSES = "012"

# What eSpeak NG's "en-us" has of the International Phonetic Alphabet.
_VOWELS_OF_IPA = {
    **{"ɑː": "AA", "ɑ": "AA", "æ": "AE", "ʌ": "AH", "ə": "AH", "ɐ": "AH"},
    **{"ɔː": "AO", "ɔ": "AO", "aʊ": "AW", "aɪ": "AY", "ɛ": "EH", "ɜː": "ER"},
    **{"ɚ": "ER", "eɪ": "EY", "ɪ": "IH", "ᵻ": "IH", "iː": "IY", "i": "IY"},
    **{"oʊ": "OW", "ɔɪ": "OY", "ʊ": "UH", "uː": "UW", "u": "UW"},
}
_CONSONANTS_OF_IPA = {
    **{"b": "B", "tʃ": "CH", "d": "D", "ð": "DH", "f": "F", "ɡ": "G"},
    **{"h": "HH", "dʒ": "JH", "k": "K", "x": "K", "l": "L", "m": "M"},
    **{"n": "N", "ŋ": "NG", "p": "P", "ɹ": "R", "r": "R", "s": "S"},
    **{"ʃ": "SH", "t": "T", "ɾ": "T", "ʔ": "T", "θ": "TH", "v": "V"},
    **{"w": "W", "j": "Y", "z": "Z", "ʒ": "ZH"},
}
_SYLLABIC = "\u0329"  # below a consonant: a weak vowel before it
_STRESS_OF_IPA = {"ˈ": "1", "ˌ": "2"}
_PART_OF_IPA = re.compile(
    "([ˈˌ]?)({})({}?)".format(
        "|".join(
            sorted(
                {**_VOWELS_OF_IPA, **_CONSONANTS_OF_IPA}, key=len, reverse=True
            )
        ),
        _SYLLABIC,
    )
)
_VARIANT = re.compile(r"\(\d+\)$")  # CMUdict's second pronunciation of a word


class Pronunciations:
    r"""Phones of texts.

    Arguments
    ---------
    lexicon : sequence of str or Path
        Files with a word and its phones in each line, such as LibriSpeech's
        ``librispeech-lexicon.txt`` (https://www.openslr.org/11) or CMUdict.
        The first pronunciation of a word counts, in the order of the files.
    stress : bool
        Whether vowels keep their stress, as in SUPERB.
    g2p : bool
        Whether eSpeak NG says words that no file has, in American English. It
        needs ``pip install speechbrain-ee[demo]``.

    Raises
    ------
    ValueError
        If there is nothing to look words up in, or a line has no phones.

    Example
    -------
    >>> file = getfixture("tmp_path") / "lexicon.txt"
    >>> _ = file.write_text("CHILD  CH AY1 L D\nMY\tM AY1\nMY(2)\tM IY0\n")
    >>> pronunciations = Pronunciations([file])
    >>> pronunciations("my child")
    ['M', 'AY1', 'CH', 'AY1', 'L', 'D']
    """

    def __init__(
        self,
        lexicon: Sequence[str | Path] = (),
        stress: bool = True,
        g2p: bool = False,
    ):
        if not lexicon and not g2p:
            raise ValueError(
                "lexicon: name a file with the phones of each word, such as "
                "librispeech-lexicon.txt of https://www.openslr.org/11, or "
                "set g2p: True."
            )
        self.stress = stress
        self.g2p = g2p
        self.sources = ", ".join(str(file) for file in lexicon)
        self.words: dict[str, list[str]] = {}
        for file in lexicon:
            for word, phones in _read_lexicon(Path(file)):
                self.words.setdefault(word, self._stressed(phones))

    def __call__(self, text: str) -> list[str]:
        """The phones of a text, one word after the other.

        Arguments
        ---------
        text : str
            Words, in capitals or not.

        Returns
        -------
        list of str

        Raises
        ------
        ValueError
            If there are words that have no pronunciation.
        """
        self.learn([text])
        return [p for word in text.upper().split() for p in self.words[word]]

    def learn(self, texts: Iterable[str]) -> None:
        """Look up the words of texts, so that all that are missing are told.

        Arguments
        ---------
        texts : iterable of str
            Words, in capitals or not.

        Raises
        ------
        ValueError
            If there are words that have no pronunciation.
        """
        wanted = {word for text in texts for word in text.upper().split()}
        missing = sorted(wanted - set(self.words))
        if self.g2p and missing:
            said = dict(zip(missing, spell_out(missing), strict=True))
            self.words |= {
                word: self._stressed(phones)
                for word, phones in said.items()
                if phones
            }
            missing = [word for word in missing if not said[word]]
        if missing:
            raise ValueError(
                f"{len(missing)} words have no phones in "
                f"{self.sources or 'eSpeak NG'}, such as "
                f"{', '.join(missing[:10])}: name a further file in lexicon, "
                "or set g2p: True."
            )

    def _stressed(self, phones):
        if self.stress:
            return phones
        return [phone.rstrip(_STRESSES) for phone in phones]


def spell_out(words: Sequence[str]) -> list[list[str]]:
    """Phones of words by the rules of eSpeak NG, in American English.

    What it has beyond ARPAbet is brought to the nearest: flaps and glottal
    stops are T.

    Arguments
    ---------
    words : sequence of str
        The words.

    Returns
    -------
    list of list of str
        Phones of each, vowels with stress.

    Raises
    ------
    ImportError
        If eSpeak NG is not installed.

    Example
    -------
    >>> spell_out(["measure", "BUTTON"])
    [['M', 'EH1', 'ZH', 'ER0'], ['B', 'AH1', 'T', 'AH0', 'N']]
    """
    # Here, as only this needs eSpeak NG.
    from speechbrain_ee.corpora.espeak import phonemize

    return [
        _from_ipa(said)
        for said in phonemize([word.lower() for word in words], "en-us")
    ]


def _from_ipa(text):
    phones = []
    for mark, symbol, syllabic in _PART_OF_IPA.findall(text):
        stress = _STRESS_OF_IPA.get(mark, "0")
        if symbol in _VOWELS_OF_IPA:
            phones.append(_VOWELS_OF_IPA[symbol] + stress)
            continue
        if syllabic:
            phones.append("AH" + stress)
        phones.append(_CONSONANTS_OF_IPA[symbol])
    return phones


def _read_lexicon(file):
    """Words and phones, one line after the other."""
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no lexicon {file}: set lexicon to files such as "
            "librispeech-lexicon.txt of https://www.openslr.org/11."
        )
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        word, *phones = line.partition(" #")[0].split() or [""]
        if not word or word.startswith(";;;"):  # a comment
            continue
        if not phones:
            raise ValueError(f"{file}, line {number}: {word} has no phones.")
        yield _VARIANT.sub("", word).upper(), phones
