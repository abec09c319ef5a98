"""Trains a SAM from scratch: python -m data_engine.train --config configs/starter.yaml --output DIR

Started again with the same output folder it continues where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path

import torch

from data_engine.errors import ConfigError
from data_engine.sam.checkpoints import read_checkpoint
from data_engine.sam.model import Sam
from data_engine.train.config import TrainConfig, load_config
from data_engine.train.enlarge import enlarged
from data_engine.train.initialise import new_model
from data_engine.train.photographs import load_photographs, load_textures
from data_engine.train.samples import SampleStream, batches
from data_engine.train.scenes import SceneMaker
from data_engine.train.textures import TextureBank
from data_engine.train.trainer import Trainer

logger = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_engine.train", description="Train a SAM from scratch.")
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoint and log")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of the model")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config)
    torch.manual_seed(config.seed)
    trainer = Trainer(start_model(config), config, arguments.output)
    if trainer.resume():
        logger.info("continuing from step %d", trainer.progress.step)
    else:
        arguments.output.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(dataclasses.asdict(config), indent=1, default=str)
        (arguments.output / "settings.json").write_text(settings + "\n")
    stream = sample_stream(config)
    logger.info("%d photographs, %d textures", len(stream.photographs), len(stream.scenes.bank.fields))
    trainer.run(
        batches(
            stream,
            start=trainer.progress.step,
            count=config.steps,
            size=config.images_per_step,
            workers=config.data.workers,
        )
    )


def start_model(config: TrainConfig) -> Sam:
    """Raises CheckpointError for weights that cannot be read, ConfigError for those of another architecture."""
    if config.start is None:
        return new_model(config.architecture)
    stored = read_checkpoint(config.start)
    wanted = config.architecture
    found = dataclasses.replace(stored.architecture, image_size=wanted.image_size)
    if found != wanted or stored.architecture.image_size > wanted.image_size:
        raise ConfigError(f"{config.start} holds {stored.architecture}, which cannot grow into {wanted}")
    return enlarged(stored.architecture, stored.state, wanted.image_size, config.start_zoom)


def sample_stream(config: TrainConfig) -> SampleStream:
    photographs = load_photographs(config.data.photographs)
    pictures = [photograph.pixels for photograph in photographs] + load_textures(config.data.photographs / "textures")
    bank = TextureBank.drawn(config.seed, config.data.textures, pictures)
    size = config.architecture.image_size
    return SampleStream(
        config.data, config.seed, size, 4 * config.architecture.grid, SceneMaker(bank, photographs), photographs
    )


if __name__ == "__main__":
    main()
