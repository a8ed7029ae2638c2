"""The float model's stream through a part: its output, and what each step's target is taken from.

It runs once, whatever the number of configs.
"""

from __future__ import annotations

from functools import partial

import torch

from tritllm.calibration.activations import Activations, ActivationStore
from tritllm.calibration.observe import Kind, observe
from tritllm.calibration.part import Batches, Part
from tritllm.calibration.stages import Experts, Stage


def kind_of(part: Part, step: Stage | Experts) -> Kind:
    """What the target of a step is compared with.

    With the inputs, a product of K*K a token serves all matrices of the stage; with their outputs,
    it takes N*K to compute them and N*K for the product. Of the two the cheaper is taken. The sum
    of the residual stream and the output counts the streams' difference in, too.
    """
    if isinstance(step, Experts):
        return Kind.INPUT
    if step.added:
        return Kind.SUM
    shapes = [part.matrices[name].shape for name in step.modules]
    rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
    return Kind.INPUT if columns <= 2 * rows else Kind.OUTPUT


def run_float(
    part: Part,
    batches: Batches,
    stream: Activations,
    store: ActivationStore,
    device: torch.device,
    *,
    is_last: bool,
) -> tuple[list[Activations], Activations | None]:
    """Run the float part on its stream.

    Returns what is compared in each step of the part's structure, a row a token, and the stream
    behind the part; None where it `is_last`.
    """
    wanted = [(step, kind_of(part, step)) for step in part.structure.steps]
    compared: list[Activations] = []
    after = None if is_last else store.new(*stream.shape)
    for start, windows in batches if wanted or after else ():
        hidden = batches.hidden(stream, start, windows, device)
        taken, out = observe(
            part.root,
            partial(part.call, start),
            hidden,
            wanted,
            to_the_end=not is_last,
        )
        first, _ = batches.rows(start, windows)
        for place, seen in enumerate(taken):
            assert seen.y is not None
            if len(compared) == place:
                compared.append(store.new(batches.tokens, seen.y.shape[1]))
            compared[place].put(first, seen.y)
        if after:
            after.put(first, out.reshape(-1, out.shape[-1]))
    return compared, after
