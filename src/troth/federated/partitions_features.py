"""Feature skew for tasks without one label per row: clusters of embedded texts stand in for labels.

FedNLP (arXiv 2104.08815) embeds by a sentence encoder and clusters by k-means; any embedding can be given here. The
default needs no model: TF-IDF of words, reduced by a truncated singular value decomposition (latent semantic analysis).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from troth.errors import ConfigError, DataError

__all__ = ["feature_clusters", "text_embeddings"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_WORDS = 20_000  # the most frequent words that count
_SAMPLE = 32_768  # rows that k-means sees
_BATCH = 4_096  # rows of one of its steps
_PASSES = 20  # over them
_SEED = 2**31 - 1
_WORD = r"(?u)\w+"


def text_embeddings(texts: Sequence[str], rng: np.random.Generator, *, dimensions: int = 64) -> Floats:
    """Return [rows, d] float64 embeddings of texts, each of length 1, or 0 where a text has no word.

    Args:
        texts: [rows].
        rng: public randomness, of the randomised decomposition.
        dimensions: d at most; fewer where there are fewer different words.

    Raises:
        DataError: no text has a word.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    vectorizer = TfidfVectorizer(max_features=_WORDS, sublinear_tf=True, token_pattern=_WORD)
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:
        raise DataError("no text has a word to tell rows apart by; partition by something else than features") from None
    if weights.shape[1] <= dimensions:
        return np.asarray(weights.toarray())
    reduce = TruncatedSVD(dimensions, random_state=int(rng.integers(_SEED)))
    return np.asarray(normalize(reduce.fit_transform(weights)))


def feature_clusters(embeddings: NDArray[np.floating], clusters: int, rng: np.random.Generator) -> Integers:
    """Return [rows] cluster numbers in 0..clusters - 1, by k-means in mini-batches (Sculley 2010).

    Centres are found on at most 32,768 rows drawn at random, in a fixed number of steps; hence the time for large
    tables is that of one look at each row, and the result does not hang on the number of threads.

    Args:
        embeddings: [rows, d] finite.
        clusters: how many; as many rows with different embeddings are needed.
        rng: public randomness.

    Raises:
        ConfigError: fewer different embeddings than clusters.
        DataError: an embedding that is not finite; names the row.
    """
    from sklearn.cluster import MiniBatchKMeans

    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(wrong):
        raise DataError(f"row {wrong[0]}: its embedding is not finite ({len(wrong)} such rows); mend the embedding")
    _check_different(embeddings, clusters)
    sample = embeddings
    if len(embeddings) > _SAMPLE:
        sample = embeddings[np.sort(rng.choice(len(embeddings), size=_SAMPLE, replace=False))]
    model = MiniBatchKMeans(
        clusters,
        n_init=1,
        batch_size=min(_BATCH, len(sample)),
        max_iter=_PASSES,
        max_no_improvement=None,
        tol=0.0,
        reassignment_ratio=0.0,  # small clusters stay where they are
        random_state=int(rng.integers(_SEED)),
    )
    return np.asarray(model.fit(sample).predict(embeddings), dtype=np.int64)


def _check_different(embeddings: NDArray[np.floating], clusters: int) -> None:
    """Refuse more clusters than there are different rows; the first rows mostly settle it."""
    different = 0
    for rows in (embeddings[:_BATCH], embeddings):
        different = len(np.unique(rows, axis=0))
        if 1 <= clusters <= different:
            return
    raise ConfigError(
        f"federated.clients: clusters = {clusters}: the table has {different} different rows; ask for fewer"
    )
