"""Jobs on a real Ray cluster of this machine, and images that kill, hang or fill the process that decodes them."""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from pipeline.tiny_job import KEEP_ALL, config_for, picture, save_model

from data_engine.config import JobConfig

SEGFAULT, HANG, EAT = b"poison: segfault", b"poison: hang", b"poison: eat memory"


def poisoned(data: bytes, poison: bytes) -> bytes:
    """The same picture with a comment in it, that `arm` makes worker processes obey."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "JPEG", quality=95, comment=poison)
    return buffer.getvalue()


def arm() -> None:
    """In every worker process: decoding a poisoned image does what its comment says. The environment says more:

    BAD_NODE is unfit; on EMPTY_NODE (or "all") data_engine is not installed; while the file FULL_DISK exists, the disk
    is full; for STORE_PATIENCE seconds a store is tried again; the first processes, one for each file in the folder
    FROZEN_STARTS, stop before they have said anything.
    """
    import ray

    if folder := os.environ.get("FROZEN_STARTS"):
        freeze_some(Path(folder))
    if os.environ.get("EMPTY_NODE") in ("all", ray.get_runtime_context().get_node_id()):
        forget_the_package()
        return
    if flag := os.environ.get("FULL_DISK"):
        fill_disk_while(Path(flag))
    if patience := os.environ.get("STORE_PATIENCE"):
        from data_engine.retry import PATIENT

        object.__setattr__(PATIENT, "seconds", float(patience))
    poison_images()


def freeze_some(folder: Path) -> None:
    """Of as many processes as the folder has files, each takes one away and stands still, as on a hanging disk."""
    for ticket in folder.iterdir():
        try:
            ticket.unlink()
        except FileNotFoundError:
            continue
        os.kill(os.getpid(), signal.SIGSTOP)
        return


def forget_the_package() -> None:
    """Importing data_engine fails from now on as where it was never installed."""

    class Nowhere:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.partition(".")[0] == "data_engine":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "data_engine"]:
        del sys.modules[name]
    sys.meta_path.insert(0, Nowhere())  # type: ignore[arg-type]


def fill_disk_while(flag: Path) -> None:
    """While the file exists, the kernel refuses what is written, in the middle: a size limit stands in for the disk."""
    from data_engine.pipeline import slice_committer

    put = slice_committer.put

    def full(*arguments: Any) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if flag.exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            put(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    slice_committer.put = full


def poison_images() -> None:
    import ray

    from data_engine.pipeline import ray_worker, rows

    check_node = ray_worker.ClusterWorker._check_node

    def checked(self: ray_worker.ClusterWorker, config: JobConfig) -> str:
        if ray.get_runtime_context().get_node_id() == os.environ.get("BAD_NODE"):
            raise ray_worker.Unfit("its disk smells of smoke")
        return check_node(self, config)

    ray_worker.ClusterWorker._check_node = checked  # type: ignore[method-assign]

    decode = rows.decode

    def armed(data: bytes, settings: object) -> object:
        if SEGFAULT in data:
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        if HANG in data:
            time.sleep(10_000)
        if EAT in data:
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20) * 64))
                time.sleep(0.01)
        return decode(data, settings)

    rows.decode = armed  # type: ignore[assignment]


def write_tars(folder: Path, shards: int, images: int, poison: dict[int, bytes] | None = None) -> str:
    """`shards` tars of `images` images each, numbered through; returns their glob."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(shard * images, (shard + 1) * images):
                data = picture(number)
                if poison and number in poison:
                    data = poisoned(data, poison[number])
                member = tarfile.TarInfo(f"{number:05d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(folder / "*.tar")


def cluster_config(folder: Path, *overrides: str) -> JobConfig:
    """A tiny model, two images a commit, workers of one CPU."""
    model = folder / "tiny.safetensors"
    if not model.exists():
        save_model(model)
    common = ("run.engine=ray", "run.ray.cpus_per_worker=1", "output.images_per_commit=2", "run.decode_threads=1")
    return config_for(model, *KEEP_ALL, *common, *overrides)
