"""Who the viewer answers, and what it never gives away."""

from __future__ import annotations

import http.client
import json
from urllib.parse import quote

import pytest
from viewer.viewed import TOKEN, build, served, write_photos


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "secret.txt").write_text("do not read me")
    build(folder / "out", str(write_photos(folder / "photos")))
    with served(folder / "out") as server:
        yield server


def ask(viewer, path, method="GET", **headers):
    """(status, headers, body) of a request made as it is written, nothing normalised."""
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=20)
    host = headers.pop("Host", f"127.0.0.1:{viewer.port}")
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", host)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


BEARER = f"Bearer {TOKEN}"


@pytest.mark.parametrize("path", ["/", "/api/info", "/api/images", "/static/viewer.js", "/api/picture?id=cat.jpg"])
def test_nothing_without_the_right_token(viewer, path):
    joined = "&" if "?" in path else "?"
    for given in (path, f"{path}{joined}token=", f"{path}{joined}token={TOKEN[:-1]}", f"{path}{joined}token={TOKEN}x"):
        status, headers, body = ask(viewer, given)
        assert (status, b"token is missing or wrong" in body) == (403, True)
        assert "set-cookie" not in headers
    for wrong in ("Bearer x", f"Basic {TOKEN}", "Bearer", "Bearer é".encode().decode("latin-1")):
        assert ask(viewer, path, Authorization=wrong)[0] == 403
    assert ask(viewer, path, Cookie=f"data-engine-{viewer.port}=x")[0] == 403
    assert ask(viewer, path, Cookie=f"data-engine-1={TOKEN}")[0] == 403


def test_the_token_leaves_the_address_and_becomes_a_cookie(viewer):
    status, headers, _ = ask(viewer, f"/?token={TOKEN}&image=a%2Fb&mask=3")
    assert (status, headers["location"]) == (303, "/?image=a%2Fb&mask=3")
    cookie, *flags = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(flags)
    assert ask(viewer, "/", Cookie=cookie)[0] == 200
    assert ask(viewer, "/api/info", Authorization=BEARER)[0] == 200


def test_the_token_of_a_browsers_command_line_works_once(viewer):
    first, second = (ask(viewer, "/?token=once") for _ in range(2))
    assert (first[0], second[0]) == (303, 403)
    assert ask(viewer, "/", Cookie=first[1]["set-cookie"].split(";")[0])[0] == 200
    assert ask(viewer, "/", Cookie=f"data-engine-{viewer.port}=once")[0] == 403


def test_a_right_token_leads_nowhere_else(viewer):
    status, headers, _ = ask(viewer, f"//elsewhere.example/x?token={TOKEN}")
    assert (status, headers["location"]) == (303, "/elsewhere.example/x")


@pytest.mark.parametrize(
    "host", ["elsewhere.example", "127.0.0.1.elsewhere.example", "[::1", "", "10.0.0.1", "0.0.0.0"]
)
def test_other_host_names_are_refused(viewer, host):
    assert ask(viewer, "/api/info", Authorization=BEARER, Host=host)[0] in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "[::1]:80", "127.0.0.1"])
def test_names_of_this_machine_are_answered_on_any_port(viewer, host):
    """A tunnel has a port of its own."""
    assert ask(viewer, "/api/info", Authorization=BEARER, Host=host)[0] == 200


def test_other_sites_cannot_use_the_cookie(viewer):
    cookie = f"data-engine-{viewer.port}={TOKEN}"
    own = f"http://127.0.0.1:{viewer.port}"
    for site in ("cross-site", "same-site"):  # same-site: another port of this host
        assert ask(viewer, "/api/info", Cookie=cookie, Sec_Fetch_Site=site, Sec_Fetch_Mode="cors")[0] == 403
        assert ask(viewer, "/api/info", Cookie=cookie, Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 403
        assert ask(viewer, "/", Cookie=cookie, Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 200  # a link
    assert ask(viewer, "/api/refresh", "POST", Cookie=cookie)[0] == 403
    assert ask(viewer, "/api/refresh", "POST", Cookie=cookie, Origin="http://localhost:1")[0] == 403
    assert ask(viewer, "/api/refresh", "POST", Cookie=cookie, Origin=own)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/",
        "/../../secret.txt",
        "/etc/passwd",
    ],
)
def test_no_way_out_of_the_static_files(viewer, path):
    assert ask(viewer, path, Authorization=BEARER)[0] == 404


@pytest.mark.parametrize("image_id", ["../secret.txt", "/etc/passwd", "secret.txt", "", "astronaut.jpg/", "\x00"])
def test_only_images_of_the_dataset_are_shown(viewer, image_id):
    for path in ("/api/image", "/api/picture"):
        status, _, body = ask(viewer, f"{path}?id={quote(image_id, safe='')}", Authorization=BEARER)
        assert status == 404
        assert b"no image" in body


def test_what_a_page_may_load(viewer):
    for path in ("/", "/static/viewer.js", "/api/info", "/nowhere"):
        _, headers, _ = ask(viewer, path, Authorization=BEARER)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert ask(viewer, "/")[1]["content-security-policy"]  # of refusals as well


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/image", 400),
        ("/api/image?id=astronaut.jpg&run=1", 404),
        ("/api/images?limit=-1", 400),
        ("/api/images?offset=1e9", 400),
        ("/api/images?offset=99999999999", 200),
        ("/api/images?sort=nothing", 400),
        ("/api/images?sort=difference", 400),
        ("/api/picture?id=astronaut.jpg&side=100000", 400),
        ("/api/image?id=astronaut.jpg&position=99999999999", 200),
        ("/api/picture?id=zz-broken.jpg", 404),
    ],
)
def test_wrong_questions_have_answers(viewer, path, status):
    given, _, body = ask(viewer, path, Authorization=BEARER)
    assert given == status, body
    assert isinstance(json.loads(body).get("error"), str) == (status != 200)
