"""The last steps of a run: side files, config, index, card, manifest, and the final names."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

from tritllm.codec import to_decibel
from tritllm.format.layout import part_names
from tritllm.format.manifest import manifest_bytes
from tritllm.format.names import CONFIG, INDEX, MANIFEST
from tritllm.format.quantization_config import FORMAT_VERSION, make_quantization_config
from tritllm.format.trits import GROUP
from tritllm.model_card.card import model_card
from tritllm.model_card.licence import licence_notice, licence_of_card
from tritllm.quantizer.configs import Config
from tritllm.quantizer.coverage import judgement
from tritllm.quantizer.encodings import Encodings
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.report import REPORT, Report, kept_reason, make_report
from tritllm.storage.model_files import LocalFiles
from tritllm.storage.model_folder import (
    check_shards,
    copy_side_files,
    model_config,
    move_into_place,
    write_config,
    write_index,
)
from tritllm.storage.shard_writer import write_atomically
from tritllm.version import __version__


def partial_folder(out: Path, config: Config, kind: str) -> Path:
    """Where an output grows until it is whole."""
    return out / config.name / f"{kind}.partial"


def finish_config(
    plan: Plan,
    config: Config,
    out: Path,
    records: list[dict[str, Any]],
    seconds: float,
    peak_memory: int | None,
    encodings: Encodings | None = None,
) -> Report:
    """Complete the folders of one config and give them their names; again, after a kill.

    seconds, peak_memory: as `make_report` takes them.
    """
    encoder = encodings.encoder(config) if encodings else {}
    if config.nested:
        encoder["nested"] = list(config.nested)
    notes = encodings.notes(config) if encodings else {}
    hashes: dict[str, str] = {}
    results: dict[str, dict[str, Any]] = {}
    for record in records:
        result = record.get("configs", {}).get(config.name)
        if result:
            hashes |= result["sha256"]
            results |= result.get("matrices", {record["tensor"]: result})
    encoder |= _ternary_record(plan, results)
    report = make_report(plan, config, results, seconds, peak_memory, encoder, notes)
    manifest = _manifest(plan, config, records, hashes, results, encoder)
    licence = licence_of_card(plan.source.read_text("README.md"))
    notice = licence_notice(licence)
    for kind in reversed(plan.kinds):  # the packed folder, which holds the proof, last
        partial, final = partial_folder(out, config, kind), out / config.name / kind
        if final.exists():
            continue
        manifest["side_files"] = copy_side_files(plan.source.files, plan.source.side_files, partial)
        if kind == "packed":
            write_config(partial, _packed_config(plan, report, encoder))
        else:
            write_config(partial, model_config(plan.source.config, plan.dtype))
        headers = plan.headers(config, kind)
        check_shards(partial, headers)
        write_index(partial, headers)
        if notice and "NOTICE" not in plan.source.side_files:
            write_atomically(partial / "NOTICE", notice.encode())
        write_atomically(
            partial / "README.md", model_card(manifest, plan.source.config, licence, kind).encode()
        )
        if kind == "packed":
            for name in (CONFIG, INDEX, "NOTICE"):
                if (partial / name).is_file():
                    digest = hashlib.sha256((partial / name).read_bytes())
                    manifest["side_files"][name] = digest.hexdigest()
            write_atomically(partial / MANIFEST, manifest_bytes(manifest))
        move_into_place(partial, final)
    write_atomically(out / config.name / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    return report


def _ternary_record(plan: Plan, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `encoder` says of matrices that were ternary before; empty where there are none."""
    errors = [result["nmse"] for result in results.values() if result.get("ternary")]
    record: dict[str, Any] = {}
    if errors:
        lossy = [error for error in errors if error]
        record["ternary"] = {
            "of": len(plan.quantized), "matrices": len(errors), "exact": len(errors) - len(lossy),
            **({"lowest_sqnr_db": round(to_decibel(max(lossy)), 2)} if lossy else {}),
        }  # fmt: skip
    if plan.bitnet:
        record["source"] = plan.bitnet.as_record()
    return record


def public_name(plan: Plan) -> str:
    """The source without local paths: a Hub id, or the bare name of a local folder."""
    files = plan.source.files
    local = isinstance(files, LocalFiles) and files.revision is None
    return Path(files.name).name if local else files.name


