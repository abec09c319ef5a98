"""The whole training on small images: it learns, exports what loads everywhere, and gives up on what is not finite."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from train.blobs import Blobs, settings_for

from data_engine.errors import CheckpointError, ModelFailure, PlanMismatch, SourceError, StorageError, UsageError
from data_engine.sam.checkpoint_export import export_checkpoint
from data_engine.sam.checkpoints import load_checkpoint
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import load_segmenter
from data_engine.stop_signals import Stopped, StopSignals
from data_engine.train.supervised.average import AverageWeights
from data_engine.train.supervised.card import first_and_last
from data_engine.train.supervised.decoding_step import GradientStep
from data_engine.train.supervised.encoder import checkpoint_blocks
from data_engine.train.supervised.log_files import read_lines
from data_engine.train.supervised.optimizer import trained_parameters
from data_engine.train.supervised.run import Sources, Unwatched, train
from data_engine.train.supervised.starting_model import starting_model
from data_engine.train.supervised.state_file import write_state
from data_engine.train.supervised.validation import Validation
from data_engine.train.supervised.views import ViewMaker
from data_engine.train.supervised.workers import Alone

SOURCES = Sources(Blobs(6), Blobs(2))


def losses(folder) -> list[float]:
    return [line["loss"] for line in read_lines(folder / "log.jsonl")]


class CutAfter(Unwatched):
    def __init__(self, step):
        self.step = step

    def stepped(self, record):
        if record["step"] == self.step:
            raise KeyboardInterrupt


def cut(settings, sources, folder, step, **kwargs):
    with pytest.raises(KeyboardInterrupt):
        train(settings, sources, folder, watcher=CutAfter(step), **kwargs)


def test_what_is_trained_loads_here_and_is_described(tmp_path):
    weights = train(settings_for(), SOURCES, tmp_path)
    predictor = SamPredictor(load_segmenter(weights, "cpu"))
    predictor.set_image(np.zeros((60, 80, 3), np.uint8))
    masks, scores, _ = predictor.predict(np.array([[20.0, 30.0]]), np.ones(1))
    assert masks.shape == (3, 60, 80)
    assert np.isfinite(scores).all()
    exported = export_checkpoint(weights, tmp_path / "mine.pth", "segment-anything")
    assert load_checkpoint(exported.path).architecture == load_checkpoint(weights).architecture
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["weights"]["sha256"] == load_checkpoint(weights).sha256
    assert card["progress"]["steps"] == 4
    assert card["data"]["training"] == {"images": 6}
    assert [line["step"] for line in card["evaluation"]] == [0, 4]
    assert "| 1 | best of three |" in (tmp_path / "README.md").read_text()
    assert len(list((tmp_path / "pictures").glob("step-*/*.jpg"))) == 2


def test_what_is_compared_are_validations_of_the_same_masks():
    """The held-out images are no part of what may not change when a run goes on."""
    lines = [{"step": step, "images": images, "masks": 9} for step, images in ((0, 2), (2, 3), (4, 3), (6, 3))]
    assert [line["step"] for line in first_and_last(lines)] == [2, 6]
    assert [line["step"] for line in first_and_last(lines[:1])] == [0, 0]


def test_what_is_exported_is_the_average(tmp_path):
    weights = train(settings_for(), SOURCES, tmp_path)
    average = torch.load(tmp_path / "state.pt", weights_only=True)["average"]
    for name, tensor in load_file(weights).items():
        if name in average:
            assert torch.equal(tensor, average[name]), name


def test_it_learns(tmp_path):
    settings = settings_for(
        train={"steps": 30, "images_per_batch": 1}, optimizer={"learning_rate": 5e-3}, prompts={"corrections": 0}
    )
    train(settings, Sources(Blobs(1)), tmp_path)
    found = losses(tmp_path)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])


def test_frozen_weights_stay_and_others_do_not(tmp_path):
    settings = settings_for(train={"frozen": ["image_encoder.*"]}, run={"embeddings": "disk"})
    before = starting_model(settings).model.state_dict()
    after = load_file(train(settings, Sources(Blobs(4)), tmp_path))
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"prompt_encoder", "mask_decoder"}
    assert list((tmp_path / "embeddings").glob("*.npy"))


def test_adapters_are_exported_as_plain_weights(tmp_path):
    pytest.importorskip("peft")
    weights = train(settings_for(model={"lora": {"rank": 2}}), Sources(Blobs(4)), tmp_path)
    before = starting_model(settings_for()).model.state_dict()
    after = load_file(weights)
    changed = {
        name for name in after if name.startswith("image_encoder") and not torch.equal(after[name], before[name])
    }
    assert changed == {
        f"image_encoder.blocks.{block}.attn.{layer}.weight" for block in (0, 1) for layer in ("qkv", "proj")
    }
    load_checkpoint(weights)


def test_a_cut_run_goes_on_to_the_same_weights(tmp_path):
    """Whatever is random is drawn again: views, prompts, stochastic depth."""
    settings = settings_for(train={"steps": 6, "drop_path": 0.3, "images_per_batch": 1, "accumulate": 2})
    whole = load_file(train(settings, SOURCES, tmp_path / "whole"))

    cut(settings, SOURCES, tmp_path / "cut", 3)
    assert len(losses(tmp_path / "cut")) == 3  # the state is of step 2
    resumed = load_file(train(settings, SOURCES, tmp_path / "cut"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert read_lines(tmp_path / "cut" / "validation.jsonl") == read_lines(tmp_path / "whole" / "validation.jsonl")


class SignalAt(Unwatched):
    """Asks this process to end while a step is made."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, record) -> None:
        if record["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class BeginsAt(Unwatched):
    def __init__(self, step: int) -> None:
        self.step = step

    def began(self, step: int, steps: int) -> None:
        assert step == self.step


def assert_same_curves(folder, other) -> None:
    assert losses(folder) == losses(other)
    assert read_lines(folder / "validation.jsonl") == read_lines(other / "validation.jsonl")
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_signal_ends_it_after_the_step_and_nothing_of_it_is_lost(tmp_path):
    settings = settings_for(train={"steps": 5, "drop_path": 0.3}, run={"state_every_steps": 100})
    train(settings, SOURCES, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        train(settings, SOURCES, tmp_path / "stopped", watcher=SignalAt(3))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(losses(tmp_path / "stopped")) == 3
    train(settings, SOURCES, tmp_path / "stopped", watcher=BeginsAt(3))
    assert_same_curves(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("at", [2, 4])  # 4: the last step
def test_a_signal_ends_a_validation_at_once_and_it_is_made_up_for(at, tmp_path, monkeypatch):
    settings = settings_for(run={"state_every_steps": 100, "validate_every_steps": 2})
    train(settings, SOURCES, tmp_path / "whole")
    measure = Validation.measure

    def interrupted(self, model, step, asked_to_end):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return measure(self, model, step, asked_to_end)

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "measure", interrupted)
        with pytest.raises(Stopped):
            train(settings, SOURCES, tmp_path / "stopped")
    assert [line["step"] for line in read_lines(tmp_path / "stopped" / "validation.jsonl")] == list(range(0, at, 2))
    with pytest.raises(KeyboardInterrupt):  # killed when it is made up for, before there is another state
        train(settings, SOURCES, tmp_path / "stopped", watcher=CutAtValidation(at))
    train(settings, SOURCES, tmp_path / "stopped", watcher=BeginsAt(at))
    assert_same_curves(tmp_path / "stopped", tmp_path / "whole")


class Away(Blobs, Unwatched):
    """A store that sends nothing more from the third step on; this process is asked to end while it is waited for."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.two_steps, self.ended = threading.Event(), threading.Event()

    def stepped(self, record):
        if record["step"] == 2:
            self.two_steps.set()

    def undecoded(self, epoch: int, **share: int):
        for number, entry in enumerate(super().undecoded(epoch, **share)):
            yield entry if number < 4 else replace(entry, decode=self._wait)

    def _wait(self):
        self.two_steps.wait(100)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        self.ended.wait(100)


def test_a_signal_ends_the_waiting_for_data_at_once_and_no_step_is_lost(tmp_path):
    settings = settings_for(run={"state_every_steps": 100, "loader_threads": 1})
    train(settings, SOURCES, tmp_path / "whole")
    away = Away(6)
    with pytest.raises(Stopped):
        train(settings, Sources(away, SOURCES.validation), tmp_path / "stopped", watcher=away)
    away.ended.set()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")[:2]
    train(settings, SOURCES, tmp_path / "stopped", watcher=BeginsAt(2))
    assert_same_curves(tmp_path / "stopped", tmp_path / "whole")


def test_a_signal_while_a_state_is_written_makes_no_further_step(tmp_path, monkeypatch):
    states = []

    def write(folder, identity, state):
        write_state(folder, identity, state)
        states.append(state["workers"][0]["progress"]["step"])
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("data_engine.train.supervised.training.write_state", write)
    with pytest.raises(Stopped):
        train(settings_for(), SOURCES, tmp_path)
    assert states == [2]
    assert len(losses(tmp_path)) == 2


@pytest.mark.parametrize("call", [3, 4])  # at step 2: the average into the model, and the weights back
def test_a_signal_while_weights_are_put_mixes_none(call, tmp_path, monkeypatch):
    settings = settings_for(run={"state_every_steps": 100, "validate_every_steps": 2})
    train(settings, SOURCES, tmp_path / "whole")
    put, calls = AverageWeights.put, []

    def interrupted(self, weights):
        calls.append(weights)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        put(self, weights)

    with monkeypatch.context() as patched:
        patched.setattr(AverageWeights, "put", interrupted)
        with pytest.raises(Stopped):
            train(settings, SOURCES, tmp_path / "stopped")
    train(settings, SOURCES, tmp_path / "stopped", watcher=BeginsAt(2))
    assert_same_curves(tmp_path / "stopped", tmp_path / "whole")


class Bell(StopSignals, Unwatched):
    """As a worker of several hears of it, in a thread that gets no signal."""

    def __init__(self) -> None:
        super().__init__(pytest.fail)

    def stepped(self, record) -> None:
        if record["step"] == 2:
            self._event.set()

    @contextmanager
    def at_once(self):
        yield


def test_one_that_gets_no_signal_ends_a_validation_between_images(tmp_path):
    settings = settings_for(run={"state_every_steps": 100, "validate_every_steps": 2})
    train(settings, SOURCES, tmp_path / "whole")
    bell = Bell()
    with pytest.raises(Stopped):
        train(settings, SOURCES, tmp_path / "stopped", watcher=bell, stop=bell)
    assert [line["step"] for line in read_lines(tmp_path / "stopped" / "validation.jsonl")] == [0]
    train(settings, SOURCES, tmp_path / "stopped", watcher=BeginsAt(2))
    assert_same_curves(tmp_path / "stopped", tmp_path / "whole")


class CutAtValidation(Unwatched):
    def __init__(self, step: int) -> None:
        self.step = step

    def validated(self, record) -> None:
        if record["step"] == self.step:
            raise KeyboardInterrupt


def test_a_finished_run_is_left_as_it_is_and_another_is_refused(tmp_path):
    weights = train(settings_for(), SOURCES, tmp_path)
    before = weights.read_bytes()
    train(settings_for(run={"state_every_steps": 1}), SOURCES, tmp_path)
    assert weights.read_bytes() == before
    with pytest.raises(PlanMismatch, match=r"train\.steps: 4 -> 9.*choose another --output"):
        train(settings_for(train={"steps": 9}), SOURCES, tmp_path)
    (tmp_path / "state.pt").write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        train(settings_for(), SOURCES, tmp_path)


def test_another_training_that_is_refused_changes_no_file(tmp_path):
    cut(settings_for(), SOURCES, tmp_path, 3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(PlanMismatch, match=r"train\.steps: 4 -> 9"):
        train(settings_for(train={"steps": 9}), SOURCES, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_card_of_a_finished_run_keeps_what_was_passed_over(tmp_path):
    class Damaged(Blobs):
        passed_over = 0

        def epoch(self, epoch, **kwargs):
            self.passed_over += 1
            return super().epoch(epoch, **kwargs)

        def describe(self):
            return {"passed_over": self.passed_over}

    train(settings_for(), Sources(Damaged(4)), tmp_path)
    card = (tmp_path / "card.json").read_bytes()
    assert json.loads(card)["data"]["training"]["passed_over"]
    train(settings_for(), Sources(Damaged(4)), tmp_path)
    assert (tmp_path / "card.json").read_bytes() == card
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    train(settings_for(), Sources(Damaged(4)), tmp_path)
    load_checkpoint(tmp_path / "model.safetensors")


def test_a_state_of_a_machine_with_more_gpus_is_gone_on_with(tmp_path, monkeypatch):
    """On a CPU, or on the one GPU that there is: the states of other devices are nothing to a training."""
    cut(settings_for(), SOURCES, tmp_path, 3)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["workers"][0]["random_cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 8
    torch.save(state, tmp_path / "state.pt")

    def refused(*_):
        raise IndexError("this machine has fewer")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", refused)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", refused)
    train(settings_for(), SOURCES, tmp_path)


def test_data_that_have_grown_since_are_said(tmp_path, caplog):
    cut(settings_for(), SOURCES, tmp_path, 3)
    train(settings_for(), Sources(Blobs(7)), tmp_path)
    assert "the data had 6 images when this training was cut and have 7 now" in caplog.text


def test_what_a_kill_left_of_a_state_is_removed(tmp_path):
    (tmp_path / ".state.pt.0a1b2c3d.tmp").write_bytes(b"gigabytes")
    train(settings_for(train={"steps": 1}), SOURCES, tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_is_said_in_a_line(tmp_path, monkeypatch):
    """Where torch complains of something else, since it looks at how far the file came."""
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda _, mode: plain(Path("/dev/full"), mode, buffering=0))
    with pytest.raises(StorageError, match=r"state\.pt cannot be written \(No space left on device\): free some"):
        write_state(tmp_path, {}, {"weights": torch.zeros(100_000)})


def test_a_disk_that_is_full_while_logs_are_written_is_said_in_a_line(tmp_path, monkeypatch):
    plain = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *args, **names: plain(Path("/dev/full") if args == ("a",) else path, *args, **names)
    )
    with pytest.raises(StorageError, match=r"jsonl cannot be written \(No space left on device\): free some space"):
        train(settings_for(), SOURCES, tmp_path)


def test_a_link_that_is_signed_anew_names_the_same_model_and_data(tmp_path):
    signed = "https://store/model.pth?X-Amz-Expires=60&X-Amz-Signature="
    once, again = (settings_for(model={"name": signed + secret}) for secret in ("5ec2e7", "a6a1n"))
    assert once.content() == again.content()
    assert once.content()["model"]["name"] == "https://store/model.pth"
    data = f"sa1b:{signed}"
    validated = settings_for(data={"validation": data + "5ec2e7"})
    cut(validated, SOURCES, tmp_path, 3, data_name=data + "5ec2e7")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"5ec2e7" in path.read_bytes()]
    train(validated, SOURCES, tmp_path, data_name=data + "a6a1n")


def test_counts_of_the_card_are_of_all_workers(tmp_path):
    class Two(Alone):
        def gather(self, value):
            return [value, value] if isinstance(value, tuple) else [value]

    train(settings_for(), Sources(Blobs(5, bare=(1, 3))), tmp_path / "two", workers=Two())
    train(settings_for(), Sources(Blobs(5, bare=(1, 3))), tmp_path / "one")
    two, one = (json.loads((tmp_path / name / "card.json").read_text())["progress"] for name in ("two", "one"))
    for count in ("prompted_masks", "images_without_masks_passed_over"):
        assert two[count] == 2 * one[count] > 0


def test_images_without_masks_are_passed_over_and_counted(tmp_path):
    train(settings_for(), Sources(Blobs(5, bare=(1, 3))), tmp_path)
    progress = json.loads((tmp_path / "card.json").read_text())["progress"]
    assert progress["images"] == 8
    assert progress["images_without_masks_passed_over"] >= 3
    with pytest.raises(SourceError, match="no image with a mask to prompt"):
        train(settings_for(), Sources(Blobs(2, bare=(0, 1))), tmp_path / "none")
    with pytest.raises(SourceError, match="no image with a mask to prompt"):
        train(settings_for(), Sources(Blobs(0)), tmp_path / "empty")


def test_a_model_that_answers_nothing_finite_is_given_up(tmp_path):
    weights = load_file(train(settings_for(), Sources(Blobs(2)), tmp_path / "good"))
    weights["mask_decoder.mask_tokens.weight"].fill_(math.nan)
    save_file(weights, tmp_path / "bad.safetensors")
    settings = settings_for(model={"name": str(tmp_path / "bad.safetensors")}, train={"steps": 9, "give_up_after": 3})
    with pytest.raises(ModelFailure, match=r"not finite for 3 steps in a row, up to step 3: lower optimizer"):
        train(settings, Sources(Blobs(2)), tmp_path / "run")
    assert [line["skipped"] for line in read_lines(tmp_path / "run" / "log.jsonl")] == [1, 2]


def test_too_little_memory_is_said_with_what_needs_less(tmp_path, monkeypatch):
    def run(self, examples):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(GradientStep, "run", run)
    with pytest.raises(ModelFailure, match=r"out of memory after step 0: set run\.gradient_checkpointing=true"):
        train(settings_for(), SOURCES, tmp_path)


def test_a_step_that_is_not_finite_changes_nothing(tmp_path, monkeypatch):
    plain = GradientStep.run
    calls = []

    def poisoned(self, examples):
        figures = plain(self, examples)
        calls.append({name: p.detach().clone() for name, p in trained_parameters(self.model)})
        if len(calls) == 2:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(math.inf)
        return figures

    monkeypatch.setattr(GradientStep, "run", poisoned)
    train(settings_for(), Sources(Blobs(4)), tmp_path)
    assert all(torch.equal(calls[1][name], tensor) for name, tensor in calls[2].items())
    assert any(not torch.equal(calls[2][name], tensor) for name, tensor in calls[3].items())
    assert json.loads((tmp_path / "card.json").read_text())["progress"]["steps_skipped"] == 1


def gradients(settings):
    start = starting_model(settings)
    if settings.run.gradient_checkpointing:
        checkpoint_blocks(start.model.image_encoder)
    maker = ViewMaker(settings.data, 4, 0, 64, 64)
    examples = [maker.view(image, 0) for image in Blobs(2).epoch(0, seed=0)]
    GradientStep(start.model, settings, torch.device("cpu"), None, "").run(examples)
    return {name: p.grad for name, p in trained_parameters(start.model) if p.grad is not None}


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"gradient_checkpointing": True}},
        {"train": {"images_per_batch": 1, "accumulate": 2}},
    ],
    ids=["checkpointing", "accumulation"],
)
def test_saving_memory_changes_no_gradient(sections):
    plain, saving = gradients(settings_for()), gradients(settings_for(**sections))
    assert plain.keys() == saving.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_bfloat16_gradients_point_the_same_way():
    plain, half = gradients(settings_for()), gradients(settings_for(train={"precision": "bfloat16"}))
    a, b = (torch.cat([g.flatten() for g in found.values()]) for found in (plain, half))
    assert all(gradient.dtype == torch.float32 for gradient in half.values())
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.98


def test_an_impossible_size_of_the_loss_is_explained(tmp_path):
    with pytest.raises(UsageError, match=r"loss\.upsample=4 makes masks of 128 pixels"):
        train(settings_for(loss={"upsample": 4}), SOURCES, tmp_path)
    with pytest.raises(UsageError, match="local folder"):
        train(settings_for(), SOURCES, "s3://bucket/run")


def test_tensorboard_gets_the_curve(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(settings_for(run={"tensorboard": True}), SOURCES, tmp_path)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert "validation/1 clicks best_of_three" in events.Tags()["scalars"]
    assert events.Tags()["images"]
