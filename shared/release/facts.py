"""What a release says of its task: the facts of a card, and the names in its columns.

Facts are (name, text) in the order a reader wants them. They follow from the contract alone and
say what is simulated, with which figures, and what is approximated.
"""

from collections import Counter

from shared.tasks.settings import (
    CtDenoise,
    CtKernel,
    CtSr,
    MrDenoise,
    MrSr,
    MrUndersampled,
    MultiTask,
    SingleTask,
    Task,
)

Facts = list[tuple[str, str]]

TAGS = {
    "ct-denoise": "denoising",
    "ct-sr": "super-resolution",
    "ct-kernel": "kernel-conversion",
    "mr-denoise": "denoising",
    "mr-sr": "super-resolution",
    "mr-undersampled": "reconstruction",
}
"""What Hugging Face's pages filter by, for each task."""
MR_UNIT = "permille of the 99.5th percentile"

_OWN_NOISE = "the images it starts from have noise of their own"
_MAGNITUDE = f"one coil, no phase: it starts from magnitude images; {_OWN_NOISE}"


def window_unit(task: Task) -> str:
    """The unit of ``task.window``, as the column ``window_unit`` has it."""
    return "HU" if task.modality == "CT" else MR_UNIT


def pairs_facts(task: Task) -> dict[str, str | float | list[str]]:
    """What a file of pairs says of itself, for who looks at them: its tasks and their window."""
    return {
        "task": task.name,
        "tasks": list(task_labels(task)),
        "window_high": task.window[1],
        "window_low": task.window[0],
        "window_unit": window_unit(task),
    }


def window_in_words(task: Task) -> str:
    """What 0 and 1 of an image are."""
    low, high = task.window
    if task.modality == "CT":
        return f"0 is {low:g} HU, 1 is {high:g} HU"
    return "0 is 0, 1 is the 99.5th percentile of the series' foreground"


def task_labels(task: Task) -> tuple[str, ...]:
    """A distinct name for each part of ``task``: its own, numbered where two parts share it."""
    if not isinstance(task, MultiTask):
        return (task.name,)
    names = [part.name for part in task.parts]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return tuple(
        f"{name}-{names[: place + 1].count(name)}" if name in shared else name
        for place, name in enumerate(names)
    )


def task_title(task: Task) -> str:
    """What a network of ``task`` does, in one line."""
    if isinstance(task, MultiTask):
        named = zip(task_labels(task), task.parts, strict=True)
        return "; ".join(f"`{label}`: {_title(part)}" for label, part in named)
    return f"{_title(task)} (`{task.name}`)"


def task_tags(task: Task) -> list[str]:
    """The modality and what is done, each once."""
    singles = task.parts if isinstance(task, MultiTask) else (task,)
    modality = "ct" if task.modality == "CT" else "mri"
    return [modality, *dict.fromkeys(TAGS[part.name] for part in singles)]


def task_facts(task: Task) -> Facts:
    """The facts of ``task``: images and window once, and what makes LQ of HQ for every part."""
    facts = [
        ("task", task_title(task)),
        ("image", f"{task.size_px} × {task.size_px} pixels, {task.modality}"),
        ("window", window_in_words(task)),
    ]
    if isinstance(task, CtDenoise | CtKernel) and task.pairs == "real":
        facts.append(
            (
                "sites' pairs",
                "real: two reconstructions of each scan; only LQ of the release is made",
            )
        )
    if not isinstance(task, MultiTask):
        return facts + _single(task)
    facts.append(("pairs", f"of every image one for each task, {len(task.parts)} in all"))
    for label, part in zip(task_labels(task), task.parts, strict=True):
        facts += [(f"{label}: {name}", text) for name, text in _single(part)]
    return facts


def _title(task: SingleTask) -> str:
    if isinstance(task, CtDenoise):
        return "low-dose CT denoising, simulated"
    if isinstance(task, CtSr):
        return f"CT super-resolution ×{task.factor}, simulated"
    if isinstance(task, CtKernel):
        return "CT kernel conversion, sharp to soft, fitted to real pairs"
    if isinstance(task, MrDenoise):
        return "MR denoising, simulated"
    if isinstance(task, MrSr):
        return f"MR super-resolution ×{task.factor}, simulated"
    return f"MR at {task.acceleration:g}-fold undersampling, simulated"


