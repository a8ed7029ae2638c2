"""Which packed matrices a model's files hold for each layer that vLLM builds.

vLLM fuses layers: one module `qkv_proj` for q, k and v, one for gate and up, one for all experts of
a block. In the file each matrix has a name, a codebook and a depth of its own. Nothing here needs
vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritllm.checkpoint.hashes import check_hashes
from tritllm.checkpoint.packed_headers import StoredMatrix, stored_in
from tritllm.errors import FormatError, TritError
from tritllm.format.parallel import column_parts
from tritllm.serving.cuts import COLUMNS, cut_of
from tritllm.storage.model_files import LocalFiles, ModelFiles, open_files

_WEIGHT = ".weight"


@dataclass
class StoredMatrices:
    """The packed matrices of a model, by vLLM's name of the module that each belongs to.

    planes: the most trit planes that are read of any matrix; None for all.
    """

    matrices: dict[str, StoredMatrix]
    planes: int | None = None

    def renamed(self, rename: Callable[[str], str | None]) -> StoredMatrices:
        """Under the names that a model of vLLM gives its modules.

        rename: a weight's name in the file to its name in the model; None for one it has not.
        """
        names = {module: rename(module + _WEIGHT) for module in self.matrices}
        found = {
            name.removesuffix(_WEIGHT): self.matrices[module]
            for module, name in names.items()
            if name is not None
        }
        return StoredMatrices(found, self.planes)

    def depth_read(self, matrix: StoredMatrix) -> int:
        """How many planes of a matrix are read."""
        return matrix.depth if self.planes is None else min(matrix.depth, self.planes)

    def of_modules(self, modules: Sequence[str]) -> list[StoredMatrix]:
        """The matrices of modules that run as one, in their order; none where none is packed.

        Raises FormatError where only some are packed, or they differ in the planes read.
        """
        found = [self.matrices.get(module) for module in modules]
        packed = [matrix for matrix in found if matrix is not None]
        if not packed:
            return []
        if len(packed) < len(found):
            missing = modules[found.index(None)]
            raise FormatError(
                f"{where(packed[0])} is packed and {missing} is not, but vLLM runs them as one; "
                "quantize both, or neither (--include, --exclude)"
            )
        first = packed[0]
        for other in packed[1:]:
            if self.depth_read(other) != self.depth_read(first):
                lower = min(self.depth_read(first), self.depth_read(other))
                raise FormatError(
                    f"{where(first)} has depth {self.depth_read(first)} and {other.name} has "
                    f"{self.depth_read(other)}, but vLLM runs them as one; quantize them at one "
                    f"depth (--depth), or read fewer planes (planes: {lower})"
                )
        return packed


def where(matrix: StoredMatrix) -> str:
    """File and tensor of a matrix, for messages."""
    return f"{matrix.file}: tensor {matrix.name}"


def modules_in_file(
    prefix: str, fused: Mapping[str, Sequence[str]], stored: StoredMatrices
) -> list[str]:
    """The modules whose matrices a layer of vLLM holds.

    prefix: the layer's name in the model. fused: a fused layer's last name to those of its parts,
    as vLLM's `packed_modules_mapping`; a layer that the file holds fused (Phi-3's qkv_proj) is one.
    """
    parent, dot, last = prefix.rpartition(".")
    if prefix in stored.matrices or last not in fused:
        return [prefix]
    return [f"{parent}{dot}{part}" for part in fused[last]]


def read_stored(
    model: str, revision: str | None, *, planes: int | None = None, verify: bool = False
) -> StoredMatrices:
    """What the files of a folder or of a Hub repository hold, by the file's names.

    verify: compare every hash of the manifest first; of a folder alone.

    Raises TritError where the files cannot be reached, or hold what vLLM cannot run packed,
    FormatError where there is no manifest or the headers do not agree with it.
    """
    if Path(model).is_dir():
        if verify:
            check_hashes([model])
        files: ModelFiles = LocalFiles(Path(model), name=model, fault=FormatError)
    else:
        if verify:
            raise TritError(
                f"{model}: only a local folder can be verified before it is served; download it "
                "and give the folder"
            )
        files = open_files(model, revision, stream=True)
    matrices = stored_in(files)
    for matrix in matrices.values():
        if matrix.transposed:  # vLLM's loaders would transpose the packed bytes
            raise TritError(
                f"{where(matrix)}: the float model stores it transposed, as GPT-2 does, and vLLM "
                "cannot run that packed; serve the dequantized model"
            )
    return StoredMatrices({n.removesuffix(_WEIGHT): m for n, m in matrices.items()}, planes)


def check_tensor_parallel(
    matrices: Mapping[str, StoredMatrix], degree: int, *, experts_are_cut: bool = True
) -> None:
    """Raise TritError for a matrix whose columns cannot be shared by so many ranks.

    Told by names, before any layer is built; vLLM's own layers are checked as they are.
    experts_are_cut: not where each rank has experts of its own.
    """
    for module, matrix in matrices.items():
        whole = not experts_are_cut and ".experts." in module
        if matrix.in_features and not whole and cut_of(module) == COLUMNS:
            check_columns(matrix, matrix.in_features, degree)


def check_columns(matrix: StoredMatrix, columns: int, degree: int) -> None:
    """Raise TritError unless so many ranks can share a matrix's columns equally."""
    if column_parts(columns, degree).size is None:
        degrees = [str(n) for n in range(1, 17) if column_parts(columns, n).size is not None]
        raise TritError(
            f"{where(matrix)}: {columns} columns cannot be shared by {degree} ranks; use a "
            f"tensor-parallel size of {', '.join(degrees)}"
        )
