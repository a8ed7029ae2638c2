"""Adapters on packed models: which there are, saved and loaded, several at once, and generation."""

from __future__ import annotations

import copy
import json
import shutil

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from support.adapters import adapted, load, randomize
from support.tiny_models import logits, some_ids

from tritllm import quantize
from tritllm.errors import TritError
from tritllm.integrations.peft.lora_layer import TritLoraLinear
from tritllm.ops.trit_linear import TritLinear

LORA = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")


def adapted_layers(model):
    return {n for n, m in model.named_modules() if isinstance(m, TritLoraLinear)}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # of peft, of a second adapter
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_all_linear_is_every_packed_layer_but_the_head(tiny, family):
    model = load(tiny(family, 2) / "packed", lm_head_depth=3 if family == "llama" else None)
    head = model.get_output_embeddings()
    packed = {n for n, m in model.named_modules() if isinstance(m, TritLinear) and m is not head}
    model.add_adapter(LoraConfig(r=2, target_modules="all-linear"))
    assert adapted_layers(model) == packed
    model.add_adapter(LoraConfig(r=2, target_modules="all-linear"), "second")
    assert adapted_layers(model) == packed


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_saved_and_loaded_by_peft_and_by_transformers(tiny, tmp_path, family):
    folder = tiny(family, 2) / "packed"
    model = adapted(load(folder), LORA).eval()
    model.save_pretrained(tmp_path)
    expected, base = logits(model), logits(load(folder))
    assert not torch.allclose(expected, base, atol=0.1)
    loaded = PeftModel.from_pretrained(load(folder), tmp_path)
    assert torch.equal(logits(loaded), expected)
    own = load(folder)
    own.load_adapter(str(tmp_path))
    assert torch.equal(logits(own), expected)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), base)
    loaded.save_pretrained(tmp_path / "again")  # with the base it came with
    names = ("adapter_config.json", "again/adapter_config.json")
    one, other = (json.loads((tmp_path / name).read_text())["tritllm_base"] for name in names)
    assert one == other
    assert one["depths"] == [2]


