"""Templates are recognised by what they render, and prompts are built as ids."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from leadline.errors import ConfigError, ContextLengthExceeded, InvalidRequest, TokenizerError
from leadline.tokenizer import TEMPLATES, Message, Tokenizer
from leadline.tokenizer.control import BOS, EOS
from leadline.tokenizer.template import V2, V2_JINJA, V25, V25_JOINED, recognise
from tests.fixtures_tokenizer import V25_JINJA, fuzz_text, make_tiny_tokenizer, official_folder

USER = {"role": "user", "content": "How deep?"}
ANSWER = {"role": "assistant", "content": "Seven fathoms"}


def test_the_official_source_is_v2(official: Tokenizer) -> None:
    config = json.loads((official_folder() / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == V2_JINJA
    assert official.has_chat_template


def test_a_template_is_known_by_what_it_renders() -> None:
    loose = V2_JINJA.replace("{% for", "\n{%- for").replace("{% endfor %}", "{%- endfor %}{# a remark #}")
    assert recognise(loose, BOS, EOS) is V2
    assert recognise(V25_JINJA, BOS, EOS) is V25
    joined = V25_JINJA.replace(
        "{% set ns.system = message['content'] %}",
        r"{% set ns.system = ns.system + ('\n\n' if ns.system else '') + message['content'] %}",
    )
    assert recognise(joined, BOS, EOS) is V25_JOINED


@pytest.mark.parametrize(
    "source",
    [
        "",
        "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        V2_JINJA.replace("'Assistant:'", "'Assistant: '"),
        V2_JINJA.replace("'Assistant:'", "'Assistant:\\n'"),
        V2_JINJA.replace("message['content']", "message['content'] | trim"),
        V2_JINJA.replace("+ eos_token", ""),
        V2_JINJA.replace("{{ bos_token }}", ""),
        V25_JINJA.replace("{{ '<｜Assistant｜>' }}{% endif %}", "{{ '<｜Assistant｜><think>\\n' }}{% endif %}"),
        V25_JINJA.replace("message['content'] + '<｜end", "message['content'].split('</think>')[-1] + '<｜end"),
        "{{ raise_exception('roles must alternate') }}",
        "{% for x in range(10 ** 12) %}{% endfor %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ 1 / 0 }}",
        "{% if",
    ],
)
def test_any_other_template_is_an_error(tmp_path: Path, source: str) -> None:
    make_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert not tokenizer.has_chat_template
    assert tokenizer.template_name is None
    assert tokenizer.encode_prompt("text still completes").ids
    with pytest.raises(TokenizerError, match="unknown chat template; known are deepseek-v2, "):
        tokenizer.render([USER])


def test_a_folder_without_template_completes_and_can_be_given_one(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    expected = Tokenizer.from_folder(tmp_path).render([USER])
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TokenizerError, match="no chat template"):
        Tokenizer.from_folder(tmp_path).render([USER])
    assert Tokenizer.from_folder(tmp_path, chat_template="deepseek-v2").render([USER]) == expected
    with pytest.raises(ConfigError, match="unknown chat template 'v9'"):
        Tokenizer.from_folder(tmp_path, chat_template="v9")
    with pytest.raises(TokenizerError, match="no control token '<｜User｜>'"):
        Tokenizer.from_folder(tmp_path, chat_template="deepseek-v2.5").render([USER])


def test_the_template_may_be_one_of_several_or_a_file(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    named = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": V2_JINJA}]
    path.write_text(json.dumps(dict(config, chat_template=named)), encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).template_name == "deepseek-v2"
    path.write_text(json.dumps(dict(config, chat_template="other")), encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text(V2_JINJA, encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).template_name == "deepseek-v2"


def test_another_package_can_bring_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[leadline.templates]\nshout = shouting:SHOUT\n", encoding="utf-8")
    (tmp_path / "shouting.py").write_text(
        "from leadline.tokenizer import ChatTemplate\n"
        "SHOUT = ChatTemplate('shout', ('U:', '!\\n'), 'A:', 'A:', system_after='\\n')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shouting", raising=False)
    assert TEMPLATES.names() == ["deepseek-v2", "deepseek-v2.5", "deepseek-v2.5-joined", "shout"]
    make_tiny_tokenizer(tmp_path)
    source = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'U:' + m.content + '!\n' }}"
        "{% elif m.role == 'assistant' %}{{ 'A:' + m.content + eos_token }}{% else %}{{ m.content + '\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.template_name == "shout"
    assert not tokenizer.answer_opens_with_space
    assert tokenizer.decode(tokenizer.render([USER])) == "U:How deep?!\nA:"


def test_continuing_leaves_the_answer_open(official: Tokenizer, v25: Tokenizer) -> None:
    for tokenizer, mark in ((official, "Assistant: "), (v25, "<｜Assistant｜>")):
        ids = tokenizer.render([USER, ANSWER], continue_final=True)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        assert text.endswith(mark + "Seven fathoms")
        assert ids[:-1] != tokenizer.render([USER, ANSWER])[:-1]
        closed = tokenizer.render([USER, ANSWER], add_generation_prompt=False)
        assert closed == (*ids, tokenizer.eos_id)


def test_continuing_an_empty_answer_is_asking_for_one(official: Tokenizer) -> None:
    empty = {"role": "assistant", "content": ""}
    assert official.render([USER, empty], continue_final=True) == official.render([USER])


def test_messages_may_be_data_or_mappings(official: Tokenizer) -> None:
    assert official.render([Message("user", "How deep?")]) == official.render([USER])


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "messages must not be empty"),
        ([USER, {"role": "tool", "content": "x"}], r"messages\[1\].role must be one of system, user, assistant"),
        ([{"role": "user"}], r"messages\[0\] must have a role and a content"),
        (["hi"], r"messages\[0\] must have a role and a content"),
        ([{"role": "user", "content": None}], r"messages\[0\].content must be a string"),
        ([{"role": "user", "content": [1]}], r"messages\[0\].content must be a string"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\].role must be"),
        ([{"role": "user", "content": "ab\ud800"}], "lone surrogate at character"),
    ],
)
def test_wrong_messages_are_named(official: Tokenizer, messages: list[dict[str, str]], match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        official.render(messages)


def test_only_an_answer_can_be_continued(official: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="only an assistant message can be continued"):
        official.render([ANSWER, USER], continue_final=True)


def test_a_conversation_past_the_limit_is_refused(official: Tokenizer) -> None:
    count = len(official.render([USER, ANSWER, USER]))
    assert len(official.render([USER, ANSWER, USER], limit=count)) == count
    with pytest.raises(ContextLengthExceeded, match=f"tokens; at most {count - 1} fit"):
        official.render([USER, ANSWER, USER], limit=count - 1)


def test_fill_in_the_middle(official: Tokenizer, v25: Tokenizer, tiny: Tokenizer) -> None:
    assert not official.has_fim
    with pytest.raises(InvalidRequest, match="no fill-in-the-middle tokens"):
        official.fim("a", "b")
    ids = v25.fim("def f(", "):\n    pass<｜fim▁end｜>")
    assert [i for i in ids if i >= 100000] == [100000, 100003, 100002, 100004]
    assert (ids[0], ids[1], ids[-1]) == (100000, 100003, 100004)
    assert v25.decode(ids[1:], skip_special_tokens=False) == (
        "<｜fim▁begin｜>def f(<｜fim▁hole｜>):\n    pass<｜fim▁end｜><｜fim▁end｜>"
    )
    assert tiny.has_fim
    assert tiny.fim("", "") == (0, 3, 2, 4)


def _compare_with_jinja(official: Tokenizer, v25: Tokenizer, seed: int, count: int) -> None:
    """Any conversation decodes to what the Jinja source renders, with the control tokens of the template alone."""
    print(f"seed {seed}")
    random_ = random.Random(seed)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for tokenizer, source in ((official, V2_JINJA), (v25, V25_JINJA)):
        jinja = environment.from_string(source)
        for _ in range(count // 2):
            roles = random_.choices(("system", "user", "assistant"), k=random_.randrange(1, 6))
            messages = [{"role": role, "content": fuzz_text(random_)} for role in roles]
            generate = random_.random() < 0.7
            expected = jinja.render(messages=messages, bos_token=BOS, eos_token=EOS, add_generation_prompt=generate)
            ids = tokenizer.render(messages, add_generation_prompt=generate)
            assert tokenizer.decode(ids, skip_special_tokens=False) == expected.lstrip()
            assert ids.count(tokenizer.bos_id) == 1
            assert ids.count(tokenizer.eos_id) == roles.count("assistant")


def test_generated_conversations(official: Tokenizer, v25: Tokenizer) -> None:
    _compare_with_jinja(official, v25, seed=20240507, count=5_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_generated_conversations(official: Tokenizer, v25: Tokenizer) -> None:
    _compare_with_jinja(official, v25, seed=random.SystemRandom().randrange(2**32), count=100_000)
