"""Files of TRL, OpenRLHF and LLaMA-Factory as recipes: every option is accounted for, and the numbers
are those that the programs would have run with.
"""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rlframe.convert import SOURCES, convert_file
from rlframe.convert.report import report
from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.recipe.schema import Recipe
from tests.convert.page import PAGE, whole

FOLDER = Path(__file__).parent
FILES = sorted(path for name in SOURCES for path in (FOLDER / name).iterdir())
TRL = "from trl import PPOConfig\nconfig = PPOConfig({})\n"
OPENRLHF = (
    "python3 -m openrlhf.cli.train_ppo_ray --pretrain a/b --reward_pretrain a/r "
    "--prompt_data a/p {}\n"
)
LLAMA = (
    "stage: ppo\nmodel_name_or_path: a/b\nreward_model: a/r\nreward_model_type: full\n"
    "dataset: p\n{}\n"
)


def converted(text, **options):
    """(the recipe as data, the conversion) of the text of a file."""
    found = convert_file(text, "file", **options)
    return YAML(typ="safe", pure=True).load(found.text), found


def at(recipe, key):
    """A value by its dotted key; None if the recipe leaves it out."""
    for part in key.split("."):
        recipe = recipe.get(part) if isinstance(recipe, dict) else None
    return recipe


def outcomes(found):
    """Option -> what became of it."""
    return {row.option.name: row.outcome for row in found.rows}


def named(path):
    """(name, line) of each option of a file, found by other means than the converter's."""
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines, 1):
        code = line.split(" #")[0]
        if code.lstrip().startswith("#"):
            continue
        if path.suffix == ".sh":
            code = code.replace("deepspeed --module $training_commands", "")  # another command
            found = re.findall(r"(?:^|[\s(])--([A-Za-z][\w.]*(?:-[\w-]+)*)", code)
        elif path.suffix == ".yaml":
            found = re.findall(r"^(\w+):", code)
        else:
            inside = re.sub(r"(\"[^\"]*\")", "''", code)
            found = re.findall(r"(?<![\w.])(\w+)=(?!=)", inside) if "def " not in code else []
            found += re.findall(r"^\s+\"(\w+)\":", code)
        yield from ((name, number) for name in found)


def test_there_are_ten_files_of_each_program():
    for name in SOURCES:
        assert len([path for path in FILES if path.parent.name == name]) >= 10


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_file_is_recognised_and_its_recipe_is_valid(path, tmp_path):
    found = convert_file(path.read_text(), str(path))
    assert found.source.name == path.parent.name
    assert found.refused == []
    assert found.unknown == []
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(found.text)
    try:
        load_recipe(recipe)
    except RecipeError as error:
        problems = error.problems
    else:
        problems = ()
    assert {problem.path[2] for problem in problems} <= {"path"}  # of data that is on no disk


NOT_OPTIONS = {"args", "processing_class", "model", "ref_model", "reward_model", "value_model",
               "train_dataset", "dataset", "padding_side"}  # fmt: skip
"""What scripts pass to PPOTrainer and the tokenizer: models and data are found where they are made."""


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_option_of_a_file_is_in_the_report_with_its_line(path):
    text = report(convert_file(path.read_text(), str(path)), path.name)
    entries = re.findall(r"^  line (\d+): (.*)$", text, re.MULTILINE)
    expected = [
        (name, line)
        for name, line in named(path)
        if path.suffix != ".txt" or name not in NOT_OPTIONS
    ]
    assert expected or path.name == "script_defaults.py.txt"
    for name, line in expected:
        assert any(int(n) == line and name in shown for n, shown in entries), (name, line)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_entry_says_what_became_of_the_option(path):
    found = convert_file(path.read_text(), str(path))
    for row in [*found.rows, *found.assumed]:
        assert len(row.message) > 3, row
    for row in found.rows:
        if row.outcome == "converted":
            assert " ".join(row.option.text.split()) in found.text


