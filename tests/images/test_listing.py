"""What an input stands for, which of its files count, and how images and shards are named."""

import errno
import os
import sys
from pathlib import Path

import fsspec
import pytest
from encoded import outcome, png, read_all, tar

from data_engine.errors import SourceError, StorageError, UsageError
from data_engine.images.patterns import expand_braces, root_of
from data_engine.images.settings import InputSettings
from data_engine.images.shard import UniqueIds
from data_engine.images.sources import check_unchanged, list_shards, read_shard

SETTINGS = InputSettings()


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for an input."""
    if request.param == "local":
        return str(tmp_path)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    return "memory://bucket/input"


def write(root: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        fs, path = fsspec.core.url_to_fs(f"{root}/{name}")
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(path, data)


def ids(uri: str, settings: InputSettings = SETTINGS) -> list[str]:
    return [image.image_id for image in read_all(uri, settings)]


def test_folder(root: str) -> None:
    files = {name: png(i) for i, name in enumerate(["b.png", "a.JPG", "sub/deep/c.webp", "sub/b.png", "a b#?%2F.gif"])}
    others = {"notes.txt": b"x", "sub/data.json": b"{}", ".hidden.png": b"x", ".git/x.png": b"x", "sub/._b.png": b"x"}
    write(root, files | others)
    listing = list_shards(root, SETTINGS)
    assert (listing.kind, listing.images, listing.warnings) == ("files", 5, ())
    assert sum(count for reason, count in listing.skipped.items() if reason.startswith("not an image")) == 2
    assert listing.skipped["hidden"] >= 2
    assert outcome(read_all(root)) == files
    assert ids(root) == sorted(files)
    assert ids(root + "/") == sorted(files)
    assert ids(root, InputSettings(recursive=False)) == ["a b#?%2F.gif", "a.JPG", "b.png"]
    assert ids(root, InputSettings(extensions=("png",))) == ["b.png", "sub/b.png"]


def test_glob_braces_and_single_files(root: str) -> None:
    write(root, {f"s{i:02d}/{name}.png": png(i) for i in range(12) for name in "xy"} | {"s00/x.txt": b""})
    assert ids(f"{root}/*/x.png") == [f"s{i:02d}/x.png" for i in range(12)]
    assert ids(f"{root}/s0[0-2]/*") == [f"s{i:02d}/{name}.png" for i in range(3) for name in "xy"]
    assert ids(f"{root}/**/x.png") == [f"s{i:02d}/x.png" for i in range(12)]
    assert ids(f"{root}/s{{08..11}}/x.png") == [f"s{i:02d}/x.png" for i in range(8, 12)]
    assert ids(f"{root}/s{{03,01}}/{{x,y}}.png") == ["s01/x.png", "s01/y.png", "s03/x.png", "s03/y.png"]
    assert ids(f"{root}/s{{00..01}}") == [f"s0{i}/{name}.png" for i in range(2) for name in "xy"]
    assert ids(f"{root}/s0?/x.png") == [f"s0{i}/x.png" for i in range(10)]
    assert ids(f"{root}/s03/x.png") == ["x.png"]
    with pytest.raises(SourceError, match="does not exist"):
        list_shards(f"{root}/s{{00..20}}/x.png", SETTINGS)


def test_names_with_brackets_and_braces_in_them(tmp_path: Path) -> None:
    names = ["a[1].png", "b{2}.png", "c{1,2}.png", "d*.png"]
    write(str(tmp_path), {name: png() for name in names})
    assert ids(str(tmp_path)) == names
    for name in names:
        assert ids(f"{tmp_path}/{name}") == [name]


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a.tar", ["a.tar"]),
        ("{}.tar", ["{}.tar"]),
        ("{a}.tar", ["{a}.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{000..002}.tar", ["000.tar", "001.tar", "002.tar"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{x}{a,}", ["{x}a", "{x}"]),
    ],
)
def test_braces(pattern: str, expanded: list[str]) -> None:
    assert expand_braces(pattern) == expanded


@pytest.mark.parametrize("pattern", ["{3..1}", "{0..99999999}", "{0..9999}{0..9999}"])
def test_braces_that_make_no_sense(pattern: str) -> None:
    with pytest.raises(UsageError):
        expand_braces(pattern)


def test_root_of_patterns() -> None:
    assert root_of("s3://b/x/y*/z{1..2}.tar") == "s3://b/x/"
    assert root_of("s3://b/x/a.tar") == "s3://b/x/"


def test_nothing_there(root: str) -> None:
    with pytest.raises(SourceError):
        list_shards(f"{root}/nothing", SETTINGS)
    write(root, {"a.txt.bak": b"x", "b.json": b"x", ".c.png": b""})
    with pytest.raises(SourceError, match="no images found"):
        list_shards(root, SETTINGS)
    with pytest.raises(SourceError, match="no images found"):
        list_shards(f"{root}/*.png", SETTINGS)
    with pytest.raises(SourceError, match=r"input\.kind"):
        list_shards(f"{root}/b.json", SETTINGS)


@pytest.mark.parametrize("uri", ["ftp://x/y", "simplecache::s3://b/k", "s3://key:secret@b/k", "reference://x"])
def test_urls_that_are_not_supported(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        list_shards(uri, SETTINGS)
    assert "secret" not in str(caught.value)


def test_folders_of_tars_and_what_lies_beside_them(root: str) -> None:
    write(
        root, {f"t/{i:03d}.tar": tar([("x.jpg", b"%d" % i)]) for i in range(3)} | {"t/index.json": b"", "t/z.tgz": b""}
    )
    listing = list_shards(root, SETTINGS)
    assert (listing.kind, listing.images, len(listing.shards)) == ("tar", None, 4)
    assert [shard.prefix for shard in listing.shards] == ["t/000.tar", "t/001.tar", "t/002.tar", "t/z.tgz"]
    expected = {f"t/{i:03d}.tar/x.jpg": b"%d" % i for i in range(3)}
    images = [image for shard in listing.shards[:3] for image in read_shard(shard, SETTINGS)]
    assert outcome(images) == expected
    assert ids(f"{root}/t/{{000..001}}.tar") == ["000.tar/x.jpg", "001.tar/x.jpg"]
    assert ids(f"{root}/t/002.tar") == ["002.tar/x.jpg"]
    write(root, {"photo.png": png()})
    listing = list_shards(root, SETTINGS)
    assert (listing.kind, listing.images) == ("files", 1)
    assert "input.kind=tar" in listing.warnings[0]
    assert list_shards(root, InputSettings(kind="tar")).kind == "tar"


@pytest.mark.parametrize("name", ["a.tar.zst", "a.tar.bz2", "a.zip"])
def test_other_archives_are_refused_clearly(root: str, name: str) -> None:
    write(root, {name: b"x"})
    for uri in (root, f"{root}/{name}"):
        with pytest.raises(SourceError, match=r"only \.tar, \.tar\.gz and \.tgz"):
            list_shards(uri, SETTINGS)


def test_the_kind_can_be_said(root: str) -> None:
    write(root, {"no-extension": png(), "archive": tar([("a.png", b"1")])})
    assert ids(f"{root}/archive", InputSettings(kind="tar")) == ["archive/a.png"]
    with pytest.raises(SourceError, match="no images found"):
        list_shards(f"{root}/no-extension", InputSettings(kind="files"))


def test_shards_are_named_by_what_is_in_them(root: str) -> None:
    write(root, {f"{i}.png": png(i) for i in range(7)})
    settings = InputSettings(images_per_shard=3)
    first = list_shards(root, settings)
    assert [shard.images for shard in first.shards] == [3, 3, 1]
    assert len({shard.id for shard in first.shards}) == 3
    assert all(len(shard.id) == 16 and int(shard.id, 16) >= 0 for shard in first.shards)
    assert list_shards(root, settings) == first
    write(root, {"7.png": png(7), "8.png": png(8), "9.png": png(9)})
    grown = list_shards(root, settings)
    assert [shard.id for shard in grown.shards][:2] == [shard.id for shard in first.shards][:2]
    write(root, {"0.png": png(100) + b"longer"})
    changed = list_shards(root, settings)
    assert [shard.id for shard in changed.shards] == [shard.id for shard in grown.shards]
    assert changed.shards[0].etag != first.shards[0].etag
    assert changed.shards[0].size != first.shards[0].size


def test_resume_in_a_shard_of_files(root: str) -> None:
    write(root, {f"{i}.png": png(i) for i in range(20)})
    (shard,) = list_shards(root, SETTINGS).shards
    whole = list(read_shard(shard, SETTINGS))
    assert [image.index for image in whole] == list(range(20))
    for start in (1, 19, 20):
        assert list(read_shard(shard, SETTINGS, start=start, seen_ids=["x"])) == whole[start:]
    reading = read_shard(shard, SETTINGS)
    next(reading)
    reading.close()


def test_files_that_vanish_or_change_are_failed_images(root: str) -> None:
    write(root, {f"{name}.png": png() for name in "abcde"})
    (shard,) = list_shards(root, SETTINGS).shards
    fs, path = fsspec.core.url_to_fs(root)
    fs.rm(f"{path}/b.png")
    write(root, {"c.png": png() + b"more", "d.png": b""})
    images = {image.image_id: image for image in read_shard(shard, SETTINGS)}
    assert [name for name, image in images.items() if image.error] == ["b.png", "c.png", "d.png"]
    assert {image.error.type for image in images.values() if image.error} == {"unreadable"}
    assert "not found" in str(images["b.png"].error)
    assert "changed" in str(images["c.png"].error)
    check_unchanged(shard)


def test_same_size_but_written_again(tmp_path: Path) -> None:
    write(str(tmp_path), {"a.png": png()})
    (shard,) = list_shards(str(tmp_path), SETTINGS).shards
    os.utime(tmp_path / "a.png", (1, 1))
    assert "changed" in str(next(read_shard(shard, SETTINGS)).error)


def test_empty_and_too_large_files(root: str) -> None:
    write(root, {"empty.png": b"", "large.png": bytes(1001), "ok.png": bytes(1000)})
    images = outcome(read_all(root, InputSettings(max_image_bytes=1000)))
    assert images == {"empty.png": "empty", "large.png": "too_large", "ok.png": bytes(1000)}


def test_links_pipes_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "far.png").write_bytes(b"far")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out" / "far.png")
    (tmp_path / "in" / "dangling.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "in")  # a cycle
    (tmp_path / "in" / "folder.png").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe.png")  # opening it would wait for ever
    images = outcome(read_all(tmp_path / "in"))
    assert images == {"link.png": b"far", "dangling.png": "unreadable"}
    listing = list_shards(str(tmp_path / "in"), SETTINGS)
    assert listing.skipped == {"links to folders": 1}
    assert "links to folders are not followed (1 of them)" in listing.warnings[0]


def test_a_folder_of_links_to_folders_says_so(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").write_bytes(b"a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "year").symlink_to(tmp_path / "far")
    with pytest.raises(SourceError, match="1 files are links to folders"):
        list_shards(str(tmp_path / "in"), SETTINGS)
    (tmp_path / "itself").symlink_to(tmp_path / "far")
    assert outcome(read_all(tmp_path / "itself")) == {"a.png": b"a"}


def test_faults_of_this_machine_are_not_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path), {"a.png": png()})
    (shard,) = list_shards(str(tmp_path), SETTINGS).shards

    def failing(error: OSError) -> None:
        def open_file(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(Path, "open", open_file)

    failing(OSError(errno.EIO, "Input/output error"))
    assert outcome(read_shard(shard, SETTINGS)) == {"a.png": "unreadable"}
    failing(PermissionError(errno.EACCES, "Permission denied"))
    assert str(next(read_shard(shard, SETTINGS)).error) == "Permission denied"
    for number, said in ((errno.EMFILE, "Too many open files"), (errno.ESTALE, "Stale file handle")):
        failing(OSError(number, said))
        with pytest.raises(StorageError, match=said):
            list(read_shard(shard, SETTINGS))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems hold no such names")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"1")
    except OSError:
        pytest.skip("this file system refuses such names")
    (image,) = read_all(tmp_path)
    assert (image.image_id, image.data) == ("caf\\xe9.png", b"1")
    assert image.uri.encode()
    Path(tmp_path / "caf\\xe9.png").write_bytes(b"2")  # a name that really is so
    images = read_all(tmp_path)  # one of the two cannot be reached any more, which is said
    assert [image.image_id for image in images] == ["caf\\xe9.png", "caf\\xe9.png#2"]
    assert sorted(image.data or b"" for image in images) == [b"", b"2"]


def test_unicode_forms_are_kept_apart(root: str) -> None:
    names = ["u\u0308.png", "\u00fc.png", "emoji 🦊.png", "quote'\".png"]
    write(root, {name: name.encode() for name in names})
    assert outcome(read_all(root)) == {name: name.encode() for name in names}


def test_unique_ids() -> None:
    names = ["a", "b", "a", "a#2", "a", "a#3", "a"]
    claimed = [UniqueIds.claim(ids, name) for ids in [UniqueIds()] for name in names]
    assert claimed == ["a", "b", "a#2", "a#2#2", "a#3", "a#3#2", "a#4"]
    for at in range(len(names)):
        ids = UniqueIds(claimed[:at])
        assert [ids.claim(name) for name in names[at:]] == claimed[at:]


@pytest.mark.parametrize(
    "wrong",
    [
        {"images_per_shard": 0},
        {"fetch_threads": 0},
        {"max_pixels": 0},
        {"max_image_bytes": 0},
        {"extensions": ()},
        {"extensions": (".jpg",)},
        {"extensions": ("JPG",)},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        InputSettings(**wrong)
