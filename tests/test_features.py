"""The feature cache: what is kept, what is recomputed, and what survives a killed process or a full disk."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from tests.plain_encoder import PlainEncoder
from vmfcoop.errors import UserError
from vmfcoop.features import CachedEncoder, FeatureCache, random_resized_crop


@pytest.fixture
def images(tmp_path):
    draw = np.random.default_rng(0)
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(draw.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def cached(folder):
    encoder = PlainEncoder()
    return encoder, CachedEncoder(encoder, folder)


def test_images_are_encoded_once_whatever_their_name(images, tmp_path):
    encoder, cache = cached(tmp_path / "cache")
    first = cache.encode_image_files(images, views=3)
    assert encoder.image_calls == 21
    moved = tmp_path / "renamed.png"
    moved.write_bytes(images[2].read_bytes())
    again, cache = cached(tmp_path / "cache")
    assert torch.equal(cache.encode_image_files([*images, moved], views=3), torch.cat([first, first[2:3]]))
    assert again.image_calls == 0
    assert torch.allclose(first.norm(dim=-1), torch.ones(7, 3))


def test_view_zero_is_the_plain_one_and_more_views_are_added(images, tmp_path):
    encoder, cache = cached(tmp_path / "cache")
    plain = cache.encode_image_files(images)
    expected = torch.stack([encoder.preprocess(Image.open(p)) for p in images])
    assert torch.allclose(plain[:, 0], PlainEncoder().encode_images(expected))
    views = cache.encode_image_files(images, views=4)
    assert torch.equal(views[:, :1], plain)
    assert not torch.allclose(views[:, 1], views[:, 2])


def test_views_are_the_same_in_every_cache(images, tmp_path):
    one = cached(tmp_path / "a")[1].encode_image_files(images, views=4)
    other = cached(tmp_path / "b")[1].encode_image_files(images[::-1], views=4)
    assert torch.equal(one, other.flip(0))


def test_batch_size_does_not_matter(images, tmp_path):
    one = cached(tmp_path / "a")[1].encode_image_files(images, batch_size=1)
    other = cached(tmp_path / "b")[1].encode_image_files(images, batch_size=64)
    assert torch.allclose(one, other, atol=1e-6)


def test_crops_keep_scale_and_ratio():
    image = Image.fromarray(np.arange(100 * 80, dtype=np.uint32).reshape(80, 100) % 251 / 251 * 255).convert(
        "RGB"
    )
    for view in range(1, 50):
        assert random_resized_crop(image, "0badcafe" * 8, view, (32, 24)).size == (24, 32)
    narrow = Image.new("RGB", (1000, 3))
    assert random_resized_crop(narrow, "0badcafe" * 8, 1, (32, 32)).size == (32, 32)


def test_texts_and_vocabulary_are_encoded_once(tmp_path):
    encoder, cache = cached(tmp_path)
    texts = ["a cyst", "a stone", "a cyst"]
    assert torch.equal(cache.encode_texts(texts), PlainEncoder().encode_texts(texts))
    vocabulary = cache.encode_vocabulary()
    calls = encoder.text_calls
    assert torch.equal(cache.encode_texts(texts[::-1])[0], cache.encode_texts(texts)[0])
    assert torch.equal(cache.encode_vocabulary(), vocabulary)
    assert encoder.text_calls == calls
    sample = cache.encode_vocabulary(5)
    assert sample.shape == (5, 16)
    assert all((vocabulary == row).all(dim=1).any() for row in sample)


def test_damaged_vocabulary_file_is_made_again(tmp_path):
    vocabulary = cached(tmp_path)[1].encode_vocabulary()
    file = next(tmp_path.glob("*-vocabulary-all.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(cached(tmp_path)[1].encode_vocabulary(), vocabulary)


def test_damaged_cache_is_put_aside(images, tmp_path):
    features = cached(tmp_path / "c")[1].encode_image_files(images)
    file = next((tmp_path / "c").glob("*.sqlite"))
    file.write_bytes(b"not a database at all" * 100)
    encoder, cache = cached(tmp_path / "c")
    assert torch.equal(cache.encode_image_files(images), features)
    assert encoder.image_calls == 7
    assert list((tmp_path / "c").glob("*.damaged"))


def test_unreadable_image_is_named_and_the_others_are_kept(images, tmp_path):
    images[5].write_bytes(images[5].read_bytes()[:60])
    encoder, cache = cached(tmp_path / "cache")
    with pytest.raises(UserError, match=r"5\.png"):
        cache.encode_image_files(images, batch_size=1)
    assert encoder.image_calls >= 4
    kept, cache = cached(tmp_path / "cache")
    cache.encode_image_files(images[:4])
    assert kept.image_calls == 0


def test_full_disk_is_one_sentence_and_keeps_what_is_there(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path / "small.sqlite", dim=256)
    cache.put([("kept", torch.ones(256))])
    connect = sqlite3.connect

    def small(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.execute("PRAGMA max_page_count = 8")  # SQLite then reports what it reports on a full disk
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(UserError, match="disk that holds .* is full; free some space"):
        cache.put([(str(i), torch.zeros(256)) for i in range(200)])
    monkeypatch.undo()
    assert set(cache.get(["kept", "0", "199"])) == {"kept"}


WRITER = textwrap.dedent("""
    import sys, pathlib, torch
    from vmfcoop.features import FeatureCache
    cache = FeatureCache(pathlib.Path(sys.argv[1]), dim=512)
    print("started", flush=True)
    for i in range(int(sys.argv[2]), int(sys.argv[3])):
        cache.put([(f"{i}-{j}", torch.full((512,), float(i))) for j in range(20)])
""")


def test_killed_while_writing_leaves_whole_batches(tmp_path):
    path = tmp_path / "cache.sqlite"
    arguments = [sys.executable, "-c", WRITER, str(path), "0", "1000000"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    process.stdout.readline()
    for _ in range(200):
        if len(FeatureCache(path, 512).get(["40-0"])):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cache = FeatureCache(path, 512)
    batches = [cache.get([f"{i}-{j}" for j in range(20)]) for i in range(5000)]
    assert {len(batch) for batch in batches} <= {0, 20}
    assert sum(map(bool, batches)) > 1
    assert all((value == i).all() for i, batch in enumerate(batches) for value in batch.values())


def test_two_processes_share_a_cache(tmp_path):
    path = tmp_path / "cache.sqlite"
    ranges = [("0", "30"), ("30", "60")]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), *r]) for r in ranges]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(FeatureCache(path, 512).get([f"{i}-{j}" for i in range(60) for j in range(20)])) == 1200


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cache folder .*file"):
        CachedEncoder(PlainEncoder(), tmp_path / "file")
