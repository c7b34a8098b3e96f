"""config: the one list of keys, typed and frozen. What the user asked, and nothing derived from it.

A key stands here only together with the code that obeys it. `model`, `lora` and `data` are in inputs.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from internevo_engine.config.inputs import DataConfig, Fraction, LoraConfig, ModelConfig, NonNegative, Positive, Section

FREE_KEYS = (
    "zero.",
    "comm.bucket_mb",
    "comm.overlap",
    "graph.",
    "launch.",
    "checkpoint.",
    "data.cache",
    "run.dir",
    "run.log_every",
    "run.valid_every",
    "run.tensorboard",
    "run.guard",
    "run.allow_faults",
    "run.bad_step",
    "run.max_bad_steps",
    "run.spike_",
)
"""Where and how to run: keys with these prefixes may change between two starts of the same run. All others shape the
trained numbers. What to do with bad steps does too, but whoever must get past them has to change it, and what was left
out stays written down."""


class OptimConfig(Section):
    """AdamW (arXiv:1711.05101) and the learning-rate schedule."""

    name: Literal["adamw"] = "adamw"
    """Row of the optimizer table in optim/optimizers.py."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (
        0.9,
        0.95,
    )
    """Decay rates of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay, multiplied by the learning rate."""
    decay: Literal["matrices", "all"] = "matrices"
    """What is decayed: matrices only (no norms, no biases), or everything, as InternEvo does."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0: no clipping."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: cosine to eta_min, or stable and a linear decay at the end (wsd), or constant."""
    init_steps: NonNegative = 0
    """Steps at learning rate 0 before the warm-up."""
    warmup_ratio: Fraction = 0.01
    """Share of run.steps spent in linear warm-up."""
    decay_ratio: Fraction = 0.1
    """Share of run.steps spent in the final decay (wsd only)."""
    eta_min: Annotated[float, Field(ge=0)] = 1e-5
    """Learning rate at the end of the schedule."""

    @model_validator(mode="after")
    def _ends_below_peak(self) -> "OptimConfig":
        if self.eta_min > self.lr:
            raise ValueError(
                f"eta_min={self.eta_min:g} is above lr={self.lr:g}; the schedule would rise; lower eta_min"
            )
        return self


GroupSize = Positive | Literal["node", "world"]
"""A number of neighbouring ranks, 'node' (the ranks of one host) or 'world'."""


class ZeroConfig(Section):
    """Hybrid-ZeRO: over how many neighbouring ranks each state is sharded. Each size divides the next."""

    param: GroupSize = 1
    """Group size of the parameters; above 1 they are gathered before use and freed after it."""
    grad: GroupSize = 1
    """Group size of the reduced gradients."""
    optim: GroupSize = 1
    """Group size of the optimizer states."""


class CommConfig(Section):
    """How gradients travel."""

    bucket_mb: Annotated[float, Field(gt=0)] = 64.0
    """Target size of a gradient bucket in megabytes (1e6 bytes of fp32)."""
    overlap: bool = True
    """Communicate while computing; false: one after the other, with the same bits."""
    wire: Literal["fp32", "bf16"] = "fp32"
    """What gradients travel in; they are added in fp32."""
    reduction: Literal["fast", "ordered"] = "fast"
    """fast: gradients accumulate locally, sums are the backend's; ordered: every micro-batch is summed in one fixed
    tree over the ranks, so that every plan gives equal bits (powers of two)."""


class RecomputeBudget(Section):
    """Recompute as much as it takes."""

    budget_gb: Annotated[float, Field(gt=0)]
    """Activations kept from forward to backward on one rank, in GB (1e9 bytes)."""


class GraphConfig(Section):
    """How a step is captured and run."""

    mode: Literal["graph", "hooks"] = "graph"
    """graph: forward, backward, communication and update are one captured Program; hooks: eager autograd, for models
    that can't be captured whole."""
    compile: Literal["inductor", "eager"] = "inductor"
    """What runs the captured regions; eager: operation by operation, for debugging and bisection."""
    recompute: Literal["none", "selective", "full"] | Fraction | RecomputeBudget = "none"
    """Activations that the backward pass computes again: none; all but matrix products and attention (selective); all
    of each layer (full); all of the first fraction of the layers; or {budget_gb: 8}."""


class StepConfig(Section):
    """What decides a training step of any model: what an Engine is given, and what a plan keeps of a Config."""

    steps: Positive | None = None
    """Optimizer updates that the learning-rate schedule is made for; null: no end is known, the rate stays optim.lr."""
    grad_accum: Positive = 1
    """Micro-batches of one rank in one step."""
    world_invariant: bool = False
    """See RunConfig."""
    audit: bool = False
    """Compare what is received with what was sent, and states at rest, before each update: run.guard=full."""
    optim: OptimConfig = OptimConfig()
    zero: ZeroConfig = ZeroConfig()
    comm: CommConfig = CommConfig()
    graph: GraphConfig = GraphConfig()

    @model_validator(mode="after")
    def _schedule_has_an_end(self) -> "StepConfig":
        asked = self.optim.model_fields_set & {"schedule", "warmup_ratio", "decay_ratio", "eta_min"}
        if self.steps is None and asked and self.optim.schedule != "constant":
            raise ValueError(f"optim.{min(asked)} needs an end of the schedule; pass steps=..., the updates of the run")
        return self


