"""What the package's pages share: templates, pictures inside a page, settings and durations in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image


def page_template(name: str) -> Template:
    """A page of this package: text is escaped, and a name that is not given is an error."""
    environment = Environment(
        loader=PackageLoader("vmfcoop.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def picture_uri(picture: Image.Image, kind: str, **settings: Any) -> str:
    """A picture as a ``data:`` address, ``JPEG`` or ``PNG``, with settings as Pillow takes them.

    Example:
        >>> picture_uri(Image.new("RGB", (4, 4)), "PNG")[:22]
        'data:image/png;base64,'
    """
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def duration(seconds: float) -> str:
    """Seconds in words: ``1 h 2 min``.

    Example:
        >>> duration(3725.0), duration(75.0), duration(1.5)
        ('1 h 2 min', '1 min 15 s', '1.5 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def flat_settings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines: ``methods[0].settings.epochs`` and its value.

    Example:
        >>> list(flat_settings({"data": [{"spec": "btmri"}], "seeds": [1, 2]}))
        [('data[0].spec', 'btmri'), ('seeds', '1, 2')]
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat_settings(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and _nested(value):
        for i, inner in enumerate(value):
            yield from flat_settings(inner, f"{path}[{i}]")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield path, ", ".join(map(str, value))
    else:
        yield path, str(value) if not isinstance(value, Mapping) else "(none)"


def _nested(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping | list | tuple) for value in values)
