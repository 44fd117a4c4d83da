from tests.importable_benchmarks import benchmarks_are_importable  # noqa: F401  (a fixture)
