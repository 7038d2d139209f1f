"""Ways to adapt a frozen dual encoder to a support set, one file each."""

from vmfcoop.methods.base import Fitted, Method, Support
from vmfcoop.methods.registry import METHODS, make_method

__all__ = ["METHODS", "Fitted", "Method", "Support", "make_method"]
