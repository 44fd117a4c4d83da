"""
The formats that a model can be exported to, by name.

A format is a function `(folder, output_dir, *, overwrite=False, <options of its own>)`. It writes a model folder to
`output_dir`, by `atomic_files.new_folder`, and returns what is printed. Its options, with their types and what the
docstring says of them, are those of `dinov2-hf export --format NAME`.
"""

from ...named_objects import Registry


EXPORTS = Registry(
    "export format",
    {
        "transformers": "dinov2_hf.conversion.exports.stock_transformers",
        "dual": "dinov2_hf.conversion.exports.remote_code",
        "onnx": "dinov2_hf.conversion.exports.graph",
        "torch-export": "dinov2_hf.conversion.exports.graph",
    },
)


class ExportCheckError(RuntimeError):
    """The exported model does not compute what the model does; the message says by how much."""
