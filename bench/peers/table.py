"""The peers by name, with what each is good for in a comparison."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from bench.peers.engine import build_engine, build_engine_alone
from bench.peers.peer import BuildPeer
from bench.peers.with_deepspeed import build_deepspeed
from bench.peers.with_torch import build_ddp, build_fsdp, build_local

Kind = Literal["engine", "peer", "compute"]


@dataclass(frozen=True)
class Row:
    """An implementation."""

    build: BuildPeer
    kind: Kind = "peer"
    """compute: no communication, so its losses are each rank's own."""
    wire: Literal["fp32", "bf16"] = "fp32"
    """What gradients travel in; the engine's is a setting."""


PEERS: Mapping[str, Row] = {
    "engine": Row(build_engine, "engine"),
    "engine-local": Row(build_engine_alone, "compute"),
    "local": Row(partial(build_local, compiled=False), "compute"),
    "local-compiled": Row(partial(build_local, compiled=True), "compute"),
    "ddp": Row(build_ddp),
    "ddp-compiled": Row(partial(build_ddp, compiled=True)),
    "ddp-zero1": Row(partial(build_ddp, sharded_optimizer=True)),
    "fsdp2": Row(partial(build_fsdp, reshard=True)),
    "fsdp2-compiled": Row(partial(build_fsdp, reshard=True, compiled=True)),
    "fsdp2-noreshard": Row(partial(build_fsdp, reshard=False)),
    "hsdp": Row(partial(build_fsdp, reshard=True, hybrid=True)),
    "hsdp-noreshard": Row(partial(build_fsdp, reshard=False, hybrid=True)),
    "hsdp-bf16": Row(partial(build_fsdp, reshard=True, hybrid=True, reduce=torch.bfloat16), wire="bf16"),
    "hsdp-bf16-noreshard": Row(partial(build_fsdp, reshard=False, hybrid=True, reduce=torch.bfloat16), wire="bf16"),
    **{f"deepspeed-zero{stage}": Row(partial(build_deepspeed, stage=stage)) for stage in (1, 2, 3)},
}
