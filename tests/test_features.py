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
from vmfcoop.features import CachedEncoder, FeatureCache, first_batch_size, is_out_of_memory


@pytest.fixture
def images(tmp_path):
    draw = np.random.default_rng(0)
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(draw.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def cached(folder, **options):
    encoder = PlainEncoder()
    return encoder, CachedEncoder(encoder, folder, **options)


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


class SmallMemory(PlainEncoder):
    """Runs out of memory beyond a number of images at once, as CUDA says it."""

    def __init__(self, room, error=None):
        super().__init__()
        self.room, self.sizes = room, []
        self.error = error or torch.cuda.OutOfMemoryError("CUDA out of memory.")

    def encode_images(self, pixels):
        self.sizes.append(len(pixels))
        if len(pixels) > self.room:
            raise self.error
        return super().encode_images(pixels)


def test_batches_are_halved_until_they_fit_and_no_work_is_lost(images, tmp_path):
    small = SmallMemory(room=3)
    cache = CachedEncoder(small, tmp_path / "a")
    found = cache.encode_image_files(images, views=2, batch_size=14)
    assert small.sizes == [14, 7, 3, 3, 3, 3, 2]
    assert small.image_calls == 14
    assert torch.allclose(found, cached(tmp_path / "b")[1].encode_image_files(images, views=2), atol=1e-6)
    # What fitted is remembered, for larger wishes too.
    small.sizes.clear()
    cache.encode_image_files(images, views=4, batch_size=28)
    assert max(small.sizes) <= 3


def test_memory_that_runs_out_later_keeps_what_is_done(images, tmp_path):
    small = SmallMemory(room=4)
    cache = CachedEncoder(small, tmp_path)
    cache.encode_image_files(images[:4], batch_size=4)
    small.room = 1
    cache.encode_image_files(images, batch_size=4)
    assert small.sizes == [4, 3, 1, 1, 1]
    assert small.image_calls == 7


def test_no_room_for_one_image_is_one_sentence(images, tmp_path):
    with pytest.raises(UserError, match=r"memory of the device 'cpu' has no room for one image.*--precision"):
        CachedEncoder(SmallMemory(room=0), tmp_path).encode_image_files(images, batch_size=4)


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 9 GB)",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_every_device_s_words_for_short_memory(message, images, tmp_path):
    small = SmallMemory(2, RuntimeError(message))
    CachedEncoder(small, tmp_path).encode_image_files(images, batch_size=7)
    assert small.sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_other_errors_of_the_tower_pass(images, tmp_path):
    small = SmallMemory(2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        CachedEncoder(small, tmp_path).encode_image_files(images, batch_size=7)
    assert small.sizes == [7]


def test_first_batches_by_device_and_resolution():
    cuda = torch.device("cuda")
    assert [first_batch_size(cuda, (side, side), "fp32") for side in (224, 448, 10_000)] == [111, 27, 1]
    sizes = [first_batch_size(torch.device("cpu"), (448, 448), number) for number in ("fp32", "bf16", "fp16")]
    assert sizes == [2, 4, 4]


def test_half_precision_cache_gives_the_same_numbers_computed_or_read(images, tmp_path):
    texts = ["a cyst", "a stone"]
    exact = cached(tmp_path / "exact")[1]
    cache = cached(tmp_path / "half", cache_precision="fp16")[1]
    computed = cache.encode_image_files(images, views=2), cache.encode_texts(texts), cache.encode_vocabulary()
    again, cache = cached(tmp_path / "half", cache_precision="fp16")
    read = cache.encode_image_files(images, views=2), cache.encode_texts(texts), cache.encode_vocabulary()
    assert (again.image_calls, again.text_calls) == (0, 0)
    whole = exact.encode_image_files(images, views=2), exact.encode_texts(texts), exact.encode_vocabulary()
    for one, other, numbers in zip(computed, read, whole, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == torch.float32 and not torch.equal(one, numbers)
        assert torch.allclose(one.norm(dim=-1), torch.ones(one.shape[:-1]), atol=1e-6)
        assert (one.double() * numbers.double()).sum(dim=-1).min() > 1 - 1e-6


def test_caches_of_two_precisions_do_not_touch_each_other(images, tmp_path):
    exact = cached(tmp_path)[1].encode_image_files(images)
    _, half = cached(tmp_path, cache_precision="fp16")
    half.encode_image_files(images)
    half.encode_vocabulary()
    assert {file.name for file in tmp_path.glob("plain*")} == {
        "plain-16-0.sqlite",
        "plain-16-0-stored-fp16.sqlite",
        "plain-16-0-stored-fp16-vocabulary-all.safetensors",
    }
    encoder, again = cached(tmp_path)
    assert torch.equal(again.encode_image_files(images), exact) and encoder.image_calls == 0
    with pytest.raises(UserError, match="Unknown cache precision 'fp8'"):
        cached(tmp_path, cache_precision="fp8")


def test_a_cache_in_half_precision_takes_half_the_disk(tmp_path):
    draw = torch.Generator().manual_seed(0)
    vectors = [(f"image/{i:064x}/0", torch.randn(512, generator=draw)) for i in range(400)]
    sizes = {}
    for precision in ("fp32", "fp16"):
        cache = FeatureCache(tmp_path / precision, 512, precision)
        assert cache.put(vectors).keys() == cache.get([key for key, _ in vectors]).keys()
        sizes[precision] = cache.path.stat().st_size / 400
    assert sizes["fp32"] < 1.3 * 4 * 512
    assert sizes["fp16"] < 0.62 * sizes["fp32"]


def test_speed_is_of_what_was_computed(images, tmp_path):
    told = []
    _, cache = cached(tmp_path, progress=lambda *step: told.append(step))
    assert cache.images_per_second is None
    cache.encode_image_files(images[:4])
    cache.encode_image_files(images, views=2)
    first = cache.images_per_second
    assert first > 0
    cache.encode_image_files(images, views=2)
    assert cache.images_per_second == first
    assert told[0] == ("encode images", 0, 4) and told[-1] == ("encode images", 14, 14)


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
