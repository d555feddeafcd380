"""Transfer of a student to other tasks: linear probe, object detection, semantic segmentation."""