def test_several_adapters(tiny, tmp_path):
    folder = tiny("llama", 2) / "packed"
    model = adapted(load(folder), LORA, seed=1)
    one = logits(model.eval())
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    model.set_adapter("other")
    randomize(model, seed=2)
    two = logits(model)
    assert not torch.allclose(one, two, atol=0.05)
    model.set_adapter("default")
    assert torch.equal(logits(model), one)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load(folder), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    assert torch.equal(logits(loaded), one)
    loaded.set_adapter("other")
    assert torch.equal(logits(loaded), two)
    mixed = loaded(some_ids(), adapter_names=["other", "default"]).logits
    torch.testing.assert_close(mixed, torch.stack([two[0], one[1]]), rtol=1e-5, atol=1e-5)
    loaded.set_adapter("default")
    loaded.delete_adapter("other")
    loaded.unload()
    assert torch.equal(logits(loaded.get_base_model()), logits(load(folder)))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A packed Llama whose blocks have a native step, with biases."""
    place = tmp_path_factory.mktemp("wide")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, attention_bias=True,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place / "source")
    quantize(str(place / "source"), ["uniform-d2"], place / "out", threads=1)
    return place / "out/uniform-d2/packed"


PROMPTS = {
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.filterwarnings(
    "ignore:Position ids are not supported"
)  # peft's own generate gives them
@pytest.mark.parametrize("kind", ["lora", *PROMPTS])
def test_tokens_one_by_one_are_those_of_the_whole_text(wide, steps, native, kind, tmp_path):
    """The native step computes a model's decode steps; with adapters in its blocks it does not."""
    native("exact")
    base = load(wide, "exact")
    before = base.generate(some_ids(1), max_new_tokens=3, do_sample=False)  # it has seen the blocks
    assert steps
    steps.clear()
    model = adapted(base, PROMPTS.get(kind, LORA)).eval()
    found = model.generate(
        input_ids=some_ids(1), max_new_tokens=6, do_sample=False,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert bool(steps) == (kind != "lora")
    whole = model(input_ids=found.sequences, use_cache=False).logits.detach()
    expected = whole[:, -len(found.logits) - 1 : -1]
    torch.testing.assert_close(torch.stack(found.logits, 1), expected, rtol=1e-3, atol=1e-3)
    if kind == "lora":
        steps.clear()
        with model.disable_adapter():
            again = model.generate(input_ids=some_ids(1), max_new_tokens=3, do_sample=False)
        assert torch.equal(again, before)
        plain = model.unload()
        assert torch.equal(plain.generate(some_ids(1), max_new_tokens=3, do_sample=False), before)
        assert steps  # and it is the native step again
    else:
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(load(wide, "exact"), tmp_path)
        ids = found.sequences
        assert torch.equal(loaded(input_ids=ids, use_cache=False).logits, whole)


def test_prepare_model_for_kbit_training(wide):
    model = load(wide, dtype="bfloat16")
    model.generate(some_ids(1), max_new_tokens=2, do_sample=False)
    ready = peft.prepare_model_for_kbit_training(
        model, gradient_checkpointing_kwargs={"use_reentrant": True}
    )
    assert {p.dtype for p in ready.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in ready.parameters())
    assert any(getattr(m, "gradient_checkpointing", False) for m in ready.modules())
    assert not hasattr(ready, "is_loaded_in_4bit")
    trained = adapted(ready, LORA).train()
    trained(input_ids=some_ids(), labels=some_ids()).loss.backward()
    assert all(p.grad.norm() > 0 for p in trained.parameters() if p.requires_grad)


class Windows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        ids = some_ids(4)[index]
        return {"input_ids": ids, "labels": ids}


def test_trainer_trains_saves_and_resumes(tiny, tmp_path):
    def trainer(folder, steps):
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), max_steps=steps, save_steps=1, learning_rate=2e-2,
            per_device_train_batch_size=2, report_to=[], disable_tqdm=True, use_cpu=True,
            gradient_checkpointing=True, logging_steps=1, seed=3, lr_scheduler_type="constant",
        )  # fmt: skip
        torch.manual_seed(4)
        model = get_peft_model(load(tiny("llama", 2) / "packed"), LoraConfig(**SMALL))
        return transformers.Trainer(model=model, args=arguments, train_dataset=Windows())

    SMALL = {"r": 2, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    whole = trainer(tmp_path / "whole", 2)
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    shutil.copytree(tmp_path / "whole/checkpoint-1", tmp_path / "half/checkpoint-1")
    resumed = trainer(tmp_path / "half", 2)
    resumed.train(resume_from_checkpoint=True)
    for mine, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path` was renamed")
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("llama", 1), r"its depths 2, here 1;"),
        (("qwen2", 2), r"its sha256 [0-9a-f]{12}, here [0-9a-f]{12};"),
        (("mixtral", 2), r"its layers 14, here 32;"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_adapter_for_another_base(tiny, tmp_path, other, message):
    model = load(tiny(*other) / "packed")
    config = copy.deepcopy(LORA)
    get_peft_model(load(tiny("llama", 2) / "packed"), config).save_pretrained(tmp_path)
    get_peft_model(load(tiny(*other) / "packed"), config)  # a new adapter of the same settings
    before = logits(model)
    for attach in (
        lambda: PeftModel.from_pretrained(model, tmp_path),
        lambda: model.load_adapter(str(tmp_path)),
    ):
        with pytest.raises(TritError, match=message) as refusal:
            attach()
        assert "\n" not in str(refusal.value)
    assert not adapted_layers(model)
    assert torch.equal(logits(model), before)


def test_the_base_is_the_weights_that_are_read(tiny, tmp_path):
    """The same trits from another file, dtype, or at a depth read from a deeper file."""
    deep = tiny("llama", 3) / "packed"
    model = adapted(load(deep, planes=2), LORA)
    model.save_pretrained(tmp_path)
    held = load(deep, dtype="bfloat16")
    with pytest.raises(TritError, match="its depths 2, here 3"):
        PeftModel.from_pretrained(held, tmp_path)
    held.set_planes(2)
    PeftModel.from_pretrained(held, tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    settings = json.loads(text)
    del settings["tritllm_base"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    PeftModel.from_pretrained(load(deep), tmp_path)  # as the refusal says


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"), "'pissa' changes"),
        (LoraConfig(target_modules=["q_proj"], init_lora_weights="olora"), "'olora' changes"),
        (LoraConfig(target_modules=["q_proj"], modules_to_save=["o_proj"]), "o_proj is packed"),
        (peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "use LoraConfig"),
        (peft.LoHaConfig(target_modules="all-linear"), "use LoraConfig"),
    ],
    ids=["pissa", "olora", "copies", "ia3", "loha"],
)
def test_what_cannot_be_done_on_packed_layers(tiny, config, message):
    model = load(tiny("llama", 2) / "packed")
    before = logits(model)
    with pytest.raises(TritError, match=message) as refusal:
        get_peft_model(model, config)
    assert "\n" not in str(refusal.value)
    assert torch.equal(logits(model), before)
