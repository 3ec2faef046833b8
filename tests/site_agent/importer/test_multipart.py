import random

import pytest

from site_agent.importer.multipart import MultipartError, boundary_of, parts

BODY = (
    b"preamble\r\n--b1\r\nContent-Type: application/dicom\r\n\r\none\r\n--b\r\nmore"
    b"\r\n--b1\r\n\r\ntwo\r\n--b1\r\nA: 1\r\nB: 2\r\n\r\n\r\n--b1--\r\nepilogue"
)


def read(chunks, boundary=b"b1"):
    return [b"".join(part) for part in parts(chunks, boundary)]


@pytest.mark.parametrize("seed", range(20))
def test_parts_come_whatever_the_chunks_are(seed):
    generator = random.Random(seed)
    chunks, rest = [], BODY
    while rest:
        size = generator.choice([0, 1, 2, 3, 7, 50])
        chunks.append(rest[:size])
        rest = rest[size:]
    assert read(chunks) == [b"one\r\n--b\r\nmore", b"two", b""]


def test_a_body_that_begins_with_its_boundary():
    assert read([b"--b1\r\n\r\nx\r\n--b1--"]) == [b"x"]


def test_a_part_that_is_not_read_is_skipped():
    assert [next(part, b"") for part in parts([BODY], b"b1")][1] == b"two"


def test_pieces_are_given_on_as_they_come():
    def chunks():
        yield b"--b1\r\n\r\n"
        for _ in range(100):
            yield b"x" * 1000
        yield b"\r\n--b1--"

    (sizes,) = ([len(piece) for piece in part] for part in parts(chunks(), b"b1"))
    assert sum(sizes) == 100_000
    assert max(sizes) < 2000


@pytest.mark.parametrize("cut", [5, 30, 60, len(BODY) - 15])
def test_a_body_that_breaks_off_is_an_error(cut):
    with pytest.raises(MultipartError):
        read([BODY[:cut]])


def test_endless_headers_are_an_error():
    with pytest.raises(MultipartError):
        read([b"--b1\r\n", *[b"A: 1\r\n"] * 100_000])


def test_boundaries():
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == b"a b"
    assert boundary_of("application/dicom") is None
    with pytest.raises(MultipartError):
        boundary_of("multipart/related")
