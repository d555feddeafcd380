"""Targets: what a teacher says about a view or a row, as a column that knows everything about itself."""

from hf_reinforce.targets.base import AnyTeacher, Per, Target
from hf_reinforce.targets.class_distribution import ClassDistribution

TARGETS: dict[str, type[Target]] = {ClassDistribution.kind: ClassDistribution}
"""Kind in `reinforcement.json` -> class. A new target is a line here and a file beside this one."""

__all__ = ["TARGETS", "AnyTeacher", "ClassDistribution", "Per", "Target"]
