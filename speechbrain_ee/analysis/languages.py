"""Error rates over languages, as ML-SUPERB has them.

Shi et al., *ML-SUPERB* (arXiv 2305.10615): few-shot languages are told apart,
and a language counts by its characters, Japanese and Mandarin by phones in the
monolingual track.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from speechbrain_ee.analysis.statistics import Bootstrap

RATES = {"character": "CER", "phone": "PER"}
_TOKEN = r"\[\w+\]"


def language_results(traces: pd.DataFrame) -> pd.DataFrame:
    """Error rates and accuracy of each language, and over languages.

    Arguments
    ---------
    traces : pandas.DataFrame
        With ``errors``, ``ref_len``, ``language``, ``few_shot`` and ``unit``
        and, where languages were to be found, ``ref`` and ``language_errors``.

    Returns
    -------
    pandas.DataFrame
        ``metric``, ``group``, ``value``, ``low``, ``high`` (percent; 95 %
        interval of the bootstrap over the utterances of each language) and
        ``utterances``. The metrics are ``CER`` or ``PER`` where there is a
        text, and ``LID accuracy``. The groups are ``normal`` and ``few-shot``
        (mean over languages), ``normal, pooled`` and ``few-shot, pooled`` (over
        utterances, as the benchmark's scripts count), and each language by
        name.

    Example
    -------
    >>> traces = pd.DataFrame(
    ...     {
    ...         "errors": [1, 0, 4],
    ...         "ref_len": [10, 10, 10],
    ...         "language": ["eng", "eng", "dan"],
    ...         "few_shot": [False, False, True],
    ...         "unit": "character",
    ...     }
    ... )
    >>> table = language_results(traces)
    >>> table.set_index("group")["value"].round(1).to_dict()
    {'normal': 5.0, 'normal, pooled': 5.0, 'few-shot': 40.0, \
'few-shot, pooled': 40.0, 'dan': 40.0, 'eng': 5.0}
    """
    tables = []
    if "language_errors" in traces:
        named = traces[traces["language_errors"].notna()]
        counted = named.assign(errors=1 - named["language_errors"], ref_len=1)
        tables.append(_over_languages(counted, "LID accuracy"))
        # Where the language is all there is, the errors are those of it.
        traces = traces[~traces["ref"].str.fullmatch(_TOKEN)]
    for unit, rows in traces.groupby("unit"):
        tables.append(_over_languages(rows, RATES[unit]))
    return pd.concat(tables, ignore_index=True)


def _over_languages(traces, metric) -> pd.DataFrame:
    draws = {
        language: _draws(rows, seed)
        for seed, (language, rows) in enumerate(traces.groupby("language"))
    }
    # As text, where it comes from a file.
    few_shot = traces["few_shot"].astype(str) == "True"
    groups = {"normal": traces[~few_shot], "few-shot": traces[few_shot]}
    told = []
    for group, rows in groups.items():
        if len(rows):
            told.append((group, rows, _mean))
            told.append((f"{group}, pooled", rows, _pooled))
    for language, rows in traces.groupby("language"):
        told.append((language, rows, _mean))
    found = []
    for group, rows, combine in told:
        drawn = np.stack([draws[x] for x in rows["language"].unique()])
        value, *samples = 100 * combine(drawn[..., 0], drawn[..., 1])
        low, high = Bootstrap(1).bounds(samples)
        found.append(
            {
                "metric": metric,
                "group": group,
                "value": float(value),
                "low": float(low),
                "high": float(high),
                "utterances": len(rows),
            }
        )
    return pd.DataFrame(found)


def _draws(rows, seed) -> np.ndarray:
    """Errors and lengths of a language: as they are, then of each resample."""
    counts = rows[["errors", "ref_len"]].to_numpy(float)
    drawn = Bootstrap(len(rows), seed=seed).weights @ counts
    return np.vstack([counts.sum(axis=0), drawn])


def _mean(errors, lengths) -> np.ndarray:
    """Of languages, the first axis."""
    return (errors / lengths).mean(axis=0)


def _pooled(errors, lengths) -> np.ndarray:
    """Over all utterances."""
    return errors.sum(axis=0) / lengths.sum(axis=0)
