"""From a model's name, file or URL to verified weights: registry, cache, safe loading.

Nothing here executes a pickle: `.pth` files are read with `weights_only=True`, `.safetensors` hold no code at all.
torch does not check the CRCs of its own zip format (189 of 200 single-bit flips load silently wrong), so a file that
has a known sha256 is verified before it is opened.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from data_engine.errors import CheckpointError, UsageError
from data_engine.sam.checkpoint_layouts import Layout, from_huggingface, is_huggingface, names_of_the_shared_matrix
from data_engine.sam.digests import sha256_of, sha256_of_cached
from data_engine.sam.download import download
from data_engine.sam.model import Sam, SamArchitecture, Uninitialised
from data_engine.sam.remote_checkpoints import fetch_remote, is_url, locate
from data_engine.sam.tensor_files import USABLE, read_state
from data_engine.signed_urls import unsigned
from data_engine.storage import local_path

CACHE_VARIABLE = "DATA_ENGINE_CACHE"
_RELEASE = "https://dl.fbaipublicfiles.com/segment_anything/"
_CONSTANTS = ("pixel_mean", "pixel_std")  # some files carry them; they are the same for every SAM


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model known by name. `file` is set for weights that ship with the package, `url` for those to fetch."""

    name: str
    description: str
    licence: str
    sha256: str
    size: int
    parameters: int = 0  # 0: not known
    url: str | None = None
    file: Path | None = None
    architecture: SamArchitecture | None = None  # where it is known without the weights


STARTER_FILE = Path(__file__).parent / "starter" / "starter.safetensors"


def registry() -> dict[str, Checkpoint]:
    """Every model known by name."""
    facts = STARTER_FILE.with_suffix(".json")  # absent from a damaged installation, which may still use other models
    starter = json.loads(facts.read_text()) if facts.is_file() else {}
    known = [
        Checkpoint(
            "starter",
            "ships with the package, a toy",
            "Apache-2.0",
            starter.get("sha256", ""),
            starter.get("size", 0),
            starter.get("parameters", 0),
            file=STARTER_FILE,
        ),
        Checkpoint(
            "sam_vit_b",
            "SAM ViT-B (Meta, 2023)",
            "Apache-2.0",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            375042383,
            93_735_472,
            url=_RELEASE + "sam_vit_b_01ec64.pth",
            architecture=SamArchitecture.vit("b"),
        ),
        Checkpoint(
            "sam_vit_l",
            "SAM ViT-L (Meta, 2023)",
            "Apache-2.0",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            1249524607,
            312_342_832,
            url=_RELEASE + "sam_vit_l_0b3195.pth",
            architecture=SamArchitecture.vit("l"),
        ),
        Checkpoint(
            "sam_vit_h",
            "SAM ViT-H (Meta, 2023)",
            "Apache-2.0",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2564550879,
            641_090_608,
            url=_RELEASE + "sam_vit_h_4b8939.pth",
            architecture=SamArchitecture.vit("h"),
        ),
    ]
    return {checkpoint.name: checkpoint for checkpoint in known}


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """Verified weights under segment-anything's names."""

    name: str  # registry name, or the path or URL as given (without the signature of a signed link)
    path: Path
    sha256: str
    architecture: SamArchitecture
    state: dict[str, Tensor] = field(repr=False)
    layout: Layout = "segment-anything"  # of the file


def cache_dir() -> Path:
    """Where fetched checkpoints live: $DATA_ENGINE_CACHE, else ~/.cache/data-engine."""
    root = os.environ.get(CACHE_VARIABLE)
    return Path(root).expanduser() if root else Path.home() / ".cache" / "data-engine"


def cached_path(checkpoint: Checkpoint) -> Path:
    """Where a known checkpoint is, or will be once fetched."""
    if checkpoint.file is not None:
        return checkpoint.file
    assert checkpoint.url is not None
    return _checkpoints_dir() / checkpoint.url.rsplit("/", 1)[-1]


def _checkpoints_dir() -> Path:
    return cache_dir() / "checkpoints"


def identify(name_or_path: str | Path) -> str:
    """The sha256 that a model's weights have or, for a known model that is not fetched yet, must have.

    An object behind a URL is fetched to be hashed, unless its store knows the sha256 (Hugging Face does).
    """
    name = str(name_or_path)
    if known := registry().get(name):
        return known.sha256
    if is_url(name):
        remote = locate(name)
        return remote.sha256 or fetch_remote(remote, _checkpoints_dir())[1]
    return resolve(name)[2]


def resolve(name_or_path: str | Path, expected_sha256: str | None = None) -> tuple[str, Path, str]:
    """A name, path or URL -> (name, local file, sha256), fetching what is not there yet.

    A known model whose file has another hash is refused: fetched files are verified while they arrive, so the file
    was damaged or replaced since. So are weights that do not have `expected_sha256`, before they are fetched where
    that can be known. Raises CheckpointError; UsageError for a URL that is not allowed.
    """
    name = str(name_or_path)
    expected = _valid_sha256(expected_sha256) if expected_sha256 is not None else None
    if known := registry().get(name):
        _insist(name, known.sha256, expected)
        return name, *_resolve_known(known)
    if is_url(name):
        shown, remote = unsigned(name), locate(name)
        if remote.sha256 is not None:
            _insist(shown, remote.sha256, expected)
        path, found = fetch_remote(remote, _checkpoints_dir())
    else:
        shown, path = name, _local_file(name)
        found = _sha256_of(path)
    _insist(shown, found, expected)
    return shown, path, found


