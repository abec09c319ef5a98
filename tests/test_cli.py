"""The command line as a person meets it: exit codes, one-line errors, help, dry runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline.tiny_job import KEEP_ALL, save_model, write_photos, write_tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.safetensors, photos/, and masks/ made from them."""
    folder = tmp_path_factory.mktemp("cli")
    save_model(folder / "tiny.safetensors")
    write_photos(folder / "photos", 4)
    done = run(folder, "generate", "photos", "masks", *tiny())
    assert done.returncode == 0, done.stderr
    return folder


def tiny() -> list[str]:
    settings = [part for value in KEEP_ALL for part in ("--set", value)]
    return ["--config", "reference", "--model", "tiny.safetensors", "--device", "cpu", *settings]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_engine.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_generate_prints_its_result_on_stdout_and_its_progress_on_stderr(folder):
    done = run(folder, "generate", "photos", "masks", *tiny())
    assert done.returncode == 0
    assert done.stdout.startswith("masks: 4 images, ")
    assert "resuming: 4 images are committed already" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_audit_and_export(folder, tmp_path):
    status = run(folder, "status", "masks")
    assert (status.returncode, "complete" in status.stdout) == (0, True)
    audit = run(folder, "audit", "masks")
    assert (audit.returncode, "audit passed: 4 images" in audit.stdout) == (0, True)
    export = run(folder, "export", "masks", str(tmp_path / "sa1b"), "--format", "sa1b")
    assert (export.returncode, "4 images" in export.stdout) == (0, True)
    assert len(list((tmp_path / "sa1b").glob("sa_*.json"))) == 4
    pictures = run(folder, "export", "masks", str(tmp_path / "pictures"), "--format", "overlays", "--limit", "2")
    assert (pictures.returncode, len(list((tmp_path / "pictures").glob("*.jpg")))) == (0, 2)


def test_failed_images_are_exit_code_3_and_are_named(folder, tmp_path):
    write_tar(tmp_path / "a.tar", 3, broken=(1,))
    done = run(folder, "generate", str(tmp_path / "a.tar"), str(tmp_path / "out"), *tiny())
    assert done.returncode == 3
    assert "a.tar/00001.jpg" in done.stderr


def test_a_failed_audit_is_exit_code_1(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "masks", tmp_path / "masks")
    next((tmp_path / "masks" / "masks").iterdir()).unlink()
    done = run(folder, "audit", str(tmp_path / "masks"))
    assert done.returncode == 1
    assert "cannot be read" in done.stdout


def test_a_dry_run_shows_the_plan_and_writes_nothing(folder):
    done = run(folder, "generate", "photos", "nothing", "--dry-run", *tiny())
    assert done.returncode == 0
    assert not (folder / "nothing").exists()
    assert "4 images" in done.stdout
    assert "points_per_side: 4" in done.stdout
    again = run(folder, "generate", "photos", "masks", "--dry-run", *tiny())
    assert "complete: nothing is left to do" in again.stdout


def test_a_dry_run_that_calibrates_tells_what_comes_out_and_what_room_there_is(folder):
    done = run(folder, "generate", "photos", "nothing", "--dry-run", "--calibrate", "2", *tiny())
    assert done.returncode == 0, done.stderr
    assert re.search(r"output +[\d.]+ \w+, [\d.]+ \wB free there", done.stdout)
    assert not (folder / "nothing").exists()


