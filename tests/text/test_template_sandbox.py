"""Chat templates render what transformers renders, in a sandbox that is as strict, with limits of time and memory."""

from __future__ import annotations

import re
import resource
import signal
import threading
from datetime import datetime
from time import process_time
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from transformers.utils.chat_template_utils import render_jinja_template

from specgen.core.errors import LoadError
from specgen.text import template_sandbox
from specgen.text.chat_template import ChatTemplate, Message
from specgen.text.template_sandbox import render_template
from tests.toys import toy_tokenizer

HELLO = [Message("user", "Hello")]
MESSAGES = [
    {"role": "system", "content": 'Be brief: <b> & "é" 日\n'},
    {"role": "user", "content": " What's new?\n"},
    {"role": "assistant", "content": "Nothing.</think>"},
    {"role": "user", "content": "{{ 7 * 7 }} {% raw %}"},
]
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}

TEMPLATES = {
    "plain": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content }}{{ eos_token }}{% endfor %}",
    "blocks on lines": (
        "{% for m in messages %}\n  {% if m.role == 'user' %}\nU: {{ m.content }}\n  {% endif %}\n{% endfor %}\nend\n"
    ),
    "prompt": "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "generation with controls": "{%- generation -%}  a  {%- endgeneration -%}  b",
    "scope of generation": "{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a is defined }}",
    "namespace in generation": (
        "{% set n = namespace(a=1) %}{% generation %}{% set n.a = 2 %}{% endgeneration %}{{ n.a }}"
    ),
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2, ensure_ascii=True) }}",
    "tojson sorted": "{{ {'b': 1, 'a': ['<', '&', 'é']} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "loop controls": (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role }}"
        "{% if loop.index0 == 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "date": "{{ strftime_now('%Y') }}",
    "namespace": "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
    "dict": "{{ dict(a=1, b=2).items() | list }}",
    "macro": "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[0].role) }}",
    "filters": "{{ messages[1].content | trim | upper }}{{ messages | length }}{{ (messages | last).role }}",
    "methods": "{{ messages[1].content.strip().split(' ') }}{{ messages[2].content.split('</think>')[-1] == '' }}",
    "tests": "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ a is defined }}{{ enable_thinking }}",
    "slices": "{% for m in messages[1:] %}{{ m.role }}{% endfor %}{{ messages[::-1][0].role }}",
    "selectattr": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}",
    "undefined": "{{ unknown }}|{{ messages[0].name }}|{{ messages[0].get('name', 'x') }}",
}


def library_text(template: str, **options: Any) -> str:
    """Returns what transformers renders."""
    rendered, _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=True, **{**VARIABLES, **options}
    )
    text: str = rendered[0]
    return text


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_what_transformers_renders(name: str) -> None:
    assert render_template(TEMPLATES[name], MESSAGES, VARIABLES) == library_text(TEMPLATES[name])


def test_the_date_is_todays() -> None:
    expected = {datetime.now().strftime("%d %b %Y")}
    text = render_template("{{ strftime_now('%d %b %Y') }}", MESSAGES, {})

    assert text in expected | {datetime.now().strftime("%d %b %Y")}


def test_an_exception_of_a_template_has_its_message() -> None:
    with pytest.raises(TemplateError, match=re.escape("roles must alternate")):
        render_template("{{ raise_exception('roles must alternate') }}", MESSAGES, {})


UNSAFE = [
    "{{ messages.__class__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ dict.__subclasses__() }}",
    "{{ ('%s' | format).__init__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{% set n = namespace(__class__=1) %}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
]


@pytest.mark.parametrize("template", UNSAFE)
def test_unsafe_code_gets_as_far_as_in_transformers(template: str) -> None:
    def outcome(render: Any) -> str:
        try:
            return str(render())
        except Exception as error:  # noqa: BLE001  whatever the sandbox raises
            return type(error).__name__

    ours = outcome(lambda: render_template(template, MESSAGES, {}))

    # Versions of transformers differ in what they refuse and how; what they refuse must be refused here.
    assert ours in ("SecurityError", "UndefinedError") or ours == outcome(lambda: library_text(template))
    assert ours in ("", "SecurityError", "UndefinedError", "TypeError")


def test_a_template_does_not_change_the_callers_messages() -> None:
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(SecurityError):
        render_template("{% set _ = messages[0].update({'content': 'b'}) %}", messages, {})

    assert messages == [{"role": "user", "content": "a"}]


@pytest.mark.fault("F34")
def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.2)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    started = process_time()

    with pytest.raises(LoadError, match=r"0\.2 s"):
        ChatTemplate(endless).encode(toy_tokenizer(), HELLO)

    assert process_time() - started < 2
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


@pytest.mark.fault("F34")
def test_a_template_that_allocates_too_much_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_EXTRA_BYTES", 64 * 2**20)
    before = resource.getrlimit(resource.RLIMIT_AS)

    with pytest.raises(LoadError):
        ChatTemplate("{{ 'a' * 10 ** 10 }}").encode(toy_tokenizer(), HELLO)

    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert ChatTemplate().encode(toy_tokenizer(), HELLO)


@pytest.mark.fault("F34")
def test_a_template_that_renders_far_more_text_than_its_messages_is_refused() -> None:
    with pytest.raises(LoadError, match="2000000"):
        ChatTemplate("{{ 'a' * 2000000 }}").encode(toy_tokenizer(), HELLO)


@pytest.mark.thorough
def test_a_long_conversation_is_not_refused() -> None:
    assert len(ChatTemplate().encode(toy_tokenizer(), [Message("user", "fox " * 300_000)])) > 300_000


def test_in_another_thread_a_template_is_rendered_without_a_time_limit() -> None:
    results: list[list[int]] = []
    thread = threading.Thread(target=lambda: results.append(ChatTemplate().encode(toy_tokenizer(), HELLO)))
    thread.start()
    thread.join()

    assert results == [ChatTemplate().encode(toy_tokenizer(), HELLO)]
