"""Checks of what the site offers: its images, its patients, and what the policy makes of them."""

import os
from itertools import islice
from pathlib import Path

from shared.findings import Finding, failed, good, unjudged, warning
from site_agent.cohort import INDEX_FILE, CohortError, open_cohort
from site_agent.settings import SiteSettings

FOLDERS = 1000
"""Folders that are searched for a first file to read."""


def policy(settings: SiteSettings) -> Finding:
    """Whether the policy, which has been read, allows anything at all."""
    check, allowed = "policy", settings.policy
    prefix = f"{settings.modality.lower()}-"
    tasks = [task for task in allowed.tasks if task.startswith(prefix)]
    if not tasks:
        return failed(
            check,
            f"tasks: none is for {settings.modality}, which site.toml offers",
            f"add {prefix}denoise or another of {settings.modality} to policy.toml, "
            "or change modality in site.toml",
        )
    for limit in ("granularities", "networks"):
        if not getattr(allowed, limit):
            return failed(
                check, f"{limit}: is empty, so nothing is allowed", f"list some in {limit}"
            )
    return good(check, f"{len(tasks)} tasks of {settings.modality}")


def source(settings: SiteSettings) -> Finding:
    """Whether the images can be read, and not written."""
    check, folder = "images", settings.images
    if not folder.is_dir():
        return failed(check, "images: is not a folder", "mount it, or mend `images` in site.toml")
    if not os.access(folder, os.R_OK | os.X_OK):
        return failed(
            check,
            "images: cannot be listed by this user",
            "let the user who runs the site read the folder",
        )
    try:
        first = _first_file(folder)
        if first is not None:
            with first.open("rb") as file:
                file.read(1)
    except OSError as error:
        return failed(
            check,
            f"images: a file or folder in it cannot be read ({error.strerror})",
            "let the user who runs the site read everything below it",
        )
    if first is None:
        return failed(check, "images: no file was found", "check `images` in site.toml")
    if os.access(folder, os.W_OK):
        return warning(
            check,
            "images: can be written to by this user",
            "mount the folder read-only: nothing of ours writes there, and nothing should be able",
        )
    return good(check, "can be read, and not written")


def _first_file(folder: Path) -> Path | None:
    def fail(error: OSError) -> None:
        raise error

    for place, _, files in islice(os.walk(folder, onerror=fail), FOLDERS):
        if files:
            return Path(place, files[0])
    return None


def patients(settings: SiteSettings) -> Finding:
    """Whether enough patients are indexed for the policy."""
    check, wanted = "patients", settings.policy.min_patients
    try:
        cohort = open_cohort(settings.cohort_path)
    except CohortError as error:
        if (settings.cohort_path / INDEX_FILE).exists():
            return failed(check, str(error), "run `site-agent index`")
        return unjudged(check, "nothing is indexed yet", "run `site-agent index`")
    if cohort.index.modality != settings.modality:
        return failed(
            check,
            f"site.toml offers {settings.modality}, the cohort holds {cohort.index.modality}",
            "run `site-agent index`",
        )
    if cohort.patients < wanted:
        return failed(
            check,
            f"{cohort.patients} patients, and the policy wants {wanted}",
            "add images of more patients and run `site-agent index`",
        )
    return good(check, f"{cohort.patients}; the policy wants {wanted}")
