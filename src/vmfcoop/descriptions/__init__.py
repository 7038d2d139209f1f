"""Descriptions of classes."""

from vmfcoop.descriptions.bank import (
    TEMPLATE_SOURCE,
    DescriptionBank,
    bank_for,
    load_descriptions,
    packaged_descriptions,
    template_bank,
)

__all__ = [
    "TEMPLATE_SOURCE",
    "DescriptionBank",
    "bank_for",
    "load_descriptions",
    "packaged_descriptions",
    "template_bank",
]
