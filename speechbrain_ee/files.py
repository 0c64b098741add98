"""Files that are whole or not there at all.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_YAML = (".yaml", ".yml")


def is_yaml(path: str | Path) -> bool:
    """Whether a name is that of a YAML file, which need not exist.

    Arguments
    ---------
    path : str or Path
        The name.

    Returns
    -------
    bool
        By what it ends in.

    Example
    -------
    >>> is_yaml("thresholds.yaml"), is_yaml("entropy")
    (True, False)
    """
    return str(path).endswith(_YAML)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file under another name, and rename it once it is complete.

    A process that is killed in between leaves what was there before, and a
    hidden file that the next write takes away. One process at a time.

    Arguments
    ---------
    path : str or Path
        Where the file goes.

    Yields
    ------
    Path
        Where to write it, in the same folder.

    Example
    -------
    >>> path = getfixture("tmp_path") / "curve.csv"
    >>> with replacing(path) as file:
    ...     _ = file.write_text("selector")
    >>> path.read_text()
    'selector'
    """
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