def _manifest(
    plan: Plan,
    config: Config,
    records: list[dict[str, Any]],
    hashes: dict[str, str],
    results: dict[str, dict[str, Any]],
    encoder: dict[str, Any],
) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    headers: dict[str, str] = {}
    digests = {r["shard"]: r["shard_sha256"] for r in records if "shard_sha256" in r}
    for shard in plan.source.shards:
        header = plan.headers(config, "packed")[shard.name]
        headers[shard.name] = hashlib.sha256(header.raw).hexdigest()
        entries = header.entries
        for tensor in plan.tensors[shard.name]:
            if tensor.tied_to:
                continue
            own: dict[str, dict[str, Any]] = {}  # by stored tensor, what its kind of record has
            for matrix in tensor.matrices:
                planes, scale, codebook = part_names(matrix.name)
                own[planes] = {
                    "depth": results[planes]["depth"],
                    "in_features": matrix.shape[1],
                    "transposed": matrix.transposed,
                    "nmse": results[planes]["nmse"],
                }
                if matrix.slice_of:
                    own[planes]["slice_of"] = matrix.slice_of.as_record()
                own |= {part: {"part_of": planes} for part in (scale, codebook)}
            if not tensor.matrices:
                own[tensor.entry.name] = {"kept": kept_reason(tensor, results)}
            for name, fields in own.items():
                entry = entries[name]
                tensors[name] = {
                    "file": shard.name,
                    "dtype": entry.dtype,
                    "shape": list(entry.shape),
                    "sha256": hashes[name],
                    **fields,
                }
    return {
        "format_version": FORMAT_VERSION,
        "tool": f"tritllm {__version__}",
        "codec": plan.codec,
        **({"encoder": encoder} if encoder else {}),
        "config": config.name,
        "command": _command(plan, config),
        "group_size": GROUP,
        "dequantized_dtype": plan.dtype,
        "source": {
            "model": public_name(plan),
            "revision": plan.source.files.revision,
            "shards": {shard.name: digests[shard.name] for shard in plan.source.shards},
        },
        "headers": headers,
        "tensors": tensors,
        "not_stored": {t.entry.name: t.tied_to for t in plan.all_tensors if t.tied_to},
        "side_files": {},
    }


def _command(plan: Plan, config: Config) -> str:
    """The command line that gives these bytes again."""
    words = ["tritllm", "quantize", "--model", public_name(plan)]
    if plan.source.files.revision:
        words += ["--revision", plan.source.files.revision]
    words += [*(config.command_options or ("--configs", config.name)), "--out", "out"]
    words += plan.command_options
    if plan.codec != "v3":
        words += ["--codec", plan.codec]
    if plan.dtype != "float16":
        words += ["--dtype", plan.dtype]
    overrides = [f"{glob}={depth}" for glob, depth in config.overrides]
    settings = plan.fingerprint
    for flag, values in (
        ("include", settings["include"]),
        ("exclude", settings["exclude"]),
        ("depth", overrides),
    ):
        for value in values:
            words += [f"--{flag}", value]
    if judgement(plan):
        words.append("--allow-low-coverage")
    return shlex.join(words)


def _packed_config(plan: Plan, report: Report, encoder: dict[str, Any]) -> dict[str, Any]:
    stored = make_quantization_config(
        plan.codec,
        {m.module: report["quantized"][m.name]["depth"] for m in plan.quantized},
        report["bits_per_weight"]["quantized"],
        _kept_modules(plan),
        encoder,
        plan.bitnet.input_norm_eps if plan.bitnet else None,
    )
    return {**plan.source.config, "quantization_config": stored}


def _kept_modules(plan: Plan) -> list[str]:
    """Modules with a 2-D weight that stays as it is; lm_head also where it is tied."""
    kept = [
        tensor.module
        for tensor in plan.all_tensors
        if tensor.entry.name.endswith(".weight")
        and not tensor.decision.quantize
        and len(tensor.entry.shape) == 2
    ]
    has_head = any(tensor.module.endswith("lm_head") for tensor in plan.all_tensors)
    return kept if has_head else [*kept, "lm_head"]
