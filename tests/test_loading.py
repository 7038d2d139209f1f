"""Reading ahead: the same pixels by threads and by worker processes, and what is said when a worker fails."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as vision

from tests.data.test_dicom import write as write_dicom
from tests.plain_encoder import PlainEncoder
from vmfcoop import loading
from vmfcoop.data.image_io import read_image
from vmfcoop.errors import UserError
from vmfcoop.features import CachedEncoder, content_hash
from vmfcoop.loading import (
    AHEAD,
    FEW,
    WORKERS,
    load_views,
    pins,
    possible_workers,
    random_resized_crop,
    shares_of,
    views_of,
    workers_that_pay,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="worker processes are for Linux")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def write_images(folder, count, size=(40, 30)):
    draw = np.random.default_rng(0)
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:03d}.png")
        Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path, 7)


def sources(images):
    return [(content_hash(image), image) for image in images]


def pixels_by_content(images, workers, views=3, per_batch=2):
    batches = list(load_views(PlainEncoder(), sources(images), views, per_batch, workers))
    return {c: p for batch in batches for c, p in zip(batch.contents, batch.pixels, strict=True)}


def test_views_are_the_transform_and_seeded_crops(images):
    encoder, content = PlainEncoder(), content_hash(images[0])
    image = read_image(images[0])
    views = views_of(image, content, 3, encoder)
    assert views.shape == (3, 3, 8, 8)
    assert torch.equal(views[0], encoder.preprocess(image))
    crop = vision.to_tensor(random_resized_crop(image, content, 2, (8, 8)))
    assert torch.equal(views[2], (crop - 0.5) / 0.5)
    assert not torch.equal(views[1], views[2])


def test_crops_of_a_content_are_what_they_always_were():
    """Caches and published numbers hang on them."""
    rows, columns = np.mgrid[:80, :100]
    image = Image.fromarray(np.stack([2 * rows, columns, rows + columns], axis=2).astype(np.uint8))
    corners = [np.asarray(random_resized_crop(image, "0badcafe" * 8, v, (16, 16)))[0, 0] for v in range(1, 4)]
    assert [corner.tolist() for corner in corners] == [[35, 30, 47], [12, 42, 48], [10, 11, 16]]


def test_crops_keep_scale_and_ratio():
    image = Image.fromarray(np.arange(100 * 80, dtype=np.uint32).reshape(80, 100) % 251 / 251 * 255).convert(
        "RGB"
    )
    for view in range(1, 50):
        assert random_resized_crop(image, "0badcafe" * 8, view, (32, 24)).size == (24, 32)
    narrow = Image.new("RGB", (1000, 3))
    assert random_resized_crop(narrow, "0badcafe" * 8, 1, (32, 32)).size == (32, 32)


@linux
def test_workers_give_the_same_pixels_for_every_kind_of_image(images, tmp_path):
    draw = np.random.default_rng(1)
    scan = write_dicom(tmp_path / "scan.dcm", draw.integers(0, 4000, (48, 48)).astype(np.uint16))
    volume = nibabel.Nifti1Image(draw.integers(0, 900, (20, 20, 12)).astype(np.int16), np.eye(4))
    nibabel.save(volume, tmp_path / "volume.nii.gz")
    slices = [Path(f"{tmp_path / 'volume.nii.gz'}#axis=2&slice={i}") for i in range(8)]
    every = [*images, scan, *slices, read_image(images[0])]
    by_threads, by_workers = pixels_by_content(every, 0), pixels_by_content(every, 2)
    assert list(by_threads) == [content for content, _ in sources(every)]
    assert by_threads.keys() == by_workers.keys()
    assert all(torch.equal(by_threads[content], by_workers[content]) for content in by_threads)


@linux
def test_features_do_not_depend_on_workers_and_training_s_random_numbers_neither(images, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    found = [
        CachedEncoder(PlainEncoder(), tmp_path / str(n), workers=n).encode_image_files(images, views=2)
        for n in (0, 2)
    ]
    assert torch.equal(*found)
    assert torch.equal(torch.rand(1), expected)


def test_slices_of_a_file_stay_with_one_worker():
    slices = [Path(f"v{n}.nii.gz#axis=2&slice={i}") for n in range(4) for i in range(10)]
    pictures = [Path(f"{n}.png") for n in range(20)]
    dealt = shares_of([(str(path), path) for path in [*slices, *pictures]], 4)
    assert [len(share) for share in dealt] == [15] * 4
    volumes = [{str(path).partition("#")[0] for _, path in share if "#" in str(path)} for share in dealt]
    assert sorted(len(files) for files in volumes) == [1, 1, 1, 1]
    assert len(set.union(*volumes)) == 4


def test_one_large_file_is_shared_by_all():
    slices = [(str(i), Path(f"v.nii.gz#axis=2&slice={i}")) for i in range(90)]
    dealt = shares_of(slices, 4)
    assert sorted(len(share) for share in dealt) == [21, 23, 23, 23]
    assert sorted(source for share in dealt for source in share) == sorted(slices)
    assert shares_of(slices[:1], 3) == [slices[:1], [], []]


def test_only_a_few_images_are_decoded_ahead(tmp_path, monkeypatch):
    opened, lock = [], threading.Lock()

    def counted(path):
        with lock:
            opened.append(path)
        return read_image(path)

    monkeypatch.setattr(loading, "read_image", counted)
    monkeypatch.setattr(loading, "DECODERS", 2)
    stream = load_views(PlainEncoder(), sources(write_images(tmp_path, 30)), 1, 1, workers=0)
    next(stream)
    time.sleep(0.3)
    assert 1 <= len(opened) <= 1 + AHEAD * 2
    stream.close()
    assert len(opened) <= 1 + AHEAD * 2


@linux
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_the_same_sentence_and_the_others_are_kept(images, tmp_path, workers):
    images[4].write_bytes(images[4].read_bytes()[:60])
    encoder = CachedEncoder(PlainEncoder(), tmp_path / "cache", workers=workers)
    with pytest.raises(UserError) as caught:
        encoder.encode_image_files(images)
    assert str(caught.value) == f"{images[4]} is truncated or not an image; replace or remove it."
    kept = PlainEncoder()
    CachedEncoder(kept, tmp_path / "cache").encode_image_files([*images[:4], *images[5:]])
    assert kept.image_calls <= (2 if workers == 0 else 4)


@linux
def test_a_killed_worker_is_one_sentence_and_the_next_run_goes_on(tmp_path, monkeypatch):
    images, this = write_images(tmp_path, 40), os.getpid()

    def deadly(path):
        if path == images[30] and os.getpid() != this:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(path)

    monkeypatch.setattr(loading, "read_image", deadly)
    with pytest.raises(UserError, match=rf"was killed, .*memory; .* is kept, .*{WORKERS}=0"):
        CachedEncoder(PlainEncoder(), tmp_path / "c", workers=2).encode_image_files(images, batch_size=1)
    assert multiprocessing.active_children() == []
    monkeypatch.setenv(WORKERS, "0")
    rest = PlainEncoder()
    features = CachedEncoder(rest, tmp_path / "c").encode_image_files(images)
    assert rest.image_calls < 40
    assert torch.equal(features, CachedEncoder(PlainEncoder(), tmp_path / "d").encode_image_files(images))


@linux
def test_other_errors_of_a_worker_keep_their_kind(images, tmp_path, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(loading, "read_image", broken)
    for workers in (0, 1):
        with pytest.raises(ZeroDivisionError, match="a fault of ours"):
            CachedEncoder(PlainEncoder(), tmp_path / "c", workers=workers).encode_image_files(images)


INTERRUPTED = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from tests.plain_encoder import PlainEncoder
    from vmfcoop import loading
    from vmfcoop.features import CachedEncoder

    def slow(path, read=loading.read_image):
        time.sleep(0.05)
        return read(path)

    loading.read_image = slow

    def tell(task, done, total):
        print(done, flush=True)

    folder = Path(sys.argv[1])
    encoder = CachedEncoder(PlainEncoder(), folder / "cache", tell, workers=2)
    try:
        encoder.encode_image_files(sorted(folder.glob("*.png")), batch_size=2)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
""")


