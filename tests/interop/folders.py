"""Small models in engine folders, with a tokenizer of 600 pieces: what the tests of this room convert."""

import io
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from internevo_engine.config.schema import ModelConfig
from internevo_engine.data.corpora import Document
from internevo_engine.data.tokenizers import TRAINER_SETTINGS
from internevo_engine.interop.engine_folder import load_weights, open_engine, write_config
from internevo_engine.interop.folder import write_weights
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.initialize import build

VOCAB, SEQ_LEN = 640, 32
CPU = torch.device("cpu")
