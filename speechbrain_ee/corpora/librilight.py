"""A synthetic corpus in the layout of Libri-light's 10 h for fine-tuning.

With dev-clean and test-clean of LibriSpeech beside it.

Authors
 * SpeechBrain-EE contributors 2026
"""

from speechbrain_ee.corpora.librispeech import make_librispeech

ARCHIVE = "librispeech_finetuning"
PARTS = (*(f"1h/{k}" for k in range(6)), "9h")
KINDS = ("clean", "other")


def make_librilight(folder, utterances=2, dev=4, test=4, seed=0, jobs=1):
    """Makes a corpus of synthetic speech in the layout of Libri-light's 10 h.

    That is ``librispeech_finetuning/1h/{0..5}/{clean,other}`` and
    ``librispeech_finetuning/9h/{clean,other}``, and beside them ``dev-clean``
    and ``test-clean``, each as ``make_librispeech`` lays out a split. No
    speaker is in two of them.

    The same arguments give the same corpus, whatever ``jobs`` is.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    utterances : int
        In each of the 14 folders to train on, by one speaker.
    dev : int
        Utterances in dev-clean, by two speakers.
    test : int
        Utterances in test-clean, by two speakers.
    seed : int
        Seed of sentences, voices and pauses, 0 or more.
    jobs : int
        How many processes to work with; -1 is as many as there are cores.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If there is such a corpus already.

    Example
    -------
    >>> folder = make_librilight(getfixture("tmp_path"), 1, dev=1, test=1)
    >>> sorted(path.name for path in (folder / ARCHIVE).glob("1h/0/*"))
    ['clean', 'other']
    """
    splits = {
        f"{ARCHIVE}/{part}/{kind}": utterances
        for part in PARTS
        for kind in KINDS
    }
    speakers = dict.fromkeys(splits, 1) | {"dev-clean": 2, "test-clean": 2}
    splits |= {"dev-clean": dev, "test-clean": test}
    return make_librispeech(folder, splits, seed, speakers, jobs=jobs)
