"""Every YAML and JSON file of infra/ is well formed, and nothing in infra/ holds a secret or turns the token off."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from infra_files import INFRA, PAGES, ROOT, read_documents

YAML_FILES = sorted(INFRA.rglob("*.yaml")) + sorted(INFRA.rglob("*.yml"))
TEXT_FILES = sorted(
    path for path in [*INFRA.rglob("*"), *(ROOT / "jobs").rglob("*"), ROOT / "docs" / "cluster.md"] if path.is_file()
)
TEXT_FILES = [path for path in TEXT_FILES if path.suffix != ".pyc"]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", YAML_FILES, ids=_name)
def test_yaml_parses_without_repeated_keys(path: Path) -> None:
    assert all(isinstance(document, dict) for document in read_documents(path))


def test_repeated_keys_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(Exception, match="repeated keys"):
        read_documents(file)


@pytest.mark.parametrize("path", sorted(INFRA.rglob("*.json")), ids=_name)
def test_json_parses(path: Path) -> None:
    assert isinstance(json.loads(path.read_text()), dict)


@pytest.mark.parametrize("path", TEXT_FILES, ids=_name)
def test_no_secret_and_no_open_cluster(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret_access_key\s*[=:]\s*\S|BEGIN [A-Z ]*PRIVATE KEY", text)
    assert not re.search(r"RAY_AUTH_MODE\s*[=:]\s*['\"]?disabled|mode:\s*disabled", text)
    assert not re.search(r"--dashboard-host[= ]0\.0\.0\.0", text)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert broken == []
