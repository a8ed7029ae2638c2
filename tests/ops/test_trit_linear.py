"""What a packed layer runs is what it holds, however it was changed."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tritllm import encode, native, products
from tritllm.ops import changes
from tritllm.ops.planes import reading_planes
from tritllm.ops.trit_linear import TritLinear

pytestmark = pytest.mark.skipif(not native.available(), reason="no native kernels")
X = torch.linspace(-1, 1, 96)[None]


def layer(seed: int = 0, depth: int = 2) -> TritLinear:
    rng = np.random.default_rng(seed)
    made = TritLinear.from_tensor(
        encode(rng.standard_normal((16, 96)).astype(np.float32), depth), mode="exact"
    )
    assert made.prepare()
    return made


def pickled(module: TritLinear) -> TritLinear:
    file = io.BytesIO()
    torch.save(module, file)
    assert len(file.getvalue()) < module.prepared.nbytes + 6000  # the planes, not both
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, pickled, lambda m: m.to("meta").to_empty(device="cpu"), lambda m: m.half()],
    ids=["deepcopy", "pickle", "meta", "half"],
)
def test_copies_and_moves_prepare_again(change):
    first = layer()
    expected, state = first(X), copy.deepcopy(first.state_dict())
    other = change(first)
    other.load_state_dict(state)
    assert torch.equal(other(X), expected)
    assert other.prepared is not None


@pytest.mark.parametrize("assign", [False, True])
def test_what_is_loaded_runs(assign):
    first, second = layer(0), layer(1)
    before = changes.count()
    first.load_state_dict(copy.deepcopy(second.state_dict()), assign=assign)
    assert changes.count() != before
    assert torch.equal(first(X), second(X))


def test_writes_in_place_and_replaced_buffers_run():
    first, second = layer(0), layer(1)
    first.weight.copy_(second.weight)
    first.weight_scale.data = second.weight_scale.clone()
    first._buffers["weight_codebook"] = second.weight_codebook.clone()
    assert torch.equal(first(X), second(X))
    first.weight_codebook.mul_(2)
    assert torch.equal(first(X), 2 * second(X))
    first.weight = layer(2).weight
    assert first.prepared is None


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("weight", lambda t: t[:1], "depth 1 in the state dict, 2 in the layer"),
        ("weight", lambda t: t[:, :8], r"torch.uint8 \[2, 8, 20\] in the state dict"),
        ("weight", lambda t: torch.full_like(t, 243), "byte 243 is not five trits"),
        ("weight_codebook", lambda t: t.half(), "torch.float16"),
        ("weight_codebook", lambda t: t.flip(-1), "codebook is not ascending"),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_a_wrong_state_is_refused_and_nothing_is_loaded(name, wrong, says, assign):
    first = layer()
    expected, state = first(X), copy.deepcopy(layer(1).state_dict())
    state[name] = wrong(state[name])
    model = torch.nn.Sequential(first)
    with pytest.raises(RuntimeError, match=rf"0\.{name}: .*{says}"):
        model.load_state_dict({f"0.{key}": value for key, value in state.items()}, assign=assign)
    assert torch.equal(first(X), expected)


def test_mode_is_the_layers_own():
    first = layer()
    exact = first(X)
    first.mode = "int8"
    assert not torch.equal(first(X), exact)
    first.mode = "torch"
    first(X)
    assert first.prepared is None
    first.mode = "exact"
    assert torch.equal(first(X), exact)


def test_whoever_looks_at_operators_sees_them():
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    first, names = layer(), []
    with torch.no_grad():
        expected = first(X)
        with Seen():
            assert torch.equal(first(X), expected)
        assert names.count("tritllm::linear_prepared") == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert first(X).dtype == torch.bfloat16
        assert torch.equal(first(torch._neg_view(X)), first(-X))


def test_fewer_planes_make_the_memory_again_once():
    """With planes apart, which then serves every number of them; a shallower layer has its own."""
    found, other = layer(3, depth=3), layer(3, depth=3)
    together = products.planes_together(3)
    assert found.planes_together == together
    whole, before = found(X), found.prepared
    memories = []
    for planes in (2, 3, 1, 3):
        found.planes = planes
        memories.append(found.prepared)
        assert not found.planes_together
        shallow = TritLinear.from_tensor(found.tensor(), mode="exact")
        shallow.keep_planes(planes)
        assert torch.equal(found(X), shallow(X))
        assert shallow.planes_together == (products.planes_together(planes))
    assert all(memory is memories[0] for memory in memories)
    assert (memories[0] is before) == (not together)
    assert torch.equal(found(X), whole)
    assert copy.deepcopy(found).prepare()
    assert other.planes_together == together  # nobody asked it
    switched = TritLinear.from_tensor(found.tensor(), mode="exact")
    switched.planes = 2  # before there is any memory
    assert switched.prepare()
    assert not switched.planes_together


def test_a_switch_among_many_layers_makes_memory_again_once():
    layers = [layer(seed, depth) for seed, depth in ((1, 1), (2, 2), (3, 4))]
    before = [each(X) for each in layers]
    with reading_planes(layers, 2):
        memory = [each.prepared for each in layers]
        assert [each.planes for each in layers] == [1, 2, 2]
        assert [each.planes_together for each in layers] == [
            False, products.planes_together(2), False,
        ]  # fmt: skip
    changed = changes.count()
    with reading_planes(layers, 3):
        assert all(each.prepared is kept for each, kept in zip(layers, memory, strict=True))
    assert changes.count() == changed
    assert all(torch.equal(each(X), y) for each, y in zip(layers, before, strict=True))


def test_bytes_that_are_no_trits_are_named_when_the_layer_runs():
    """Not when it is told to read fewer planes, which prepares it again."""
    found = layer(5, depth=3)
    found.weight[0, 2, 3] = 250
    found.planes = 2
    with pytest.raises(ValueError, match="byte 250"):
        found(X)


def test_weights_are_decoded_of_either_memory():
    found = layer(4, depth=4)
    whole = found.tensor().decode(4)
    for planes in (4, 2, 4):
        found.planes = planes
        expected = found.tensor().decode(planes)
        for rows, block in found.weights().blocks(torch.float32):
            assert np.array_equal(block.numpy(), expected[rows])
    assert np.array_equal(expected, whole)
