"""Tests of pieces: what belongs together, their order, and their properties."""

import numpy as np
import pytest

from block_spines import block_spine, classes_of
from iterative import label_iteratively
from totalspineseg_server.anatomy import NAME_OF, Kind
from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.transforms.canal import ruler_of
from totalspineseg_server.transforms.pieces import Pieces, find_pieces, require_spine


def codes_of(pieces: Pieces, spine: np.ndarray) -> list[str]:
    """Return the name that most voxels of each vertebra piece have in the truth."""
    numbered = pieces.vertebra_map
    return [NAME_OF[np.bincount(spine[numbered == k]).argmax()] for k in range(1, len(pieces.vertebrae) + 1)]


def test_pieces_stand_superior_to_inferior():
    spine = block_spine("T11", "S")
    pieces = find_pieces(classes_of(spine, 2), 2)
    assert codes_of(pieces, spine) == ["T11", "T12", "L1", "L2", "L3", "L4", "L5", "sacrum"]
    assert [p.kind for p in pieces.vertebrae] == [Kind.VERTEBRA] * 7 + [Kind.SACRUM]
    assert [np.unique(spine[pieces.disc_map == k]).tolist() for k in range(1, 8)] == [
        [82], [91], [92], [93], [94], [95], [100],
    ]  # fmt: skip


