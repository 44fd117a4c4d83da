"""What a curation reads and writes: sources, manifests, vectors, dataset files."""
