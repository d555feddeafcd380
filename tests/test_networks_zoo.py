"""Networks that nobody should be taught or judged by: each is refused in one sentence that names it."""

import copy
import io
import json
import logging
import re
import sys

import pytest
import timm
import torch
from recipe_modules import load_recipe
from safetensors.torch import load_file, save_file
from saved_networks import labels, resnet, transformers_folder, wrapper_folder
from timm.models import save_for_hf
from tiny import MEAN, STD, TinyNet, tiny_dataset
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_reinforce import load_teacher
from hf_reinforce.models.networks import named_member
from hf_reinforce.models.preprocessing import Preprocessing

LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca2\n"
)
TINY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
VIT = {**TINY, "image_size": 32, "patch_size": 16, **labels()}


# Makers of networks in a folder: sound ones first.


def of_transformers(make=None, safe=True):
    def build(folder):
        transformers_folder(folder)  # with a processor
        if make is not None:
            make().save_pretrained(folder)
        if not safe:
            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()

    return build


def of_timm(name="test_resnet", **arguments):
    def build(folder):
        model = timm.create_model(name, **{"num_classes": 5, **arguments})
        save_for_hf(model, folder, safe_serialization=True, model_config={"label_names": []})

    return build


def of_checkpoint(change):
    def build(folder):
        folder.mkdir()
        torch.save(change(timm.create_model("test_resnet", num_classes=5).state_dict()), folder / "weights.pth")

    return build


def vit(kind=ViTForImageClassification):
    return of_transformers(lambda: kind(ViTConfig(**VIT)))


def whole_clip():
    text, vision = {**TINY, "vocab_size": 50}, {**TINY, "image_size": 32, "patch_size": 16}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, **labels()))


# Changes of a folder.