def test_every_measure_of_a_piece():
    spine = np.pad(block_spine("L3", "L5"), ((3, 0), (2, 1), (5, 4)))
    pieces = find_pieces(classes_of(spine, 2), 2)
    for numbered, found in ((pieces.disc_map, pieces.discs), (pieces.vertebra_map, pieces.vertebrae)):
        assert numbered.dtype == np.int32
        for k, piece in enumerate(found, start=1):
            where = np.argwhere(numbered == k)
            assert piece.voxels == len(where)
            np.testing.assert_allclose(piece.centroid_vox, where.mean(axis=0))
            assert piece.box == tuple(slice(a, b + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
            assert sum(piece.class_voxels.values()) == piece.voxels
            assert piece.parts == 1
    body = np.argwhere(pieces.vertebra_map == 2)
    body = body[(body[:, 1] > 25) & (body[:, 0] >= 11) & (body[:, 0] < 19)]
    assert pieces.vertebrae[1].body_voxels == len(body)
    np.testing.assert_allclose(pieces.vertebrae[1].body_centroid_vox, body.mean(axis=0))
    assert pieces.vertebrae[1].z_order == round(body[:, 2].mean() - 0.5)
    assert dict(pieces.discs[0].class_voxels) == {1: 14 * 14 * 4}


def test_step_1_has_no_vertebra_pieces():
    pieces = find_pieces(classes_of(block_spine("L1", "S"), 1), 1)
    assert (pieces.vertebra_map, pieces.vertebrae, len(pieces.discs)) == (None, (), 5)


@pytest.mark.parametrize("step", [1, 2])
def test_nothing_gives_no_pieces(step):
    pieces = find_pieces(np.zeros((5, 6, 7), dtype=np.uint8), step)
    assert (pieces.shape, pieces.discs, pieces.vertebrae) == ((5, 6, 7), (), ())
    assert not pieces.disc_map.any()


def test_without_canal_height_alone_orders():
    raw = classes_of(block_spine("L1", "S"), 1)
    raw[raw >= 8] = 0
    pieces = find_pieces(raw, 1)
    assert [p.z_order for p in pieces.discs] == [p.centroid_vox[2] for p in pieces.discs]
    assert len(pieces.discs) == 5


@pytest.mark.parametrize(("voxels", "discs"), [(9, 5), (10, 6)])
def test_specks_under_ten_voxels_are_noise(voxels: int, discs: int):
    raw = classes_of(block_spine("L1", "S"), 1)
    raw[0, 0:voxels, 0] = 1
    assert len(find_pieces(raw, 1).discs) == discs


def test_a_cracked_disc_is_one_piece():
    spine = block_spine("L1", "S")
    whole = find_pieces(classes_of(spine, 1), 1)
    spine[11:13][spine[11:13] == 93] = 0
    cracked = find_pieces(classes_of(spine, 1), 1)
    assert len(cracked.discs) == len(whole.discs)


def test_a_vertebra_in_pieces_is_joined():
    """Body and posterior part without a bridge are two components of the same class, one after the other."""
    spine = block_spine("L1", "S")
    raw = classes_of(spine, 2)
    raw[:, 13:26][spine[:, 13:26] == 43] = 0
    pieces = find_pieces(raw, 2)
    assert codes_of(pieces, spine) == ["L1", "L2", "L3", "L4", "L5", "sacrum"]
    assert [p.parts for p in pieces.vertebrae] == [1, 1, 2, 1, 1, 1]


def test_the_body_decides_the_order():
    """A thoracic vertebra whose long process droops past the next body came after that body."""
    spine = block_spine("T5", "T9")
    body = np.argwhere(spine == 26)
    low = body[:, 2].min()
    spine[:, :26][spine[:, :26] == 28] = 0
    spine[4:20, 0:10, low - 40 : low] = 26
    raw = classes_of(spine, 2)
    pieces = find_pieces(raw, 2)
    t6, t7 = pieces.vertebrae[1], pieces.vertebrae[2]
    assert t6.centroid_vox[2] < t7.centroid_vox[2]
    assert t6.z_order > t7.z_order
    assert codes_of(pieces, spine) == ["T5", "T6", "T7", "T8", "T9"]


def test_remnants_go_to_the_vertebra_around_them():
    spine = block_spine("L1", "S")
    raw = classes_of(spine, 2)
    low = np.argwhere(spine == 43)[:, 2].min()
    raw[8:11, 30:33, low + 3 : low + 6] = 6
    raw[4, 42, low + 3] = 6
    raw[0, 0, 0] = 6
    pieces = find_pieces(raw, 2)
    l3 = pieces.vertebrae[2]
    assert l3.class_voxels[6] == 28
    assert l3.voxels == np.count_nonzero(spine == 43) + 1
    assert label_iteratively(raw, 2)[0, 0, 0] == 0


def test_of_two_vertebrae_the_superior_gets_the_remnant():
    raw = classes_of(block_spine("L1", "S"), 2)
    low = np.argwhere(block_spine("L1", "S") == 42)[:, 2].min()
    raw[:, :, low - 4 : low][raw[:, :, low - 4 : low] == 1] = 0
    raw[6, 30, low - 1] = 8
    raw[4:20, 26:42, low - 2] = 8
    raw[8, 30, low - 1] = 6
    pieces = find_pieces(raw, 2)
    assert pieces.vertebra_map[8, 30, low - 1] == 2


@pytest.mark.parametrize(
    ("gone", "step", "words"),
    [
        ((1, 5), 1, "Step 1.*disc"),
        ((8, 9), 1, "Step 1.*canal"),
        ((1, 5, 10, 11), 2, "Step 2.*disc.*canal"),
    ],
)
def test_a_map_without_discs_or_canal_is_refused(gone, step, words):
    raw = classes_of(block_spine("L1", "S"), step)
    require_spine(raw, step)
    raw[np.isin(raw, gone)] = 0
    with pytest.raises(NoSpineError, match=words):
        require_spine(raw, step)


@pytest.mark.parametrize("step", [1, 2])
def test_cord_alone_counts_as_canal(step):
    raw = classes_of(block_spine("L1", "S"), step)
    raw[raw == (8 if step == 1 else 10)] = 0
    require_spine(raw, step)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_input_is_unchanged_and_memory_order_does_not_matter(order):
    raw = classes_of(block_spine("T11", "L4"), 2)
    arguments = np.array(raw, order=order)
    arguments.flags.writeable = False
    ours, plain = find_pieces(arguments, 2), find_pieces(raw, 2)
    np.testing.assert_array_equal(arguments, raw)
    np.testing.assert_array_equal(ours.vertebra_map, plain.vertebra_map)
    assert ours.vertebrae == plain.vertebrae
    assert ours.discs == plain.discs


@pytest.mark.parametrize(("gap", "count"), [(2, 1), (3, 2)])
def test_discs_further_apart_than_a_crack_are_two(gap: int, count: int):
    raw = np.zeros((20, 20, 30), dtype=np.uint8)
    raw[4:14, 4:14, 5:8] = raw[4:14, 4:14, 8 + gap : 12 + gap] = 1
    assert len(find_pieces(raw, 1).discs) == count


def test_a_disc_is_all_body():
    for disc in find_pieces(classes_of(block_spine("L1", "S"), 1), 1).discs:
        assert (disc.body_voxels, disc.body_centroid_vox) == (disc.voxels, disc.centroid_vox)


@pytest.mark.parametrize(("in_front", "body_voxels"), [(49, 0), (50, 50)])
def test_the_tip_of_a_process_is_not_a_body(in_front: int, body_voxels: int):
    """Only voxels in front of the canal and within its width count."""
    raw = np.zeros((24, 48, 20), dtype=np.uint8)
    raw[8:16, 14:24, :] = 10
    raw[8:16, 4:14, 5:15] = 7
    raw[2:8, 4:40, 5:15] = 7
    raw[9, 23, 5:15] = 7
    raw[tuple(np.argwhere(np.pad(np.ones((8, 1, 10), bool), ((8, 8), (24, 23), (5, 5))))[:in_front].T)] = 7
    (piece,) = find_pieces(raw, 2).vertebrae
    assert piece.body_voxels == body_voxels
    assert (piece.body_centroid_vox is None) is (body_voxels == 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_vertebra_is_filled_along_each_axis(axis: int):
    raw = np.zeros((20, 20, 20), dtype=np.uint8)
    bars = np.moveaxis(raw, axis, 0)
    bars[2:5, 8:11, 8:11] = bars[14:17, 8:11, 8:11] = 7
    bars[9, 9, 9] = bars[9, 11, 9] = bars[9, 13, 9] = 6
    pieces = find_pieces(raw, 2)
    numbered = np.moveaxis(pieces.vertebra_map, axis, 0)
    assert [numbered[9, i, 9] for i in (9, 11, 13)] == [1, 1, 0]
    assert pieces.vertebrae[0].class_voxels[6] == 2


def test_a_missed_vertebra_does_not_join_its_neighbors():
    """When L3 was missed, L2 and L4, which have the same class, became one vertebra."""
    spine = block_spine("L1", "S")
    spine[spine == 43] = 0
    assert codes_of(find_pieces(classes_of(spine, 2), 2), spine) == ["L1", "L2", "L4", "L5", "sacrum"]


def test_t13_and_l1_stay_two():
    """In training maps T13 has the class of L1."""
    spine = block_spine("T12", "L3", thoracic=13)
    assert codes_of(find_pieces(classes_of(spine, 2), 2), spine) == ["T12", "T13", "L1", "L2"]


def test_a_process_hanging_into_the_view_goes_first():
    """The process of T4, whose body was out of view, hung below the body of T5 and became part of T6."""
    spine = block_spine("T5", "T9")
    top = spine.shape[2]
    spine[:, :14][spine[:, :14] == 25] = 0
    spine[10:14, 0:1, top - 18 :] = 24
    raw = classes_of(spine, 2)
    assert codes_of(find_pieces(raw, 2), spine) == ["T4", "T5", "T6", "T7", "T8", "T9"]
    assert codes_of(find_pieces(np.pad(raw, ((2, 2), (2, 2), (3, 3))), 2), np.pad(spine, ((2, 2), (2, 2), (3, 3)))) == [
        "T4", "T5", "T6", "T7", "T8", "T9",
    ]  # fmt: skip


@pytest.mark.parametrize(("z", "is_front"), [(4, True), (6, True), (9, True), (11, False), (14, False)])
def test_a_voxel_beside_a_gap_of_the_canal_is_measured_at_the_nearest_slice(z: int, is_front: bool) -> None:
    """Bodies beside metal or a stenosis were measured at the next slice above, however far away it was."""
    canal = np.zeros((8, 20, 16), dtype=bool)
    canal[2:6, 2:5, :6] = True
    canal[2:6, 10:13, 14:] = True
    ruler = ruler_of(canal, (1, 1, 1))
    assert ruler.in_front(np.array([[3, 8, z]])).tolist() == [is_front]
    assert ruler.is_anterior((3, 8, z)) is is_front
