"""What a reinforced data set holds: its targets by operation, likely label errors, duplicates; is it undamaged."""

from hf_reinforce.inspection.checksums import verify_shards
from hf_reinforce.inspection.report import inspect_dataset, operations_table, summary_table

__all__ = ["inspect_dataset", "operations_table", "summary_table", "verify_shards"]
