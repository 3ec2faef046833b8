import hashlib

import pytest
import torch

from aggregator.distill.prior import PriorError, build_prior, covering, phantoms
from shared.contract import Anchor, PriorSource, RunContract
from shared.tasks.settings import CtDenoise, MrDenoise

TASK = CtDenoise(size_px=32, angles=60, bins=48)
ANCHOR = Anchor(crop_px=16)
PUBLIC = torch.rand(10, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def contract(images: int = 4, **prior: object) -> RunContract:
    source = PriorSource.model_validate(prior)
    return RunContract(name="ct", task=TASK, anchor=ANCHOR, images=images, prior=source)


def holds(pool: torch.Tensor, image: torch.Tensor) -> bool:
    return bool((pool == image).flatten(1).all(dim=1).any())


def test_the_default_prior_is_procedural_and_says_so() -> None:
    prior = build_prior(contract(5), public=None)
    assert prior.start.shape == (5, 1, 32, 32)
    assert 0 <= float(prior.start.min()) <= float(prior.start.max()) <= 1
    assert prior.free.shape == (48, 1, 32, 32)
    assert all(holds(prior.free, image) for image in prior.start)
    assert prior.provenance["kind"] == "phantom"
    assert prior.provenance["anatomy"] == "thorax"
    assert prior.provenance["phantom_slices"] == 48


def test_a_smooth_start_leaves_the_free_images_textured() -> None:
    smooth = build_prior(contract(textured=False), public=None)
    assert torch.equal(smooth.free, build_prior(contract(), public=None).free)
    plain = phantoms(contract(), count=48, textured=False)
    assert all(holds(plain, image) for image in smooth.start)


def test_phantoms_show_what_the_contract_names() -> None:
    head = RunContract(
        name="mr", task=MrDenoise(size_px=32), anchor=ANCHOR, prior=PriorSource(anatomy="head")
    )
    shown = phantoms(head, count=2, textured=True)
    assert shown.shape == (2, 1, 32, 32)
    assert 0.5 < float(shown.max()) <= 1
    assert not torch.equal(shown, phantoms(contract(anatomy="head"), count=2, textured=True))


def test_a_public_prior_needs_images_and_their_licence() -> None:
    with pytest.raises(PriorError, match="public images"):
        build_prior(contract(kind="public", license="CC-BY-4.0"), public=None)
    for kind in ("public", "both"):
        with pytest.raises(PriorError, match=r"set prior\.license"):
            build_prior(contract(kind=kind), public=PUBLIC)


def test_a_public_prior_starts_from_public_images_and_records_them() -> None:
    prior = build_prior(
        contract(kind="public", license="CC-BY-4.0", statement="atlas"), public=PUBLIC
    )
    assert prior.start.shape == (4, 1, 32, 32)
    assert all(holds(PUBLIC, image) for image in prior.start)
    assert torch.equal(prior.free[:10], PUBLIC)
    assert prior.free.shape[0] == 58
    about = prior.provenance
    assert (about["license"], about["statement"]) == ("CC-BY-4.0", "atlas")
    assert about["public_slices"] == 10
    assert about["public_sha256"] == hashlib.sha256(PUBLIC.numpy().tobytes()).hexdigest()


def test_both_is_half_and_half() -> None:
    prior = build_prior(contract(5, kind="both", license="CC0-1.0"), public=PUBLIC)
    assert [holds(PUBLIC, image) for image in prior.start] == [True] * 3 + [False] * 2


def test_a_consented_volume_carries_its_statement() -> None:
    consent = "consent of 2026-01-05, held by the ethics board"
    prior = build_prior(contract(kind="consented", statement=consent), public=PUBLIC)
    assert all(holds(PUBLIC, image) for image in prior.start)
    assert prior.provenance["statement"] == consent
    with pytest.raises(PriorError, match="person's images"):
        build_prior(contract(kind="consented", statement=consent), public=None)


def clusters(sizes: tuple[int, ...]) -> torch.Tensor:
    """Images of as many kinds, one after the other: each kind bright in a corner of its own."""
    random = torch.Generator().manual_seed(1)
    images = 0.02 * torch.rand(sum(sizes), 1, 32, 32, generator=random)
    first = 0
    for number, size in enumerate(sizes):
        row, column = divmod(number, 4)
        images[first : first + size, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
        first += size
    return images


def kinds(images: torch.Tensor, sizes: tuple[int, ...]) -> set[int]:
    bright = images.unfold(2, 8, 8).unfold(3, 8, 8).mean(dim=(1, 4, 5)).flatten(1)[:, : len(sizes)]
    return set(bright.argmax(dim=1).tolist())


def test_covering_finds_the_clusters_that_even_spacing_misses() -> None:
    sizes = (30, 2, 2, 30, 3)
    images = clusters(sizes)
    spaced = images[torch.linspace(0, len(images) - 1, 5).round().long()]
    assert len(kinds(spaced, sizes)) < 5
    assert kinds(covering(images, 5), sizes) == {0, 1, 2, 3, 4}


def test_covering_repeats_only_where_images_run_out() -> None:
    images = clusters((3, 4))
    for count in (1, 5, 7):
        assert len(torch.unique(covering(images, count), dim=0)) == count
    more = covering(images, 9)
    assert len(torch.unique(more, dim=0)) == 7
    assert torch.equal(more[7:], more[:2])


def test_covering_is_the_same_each_time_and_grows_by_adding() -> None:
    images = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(covering(images, 6), covering(images, 6))
    assert torch.equal(covering(images, 6)[:4], covering(images, 4))
    alike = torch.ones(4, 1, 8, 8)
    assert torch.equal(covering(alike, 3), alike[:3]), "equal images are no obstacle"
