"""Descriptions of classes: texts of a language model, or an ensemble of templates in their place."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vmfcoop.errors import UserError

MIN_DESCRIPTIONS = 2
"""Different texts a class needs: the concentration of a single direction is infinite."""

TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a medical image showing {}.",
    "a medical image of {}.",
    "a clinical image of {}.",
    "a diagnostic image with {}.",
    "a scan showing {}.",
    "an image of a patient with {}.",
    "an example of {} in medical imaging.",
    "a typical case of {}.",
    "a close-up image of {}.",
    "findings consistent with {}.",
    "an image in which {} can be seen.",
    "this is {}.",
    "{} as seen in a medical examination.",
)
"""Wordings that fit any modality; the first is the one zero-shot CLIP uses."""

_LEADER = re.compile(r"(?:[-*+\u2022\u2013]|\(?\d+[.)])\s+")
_HEADING = re.compile(r"#+(?P<marked>.*)|(?P<plain>(?![-*+\u2022\u2013]\s|\(?\d+[.)]\s).*):")

TEMPLATE_SOURCE = "templates"
"""Source of a bank that is no more than the class names in these wordings."""

PACKAGED_BANKS = Path(__file__).parent / "banks"
"""Descriptions that come with the package, one file a dataset key."""


@dataclass(frozen=True, eq=False)
class DescriptionBank:
    """Descriptions by class.

    Attributes:
        descriptions: At least two different texts for each class.
        source: Who or what wrote them, for reports.
        meta: Whatever else the file says (dataset, licence, prompt).

    Raises:
        UserError: A class has fewer than two different texts or an empty one, or two class names differ
            in case and spacing alone.
    """

    descriptions: dict[str, tuple[str, ...]]
    source: str
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.descriptions:
            raise UserError(f"{self.source} has no classes; add descriptions for each class.")
        _check_names(self.descriptions, self.source)
        for name, texts in self.descriptions.items():
            if not all(text.strip() for text in texts):
                raise UserError(
                    f"{self.source} has an empty description of '{name}'; fill it in or remove it."
                )
            different = len({text.strip() for text in texts})
            if different < MIN_DESCRIPTIONS:
                raise UserError(
                    f"{self.source} has {different} different descriptions of '{name}'; "
                    f"add some, at least {MIN_DESCRIPTIONS} are needed."
                )

    def for_classes(self, class_names: Sequence[str]) -> list[tuple[str, ...]]:
        """Descriptions in the order of the classes; case, spaces, underscores and hyphens do not count.

        Raises:
            UserError: A class has no descriptions; the message names the nearest class that has.

        Example:
            >>> bank = DescriptionBank({"glioma tumor": ("a glioma.", "an infiltrating mass.")}, "us")
            >>> bank.for_classes(["Glioma_Tumor"])
            [('a glioma.', 'an infiltrating mass.')]
        """
        by_key = {class_key(name): name for name in self.descriptions}
        missing = [name for name in class_names if class_key(name) not in by_key]
        if missing:
            nearest = difflib.get_close_matches(class_key(missing[0]), by_key, n=1, cutoff=0.0)
            raise UserError(
                f"{self.source} has no descriptions of '{missing[0]}' (nearest is '{by_key[nearest[0]]}'); "
                "add them or rename the class."
            )
        return [self.descriptions[by_key[class_key(name)]] for name in class_names]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over class names and texts; the source and the order of classes do not count."""
        content = json.dumps(self.descriptions, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def class_key(name: str) -> str:
    """A spelling in which class names match: case, spaces, underscores and hyphens do not count.

    Nor does whether an accented letter is one sign or two, as in names of folders that macOS made.
    """
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", name)).casefold()


def _check_names(names: Iterable[str], source: str) -> None:
    """Raise a ``UserError`` if two names match."""
    keys: dict[str, str] = {}
    for name in names:
        other = keys.setdefault(class_key(name), name)
        if other != name:
            raise UserError(f"{source} has both '{other}' and '{name}'; merge them into one class.")


def spelled_as(
    descriptions: Mapping[str, Sequence[str]], class_names: Iterable[str]
) -> dict[str, Sequence[str]]:
    """Descriptions under the names of the classes, where they have them in another spelling.

    Example:
        >>> spelled_as({"Glioma_Tumor": ["a glioma."]}, ["glioma tumor"])
        {'glioma tumor': ['a glioma.']}
    """
    spelling = {class_key(name): name for name in class_names}
    return {spelling.get(class_key(name), name): texts for name, texts in descriptions.items()}


def load_descriptions(path: Path | str) -> DescriptionBank:
    """Read descriptions from a JSON or TXT file, or take the package's own.

    JSON: ``{"source": ..., "dataset": ..., "descriptions": {class: [text, ...]}}`` or plainly
    ``{class: [text, ...]}``. TXT (a name that ends in ``.txt``): a line ``# class name``, or ``class name:``
    alone on a line, begins a class; every other line that is not empty is one text, without the bullet or
    number that may lead it. Texts are stripped of surrounding space. A dataset key (``btmri``) stands for
    the package's own descriptions where no file has that name.

    Raises:
        UserError: The file is missing, not of that form, or at fault as ``DescriptionBank`` says.
    """
    if _is_packaged(path):
        return _packaged(str(path))
    texts = read_texts(path)
    # The path is the source that messages can name; the file's own word on its source is kept in meta.
    return DescriptionBank(texts.descriptions, str(path), texts.meta)


class BankTexts(NamedTuple):
    """What a file of descriptions says, before anything is asked of it but its form.

    Attributes:
        descriptions: texts by class, stripped; a class may have none, and a text may be empty.
        meta: whatever else the file says.
    """

    descriptions: dict[str, tuple[str, ...]]
    meta: dict[str, Any]


def read_texts(path: Path | str) -> BankTexts:
    """Read descriptions as they are, faults and all, from wherever ``load_descriptions`` takes them.

    Raises:
        UserError: The file is missing, not of the form that ``load_descriptions`` describes, or has a class
            twice.
    """
    path = PACKAGED_BANKS / f"{path}.json" if _is_packaged(path) else Path(path)
    if path.suffix.lower() == ".txt":
        lines = _parse_lines(_read(path), path)
        _check_names(lines, str(path))
        return BankTexts(lines, {})
    content = _parse_json(_read(path), path)
    meta: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("descriptions"), dict):
        meta = {key: value for key, value in content.items() if key != "descriptions"}
        content = content["descriptions"]
    if not isinstance(content, dict) or not all(_is_text_list(texts) for texts in content.values()):
        raise UserError(
            f'{path} is no description file; give it the form {{"class name": ["text", ...], ...}}.'
        )
    _check_names(content, str(path))
    return BankTexts({name: tuple(text.strip() for text in texts) for name, texts in content.items()}, meta)


