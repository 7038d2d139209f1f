"""Datasets of images: reading files, splits, support sets."""

from vmfcoop.data.dataset import Dataset, load_dataset
from vmfcoop.data.few_shot import FewShotIndices, base_novel_classes, restrict_classes, sample_support
from vmfcoop.data.image_io import IMAGE_SUFFIXES, as_rgb, is_image_path, read_image
from vmfcoop.data.references import ImageReference, parse_reference, with_window
from vmfcoop.data.registry import KNOWN_DATASETS
from vmfcoop.data.splits import split_indices

__all__ = [
    "IMAGE_SUFFIXES",
    "KNOWN_DATASETS",
    "Dataset",
    "FewShotIndices",
    "ImageReference",
    "as_rgb",
    "base_novel_classes",
    "is_image_path",
    "load_dataset",
    "parse_reference",
    "read_image",
    "restrict_classes",
    "sample_support",
    "split_indices",
    "with_window",
]
