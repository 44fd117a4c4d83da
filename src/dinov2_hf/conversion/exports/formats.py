"""
The formats that a model can be exported to, by name.

A format is a function `(folder, output_dir, *, overwrite=False, <its own options>)`. It writes a model folder to
`output_dir`, with `atomic_files.new_folder`, and returns the text to print. Its options, with their types and their
texts in the docstring, are those of `dinov2-hf export --format NAME`.
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
    """The exported model does not compute the same as the model; the message gives the difference."""
