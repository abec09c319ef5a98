"""What back ends raise becomes one kind of error, and messages hold no secrets."""

from __future__ import annotations

import pytest

from data_engine.errors import StorageError, UsageError
from data_engine.images import retry
from data_engine.images.settings import InputSettings
from data_engine.images.sources import list_shards
from data_engine.retry import ONCE
from data_engine.storage import local_path, redact, refuse_unless_text, translated


@pytest.mark.parametrize(
    "library", ["httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub.errors", "aiohttp", "requests"]
)
def test_errors_of_the_libraries_behind_fsspec_are_translated(library):
    error = type("ConnectError", (Exception,), {"__module__": library})
    with pytest.raises(StorageError, match="hf://datasets/a: ConnectError: no route"), translated("hf://datasets/a"):
        raise error("no route")


def test_errors_of_our_own_are_not(tmp_path):
    with pytest.raises(ZeroDivisionError), translated("hf://datasets/a"):
        raise ZeroDivisionError


def test_hugging_face_without_a_network(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(retry, "STORE", ONCE)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="hf://datasets/nobody/nothing"):
        list_shards("hf://datasets/nobody/nothing/data.parquet", InputSettings())


def test_redact_masks_every_link_in_a_text():
    text = redact("403 for https://h/a?Policy=planted&Signature=planted&Key-Pair-Id=planted, token=planted")
    assert "planted" not in text
    assert text.startswith("403 for https://h/a?Policy=***")


def test_a_secret_in_a_path_ends_where_its_folder_does():
    assert redact("https://h/bcdn_token=planted/in/a.jpg: 403") == "https://h/bcdn_token=***/in/a.jpg: 403"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/country_key=7/design=new/a.jpg",
        "/photos/user_key=7/a.jpg: not found",
        "photos/token=a/signal=3.jpg",
        "https://h/design=new/signal=3/keyword=x/a.jpg?id=5",
    ],
)
def test_folders_named_like_parameters_are_no_secrets(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "AWS_SECRET_ACCESS_KEY=planted/planted+planted",
        "AccountName=a;AccountKey=planted==",
        "az://container/a.jpg?sv=1&sig=planted",
        "/photos/a=1?signature=planted",
        "https://h/bcdn_token=planted/a.jpg",
        "https://h/bcdn_token=planted&token_path=%2Fa/a.jpg",
        "https://h/hdnts=exp~hmac.planted/a.jpg",
        "https://h/a.jpg?sessionkey=planted",
        "https://user:planted@h/a.jpg",
        "{'sessionToken=planted'}",
        "token=https://h/planted",
        "s3://key:planted@bucket/a",
    ],
)
def test_secrets_are_masked_wherever_they_stand(text):
    shown = redact(text)
    assert "***" in shown
    assert "planted" not in shown


def test_the_home_of_nobody():
    with pytest.raises(UsageError, match=r"~nobody-at-all.*\./~nobody-at-all"):
        local_path("~nobody-at-all/photos")


def test_a_path_that_is_no_text():
    refuse_unless_text("photos/é")
    with pytest.raises(UsageError, match=r"caf\\udce9.*not UTF-8"):
        refuse_unless_text("caf\udce9")