def batches(text, processes=1):
    recipe, _ = converted(text, processes=processes)
    keys = ("rollout.prompts_per_update", "ppo.minibatches", "ppo.updates", "ppo.epochs")
    return tuple(at(recipe, key) for key in keys)


@pytest.mark.parametrize(
    ("options", "processes", "expected"),
    [
        # per device * accumulation * processes; episodes / batch, rounded up; 1 and 4 are the defaults
        ("per_device_train_batch_size=64, total_episodes=10000", 1, (None, None, 157, None)),
        ("per_device_train_batch_size=1, gradient_accumulation_steps=16, total_episodes=10000", 8,
         (128, None, 79, None)),
        ("per_device_train_batch_size=4, gradient_accumulation_steps=8, num_mini_batches=4, "
         "total_episodes=3200, num_ppo_epochs=1", 1, (32, 4, 100, 1)),
        ("total_episodes=16", 1, (8, None, 2, None)),
        # up to 0.11: batch_size is of a process, and a step takes mini_batch_size * accumulation
        ("batch_size=256, mini_batch_size=16, gradient_accumulation_steps=4, steps=20000", 1,
         (256, 4, 79, None)),
        ("batch_size=64, mini_batch_size=8, ppo_epochs=2, steps=51200", 2, (128, 8, 400, 2)),
        ("batch_size=128, steps=128, init_kl_coef=0.1", 1, (128, None, 1, None)),
    ],
)  # fmt: skip
def test_batches_of_trl(options, processes, expected):
    assert batches(TRL.format(options), processes) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # prompts; prompts * samples / train_batch_size; episodes * (max_samples // prompts); epochs
        ("--rollout_batch_size 1024 --train_batch_size 128 --max_samples 100000 --max_epochs 1",
         (1024, 8, 97, 1)),
        ("--rollout_batch_size 128 --n_samples_per_prompt 8 --train_batch_size 128 --max_samples 12800 "
         "--num_episodes 2", (128, 8, 200, 1)),
        ("--rollout_batch_size 128 --n_samples_per_prompt 8 --train_batch_size 1024 --max_samples 128 "
         "--max_epochs 4", (128, None, 1, None)),
        ("--rollout_batch_size 100 --train_batch_size 30 --max_samples 1000", (100, 3, 10, 1)),
        ("--max_samples 2048", (1024, 8, 2, 1)),
        ("--rollout.batch_size 32 --train.batch_size 16 --data.max_samples 320", (32, 2, 10, 1)),
    ],
)  # fmt: skip
def test_batches_of_openrlhf(options, expected):
    assert batches(OPENRLHF.format(options)) == expected


@pytest.mark.parametrize(
    ("options", "processes", "expected"),
    [
        # per device * accumulation * buffer * processes; buffer; ceil(epochs * (rows // batch))
        ("per_device_train_batch_size: 1\ngradient_accumulation_steps: 8\nmax_samples: 1000", 1,
         (8, None, 375, None)),
        ("per_device_train_batch_size: 2\ngradient_accumulation_steps: 4\nppo_buffer_size: 4\n"
         "max_samples: 1000\nppo_epochs: 2", 2, (None, 4, 45, 2)),
        ("per_device_train_batch_size: 5\nmax_samples: 100\nnum_train_epochs: 1.5", 1,
         (5, None, 30, None)),
        ("max_steps: 200", 1, (8, None, 200, None)),
    ],
)  # fmt: skip
def test_batches_of_llamafactory(options, processes, expected):
    assert batches(LLAMA.format(options), processes) == expected


