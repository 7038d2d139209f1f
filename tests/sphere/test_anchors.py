"""Semantic anchors."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor

from vmfcoop.errors import UserError
from vmfcoop.sphere import VonMisesFisher, anchors, fit_vmf, semantic_anchors


def rows(count: int, dim: int, seed: int, kappa: float = 200.0, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(dim, dtype=dtype), dim=-1)
    return VonMisesFisher(direction, kappa).sample((count,))


@pytest.mark.parametrize("estimator", ["newton", "banerjee", "debiased"])
def test_anchor_is_the_weighted_direction(estimator: str) -> None:
    vocabulary, classes = rows(300, 32, 0, kappa=10.0), [rows(n, 32, n) for n in (4, 50, 7)]
    result = semantic_anchors(vocabulary, classes, estimator)
    common = fit_vmf(vocabulary, estimator)
    for anchor, field, descriptions in zip(result.anchors, result.class_fields, classes, strict=True):
        own = fit_vmf(descriptions, estimator)
        total = common.concentration * common.mean_direction + own.concentration * own.mean_direction
        torch.testing.assert_close(anchor, total / total.norm(), rtol=1e-13, atol=1e-14)
        assert field.count == len(descriptions)
        torch.testing.assert_close(field.concentration, own.concentration, rtol=0, atol=0)


def test_anchor_is_the_mode_of_the_product_density() -> None:
    """At every direction near the anchor, the product of the two densities is lower than at the anchor."""
    vocabulary, descriptions = rows(100, 5, 1, kappa=8.0), rows(20, 5, 2, kappa=8.0)
    result = semantic_anchors(vocabulary, [descriptions])
    laws = [result.vocabulary_field.distribution(), result.class_fields[0].distribution()]
    torch.manual_seed(3)
    around = torch.nn.functional.normalize(
        result.anchors + 0.1 * torch.randn(500, 5, dtype=torch.float64), dim=-1
    )
    product = sum(law.log_prob(around) for law in laws)
    assert (product < sum(law.log_prob(result.anchors[0]) for law in laws)).all()


def test_a_fitted_vocabulary_gives_the_same_anchors() -> None:
    vocabulary, classes = rows(100, 16, 1), [rows(5, 16, 2), rows(6, 16, 3)]
    field = fit_vmf(vocabulary)
    from_rows, from_fit = semantic_anchors(vocabulary, classes), semantic_anchors(field, classes)
    torch.testing.assert_close(from_rows.anchors, from_fit.anchors, rtol=0, atol=0)
    assert from_fit.vocabulary_field is field


def test_the_more_concentrated_field_weighs_more() -> None:
    vocabulary = rows(200, 64, 1, kappa=50.0)
    tight, loose = rows(50, 64, 2, kappa=5_000.0), rows(50, 64, 2, kappa=50.0)
    result = semantic_anchors(vocabulary, [tight, loose])
    to_class = [
        (a * f.mean_direction).sum().item() for a, f in zip(result.anchors, result.class_fields, strict=True)
    ]
    assert to_class[0] > 0.999 > to_class[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_unit_length(dtype: torch.dtype) -> None:
    result = semantic_anchors(rows(40, 512, 1, dtype=dtype), [rows(5, 512, 2, dtype=dtype)] * 3)
    assert result.anchors.dtype == dtype and result.anchors.shape == (3, 512)
    assert result.vocabulary_field.concentration.dtype == torch.float64
    torch.testing.assert_close(result.anchors.norm(dim=-1), torch.ones(3, dtype=dtype))


def test_too_few_descriptions_names_the_class() -> None:
    for count in (0, 1):
        with pytest.raises(UserError, match=f"Class 1 needs at least 2 descriptions .* has {count}"):
            semantic_anchors(rows(9, 8, 1), [rows(5, 8, 2), rows(5, 8, 3)[:count]])


def test_other_errors_name_the_class() -> None:
    vocabulary, good = rows(9, 8, 1), rows(5, 8, 2)
    with pytest.raises(UserError, match=r"class 1 have shape \(5, 7\); needed is \(n, 8\)"):
        semantic_anchors(vocabulary, [good, rows(5, 7, 3)])
    with pytest.raises(UserError, match="class 2: Row 0 has length 2"):
        semantic_anchors(vocabulary, [good, good, 2 * good])
    with pytest.raises(UserError, match="class 0: All rows are equal"):
        semantic_anchors(vocabulary, [good[:1].repeat(4, 1)])


def test_opposite_fields_have_no_anchor() -> None:
    vocabulary = rows(9, 8, 1)
    with pytest.raises(UserError, match="class 0 cancel"):
        semantic_anchors(vocabulary, [-vocabulary])


def test_no_classes_and_batched_vocabulary() -> None:
    with pytest.raises(UserError, match="no classes"):
        semantic_anchors(rows(9, 8, 1), [])
    with pytest.raises(UserError, match="one field"):
        semantic_anchors(torch.stack([rows(9, 8, 1), rows(9, 8, 2)]), [rows(5, 8, 2)])


def test_docstring_examples() -> None:
    results = doctest.testmod(anchors)
    assert results.attempted > 0 and results.failed == 0