def _single(task: SingleTask) -> Facts:
    if isinstance(task, CtDenoise):
        return _ct_denoise(task)
    if isinstance(task, CtSr):
        return _ct_sr(task)
    if isinstance(task, CtKernel):
        return _ct_kernel(task)
    if isinstance(task, MrDenoise):
        return _mr_denoise(task)
    if isinstance(task, MrSr):
        return _mr_sr(task)
    return _mr_undersampled(task)


def _ct_denoise(task: CtDenoise) -> Facts:
    return [
        (
            "projection",
            f"parallel beam, {task.angles} views over 180°, {task.bins} bins of "
            f"{task.pixel_mm:g} mm, filtered back-projection; pixels of {task.pixel_mm:g} mm",
        ),
        (
            "noise",
            f"Poisson at {task.photons:g} photons a bin behind the thickest rays (tube-current "
            f"modulated), electronic noise of {task.electronic_sigma:g} photon equivalents",
        ),
        (
            "approximated",
            "noise after the logarithm is Gaussian with first-order variance (8% too small at 20 "
            "photons, 17% at 10); one energy, no scatter; a photon number is of one wide bin and "
            f"no scanner's dose; {_OWN_NOISE}; the pixel edge is nominal",
        ),
    ]


def _ct_sr(task: CtSr) -> Facts:
    axes = (
        "both axes of the slice"
        if task.direction == "in-plane"
        else "the rows alone, as the slice axis of a reformatted volume"
    )
    return [
        (
            "sampling",
            f"every {task.factor} pixels along {axes}, behind a Gaussian aperture of "
            f"{task.blur_fwhm:g} sampling distances (full width at half maximum); LQ is "
            "interpolated back to the grid of HQ (bicubic)",
        ),
        ("noise", f"white, {task.noise_hu:g} HU a sample of LQ"),
        (
            "approximated",
            "the aperture is Gaussian and no scanner's profile; noise of the samples is white, "
            f"where a scan's is correlated; {_OWN_NOISE}",
        ),
    ]


def _ct_kernel(task: CtKernel) -> Facts:
    pairs = f"{task.fitted_pairs} real pairs" if task.fitted_pairs else "real pairs (not counted)"
    return [
        (
            "LQ",
            f"the LQ comes from a degradation fitted at the sites to {pairs}: a radial transfer "
            f"function and a noise spectrum in {len(task.transfer)} steps up to the Nyquist "
            "frequency; these curves alone left the sites",
        ),
        (
            "approximated",
            "one transfer function for all scanners, directions and places of a slice; the added "
            f"noise is Gaussian and does not depend on the image; {_OWN_NOISE}",
        ),
    ]


def _mr_denoise(task: MrDenoise) -> Facts:
    return [
        (
            "noise",
            "Rician: the magnitude of the image and complex Gaussian noise of standard deviation "
            f"{task.sigma:g} (window units) in each channel",
        ),
        ("approximated", f"noise is white and the same everywhere; {_MAGNITUDE}"),
    ]


def _mr_sr(task: MrSr) -> Facts:
    return [
        (
            "sampling",
            f"k-space cut to the central 1/{task.factor} along each axis, filled with zeros, "
            "magnitude",
        ),
        *_channel_noise(task.sigma),
        ("approximated", _MAGNITUDE),
    ]


def _mr_undersampled(task: MrUndersampled) -> Facts:
    return [
        (
            "sampling",
            f"Cartesian: one phase-encode line in {task.acceleration:g}, drawn at random and "
            f"denser at the centre, where {task.centre_fraction:.0%} of all lines are always "
            "acquired; filled with zeros, magnitude",
        ),
        *_channel_noise(task.sigma),
        ("approximated", _MAGNITUDE),
    ]


def _channel_noise(sigma: float) -> Facts:
    text = f"complex Gaussian, {sigma:g} (window units) in each channel of a full acquisition"
    return [("noise", text if sigma else "none added")]
