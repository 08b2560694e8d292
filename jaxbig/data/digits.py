"""Real handwritten digits that come with scikit-learn: 1,797 images of 8x8, nothing to download."""

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.errors import UserError


def load_digits() -> Batch:
    """The digits of the UCI "Optical recognition of handwritten digits" test set.

    Returns:
        ``image`` float32 [1797, 8, 8, 1] with values k/16 in [0, 1], and ``label`` int32 [1797] from 0 to 9.

    Raises:
        UserError: scikit-learn is not installed.

    Example:
        >>> digits = load_digits()
        >>> digits["image"].shape, digits["image"].dtype.name, float(digits["image"].max())
        ((1797, 8, 8, 1), 'float32', 1.0)

    Reference:
        Alpaydin and Kaynak (1998), UCI machine learning repository. Pixels are counts from 0 to 16 in blocks of 4x4.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UserError("digits: scikit-learn is not installed; run: pip install 'jaxbig[digits]'") from error
    pixels, labels = datasets.load_digits(return_X_y=True)
    return {"image": np.asarray(pixels, np.float32).reshape(-1, 8, 8, 1) / 16, "label": np.asarray(labels, np.int32)}
