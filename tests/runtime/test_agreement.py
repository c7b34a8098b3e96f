"""Where the stages meet: ranks compare Programs before any data moves, and regions get their operands in order."""

import torch

from internevo_engine.errors import RanksDisagreeError
from internevo_engine.runtime.agreement import agree_on
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.launch import ALONE, Place
from tests.ranks import run_ranks
from tests.schedule.synthetic import tiny_program


def compare(place: Place, differs: bool) -> str:
    """What a rank says when rank 1 may have another schedule."""
    program = tiny_program((1, 1, 2, 2), overlap=not (differs and place.rank == 1))
    communicator = Communicator(place, torch.device("cpu"), program.levels)
    try:
        agree_on("Program", program.text, communicator)
    except RanksDisagreeError as error:
        return str(error)
    finally:
        communicator.close()
    return "agreed"


def test_equal_programs_agree(tmp_path):
    assert run_ranks(compare, 2, tmp_path, False) == ["agreed", "agreed"]


def test_a_different_program_is_named_by_its_first_instruction(tmp_path):
    for rank, text in enumerate(run_ranks(compare, 2, tmp_path, True)):
        assert text.startswith(f"rank {rank} would run another Program than rank {1 - rank}: line ")
        assert "after=" in text
        assert "same config, code and torch" in text


def test_one_rank_always_agrees():
    program = tiny_program((1, 1, 1, 1))
    agree_on("Program", program.text, Communicator(ALONE, torch.device("cpu"), program.levels))


def test_disagreement_has_its_own_exit_code():
    assert RanksDisagreeError.exit_code == 8
