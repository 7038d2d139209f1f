"""The scikit-learn estimator over any method and any backbone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor
from torch.nn.functional import normalize

from vmfcoop.backbones import DualEncoder, load_backbone
from vmfcoop.data.image_io import as_rgb
from vmfcoop.descriptions.bank import DescriptionBank, load_descriptions, template_bank
from vmfcoop.errors import UserError
from vmfcoop.features import CachedEncoder
from vmfcoop.loading import ImageSource
from vmfcoop.methods import Support, make_method
from vmfcoop.methods.zero_shot_ensemble import TextCheck, check_texts
from vmfcoop.progress import ProgressReport, no_progress

Descriptions = DescriptionBank | Mapping[str, Sequence[str]] | str | Path


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Adapt a frozen CLIP to a handful of labelled images.

    ``X`` is a list of image files (``str`` or ``Path``), of PIL images or of arrays ``(H, W)`` or
    ``(H, W, 3)``, or a matrix of precomputed image features ``(n, d)`` of this backbone, whose rows are
    scaled to unit length.

    Args:
        backbone: spec string (see :func:`vmfcoop.load_backbone`) or a loaded encoder.
        method: name of a method: a key of ``vmfcoop.METHODS``, such as ``vmfcoop`` or ``vmf-posterior``.
        settings: the method's settings by name; unknown names are refused.
        descriptions: an LLM's descriptions of the classes (a bank, a mapping of class name to texts, or a
            JSON file); without them templates are filled with the class names.
        class_names: names for prompts by label, where labels are not the names; a sequence in the order of
            the sorted labels or a mapping.
        views: cached views of every support image in training, the plain one among them; 1 turns
            augmentation off. Precomputed features have one.
        seed: seed of training.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: of the towers of a backbone given by its spec: ``fp32``, ``bf16``, ``fp16``, or ``auto``
            (bf16 where the device is built for it).
        cache_dir: folder of cached features; default ``VMFCOOP_HOME/features``.
        cache_precision: of cached features: ``fp32``, or ``fp16`` for half the disk.
        progress: told of what takes long.

    Attributes:
        classes_: sorted labels, shape ``(C,)``.
        class_names_: their names in prompts.
        encoder_: the backbone.
        fitted_: the fitted method; ``fitted_.for_classes(names)`` classifies other classes.
        descriptions_: the bank that was used.
        n_features_in_: width d of the features.

    Example:
        >>> classifier = FewShotClassifier("biomedclip", descriptions="lesions.json")  # doctest: +SKIP
        >>> classifier.fit(["a.png", "b.png"], ["benign", "malignant"])  # doctest: +SKIP
        >>> classifier.predict_proba(["new.png"])  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str | DualEncoder = "biomedclip",
        method: str = "vmfcoop",
        *,
        settings: Mapping[str, Any] | None = None,
        descriptions: Descriptions | None = None,
        class_names: Sequence[str] | Mapping[Any, str] | None = None,
        views: int = 8,
        seed: int = 0,
        device: str = "auto",
        precision: str = "fp32",
        cache_dir: str | Path | None = None,
        cache_precision: str = "fp32",
        progress: ProgressReport | None = None,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.settings = settings
        self.descriptions = descriptions
        self.class_names = class_names
        self.views = views
        self.seed = seed
        self.device = device
        self.precision = precision
        self.cache_dir = cache_dir
        self.cache_precision = cache_precision
        self.progress = progress

    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> FewShotClassifier:
        """Learn from a support set.

        Args:
            X: images or features, n of them.
            y: n labels; every class needs at least one image, and there must be two classes.
            X_val: validation images, for methods that choose by them.
            y_val: their labels.

        Raises:
            UserError: unreadable images, unknown names, features of another width, missing descriptions.

        Warns:
            UserWarning: the method reads descriptions, and these recognise fewer of the images than chance.
        """
        method = make_method(self.method, {"seed": self.seed, **(self.settings or {})})
        features, y = self._checked_support(X, y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError("There is one class only; a classifier needs images of at least two.")
        self.class_names_ = self._prompt_names()
        self.descriptions_ = self._bank()
        val_features, val_labels = self._validation(X_val, y_val)
        support = Support(
            image_features=features,
            labels=torch.from_numpy(labels.astype(np.int64)),
            class_names=self.class_names_,
            descriptions=tuple(self.descriptions_.for_classes(self.class_names_)),
            validation_features=val_features,
            validation_labels=val_labels,
        )
        if method.reads_descriptions:
            self._warn_of_misleading_texts(method.title, check_texts(support, self.encoder_))
        self.config_ = method.config
        self.fitted_ = method.fit(support, self.encoder_, self.progress or no_progress)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Logits, shape ``(n, C)``; of two classes their difference, shape ``(n,)``, as scikit-learn does."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities, softmax of the logits, shape ``(n, C)``, columns as ``classes_``."""
        return torch.from_numpy(self._logits(X)).softmax(dim=1).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of every image, shape ``(n,)``."""
        logits = self._logits(X)
        return cast(NDArray[Any], self.classes_[logits.argmax(axis=1)])

    def _logits(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self, "fitted_")
        features = self._image_features(X, views=1) if _holds_images(X) else self._given_features(X)
        return cast(NDArray[np.float64], self.fitted_.logits(features[:, 0]).double().numpy())

    def _checked_support(self, X: Any, y: Any) -> tuple[Tensor, NDArray[Any]]:
        if _holds_images(X):
            self.encoder_ = self._load_encoder(None)
            self.n_features_in_ = self.encoder_.dim
            y = column_or_1d(y, warn=True)
            if len(y) != len(X):
                raise UserError(f"There are {len(X)} images but {len(y)} labels.")
            check_classification_targets(y)
            return self._image_features(X, self.views), y
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.encoder_ = self._load_encoder(X.shape[1])
        return self._unit_features(X), y

    def _load_encoder(self, width: int | None) -> CachedEncoder:
        """The backbone behind the feature cache; ``width`` is that of precomputed features, if any."""
        if isinstance(self.backbone, CachedEncoder):
            return self.backbone
        encoder = (
            load_backbone(self.backbone, self.device, self.precision)
            if isinstance(self.backbone, str)
            else self.backbone
        )
        folder = Path(self.cache_dir) if self.cache_dir else None
        return CachedEncoder(encoder, folder, self.progress or no_progress, self.cache_precision)

    def _image_features(self, X: Sequence[Any], views: int) -> Tensor:
        return self.encoder_.encode_image_files([_image_source(x) for x in X], views)

    def _given_features(self, X: Any) -> Tensor:
        return self._unit_features(validate_data(self, X, dtype=np.float32, reset=False))

    def _unit_features(self, X: NDArray[np.float32]) -> Tensor:
        """Checked feature rows ``(n, d)`` -> unit features of one view, ``(n, 1, d)``."""
        if X.shape[1] != self.encoder_.dim:
            raise UserError(
                f"X has {X.shape[1]} columns, features of '{self.encoder_.name}' have {self.encoder_.dim}; "
                "give features of this backbone, or images."
            )
        return normalize(torch.from_numpy(np.array(X)), dim=1)[:, None]

    def _prompt_names(self) -> tuple[str, ...]:
        if self.class_names is None:
            return tuple(str(label).replace("_", " ") for label in self.classes_)
        if not isinstance(self.class_names, Mapping):
            if len(self.class_names) != len(self.classes_):
                raise UserError(
                    f"There are {len(self.class_names)} class names for {len(self.classes_)} classes."
                )
            return tuple(self.class_names)
        missing = [label for label in self.classes_.tolist() if label not in self.class_names]
        if missing:
            raise UserError(f"class_names has no name for the label {missing[0]!r}.")
        return tuple(self.class_names[label] for label in self.classes_.tolist())

    def _bank(self) -> DescriptionBank:
        given = self.descriptions
        if given is None:
            return template_bank(self.class_names_)
        if isinstance(given, DescriptionBank):
            return given
        if isinstance(given, Mapping):
            single = next((name for name, texts in given.items() if isinstance(texts, str)), None)
            if single is not None:
                raise UserError(f"The descriptions of '{single}' are one text; give a list of texts.")
            return DescriptionBank({name: tuple(texts) for name, texts in given.items()}, "the given mapping")
        return load_descriptions(given)

    def _warn_of_misleading_texts(self, method: str, check: TextCheck) -> None:
        if check.misleads:
            warnings.warn(
                f"{self.descriptions_.source}: on this backbone the texts recognise {check.recognised} of "
                f"the {check.images} support and validation images, fewer than chance ({check.chance:.0%}), "
                f"and {method} reads them; look whether the texts of two classes are swapped, and compare "
                "with other texts or a method that reads none.",
                UserWarning,
                stacklevel=3,
            )

    def _validation(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        if X is None or len(X) == 0:
            return torch.empty(0, self.encoder_.dim), torch.empty(0, dtype=torch.int64)
        features = self._image_features(X, 1) if _holds_images(X) else self._given_features(X)
        unknown = sorted(set(np.asarray(y).tolist()) - set(self.classes_.tolist()))
        if unknown:
            raise UserError(f"The validation label {unknown[0]!r} does not occur in the support set.")
        return features[:, 0], torch.from_numpy(np.searchsorted(self.classes_, y).astype(np.int64))


def _holds_images(X: Any) -> bool:
    """Whether X is images (files, PIL images, arrays) rather than a matrix of features."""
    if isinstance(X, np.ndarray) and X.dtype != object:
        return X.ndim > 2 or X.dtype.kind in "US"
    if not isinstance(X, Sequence | np.ndarray) or isinstance(X, str) or len(X) == 0:
        return False
    return isinstance(X[0], str | Path | Image.Image) or (isinstance(X[0], np.ndarray) and X[0].ndim > 1)


def _image_source(x: Any) -> ImageSource:
    if isinstance(x, str | Path):
        return Path(x)
    return as_rgb(x)
