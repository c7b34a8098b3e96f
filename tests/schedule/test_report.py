"""The report of a Program, held against sums and times worked out by hand."""

from internevo_engine.schedule.report import bytes_sent, describe, excerpt, makespan, predict_spans
from tests.schedule.synthetic import tiny_program


def test_bytes_are_those_of_the_plan() -> None:
    program = tiny_program((2, 2, 4, 4), micro_batches=3)
    numel = sum(bucket.numel for bucket in program.buckets)
    gathered = [each.what for each in program.instructions if each.kind == "gather"]
    halves = sum(program.buckets[int(what[7:-1])].numel * 2 // 2 for what in gathered)  # of bf16 parameters
    assert bytes_sent(program)["P0"] == halves + 3 * numel * 4 // 2  # and half of the fp32 gradients, three times
    assert bytes_sent(program)["OS1"] == numel // 4 * 2 + numel // 4 * 4  # a quarter refreshed, a quarter reduced
    assert bytes_sent(program)["all"] == 2 * 3 * 272 // 4 * 8  # four totals of 68 words, as slices of four ranks


def test_a_chain_takes_the_sum_of_its_costs_and_overlap_takes_less() -> None:
    chain, overlapped = (tiny_program((2, 2, 2, 2), overlap=overlap) for overlap in (False, True))
    assert makespan(chain) == sum(each.cost for each in chain.instructions)
    assert makespan(overlapped) < makespan(chain)


def test_spans_keep_lanes_and_dependencies_apart() -> None:
    program = tiny_program((1, 2, 4, 4))
    spans = predict_spans(program)
    for number, each in enumerate(program.instructions):
        assert all(spans[before].end <= spans[number].start for before in each.after)
        same = [spans[n] for n in range(number) if program.instructions[n].lane == each.lane]
        assert all(span.end <= spans[number].start for span in same)


def test_the_description_names_counts_bytes_and_time() -> None:
    program = tiny_program((1, 1, 2, 2), micro_batches=1)
    text = describe(program)
    assert "3 refresh, 8 compute, 3 pack, 3 reduce, 4 norm, 3 update" in text
    assert "OS0 near" in text
    assert text.endswith(excerpt(program))
    assert len(excerpt(program).splitlines()) <= 10
