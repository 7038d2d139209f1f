"""Methods by name. A new method is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmfcoop.errors import unknown_name
from vmfcoop.methods.base import Method, make_config
from vmfcoop.methods.coop import CoOp
from vmfcoop.methods.vmfcoop import VMFCoOp
from vmfcoop.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method[Any]]] = {method.name: method for method in (ZeroShot, CoOp, VMFCoOp)}


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method[Any]:
    """A method by name, with settings by key.

    Raises:
        UserError: unknown method or setting (with the nearest names), or a value that does not fit.

    Example:
        >>> make_method("vmfcoop", {"epochs": "5"}).config.epochs
        5
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    method = METHODS[name]
    return method(make_config(method.Config, settings or {}))
