"""`vmfcoop data list`, `show`, `fetch`: results on stdout, the rest on stderr, a sentence for mistakes."""

import json

import pytest

from vmfcoop.data import fetch as fetching
from vmfcoop.data.installed import install, staging
from vmfcoop.data.registry import REGISTRY

from .data.archive_server import split_archive
from .test_cli import vmfcoop


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "BTMRI.zip"
    path.write_bytes(split_archive("BTMRI", REGISTRY["btmri"].class_names))
    return path


def pretend_here(key):
    with staging(key) as folder:
        (folder / "split.json").write_text("{}")
        install(key, folder, {"data": "split.json"})


def test_list_fits_80_columns_and_names_every_dataset(monkeypatch):
    pretend_here("medmnist-path@64")
    monkeypatch.setattr("vmfcoop.cli.common.out.width", 80, raising=False)
    result = vmfcoop("data", "list")
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and max(map(len, lines)) <= 80
    for key, info in REGISTRY.items():
        if info.variant_of is None:
            assert any(line.split()[:1] == [key] for line in lines), key
    assert any(line.split()[:1] == ["phantom-brain-mri"] for line in lines)
    assert "…" not in result.stdout
    row = next(line for line in lines if line.strip().startswith("medmnist-path"))
    assert row.split()[-1] == "64"
    assert "augmented copies" in result.stdout and "on" in result.stdout


def test_list_as_json_has_everything():
    pretend_here("busi")
    content = json.loads(vmfcoop("data", "list", "--json").stdout)
    by_key = {entry["key"]: entry for entry in content["datasets"]}
    assert by_key.keys() == REGISTRY.keys() and len(content["phantoms"]) == 7
    assert by_key["busi"]["here"] and not by_key["btmri"]["here"]
    assert by_key["lungcolon"]["faults"] and by_key["cmri"]["access_text"]


def test_show_tells_classes_licence_faults_and_how_to_get_it():
    text = " ".join(vmfcoop("data", "show", "dermamnist").stdout.split())
    for wanted in ("6 vascular lesion", "CC BY-NC 4.0", "one lesion", "vmfcoop data fetch dermamnist"):
        assert wanted in text
    address = "https://huggingface.co/datasets/TahaKoleilat/BiomedCoOp/resolve/main/DermaMNIST.zip"
    assert address in text.replace(" ", "")
    text = " ".join(vmfcoop("data", "show", "pmri").stdout.split())
    assert "a proposal" in text and "register and apply" in text and "vmfcoop data import pmri" in text


def test_show_of_a_phantom_and_of_an_unknown_key():
    facts = json.loads(vmfcoop("data", "show", "phantom-brain-mri", "--json").stdout)
    assert facts["drawn"] and len(facts["class_names"]) >= 2
    assert "phantom-brain-mri" in vmfcoop("data", "show", "phantom-brain-mri").stdout
    result = vmfcoop("data", "show", "lungcolonn")
    assert result.returncode == 2 and "did you mean 'lungcolon'" in result.stderr


def test_fetch_prints_licence_and_faults_and_one_json_object(archive):
    result = vmfcoop("data", "fetch", "btmri", "--archive", archive, "--json")
    assert result.returncode == 0
    fetched = json.loads(result.stdout)["fetched"]
    assert [entry["key"] for entry in fetched] == ["btmri"] and fetched[0]["files"] == 24
    assert not fetched[0]["was_here"] and len(fetched[0]["remarks"]) == 1
    assert "Licence: CC0 1.0" in result.stderr and "Known fault: The files name no patient" in result.stderr
    assert "Images: train 12, val 4, test 8" in result.stderr
    assert "Warning: btmri has 12/4/8 images" in result.stderr
    again = vmfcoop("data", "fetch", "btmri")
    assert again.returncode == 0 and "was here already" in again.stderr
    shown = " ".join(vmfcoop("data", "show", "btmri").stdout.split())
    assert "train 12, val 4, test 8" in shown and "remarks" in shown
    whole = json.loads(vmfcoop("data", "show", "btmri", "--json").stdout)
    assert whole["here"] and whole["source_json"]["files"] == 24


def test_what_a_user_can_mend_is_one_sentence(archive, tmp_path):
    for arguments, sentence in (
        (("cmri",), "register and apply"),
        (("btmri", "busi", "--archive", archive), "--archive is the archive of one dataset, not of 2"),
        (("btmri", "--archive", tmp_path / "gone.zip"), "There is no archive"),
        (("btmri", "nothing"), "Unknown dataset 'nothing'"),
    ):
        result = vmfcoop("data", "fetch", *arguments)
        assert result.returncode == 2 and sentence in result.stderr and "Traceback" not in result.stderr
        assert result.stdout == ""


def test_fetch_hands_its_options_on(archive, monkeypatch):
    asked = []
    real = fetching.fetch

    def record(key, **options):
        asked.append({name: options[name] for name in ("replace", "keep_archive")})
        return real(key, **options)

    monkeypatch.setattr(fetching, "fetch", record)
    vmfcoop("data", "fetch", "btmri", "--archive", archive)
    vmfcoop("data", "fetch", "btmri", "--archive", archive, "--replace", "--keep-archive")
    assert asked == [{"replace": False, "keep_archive": False}, {"replace": True, "keep_archive": True}]


def test_a_contact_sheet_goes_to_a_file_by_any_name(tmp_path):
    sheet = tmp_path / "[bold]s.png"
    options = "data", "contact-sheet", "phantom-fundus", "--columns", "1", "--out"
    assert "[bold]s.png" in vmfcoop(*options, sheet).stdout.replace("\n", "") and sheet.is_file()
    folder = tmp_path / "folder.png"
    folder.mkdir()
    result = vmfcoop(*options, folder)
    assert result.returncode == 2 and "is a folder; name a file to write" in " ".join(result.stderr.split())
