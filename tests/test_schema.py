import pytest
from datasets import ClassLabel, Features, List, Value
from torchvision.transforms import RandAugment

from hf_reinforce import schema
from hf_reinforce.augmentations.policies import named_policy
from hf_reinforce.augmentations.rand_augment import OPERATIONS
from hf_reinforce.targets import ClassDistribution

SOURCE = {"label": ClassLabel(names=["cat", "dog"]), "file_name": Value("string")}


def features_of(policy, num_samples=3, top_k=2, num_classes=5, source=SOURCE):
    target = ClassDistribution.of(num_classes, top_k)
    columns = {target.column: target.column_feature(num_samples)}
    return schema.reinforced_features(source, policy.feature, num_samples, columns)


def test_columns_come_after_the_source_columns_and_their_lists_have_fixed_lengths():
    features = features_of(named_policy("randaug", 32), num_samples=7, top_k=4)
    assert list(features) == ["label", "file_name", *schema.REINFORCEMENT_COLUMNS, "teacher_logits"]
    assert features["label"] == SOURCE["label"]
    assert features[schema.AUGMENTATION_PARAMS].length == features["teacher_logits"].length == 7
    answer = features["teacher_logits"].feature
    assert answer["label"].length == answer["value"].length == 4
    assert features[schema.AUGMENTATION_PARAMS].feature["rand_augment"].length == 2


def test_fields_are_those_of_the_policy():
    view, more, mix = (
        ["crop", "hflip"],
        ["rand_augment", "erase"],
        ["mixup", "cutmix", "partner_row", "partner_params"],
    )
    assert list(named_policy("rrc", 32).feature) == view
    assert list(named_policy("randaug", 32).feature) == view + more
    assert list(named_policy("mixing", 32).feature) == view + mix
    mixing = named_policy("mixing_randaug", 32).feature
    assert list(mixing) == view + more + mix and list(mixing["partner_params"]) == view + more


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