def packaged_descriptions(key: str) -> DescriptionBank | None:
    """The descriptions that the package brings for a dataset key, or None for any other data.

    Example:
        >>> bank = packaged_descriptions("phantom-fundus")
        >>> len(bank.descriptions["glaucoma"])
        50
        >>> packaged_descriptions("lesions/") is None
        True
    """
    return _packaged(key) if key in packaged_keys() else None


def _packaged(key: str) -> DescriptionBank:
    texts = read_texts(PACKAGED_BANKS / f"{key}.json")
    return DescriptionBank(texts.descriptions, f"the package's descriptions of {key}", texts.meta)


def _is_packaged(spec: Path | str) -> bool:
    return str(spec) in packaged_keys() and not Path(spec).is_file()


def packaged_keys() -> list[str]:
    """The dataset keys that the package has descriptions of, sorted."""
    return sorted(path.stem for path in PACKAGED_BANKS.glob("*.json"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        near = difflib.get_close_matches(str(path), packaged_keys(), n=1)
        hint = (
            f"; did you mean the package's '{near[0]}'?" if near else "; check the path of the descriptions."
        )
        raise UserError(f"{path} does not exist{hint}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read; name a JSON or TXT file of descriptions.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from error


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except _DuplicateKeyError as error:
        raise UserError(f"{path} has '{error}' twice; merge the two into one.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON; correct it.") from error


def _parse_lines(text: str, path: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    begun: dict[str, int] = {}
    name = ""
    for number, line in enumerate(text.splitlines(), 1):
        heading = _HEADING.fullmatch(line.strip())
        if heading:
            name = " ".join((heading["marked"] or heading["plain"] or "").strip().rstrip(":").split())
            _check_heading(name, number, begun, path)
            found[name] = []
        elif line.strip():
            if not name:
                raise UserError(
                    f"{path}, line {number}: a text comes before the first class; begin the class with a "
                    "line '# class name'."
                )
            found[name].append(_LEADER.sub("", line.strip()))
    empty = [name for name, texts in found.items() if not texts]
    if empty:
        raise UserError(
            f"{path}, line {begun[empty[0]]}: '{empty[0]}' has no texts; write one a line below its name, "
            "or remove it."
        )
    return {name: tuple(texts) for name, texts in found.items()}


def _check_heading(name: str, number: int, begun: dict[str, int], path: Path) -> None:
    if not name:
        raise UserError(f"{path}, line {number}: the class has no name; write '# class name'.")
    if name in begun:
        raise UserError(
            f"{path}, line {number}: '{name}' began on line {begun[name]} already; merge the two."
        )
    begun[name] = number


class _DuplicateKeyError(Exception):
    """A key occurs twice in one JSON object; json itself would silently keep the last."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise _DuplicateKeyError(key)
        content[key] = value
    return content


def _is_text_list(texts: Any) -> bool:
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts)


def bank_for(data: str, class_names: Sequence[str], given: Path | str | None = None) -> DescriptionBank:
    """Descriptions of a dataset's classes: those given, else the package's own of its key, else templates.

    The package's own are passed over where the data have other classes than they describe, as a user's own
    under the key of an access-controlled dataset may.

    Args:
        data: data spec; a path has no descriptions of the package's.
        class_names: C names.
        given: what the user names, as :func:`load_descriptions` takes it.

    Raises:
        UserError: what was given is at fault or lacks a class.
    """
    if given is not None:
        bank = load_descriptions(given)
        bank.for_classes(class_names)
        return bank
    own = None if Path(data).exists() else packaged_descriptions(data)
    described = {class_key(name) for name in own.descriptions} if own else set()
    if own is None or not described.issuperset(map(class_key, class_names)):
        return template_bank(class_names)
    return own


def template_bank(class_names: Sequence[str]) -> DescriptionBank:
    """An ensemble of neutral medical templates for classes that nobody has described.

    Raises:
        UserError: No class is given, or two names differ in case and spacing alone.

    Example:
        >>> template_bank(["drusen"]).descriptions["drusen"][0]
        'a photo of a drusen.'
    """
    descriptions = {name: tuple(template.format(name) for template in TEMPLATES) for name in class_names}
    return DescriptionBank(descriptions, TEMPLATE_SOURCE)
