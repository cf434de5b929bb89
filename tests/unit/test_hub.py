"""From a name to a folder, without a network: local folders, bundled names, the cache, and plain errors."""

from __future__ import annotations

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from qvl import hub
from qvl.errors import CheckpointNotFoundError, InputTypeError


def test_local_folders_and_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text("{}")
    assert hub.resolve(tmp_path) == hub.resolve(str(tmp_path)) == hub.resolve(tmp_path / "config.json")
    assert hub.resolve(tmp_path, subfolder="sub") == tmp_path / "sub"
    with pytest.raises(CheckpointNotFoundError, match="no subfolder 'other'"):
        hub.resolve(tmp_path, subfolder="other")


def test_the_bundled_name():
    assert hub.resolve("qvl/tiny") == hub.BUNDLED["qvl/tiny"]


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "../missing", "a/b/c", "what is this"])
def test_what_cannot_be_a_repository_is_a_missing_folder(name):
    with pytest.raises(CheckpointNotFoundError, match="there is no folder") as caught:
        hub.resolve(name)
    assert isinstance(caught.value, OSError)


def test_an_empty_name_is_not_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointNotFoundError, match="name of the checkpoint is empty"):
        hub.resolve("")
    assert hub.resolve(".").samefile(tmp_path)


def test_the_wrong_type():
    with pytest.raises(InputTypeError, match="got int"):
        hub.resolve(3)


def cached_repository(cache, revision="0123456789abcdef0123456789abcdef01234567"):
    """A cache folder as huggingface_hub lays it out."""
    root = cache / "models--owner--name"
    snapshot = root / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for name in ("main", "v1"):
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / name).write_text(revision)
    return snapshot


def test_the_cache_serves_offline(tmp_path):
    snapshot = cached_repository(tmp_path)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert hub.resolve("owner/name", **options) == snapshot
    assert hub.resolve("owner/name", revision="v1", **options) == snapshot
    with pytest.raises(
        CheckpointNotFoundError, match="the cache does not hold 'owner/name' at revision 'v2'"
    ):
        hub.resolve("owner/name", revision="v2", **options)
    with pytest.raises(CheckpointNotFoundError, match="cache does not hold 'owner/other'"):
        hub.resolve("owner/other", **options)


def http_error(kind, status):
    request = httpx.Request("GET", "https://hub.invalid")
    response = httpx.Response(status, request=request)
    try:
        return kind("message", response=response)
    except TypeError:  # older huggingface_hub
        return kind("message")


@pytest.mark.parametrize(
    "error, message",
    [
        (http_error(errors.GatedRepoError, 403), "is gated"),
        (http_error(errors.RevisionNotFoundError, 404), "has no revision 'v9'"),
        (http_error(errors.RepositoryNotFoundError, 404), "no public repository"),
        (errors.LocalEntryNotFoundError("x"), "hub was not reached"),
        (errors.OfflineModeIsEnabled("x"), "hub was not reached"),
        (http_error(errors.HfHubHTTPError, 500), "could not be read from the hub"),
        (OSError("disk full"), "could not be read from the hub: disk full"),
        (httpx.ReadTimeout("too slow"), "could not be read from the hub: too slow"),
    ],
)
def test_errors_of_the_hub_become_one_sentence(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointNotFoundError, match=message):
        hub.resolve("owner/name", revision="v9")


def test_what_is_fetched(monkeypatch, tmp_path):
    (tmp_path / "inner").mkdir()
    seen = {}

    def download(repository, **options):
        seen.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = hub.resolve("owner/name", revision="v1", token="t", subfolder="inner", patterns=("*.json",))
    assert folder == tmp_path / "inner"
    assert (seen["repository"], seen["revision"], seen["token"]) == ("owner/name", "v1", "t")
    assert seen["allow_patterns"] == ["inner/*.json"]
    hub.resolve("owner/name")
    assert "*.safetensors" in seen["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in seen["allow_patterns"])


def test_options_leave_the_other_keywords():
    kwargs = {"revision": "v1", "subfolder": None, "dtype": "auto", "trust_remote_code": True}
    assert hub.pop_options(kwargs) == {"revision": "v1"}
    assert kwargs == {"dtype": "auto"}
