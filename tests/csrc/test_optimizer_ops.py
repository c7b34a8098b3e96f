"""internevo::adamw_ and internevo::square_sum on CPU: against torch in float64, and their promises about bits."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from internevo_engine.runtime.extension import COMPOSED, adamw_, load_extension, square_sum

load_extension()

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1
GRAD_SCALE = 0.37
SETTINGS = {"lr": LR, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "weight_decay": WEIGHT_DECAY}
OUTPUTS = [None, torch.float32, torch.bfloat16]


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Flat:
    """Master, moments and output of one flat buffer, and gradients that depend on the step alone."""

    def __init__(self, numel: int, out: torch.dtype | None = None) -> None:
        self.master = torch.randn(numel, generator=torch.Generator().manual_seed(0))
        self.exp_avg, self.exp_avg_sq = torch.zeros(numel), torch.zeros(numel)
        self.param_out = None if out is None else torch.full((numel,), torch.nan, dtype=out)

    def grad(self, step: int) -> Tensor:
        return torch.randn(self.master.numel(), generator=torch.Generator().manual_seed(step))

    def update(self, step: int, decayed_numel: int, by: Callable[..., object] = adamw_) -> None:
        scale = torch.tensor([GRAD_SCALE])
        state = (self.master, self.exp_avg, self.exp_avg_sq, self.grad(step), self.param_out, scale)
        by(*state, decayed_numel=decayed_numel, step=step, **SETTINGS)


def float64_reference(flat: Flat, steps: int, decayed_numel: int) -> Tensor:
    """The master after `steps` updates of torch.optim.AdamW in float64."""
    start = flat.master.double()
    decayed, plain = start[:decayed_numel].clone(), start[decayed_numel:].clone()
    groups = [{"params": [decayed], "weight_decay": WEIGHT_DECAY}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    scale = float(torch.tensor(GRAD_SCALE))
    for step in range(1, steps + 1):
        grad = flat.grad(step).double() * scale
        decayed.grad, plain.grad = grad[:decayed_numel], grad[decayed_numel:]
        optimizer.step()
    return torch.cat([decayed, plain])


def assert_close_to_float64(master: Tensor, expected: Tensor, steps: int) -> None:
    """Each step rounds w once (half a unit in the last place) and the update (below 10 lr) in about ten operations."""
    bound = steps * (2**-24 * expected.abs() + 10 * LR * 10 * 2**-24)
    excess = (master.double() - expected).abs() - bound
    assert excess.max() <= 0, f"off by {excess.max():.3g} more than the bound"


@pytest.mark.parametrize("out", OUTPUTS, ids=str)
@pytest.mark.parametrize(("numel", "decayed_numel"), [(1, 0), (1, 1), (67, 13), (40_007, 20_005), (40_007, 40_007)])
def test_adamw_is_torchs_adamw_in_float64(numel: int, decayed_numel: int, out: torch.dtype | None) -> None:
    flat, steps = Flat(numel, out), 8
    expected = float64_reference(flat, steps, decayed_numel)
    for step in range(1, steps + 1):
        flat.update(step, decayed_numel)
    assert_close_to_float64(flat.master, expected, steps)
    if flat.param_out is not None:
        assert torch.equal(flat.param_out, flat.master.to(flat.param_out.dtype))


def test_weight_decay_of_a_small_learning_rate_is_not_rounded_away() -> None:
    """1 - lr * weight_decay = 1 - 1e-5 rounded to fp32 would be off by 0.14 %, in the same direction in every step."""
    master, zeros, steps = torch.rand(1000) + 0.5, torch.zeros(1000), 4000
    start = master.double()
    for step in range(1, steps + 1):
        tensors = (master, zeros.clone(), zeros.clone(), zeros, None, torch.ones(1))
        adamw_(*tensors, decayed_numel=1000, step=step, **{**SETTINGS, "lr": 1e-4})
    decay = (master.double() / start).log().mean() / steps
    assert decay.item() == pytest.approx(-1e-5, rel=2e-4)


@pytest.mark.parametrize("out", OUTPUTS, ids=str)
def test_adamw_has_equal_bits_for_one_and_two_threads(out: torch.dtype | None, restored_threads: None) -> None:
    flats = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        flats.append(Flat(100_003, out))
        for step in (1, 2, 3):
            flats[-1].update(step, decayed_numel=50_001)
    one, two = (vars(flat) for flat in flats)
    assert all(torch.equal(one[name], two[name]) for name in one if one[name] is not None)


def test_gaps_stay_zero() -> None:
    flat, gap = Flat(64, torch.bfloat16), slice(20, 32)
    for step in range(1, 6):
        flat.master[gap] = 0 if step == 1 else flat.master[gap]
        grad = flat.grad(step)
        grad[gap] = 0
        tensors = (flat.master, flat.exp_avg, flat.exp_avg_sq, grad, flat.param_out, torch.ones(1))
        adamw_(*tensors, decayed_numel=32, step=step, **SETTINGS)
    for tensor in (flat.master, flat.exp_avg, flat.exp_avg_sq, flat.param_out):
        assert tensor is not None
        assert not tensor[gap].any()


def test_composed_adamw_means_the_same() -> None:
    native, composed, steps = Flat(5003, torch.bfloat16), Flat(5003, torch.bfloat16), 5
    expected = float64_reference(native, steps, 2001)
    for step in range(1, steps + 1):
        native.update(step, 2001)
        composed.update(step, 2001, by=COMPOSED["adamw_"])
    assert_close_to_float64(composed.master, expected, steps)
    torch.testing.assert_close(composed.exp_avg, native.exp_avg, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(composed.exp_avg_sq, native.exp_avg_sq, rtol=1e-6, atol=1e-7)
    assert composed.param_out is not None
    assert torch.equal(composed.param_out, composed.master.bfloat16())


@pytest.mark.parametrize("numel", [0, 1, 4095, 4097, 1_000_003])
def test_square_sum_is_the_sum_in_float64(numel: int) -> None:
    x = torch.randn(numel) * 1e3
    expected = x.double().square().sum()
    torch.testing.assert_close(square_sum(x), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(COMPOSED["square_sum"](x), expected, rtol=1e-14, atol=0)


def test_square_sum_has_equal_bits_for_any_number_of_threads(restored_threads: None) -> None:
    x = torch.randn(3_000_001)
    sums = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        sums.append(square_sum(x).item())
    assert len(set(sums)) == 1


def test_ops_pass_torchs_own_checks() -> None:
    flat = Flat(33, torch.bfloat16)
    state = (flat.master, flat.exp_avg, flat.exp_avg_sq, flat.grad(1))
    for param_out in (None, flat.param_out):
        arguments = (*state, param_out, torch.ones(1), 17, LR, *BETAS, EPS, WEIGHT_DECAY, 1)
        torch.library.opcheck(torch.ops.internevo.adamw_.default, arguments)
    torch.library.opcheck(torch.ops.internevo.square_sum.default, (torch.randn(33),))


def test_a_clipped_update_compiles_to_one_graph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def clipped_update(master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, param: Tensor) -> Tensor:
        norm = square_sum(grad).sqrt()
        scale = (1 / norm).clamp(max=1).float().reshape(1)
        adamw_(master, exp_avg, exp_avg_sq, grad, param, scale, decayed_numel=5, step=1, **SETTINGS)
        return norm

    flat = Flat(48)
    before, grad = flat.master.clone(), flat.grad(1)
    param = torch.empty(48, dtype=torch.bfloat16)
    norm = clipped_update(flat.master, flat.exp_avg, flat.exp_avg_sq, grad, param)
    assert norm.item() == pytest.approx(grad.double().norm().item())
    torch.testing.assert_close(flat.exp_avg, 0.1 * grad / norm.float())
    assert not torch.equal(flat.master, before)
    assert torch.equal(param, flat.master.bfloat16())


def good() -> dict[str, object]:
    tensors = {name: torch.zeros(8) for name in ("master", "exp_avg", "exp_avg_sq", "grad", "param_out")}
    return {**tensors, "grad_scale": torch.ones(1), "decayed_numel": 8, "step": 1, **SETTINGS}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("master", torch.zeros(8, dtype=torch.float64), "master must be float32, not Double"),
        ("exp_avg", torch.zeros(16)[::2], "exp_avg must be contiguous"),
        ("exp_avg_sq", torch.zeros(7), "exp_avg_sq has 7 elements, but master has 8"),
        ("grad", torch.zeros(8, dtype=torch.bfloat16), "grad must be float32, not BFloat16"),
        ("param_out", torch.zeros(8, dtype=torch.float16), "param_out must be float32 or bfloat16, not Half"),
        ("grad_scale", torch.ones(2), "grad_scale has 2 elements, but one scales all"),
        ("decayed_numel", 9, "decayed_numel=9 is outside of 0 to 8"),
        ("step", 0, "step=0 must be at least 1"),
        ("eps", 0.0, "eps=0 must be positive"),
        ("beta2", 1.0, "beta2=1 must be in [0, 1)"),
        ("lr", float("nan"), "lr=nan must not be negative"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: object, message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        adamw_(**{**good(), name: value})  # pyright: ignore[reportArgumentType]
    assert message in str(caught.value)


def test_master_as_its_own_output_is_refused() -> None:
    arguments = good()
    with pytest.raises(RuntimeError, match="pass None where the master is the parameter"):
        adamw_(**{**arguments, "param_out": arguments["master"]})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("by", [adamw_, COMPOSED["adamw_"]], ids=["native", "composed"])
def test_a_scale_of_zero_writes_nothing_whatever_the_gradient_holds(by: Callable[..., object]) -> None:
    flat, broken = Flat(2000, torch.bfloat16), torch.full((2000,), torch.nan)
    flat.update(1, 1000)
    assert flat.param_out is not None
    states = (flat.master, flat.exp_avg, flat.exp_avg_sq, flat.param_out)
    before = [state.clone() for state in states]
    by(*states[:3], broken, flat.param_out, torch.zeros(1), decayed_numel=1000, step=2, **SETTINGS)
    assert all(torch.equal(state, old) for state, old in zip(states, before, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_bits_of_the_cpu() -> None:
    from internevo_engine import _core

    if not _core.HAS_CUDA_KERNELS:
        pytest.skip("built without CUDA kernels")
    host, grad, scale = Flat(100_003), Flat(100_003).grad(1), torch.tensor([GRAD_SCALE])
    master, exp_avg, exp_avg_sq = host.master.cuda(), host.exp_avg.cuda(), host.exp_avg_sq.cuda()
    param = torch.empty_like(master, dtype=torch.bfloat16)
    tensors = (master, exp_avg, exp_avg_sq, grad.cuda(), param, scale.cuda())
    adamw_(*tensors, decayed_numel=50_001, step=1, **SETTINGS)
    host.update(1, 50_001)
    assert torch.equal(master.cpu(), host.master)
    assert torch.equal(exp_avg.cpu(), host.exp_avg)
    assert torch.equal(exp_avg_sq.cpu(), host.exp_avg_sq)
    assert torch.equal(param.cpu(), host.master.bfloat16())
    assert square_sum(grad.cuda()).item() == square_sum(grad).item()
