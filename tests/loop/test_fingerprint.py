"""The fingerprint finds a fault: `show diff` names the step and the bucket in which one bit went wrong."""

import pytest

from internevo_engine.__main__ import main
from internevo_engine.config.load import load_config
from internevo_engine.models.families import parameters
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology
from tests.conftest import Tiny
from tests.loop.flipped_bit import WORLD, Fault, train_ranks


@pytest.mark.parametrize("reduction", ["fast", "ordered"])
def test_show_diff_names_the_step_and_bucket_of_a_flipped_bit(tiny: Tiny, capsys, reduction: str) -> None:
    fault = Fault(step=4, parameter="layers.0.feed_forward.w2.weight")
    keys = [f"comm.reduction={reduction}", "comm.bucket_mb=0.02", "zero.optim=2", "data.valid=null"]
    for name, each in (("right", None), ("wrong", fault)):
        config = load_config(tiny.config, [*keys, f"run.dir={tiny.folder / name}"])
        train_ranks(config, tiny.folder / f"{name}.store", each)
    plan = make_plan(config, parameters(config.model), Topology(WORLD, WORLD, "cpu"))
    (bucket,) = (n for n, b in enumerate(plan.buckets) if fault.parameter in [plan.params[p].name for p in b.params])
    assert len(plan.buckets) > 2
    capsys.readouterr()
    assert main(["show", "diff", str(tiny.folder / "right"), str(tiny.folder / "wrong")]) == 0
    found = capsys.readouterr().out
    assert found.startswith("the runs part at step 4: grad_norm ")
    assert f"; gradients of bucket {bucket} (" in found
    assert found.endswith(", 1 in all\n")
