"""Real data that is there without a network."""

import re


def text():
    """English prose of a few hundred kilobytes: the topics of Python's own help, which every CPython carries.

    The same Python gives the same text. Runs of blank lines and spaces are folded, so that models learn words and not
    indentation, and only printable ASCII is kept.
    """
    from pydoc_data import topics

    joined = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    plain = re.sub(r"[^\x20-\x7e\n]", "", joined)
    return re.sub(r"\n{2,}", "\n", re.sub(r" {2,}", " ", plain))


def digits():
    """Handwritten digits: (images, labels) as numpy arrays of shape (1797, 64), floats in 0..1, and (1797,), ints 0..9.

    The UCI "optical recognition of handwritten digits" test set, as scikit-learn bundles it.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise RuntimeError("lab.digits() needs scikit-learn, which this image does not have") from None
    images, labels = load_digits(return_X_y=True)
    return (images / 16.0).astype("float32"), labels.astype("int64")
