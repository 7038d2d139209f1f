"""Descriptions of classes."""

from vmfcoop.descriptions.bank import (
    DescriptionBank,
    load_descriptions,
    packaged_descriptions,
    template_bank,
)

__all__ = ["DescriptionBank", "load_descriptions", "packaged_descriptions", "template_bank"]