def test_the_command_says_how_many_processes_there_were():
    text = "accelerate launch --num_processes {} ppo.py --sft_model_path a/b --total_episodes 320\n"
    assert batches(text.format(4), processes=1)[0] == 32
    assert batches(text.replace("--num_processes {} ", ""), processes=2)[0] == 16


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("init_kl_coef=0.1", {"type": "adaptive", "initial": 0.1, "target": 6.0}),
        ("init_kl_coef=0.1, target=4, horizon=500",
         {"type": "adaptive", "initial": 0.1, "target": 4, "horizon": 500}),
        ("init_kl_coef=0.3, adap_kl_ctrl=False", {"type": "fixed", "coefficient": 0.3}),
        ("kl_coef=0.02", {"type": "fixed", "coefficient": 0.02}),
        ("", {"type": "fixed", "coefficient": 0.05}),
    ],
)  # fmt: skip
def test_the_kl_controller_of_each_version_of_trl(options, expected):
    recipe, _ = converted(TRL.format(options))
    assert at(recipe, "kl.controller") == expected


def test_the_kl_target_of_openrlhf_is_per_token():
    recipe, found = converted(OPENRLHF.format("--kl_target 0.1 --init_kl_coef 0.02"))
    expected = {"type": "adaptive", "initial": 0.02, "target": 0.1, "unit": "nats_per_token"}
    assert at(recipe, "kl.controller") == expected
    assert "mean per token" in report(found, "file")


@pytest.mark.parametrize(
    ("estimator", "advantages", "whiten"),
    [
        ("gae", {"lam": 1.0}, None),
        ("reinforce", {"type": "reinforce_plus_plus"}, None),
        ("rloo", {"type": "rloo"}, True),
        ("reinforce_baseline", {"type": "group_relative", "divide_by_std": False}, True),
        ("group_norm", {"type": "group_relative"}, None),
        ("dr_grpo", {"type": "group_relative", "divide_by_std": False}, None),
    ],
)
def test_advantage_estimators_of_openrlhf(estimator, advantages, whiten):
    options = (
        f"--advantage_estimator {estimator} --n_samples_per_prompt 4 --critic_learning_rate 1e-5"
    )
    recipe, found = converted(OPENRLHF.format(options))
    assert found.refused == []
    assert at(recipe, "algorithm.advantages") == advantages
    assert at(recipe, "algorithm.whiten_advantages") is whiten
    assert (at(recipe, "model.critic") is not None) == (estimator == "gae")
    unread = outcomes(found)["critic_learning_rate"]
    assert unread == ("converted" if estimator == "gae" else "none")