class LaunchConfig(Section):
    """Where the ranks run."""

    nproc: Positive | Literal["auto"] = "auto"
    """Ranks started by the command itself; auto: one per visible GPU, else 1. Ignored under torchrun and srun,
    which say themselves how many there are."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA with NCCL where there is one, else CPU with gloo."""
    restarts: NonNegative = 3
    """How often ranks that the command started are started again without a new checkpoint in between, where that may
    help: a rank died or hung. Every published checkpoint gives the whole number back."""


class RunConfig(Section):
    """The run: its folder, length and rhythm."""

    dir: str | None = None
    """Run folder; null: runs/<config name>."""
    steps: Positive = 50000
    """Optimizer updates."""
    seed: NonNegative = 1024
    """Seed of initialization and data order."""
    init: str | None = None
    """Weights to begin with: an engine folder, a run, or anything that `convert engine` reads (a Hugging Face folder, a
    GGUF file); null: random ones, drawn from seed."""
    log_every: Positive = 1
    """Steps between two lines in the log; metrics.jsonl gets every step."""
    world_invariant: bool = False
    """Equal bits for any number of ranks at the same global batch, too. Implies comm.reduction=ordered, and adds
    micro-batches in a fixed tree as well: one more copy of the summed gradients for every doubling of data.grad_accum.
    Ranks and data.grad_accum must be powers of two, comm.wire fp32; on CPU a rank computes with one thread."""
    guard: Literal["off", "light", "full"] = "off"
    """Search for flipped bits; what is found ends the run with 10. light: ranks that hold copies of the same parameters
    or optimizer states compare checksums of them every guard_every steps, and before each checkpoint. full: after every
    step, and before each update what was received is compared with what was sent, and optimizer states with what the
    last update left; the backend's sums are then replaced by messages, which the owner of a slice adds."""
    guard_every: Positive = 100
    """Steps between two comparisons with guard=light."""
    bad_step: Literal["skip", "rewind"] = "skip"
    """After a step that updated nothing, for its loss or gradient norm is not finite or a spike: leave its batch out,
    or go back to the newest checkpoint and leave out all batches from there to it."""
    max_bad_steps: Positive = 3
    """Bad steps in a row (with rewind: back to the same checkpoint) that end the run; 1: the first one does."""
    spike_sigma: Annotated[float, Field(gt=0)] | None = None
    """Loss or gradient norm above mean + spike_sigma standard deviations of the last good steps is a spike; null: none
    is."""
    spike_window: Annotated[int, Field(ge=2)] = 128
    """Good steps that spikes are measured by; before there are so many, nothing is one."""
    allow_faults: bool = False
    """Let the environment variable IE_FAULTS break this run on purpose (docs/guard.md); for tests."""
    valid_every: NonNegative = 0
    """Steps between two validations; 0: only at the end."""
    tensorboard: bool = False
    """Also write TensorBoard events to <run folder>/tb (extra [track])."""


class CheckpointConfig(Section):
    """What a run keeps to go on from; docs/checkpoints.md says what may change in between."""

    every: NonNegative = 1000
    """Steps between two checkpoints; 0: only when the run is stopped and when it ends."""
    keep: Positive = 3
    """Checkpoints kept, the newest ones."""
    background: bool = True
    """Train on while the checkpoint is written; false: wait for it."""
    rate_mb: Annotated[float, Field(gt=0)] | None = 500.0
    """Megabytes (1e6 bytes) a second that one rank writes at most in the background; null: no limit."""
    dir: str | None = None
    """Folder that all hosts share, or an fsspec URL (s3://bucket/run); null: 'checkpoints' in the run folder."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the newest checkpoint that verifies; never (--fresh): move an earlier run aside, start anew."""
    changed_data: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Entries of data.train whose content may differ from what the checkpoint was trained on."""


class Config(Section):
    """A whole configuration, as read from YAML and overrides."""

    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    zero: ZeroConfig = ZeroConfig()
    comm: CommConfig = CommConfig()
    graph: GraphConfig = GraphConfig()
    launch: LaunchConfig = LaunchConfig()
    run: RunConfig = RunConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens in one micro-batch of one rank."""
        return self.data.seq_len * self.data.micro_batch

    def step_tokens(self, world: int) -> int:
        """Tokens in one step of all ranks."""
        return self.micro_batch_tokens * self.data.grad_accum * world

    @property
    def step(self) -> StepConfig:
        """What decides a step, without what is trained on and where."""
        return StepConfig(
            steps=self.run.steps,
            grad_accum=self.data.grad_accum,
            world_invariant=self.run.world_invariant,
            audit=self.run.guard == "full",
            optim=self.optim,
            zero=self.zero,
            comm=self.comm,
            graph=self.graph,
        )
