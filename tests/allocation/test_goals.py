import pytest

from tritllm.allocation.goals import Goal, is_mixed, parse_goal
from tritllm.errors import TritError


@pytest.mark.parametrize(
    ("name", "goal"),
    [
        ("target-3.25bpw", Goal("target-3.25bpw", bits=3.25)),
        ("target-1.9bpw", Goal("target-1.9bpw", bits=1.9)),
        ("target-6.7bpw", Goal("target-6.7bpw", bits=6.7)),
        ("target-4bpw", Goal("target-4bpw", bits=4.0)),
        ("sens-0.02", Goal("sens-0.02", divergence=0.02)),
        ("sens-1e-3", Goal("sens-1e-3", divergence=0.001)),
        ("d3scale-sens002", Goal("d3scale-sens002", divergence=0.02)),
        ("d3scale-sens003", Goal("d3scale-sens003", divergence=0.03)),
    ],
)
def test_names(name, goal):
    assert is_mixed(name)
    assert parse_goal(name) == goal


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("target-1.8bpw", "bits a weight must be 1.9..6.7"),
        ("target-6.8bpw", "bits a weight must be 1.9..6.7"),
        ("target-0bpw", "bits a weight must be 1.9..6.7"),
        ("target-3.25", "mixed depths are target-<bits>bpw"),
        ("target-nanbpw", "mixed depths are"),
        ("sens-", "mixed depths are"),
        ("sens-0", "the divergence must be above 0"),
        ("sens--1", "mixed depths are"),
        ("sens-1e999", "the divergence must be above 0"),
    ],
)
def test_bad_names(name, message):
    assert is_mixed(name)
    with pytest.raises(TritError, match=message):
        parse_goal(name)


@pytest.mark.parametrize("name", ["uniform-d2", "nested-d2-d4", "d3scale-sens004", "targets", ""])
def test_names_of_others(name):
    assert not is_mixed(name)
