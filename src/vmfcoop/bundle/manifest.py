"""What a bundle says of itself: its parts, and the checksum of every file."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from vmfcoop.backbones.installed import FileRecord
from vmfcoop.errors import UserError

FORMAT = 1
"""Of bundles; readers refuse a higher one."""

MANIFEST = "manifest.json"
RUN = "run"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# Names that become folders here: plain ones, never hidden, never a way out.
_Name = Annotated[str, StringConstraints(pattern=r"^[\w+@][\w.+@-]*$")]
_DataPath = Annotated[str, StringConstraints(pattern=r"^data/[\w+@][^\\/]*(/[^\\/]+)?$")]


class PackedBackbone(_Part):
    """A backbone in a bundle.

    Attributes:
        spec: as the run or the recipe names it.
        name: of its folder below ``backbones``, and the spec that loads it where the bundle is unpacked.
        fingerprint: of the encoder.
        licence: its name, where known.
        limits: what it may be used for, where known.
    """

    spec: str
    name: _Name
    fingerprint: str
    licence: str = ""
    limits: str = ""


class PackedData(_Part):
    """A dataset in a bundle.

    Attributes:
        name: of its folder below ``data``.
        spec: data spec as the run or the recipe has it.
        path: data spec in the bundle.
        groups: CSV of groups in the bundle, where one was given.
        images: number of images by split.
        fingerprint: of the table that ``path`` gives.
    """

    name: _Name
    spec: str
    path: _DataPath
    groups: str | None = None
    images: dict[str, int]
    fingerprint: str


class BundleManifest(_Part):
    """The first file of a bundle.

    Attributes:
        format: of bundles.
        kind: what was packed.
        name: of the run directory or the recipe in the bundle.
        title: of the run directory or the recipe where it was packed.
        vmfcoop: version that packed it.
        embedded: backbones that come with the package and are not in the bundle.
        backbones: backbones in the bundle.
        data: datasets in the bundle.
        descriptions: files of descriptions in the bundle.
        files: every file but this one, by its path in the bundle.
    """

    format: int = FORMAT
    kind: Literal["run", "recipe"]
    name: _Name
    title: str
    vmfcoop: str
    embedded: tuple[str, ...] = ()
    backbones: tuple[PackedBackbone, ...] = ()
    data: tuple[PackedData, ...] = ()
    descriptions: tuple[str, ...] = ()
    files: dict[str, FileRecord]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(record.bytes for record in self.files.values())

    def as_text(self) -> str:
        """JSON text, the same for the same content."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def parse_manifest(text: bytes, bundle: str) -> BundleManifest:
    """Read a bundle's manifest.

    Args:
        text: of the file.
        bundle: its name, for the sentences.

    Raises:
        UserError: it is damaged, or of a newer format.
    """
    try:
        content = json.loads(text)
        found = content.get("format") if isinstance(content, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise UserError(
                f"{bundle} was packed by a newer vmfcoop (format {found}; this version reads {FORMAT}); "
                "update vmfcoop."
            )
        return BundleManifest.model_validate(content)
    except UserError:
        raise
    except (ValidationError, ValueError, RecursionError) as error:
        raise UserError(f"{bundle} is no bundle, or its {MANIFEST} is damaged; pack it again.") from error