def _resolve_known(known: Checkpoint) -> tuple[Path, str]:
    path = cached_path(known)
    if not path.exists():
        if known.url is None:
            raise CheckpointError(f"{known.name}: {path} is missing from this installation: reinstall the package")
        download(known.url, path, sha256=known.sha256, size=known.size)
    found = _sha256_of(path, cached=known.url is not None)
    if found != known.sha256:
        raise CheckpointError(
            f"{path} is not {known.name}: its sha256 is {found}, expected {known.sha256}. "
            + ("Reinstall the package." if known.url is None else "Delete the file; it will be fetched again.")
        )
    return path, found


def _local_file(name: str) -> Path:
    path = local_path(name) if name.startswith("file://") else Path(name).expanduser()
    if path.is_dir():  # a Hugging Face model folder
        path = path / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"no model {name!r}: not a known name ({', '.join(registry())}), no URL, and no file at {path}"
        )
    return path


def _insist(name: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise CheckpointError(
            f"{name} is not the model it should be: its sha256 is {found}, expected {expected}. "
            "Put the expected weights there again, or start a new job with these, into another output"
        )


def _valid_sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise UsageError(f"expected_sha256 {text!r} is not a sha256: use its 64 hexadecimal digits")
    return text.lower()


def load_checkpoint(name_or_path: str | Path, expected_sha256: str | None = None) -> LoadedCheckpoint:
    """A SAM checkpoint of either layout, checked, in float32. Raises CheckpointError saying what the file really is."""
    stored = read_checkpoint(name_or_path, expected_sha256)
    return replace(stored, state={key: tensor.float() for key, tensor in stored.state.items()})


def read_checkpoint(name_or_path: str | Path, expected_sha256: str | None = None) -> LoadedCheckpoint:
    """As `load_checkpoint`, with every tensor in the dtype it is stored in."""
    name, path, sha256 = resolve(name_or_path, expected_sha256)
    try:
        return _read(name, path, sha256)
    except CheckpointError as error:
        if is_url(name):  # the file in the cache says nothing to whoever gave the URL
            raise CheckpointError(f"{name}: {error}") from None
        raise


def _read(name: str, path: Path, sha256: str) -> LoadedCheckpoint:
    state = read_state(path)
    layout: Layout = "transformers" if is_huggingface(state) else "segment-anything"
    if layout == "transformers":
        _insist_on_one_matrix(path, state)
        state = from_huggingface(state)
    architecture = _architecture(path, state)
    with torch.device("meta"), Uninitialised():
        expected = Sam(architecture).state_dict()
    problems = [f"{key} is missing" for key in expected if key not in state]
    problems += [f"{key} is not part of a SAM" for key in state if key not in expected and key not in _CONSTANTS]
    problems += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{path} is not a plain SAM checkpoint: {'; '.join(problems[:3])}{more}; {USABLE}")
    return LoadedCheckpoint(name, path, sha256, architecture, {key: state[key] for key in expected}, layout)


def _architecture(path: Path, state: dict[str, Tensor]) -> SamArchitecture:
    try:
        return SamArchitecture.of_state(state, decoder_heads=_decoder_heads(path))
    except KeyError as error:
        raise CheckpointError(
            f"{path} is not a SAM checkpoint: it has no tensor {error.args[0]!r} "
            f"(it has {len(state)} tensors, such as {next(iter(state), 'none')!r}); {USABLE}"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not a SAM this project can run: {error}; {USABLE}") from None


def _insist_on_one_matrix(path: Path, state: dict[str, Tensor]) -> None:
    """A SamModel has its positional matrix under two names. If they differ, no SAM computes what was trained."""
    names = names_of_the_shared_matrix(state)
    if len(names) > 1 and not torch.equal(*(state[name] for name in names)):
        raise CheckpointError(
            f"{path} is not a plain SAM checkpoint: {' and '.join(names)} should be one tensor and differ; {USABLE}"
        )


def _sha256_of(path: Path, *, cached: bool = False) -> str:
    try:
        return sha256_of_cached(path) if cached else sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions and its disk") from None


def _decoder_heads(path: Path) -> int:
    """The decoder's number of heads, which only a Hugging Face config.json beside the weights can tell."""
    config = path.parent / "config.json"
    if path.suffix != ".safetensors" or not config.is_file():
        return 8
    try:
        return int(json.loads(config.read_text()).get("mask_decoder_config", {}).get("num_attention_heads", 8))
    except (ValueError, TypeError, AttributeError):
        raise CheckpointError(f"{config} is not the configuration of a SamModel: fetch it again") from None
