"""Memory, arithmetic and minimum time of a training step, by formula.

Symbols: h is the hidden width, L the layers, P the weights of the blocks' matrices, V the
vocabulary, T the tokens of a row. A width is h numbers per token and layer in the compute dtype;
activations are counted in widths. GB are 10^9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fasttune.machine import CONTEXT, GB, Device
from fasttune.models.choices import LOGIT_ROWS, SHORT
from fasttune.planning.shape import BYTES, Shape

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per weight in NF4 with double quantisation: 4 bits, an 8-bit scale per block of 64 weights
and a 32-bit scale per 256 blocks (arXiv:2305.14314, section 3)."""

LOGITS = 12
"""Bytes per logit of a chunk on a GPU: the logits in fp32, their softmax and its gradient. A CPU
holds the logits in the compute dtype and overwrites them with their gradient."""

EFFICIENCY = 0.4
"""Assumed share of the peak that a run reaches: PaLM reports 0.46 for hand-tuned training
(arXiv:2204.02311, section 4.1). Not measured on a GPU."""

# The constants below are calibrated, not derived. `tools/check_plan.py` compares those of a CPU
# with measurements.

ALLOCATED = 0.5 * GB
"""GPU memory that torch's allocator reserves beyond the tensors, for workspaces and fragmentation.
An estimate."""

PROCESS = {"cuda": CONTEXT + ALLOCATED, "cpu": 0.75 * GB}
"""Memory of the process besides tensors. CPU: the imported libraries (0.61 GB measured) and the
trainer with the kernels' own buffers. So a plan's peak counts what `machine.peak_memory` measures.
"""

PHI_WIDTHS = 16.5
"""Widths that a block of transformers' Phi keeps for its backward pass, with an MLP of 4 h and
`models.fast.fused.fuse_gelu`. Counted on NF4 layers with LoRA. The MLP keeps 8 of them: the input
of gelu, and its result for fc2."""

CPU_SLACK = 1.2
"""A CPU frees memory late, so activations take this many times their size. This constant and the
trainer's share of `PROCESS` are fitted to the first three cases of `tools/check_plan.py`; the other
cases check them."""

VARIED_SLACK = 2.4
"""`CPU_SLACK` for rows of different lengths: packs of ever new sizes leave holes in glibc's heap.
Fitted to the demo and to 32 steps on GSM8K."""

HOLES = 3.0
"""Widths of a block that glibc cannot reuse on a CPU with checkpointing, where tensors of many
sizes come and go. Fitted to the demo model and a Llama; the value differs from run to run."""