def test_a_dry_run_on_a_job_that_was_begun_tells_what_a_resumed_one_would_do(folder, tmp_path):
    """It goes on with its plan, whatever the input has gained since."""
    photos = write_photos(tmp_path / "photos", 4)
    job = ("generate", str(photos), str(tmp_path / "masks"), *tiny(), "--set", "output.images_per_commit=2")
    assert run(folder, *job).returncode == 0
    (tmp_path / "masks" / "_manifest.json").unlink()
    max((tmp_path / "masks" / "_commits").iterdir()).unlink()  # as if it had been killed
    (photos / "new.jpg").write_bytes((photos / "000.jpg").read_bytes())
    dry = run(folder, *job, "--dry-run")
    assert "would be resumed after 2 images" in dry.stdout
    assert "1 shards, 4 images" in dry.stdout
    assert "the input has 1 entries that are not in this dataset's plan" in dry.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "nowhere", "out"], 1, "nowhere"),
        (["generate", "photos", "out", "--set", "masks.point_per_side=3"], 2, "points_per_side"),
        (["generate", "photos", "out", "--config", "sa2b"], 2, "sa1b"),
        (["generate", "photos", "out", "--model", "sam_vit_x"], 1, "sam_vit_h"),
        (["generate", "photos", "out", "--device", "tpu"], 2, "tpu"),
        (["generate", "photos"], 2, "OUTPUT"),
        (["generate", "photos", "out", "--limit", "0"], 2, "limit"),
        (["generate", "ftp://host/photos", "out"], 2, "ftp"),
        (["generate", "photos", "s3://user:pass@bucket/x"], 2, "credentials do not belong in a URL"),
        (["generate", "photos", "masks", "--set", "masks.points_per_side=5"], 1, "points_per_side"),
        (["status", "photos"], 1, "no dataset at photos"),
        (["audit", "photos"], 1, "no dataset at photos"),
        (["export", "photos", "x", "--format", "sa1b"], 1, "no dataset at photos"),
        (["export", "masks", "x", "--format", "xml"], 2, "sa1b"),
        (["models", "fetch", "sam"], 2, "sam_vit_b"),
        (["doctor", "--model", "nowhere.pth"], 1, "nowhere.pth"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_errors_are_one_line_with_the_remedy(folder, arguments, code, message):
    if "generate" in arguments and "--model" not in arguments:
        arguments = [*arguments[:3], "--model", "tiny.safetensors", *arguments[3:]] if len(arguments) > 2 else arguments
    done = run(folder, *arguments)
    shown = done.stdout + done.stderr
    assert done.returncode == code, shown
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "arguments",
    [[], ["generate"], ["status"], ["audit"], ["export"], ["models"], ["config"], ["config", "show"], ["doctor"]],
)
def test_every_command_has_help(folder, arguments):
    done = run(folder, *arguments, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_help_of_the_main_commands_has_examples(folder):
    from typer.testing import CliRunner

    from data_engine.cli import app

    silent = {"status", "audit", "models", "config", "doctor"}  # their usage line says it all
    names = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    for command in sorted(names - silent):
        assert "Examples" in CliRunner().invoke(app, [command, "--help"]).stdout, command


def test_doctor_finds_a_healthy_set_up(folder, tmp_path):
    done = run(folder, "doctor", str(tmp_path / "out"), "--model", "tiny.safetensors", "--device", "cpu")
    assert done.returncode == 0, done.stdout
    for subject in ("software", "machine", "device", "model", "store", "disk"):
        assert subject in done.stdout


def test_models_and_presets_are_listed(folder):
    assert all(name in run(folder, "models").stdout for name in ("starter", "sam_vit_b", "sam_vit_l", "sam_vit_h"))
    assert "sa1b" in run(folder, "config", "list").stdout


def test_names_that_look_like_markup_are_printed_as_they_are(folder, tmp_path):
    name = "o[/b][red]x:cat:y"
    photos = write_photos(tmp_path / f"in{name}", 2)
    (photos / f"{name.replace('/', '')}.jpg").write_bytes(b"no picture")
    out = str(tmp_path / name)
    for command, code in (
        (["generate", str(photos), out, *tiny(), "--dry-run"], 0),
        (["generate", str(photos), out, *tiny()], 3),
        (["status", out], 0),
        (["audit", out], 0),
        (["export", out, f"{out}-x", "--format", "overlays"], 0),
        (["export", out, f"{out}-y", "--format", "sa1b"], 0),
        (["status", f"{out}-none"], 1),
    ):
        done = run(folder, *command)
        shown = done.stdout + done.stderr
        assert done.returncode == code, shown
        assert "Traceback" not in shown
        if command[0] != "audit":
            assert name in "".join(shown.split()), shown  # a table may wrap it


def test_a_name_that_is_no_text_is_shown_escaped(folder, tmp_path):
    out = os.fsdecode(bytes(tmp_path) + b"/o\xff")
    done = run(folder, "generate", "photos", out, *tiny())
    assert done.returncode == 0, done.stderr
    assert "o\\udcff: 4 images" in done.stdout


@pytest.mark.parametrize("options", [["sa1b"], ["sa1b", "--images-per-tar", "2"], ["overlays"]], ids=" ".join)
def test_an_export_that_cannot_be_written_is_one_line(folder, options):
    done = run(folder, "export", "masks", "/proc/zz", "--format", *options)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.strip()][-1].startswith("error: /proc/zz")
    assert "Traceback" not in done.stderr


def test_a_plan_that_is_no_plan(folder, tmp_path):
    (tmp_path / "out/_plan").mkdir(parents=True)
    (tmp_path / "out/_plan/job.json").write_text("[]")
    done = run(folder, "status", str(tmp_path / "out"))
    assert (done.returncode, "is damaged" in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_that_cannot_begin_does_not_claim_its_output(folder, tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    for wrong in (["--model", str(tmp_path / "bad.pth")], ["--device", "tpu"], ["--model", "nowhere.pth"]):
        assert run(folder, "generate", "photos", str(tmp_path / "out"), *tiny(), *wrong).returncode in (1, 2)
    assert not (tmp_path / "out").exists()
    done = run(folder, "generate", "photos", str(tmp_path / "out"), *tiny())
    assert done.returncode == 0, done.stderr


def test_doctor_leaves_nothing_behind(folder, tmp_path):
    for options in ([], ["--single-writer"]):
        done = run(folder, "doctor", str(tmp_path / "a/b"), "--model", "tiny.safetensors", "--device", "cpu", *options)
        assert done.returncode == 0, done.stdout
        assert "single writer" in done.stdout or not options
        assert list(tmp_path.iterdir()) == []


def test_tracebacks_are_for_debug_only_and_hold_no_secrets(folder):
    link = "https://host.invalid/a.tar?X-Amz-Signature=planted"
    for options in ([], ["--debug"]):
        done = run(folder, *options, "generate", link, "out", *tiny())
        assert done.returncode == 1
        assert ("Traceback" in done.stderr) == bool(options)
        assert "planted" not in done.stdout + done.stderr