@linux
def test_ctrl_c_ends_every_process_and_keeps_what_is_done(tmp_path):
    images = write_images(tmp_path, 200)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
    )
    while int(process.stdout.readline()) < 20:
        pass
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (stdout.splitlines()[-1], stderr) == ("interrupted", "")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    rest = PlainEncoder()
    CachedEncoder(rest, tmp_path / "cache", workers=0).encode_image_files(images)
    assert 0 < rest.image_calls <= 182


def _encode_as_a_daemon(folder, images, pipe):
    pipe.send(CachedEncoder(PlainEncoder(), folder, workers=2).encode_image_files(images).numpy())


@linux
def test_daemonic_processes_read_by_threads(images, tmp_path):
    here, there = multiprocessing.get_context("spawn").Pipe()
    arguments = tmp_path / "a", images, there
    child = multiprocessing.get_context("spawn").Process(
        target=_encode_as_a_daemon, args=arguments, daemon=True
    )
    child.start()
    there.close()
    found = here.recv()
    child.join()
    assert np.array_equal(found, CachedEncoder(PlainEncoder(), tmp_path / "b").encode_image_files(images))


class EncodesInside(Dataset):
    """A caller's own dataset, whose workers use the package."""

    def __init__(self, images, folder):
        self.images, self.folder = images, folder

    def __len__(self):
        return 4

    def __getitem__(self, item):
        return CachedEncoder(PlainEncoder(), self.folder / str(item)).encode_image_files(self.images)