@dataclass(frozen=True)
class Workload:
    """What the costs of a training step depend on."""

    shape: Shape
    quantized: bool  # the blocks' matrices are held in NF4
    dtype: str  # the compute dtype, a key of `planning.shape.BYTES`
    optimizer_bytes: int  # of optimiser state per trained parameter
    checkpointing: bool  # the backward pass computes the blocks a second time
    peak_tokens: int  # of the largest batch in one forward pass, with padding
    step_tokens: float  # of a mean optimiser step
    attended: float  # tokens in a token's row, averaged over tokens: sum T^2 / sum T
    masked: float = 0.0  # tokens of a mean pack with one dense mask; 0: each row attends separately
    batches: int = 1  # forward passes in an optimiser step
    rank: int = 16
    targets: tuple[str, ...] = ()  # names of LoRA's matrices; empty for all
    varied: bool = False  # the rows differ in length
    copied: bool = True  # a CPU also holds the NF4 weights dequantised
    fast: bool = False  # the fast path computes the layers; on CUDA only Phi's
    eval_tokens: int = 0  # of the largest evaluation batch; 0 without evaluation
    answered: int = 0  # prompts answered together, before and after training
    prompt_tokens: int = 0  # of the longest of these prompts
    new_tokens: int = 0  # at most in an answer
    side_by_side: int = 1  # packs computed at the same time; `peak_tokens` counts all of them

    @property
    def number_bytes(self) -> int:
        """Bytes of a number in the compute dtype."""
        return BYTES[self.dtype]

    @property
    def lora_parameters(self) -> int:
        return self.shape.lora_parameters(self.rank, self.targets)

    @property
    def scored(self) -> float:
        """Mean number of keys per query. With a dense mask the whole pack; otherwise half of the
        row, since kernels skip later keys."""
        return self.masked or self.attended / 2


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of training, by part."""

    weights: float
    adapters: float  # LoRA's parameters, their gradients and the optimiser's state
    activations: float  # tensors kept from the forward to the backward pass
    working: float  # of the loss and of one block's backward pass: see `memory`
    process: float
    loading: float  # besides weights and process, before the first batch
    evaluation: float = 0.0
    answers: float = 0.0  # before and after training, mostly keys and values

    @property
    def training(self) -> float:
        """Bytes of training besides the weights and the process."""
        return self.adapters + self.activations + self.working

    @property
    def peak(self) -> float:
        """The memory that `machine.peak_memory` measures: the largest of training, loading,
        evaluation and answers."""
        return sum(self.parts().values())

    @property
    def unmapped(self) -> Memory:
        """The same without the files that loading maps. The kernel reclaims their pages when memory
        is short."""
        return replace(self, loading=0.0)

    @property
    def needed(self) -> float:
        """The memory that a device must have."""
        return self.unmapped.peak

    def parts(self) -> dict[str, float]:
        """The parts that add up to the peak."""
        adapters = {"adapters": self.adapters}
        phases = (
            {**adapters, "activations": self.activations, "working": self.working},
            {"loading": self.loading},
            {**adapters, "evaluation": self.evaluation},
            {**adapters, "answers": self.answers},
        )
        largest = max(phases, key=lambda phase: sum(phase.values()))
        return {"weights": self.weights, **largest, "process": self.process}


def widths(shape: Shape) -> float:
    """Widths that one block of transformers keeps for its backward pass, k in the formulas.

    Phi: `PHI_WIDTHS`, with the MLP's share scaled to its width. A gated block (Llama and similar)
    keeps these tensors in 16 bits, with a frozen base and LoRA on every matrix; a, g and m are the
    widths of queries, keys and MLP. Two RMSNorms keep their input in fp32 (2 each) and their
    output, LoRA's input (1 each). Attention keeps q, k, v and its output (2a + 2g). The MLP keeps
    the gate, its activation, the other projection and the product, LoRA's input (4m). The sum is
    6 + 2a + 2g + 4m: 20.75 for Llama-2-7B. A test counts the tensors with torch's hooks.
    """
    a, g, m = _relative_widths(shape)
    return 6 + 2 * a + 2 * g + 4 * m if shape.gated else PHI_WIDTHS + 2 * (m - 4)


def fast_widths(shape: Shape, attended: float, number_bytes: int) -> float:
    """Widths that one block of the fast path keeps. The same test counts them.

    A norm keeps its input and its output, which all layers that read it share (2 each; Phi has one
    norm). In bf16 attention to short rows keeps q, k, v, its output (2a + 2g) and the scores, heads
    x attended numbers a token. Otherwise attention keeps k and v for all heads and the output twice
    (5a). The MLP keeps its activation's input: m in Phi, 2m in Llama, 4m in other gated blocks.
    """
    a, g, m = _relative_widths(shape)
    attention = 5 * a
    if number_bytes == 2 and attended <= SHORT:
        attention = 2 * a + 2 * g + attended * shape.heads / shape.hidden
    if not shape.gated:
        return 2 + attention + m
    return 4 + attention + (2 if shape.model_type == "llama" else 4) * m


def _relative_widths(shape: Shape) -> tuple[float, float, float]:
    """The widths of queries, keys and MLP, divided by h."""
    h = shape.hidden
    return shape.attention / h, shape.keys / h, shape.intermediate / h


def memory(work: Workload, kind: str) -> Memory:
    """Work out the parts of the peak on a device of the kind "cuda" or "cpu".

    Weights: NF4 for the blocks' matrices if quantised; embeddings, head, norms and biases in the
    compute dtype. A CPU may also keep the matrices dequantised for the whole run. Adapters in fp32:
    4 bytes, 4 for the gradients of each pack computed at the same time, and the optimiser's state.
    Activations: h * bytes * tokens * L * k. With checkpointing the inputs of the blocks, h * bytes
    * tokens * L, and k for one block at a time; on a CPU also `HOLES`. A dense mask becomes a
    tensor of bytes * tokens^2 in every block that keeps its activations. Working: the larger of the
    loss (a chunk of logits, the gradient of the hidden states) and one block's backward pass (its
    recomputed activations, its dequantised weights).
    """
    shape, number = work.shape, work.number_bytes
    cuda = kind == "cuda"
    weights = float(shape.other_parameters * number)
    if work.quantized:
        weights += shape.linear_weights * NF4_BITS / 8
    if not work.quantized or (work.copied and not cuda):
        weights += shape.linear_weights * number
    width = shape.hidden * number * work.peak_tokens
    slack = 1.0 if cuda else VARIED_SLACK if work.varied else CPU_SLACK
    block = slack * (fast_widths(shape, work.attended, number) if work.fast else widths(shape))
    kept, masks, backward = block, shape.layers, 0.0
    if work.checkpointing:
        kept, masks, backward = (1 if cuda else 1 + HOLES), 1, width * block
    activations = width * shape.layers * kept
    if work.masked:
        activations += masks * work.peak_tokens**2 * number
    dequantized = dequantized_held(work, kind)
    if work.checkpointing or work.fast or shape.in_unsloth or not cuda:
        backward += dequantized  # of one block, or one matrix, at a time
    else:
        activations += dequantized
    loss = _logits(work, work.peak_tokens, kind) + width
    gradients = 4 * (work.side_by_side - 1)
    return Memory(
        weights=weights,
        adapters=float(work.lora_parameters * (8 + gradients + work.optimizer_bytes)),
        activations=float(activations),
        # glibc keeps what the loss frees, and a block's backward pass does not fit into the holes.
        working=float(max(loss, backward) if cuda else loss + backward),
        process=PROCESS[kind],
        loading=0.0 if cuda else _loading(work),
        evaluation=_evaluation(work, slack, kind),
        answers=_answers(work, slack, kind),
    )


def _loading(work: Workload) -> float:
    """Bytes of the files that a CPU maps while it converts or quantises them. Unquantised files in
    the compute dtype stay mapped as the weights themselves."""
    shape = work.shape
    same_dtype = shape.stored == work.dtype
    if same_dtype and not work.quantized:
        return 0.0
    mapped = shape.linear_weights if same_dtype else shape.parameters
    # Dequantised copies are made after loading.
    copies = shape.linear_weights * work.number_bytes * (work.quantized and work.copied)
    return float(max(0, mapped * BYTES.get(shape.stored, 2) - copies))


def _forward(work: Workload, tokens: int, kind: str) -> float:
    """Bytes of a forward pass without a backward one: a block's tensors, its input and its output,
    and its dequantised weights."""
    width = work.shape.hidden * work.number_bytes * tokens
    one_block = replace(work, checkpointing=True)
    return width * (widths(work.shape) + 2) + dequantized_held(one_block, kind)


def _logits(work: Workload, tokens: int, kind: str) -> float:
    """Bytes of the logits: `LOGIT_ROWS` rows of each pack at a time."""
    logit = LOGITS if kind == "cuda" else work.number_bytes
    return float(min(tokens, LOGIT_ROWS * work.side_by_side) * work.shape.vocab * logit)


def _evaluation(work: Workload, slack: float, kind: str) -> float:
    if not work.eval_tokens:
        return 0.0
    forward = slack * _forward(work, work.eval_tokens, kind)
    return forward + _logits(work, work.eval_tokens, kind)


def _answers(work: Workload, slack: float, kind: str) -> float:
    """Bytes of answering: keys and values of every layer, a second copy of one layer's while they
    grow, the forward pass over the prompts, and a row of logits for each."""
    if not work.answered:
        return 0.0
    shape = work.shape
    cache = 2 * shape.keys * work.number_bytes * (work.prompt_tokens + work.new_tokens)
    forward = slack * _forward(work, work.answered * work.prompt_tokens, kind)
    return work.answered * (cache * (shape.layers + 1) + shape.vocab * LOGITS) + forward


def dequantized_held(work: Workload, kind: str) -> float:
    """Bytes of NF4 weights that are dequantised at the same time, without a lasting copy.

    Unsloth's own layers, those of the fast path, and bitsandbytes' on a CPU hold one matrix at a
    time. The blocks that Unsloth compiles on CUDA keep every matrix from the forward to the
    backward pass, because autograd keeps a product's factors; with checkpointing those of one
    block. This is an upper bound: a compiler may keep fewer.
    """
    shape = work.shape
    if not work.quantized or (kind == "cpu" and work.copied):
        return 0.0
    if shape.in_unsloth or work.fast or kind == "cpu":
        return float(max(linear.weights for linear in shape.linears) * work.number_bytes)
    blocks = 1 if work.checkpointing else shape.layers
    return float(shape.linear_weights / shape.layers * blocks * work.number_bytes)


def flops_per_token(work: Workload) -> float:
    """Floating point operations of training on one token, by the formulas in docs/plan.md."""
    shape = work.shape
    matrices, head = 2 * shape.linear_weights, 2 * shape.hidden * shape.vocab
    attention = work.scored * shape.attention * shape.layers
    lora = work.lora_parameters
    blocks = matrices + 4 * attention + 2 * lora
    backward = matrices + 10 * attention + 4 * lora
    return blocks + head + backward + head + (blocks if work.checkpointing else 0)


def dequantized_bytes(work: Workload, kind: str) -> float:
    """Bytes that dequantisation writes in an optimiser step: every matrix once in the forward pass,
    once in the backward pass and once in a recomputed one. A CPU with a copy writes none."""
    if not work.quantized or (kind == "cpu" and work.copied):
        return 0.0
    passes = (3 if work.checkpointing else 2) * work.batches
    return float(passes * work.shape.linear_weights * work.number_bytes)


@dataclass(frozen=True)
class StepTime:
    """Minimum seconds of an optimiser step: each part at the device's peak."""

    matmul: float
    dequantisation: float

    @property
    def bound(self) -> float:
        return self.matmul + self.dequantisation

    @property
    def expected(self) -> float:
        """Seconds at `EFFICIENCY` of the peaks."""
        return self.bound / EFFICIENCY


def step_time(work: Workload, device: Device) -> StepTime | None:
    """Work out the minimum time of an optimiser step; None if the device's speed is not known.

    A GPU's speed is known in 16 bits only. Dequantisation reads NF4 and writes the compute dtype.
    """
    if device.matmul is None or (device.kind == "cuda" and work.number_bytes == 4):
        return None
    written = dequantized_bytes(work, device.kind)
    moved = written * (1 + NF4_BITS / 8 / work.number_bytes)
    return StepTime(
        matmul=flops_per_token(work) * work.step_tokens / device.matmul,
        dequantisation=moved / device.bandwidth if device.bandwidth else 0.0,
    )
