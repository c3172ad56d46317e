"""Memory, arithmetic and least time of a training step, by formula.

The terms, with h the hidden width, L the layers, P the weights of the blocks' matrices, V the
vocabulary and T the tokens of a row, are given where they are computed. Activations are counted in
widths: one width is h numbers per token and layer in the compute dtype. GB are 10^9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fasttune.machine import CONTEXT, GB, Device
from fasttune.models.limits import CHUNK, SHORT
from fasttune.planning.shape import BYTES, Shape

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per weight in NF4 with double quantisation: 4 bits, an 8-bit scale per block of 64 weights
and a 32-bit scale per 256 blocks (arXiv:2305.14314, section 3)."""

LOGITS = 12
"""Bytes per logit of a chunk on a GPU: the logits in fp32, their softmax and its gradient. On a CPU
they are in the compute dtype alone, and become their gradient where they are."""

EFFICIENCY = 0.4
"""Share of the peak that a run is expected to reach: PaLM reports 0.46 of hand-tuned training
(arXiv:2204.02311, section 4.1). It is an assumption; nothing was measured on a GPU."""

# What is calibrated and not derived. `tools/check_plan.py` compares the CPU's with measurements.

RESERVED = 0.5 * GB
"""What torch's allocator reserves of a GPU beyond the tensors: workspaces of the libraries and
fragmentation. An estimate."""

PROCESS = {"cuda": CONTEXT + RESERVED, "cpu": 0.75 * GB}
"""What a process takes besides tensors. CPU: the libraries, 0.61 GB by
    python -c "import fasttune.training.train, resource as r;
    print(r.getrusage(r.RUSAGE_SELF).ru_maxrss)"
and the trainer with the kernels' own buffers. CUDA: so that a plan's peak counts what
`machine.peak_memory` measures, all that the allocator reserves and the context, which is not of
the allocator's."""

PHI_WIDTHS = 16.5
"""Widths that a block of transformers' Phi keeps for its backward pass, with an MLP of 4 h and
`models.activation.fuse_gelu`: counted on NF4 layers with LoRA. 8 of them are the MLP's: the input
of gelu, and its result for fc2."""

CPU_SLACK = 1.2
"""On a CPU what is freed goes back late: activations take so many times what is counted. This and
the trainer's share of `PROCESS` are fitted to the first three cases of `tools/check_plan.py`; the
others check them."""

VARIED_SLACK = 2.4
"""The same where rows differ in length: packs of ever new sizes leave holes in glibc's heap. Fitted
to the demo and to 32 steps on GSM8K."""

HOLES = 3.0
"""Widths of a block that glibc cannot use again on a CPU with checkpointing, where blocks of many
sizes come and go. Fitted to the demo model and a Llama; how much it is differs from run to run."""