def test_a_combination_that_rlframe_refuses_is_said():
    _, found = converted(OPENRLHF.format("--advantage_estimator rloo"))  # one sample per prompt
    assert any("samples_per_prompt" in message for message in found.refused)


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        (TRL.format("missing_eos_penalty=2.5"), "rewards.finished",
         {"type": "eos_penalty", "penalty": 2.5}),
        (TRL.format("response_length=7"), "rollout.max_new_tokens", 7),
        (TRL.format(""), "rollout.temperature", 0.7),
        (TRL.format("temperature=1.0"), "rollout.temperature", None),
        (TRL.format("kl_estimator='k3'"), "kl.estimator", "k3"),
        (TRL.format("cliprange=0.1, cliprange_value=0.3, vf_coef=0.5"), "algorithm",
         {"policy_loss": {"clip": 0.1}, "value_loss": {"clip": 0.3, "coefficient": 0.5}}),
        (TRL.format("gamma=0.9, lam=0.8, whiten_rewards=True"), "algorithm",
         {"advantages": {"gamma": 0.9, "lam": 0.8}, "whiten_rewards": True}),
        (TRL.format("init_kl_coef=0.1, kl_penalty='mse'"), "kl.estimator", "k2"),
        (TRL.format("init_kl_coef=0.1, use_score_scaling=True, score_clip=5.0"),
         "rewards.score.transforms", [{"type": "running_scale"}, {"type": "clip", "limit": 5.0}]),
        (TRL.format("total_episodes=800, warmup_ratio=0.03"), "ppo.warmup_updates", 3),
        (TRL.format("init_kl_coef=0.1"), "model.critic", {"shared": True}),
        (OPENRLHF.format("--use_kl_loss --kl_estimator k3"), "kl.placement", "loss"),
        (OPENRLHF.format("--eps_clip_low_high 0.2 0.27"), "algorithm.policy_loss",
         {"clip_high": 0.27}),
        (OPENRLHF.format("--policy_loss_type gspo --eps_clip_low_high 3e-4 4e-4"),
         "algorithm.reduction", "sequence"),
        (OPENRLHF.format("--lora_rank 8 --target_modules q_proj v_proj"), "model.lora",
         {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}),
        (OPENRLHF.format("--zero_stage 3 --adam_offload"), "runtime",
         {"strategy": "deepspeed", "zero_stage": 3, "offload": "optimizer"}),
        (OPENRLHF.format("--enable_ema --ema_beta 0.99"), "ppo.ema", 0.99),
        (OPENRLHF.format("--stop_properly_penalty_coef 0.0"), "rewards.finished",
         {"type": "eos_penalty", "mode": "replace", "penalty": 0.0}),
        (OPENRLHF.format("--entropy_loss_coef 0.01"), "losses", {"entropy": {"type": "entropy_bonus"}}),
        (OPENRLHF.format("--pretrain_data a/t --ptx_coef 0.2"), "losses.ptx",
         {"type": "ptx", "data": "pretrain", "gamma": 0.2, "examples_per_step": 128}),
        (OPENRLHF.format("--pretrain_data json@t.jsonl"), "losses.ptx.gamma", 0.05),
        (OPENRLHF.format("--reward_clip_range -5 5"), "rewards.score.transforms",
         [{"type": "clip", "limit": 5.0}]),
        (OPENRLHF.format("--input_key q --input_template 'Q: {} {x}'").replace("{} {x}", "{}"),
         "prompts.template", "Q: {q}"),
        (LLAMA.format("ppo_score_norm: true"), "rewards.score.transforms",
         [{"type": "running_standardize"}]),
        (LLAMA.format("ppo_target: 3.0"), "kl.controller",
         {"type": "adaptive", "target": 3.0, "initial": 0.2}),
        (LLAMA.format(""), "rollout",
         {"prompts_per_update": 8, "max_new_tokens": 1024, "temperature": 0.95, "top_k": 50,
          "top_p": 0.7}),
        (LLAMA.format("top_k: 0\ntop_p: 1.0"), "rollout.top_k", None),
        (LLAMA.format("lora_rank: 16"), "model.lora", {}),
        (LLAMA.format("lora_rank: 4"), "model.lora", {"rank": 4, "alpha": 8}),
        (LLAMA.format("finetuning_type: full"), "model.lora", None),
        (LLAMA.format("cutoff_len: 77"), "prompts.max_tokens", 77),
    ],
)  # fmt: skip
def test_what_an_option_becomes(text, key, expected):
    recipe, found = converted(text)
    assert found.unknown == []
    assert found.refused == []
    assert at(recipe, key) == expected


@pytest.mark.parametrize(
    ("text", "option", "words"),
    [
        (OPENRLHF.format("--ptx_coef 0.05"), "ptx_coef", "nothing reads it"),
        (
            OPENRLHF.format("--freezing_actor_steps 10"),
            "freezing_actor_steps",
            "never trains alone",
        ),
        (OPENRLHF.format("--normalize_reward"), "normalize_reward", "running_standardize"),
        (OPENRLHF.format("--lora_dropout 0.1"), "lora_dropout", "ratio of new to old"),
        (LLAMA.replace("full", "api").format(""), "reward_model", "server"),
        (LLAMA.replace("full", "lora").format(""), "reward_model_type", "merge_and_unload"),
        (LLAMA.format("finetuning_type: freeze"), "finetuning_type", "freeze"),
        (TRL.format("num_train_epochs=3"), "num_train_epochs", "ppo.updates"),
        (TRL.format("init_kl_coef=0.1, early_stopping=True"), "early_stopping", "stop_approx_kl"),
    ],
)
def test_what_has_no_counterpart_says_what_to_do(text, option, words):
    _, found = converted(text)
    (row,) = [row for row in found.rows if row.option.name == option]
    assert row.outcome == "none"
    assert words in row.message


