import pytest

from dinov2_hf.cli.user_words import in_users_words


FLAGS = {
    name: f"--{name}" for name in ("data", "kind", "batch_size", "num_layers", "dtype", "overwrite", "image_column")
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("batch_size=0 is too small.", "--batch_size 0 is too small."),
        ("choose another name or set overwrite=True.", "choose another name or set --overwrite."),
        ("dtype='float16' overflows: use dtype='float32'.", "--dtype float16 overflows: use --dtype float32."),
        ("num_layers=[1, 4] must be lower", "--num_layers 1 4 must be lower"),
        ("num_layers=(1, 4) must be lower", "--num_layers 1 4 must be lower"),
        ("num_layers is 3", "--num_layers is 3"),
        ("raise the batch_size.", "raise the --batch_size."),
        ("`kind` is cls", "`--kind` is cls"),
        ("`--kind` is cls, --batch_size too", "`--kind` is cls, --batch_size too"),
        ("kind is cls", "--kind is cls"),
        ("two\n  lines", "two lines"),
        # Not arguments of this command, or no arguments.
        ("ks=3 is too large", "ks=3 is too large"),
        ("`model` is x", "`model` is x"),
        (
            "of the kind of data in x/batch_size/y and x.batch_size",
            "of the kind of data in x/batch_size/y and x.batch_size",
        ),
        ("columns are ['batch_size', 'data']", "columns are ['batch_size', 'data']"),
    ],
)
def test_arguments_become_flags(message, expected):
    assert in_users_words(message, FLAGS) == expected
