"""`CuratedImages`, a curation as a builder of `datasets`.

```python
builder = CuratedImages(uncurated="path/to/images", curated="path/to/others", embedder="path/to/model")
builder.download_and_prepare()
dataset = builder.as_dataset(split="train")
```
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import datasets
from pyarrow import parquet

from .arguments import ENGINE_FIELDS, CurationArguments
from .embedders import EMBEDDERS
from .filters import FILTERS
from .hub_dataset import push_dataset
from .launch import curate
from .plan import plan
from .stages.embed import specs_of
from .stages.stage import NAMED_STAGES
from .storage.code_fingerprints import fingerprint_of_named
from .storage.dataset_files import dataset_features
from .storage.file_fingerprints import file_fingerprint


class CuratedImages(datasets.ArrowBasedBuilder):
    """A curated dataset, made when it is prepared, and cached by its inputs.

    The cache depends on every argument that changes the result and on the files of the sources (names, sizes, times).
    So an unchanged curation is loaded, and a changed one is made. An interrupted preparation continues.

    Args:
        cache_dir: as in `datasets.load_dataset`.
        output_dir: folder for the stages and the report; None: in the cache, see `work_dir`.
        **arguments: fields of `CurationArguments`.

    Raises:
        ValueError: as `CurationArguments` and `plan.plan`.
    """

    def __init__(self, cache_dir: str | None = None, output_dir: str | os.PathLike | None = None, **arguments: Any):
        values = CurationArguments(output_dir=str(output_dir or ""), **arguments)
        if values.dataset_url is not None:
            raise ValueError("dataset_url is not for a builder, whose dataset is on this machine: use `curate`.")
        curation, _ = plan(values)
        described = {name: value for name, value in dataclasses.asdict(values).items() if name not in ENGINE_FIELDS}
        described["sources"] = curation.sources.describe()
        named = (values.embedder, values.retrieval_embedder, values.nsfw_model, values.face_model)
        described["files"] = [file_fingerprint(path) for path in named]
        code = [(FILTERS, name) for name, _ in values.named_filters]
        code += [(NAMED_STAGES, name) for name, _ in values.named_stages]
        code += [(EMBEDDERS, spec) for spec in specs_of(values)]
        described["code"] = [fingerprint_of_named(*named) for named in code]
        text = json.dumps(described, sort_keys=True, default=str)
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
        self.work_dir = Path(output_dir or root / "curated_images_work" / self.fingerprint)
        self.arguments = dataclasses.replace(values, output_dir=str(self.work_dir))
        self._curated_features = dataset_features(curation)
        super().__init__(
            cache_dir=str(root),
            dataset_name="curated_images",
            config_name=f"curated-{self.fingerprint}",
            hash=self.fingerprint,
        )

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Images curated by the recipe of LVD-142M.", features=self._curated_features
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        curate(self.arguments)
        files = sorted((self.work_dir / "dataset" / "data").glob("train-*.parquet"))
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"files": [str(f) for f in files]})]

    def _generate_tables(self, files: list[str]):
        for number, file in enumerate(files):
            with parquet.ParquetFile(file) as opened:
                for group in range(opened.num_row_groups):
                    yield (number, group), opened.read_row_group(group)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the prepared dataset with its card; `options` as in `hub_dataset.push_dataset`."""
        return push_dataset(self.work_dir, repo_id, **options)
