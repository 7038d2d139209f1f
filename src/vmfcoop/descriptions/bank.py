"""Descriptions of classes: texts of a language model, or an ensemble of templates in their place."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        keys: dict[str, str] = {}
        for name, texts in self.descriptions.items():
            other = keys.setdefault(_key(name), name)
            if other != name:
                raise UserError(f"{self.source} has both '{other}' and '{name}'; merge them into one class.")
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
        by_key = {_key(name): name for name in self.descriptions}
        missing = [name for name in class_names if _key(name) not in by_key]
        if missing:
            nearest = difflib.get_close_matches(_key(missing[0]), by_key, n=1, cutoff=0.0)
            raise UserError(
                f"{self.source} has no descriptions of '{missing[0]}' (nearest is '{by_key[nearest[0]]}'); "
                "add them or rename the class."
            )
        return [self.descriptions[by_key[_key(name)]] for name in class_names]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over class names and texts; the source and the order of classes do not count."""
        content = json.dumps(self.descriptions, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def load_descriptions(path: Path | str) -> DescriptionBank:
    """Read descriptions from JSON.

    Either ``{"source": ..., "dataset": ..., "descriptions": {class: [text, ...]}}`` or plainly
    ``{class: [text, ...]}``. Texts are stripped of surrounding space.

    Raises:
        UserError: The file is missing, no JSON of that form, or at fault as ``DescriptionBank`` says.
    """
    path = Path(path)
    content = _read_json(path)
    meta: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("descriptions"), dict):
        meta = {key: value for key, value in content.items() if key != "descriptions"}
        content = content["descriptions"]
    if not isinstance(content, dict) or not all(_is_text_list(texts) for texts in content.values()):
        raise UserError(
            f'{path} is no description file; give it the form {{"class name": ["text", ...], ...}}.'
        )
    descriptions = {name: tuple(text.strip() for text in texts) for name, texts in content.items()}
    # The path is the source that messages can name; the file's own word on its source is kept in meta.
    return DescriptionBank(descriptions, str(path), meta)


def packaged_descriptions(key: str) -> DescriptionBank | None:
    """The descriptions that the package brings for a dataset key, or None for any other data.

    Example:
        >>> bank = packaged_descriptions("phantom-fundus")
        >>> len(bank.descriptions["glaucoma"])
        50
        >>> packaged_descriptions("lesions/") is None
        True
    """
    files = {path.stem: path for path in PACKAGED_BANKS.glob("*.json")}
    if key not in files:
        return None
    bank = load_descriptions(files[key])
    return dataclasses.replace(bank, source=f"the package's descriptions of {key}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path of the descriptions.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read; name a JSON file of descriptions.") from error
    except _DuplicateKeyError as error:
        raise UserError(f"{path} has '{error}' twice; merge the two into one.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON; correct it.") from error


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


def template_bank(class_names: Sequence[str]) -> DescriptionBank:
    """An ensemble of neutral medical templates for classes that nobody has described.

    Raises:
        UserError: No class is given, or two names differ in case and spacing alone.

    Example:
        >>> template_bank(["drusen"]).descriptions["drusen"][0]
        'a photo of a drusen.'
    """
    descriptions = {name: tuple(template.format(name) for template in TEMPLATES) for name in class_names}
    return DescriptionBank(descriptions, "templates")
