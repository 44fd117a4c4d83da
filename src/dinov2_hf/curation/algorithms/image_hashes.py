"""Finds copies without any network: the same bytes, or the same perceptual hash."""

import hashlib

import faiss
import numpy as np
from PIL import Image
from scipy.fft import dctn


HASH_BITS = 64


def content_hash(content: bytes) -> bytes:
    """128 bits of a file's content."""
    return hashlib.blake2b(content, digest_size=16).digest()


def perceptual_hash(image: Image.Image) -> np.uint64:
    """The DCT hash (pHash) of a picture: which of its 8 x 8 lowest frequencies lie above their median.

    Copies that were re-encoded or resized have equal hashes, or hashes that differ in few bits. A picture without any
    structure (one colour) has the hash 0.
    """
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float32)
    coefficients = dctn(grey, norm="ortho")[:8, :8].ravel()
    coefficients[0] = 0  # the brightness
    if np.abs(coefficients).max() < 1:  # less than a grey level: rounding, not a picture
        return np.uint64(0)
    return np.packbits(coefficients > np.median(coefficients)).view(np.uint64)[0]


def first_of_equal(values: np.ndarray) -> np.ndarray:
    """For each row, the first row that has the same value.

    Args:
        values: (n,) of any type that can be sorted.

    Returns:
        (n,) int64; row i itself if its value is new.
    """
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def first_similar_hash(hashes: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row, an earlier kept row whose hash differs in at most `max_distance` bits.

    Rows are taken in their order; a row is kept if it is not near to any kept row. So each dropped row is near to one
    that stays, and chains do not grow.

    Args:
        hashes: (n,) uint64.
        max_distance: bits from 0 to 15.

    Returns:
        (first, distance), each (n,) int64: the row kept in place of row i (itself if it is kept), and how many bits
        differ.

    Raises:
        ValueError: `max_distance` is out of its range.
    """
    if not 0 <= max_distance <= 15:
        raise ValueError(f"perceptual_hash_distance is {max_distance}, but must be from 0 to 15 bits, or null.")
    if max_distance == 0 or len(hashes) < 2:
        first = first_of_equal(hashes)
        return first, np.zeros(len(hashes), dtype=np.int64)
    # Equal hashes are joined first: many blank pictures would give a quadratic number of pairs.
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    codes = unique[order].view(np.uint8).reshape(-1, HASH_BITS // 8)
    # Two hashes that differ in at most d bits are equal in one of d + 1 parts, so this index misses no pair.
    index = faiss.IndexBinaryMultiHash(HASH_BITS, max_distance + 1, HASH_BITS // (max_distance + 1))
    index.add(codes)
    limits, distances, neighbours = index.range_search(codes, max_distance + 1)
    kept_for = np.arange(len(codes))
    distance = np.zeros(len(codes), dtype=np.int64)
    for row in range(len(codes)):
        near = slice(int(limits[row]), int(limits[row + 1]))
        candidates = [
            (other, int(gap))
            for other, gap in zip(neighbours[near], distances[near], strict=True)
            if other < row and kept_for[other] == other
        ]
        if candidates:
            kept_for[row], distance[row] = min(candidates)
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    group = position[inverse]
    return first[order][kept_for[group]].astype(np.int64), distance[group]
