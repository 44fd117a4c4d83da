"""
The command `dinov2-hf` before anything is imported that takes seconds: its help, its version, the names of its
subcommands, Ctrl-C at any time in one line, and a reader that reads no further.

It lies beside the package and not in it, since importing `dinov2_hf` imports torch and transformers.
"""

import ast
import difflib
import gc
import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path


COMMANDS = (
    "pretrain", "distill", "replay", "curate", "evaluate", "features", "visualize", "demo", "convert", "export",
    "push", "report", "doctor", "recipes", "completion",
)  # fmt: skip
INTERRUPTED = 128 + 2  # as of a process that SIGINT ended


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand. Its mistakes are a sentence on standard error; see `dinov2_hf.cli.main`."""
    try:
        run(*((sys.argv[1:] if arguments is None else arguments) or [""]))
        sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        # Ends progress bars, which would write after this line; some are held by what they go over.
        traceback.clear_frames(interruption.__traceback__)
        gc.collect()
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(1)


def run(name: str, *words: str) -> None:
    if name == "help" and words:
        name, words = words[0], ("--help",)
    if name in ("-h", "--help", "help"):
        print("usage: dinov2-hf command [options]\n\nDINOv2 for Hugging Face transformers.\n\ncommands:")
        for command in COMMANDS:
            print(f"  {command:10} {summary(command)}")
        print("\n`dinov2-hf command --help` lists the options of a command.")
    elif name == "--version":
        print(f"dinov2-hf {version('dinov2_hf')}")
    elif name in COMMANDS:
        from dinov2_hf.cli.main import call

        call(name, list(words))
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"name one of {', '.join(COMMANDS)}."
        shown = f"{name} is no command" if name.isalpha() else "a command is needed"
        print(f"error: {shown}; {hint} `dinov2-hf --help` tells what they do.", file=sys.stderr)
        sys.exit(2)


def summary(command: str) -> str:
    """What a subcommand does, from the docstring of its function, whose file is read and not imported."""
    text = (Path(__file__).parent / "dinov2_hf" / "cli" / f"{command}.py").read_text(encoding="utf-8")
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    return (ast.get_docstring(functions[command]) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
