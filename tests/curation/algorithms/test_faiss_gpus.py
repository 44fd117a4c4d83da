"""Which indexes go to GPUs, and that they find there what they find on a CPU."""

import faiss
import numpy as np
import pytest

from dinov2_hf.curation.algorithms.clustering import assign_clusters, spherical_kmeans
from dinov2_hf.curation.algorithms.faiss_gpus import fits_gpus, gpus_for_faiss, on_gpus
from dinov2_hf.curation.algorithms.index_settings import IndexSettings, choose_index
from dinov2_hf.curation.algorithms.neighbors import (
    add_rows,
    build_index,
    search,
    train_index,
)
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings
from tests.curation.algorithms.synthetic import clustered_vectors


needs_gpu = pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="needs faiss-gpu and a GPU")
FLAT = IndexSettings("Flat")
EIGHT_BITS = IndexSettings("OPQ8_64,IVF32,PQ8np", num_probes=16)


@pytest.fixture(scope="module")
def vectors():
    return ArrayEmbeddings(clustered_vectors(6000, 64, num_clusters=60, noise=1.0)[0])


@pytest.mark.parametrize(
    ("factory", "fits"),
    [
        ("Flat", True),
        ("IVF32,Flat", True),
        ("OPQ8_64,IVF32,PQ8np", True),
        ("OPQ8_64,IVF32_HNSW32,PQ8np", False),  # lists found by a graph search
        ("OPQ8_64,IVF32,PQ8x4fs", False),  # four bits
        ("OPQ5_60,IVF32,PQ5np", False),  # no kernel for five codes
    ],
)
def test_forms_that_faiss_has_on_gpus(factory, fits):
    index = faiss.index_factory(64, factory, faiss.METRIC_INNER_PRODUCT)
    assert fits_gpus(index) == fits
    assert on_gpus(index, ()) is index


@pytest.mark.parametrize("num_rows", [100, 300_000, 10_000_000, 1_300_000_000])
@pytest.mark.parametrize("width", [8, 100, 192, 384, 512, 768, 1024, 1536])
def test_an_index_chosen_for_gpus_fits_them(num_rows, width):
    settings = choose_index(num_rows, width, memory_bytes=2e11, for_gpus=True)
    index = faiss.index_factory(width, settings.factory, faiss.METRIC_INNER_PRODUCT)
    assert fits_gpus(index)
    if settings.num_lists:
        assert faiss.downcast_index(index.index).by_residual  # faiss takes it for granted on GPUs


def test_the_memory_of_gpus_bounds_the_choice():
    assert choose_index(10**8, 512, 8e9, for_gpus=True).factory == "OPQ64_512,IVF16384,PQ64np"
    assert choose_index(10**8, 512, 5e9, for_gpus=True).factory == "OPQ32_512,IVF16384,PQ32np"
    with pytest.raises(ValueError, match="smallest takes 2.4e"):
        choose_index(10**8, 512, 2e9, for_gpus=True)


def test_neighbors_by_eight_bit_codes_are_the_exact_ones(vectors):
    exact = search(build_index(vectors, FLAT), vectors, vectors, 64, FLAT, stop=300, own_rows=np.arange(len(vectors)))
    found = search(
        build_index(vectors, EIGHT_BITS), vectors, vectors, 64, EIGHT_BITS, stop=300, own_rows=np.arange(len(vectors))
    )
    assert np.mean([len(np.intersect1d(a, b)) / 64 for a, b in zip(exact.rows, found.rows, strict=True)]) >= 0.99


def test_no_gpu_is_used_where_a_cpu_is_asked_for():
    assert gpus_for_faiss("cpu") == ()
    assert gpus_for_faiss(None) == tuple(range(faiss.get_num_gpus()))


@needs_gpu
def test_a_named_gpu_is_used_alone():
    assert gpus_for_faiss("cuda:0") == (0,)
    assert gpus_for_faiss("cuda") == (0,)


@needs_gpu
@pytest.mark.parametrize("factory", ["Flat", "IVF32,Flat", "OPQ8_64,IVF32,PQ8np"])
def test_gpus_find_what_a_cpu_finds(vectors, factory):
    """Trained, filled and searched on GPUs or not; both have the exact similarities."""
    settings, gpus = IndexSettings(factory, num_probes=16), gpus_for_faiss(None)
    of_cpu = search(build_index(vectors, settings), vectors, vectors, 10, settings, own_rows=np.arange(len(vectors)))
    trained = train_index(vectors, settings, gpus=gpus)
    filled = add_rows(trained, vectors, gpus=gpus)
    assert type(filled) is type(build_index(vectors, settings))  # in its CPU form, as it is saved
    assert filled.ntotal == len(vectors)
    of_gpus = search(filled, vectors, vectors, 10, settings, own_rows=np.arange(len(vectors)), gpus=gpus)
    assert (of_cpu.rows == of_gpus.rows).mean() > 0.99
    np.testing.assert_allclose(of_cpu.similarities, of_gpus.similarities, atol=1e-3)


@needs_gpu
def test_kmeans_on_gpus_is_that_of_a_cpu(vectors):
    gpus = gpus_for_faiss(None)
    of_cpu, of_gpus = (spherical_kmeans(vectors, 60, num_iterations=5, gpus=used) for used in ((), gpus))
    np.testing.assert_allclose(of_cpu.objective, of_gpus.objective, atol=1e-4)
    clusters, _ = assign_clusters(vectors, of_cpu.centroids)
    np.testing.assert_array_equal(clusters, assign_clusters(vectors, of_cpu.centroids, gpus=gpus)[0])
