"""`tritllm::experts`: the gated experts of a block, each packed, on the tokens that chose them.

An operator of its own, so that a compiled model does not look into it: which experts run depends on
the tokens. It computes by `tritllm::linear_prepared`, or by `tritllm::linear` where there is no
prepared memory. Nothing here needs vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.library import Library, register_fake

from tritllm.integrations.vllm.weights import Call

_LIBRARY = Library("tritllm", "FRAGMENT")
_SCHEMA = (
    "experts(Tensor x, Tensor weights, Tensor ids, Tensor? expert_map, str activation,"
    " Tensor gate_up, Tensor? gate_up_scale, Tensor gate_up_steps, int[] gate_up_call,"
    " Tensor down, Tensor? down_scale, Tensor down_steps, int[] down_call, int[] pads) -> Tensor"
)
_LIBRARY.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))

ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def _experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    activation: str,
    gate_up: torch.Tensor,
    gate_up_scale: torch.Tensor | None,
    gate_up_steps: torch.Tensor,
    gate_up_call: Sequence[int],
    down: torch.Tensor,
    down_scale: torch.Tensor | None,
    down_steps: torch.Tensor,
    down_call: Sequence[int],
    pads: Sequence[int],
) -> torch.Tensor:
    """The weighted sum of the experts that each token chose, [T, H], added up in float32.

    Of each token x [T, H]: `ids` [T, k] are the experts that it chose, with their `weights`.
    `expert_map` gives the places here of the model's experts, -1 for one of another rank. `gate_up`
    and `down` are those of the E experts here, [E, ...], as `Call.run` takes each, with their scale
    indices and steps and the numbers of the call. `pads`: zeros around the inner columns
    (`Columns.pads`). `activation`: a name in ACTIVATIONS.
    """
    first, second = Call.of_numbers(gate_up_call), Call.of_numbers(down_call)
    inner = first.out_features // 2
    act = ACTIVATIONS[activation]

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        both = _product(first, rows, gate_up, gate_up_scale, gate_up_steps, expert)
        hidden = act(both[:, :inner]) * both[:, inner:]
        if any(pads):
            hidden = torch.nn.functional.pad(hidden, list(pads))
        return _product(second, hidden, down, down_scale, down_steps, expert).float()

    here = ids if expert_map is None else expert_map[ids.long()]
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if is_captured(x):
        return _run_all(run, x, weights, here, total, gate_up.shape[0])
    for expert in sorted(set(here.reshape(-1).tolist()) - {-1}):
        token, place = torch.where(here == expert)
        total.index_add_(0, token, run(expert, x[token]) * weights[token, place, None].float())
    return total.to(x.dtype)


def _product(
    call: Call,
    x: torch.Tensor,
    memories: torch.Tensor,
    scales: torch.Tensor | None,
    steps: torch.Tensor,
    expert: int,
) -> torch.Tensor:
    """Of one expert; prepared memories may lie further apart than they are long."""
    memory = memories[expert]
    if call.layout:
        memory = memory[: call.nbytes]
    return call.run(x, memory, None if scales is None else scales[expert], steps[expert])


def is_captured(x: torch.Tensor) -> bool:
    """Whether a CUDA graph is being made of what happens to x."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _run_all(
    run: Callable[[int, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    weights: torch.Tensor,
    here: torch.Tensor,
    total: torch.Tensor,
    experts: int,
) -> torch.Tensor:
    """Every expert on every token, for a CUDA graph, which cannot ask who has tokens."""
    for expert in range(experts):
        share = (weights * (here == expert)).sum(-1, keepdim=True)
        total += run(expert, x) * share.float()
    return total.to(x.dtype)


_LIBRARY.impl("experts", _experts, "CompositeExplicitAutograd")
register_fake("tritllm::experts", lambda x, *_: torch.empty_like(x), lib=_LIBRARY)

experts = torch.ops.tritllm.experts.default
