import re
import typing
from pathlib import Path

import pytest

from shared.architectures import (
    FAMILIES,
    DnCnn,
    Edsr,
    Network,
    RedCnn,
    Residual,
    UNet,
    in_words,
    read_network,
)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("residual", Residual()),
        ("red-cnn", RedCnn()),
        ("dncnn:depth=9", DnCnn(depth=9)),
        ("edsr:blocks=8,width=32", Edsr(blocks=8, width=32)),
        ("unet:width=8,levels=2", UNet(levels=2, width=8)),
    ],
)
def test_a_network_is_read_from_one_word(text: str, network: Network) -> None:
    assert read_network(text) == network


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "residual, dncnn, red-cnn, edsr, unet"),
        ("resnet", "no such network"),
        ("unet:widht=8", "widht: Extra inputs"),
        ("unet:width=many", "width: Input should be a valid integer"),
        ("unet:width=65", "width: Input should be less than or equal to 64"),
        ("unet:width", "width: write it as key=value"),
        ("unet:width=8,width=9", "width: given twice"),
        ("unet:width=8,", "key=value"),
        ("unet:kind=edsr", "kind: Input should be 'unet'"),
    ],
)
def test_a_network_that_is_none_names_the_field(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_network(text)


def test_every_family_has_its_name_and_its_words() -> None:
    union = typing.get_args(typing.get_args(Network)[0])
    assert set(FAMILIES.values()) == set(union)
    for kind, family in FAMILIES.items():
        network = family()
        assert network.kind == kind
        words = in_words(network)
        sizes = [value for value in network.model_dump().values() if isinstance(value, int)]
        assert all(str(size) in words for size in sizes)


def test_every_network_and_its_defaults_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "researcher.md").read_text("utf-8")
    for kind, family in FAMILIES.items():
        (row,) = re.findall(rf"^\| `{kind}` \| (.*?) \|", page, re.MULTILINE)
        settings = family().model_dump(exclude={"kind"})
        assert row == ", ".join(f"`{name}` {value}" for name, value in settings.items())
