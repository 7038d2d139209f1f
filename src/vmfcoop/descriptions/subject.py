"""What descriptions are about: the classes, the modality and the organ of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from vmfcoop.descriptions.bank import class_key
from vmfcoop.errors import UserError, unknown_name


@dataclass(frozen=True)
class Subject:
    """The classes that a bank describes.

    Attributes:
        class_names: C names, each at most once, whatever its case, spaces, underscores and hyphens.
        modality: as a sentence would say it ("chest X-ray"); empty if unknown.
        organ: as a sentence would say it; empty if unknown.
        dataset: key of the dataset, if it has one.

    Raises:
        UserError: there is no class, or a name is empty or occurs twice.
    """

    class_names: tuple[str, ...]
    modality: str = ""
    organ: str = ""
    dataset: str | None = None

    def __post_init__(self) -> None:
        if not self.class_names:
            raise UserError("There are no classes; name them with --classes a,b.")
        seen = set()
        for name in self.class_names:
            if not name.strip():
                raise UserError("A class name is empty; name the classes with --classes a,b.")
            if class_key(name) in seen:
                raise UserError(f"The class '{name}' is named twice; name it once.")
            seen.add(class_key(name))


def dataset_subject(key: str) -> Subject:
    """Classes, modality and organ of a dataset of the registry, or of a phantom dataset.

    Raises:
        UserError: there is no such key, or the registry does not know its classes.

    Example:
        >>> dataset_subject("phantom-chest-xray").modality
        'chest X-ray'
    """
    from vmfcoop.data.phantoms import PHANTOMS
    from vmfcoop.data.registry import REGISTRY

    if key in PHANTOMS:
        phantom = PHANTOMS[key]
        return Subject(phantom.class_names, phantom.modality, phantom.anatomy, key)
    if key in REGISTRY:
        info = REGISTRY[key]
        if not info.class_names:
            raise UserError(f"The classes of '{key}' are not in the registry; name them with --classes a,b.")
        return Subject(tuple(info.class_names), info.modality, info.organ, key)
    raise unknown_name("dataset", key, [*PHANTOMS, *REGISTRY])
