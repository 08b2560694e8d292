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
    digits = datasets.load_digits()
    images = np.asarray(digits.images, np.float32)[..., None] / 16
    return {"image": images, "label": np.asarray(digits.target, np.int32)}