@dataclass(frozen=True)
class Workload:
    """A training step, as far as its costs depend on it.

    Attributes:
        quantized: the blocks' matrices are held in NF4.
        dtype: the compute dtype, a key of `planning.shape.BYTES`.
        optimizer_bytes: bytes of optimiser state per trained parameter.
        checkpointing: blocks are computed again in the backward pass.
        peak_tokens: tokens of the largest batch that the model sees at once, padding included.
        step_tokens: tokens of a mean optimiser step.
        attended: tokens that a token's row has, averaged over tokens: T for rows of one length,
            sum T^2 / sum T otherwise.
        masked: tokens of a mean pack whose rows are kept apart by one dense mask; 0 where rows
            attend by themselves.
        batches: batches in an optimiser step.
        rank: of LoRA.
        targets: of LoRA; none are all.
        varied: whether the rows differ in length.
        copied: on a CPU, NF4 weights are held dequantised as well.
        fast: the fast path computes the layers, on CUDA Phi's alone.
        eval_tokens: tokens of the largest batch of an evaluation; 0 where there is none.
        answered: prompts that are answered at a time, before and after training.
        prompt_tokens: of the longest of them, at the most.
        new_tokens: of an answer, at the most.
        side_by_side: packs that are computed at the same time, and together have `peak_tokens`.
    """

    shape: Shape
    quantized: bool
    dtype: str
    optimizer_bytes: int
    checkpointing: bool
    peak_tokens: int
    step_tokens: float
    attended: float
    masked: float = 0.0
    batches: int = 1
    rank: int = 16
    targets: tuple[str, ...] = ()
    varied: bool = False
    copied: bool = True
    fast: bool = False
    eval_tokens: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    side_by_side: int = 1

    @property
    def number_bytes(self) -> int:
        """Bytes of a number in the compute dtype."""
        return BYTES[self.dtype]

    @property
    def scored(self) -> float:
        """Keys that a token's query is multiplied with: half of its row on average, since later
        ones are skipped, or with a dense mask the whole pack."""
        return self.masked or self.attended / 2


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of training, by part.

    Attributes:
        weights: the base model.
        adapters: LoRA's parameters, their gradients and the optimiser's state.
        activations: what is kept from the forward to the backward pass.
        working: the larger of what the loss takes (a chunk of logits, the gradient of the hidden
            states) and what the backward pass of one block does (its activations computed again,
            what is out of NF4 for it); on a CPU both.
        process: the process itself.
        loading: what loading holds beside weights and process, before there is a batch.
        evaluation: what an evaluation takes, between the steps: it keeps no activations.
        answers: what the answers before and after training take, above all their keys and values.
    """

    weights: float
    adapters: float
    activations: float
    working: float
    process: float
    loading: float
    evaluation: float = 0.0
    answers: float = 0.0

    @property
    def training(self) -> float:
        """What training takes besides the weights and the process."""
        return self.adapters + self.activations + self.working

    @property
    def peak(self) -> float:
        """The largest of training, loading, evaluation and answers; what `machine.peak_memory`
        measures of a run."""
        return sum(self.parts().values())

    @property
    def needed(self) -> float:
        """What a device must have: the peak without the files that loading has mapped, whose pages
        the kernel takes back where it is short of memory."""
        return self.unmapped.peak

    @property
    def unmapped(self) -> Memory:
        """The same without the files that loading has mapped."""
        return replace(self, loading=0.0)

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
    """Widths that one block of transformers keeps for its backward pass: k in the formulas.

    Phi: `PHI_WIDTHS`, with the MLP's share by its width. A gated block (Llama and its like), from
    the tensors that autograd saves in 16 bits with a frozen base and LoRA on every matrix, where a,
    g and m are the widths of queries, keys and MLP: two RMSNorms keep their input in fp32 (2 each)
    and their output, LoRA's input (1 each); attention keeps q, k, v and its output (2a + 2g); the
    MLP keeps the gate, its activation, the other projection and the product, LoRA's input (4m).
    That is 6 + 2a + 2g + 4m: 20.75 for Llama-2-7B. A test counts both with torch's hooks.
    """
    a, g, m = _relative(shape)
    if shape.gated:
        return 6 + 2 * a + 2 * g + 4 * m
    return PHI_WIDTHS + 2 * (m - 4)


def fast_widths(shape: Shape, attended: float, number_bytes: int) -> float:
    """Widths that one block of the fast path keeps; counted by the same test.

    A norm keeps its input and its output, which all layers that read it share (2 each; Phi has one
    norm). Attention keeps q, k, v and its output (2a + 2g) and, in bf16 for short rows, the scores:
    heads x attended numbers a token. Otherwise k and v are kept for all heads and the output twice
    (5a). The MLP keeps what its activation reads: m in Phi, 2m in Llama; in other gated blocks 4m.
    """
    a, g, m = _relative(shape)
    if number_bytes == 2 and attended <= SHORT:
        attention = 2 * a + 2 * g + attended * shape.heads / shape.hidden
    else:
        attention = 5 * a
    rewritten = 2 if shape.model_type == "llama" else 4
    return (4 if shape.gated else 2) + attention + (rewritten if shape.gated else 1) * m


def _block_widths(work: Workload) -> float:
    """Widths that one block keeps, by the code that computes it."""
    if not work.fast:
        return widths(work.shape)
    return fast_widths(work.shape, work.attended, work.number_bytes)


def _relative(shape: Shape) -> tuple[float, float, float]:
    """Queries, keys and MLP in hidden widths."""
    h = shape.hidden
    return shape.attention / h, shape.keys / h, shape.intermediate / h


def memory(work: Workload, kind: str) -> Memory:
    """The parts of the peak on a device of the kind "cuda" or "cpu".

    Weights: NF4 for the blocks' matrices, if quantised; embeddings, head, norms and biases in the
    compute dtype. A CPU may keep the matrices dequantised as well, for the whole run. Adapters in
    fp32: 4 bytes, 4 for the gradients of each pack that is computed at the same time, and the
    optimiser's. Activations: h * bytes * tokens * L * k; with checkpointing the inputs of the
    blocks, h * bytes * tokens * L, and k for one block at a time; on a CPU also what the heap loses
    to `HOLES`. A dense mask over the pack becomes a tensor of numbers in every block that keeps its
    activations: bytes * tokens^2. What is dequantised in each pass comes to `dequantized_held`.
    """
    shape, number = work.shape, work.number_bytes
    cuda = kind == "cuda"
    weights = float(shape.other_parameters * number)
    if work.quantized:
        weights += shape.linear_weights * NF4_BITS / 8
    if not work.quantized or (work.copied and not cuda):
        weights += shape.linear_weights * number
    mapped = not cuda and shape.stored == work.dtype
    width = shape.hidden * number * work.peak_tokens
    slack = VARIED_SLACK if work.varied else CPU_SLACK
    passed = 1.0 if cuda else slack
    block = passed * _block_widths(work)
    kept = block
    if work.checkpointing:
        kept = 1 if cuda else 1 + HOLES
    loss = _losses(work, work.peak_tokens, kind) + width
    again = width * block if work.checkpointing else 0.0
    held = dequantized_held(work, kind)
    gradients = 4 * (work.side_by_side - 1)
    if work.checkpointing or work.fast or shape.in_unsloth or not cuda:
        again += held  # for one block, or one matrix, at a time
        held = 0.0
    masks = work.peak_tokens**2 * number * (1 if work.checkpointing else shape.layers)
    return Memory(
        weights=weights,
        adapters=float(lora_parameters(work) * (8 + gradients + work.optimizer_bytes)),
        activations=float(width * shape.layers * kept + (masks if work.masked else 0) + held),
        # glibc keeps what the loss frees, and a block's backward pass does not fit into the holes.
        working=max(float(loss), again) if cuda else loss + again,
        process=PROCESS[kind],
        loading=0.0 if cuda else _loading(work, mapped),
        evaluation=_evaluation(work, passed, kind),
        answers=_answers(work, passed, kind),
    )


def _loading(work: Workload, mapped: bool) -> float:
    """Bytes of files that are mapped on a CPU while they are converted or quantised. Unquantised
    ones of the compute dtype are the weights themselves."""
    shape = work.shape
    if mapped and not work.quantized:
        return 0.0
    files = (shape.linear_weights if mapped else shape.parameters) * shape.stored_bytes
    copies = shape.linear_weights * work.number_bytes * (work.quantized and work.copied)
    return float(max(0, files - copies))  # the copies are made after loading


def _passing(work: Workload, tokens: int, kind: str) -> float:
    """Bytes of a pass that keeps nothing for a backward one: what a block makes, its input and its
    output, and one of its matrices out of NF4."""
    width = work.shape.hidden * work.number_bytes * tokens
    return width * (widths(work.shape) + 2) + dequantized_held(
        replace(work, checkpointing=True), kind
    )


def _evaluation(work: Workload, slack: float, kind: str) -> float:
    """Bytes of an evaluation: a pass and the loss of `CHUNK` rows of logits."""
    if not work.eval_tokens:
        return 0.0
    losses = _losses(work, work.eval_tokens, kind)
    return slack * _passing(work, work.eval_tokens, kind) + losses


def _losses(work: Workload, tokens: int, kind: str) -> float:
    """Bytes of the logits of so many tokens: `CHUNK` of each pack at a time."""
    each = LOGITS if kind == "cuda" else work.number_bytes
    return float(min(tokens, CHUNK * work.side_by_side) * work.shape.vocab * each)


def _answers(work: Workload, slack: float, kind: str) -> float:
    """Bytes of answering: keys and values of every layer, of one layer twice while they grow, the
    pass over the prompts, and a row of logits for each."""
    if not work.answered:
        return 0.0
    shape = work.shape
    kept = 2 * shape.keys * work.number_bytes * (work.prompt_tokens + work.new_tokens)
    passing = slack * _passing(work, work.answered * work.prompt_tokens, kind)
    logits = work.answered * shape.vocab * LOGITS
    return work.answered * kept * (shape.layers + 1) + passing + logits


def dequantized_held(work: Workload, kind: str) -> float:
    """Bytes of the base that are out of NF4 at once, where they are not kept.

    Unsloth's own layers, those of the fast path, and bitsandbytes' on a CPU have one matrix at a
    time. The blocks that Unsloth compiles on CUDA keep every matrix from the forward to the
    backward pass, as autograd does of a product's factors; with checkpointing those of one block. A
    compiler may do with fewer: it is an upper bound.
    """
    shape = work.shape
    if not work.quantized or (kind == "cpu" and work.copied):
        return 0.0
    if shape.in_unsloth or work.fast or kind == "cpu":
        return float(shape.largest_linear * work.number_bytes)
    blocks = 1 if work.checkpointing else shape.layers
    return float(shape.linear_weights / shape.layers * blocks * work.number_bytes)


def lora_parameters(work: Workload) -> int:
    return work.shape.lora_parameters(work.rank, work.targets)


def flops_per_token(work: Workload) -> float:
    """Floating point operations of training on one token.

    With a the width of the queries and S the keys that a query is multiplied with: forward
    2P + 4SaL + 2 LoRA + 2hV; backward 2P + 10SaL + 4 LoRA + 2hV, since the frozen weights take no
    gradient; checkpointing repeats the forward pass without the head. S is T/2 in a row of T tokens
    that attends by itself, and all of a pack under a dense mask, whose zeros are computed too.
    """
    shape = work.shape
    matrices, head = 2 * shape.linear_weights, 2 * shape.hidden * shape.vocab
    attention = work.scored * shape.attention * shape.layers
    lora = lora_parameters(work)
    blocks = matrices + 4 * attention + 2 * lora
    backward = matrices + 10 * attention + 4 * lora
    return blocks + head + backward + head + (blocks if work.checkpointing else 0)


def dequantized_bytes(work: Workload, kind: str) -> float:
    """Bytes written by dequantisation in an optimiser step: every matrix once for each pass over
    it, forward, backward and again where blocks are computed again. None where a CPU keeps
    them."""
    if not work.quantized or (kind == "cpu" and work.copied):
        return 0.0
    passes = (3 if work.checkpointing else 2) * work.batches
    return float(passes * work.shape.linear_weights * work.number_bytes)


@dataclass(frozen=True)
class Time:
    """Seconds of an optimiser step that no run can undercut: the parts at the device's peaks."""

    matmul: float
    dequantisation: float

    @property
    def bound(self) -> float:
        return self.matmul + self.dequantisation

    @property
    def expected(self) -> float:
        """At `EFFICIENCY` of the peaks."""
        return self.bound / EFFICIENCY


def time(work: Workload, device: Device) -> Time | None:
    """The time bound of an optimiser step; None where the device's speed is not known, which it is
    on a GPU in 16 bits only.

    Arithmetic at the peak of dense matrix products; dequantisation reads NF4 and writes the compute
    dtype at the peak of the memory.
    """
    if device.matmul is None or (device.kind == "cuda" and work.number_bytes == 4):
        return None
    written = dequantized_bytes(work, device.kind)
    moved = written * (1 + NF4_BITS / 8 / work.number_bytes)
    return Time(
        matmul=flops_per_token(work) * work.step_tokens / device.matmul,
        dequantisation=moved / device.bandwidth if device.bandwidth else 0.0,
    )
