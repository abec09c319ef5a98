"""`data-engine view`: it says where it is, and ends when told."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from typer.testing import CliRunner
from viewer.viewed import build, write_photos

from data_engine.cli import app


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    build(folder / "out", str(write_photos(folder / "photos", side=48)))
    return folder / "out"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_and_ends_cleanly(dataset, how):
    command = [sys.executable, "-c", "from data_engine.cli import main; main()", "view", str(dataset)]
    with subprocess.Popen(
        [*command, "--port", "0", "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(urllib.error.HTTPError, match="403"):  # no cookie is kept
            urllib.request.urlopen(address)
        process.send_signal(how)
        _, errors = process.communicate(timeout=20)
    assert "Traceback" not in errors
    assert process.returncode == (0 if how == signal.SIGINT else -how)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_it_begins_without_torch():
    """Which takes seconds to load, and is only needed where clicks are answered."""
    code = "import sys, data_engine.cli, data_engine.viewer.server; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_what_cannot_be_shown_is_said(dataset, tmp_path):
    runner = CliRunner()
    absent = runner.invoke(app, ["view", str(tmp_path / "none"), "--no-browser"])
    assert "no dataset at" in str(absent.exception)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = runner.invoke(app, ["view", str(dataset), "--port", str(port), "--no-browser"])
    assert f"port {port} cannot be used" in str(busy.exception)
