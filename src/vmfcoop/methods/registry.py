"""Methods by name. A new method is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmfcoop.errors import unknown_name
from vmfcoop.methods.base import Method, make_config
from vmfcoop.methods.biomedcoop import BiomedCoOp
from vmfcoop.methods.clap import CLAP
from vmfcoop.methods.clip_adapter import CLIPAdapter
from vmfcoop.methods.cocoop import CoCoOp
from vmfcoop.methods.coop import CoOp
from vmfcoop.methods.gda import GDA
from vmfcoop.methods.kgcoop import KgCoOp
from vmfcoop.methods.linear_probe import LinearProbe
from vmfcoop.methods.lp_plus_plus import LPPlusPlus
from vmfcoop.methods.prograd import ProGrad
from vmfcoop.methods.prolip import ProLIP
from vmfcoop.methods.tip_adapter import TipAdapter
from vmfcoop.methods.tip_adapter_f import TipAdapterF
from vmfcoop.methods.vmf_posterior import VMFPosterior
from vmfcoop.methods.vmf_posterior_plus import VMFCoOpPlus
from vmfcoop.methods.vmfcoop import VMFCoOp
from vmfcoop.methods.zero_shot import ZeroShot
from vmfcoop.methods.zero_shot_ensemble import ZeroShotEnsemble

_ORDER: tuple[type[Method[Any]], ...] = (
    ZeroShot,
    ZeroShotEnsemble,
    CoOp,
    CoCoOp,
    KgCoOp,
    ProGrad,
    BiomedCoOp,
    CLIPAdapter,
    TipAdapter,
    TipAdapterF,
    LinearProbe,
    LPPlusPlus,
    GDA,
    CLAP,
    ProLIP,
    VMFCoOp,
    VMFPosterior,
    VMFCoOpPlus,
)
METHODS: dict[str, type[Method[Any]]] = {method.name: method for method in _ORDER}
"""In the order of tables."""


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
