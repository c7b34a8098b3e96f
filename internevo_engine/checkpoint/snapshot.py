"""checkpoint: a frozen copy of what this rank owns, in the order of its file. Training waits for this copy only."""

import torch

from internevo_engine.checkpoint.view import ShardedView


class Snapshot:
    """A host buffer, allocated once; pinned where the states live on a GPU."""

    def __init__(self, view: ShardedView) -> None:
        sources = [tensor for stretch in view.stretches for tensor in stretch.tensors]
        device = sources[0].device if sources else torch.device("cpu")
        self._is_remote = device.type != "cpu"
        numel = sum(source.numel() for source in sources)
        self._buffer = torch.empty(numel, dtype=torch.float32, pin_memory=self._is_remote)
        self._buffer.zero_()  # the pages are there before the first save
        self._targets = list(self._buffer.split([source.numel() for source in sources])) if sources else []
        self._sources = sources

    @torch.no_grad()
    def take(self) -> None:
        """Copy the states as they are now; returns when the copy is whole."""
        if self._is_remote:
            torch.accelerator.synchronize()  # the last update may still be under way on another stream
        if self._targets:  # at once: one copy_ for each of many small parameters costs as much again
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                self._targets, self._sources, non_blocking=self._is_remote
            )
        if self._is_remote:
            torch.accelerator.synchronize()

    @property
    def data(self) -> memoryview:
        """Its bytes; valid until the next `take`."""
        return self._buffer.view(torch.uint8).numpy().data