@linux
def test_it_works_inside_the_workers_of_a_caller(images, tmp_path):
    found = list(DataLoader(EncodesInside(images, tmp_path), batch_size=None, num_workers=2))
    expected = CachedEncoder(PlainEncoder(), tmp_path / "alone").encode_image_files(images)
    assert len(found) == 4 and all(torch.equal(features, expected) for features in found)


@linux
def test_no_more_workers_than_shared_memory_holds(monkeypatch):
    monkeypatch.setattr(loading, "free_shared_memory", lambda: 64 * 2**20)
    assert possible_workers(8, 2**20) == 8
    assert possible_workers(8, 8 * 2**20) == 2
    assert possible_workers(8, 64 * 2**20) == 0
    assert possible_workers(0, 2**20) == 0
    monkeypatch.setattr(sys, "platform", "win32")
    assert possible_workers(8, 2**20) == 0


def test_workers_by_device_number_and_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "cores", lambda: 6)
    monkeypatch.setattr(loading, "available_memory", lambda: 2**35)
    pictures = [Path(f"{n}.png") for n in range(FEW)]
    assert workers_that_pay(CUDA, pictures) == 6
    assert workers_that_pay(CUDA, pictures[1:]) == 0
    assert workers_that_pay(CPU, pictures) == 0
    monkeypatch.setattr(loading, "available_memory", lambda: 3 * 2**30)
    assert workers_that_pay(CUDA, pictures) == 3
    monkeypatch.setattr(loading, "available_memory", lambda: None)
    assert workers_that_pay(CUDA, pictures) == 6

    plain = np.zeros((8, 8), np.uint16)
    scan = write_dicom(tmp_path / "plain.dcm", plain)
    assert workers_that_pay(CPU, [scan] * FEW) == 0
    stream = imagecodecs.jpeg2k_encode(plain, level=0, codecformat="j2k")
    packed = write_dicom(tmp_path / "packed.dcm", plain, JPEG2000Lossless, PixelData=encapsulate([stream]))
    assert workers_that_pay(CPU, [packed, *pictures]) == 6
    assert workers_that_pay(CPU, [Path(f"{packed}#window=40,400"), *pictures]) == 6
    assert workers_that_pay(CPU, [packed]) == 0
    (tmp_path / "bad.dcm").write_bytes(bytes(128) + b"DICM" + b"x" * 40)
    assert workers_that_pay(CPU, [tmp_path / "bad.dcm", *pictures]) == 0
    assert workers_that_pay(CPU, [tmp_path / "missing.dcm", *pictures]) == 0
    assert workers_that_pay(CPU, [Image.new("RGB", (4, 4))] * FEW) == 0


def test_batches_are_pinned_for_cuda_alone():
    assert pins(CUDA) and pins(torch.device("cuda:1"))
    assert not pins(CPU) and not pins(torch.device("mps"))


def test_number_of_workers_from_the_environment(images, tmp_path, monkeypatch):
    monkeypatch.setenv(WORKERS, "many")
    with pytest.raises(UserError, match=f"{WORKERS} is 'many'; set it to a number"):
        CachedEncoder(PlainEncoder(), tmp_path / "a").encode_image_files(images)
    started = []
    monkeypatch.setenv(WORKERS, "2")
    monkeypatch.setattr(loading, "possible_workers", lambda wanted, size: started.append(wanted) or 0)
    CachedEncoder(PlainEncoder(), tmp_path / "a").encode_image_files(images)
    assert started == [2]


@linux
def test_no_library_complains_of_the_fork(images, tmp_path):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from vmfcoop import load_backbone
        from vmfcoop.features import CachedEncoder
        encoder = CachedEncoder(load_backbone("phantom", "cpu"), Path(sys.argv[1]) / "cache", workers=2)
        encoder.encode_texts([f"a photo of a finding, number {n}" for n in range(40)])
        print(len(encoder.encode_image_files(sorted(Path(sys.argv[1]).glob("*.png")))))
    """)
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("7\n", "")
