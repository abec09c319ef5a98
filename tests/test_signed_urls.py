"""Which parameters of a link are secrets, and which choose the content."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from data_engine.signed_urls import expires_at, mask_urls, unsigned
from data_engine.storage import redact


@pytest.mark.parametrize(
    ("link", "public"),
    [
        (
            "https://h/a.tar?X-Amz-Algorithm=A&X-Amz-Credential=K%2F1&X-Amz-Date=D&X-Amz-Expires=9"
            "&X-Amz-SignedHeaders=host&X-Amz-Security-Token=T&X-Amz-Signature=S",
            "https://h/a.tar",
        ),
        ("https://h/a.tar?versionId=3&X-Amz-Signature=S&x-id=GetObject", "https://h/a.tar?versionId=3&x-id=GetObject"),
        ("https://h/a?AWSAccessKeyId=K&Signature=S&Expires=9", "https://h/a"),
        ("https://h/a?generation=5&X-Goog-Signature=S&X-Goog-Date=D&X-Goog-Expires=9", "https://h/a?generation=5"),
        ("https://h/a?GoogleAccessId=G&Expires=9&Signature=S", "https://h/a"),
        ("https://h/a?sv=1&ss=b&srt=o&sp=r&st=1&se=2&spr=https&sr=b&skoid=K&sig=S", "https://h/a"),
        ("https://h/a?Expires=9&Policy=P&Signature=S&Key-Pair-Id=K", "https://h/a"),
        ("https://h/a?OSSAccessKeyId=K&Expires=9&Signature=S&x-oss-process=resize", "https://h/a?x-oss-process=resize"),
        ("https://h/a?q-sign-algorithm=sha1&q-ak=K&q-sign-time=1&q-key-time=1&q-signature=S", "https://h/a"),
        ("https://h/a?hdnts=exp=9~hmac=S", "https://h/a"),
        ("HTTPS://h/a?token=T&id=5#part", "HTTPS://h/a?id=5#part"),
        ("https://h/a?api_key=K&access_token=T&password=P", "https://h/a"),
        ("https://h/a?X-Amz%2DSignature=S", "https://h/a"),
        ("https://user:pass@h/a", "https://***@h/a"),
        ("s3://key:secret@bucket/a", "s3://***@bucket/a"),
    ],
)
def test_what_signers_add_goes_and_the_rest_stays_to_the_letter(link, public):
    assert unsigned(link) == public
    assert unsigned(public) == public


@pytest.mark.parametrize(
    "link",
    [
        "https://h/a?id=5",
        "https://h/a?expires=9&st=1&sv=2&policy=x",
        "https://h/a?design=1&tokenizer=2&keyword=3&monkey=4",
        "https://h/a?q=a%2Fb&&empty=",
        "https://h/a@b",
        "abfs://container@account.dfs.core.windows.net/a",
        "s3://bucket/what?token=5.jpg",
        "/photos/a?sig=5.jpg",
    ],
)
def test_other_addresses_are_left_alone(link):
    assert unsigned(link) == link


def test_messages_show_that_something_was_there():
    text = mask_urls("GET 'https://h/a?Expires=9&Policy=P&Signature=S&id=5' and https://h/b?hdnts=T")
    assert text == "GET 'https://h/a?Expires=***&Policy=***&Signature=***&id=5' and https://h/b?hdnts=***"
    assert "P@ss" not in redact("https://h/a?hdnea=P@ss&id=5")


@pytest.mark.parametrize(
    ("link", "until"),
    [
        ("https://h/a?X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-Signature=S", datetime(2026, 1, 1, 0, 1)),
        ("https://h/a?Expires=1767225600&Signature=S", datetime(2026, 1, 1)),
        ("https://h/a?se=2026-01-01T00%3A00%3A00Z&sig=S", datetime(2026, 1, 1)),
        ("https://h/a?se=2026-01-01&sig=S", datetime(2026, 1, 1)),
        ("https://h/a?X-Amz-Expires=60", None),
        ("https://h/a?Expires=soon&Signature=S", None),
        ("https://h/a?expires=1767225600", None),
    ],
)
def test_when_a_link_ends_to_be_good(link, until):
    assert expires_at(link) == (until.replace(tzinfo=timezone.utc) if until else None)
