"""What `tritllm eval` prints: the protocol, a line a model, and every statistic of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from tritllm.cli.console import console
from tritllm.evaluation.token_scores import Distribution, Estimate, Statistics
from tritllm.quantities import size
from tritllm.run.evaluate import EvaluatedRow, Evaluation


def print_evaluation(result: Evaluation) -> None:
    """Everything that was measured."""
    if result.protocol is not None:
        _print_protocol(result)
        _print_models(result)
        _print_statistics(result.models)
    _print_tasks(result)
    peak = result.peak_memory_bytes
    console.print(
        f"{result.seconds:.1f} s, peak memory {'unknown' if peak is None else size(peak)}"
    )


def _print_protocol(result: Evaluation) -> None:
    protocol = result.protocol
    assert protocol is not None
    begin = "no BOS" if protocol.bos is None else f"BOS token {protocol.bos}"
    for line in (
        f"text       {protocol.text}, sha256 {protocol.text_sha256}",
        f"windows    {protocol.windows:,} of {protocol.context} tokens, stride "
        f"{protocol.stride}, {begin}; {protocol.predictions:,} predictions",
        f"reference  {result.reference.path if result.reference else ''}, logits "
        f"{protocol.reference_logits}",
        f"computed   in {protocol.dtype} on {protocol.device}, packed layers as "
        f"TRITLLM_LINEAR={protocol.activations}; "
        + ", ".join(f"{name} {version}" for name, version in protocol.versions.items()),
    ):
        console.print(line, markup=False, soft_wrap=True)


def _print_models(result: Evaluation) -> None:
    table = _table("Quality and size")
    table.add_column("model", overflow="fold")
    for column in ("bits", "file", "mean KL", "perplexity", "PPL ratio", "same top"):
        table.add_column(column, justify="right", no_wrap=True)
    if result.reference is not None and result.reference_perplexity is not None:
        table.add_row(
            result.reference.name,
            _bits(result.reference),
            size(result.reference.size.file_bytes),
            "0",
            f"{result.reference_perplexity.value:.3f}",
            "1",
            "100 %",
            style="dim",
        )
    for row in result.models:
        if row.statistics is None:
            continue
        found = row.statistics
        table.add_row(
            row.name,
            _bits(row),
            size(row.size.file_bytes),
            _significant(found.kl.mean.value),
            f"{found.perplexity.value:.3f}",
            f"{found.ratio.value:.4f}±{found.ratio.error:.4f}",
            f"{100 * found.same_top.value:.2f} %",
        )
    console.print(table)


def _print_statistics(rows: Sequence[EvaluatedRow]) -> None:
    """What llama.cpp's --kl-divergence prints, a column a model, as many as the width allows."""
    measured = [(row.name, row.statistics) for row in rows if row.statistics]
    lines: list[tuple[str, Callable[[Statistics], str]]] = [
        ("PPL(model)", lambda s: _plus(s.perplexity, 4)),
        ("PPL(reference)", lambda s: _plus(s.reference_perplexity, 4)),
        ("ln PPL ratio", lambda s: _plus(s.ln_ratio, 6)),
        ("PPL ratio", lambda s: _plus(s.ratio, 6)),
        ("PPL difference", lambda s: _plus(s.difference, 4)),
        (
            "correlation of ln p",
            lambda s: "-" if s.correlation is None else f"{100 * s.correlation:.2f} %",
        ),
        ("KL mean", lambda s: _plus(s.kl.mean, 6)),
        *_distribution("KL", lambda s: s.kl, measured[0][1].kl, lambda v: f"{v:.6f}"),
        ("Δp mean", lambda s: _percent(s.probability_change.mean)),
        *_distribution(
            "Δp", lambda s: s.probability_change, measured[0][1].probability_change,
            lambda v: f"{100 * v:.3f} %",
        ),
        ("Δp RMS", lambda s: _percent(s.probability_change_rms)),
        ("same top", lambda s: _percent(s.same_top)),
    ]  # fmt: skip
    width = max(len(line(found)) for _, line in lines for _, found in measured)
    columns = max(1, (console.width - 22) // (width + 2))
    for start in range(0, len(measured), columns):
        part = measured[start : start + columns]
        table = _table("Statistics" if start == 0 else None)
        table.add_column("", no_wrap=True)
        for name, _ in part:
            table.add_column(name, justify="right", overflow="fold")
        for label, line in lines:
            table.add_row(label, *(line(found) for _, found in part))
        console.print(table)


def _distribution(
    name: str,
    of: Callable[[Statistics], Distribution],
    first: Distribution,
    shown: Callable[[float], str],
) -> list[tuple[str, Callable[[Statistics], str]]]:
    lines: list[tuple[str, Callable[[Statistics], str]]] = [
        (f"{name} maximum", lambda s: shown(of(s).maximum))
    ]
    for percent in first.percentiles:
        label = "median" if percent == 50 else f"{percent:.1f} %"
        lines.append(
            (f"{name} {label}", lambda s, percent=percent: shown(of(s).percentiles[percent]))  # type: ignore[misc]
        )
    return [*lines, (f"{name} minimum", lambda s: shown(of(s).minimum))]


def _print_tasks(result: Evaluation) -> None:
    rows = [row for row in (result.reference, *result.models) if row is not None and row.tasks]
    if not rows:
        return
    table = _table("Tasks, %")
    table.add_column("task", no_wrap=True)
    table.add_column("shots", justify="right", no_wrap=True)
    table.add_column("figure", no_wrap=True)
    for row in rows:
        table.add_column(row.name, justify="right", overflow="fold")
    for name, score in rows[0].tasks.items():
        table.add_row(
            name,
            "-" if score.shots is None else str(score.shots),
            score.metric.partition(",")[0],
            *(_task(row, name) for row in rows),
        )
    if len(rows[0].tasks) > 1:
        means = [sum(score.value for score in row.tasks.values()) / len(row.tasks) for row in rows]
        table.add_section()
        table.add_row("mean", "", "", *(f"{100 * mean:.2f}" for mean in means))
    console.print(table)


def _task(row: EvaluatedRow, name: str) -> str:
    score = row.tasks[name]
    error = "" if score.error is None else f" ± {100 * score.error:.2f}"
    return f"{100 * score.value:.2f}{error}"


def _table(title: str | None) -> Table:
    return Table(title=title, title_justify="left", box=None, header_style="bold")


def _bits(row: EvaluatedRow) -> str:
    bits = row.size.weight_bits
    if bits is None:
        whole = row.size.parameter_bits
        return "-" if whole is None else f"{whole:.2f} (all)"
    return f"{bits:.2f}"


def _plus(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def _significant(divergence: float) -> str:
    """A divergence in nats, with digits for the smallest that matter."""
    digits = 4 + sum(divergence < limit for limit in (0.1, 0.01, 0.001))
    return f"{divergence:.{digits}f}"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.3f} ± {100 * estimate.error:.3f} %"