def weights(change):
    def apply(folder):
        state = {key: value.clone() for key, value in change(load_file(folder / "model.safetensors")).items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def without(*endings):
    return lambda state: {key: value for key, value in state.items() if not key.endswith(endings)}


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def reshaped(*endings):
    return lambda state: {key: value[:3] if key.endswith(endings) else value for key, value in state.items()}


def with_nan(state):
    return {key: value * torch.nan if value.ndim > 1 else value for key, value in state.items()}


def config(**changes):
    def apply(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return apply


def holding(name, content):
    return lambda folder: (folder.mkdir(exist_ok=True), (folder / name).write_bytes(content))


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def lost(name):
    return lambda folder: (folder / name).unlink()


def code_of_its_own(folder):
    """A repository that brings code, which leaves a file `executed` where it runs."""
    of_transformers()(folder)
    maps = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    config(model_type="of-its-own", auto_map=maps | {"AutoImageProcessor": "code.Processor"})(folder)
    (folder / "code.py").write_text(f"open({str(folder / 'executed')!r}, 'w').close()\n")


COUNTED_FROM_ONE = {str(index + 1): name for index, name in enumerate("abcde")}
BACKWARDS = {name: 4 - index for index, name in enumerate("abcde")}
NATIVE, WEIGHTS, ADAPTER = of_transformers(), "model.safetensors", holding("adapter_config.json", b"{}")
BAD = {  # how it is made, what is changed, part of the message
    "a backbone": (vit(ViTModel), r"missing \(classifier.bias, classifier.weight\).*not the network's \(.*pooler"),
    "the whole of CLIP": (of_transformers(whole_clip), r"missing \(classifier.bias.*not the network's \(logit_scale"),
    "a wrapper of several devices": (NATIVE, weights(prefixed("module.")), "missing .*not the network's .*wrapper"),
    "a compiled network": (NATIVE, weights(prefixed("_orig_mod.")), "missing .*not the network's .*_orig_mod"),
    "a lightning module": (of_timm(), weights(prefixed("model.")), "missing .*not the network's .*wrapper"),
    "lost statistics": (
        NATIVE,
        weights(without("embedder.embedder.normalization.running_mean", "classifier.1.bias")),
        r"2 are missing \(.*running_mean",
    ),
    "a head for three classes": (
        NATIVE,
        weights(reshaped("classifier.1.weight", "classifier.1.bias")),
        r"2 are of another shape \(classifier.1.bias 3 for 5, classifier.1.weight 3x16 for 5x16\)",
    ),
    "more layers than configured": (vit(), config(num_hidden_layers=1), r"are not the network's \(vit\."),
    "fewer layers than configured": (vit(), config(num_hidden_layers=3), r"are missing \(vit\."),
    "a timm network with a hole": (of_timm(), weights(without("fc.bias")), r"1 are missing \(fc.bias\)"),
    "an option for more classes": (of_timm(), config(model_args={"num_classes": 7}), r"shape \(fc.bias 5 for 7"),
    "what timm loads loosely": (of_timm("dla46x_c"), weights(without("base_layer.1.weight")), "1 are missing"),
    "something else": (
        of_timm(),
        weights(lambda s: s | {"extra": torch.zeros(3)}),
        r"1 are not the network's \(extra",
    ),
    "a wrapped hole": (wrapper_folder, weights(without("fc.weight")), r"1 are missing \(timm_model.fc.weight\)"),
    "timm without a head": (of_timm(num_classes=0), "no classifier"),
    "a wrapper without a head": (
        wrapper_folder,
        config(num_classes=0, id2label={}, label2id={}, num_labels=0),
        "no classifier",
    ),
    "a network beside its adapter": (NATIVE, ADAPTER, "holds an adapter of PEFT"),
    "an adapter alone": (ADAPTER, "holds an adapter of PEFT"),
    "classes counted from one": (NATIVE, config(id2label=COUNTED_FROM_ONE), "0 to 4, but has the indices 1, 2, 3"),
    "contradicting names": (
        NATIVE,
        config(id2label=dict(enumerate("abcde")), label2id=BACKWARDS),
        "contradict each other about the class 'a'",
    ),
    "a pointer": (NATIVE, holding(WEIGHTS, LFS), "model.safetensors is a pointer of git-lfs"),
    "a pointer of timm": (of_timm(), holding(WEIGHTS, LFS), "model.safetensors is a pointer of git-lfs"),
    "a pickled pointer": (of_transformers(safe=False), holding("pytorch_model.bin", LFS), "model.bin is a pointer"),
    "cut short": (NATIVE, cut(WEIGHTS), "cut short or damaged"),
    "timm cut short": (of_timm(), cut(WEIGHTS), "cut short or damaged"),
    "a pickle cut short": (of_transformers(safe=False), cut("pytorch_model.bin"), "cut short or damaged"),
    "empty weights": (NATIVE, holding(WEIGHTS, b""), "cut short or damaged"),
    "no weights": (NATIVE, lost(WEIGHTS), "cannot be loaded"),
    "no weights of timm": (of_timm(), lost(WEIGHTS), "cannot be loaded"),
    "a broken configuration": (NATIVE, cut("config.json"), "cannot be loaded .JSONDecodeError"),
    "no text": (of_timm(), holding("config.json", b"\xff\xfe\x00"), "cannot be loaded .UnicodeDecodeError"),
    "a list": (NATIVE, holding("config.json", b"[1, 2]"), r"config\.json describes no image classifier"),
    "of something else": (NATIVE, holding("config.json", b'{"layers": 3}'), r"config\.json describes no image"),
    "a network of texts": (NATIVE, holding("config.json", b'{"model_type": "bert"}'), "cannot be loaded"),
    "an unknown network": (NATIVE, config(model_type="no_such_network"), "cannot be loaded"),
    "unknown to timm": (of_timm(), config(architecture="no_such_network"), "cannot be loaded"),
    "code of its own": (code_of_its_own, "trust_remote_code"),
    "no numbers": (NATIVE, weights(with_nan), "not finite"),
    "no numbers of timm": (of_timm(), weights(with_nan), "not finite"),
    "images of four channels": (
        of_transformers(lambda: resnet(num_channels=4)),
        "cannot take views of 24x24 pixels in three channels",
    ),
    "grey images": (of_timm(in_chans=1), "cannot take views of .* in three channels"),
    "a name too few": (of_timm(), config(label_names=list("abcd")), "names for 4 classes .*answers with 5"),
    "a checkpoint of several devices": (of_checkpoint(prefixed("module.")), r"missing \(.*\(module\..*wrapper"),
    "a checkpoint with a hole": (of_checkpoint(without("fc.bias")), r"1 are missing \(fc.bias\)"),
    "a checkpoint without a head": (of_checkpoint(without("fc.bias", "fc.weight")), r"2 are missing \(fc.bias"),
    "a checkpoint of another width": (of_checkpoint(reshaped("conv1.0.weight")), r"1 are of another shape \(conv1"),
    "a checkpoint of a training": (
        of_checkpoint(lambda state: {"epoch": 3, "state_dict": state}),
        "tensors by name, but a dict with the keys epoch, state_dict",
    ),
    "a checkpoint that is a pointer": (of_checkpoint(dict), holding("weights.pth", LFS), "pointer of git-lfs"),
    "a checkpoint that is cut short": (of_checkpoint(dict), cut("weights.pth"), "cut short or damaged"),
    "a checkpoint that is not there": (of_checkpoint(dict), lost("weights.pth"), "weights.pth cannot be loaded"),
}


def bad(name, folder):
    """Makes a bad network: its name, the flags for its weights, and part of the message."""
    *steps, message = BAD[name]
    for step in steps:
        step(folder)
    checkpoint = name.startswith("a checkpoint")
    return ("test_resnet" if checkpoint else str(folder)), [folder / "weights.pth"] if checkpoint else [], message


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pets")
    tiny_dataset(6).to_parquet(folder / "train.parquet")
    return folder


def run(monkeypatch, recipe, *flags, answers=""):
    """Runs a recipe here; what it ends with."""
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, flags)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
    with pytest.raises(SystemExit) as caught:
        load_recipe(recipe).main()
    return str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_the_recipes_end_in_one_line_and_write_nothing(name, pets, monkeypatch, tmp_path, caplog, capfd):
    network, checkpoint, message = bad(name, tmp_path / "net")
    flags = ["--dataset_name", pets, "--split", "train", "--device", "cpu", "--output_dir", tmp_path / "out"]
    views = ["--policy", "rrc", "--image_size", 32, "--num_samples", 1, "--top_k", 2]
    recipes = {"reinforce": ("teacher", views), "evaluate": ("model", [])}
    for recipe in recipes if list(BAD).index(name) % 6 == 0 else ["reinforce"]:
        what, more = recipes[recipe]
        given = [
            f"--{what}_name_or_path",
            network,
            *(part for file in checkpoint for part in (f"--{what}_checkpoint", file)),
        ]
        text = run(monkeypatch, recipe, *flags, *more, *given).removeprefix("error: ")
        assert re.search(message, text), text
        assert "\n" not in text and len(text) < 1200 and "Traceback" not in text
        assert network in text, "the network should be named"
        assert not list((tmp_path / "out").rglob("*.*"))
        assert "REPORT" not in caplog.text + "".join(capfd.readouterr()), "what is raised is not reported as well"


def test_one_bad_member_spoils_an_ensemble(tmp_path):
    network, _, message = bad("a timm network with a hole", tmp_path / "bad")
    NATIVE(tmp_path / "sound")
    with pytest.raises(ValueError, match=message):
        load_teacher([str(tmp_path / "sound"), network])


@pytest.mark.parametrize("make", [NATIVE, of_timm(), wrapper_folder], ids=["transformers", "timm", "wrapper"])
def test_a_sound_network_is_loaded_without_a_word(make, tmp_path, caplog, capfd):
    make(tmp_path)
    with caplog.at_level(logging.INFO):
        whole = load_teacher(str(tmp_path))
    said = caplog.text + "".join(capfd.readouterr())
    assert "REPORT" not in said and "sharded" not in said
    views = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    old = {"old.num_batches_tracked": torch.tensor(3)}  # counters of batches may be missing or left over
    for change in (without("num_batches_tracked"), lambda state: state | old):
        weights(change)(tmp_path)
        torch.testing.assert_close(load_teacher(str(tmp_path))(views), whole(views))


def test_weights_of_an_earlier_form_are_converted_as_timm_does(tmp_path):
    shape = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}
    of_timm("swin_tiny_patch4_window7_224", **shape)(tmp_path)
    config(model_args=shape)(tmp_path)
    weights(lambda state: state | {"layers.0.blocks.0.attn_mask": torch.zeros(64, 49, 49)})(tmp_path)
    assert load_teacher(str(tmp_path)).num_classes == 5


