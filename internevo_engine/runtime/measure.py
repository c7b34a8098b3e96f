"""runtime: what this machine computes and sends, measured once before the first step. Hands a CostTable to schedule,
which decides with it, and to transfers.py, which takes the best number of pieces from it.

All ranks measure together, because they will compute and send together, but only rank 0's numbers count: it hands its
table to all, so that every rank makes the same Program and cuts transfers alike. A world of one has nothing to decide
and measures nothing.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median_low

import torch

from internevo_engine.models.initialize import TORCH_DTYPES
from internevo_engine.plan.plan import Plan
from internevo_engine.program import Level, Mode
from internevo_engine.runtime import stored_costs
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.extension import load_extension
from internevo_engine.runtime.stored_costs import JobKind, host_kind
from internevo_engine.runtime.transfers import MOST_PIECES, PIECES, Route, Transfers, routes
from internevo_engine.schedule.costs import CostTable, Rate, Transfer, TransferTime
from internevo_engine.schedule.make_program import reduction_over
from internevo_engine.schedule.step_program import modelled_costs
from internevo_engine.units import format_seconds

SIZES = (32 * 1024, 512 * 1024, 8 * 1024 * 1024)
"""Bytes of the longer side. The first two give a rate."""
ROUND_NS = 2_000_000_000
"""What a larger size may take: it is repeated less often on slow links, and not measured where once is too long."""
REPEATS = 5
"""At most. Their median counts: gloo's larger pieces are now and then as fast as smaller ones, but mostly not."""
MATMUL_NS = 2_000_000
"""A matrix product of this time is large enough to time."""
COPY_BYTES = 32 * 1024 * 1024
LEAST_PIECE_BYTES = 4096
"""Smaller pieces are all latency."""


def machine_costs(plan: Plan, communicator: Communicator, say: Callable[[str], None]) -> CostTable:
    """Rank 0's cost table, on every rank: from an earlier start of the same kind of job, or measured now."""
    if communicator.world == 1:
        return modelled_costs(plan)
    kind = _kind(plan, communicator)
    kept = stored_costs.read(kind) if communicator.rank == 0 else None
    text = communicator.agree("kept costs", kept.json() if kept else "")[0]
    if text:
        return CostTable.from_json(text)
    begin = time.monotonic()
    measured = measure(plan, communicator)
    costs = CostTable.from_json(communicator.agree("measured costs", measured.json())[0])
    if communicator.rank == 0:
        _keep(kind, costs, say)
    say(f"measured transfers and rates in {format_seconds(time.monotonic() - begin)}; kept for the next start")
    return costs


def measure(plan: Plan, communicator: Communicator) -> CostTable:
    """What this rank finds; all ranks call it together."""
    load_extension()
    device, dtype = communicator.device, TORCH_DTYPES[plan.dtype]
    return replace(
        modelled_costs(plan),
        flops_per_us=_flops_per_us(dtype, device),
        memory=_memory_rate(device),
        transfers=tuple(_all_transfers(plan, communicator)),
    )


