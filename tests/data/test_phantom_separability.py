"""Classes are told apart by what is drawn, not by raw pixels: a small CNN sees more than a linear probe."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.data.phantoms.core import PhantomDataset

TRAIN, TEST = 120, 40
EPOCHS, BATCH = 20, 32


def _draw(dataset: PhantomDataset) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images at half the size, ``(n, 3, 80, 80)`` in [-1, 1], and labels; for training and for test."""
    count = len(dataset.class_names)
    pixels = np.stack(
        [dataset.phantom(label, i).image for label in range(count) for i in range(TRAIN + TEST)]
    )
    images = avg_pool2d(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, 2)
    labels = torch.arange(count).repeat_interleave(TRAIN + TEST)
    held = torch.arange(len(images)) % (TRAIN + TEST) >= TRAIN
    return images[~held], labels[~held], images[held], labels[held]


def _probe_accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Logistic regression on pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=1e-3, max_iter=100).fit(x.flatten(1).numpy(), y.numpy())
    return float(probe.score(x_test.flatten(1).numpy(), y_test.numpy()))


def _cnn_accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Four convolutions of 24 to 96 channels, trained on mirrored images."""
    torch.manual_seed(0)
    widths = (3, 24, 48, 96, 96)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(96, int(y.max()) + 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            batch = x[rows].flip(3) if torch.rand(()) < 0.5 else x[rows]
            loss = cross_entropy(network(batch), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        return float((network(x_test).argmax(1) == y_test).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("key", PHANTOMS)
def test_a_small_network_sees_more_than_a_linear_probe(key: str) -> None:
    data = _draw(PHANTOMS[key])
    probe, network = _probe_accuracy(*data), _cnn_accuracy(*data)
    print(f"{key}: linear probe {probe:.3f}, small CNN {network:.3f}")
    assert network > probe + 0.1
