"""Fetching, against a server that speaks the hub's protocol: what arrives, is resumed, is refused."""

import hashlib
import json
import multiprocessing
import warnings
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from vmfcoop.data import downloads, load_dataset
from vmfcoop.data.downloads import Remote, download
from vmfcoop.data.fetch import checksums_file, downloads_folder, fetch
from vmfcoop.data.installed import dataset_home, datasets_folder, is_here, read_source
from vmfcoop.data.registry import REGISTRY, find
from vmfcoop.errors import UserError

from .archive_server import COMMIT, serving, split_archive, zip_of

NAMES = REGISTRY["btmri"].class_names
HUB_PATH = "/datasets/TahaKoleilat/BiomedCoOp/resolve/main/BTMRI.zip"
SMALL = {"train": 3, "val": 1, "test": 2}


@pytest.fixture
def server():
    with serving() as running:
        running.files[HUB_PATH] = split_archive("BTMRI", NAMES)
        yield running


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty home and hub cache, no token, no waiting; the hub may be asked."""
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


def fetch_quietly(key, server, **options):
    """The small archive differs from the registry in its counts, which is warned of."""
    with pytest.warns(UserWarning, match="12/4/8 images in train/val/test; the registry has 2854/1141/1717"):
        return fetch(key, endpoint=server.address, **options)


def left_behind():
    """Hidden files and folders that something unfinished left, locks aside."""
    places = [*datasets_folder().glob(".*"), *downloads_folder().glob(".*")]
    return [path.name for path in places if path.suffix != ".lock"]


def test_what_is_fetched_is_what_load_dataset_reads(server):
    place = fetch_quietly("btmri", server)
    data = load_dataset("btmri")
    assert place == dataset_home("btmri") and data.class_names == NAMES
    assert {split: sum(counts.values()) for split, counts in data.counts().items()} == {
        "train": 12,
        "val": 4,
        "test": 8,
    }
    assert not (downloads_folder() / "BTMRI.zip").exists() and left_behind() == []


def test_the_record_says_what_came_from_where(server):
    fetch_quietly("btmri", server)
    source = read_source("btmri")
    content = server.files[HUB_PATH]
    assert source["source"] == {
        "path": "BTMRI.zip",
        "address": "hf://datasets/TahaKoleilat/BiomedCoOp/BTMRI.zip",
        "sha256": hashlib.sha256(content).hexdigest(),
        "revision": COMMIT,
        "bytes": len(content),
    }
    assert source["files"] == 24 and source["splits"] == {"train": 12, "val": 4, "test": 8}
    assert source["data"] == "images/BTMRI/split_BTMRI.json" and len(source["remarks"]) == 1


def test_what_is_here_is_not_downloaded_again(server):
    fetch_quietly("btmri", server)
    before = len(server.requests)
    assert fetch("btmri", endpoint=server.address) == dataset_home("btmri")
    assert len(server.requests) == before


def test_replace_puts_a_new_one_there(server):
    fetch_quietly("btmri", server)
    (dataset_home("btmri") / "mine.txt").write_text("x")
    fetch_quietly("btmri", server, replace=True)
    assert is_here("btmri") and not (dataset_home("btmri") / "mine.txt").exists()


def test_a_failed_replace_leaves_the_old_one(server):
    fetch_quietly("btmri", server)
    server.files[HUB_PATH] = zip_of({"BTMRI/readme.txt": b"nothing"})
    with pytest.raises(UserError, match="has changed since it was fetched before"):
        fetch("btmri", endpoint=server.address, replace=True)
    checksums_file().unlink()
    with pytest.raises(UserError, match=r"holds no split_\*.json"):
        fetch("btmri", endpoint=server.address, replace=True)
    assert len(load_dataset("btmri")) == 24 and left_behind() == []


def test_an_unpublished_change_of_the_archive_is_noticed(server):
    fetch_quietly("btmri", server)
    server.files[HUB_PATH] = split_archive("BTMRI", NAMES, {"train": 4, "val": 1, "test": 1})
    with pytest.raises(UserError, match=r"remove its entry from '.*checksums.json'"):
        fetch("btmri", endpoint=server.address, replace=True)


def test_other_class_names_are_remarked(server):
    server.files[HUB_PATH] = split_archive("BTMRI", NAMES[::-1])
    with pytest.warns(UserWarning) as caught:
        fetch("btmri", endpoint=server.address)
    assert "has the classes normal brain, pituitary tumor" in str(caught[0].message)
    assert load_dataset("btmri").class_names == NAMES[::-1]


def test_a_connection_that_breaks_is_resumed_where_it_broke(server):
    size = len(server.files[HUB_PATH])
    server.close_after = [1000, 500]
    fetch_quietly("btmri", server)
    assert [request[2] for request in server.gets()] == [None, "bytes=1000-", "bytes=1500-"]
    assert is_here("btmri") and size > 1500


def test_a_later_command_goes_on_from_the_part(server):
    server.close_after = [1000] + [0] * downloads.ATTEMPTS
    with pytest.raises(UserError, match="stopped after 0.0 MB .*repeat the command, it goes on from there"):
        fetch("btmri", endpoint=server.address)
    assert not is_here("btmri") and len(left_behind()) == 1
    server.close_after, server.requests[:] = [], []
    fetch_quietly("btmri", server)
    assert [request[2] for request in server.gets()] == ["bytes=1000-"] and left_behind() == []


def test_a_server_that_cannot_resume_starts_over(server):
    server.close_after, server.resumes = [1000], False
    fetch_quietly("btmri", server)
    assert len(load_dataset("btmri")) == 24


def test_a_part_of_another_version_is_not_continued(server):
    server.close_after = [1000] + [0] * downloads.ATTEMPTS
    with pytest.raises(UserError):
        fetch("btmri", endpoint=server.address)
    server.files[HUB_PATH] = split_archive("BTMRI", NAMES, extra={"BTMRI/new.txt": b"new"})
    server.close_after, server.requests[:] = [], []
    fetch_quietly("btmri", server)
    assert server.gets()[0][2] is None and left_behind() == []


def test_server_errors_are_waited_out(server):
    server.statuses = [(503, {}), (500, {})]
    remote = Remote("a.zip", server.address + HUB_PATH)
    assert download(remote, downloads_folder() / "a.zip").read_bytes() == server.files[HUB_PATH]


def test_a_server_in_trouble_is_named(server):
    server.statuses = [(500, {})] * 20
    with pytest.raises(UserError, match="500"):
        fetch("btmri", endpoint=server.address)
    server.statuses = [(500, {})] * 20
    with pytest.raises(UserError, match="stopped after 0.0 MB .the server answered 500"):
        download(Remote("a.zip", server.address + HUB_PATH), downloads_folder() / "a.zip")


def test_a_wrong_checksum_is_refused_and_the_next_try_is_clean(server):
    server.etag = "0" * 64
    with pytest.raises(UserError, match="not the file that its publisher states .sha256 000000000000"):
        fetch("btmri", endpoint=server.address)
    assert left_behind() == [] and not is_here("btmri")
    server.etag = None
    fetch_quietly("btmri", server)


def test_a_truncated_zip_is_removed_and_the_next_try_is_clean(server):
    whole = server.files[HUB_PATH]
    server.files[HUB_PATH] = whole[:-100]
    with pytest.raises(UserError, match="BTMRI.zip is damaged .* It was removed; repeat the command"):
        fetch("btmri", endpoint=server.address)
    assert list(downloads_folder().iterdir()) == [] and left_behind() == []
    server.files[HUB_PATH] = whole
    fetch_quietly("btmri", server)


def test_an_unsafe_archive_leaves_nothing(server):
    server.files[HUB_PATH] = split_archive("BTMRI", NAMES, extra={"../../out.png": b"x"})
    with pytest.raises(UserError, match="leads out of its folder"):
        fetch("btmri", endpoint=server.address)
    assert not is_here("btmri") and left_behind() == []


def test_a_split_file_that_points_elsewhere_is_refused(server, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    entry = [str(tmp_path / "secret.png"), 0, "a"], [str(tmp_path / "secret.png"), 1, "b"]
    content = json.dumps({"train": entry, "val": [], "test": entry}).encode()
    server.files[HUB_PATH] = zip_of({"BTMRI/split_BTMRI.json": content})
    with pytest.raises(UserError, match="leads out of its folder"):
        fetch("btmri", endpoint=server.address)


def test_a_split_file_that_lists_missing_images_is_refused(server):
    entry = [["x.png", 0, "a"], ["y.png", 1, "b"]]
    content = json.dumps({"train": entry, "val": [], "test": entry}).encode()
    server.files[HUB_PATH] = zip_of({"BTMRI/split_BTMRI.json": content})
    with pytest.raises(
        UserError, match="BTMRI.zip is not laid out as the registry says: images/BTMRI/split_"
    ):
        fetch("btmri", endpoint=server.address)


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "not open to you .* answered 401.*HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, "not open to you .* answered 403"),
        (404, {"X-Error-Code": "EntryNotFound"}, "BTMRI.zip is not at http"),
        (404, {"X-Error-Code": "RepoNotFound"}, "BTMRI.zip is not at http"),
    ],
)
def test_refusals_of_the_hub_are_said(server, status, headers, sentence):
    server.statuses = [(status, headers)] * 5
    with pytest.raises(UserError, match=sentence):
        fetch("btmri", endpoint=server.address)


def test_refusals_of_a_plain_server_are_said(server):
    with pytest.raises(UserError, match="a.zip is not at .*gone.zip .answer 404"):
        download(Remote("a.zip", server.address + "/gone.zip"), downloads_folder() / "a.zip")
    server.statuses = [(403, {})]
    with pytest.raises(UserError, match="not open to you"):
        download(Remote("a.zip", server.address + HUB_PATH), downloads_folder() / "a.zip")


def test_no_network_is_said(server):
    with pytest.raises(UserError, match="no connection to http://127.0.0.1:9/"):
        fetch("btmri", endpoint="http://127.0.0.1:9")
    with pytest.raises(UserError, match="stopped after 0.0 MB .*refused"):
        download(Remote("a.zip", "http://127.0.0.1:9/a.zip"), downloads_folder() / "a.zip")


def test_a_page_that_is_no_hub_is_said(server):
    server.statuses = [(200, {})]
    with pytest.raises(UserError, match="is no file of a hub; check the address that HF_ENDPOINT names"):
        fetch("btmri", endpoint=server.address)


def test_offline_mode_is_respected(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to download it; unset it, or give a copy"):
        fetch("btmri", endpoint=server.address)
    assert server.requests == []


def test_a_copy_in_the_hubs_own_cache_is_used_and_kept(server, monkeypatch):
    path = huggingface_hub.hf_hub_download(
        "TahaKoleilat/BiomedCoOp",
        "BTMRI.zip",
        repo_type="dataset",
        endpoint=server.address,
        cache_dir=huggingface_hub.constants.HF_HUB_CACHE,
    )
    gets = len(server.gets())
    fetch_quietly("btmri", server)
    assert len(server.gets()) == gets
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch_quietly("btmri", server, replace=True)
    assert Path(path).read_bytes() == server.files[HUB_PATH]


def test_the_token_goes_to_the_hub_alone(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    with serving() as store:
        store.files["/blob"] = server.files[HUB_PATH]
        server.redirect_to = store.address.replace("127.0.0.1", "localhost") + "/blob"
        fetch_quietly("btmri", server)
        assert {request[3] for request in server.requests} == {"Bearer hf_secret"}
        assert store.requests and {request[3] for request in store.requests} == {None}


def test_the_token_does_not_follow_a_redirect_of_the_download(server):
    with serving() as store:
        store.files["/blob"] = b"content"
        server.files["/file"] = b"content"
        server.statuses = [(302, {"Location": store.address + "/blob"})]
        remote = Remote("a.bin", server.address + "/file", token="hf_secret")
        assert download(remote, downloads_folder() / "a.bin").read_bytes() == b"content"
        assert server.requests[0][3] == "Bearer hf_secret" and store.requests[0][3] is None


def test_too_little_space_is_said_before_a_byte_is_kept(server, monkeypatch):
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="download BTMRI.zip takes .*set VMFCOOP_HOME"):
        fetch("btmri", endpoint=server.address)
    assert left_behind() == []


def test_a_disk_that_fills_up_is_said(server, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_append", full)
    with pytest.raises(UserError, match="is full; free some space"):
        fetch("btmri", endpoint=server.address)


def test_the_archive_is_kept_on_demand_and_used_again(server):
    fetch_quietly("btmri", server, keep_archive=True)
    assert (downloads_folder() / "BTMRI.zip").read_bytes() == server.files[HUB_PATH]
    gets = len(server.gets())
    fetch_quietly("btmri", server, keep_archive=True, replace=True)
    assert len(server.gets()) == gets


def test_a_kept_archive_of_another_version_is_not_used(server):
    fetch_quietly("btmri", server, keep_archive=True)
    checksums_file().unlink()
    server.files[HUB_PATH] = split_archive("BTMRI", NAMES, extra={"BTMRI/new.txt": b"new"})
    fetch_quietly("btmri", server, replace=True)
    assert (dataset_home("btmri") / "images/BTMRI/new.txt").is_file()


def test_an_archive_brought_along_needs_no_network(server, tmp_path):
    given = tmp_path / "copied.zip"
    given.write_bytes(server.files[HUB_PATH])
    fetch_quietly("btmri", server, archive=given)
    assert server.requests == [] and given.is_file() and len(load_dataset("btmri")) == 24
    with pytest.raises(UserError, match="There is no archive"):
        fetch("busi", archive=tmp_path / "gone.zip")


def test_another_datasets_archive_is_refused(server, tmp_path):
    given = tmp_path / "BTMRI.zip"
    given.write_bytes(server.files[HUB_PATH])
    with pytest.raises(UserError, match=r"BTMRI\.zip is another dataset's archive: .*glioma tumor.*colon"):
        fetch("lungcolon", archive=given)
    assert given.is_file() and not is_here("lungcolon") and not checksums_file().exists()
    assert left_behind() == []


def test_a_damaged_archive_brought_along_stays(tmp_path):
    given = tmp_path / "copied.zip"
    given.write_bytes(b"no zip")
    with pytest.raises(UserError, match="copied.zip is damaged .* Give another copy"):
        fetch("btmri", archive=given)
    assert given.is_file()


def test_several_split_files_are_refused_unless_one_is_named_after_the_archive(server):
    other = split_archive("BTMRI", NAMES, extra={"BTMRI/split_other.json": b"{}"})
    server.files[HUB_PATH] = other
    fetch_quietly("btmri", server)
    assert read_source("btmri")["data"].endswith("split_BTMRI.json")
    server.files[HUB_PATH.replace("BTMRI", "BUSI")] = other.replace(b"split_BTMRI", b"split_XXXXX")
    with pytest.raises(UserError, match="holds several split files"):
        fetch("busi", endpoint=server.address)


def test_applied_for_datasets_are_not_fetched():
    with pytest.raises(UserError, match="data import cmri --from FOLDER.*UK Biobank"):
        fetch("cmri")
    with pytest.raises(UserError, match="did you mean 'btmri'"):
        fetch("btmr")


def test_unreadable_checksums_are_said(server):
    datasets_folder().mkdir(parents=True)
    checksums_file().write_text("{")
    with pytest.raises(UserError, match="cannot be read; restore or remove it"):
        fetch("btmri", endpoint=server.address)


def _fetch_in_a_process(address):
    warnings.simplefilter("ignore")
    constants.HF_HUB_OFFLINE = False
    fetch("btmri", endpoint=address)


def test_two_processes_download_once(server):
    processes = [
        multiprocessing.get_context("spawn").Process(target=_fetch_in_a_process, args=(server.address,))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.gets()) == 1 and len(load_dataset("btmri")) == 24 and left_behind() == []


def test_progress_tells_of_bytes_checks_and_files(server):
    seen = []
    fetch_quietly("btmri", server, progress=lambda task, done, total: seen.append(task))
    assert seen[0] == "Downloading BTMRI.zip (MB)" and seen[-1] == "Unpacking BTMRI.zip"


def test_a_wrong_md5_of_a_plain_address_is_refused(server):
    remote = Remote("a.npz", server.address + HUB_PATH, md5="0" * 32)
    with pytest.raises(UserError, match="md5 000000000000"):
        download(remote, downloads_folder() / "a.npz")
    assert list(downloads_folder().iterdir()) == []


def test_only_http_is_downloaded(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(UserError, match="is no http address"):
        download(Remote("x", f"file://{tmp_path}/x"), tmp_path / "y")


def test_every_fetchable_dataset_has_an_address():
    for key in REGISTRY:
        info = find(key)
        assert (info.archive is None) == (info.access == "apply")
