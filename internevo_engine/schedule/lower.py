"""schedule: from a captured step to what scheduling needs to know of it. Takes a StepGraph, hands on a GraphSpec."""

from internevo_engine.graph.step_graph import Call, StepGraph
from internevo_engine.schedule.graph_spec import CallSpec, GraphSpec, ValueSpec


def lower(graph: StepGraph) -> GraphSpec:
    """Values and calls as plain data. Parameters are named by their place in `graph.parameters`; constants are left
    out, for the runtime binds them to the regions."""
    index_of = {name: index for index, name in enumerate(graph.parameters)}
    apart = {*index_of, *graph.constants}
    return GraphSpec(
        calls=tuple(_call(call, graph, index_of) for call in graph.calls),
        values=tuple(ValueSpec(v.name, v.num_bytes) for v in graph.values.values() if v.name not in apart),
        loss=(graph.loss, graph.count),
    )


def _call(call: Call, graph: StepGraph, index_of: dict[str, int]) -> CallSpec:
    parameter_of = {value: index_of[name] for name, value in graph.gradients.items()}
    return CallSpec(
        name=call.name,
        phase=call.phase,
        flops=call.region.flops,
        bytes_moved=call.region.bytes_moved,
        reads=tuple(name for name in call.inputs if name not in index_of and name not in graph.constants),
        writes=call.outputs,
        params=tuple(index_of[name] for name in call.inputs if name in index_of),
        grads={value: parameter_of[value] for value in call.outputs if value in parameter_of},
    )
