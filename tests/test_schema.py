import pytest
from datasets import ClassLabel, Features, List, Value
from torchvision.transforms import RandAugment

from hf_reinforce import schema
from hf_reinforce.augmentations.policies import POLICY_NAMES, named_policy
from hf_reinforce.augmentations.rand_augment import OPERATIONS
from hf_reinforce.targets import ClassDistribution

SOURCE = {"label": ClassLabel(names=["cat", "dog"]), "file_name": Value("string")}


def features_of(policy, num_samples=3, top_k=2, num_classes=5, source=SOURCE):
    target = ClassDistribution.of(num_classes, top_k)
    columns = {target.column: target.column_feature(num_samples)}
    return schema.reinforced_features(source, policy.feature, num_samples, columns)


def logits(step):
    return {"label": [step, 4], "value": [-0.125 * (step + 1), -3.0], "tail": float("-inf") if step == 0 else -4.5}


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_rows_of_every_named_policy_round_trip_through_parquet(through_parquet, name):
    policy = named_policy(name, 32)
    rows = []
    for row in range(12):
        params = [policy.sample(1, row, slot, 140, 200) for slot in range(3)]
        for slot, item in enumerate(params if policy.mix_operations else []):
            mixes = policy.mixes(item)
            other = policy.sample(1, row + 1, slot, 99, 77)
            own_fields = {op.field: other[op.field] for op in policy.view_operations if op.field}
            item[schema.PARTNER_ROW] = row + 1 if mixes else None
            item[schema.PARTNER_PARAMS] = own_fields if mixes and row % 2 else None
        rows.append(
            {
                "label": row % 2,
                "file_name": None if row == 3 else f"{row}.jpg",
                schema.SOURCE_ROW: 2**40 + row,
                schema.IMAGE_HASH: f"{row:016x}",
                schema.AUGMENTATION_PARAMS: params,
                "teacher_logits": [logits(slot) for slot in range(3)],
            }
        )
    features = features_of(policy)
    read = through_parquet(rows, features)
    assert read.features == features
    assert list(read) == rows
    if policy.mix_operations:
        partners = [item[schema.PARTNER_PARAMS] for row in rows for item in row[schema.AUGMENTATION_PARAMS]]
        assert None in partners and any(partners)


def test_columns_come_after_the_source_columns():
    features = features_of(named_policy("rrc", 32))
    assert list(features) == ["label", "file_name", *schema.REINFORCEMENT_COLUMNS, "teacher_logits"]
    assert features["label"] == SOURCE["label"]


def test_lists_have_fixed_lengths():
    features = features_of(named_policy("randaug", 32), num_samples=7, top_k=4)
    assert features[schema.AUGMENTATION_PARAMS].length == features["teacher_logits"].length == 7
    answer = features["teacher_logits"].feature
    assert answer["label"].length == answer["value"].length == 4
    assert features[schema.AUGMENTATION_PARAMS].feature["rand_augment"].length == 2


@pytest.mark.parametrize("wrong", [2, 4])
def test_another_number_of_reinforcements_is_refused(through_parquet, wrong):
    policy = named_policy("rrc", 32)
    row = {"label": 0, "file_name": "a", schema.SOURCE_ROW: 0, schema.IMAGE_HASH: "0"}
    row[schema.AUGMENTATION_PARAMS] = [policy.sample(0, 0, slot, 50, 50) for slot in range(wrong)]
    row["teacher_logits"] = [logits(slot) for slot in range(wrong)]
    with pytest.raises((ValueError, TypeError)):
        through_parquet([row], features_of(policy, num_samples=3))


def test_fields_are_those_of_the_policy():
    view = ["crop", "hflip"]
    mix = ["mixup", "cutmix", "partner_row", "partner_params"]
    assert list(named_policy("rrc", 32).feature) == view
    assert list(named_policy("randaug", 32).feature) == [*view, "rand_augment", "erase"]
    assert list(named_policy("mixing", 32).feature) == [*view, *mix]
    mixing = named_policy("mixing_randaug", 32).feature
    assert list(mixing) == [*view, "rand_augment", "erase", *mix]
    assert list(mixing["partner_params"]) == [*view, "rand_augment", "erase"]


@pytest.mark.parametrize("column", [*schema.REINFORCEMENT_COLUMNS, "teacher_logits"])
def test_source_column_with_a_reserved_name_raises(column):
    with pytest.raises(ValueError, match=rf"rename_column\('{column}'"):
        features_of(named_policy("rrc", 32), source={**SOURCE, column: Value("string")})


@pytest.mark.parametrize(("num_classes", "dtype"), [(2, "int16"), (2**15, "int16"), (2**15 + 1, "int32")])
def test_labels_take_the_smallest_type_that_holds_every_class(through_parquet, num_classes, dtype):
    feature = ClassDistribution.of(num_classes, 1).feature
    assert feature["label"] == List(Value(dtype), length=1)
    row = {"label": [num_classes - 1], "value": [0.0], "tail": -1.0}
    assert list(through_parquet([row], Features(feature))) == [row]


def test_box_holds_the_largest_image(through_parquet):
    side = schema.MAX_IMAGE_SIDE
    row = {"box": {"top": -side, "left": side, "height": side, "width": 1}}
    assert list(through_parquet([row], Features({"box": schema.BOX}))) == [row]


def test_rand_augment_operations_are_those_of_torchvision_in_its_order():
    assert tuple(RandAugment()._augmentation_space(31, (224, 224))) == OPERATIONS
