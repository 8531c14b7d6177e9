"""The table of metrics: aligned, complete, and never a bare -1."""

from rcnn.evaluation.table import COCO_ROWS, format_recall, format_table

VOC = {
    "metric": "voc07_11point",
    "iou": 0.5,
    "mAP": 0.625,
    "AP": {"cat": 0.75, "traffic light": 0.5, "unicorn": None},
    "num_gt": {"cat": 1234, "traffic light": 5, "unicorn": 0},
    "num_detections": {"cat": 2000, "traffic light": 0, "unicorn": 3},
}
COCO = {
    "metric": "coco",
    **dict.fromkeys(COCO_ROWS, 0.25),
    "APs": None,
    "AP_by_class": {"cat": 0.25},
    "num_gt": {"cat": 3},
    "num_detections": {"cat": 4},
    "reasons": {"APs": "no small objects in this set"},
}


def test_voc_by_hand():
    assert format_table(VOC).splitlines() == [
        "VOC 2007, 11 points, IoU 0.5",
        "class              AP  ground truths  detections",
        "cat            0.7500           1234        2000",
        "traffic light  0.5000              5           0  nothing found",
        "unicorn             -              0           3  no ground truth",
        "mean           0.6250           1239        2003  over 2 of 3 classes",
    ]


def test_coco_has_the_twelve_numbers_and_the_classes():
    lines = format_table(COCO).splitlines()
    assert [line.split()[0] for line in lines[:12]] == list(COCO_ROWS)
    assert lines[0] == "AP     0.2500  IoU .50 to .95"
    assert lines[3] == "APs         -  no small objects in this set"
    assert lines[-2:] == ["cat    0.2500              3           4", "mean   0.2500              3           4"]


def test_a_set_without_any_ground_truth_is_said_so():
    nothing = VOC | {"mAP": None, "AP": {"cat": None}, "num_gt": {"cat": 0}, "num_detections": {"cat": 1}}
    assert format_table(nothing).splitlines()[-1].split() == ["mean", "-", "0", "1", "over", "0", "of", "1", "classes"]


def test_metrics_of_other_programs_without_counts_are_shown():
    bare = {"metric": "voc_area", "iou": 0.5, "mAP": 0.5, "AP": {"cat": 0.5}}
    assert format_table(bare).splitlines()[-1].split() == ["mean", "0.5000", "-", "-"]


def test_recall_by_hand():
    bins = {
        "all": {"share": 1.0, "num_gt": 4, "AR": 0.625, "recall": [0.75, 0.5]},
        "0-25": {"share": 0.125, "num_gt": 0, "AR": None, "recall": [None, None]},
    }
    metrics = {"average_proposals": 299.96, "iou": [0.5, 0.95], "bins": bins}
    assert format_recall(metrics).splitlines() == [
        "recall of 300.0 proposals per image, by the side of the box in pixels and by IoU",
        "side  proposals  ground truths      AR     .50     .95",
        "all      100.0%              4  0.6250  0.7500  0.5000",
        "0-25      12.5%              0       -       -       -  no ground truth",
    ]


def test_the_recall_of_no_proposals_has_no_shares():
    bins = {"all": {"share": None, "num_gt": 1, "AR": 0.0, "recall": [0.0]}}
    last = format_recall({"average_proposals": 0.0, "iou": [0.5], "bins": bins}).splitlines()[-1]
    assert last.split() == ["all", "-", "1", "0.0000", "0.0000"]
