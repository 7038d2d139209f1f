"""The optimisation loop against SGD written out."""

import math

import pytest
import torch

from vmfcoop.training import Batch, TrainingConfig, learning_rate, optimise


def quadratic(target):
    def objective(batch: Batch):
        return {
            "loss": (batch.features.mean() * 0 + (objective.x - target) ** 2).sum(),
            "extra": torch.tensor(2.0),
        }

    objective.x = torch.zeros(3, requires_grad=True)
    return objective


def test_sgd_with_momentum_decay_warmup_and_cosine():
    config = TrainingConfig(
        epochs=4, batch_size=2, learning_rate=0.1, momentum=0.9, weight_decay=0.01, warmup_epochs=1
    )
    objective = quadratic(torch.tensor([1.0, -2.0, 3.0]))
    optimise(objective, [objective.x], torch.ones(4, 1, 2), torch.zeros(4, dtype=torch.long), config)

    x, velocity = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    for epoch in range(4):
        rate = 1e-5 if epoch == 0 else 0.05 * (1 + math.cos(math.pi * epoch / 4))
        for _ in range(2):
            gradient = 2 * (x - target) + 0.01 * x
            velocity = 0.9 * velocity + gradient
            x = x - rate * velocity
    assert torch.allclose(objective.x.detach().double(), x, atol=1e-6)


def test_every_image_is_seen_once_an_epoch_and_the_last_batch_is_kept():
    seen, progress = [], []

    def objective(batch: Batch):
        seen.append(batch.labels)
        progress.append(batch.progress)
        return {"loss": (batch.features * weight).sum()}

    weight = torch.zeros(2, requires_grad=True)
    config = TrainingConfig(epochs=3, batch_size=4)
    history = optimise(objective, [weight], torch.ones(10, 1, 2), torch.arange(10), config)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    for epoch in range(3):
        assert sorted(torch.cat(seen[3 * epoch : 3 * epoch + 3]).tolist()) == list(range(10))
    assert progress[0] == 0 and progress[-1] == 1 and progress == sorted(progress)
    assert [row["epoch"] for row in history] == [0, 1, 2]


def test_every_view_is_used():
    features = torch.arange(5.0)[None, :, None].expand(6, 5, 2)
    seen = set()

    def objective(batch: Batch):
        seen.update(batch.features[:, 0].tolist())
        return {"loss": (batch.features * weight).sum()}

    weight = torch.zeros(2, requires_grad=True)
    optimise(objective, [weight], features, torch.zeros(6, dtype=torch.long), TrainingConfig(epochs=20))
    assert seen == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_history_is_the_mean_over_images():
    def objective(batch: Batch):
        value = batch.labels.float().mean()
        return {"loss": (batch.features * weight).sum() * 0 + value, "term": value}

    weight = torch.zeros(2, requires_grad=True)
    history = optimise(objective, [weight], torch.ones(5, 1, 2), torch.arange(5), TrainingConfig(epochs=1))
    assert history[0]["term"] == pytest.approx(2.0)


def test_learning_rate_ends_low():
    config = TrainingConfig(epochs=50)
    rates = [learning_rate(epoch, config) for epoch in range(50)]
    assert rates[0] == 1e-5
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.01 * config.learning_rate
