"""The Dockerfiles: what they copy exists and is let through, the user is not root, versions are pinned."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from infra_files import INFRA, ROOT, read_document

DOCKERFILES = sorted((INFRA / "docker").glob("Dockerfile.?pu"))


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def copied(path: Path) -> dict[str, str]:
    """Source in the checkout -> absolute target in the image."""
    here, found = "/", {}
    for name, rest in instructions(path):
        if name == "WORKDIR":
            here = rest
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = f"{target.rstrip('/')}/{Path(source).name}" if target.endswith("/") else target
                found[source] = f"{here}/{place.removeprefix('./')}"
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_copied_paths_exist_and_pass_the_ignore_file(path: Path) -> None:
    allowed = [line[1:] for line in Path(f"{path}.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert len(copied(path)) >= 7
    for source in copied(path):
        assert (ROOT / source).exists()
        assert any(fnmatch(source, pattern) for pattern in allowed), source


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_user_is_not_root_and_is_the_one_of_the_pods(path: Path) -> None:
    users = [rest for name, rest in instructions(path) if name == "USER"]
    assert users[-1] == "1000:1000"
    pod = read_document(INFRA / "kuberay" / "raycluster.yaml")["spec"]["headGroupSpec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 1000
    assert any("useradd" in rest and "--uid 1000" in rest for name, rest in instructions(path) if name == "RUN")


def test_gpu_workers_have_what_triton_builds_with() -> None:
    """Without a compiler every worker takes the slower way, with no more than a warning in its log."""
    (install,) = [rest for _, rest in instructions(INFRA / "docker" / "Dockerfile.gpu") if "apt-get install" in rest]
    assert {"gcc", "libc6-dev"} <= set(install.split())
    cluster = read_document(INFRA / "aws" / "cluster.yaml")
    (install,) = [command for command in cluster["setup_commands"] if "apt-get" in command]
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(re.split(r"[\s()]+", install))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_versions_are_pinned(path: Path) -> None:
    (base,) = [rest for name, rest in instructions(path) if name == "FROM"]
    assert base.startswith("python:3.12")
    installs = [
        part for name, rest in instructions(path) if name == "RUN" for part in rest.split("&&") if "pip" in part
    ]
    assert installs
    assert all("--constraint constraints.txt" in part for part in installs if "install" in part)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_package_builds_from_what_is_copied(path: Path) -> None:
    """hatch reads these from pyproject.toml; a file that is missing in the image breaks the build."""
    project = (ROOT / "pyproject.toml").read_text()
    assert {"pyproject.toml", "configs", "data_engine"} <= copied(path).keys()
    assert re.search(r'^readme = "(.+)"', project, re.MULTILINE).group(1) in copied(path)  # type: ignore[union-attr]


def test_the_images_turn_the_token_on() -> None:
    for path in DOCKERFILES:
        assert any(name == "ENV" and "RAY_AUTH_MODE=token" in rest for name, rest in instructions(path))


def test_the_scripts_that_pods_run_are_in_the_images() -> None:
    manifest = (INFRA / "kuberay" / "rayjob.yaml").read_text()
    for script in re.findall(r"/opt/data-engine/[\w/]+\.py", manifest):
        for path in DOCKERFILES:
            folders = {target: source for source, target in copied(path).items()}
            folder, _, name = script.rpartition("/")
            assert (ROOT / folders[folder] / name).is_file(), script
