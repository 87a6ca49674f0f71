"""What an expert must beat beside its base: the answer of the nearest training question."""

from collections.abc import Sequence

from one4all_lc.errors import InvalidInput
from one4all_lc.training.data import Row

_WORD = r"\w+|[^\w\s]"
"""Some languages have words of one letter, and some rows have only punctuation."""


def nearest_answers(rows: Sequence[Row], questions: Sequence[str]) -> list[str] | None:
    """Answer each question with what was answered to the training question most like it.

    Likeness is the cosine of TF-IDF vectors over words and pairs of words. Who only looks up what
    it was taught does this well; an expert that does no better has learned nothing more.

    Args:
        rows: All rows; those of split `train` are looked up in.
        questions: What is asked.

    Returns:
        An answer for each question; None if there are no training rows.

    Raises:
        InvalidInput: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        msg = "The nearest training answer needs scikit-learn: pip install 'one4all_lc[train]'."
        raise InvalidInput(msg) from None
    known = [row for row in rows if row.split == "train"]
    if not known:
        return None
    # Every run of letters is a word: some languages have words of one letter, some rows have only
    # punctuation.
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"
    )
    vectors = vectorizer.fit_transform([row.question for row in known])
    likeness = vectorizer.transform(questions) @ vectors.T
    nearest = [int(likeness[index].argmax()) for index in range(len(questions))]
    return [known[index].answer for index in nearest]
