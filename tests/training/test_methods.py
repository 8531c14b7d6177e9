from rcnn.training.methods import ALTERNATE, UNTRAINED


def test_four_phases_each_on_what_came_before() -> None:
    assert [(p.name, p.part) for p in ALTERNATE] == [
        ("rpn1", "rpn"), ("rcnn1", "fast_rcnn"), ("rpn2", "rpn"), ("rcnn2", "fast_rcnn"),
    ]  # fmt: skip
    for i, phase in enumerate(ALTERNATE):
        before = {p.name: p.part for p in ALTERNATE[:i]}
        assert not phase.start_from or before[phase.start_from] == "fast_rcnn"
        assert (before[phase.proposals_from] == "rpn") if phase.part == "fast_rcnn" else not phase.proposals_from
        assert phase.shared == (i >= 2)


def test_the_parts_together_train_everything() -> None:
    assert not set(UNTRAINED["rpn"]) & set(UNTRAINED["fast_rcnn"])
    assert UNTRAINED["joint"] == ()
