"""How tensor parallelism cuts each linear layer, told by the layer's name.

The rule is vLLM's, whose models are built of its parallel classes: `RowParallelLinear` cuts the
columns of W (the layer's input), `ColumnParallelLinear` and those made of it the rows (its output),
`ReplicatedLinear` nothing. Of a block's matrices the one that writes to the residual stream is cut
by columns, what is in front of it by rows (Shoeybi et al., Megatron-LM, 2019).
"""

from __future__ import annotations

import re

ROWS, COLUMNS, HEADS, WHOLE = "rows", "columns", "heads", "whole"

_CUTS = (  # ends of modules' names; the first that means a module counts, and others are by rows
    (
        # What is small beside the rest, or has nothing behind it that would join the parts.
        r"q_a_proj|kv_a_proj_with_mqa|indexer\.\w+|project_(in|out)|shared_expert_gate"
        r"|(pooler|transform|(lm_)?head)\.dense|vocab_transform|(visual|text)_projection"
        r"|text_model\.head",
        WHOLE,
    ),
    (r"[kv]_proj", HEADS),
    (
        r"o_proj|out_proj|out_lin|attn\.(proj|Wo)"
        r"|(SelfAttention|EncDecAttention)\.o"
        r"|((self_)?attention|self_attn|output)\.dense"
        r"|down_proj|w2|wo|mlp\.Wo|c_proj|fc2|linear_fc2|lin2|fc_out|dense_4h_to_h"
        r"|output_linear|linear_2|merger\.mlp\.2|x_proj|(pre|post)_expert_proj",
        COLUMNS,
    ),
)
_PATTERNS = tuple((re.compile(rf"(.*\.)?({names})"), cut) for names, cut in _CUTS)


def cut_of(module: str) -> str:
    """How the matrix of a module is cut.

    "rows"; "heads", by rows of which each rank has whole key and value heads; "columns"; "whole",
    on every rank.
    """
    return next((cut for pattern, cut in _PATTERNS if pattern.fullmatch(module)), ROWS)