def test_a_body_without_a_head_is_enough_where_the_head_is_not_used(tmp_path):
    body = named_member(bad("a backbone", tmp_path / "body")[0], head=False)
    assert type(body.model).__name__ == "ViTForImageClassification"
    for name in ("a wrapper of several devices", "lost statistics", "more layers than configured"):
        with pytest.raises(ValueError, match="missing|not the network's"):
            named_member(bad(name, tmp_path / name)[0], head=False)


# What a network answers with.


class Answering(nn.Module):
    """A network whose logits are wrapped in some way."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = TinyNet(5, 0), wrap

    def forward(self, images):
        return self.wrap(self.net(images))


PREPROCESSING = Preprocessing(16, MEAN, STD, "bilinear")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: {"out": logits, "features": logits[:, :, None]},
        lambda logits: (logits,),
    ],
)
def test_logits_that_cannot_be_mistaken_are_taken(wrap):
    views = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    plain, wrapped = (load_teacher(net, preprocessing=PREPROCESSING) for net in (TinyNet(5, 0), Answering(wrap)))
    torch.testing.assert_close(wrapped(views), plain(views))


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda logits: (logits, logits), r"logits .*a tuple of \(2, 5\), \(2, 5\)"),
        (lambda logits: {"scores": logits, "others": logits}, "logits .*a dict of"),
        (lambda logits: logits[:, :, None, None], r"logits .*a Tensor of \(2, 5, 1, 1\)"),
        (lambda logits: logits[:, :1], "one number"),
        (lambda logits: None, "logits .*a NoneType"),
        (lambda logits: (), "logits .*a tuple of nothing"),
        (lambda logits: logits.argmax(-1, keepdim=True), "logits .*a Tensor"),
    ],
)
def test_other_answers_are_refused(wrap, found):
    with pytest.raises(ValueError, match=f"The network Answering .*answers? with {found}"):
        load_teacher(Answering(wrap), preprocessing=PREPROCESSING)


def test_a_network_saved_to_answer_with_tuples(tmp_path):
    NATIVE(tmp_path)
    expected = load_teacher(str(tmp_path))
    config(return_dict=False)(tmp_path)
    views = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    torch.testing.assert_close(load_teacher(str(tmp_path))(views), expected(views))


def test_the_callers_module_stays_as_it_is():
    model = timm.create_model("test_resnet", num_classes=5)
    model.conv1.requires_grad_(False)
    model.layer1.eval()
    facts = lambda: ([(p.requires_grad, p.dtype) for p in model.parameters()], [m.training for m in model.modules()])
    before, state = facts(), copy.deepcopy(model.state_dict())
    teacher = load_teacher(model).to("cpu", "bfloat16")
    views = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    answer = teacher(views)
    assert facts() == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for parameter in model.parameters():
        parameter.data.fill_(0)
    torch.testing.assert_close(teacher(views), answer, rtol=0, atol=0)


# Code of a repository.

TRAINING = ["--output_dir", "OUT", "--use_cpu", "True", "--policy", "rrc", "--image_size", "32"]
RECIPES = {
    "evaluate": ["--model_name_or_path", "NET", "--split", "train", "--device", "cpu"],
    "linear_probe": ["--model_name_or_path", "NET", "--eval_split", "train"],
    "train_kd": ["--model_name_or_path", "NET", "--method", "plain", *TRAINING],
    "train_kd online": [
        *("--model_name_or_path", "test_resnet", "--teacher_name_or_path", "NET", "--method", "online", *TRAINING),
    ],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", RECIPES)
def test_nobody_is_asked_whether_code_may_run(recipe, pets, monkeypatch, tmp_path):
    net, out = tmp_path / "net", tmp_path / "out"
    code_of_its_own(net)
    flags = [{"NET": net, "OUT": out}.get(flag, flag) for flag in RECIPES[recipe]]
    ended = run(monkeypatch, recipe.partition(" ")[0], "--dataset_name", pets, *flags, answers="y\n" * 20)
    assert sys.stdin.tell() == 0, "nothing should be read from the terminal"
    assert not (net / "executed").exists()
    assert "trust_remote_code" in ended and str(net) in ended and "\n" not in ended
    assert not list(out.rglob("*.safetensors"))
