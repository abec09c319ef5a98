"""What stands of an image's masks after edits."""

from __future__ import annotations

import itertools

from corrections.corrected import edit

from data_engine.corrections.standing import standing


def keys(*edits, n_masks=3):
    return list(standing(n_masks, edits).masks)


def test_without_edits_all_masks_stand():
    assert keys() == [0, 1, 2]
    assert standing(3, ()).last_of == {}


def test_masks_are_added_replaced_in_their_place_and_deleted():
    added, replaced = edit("add", 1), edit("replace", 2, mask_id=1)
    assert keys(added, replaced) == [0, "2", 2, "1"]
    assert keys(added, replaced, edit("delete", 3, mask_id=0), edit("delete", 4, of="1")) == ["2", 2]
    stands = standing(3, (added, replaced, edit("replace", 5, of="2")))
    assert list(stands.masks) == [0, "5", 2, "1"]
    assert stands.masks["1"] is added
    assert (stands.masks[0], stands.gone) == (None, 1)


def test_an_undo_takes_one_edit_back_and_can_be_taken_back():
    gone, back = edit("delete", 1, mask_id=1), edit("undo", 2, of="1")
    assert keys(gone) == [0, 2]
    assert keys(gone, back) == [0, 1, 2]
    assert keys(gone, back, edit("undo", 3, of="2")) == [0, 2]


def test_what_stands_does_not_depend_on_clocks_that_differ():
    """An undo counts though its writer's clock is behind."""
    made = [edit("delete", 5, mask_id=1), edit("undo", 1, of="5")]
    for order in itertools.permutations(made):
        assert keys(*order) == [0, 1, 2]


def test_each_person_undoes_what_is_theirs():
    edits = [edit("delete", 1, mask_id=0), edit("delete", 2, mask_id=1, who="Bob"), edit("done", 3, who="Bob")]
    last = standing(3, edits).last_of
    assert (last["Ada"].edit_id, last["Bob"].edit_id) == ("1", "3")
    last = standing(3, [*edits, edit("undo", 4, who="Bob", of="3")]).last_of
    assert last["Bob"].edit_id == "2"


def test_two_people_at_the_same_mask_lose_nothing():
    """Deleted twice it is gone once; what somebody made in place of a mask that another deleted stays."""
    assert keys(edit("delete", 1, mask_id=1), edit("delete", 2, mask_id=1, who="Bob")) == [0, 2]
    assert keys(edit("delete", 1, mask_id=1), edit("replace", 2, mask_id=1, who="Bob")) == [0, 2, "2"]
    assert keys(edit("replace", 1, mask_id=1), edit("replace", 2, mask_id=1, who="Bob")) == [0, "1", 2, "2"]


def test_an_image_is_done_until_that_is_taken_back():
    done = edit("done", 1)
    assert standing(3, (done, edit("add", 2))).done_by == ("Ada",)
    assert standing(3, (done, edit("undo", 2, of="1"))).done_by == ()


def test_a_mask_is_gone_though_the_clock_of_who_deleted_it_is_behind():
    made, gone = edit("add", 3600), edit("delete", 10, of="3600", who="Bob")
    assert keys(gone, made) == [0, 1, 2]
    anew = edit("replace", 5, of="3600", who="Bob")
    again = edit("replace", 1, of="5")
    assert keys(again, anew, made) == [0, 1, 2, "1"]