def _kind(plan: Plan, communicator: Communicator) -> JobKind:
    comm = plan.config.comm
    return {
        "host": host_kind(communicator.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "backend": communicator.backend,
        "dtype": plan.dtype,
        "wire": comm.wire,
        "reduction": plan.mode,
        "world": communicator.world,
        "levels": " ".join(f"{level.name}={level.size} {level.link}" for level in plan.levels),
        "largest_bytes": _sizes(plan)[-1],
    }


def _keep(kind: JobKind, costs: CostTable, say: Callable[[str], None]) -> None:
    """A folder that can't be written costs the next start a second, and this one nothing."""
    try:
        stored_costs.write(kind, costs)
    except OSError as error:
        say(f"the measured costs can't be kept in {error.filename}: {error.strerror}; the next start measures again")


def _typical_ns(
    run: Callable[[], object],
    device: torch.device,
    meet: Callable[[], object] = lambda: None,
    repeats: int = REPEATS,
) -> int:
    """The median of a few runs; the ranks `meet` before each."""
    times: list[int] = []
    for _ in range(repeats):
        meet()
        _finish(device)
        begin = time.perf_counter_ns()
        run()
        _finish(device)
        times.append(time.perf_counter_ns() - begin)
    return max(median_low(times), 1)


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _flops_per_us(dtype: torch.dtype, device: torch.device) -> int:
    """Of a square matrix product, doubled until it takes long enough to time."""
    width, ns = 128, 0
    while ns < MATMUL_NS:
        width *= 2
        matrix = torch.ones(width, width, dtype=dtype, device=device)
        ns = _typical_ns(lambda matrix=matrix: matrix @ matrix, device)
    return max(2 * width**3 * 1000 // ns, 1)


def _memory_rate(device: torch.device) -> Rate:
    """Of a copy, which reads and writes; its latency is that of a copy of next to nothing."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    latency_ns = _typical_ns(lambda: target[:1].copy_(source[:1]), device)
    ns = max(_typical_ns(lambda: target.copy_(source), device) - latency_ns, 1)
    return Rate(latency_ns, 2 * COPY_BYTES * 1000 // ns)


def _sizes(plan: Plan) -> tuple[int, ...]:
    largest = max(4 * bucket.numel for bucket in plan.buckets)
    return (*SIZES[:2], *(size for size in SIZES[2:] if size <= largest))


def _all_transfers(plan: Plan, communicator: Communicator) -> Iterator[TransferTime]:
    """Of each kind of level; its state matters only in that replicas are all-reduced, not cut."""
    seen: set[tuple[Transfer, str, int]] = set()
    for level in plan.levels:
        for transfer in ("all_gather", reduction_over(level)):
            kind = (transfer, level.link, level.size)
            if kind not in seen:
                seen.add(kind)
                yield from _Trial(transfer, level, plan, communicator).rows()


class _Trial:
    """One transfer over one level, in growing sizes: every rank of every group of the level at once."""

    def __init__(self, transfer: Transfer, level: Level, plan: Plan, communicator: Communicator) -> None:
        self._transfer: Transfer = transfer
        self._level, self._communicator = level, communicator
        self._mode: Mode = plan.mode
        self._wire, self._sizes = TORCH_DTYPES[plan.config.comm.wire], _sizes(plan)
        lane = "gather" if transfer == "all_gather" else level.link
        self._group = communicator.group_names[lane, level.name]

    def rows(self) -> Iterator[TransferTime]:
        repeats, spent = REPEATS, 0
        for number, num_bytes in enumerate(self._sizes):
            if number >= 2:
                repeats = repeats and self._affordable(spent * num_bytes // self._sizes[number - 1])
            rows = [self._row(num_bytes, pieces, repeats) for pieces in self._pieces(num_bytes) if repeats]
            spent = sum(row.ns for row in rows)
            yield from rows

    def _affordable(self, expected_ns: int) -> int:
        """How often a size is measured that should take so long; rank 0 decides, by its clock."""
        says = min(REPEATS, ROUND_NS // max(expected_ns, 1)) if self._communicator.rank == 0 else 0
        return int(self._communicator.sum(torch.tensor([says], device=self._communicator.device)).item())

    def _table(self, pieces: int) -> tuple[Route, ...]:
        return routes(self._communicator.backend, self._mode, self._wire, pieces)

    def _pieces(self, num_bytes: int) -> tuple[int, ...]:
        """A sum that is left to the backend is never cut."""
        algorithm = next(row.algorithm for row in self._table(1) if row.transfer == self._transfer)
        is_cut = self._transfer == "all_gather" or algorithm == "ordered"
        pieces = PIECES[self._communicator.backend] if is_cut else (1,)
        return tuple(number for number in pieces if number == 1 or num_bytes >= number * LEAST_PIECE_BYTES)

    def _row(self, num_bytes: int, pieces: int, repeats: int) -> TransferTime:
        level, device = self._level, self._communicator.device
        numel = max(num_bytes // 4 // level.size, 1)
        numel -= numel % MOST_PIECES if numel > MOST_PIECES else 0
        whole, part = torch.zeros(numel * level.size, device=device), torch.zeros(numel, device=device)
        transfers = Transfers(self._group, self._table(pieces), self._wire)
        run = {
            "all_gather": lambda: transfers.all_gather(whole, part),
            "reduce_scatter": lambda: transfers.reduce_scatter(part, whole),
            "all_reduce": lambda: transfers.all_reduce(torch.empty_like(whole), whole),
        }[self._transfer]
        meet = torch.zeros(1, device=device)
        with self._communicator.peers_named():
            ns = _typical_ns(run, device, lambda: self._communicator.sum(meet), repeats)
        return TransferTime(self._transfer, level.link, level.size, whole.nbytes, pieces, ns)
