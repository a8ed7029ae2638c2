"""The results of benchmarks/quality.py as markdown tables."""

from __future__ import annotations

from typing import Any

OURS = ("v2", "v3", "calibrated", "mixed", "trained")
Row = dict[str, Any]


def made(results: Row) -> list[Row]:
    """The rows that were measured, by size."""
    return sorted((r for r in results["rows"] if "missing" not in r), key=lambda r: r["bits"])


def print_rows(results: Row) -> None:
    settings = results["settings"]
    print(
        f"{settings['text_tokens']} tokens in windows of {settings['context']}, "
        f"{settings['calibration_tokens']} tokens of calibration, "
        f"float perplexity {results['float']['ppl']:.3f}\n"
    )
    print("| | bits a weight | mean KL, nats | same first choice | perplexity | uses | seconds |")
    print("|---|---|---|---|---|---|---|")
    for row in made(results):
        name = f"**{row['name']}**" if row["peer"] in OURS else row["name"]
        print(
            f"| {name} | {row['bits']:.3f} | {row['kl']:.5f} | {row['agreement']:.2%} | "
            f"{row['ppl']:.3f} | {row['calibrated'] or 'weights alone'} | {row['seconds']:.1f} |"
        )


def beaten_by(ours: Row, rows: list[Row]) -> list[Row]:
    """The peers that lose less at no more bits; to a row that uses weights alone, only such."""
    return [
        row
        for row in rows
        if row["peer"] not in OURS
        and row["bits"] <= ours["bits"]
        and row["kl"] < ours["kl"]
        and (ours["calibrated"] or not row["calibrated"])
    ]


def as_good_at(ours: Row, rows: list[Row]) -> Row | None:
    """The smallest peer that loses no more."""
    peers = [r for r in rows if r["peer"] not in OURS and r["kl"] <= ours["kl"]]
    if not ours["calibrated"]:
        peers = [r for r in peers if not r["calibrated"]]
    return min(peers, key=lambda r: r["bits"], default=None)


def print_verdicts(results: Row) -> None:
    """Who loses less than ours at no more bits, and what others need to lose as little."""
    rows = made(results)
    print(
        "\n| ours | bits | mean KL | loses less at no more bits | the smallest that loses no more |"
    )
    print("|---|---|---|---|---|")
    for ours in (row for row in rows if row["peer"] in OURS):
        better = ", ".join(f"{r['name']} ({r['bits']:.2f}, {r['kl']:.5f})"
                           for r in beaten_by(ours, rows))  # fmt: skip
        equal = as_good_at(ours, rows)
        smallest = f"{equal['name']}, {equal['bits']:.2f} bits" if equal else "none measured"
        print(
            f"| {ours['name']} | {ours['bits']:.3f} | {ours['kl']:.5f} | {better or 'nobody'} | "
            f"{smallest} |"
        )


def print_missing(results: Row) -> None:
    """What could not be measured, one line a reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in results["rows"]:
        if "missing" in row:
            reasons.setdefault((row["peer"], row["missing"]), []).append(row["name"])
    if reasons:
        print("\nMissing:")
    for (_, reason), names in reasons.items():
        print(f"- {', '.join(names)}: {reason}")
