"""Intensity windows and image quality figures.

Images are float32 in window units: 0 is the window's lower end, 1 its upper end. PSNR's peak is
therefore 1 (2,000 HU in the default CT window).
"""

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity


def window(hu: NDArray[np.floating], *, low_hu: float, high_hu: float) -> NDArray[np.float32]:
    """HU to window units, clipped to [0, 1]; any shape."""
    scaled = (np.asarray(hu, dtype=np.float32) - low_hu) / (high_hu - low_hu)
    return np.asarray(np.clip(scaled, 0.0, 1.0), dtype=np.float32)


def psnr_db(image: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB, peak 1; infinite for equal images.

    Raises ``ValueError`` where the shapes differ.
    """
    if image.shape != reference.shape:
        raise ValueError(f"shapes differ: {image.shape} and {reference.shape}")
    error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(-10.0 * np.log10(error))


def ssim(image: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Structural similarity of two (H, W) images with the constants of Wang et al. 2004."""
    return float(
        structural_similarity(
            image.astype(np.float64),
            reference.astype(np.float64),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