def test_a_neutral_value_is_the_same_as_rlframe():
    _, found = converted(
        OPENRLHF.format("--lora_dropout 0 --freezing_actor_steps -1 --aux_loss_coef 0")
    )
    for name in ("lora_dropout", "freezing_actor_steps", "aux_loss_coef"):
        assert outcomes(found)[name] == "default"


def test_an_option_that_is_given_twice_is_reported_twice():
    recipe, found = converted(OPENRLHF.format("--seed 1 --seed 2"))
    assert at(recipe, "seed") == 2
    messages = [row.message for row in found.rows if row.option.name == "seed"]
    assert "the last one counts" in messages[0]
    assert messages[1].startswith("seed: 2")


def test_names_of_a_script_are_followed_and_nothing_of_it_is_run(tmp_path):
    trap = f"open({str(tmp_path / 'trap')!r}, 'w')\n"
    text = trap + "LR = 2e-6\nrate = LR\n" + TRL.format("learning_rate=rate")
    recipe, _ = converted(text)
    assert at(recipe, "ppo.learning_rate") == 2e-6
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("value", ["args.lr", "1e-6 * 2", "twice", "float('1')"])
def test_a_value_that_a_script_computes_is_not_guessed(value):
    text = "twice = 1\ntwice = 2\n" + TRL.format(f"learning_rate={value}, temperature=0.9")
    recipe, found = converted(text)
    (row,) = found.unknown
    assert "set ppo.learning_rate in the recipe" in row.message
    assert "Not understood" in found.text
    assert at(recipe, "rollout.temperature") == 0.9


def test_variables_and_arrays_of_a_shell_script_are_filled_in():
    text = "M=a/b\nARGS=(\n --seed 5  # remark\n)\n" + OPENRLHF.format(
        "${ARGS[@]} --critic_pretrain $M"
    )
    recipe, found = converted(text + "\n")
    assert at(recipe, "seed") == 5
    assert at(recipe, "model.critic.initial") is None  # the policy, which is the default
    assert at(recipe, "model.critic.head") == "normal"
    assert found.rows[-1].option.text == "--critic_pretrain a/b"


def test_a_variable_that_the_script_does_not_set_is_not_guessed():
    _, found = converted(OPENRLHF.format("--seed $SEED --save_path $OUT"))
    assert [row.option.name for row in found.unknown] == ["seed"]
    assert outcomes(found)["save_path"] == "none"


def test_keys_and_tokens_are_not_shown():
    for text in (
        OPENRLHF.format("--use_wandb s3cr3tkey"),
        LLAMA.format("hf_hub_token: s3cr3tkey"),
        TRL.format("hub_token='s3cr3tkey'"),
    ):
        _, found = converted(text)
        assert "***" in report(found, "file")
        assert "s3cr3tkey" not in report(found, "file") + found.text


def test_text_of_a_file_is_data():
    recipe, found = converted(OPENRLHF.format("--critic_pretrain 'x\x1b[31m${HOME}' --seed 1"))
    assert "\x1b" not in found.text
    recipe, found = converted(LLAMA.format('default_system: "say ${env:HOME}\\n# seed: 3"'))
    assert at(recipe, "prompts.system") == "say $${env:HOME}\n# seed: 3"
    assert at(recipe, "seed") == 42


def test_every_key_of_the_tables_begins_with_a_section_of_the_recipe():
    for source in SOURCES.values():
        for table in source.tables.values():
            for name, option in table.items():
                for key in option.to:
                    assert key.split(".")[0] in Recipe.model_fields, (name, key)
                assert option.to or option.remark, name


def test_the_tables_of_the_page_are_those_of_the_converter():
    assert PAGE.read_text() == whole(), "run python -m tests.convert.page"
