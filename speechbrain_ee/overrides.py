"""Overrides from the command line, with strategies named as blocks.

A block is a small YAML file that holds the value of one key, such as
``hparams/selectors/patience.yaml`` for the key ``selectors``; so
``python train.py hparams/x.yaml --selectors patience`` swaps the exit selectors
without editing a file. A block that stands elsewhere is named by its path,
ending in ``.yaml``. Blocks refer to nothing outside themselves.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from urllib.parse import quote

from ruamel.yaml import YAML
from ruamel.yaml.comments import TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.tag import Tag

from speechbrain_ee.files import is_yaml

_FEW = 12  # names that a reader takes in


def resolve_overrides(
    hparams_file: str | Path, overrides: str, blocks_folder: str | Path
) -> str:
    r"""Check overrides against a YAML, and put blocks where they are named.

    Arguments
    ---------
    hparams_file : str or Path
        The YAML that is overridden.
    overrides : str
        A mapping in YAML, as ``speechbrain.parse_arguments`` gives it.
    blocks_folder : str or Path
        Holds a folder for each key that takes blocks, of the same name or with
        an ``s`` behind it, with one file per block.

    Returns
    -------
    str
        What ``load_hyperpyyaml`` takes.

    Raises
    ------
    ValueError
        If there is no such key or block, with the nearest valid name.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> hparams_file = folder / "train.yaml"
    >>> _ = hparams_file.write_text("lr: 0.1\nobjective: null\n")
    >>> (folder / "objectives").mkdir()
    >>> _ = (folder / "objectives" / "rising.yaml").write_text("power: 2\n")
    >>> text = resolve_overrides(hparams_file, "objective: rising", folder)
    >>> text.startswith("objective: !include:")
    True
    >>> resolve_overrides(hparams_file, "lrr: 1", folder)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: train.yaml has no key 'lrr'. Did you mean 'lr'? ...
    """
    yaml = YAML()
    yaml.width = 2**16
    try:
        given = yaml.load(overrides) or {}
    except DuplicateKeyError as error:
        raise ValueError(f"The same key twice: {error.problem}") from error
    known = yaml.load(Path(hparams_file).read_text(encoding="utf-8"))
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"{Path(hparams_file).name} has no key {key!r}. "
                f"{nearest(key, known)}"
            )
        folder = _folder_of(key, Path(blocks_folder))
        if folder is not None and isinstance(value, str):
            block = _find_block(value, key, folder)
            tag = Tag(suffix=f"!include:{quote(str(block))}")
            given[key] = TaggedScalar("", tag=tag)
    text = StringIO()
    yaml.dump(given, text)
    return text.getvalue() if given else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """What to tell somebody who wrote a name that does not exist.

    Arguments
    ---------
    name : str
        As written.
    known : iterable of str
        The names that exist.

    Returns
    -------
    str
        A question with the nearest name, and the names if they are few.

    Example
    -------
    >>> nearest("entropie", ["entropy", "margin"])
    "Did you mean 'entropy'? There are: entropy, margin."
    >>> nearest("x", ["entropy", "margin"])
    'There are: entropy, margin.'
    """
    known = list(known)
    close = get_close_matches(str(name), known, n=1)
    told = [f"Did you mean {one!r}?" for one in close]
    if not close or len(known) <= _FEW:
        told.append(f"There are: {', '.join(known)}.")
    return " ".join(told)


def _folder_of(key: str, blocks_folder: Path) -> Path | None:
    for name in (key, f"{key}s"):
        if (blocks_folder / name).is_dir():
            return blocks_folder / name
    return None


def _find_block(name: str, key: str, folder: Path) -> Path:
    if is_yaml(name):
        if not Path(name).is_file():
            raise ValueError(f"{key}: there is no file {name}.")
        return Path(name).resolve()
    block = folder / f"{name}.yaml"
    if not block.is_file():
        blocks = sorted(path.stem for path in folder.glob("*.yaml"))
        raise ValueError(
            f"{key}: there is no block {name!r} in {folder.name}/. "
            f"{nearest(name, blocks)}"
        )
    return block.resolve()
