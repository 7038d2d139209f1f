"""The page of explained images: one HTML file with everything in it, nothing asked of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vmfcoop.__about__ import __version__
from vmfcoop.explain.map_method import MapMethod
from vmfcoop.explain.render import BAR_LABEL, Caption, colour_bar, percent
from vmfcoop.reporting.page import page_template, picture_uri

SIDES = ((30, 512), (200, 320))
"""Most images of a page, and the longer side of their pictures in pixels: a page of many must still open."""
LEAST_SIDE = 224
TOP_CLASSES = 5
_QUALITY = 82


@dataclass(frozen=True)
class Card:
    """One image on the page.

    Attributes:
        name: of the image.
        caption: what the figure says.
        classes: the most probable, with shares in [0, 1] and in words, the highest first.
        original, overlay: data URIs.
        width, height: of both in pixels.
        files: the image's files by kind, relative to the page.
    """

    name: str
    caption: Caption
    classes: tuple[tuple[str, float, str], ...]
    original: str
    overlay: str
    width: int
    height: int
    files: Mapping[str, str]


class ExplanationPage:
    """Gathers cards.

    Args:
        count: how many images there will be.

    Attributes:
        side: the longest side of pictures that shall be added, in pixels.
    """

    def __init__(self, count: int) -> None:
        self.side = next((side for most, side in SIDES if count <= most), LEAST_SIDE)
        self._cards: list[Card] = []

    def add(
        self,
        name: str,
        caption: Caption,
        probabilities: Mapping[str, float],
        original: Image.Image,
        overlay: Image.Image,
        files: Mapping[str, str],
    ) -> None:
        """Add an image, its overlay and the files that the page points to."""
        best = sorted(probabilities.items(), key=lambda item: -item[1])[:TOP_CLASSES]
        self._cards.append(
            Card(
                name=name,
                caption=caption,
                classes=tuple((label, share, percent(share)) for label, share in best),
                original=_jpeg(original),
                overlay=_jpeg(overlay),
                width=original.width,
                height=original.height,
                files=files,
            )
        )

    def html(
        self, run: Mapping[str, Any], method: type[MapMethod], standing: Sequence[str], neutral: bool
    ) -> str:
        """The page.

        Args:
            run: facts of the run by name.
            method: how the maps were made.
            standing: what the checks of the method on the run found: state and words.
            neutral: whether names of images were replaced, which the page says.
        """
        state, words = standing
        return page_template("explain.html.j2").render(
            parts=[("images", "Images"), ("made", "How these maps were made")],
            cards=self._cards,
            run=run,
            method=method,
            state=state,
            standing=words,
            neutral=neutral,
            bar=picture_uri(colour_bar(256, 12), "PNG"),
            bar_label=BAR_LABEL,
            version=__version__,
        )


def _jpeg(picture: Image.Image) -> str:
    return picture_uri(picture, "JPEG", quality=_QUALITY, subsampling=0)
