"""graph: every private name of PyTorch that capture and compilation stand on, and nothing else.

The rest of the package imports them from here, so a new PyTorch is a change of this file. tests/graph/test_compat.py
probes each one for the behaviour that is relied on.
"""

from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.functional_export import dynamo_graph_capture_for_export
from torch._dynamo.utils import counters
from torch._functorch._aot_autograd.descriptors import (
    BufferAOTInput,
    GradAOTOutput,
    InputMutationAOTOutput,
    ParamAOTInput,
    PlainAOTInput,
    PlainAOTOutput,
    TangentAOTInput,
)
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._higher_order_ops.invoke_subgraph import invoke_subgraph
from torch._inductor import config as inductor_config
from torch._inductor.codecache import torch_key
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.inductor_prims import force_stride_order
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.utils.stateless import _reparametrize_module as swapped_tensors

__all__ = [
    "BufferAOTInput",
    "FakeTensorMode",
    "GradAOTOutput",
    "InputMutationAOTOutput",
    "ParamAOTInput",
    "PlainAOTInput",
    "PlainAOTOutput",
    "ShapeEnv",
    "TangentAOTInput",
    "TorchDynamoException",
    "TracingContext",
    "aot_export_joint_with_descriptors",
    "compile_fx_inner",
    "counters",
    "detect_fake_mode",
    "dynamo_config",
    "dynamo_graph_capture_for_export",
    "force_stride_order",
    "inductor_config",
    "invoke_subgraph",
    "make_fx",
    "min_cut_rematerialization_partition",
    "pick_vec_isa",
    "select_decomp_table",
    "swapped_tensors",
    "torch_key",
    "tracing",
]
