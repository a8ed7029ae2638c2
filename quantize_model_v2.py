"""The published pages' reproducing command: quantize a model with codec v2.

    python quantize_model_v2.py --model Qwen/Qwen2.5-7B --configs uniform-d1 --out ./out

The same as `tritllm quantize --codec v2`, which has more options.
"""

from pathlib import Path
from typing import Annotated

from tritllm.cli.entry import run
from tritllm.extras import require


def main() -> None:
    """Run the command on sys.argv."""
    require("the command line", "cli", "typer", "rich")
    import typer

    from tritllm.cli import quantize

    def command(
        model: Annotated[str, typer.Option(help="Local folder or Hub id of the source.")],
        configs: Annotated[
            str, typer.Option(help="uniform-d1 .. uniform-d4, several with commas.")
        ],
        out: Annotated[Path, typer.Option(help="Folder for <config>/packed and <config>/model.")],
    ) -> None:
        """Quantize a model with codec v2, as the published models were."""
        quantize.command(model, out, configs, codec="v2")

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


if __name__ == "__main__":
    run(main)
