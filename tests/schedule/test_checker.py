"""The checker against the judge: what it lets pass computes the step, and what computes the step it lets pass."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from internevo_engine import _core
from internevo_engine.plan.levels import levels
from internevo_engine.program import Mode, Program
from internevo_engine.schedule.graph_spec import CallSpec, GraphSpec, ValueSpec
from tests.schedule.integer_ranks import expected_state
from tests.schedule.integer_run import judge, what_is_wrong
from tests.schedule.mutations import mutate
from tests.schedule.synthetic import decoder_spec, plan_buckets, schedule_graph, tiny_program

GROUPS = (
    (1, 1, 1, 1),
    (1, 1, 2, 2),
    (2, 2, 2, 2),
    (1, 1, 1, 2),
    (1, 2, 4, 4),
    (2, 2, 4, 4),
    (3, 3, 3, 3),
    (1, 2, 2, 4),
)
MODES: tuple[Mode, ...] = ("fast", "ordered")
INVARIANT = tuple(groups for groups in GROUPS if groups[3] != 3)


def programs() -> list[Program]:
    """Small plans of every shape."""
    shapes = [*product(GROUPS, MODES, (1, 2)), *product(INVARIANT, ("invariant",), (4,))]
    return [
        tiny_program(groups, ranks_per_host=3 if groups[3] == 3 else 2, mode=mode, micro_batches=m, overlap=overlap)
        for (groups, mode, m), overlap in product(shapes, (True, False))
    ]


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.hash[:8])
def test_every_plan_computes_the_step_in_every_order_and_passes(program: Program) -> None:
    assert judge(program) is None
    assert _core.check_program(program.text) == []


@pytest.mark.parametrize("groups", GROUPS)
def test_tied_split_and_unused_parameters_are_trained_right(groups: tuple[int, int, int, int]) -> None:
    """Parameter 0 is read by the first and the last call, 1 and 2 by one call from two buckets, 3 by none."""
    calls = (
        CallSpec("fwd.embed", "fwd", 1, 1, ("tokens",), ("h",), (0,), {}),
        CallSpec("loss", "loss", 1, 1, ("h",), ("loss", "saved", "unread"), (1, 2, 0), {}),
        CallSpec("bwd.loss", "bwd", 1, 1, ("saved",), ("dh", "g1", "g2"), (2, 1, 0), {"g1": 1, "g2": 2}),
        CallSpec("bwd.embed", "bwd", 1, 1, ("dh", "tokens"), ("g0",), (0,), {"g0": 0}),
    )
    names = ["tokens", *(name for call in calls for name in call.writes)]
    graph = GraphSpec(calls, tuple(ValueSpec(name, 8) for name in names), ("loss",))
    buckets = plan_buckets([[16], [16], [16], [16]], num_shards=groups[2], target_bytes=64)
    assert len(buckets) == 4
    plan = levels(*groups, 3 if groups[3] == 3 else 2 if groups[3] > 1 else 1)
    for mode in MODES:
        assert judge(schedule_graph(graph, buckets, plan, world=groups[3], micro_batches=2, mode=mode)) is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", GROUPS)
def test_frozen_parameters_are_only_held_and_gathered(groups: tuple[int, int, int, int], mode: Mode) -> None:
    numels, frozen = [[16], [16, 20], [16, 20], [24]], {0, 2, 4}
    spec = decoder_spec(numels, num_tokens=64)
    calls = (replace(call, grads={v: p for v, p in call.grads.items() if p not in frozen}) for call in spec.calls)
    buckets = plan_buckets(numels, num_shards=groups[2], target_bytes=4 * 64, frozen=frozen)
    graph, plan = replace(spec, calls=tuple(calls)), levels(*groups, groups[3])
    program = schedule_graph(graph, buckets, plan, world=groups[3], micro_batches=2, mode=mode)
    assert judge(program) is None
    of_frozen = {f"bucket[{b}]" for b, bucket in enumerate(program.buckets) if not bucket.trained}
    kinds = {each.kind for each in program.instructions if each.what in of_frozen}
    assert kinds == ({"gather"} if groups[0] > 1 else set())
    assert not any(f"os[{name[7:]}" in {buffer.name for buffer in program.buffers} for name in of_frozen)


def count_verdicts(num_edits: int) -> tuple[Counter[str], list[str]]:
    """How many edits matter, are refused, and so on; a line for each that the checker got wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    originals = programs()
    expected = [expected_state(program) for program in originals]
    for seed in range(num_edits):
        place = seed % len(originals)
        name, edited = mutate(originals[place], seed)
        fault = what_is_wrong(edited, expected[place])
        problems = refusals(edited)
        counts[f"{'matters' if fault else 'harmless'}, {'refused' if problems else 'accepted'}"] += 1
        if bool(fault) != bool(problems):
            wrong.append(f"edit {seed} ({name}): judge {fault}; checker {problems[:1]}")
    return counts, wrong


def refusals(program: Program) -> list[str]:
    try:
        return _core.check_program(program.text)
    except ValueError as error:
        return [str(error)]


def expect_right_verdicts(num_edits: int) -> None:
    counts, wrong = count_verdicts(num_edits)
    print(dict(counts), *wrong, sep="\n")
    harmless = counts["harmless, accepted"] + counts["harmless, refused"]
    assert counts["matters, accepted"] == 0
    assert counts["matters, refused"] > num_edits / 3
    assert harmless > num_edits / 10
    assert counts["harmless, accepted"] >= 0.9 * harmless


def test_the_checker_refuses_what_matters_and_lets_the_rest_pass() -> None:
    expect_right_verdicts(1000)


@pytest.mark.slow
def test_the_checker_refuses_what_matters_in_thousands_of_edits() -> None:
    expect_right_verdicts(4000)
