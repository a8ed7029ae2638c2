"""From the name of a mixed-depth config to the depth of every module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritllm.allocation.goals import Goal, parse_goal
from tritllm.allocation.groups import Group, find_groups
from tritllm.allocation.reach import fewest_by_sum
from tritllm.allocation.sensitivities import Basis, Sensitivities, load, model_hash
from tritllm.allocation.swaps import Budget, Chosen, best_by_sum, predicted
from tritllm.errors import TritError
from tritllm.evaluation.corpus import Text
from tritllm.format.layout import nbytes
from tritllm.quantizer.configs import Config
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.plan import Plan

if TYPE_CHECKING:
    from tritllm.allocation.session import Session

CONTEXT = 512  # tokens a window by default, or as many as the model takes
BELOW_TARGET = 0.02  # bits a weight by which a file may be smaller than asked


@dataclass(frozen=True)
class Measuring:
    """How sensitivities are found.

    text: measured on; None takes what `file` holds, and measures nothing.
    file: of sensitivities, read if it is there and written; None keeps nothing. must_exist: whether
        the file was asked for by name, for messages.
    tokens: measured for the sensitivities, and as many more for whole models.
    context: tokens a window; None takes 512, or as many as the model takes.
    """

    text: Text | None
    file: Path | None
    tokens: int = 4096
    context: int | None = None
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    must_exist: bool = False


def resolve(
    names: Sequence[str],
    plan: Plan,
    measuring: Measuring,
    on_progress: Callable[[CalibrationProgress], None] | None = None,
) -> list[Config]:
    """The configs of names for which `goals.is_mixed` holds.

    plan: of the same model with a config that has the overrides alone (`plan.configs[0]`): modules
        that they mean keep their depths, whose bytes count.

    The configs have `depths` by module, without what overrides fix, and `notes` on how they were
    chosen.

    Raises TritError for a name, a goal that no depths reach, a missing text, a model that cannot be
    measured, and sensitivities of another model or text.
    """
    problem = _Problem(plan)
    goals = [parse_goal(name) for name in dict.fromkeys(names)]
    for goal in goals:
        problem.check(goal)
    known = _known(plan, measuring, goals[0].name)
    keys = {goal: problem.key(goal, plan) for goal in goals}
    missing = [goal for goal in goals if not problem.holds(goal, known.choices.get(keys[goal]))]
    unmeasured = [group for group in problem.groups if known.of(group) is None]
    if measuring.text is None:
        if unmeasured:
            raise TritError(
                f"{measuring.file}: {unmeasured[0].name} was not measured; give the text with "
                "--sensitivity-text, and it is measured"
            )
        for goal in missing:
            known.choices[keys[goal]] = _entry(problem.by_sum(goal, known.kl), problem)
    elif missing or unmeasured:
        from tritllm.allocation.session import Session

        session = Session(plan, measuring, problem.groups, problem.fixed, known, on_progress)
        session.measure(measuring.file)
        for goal in missing:
            known.choices[keys[goal]] = _entry(problem.measured(goal, session), problem)
            if measuring.file is not None:
                known.save(measuring.file)
    return [problem.config(goal, known, known.choices[keys[goal]]) for goal in goals]


def _known(plan: Plan, measuring: Measuring, name: str) -> Sensitivities:
    """What the file holds, or nothing yet."""
    file, text = measuring.file, measuring.text
    if text is None and (file is None or not file.exists()):
        where = f"{file} is not there; " if measuring.must_exist else ""
        raise TritError(
            f"config {name!r}: {where}depths are chosen by what they cost on a text; give one "
            "with --calibrate or --sensitivity-text, or --sensitivities FILE of an earlier run"
        )
    context = 0
    if text is not None:
        from tritllm.calibration.windows import context_of

        context = context_of(plan.source, measuring.context)
        context = context if measuring.context else min(context, CONTEXT)
    basis = Basis(
        plan.source.files.name,
        model_hash(plan.source),
        None if text is None else text.sha256,
        measuring.tokens,
        context,
        measuring.seed,
        plan.codec,
    )
    return Sensitivities(basis) if file is None else load(file, basis)


class _Problem:
    """Groups to choose depths for, and modules whose depth an override has fixed."""

    def __init__(self, plan: Plan) -> None:
        base = plan.configs[0]
        free = [t for t in plan.quantized if not base.is_overridden(t.module)]
        held = [t for t in plan.quantized if base.is_overridden(t.module)]
        if not free:
            raise TritError("--depth gives every module its depth; nothing is left to choose")
        self.groups: list[Group] = find_groups(free)
        self.fixed = {tensor.module: base.depth_of(tensor.module) for tensor in held}
        self._held_bytes = sum(nbytes(*t.shape, self.fixed[t.module]) for t in held)
        self._weights = sum(matrix.size for matrix in plan.quantized)

    def bits(self, depths: Mapping[str, int]) -> float:
        """File bits a quantized weight, of fixed modules and groups together."""
        own = sum(group.nbytes(depths[group.name]) for group in self.groups)
        return 8 * (own + self._held_bytes) / self._weights

    def check(self, goal: Goal) -> None:
        """Raise TritError for a target that no depths of this model reach."""
        if goal.bits is None:
            return
        low, high = (
            self.bits(dict.fromkeys((group.name for group in self.groups), d)) for d in (1, 4)
        )
        if not low <= goal.bits <= high + BELOW_TARGET:
            raise TritError(
                f"config {goal.name!r}: this model's files hold {low:.2f} to {high:.2f} bits a "
                "quantized weight; ask for a number between them"
            )

    def budget(self, bits: float) -> Budget:
        """What the groups may take for a target."""
        most = int(bits * self._weights / 8) - self._held_bytes
        return Budget(most, most - int(BELOW_TARGET * self._weights / 8))

    def by_sum(self, goal: Goal, kl: Mapping[str, Sequence[float]]) -> Chosen:
        """The choice by the sum of sensitivities."""
        own = {group.name: kl[group.name] for group in self.groups}
        if goal.bits is not None:
            depths = best_by_sum(self.groups, own, self.budget(goal.bits))
            assert depths is not None  # `check` has said so
        else:
            assert goal.divergence is not None
            depths = fewest_by_sum(self.groups, own, goal.divergence)
            if predicted(own, depths) > goal.divergence:
                raise self._unreachable(goal, predicted(own, depths))
        return Chosen(depths, predicted(own, depths))

    def measured(self, goal: Goal, session: Session) -> Chosen:
        """The choice by measured divergence of whole models."""
        if goal.bits is not None:
            return session.improve(goal.name, self.budget(goal.bits))
        assert goal.divergence is not None
        chosen = session.reach(goal.name, goal.divergence)
        if chosen is None:
            raise self._unreachable(goal, None)
        return chosen

    def _unreachable(self, goal: Goal, least: float | None) -> TritError:
        what = "" if least is None else f", which costs {least:.2g}"
        return TritError(
            f"config {goal.name!r}: the divergence is larger even with four trits a weight{what}; "
            "ask for more"
        )

    def key(self, goal: Goal, plan: Plan) -> str:
        """A choice's name in the file: what was asked for, with the modules that are fixed."""
        overrides = [f"{glob}={depth}" for glob, depth in plan.configs[0].overrides]
        return " ".join([goal.name, *overrides])

    def holds(self, goal: Goal, choice: Mapping[str, Any] | None) -> bool:
        """Whether a stored choice is one for these groups and keeps to the target."""
        if choice is None or set(choice.get("depths", ())) != {g.name for g in self.groups}:
            return False
        if any(type(d) is not int or not 1 <= d <= 4 for d in choice["depths"].values()):
            return False
        return goal.bits is None or self.bits(choice["depths"]) <= goal.bits

    def config(self, goal: Goal, known: Sensitivities, choice: Mapping[str, Any]) -> Config:
        """The config of a choice."""
        depths = {
            module: choice["depths"][group.name]
            for group in self.groups
            for module in group.modules
        }
        notes = {
            "goal": {"bits_per_weight": goal.bits, "mean_kl": goal.divergence},
            **choice,
            "measured_on": {**asdict(known.basis), "versions": known.versions},
        }
        return Config(goal.name, 4, depths=depths, notes=notes)


def _entry(chosen: Chosen, problem: _Problem) -> dict[str, Any]:
    """A choice as the file and the report have it."""
    return {
        "depths": chosen.depths,
        "bits_per_weight": problem.bits(chosen.depths),
        "predicted_kl": chosen.predicted,
        "measured_kl": chosen.measured,
        "measured_kl_before_exchanges": chosen.before,
        "measurements": chosen.measurements,
    }
