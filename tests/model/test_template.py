"""Chat templates: the same text as transformers makes, and a refusal for each way to misuse one."""

import time

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lithe.errors import FormatError, UsageError
from lithe.model.template import ChatTemplate

CHATML = """{%- if messages[0].role != 'system' %}<|im_start|>system
You help.<|im_end|>
{% endif %}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3 = """{{- bos_token }}
{%- if tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim %}
    {{- content + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% else %}{{ eos_token }}{% endif %}"""
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}
        {%- else %}{{- '[INST] ' ~ message['content'] ~ '[/INST]' }}{%- endif %}
    {%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}{%- endif %}
{%- endfor %}"""
GEMMA = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""
RICH = """{% macro call(tool, depth=0) %}{{ '  ' * depth }}<{{ tool.name | upper }} {{ tool | tojson }}>{% endmacro %}
{% set ns = namespace(seen=0, last=none) %}
{% for m in messages if m.role in ['user', 'assistant'] %}
{% if m.content is string and m.content.startswith('skip') %}{% continue %}{% endif %}
{% set ns.seen = ns.seen + 1 %}{% set ns.last = m.content.split(' ')[-1].strip() %}
{{ loop.index }}/{{ loop.length }} {{ m.role ~ ': ' ~ (m.content | replace('a', 'A') | indent(2)) }}
{% if loop.last %}{% generation %}last{% endgeneration %}{% break %}{% endif %}
{% endfor %}
{% for k, v in {'x': 1, 'y': [1, 2]}.items() %}{{ k }}={{ v }};{% endfor %}
{% for tool in tools or [] %}{{ call(tool, depth=loop.index0) }}{% endfor %}
{{ messages | map(attribute='role') | unique | join(',') }} {{ ns.seen }} {{ ns.last }}
{{ (messages | selectattr('role', 'equalto', 'user') | list) | length }} {{ '%03d' | format(7) }}
{{ missing.x if missing is defined else 'none' }} {{ messages[::-1][0].role }}
{{ 'é' | tojson }} {{ range(3) | list }} {{ (1, 'b') }} {{ [1] + [2] }} {{ dict(a=1).a }} {{ 7 // 2 ** 1 }} {{ "-" * 3 }}"""
CHAT = [{"role": "user", "content": " Say a hi\nto <all>  "}, {"role": "assistant", "content": "Hi, änd 你好 😀"},
        {"role": "user", "content": "Again"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]
TOOLS = [{"name": "sum", "parameters": {"a": [1, None, True, 1.5], "b": "ü<>&'"}}]


@pytest.mark.parametrize("source", [CHATML, LLAMA3, MISTRAL, GEMMA, RICH], ids=["chatml", "llama3", "mistral", "gemma", "rich"])
@pytest.mark.parametrize("messages", [CHAT, SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": True, "tools": TOOLS}], ids=["bare", "prompted"])
def test_same_text_as_transformers(source, messages, more):
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>",
                                     chat_template=source)
    expected = theirs.apply_chat_template(messages, tokenize=False, **more)
    variables = {"add_generation_prompt": False, "tools": None, "documents": None, **more, "bos_token": "<s>",
                 "eos_token": "</s>"}
    assert ChatTemplate(source).render(messages, **variables) == expected


HOSTILE = {
    "class": "{{ ''.__class__ }}", "class-item": "{{ ''['__class__'] }}", "mro": "{{ dict.mro() }}",
    "globals": "{{ raise_exception.__globals__ }}", "attr-filter": "{{ '' | attr('__class__') }}",
    "map-attribute": "{{ [''] | map(attribute='__class__') | list }}", "init": "{{ namespace.__init__ }}",
    "format": "{{ '{0.__class__}'.format('') }}", "format-map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "cycler": "{{ cycler.__init__.__globals__ }}", "self": "{{ self.__init__.__globals__ }}",
    "loop": "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}", "mutate": "{{ messages.append(1) }}",
    "range": "{{ range(10**9) | list }}", "range-big": "{% for i in range(999999999) %}{% endfor %}",
    "nested": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursive-loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "branching-loop": "{% for x in [range(40)|list] recursive %}{{ loop([x[1:]]) if x }}{{ loop([x[1:]]) if x }}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching-macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "times": "{{ 'x' * 10**10 }}", "times-turned": "{{ 10**10 * 'x' }}", "times-list": "{{ [1] * 10**9 }}",
    "times-const": "{% set x = 'x' * 9999999999 %}", "power": "{{ 9**(9**9) }}", "power-float": "{{ 2.0**99999 }}",
    "squares": "{% set ns = namespace(x=10**60) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling-plus": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling-set": "{% set a %}" + "x" * 99 + "{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "nesting": "{% set a = [1, 2] %}" + "{% set a = [a, a] %}" * 60 + "{{ a == a }}",
    "nesting-dict": "{% set a = {'a': 1} %}" + "{% set a = {'x': a, 'y': a} %}" * 60 + "{{ a | string }}",
    "nesting-dict-call": "{% set a = 'x' %}" + "{% set a = dict(x=a, y=a) %}" * 60,
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "replace-method": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "join": "{{ range(99999) | join('x' * 99999) }}", "join-method": "{{ ('x' * 99999).join(['a'] * 99999) }}",
    "indent": "{{ ('a\n' * 999999) | indent(256) }}", "center": "{{ 'a'.center(10**10) }}",
    "center-filter": "{{ 'a' | center(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}", "tabs": "{{ '\t'.expandtabs(10**10) }}", "percent": "{{ '%9999999999d' % 1 }}",
    "percent-star": "{{ '%*d' % (10**9, 1) }}", "format-filter": "{{ '%9999999999d' | format(1) }}",
    "json-indent": "{{ [1] | tojson(indent=10**9) }}", "lipsum": "{{ lipsum(n=10**6) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "output": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "include": "{% include 'x' %}", "import": "{% import 'x' as y %}", "from": "{% from 'x' import y %}",
    "extends": "{% extends 'x' %}",
    "syntax": "{% if %}", "unclosed": "{% for x in y %}", "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep-blocks": "{% if 1 %}" * 300 + "{% endif %}" * 300, "huge": "x" * 500_000, "unknown-filter": "{{ 1 | nothing }}",
    "raise": "{{ raise_exception('no') }}", "undefined-call": "{{ nothing() }}", "zero": "{{ 1 // 0 }}",
    "bytes": "{{ 'a'.encode() }}",
    "block-recursion": "{% block a %}{{ self.a() }}{% endblock %}", "sum-lists": "{{ [[1]] | sum(start=[]) }}",
    "namespace-dunder": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__ }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_are_refused(source):
    start = time.monotonic()
    with pytest.raises(FormatError):
        ChatTemplate(source).render(CHAT, tools=None)
    assert time.monotonic() - start < 10


def test_many_long_messages_are_fine():
    chat = [{"role": ("user", "assistant")[i % 2], "content": "word " * 400} for i in range(1000)]
    assert len(ChatTemplate(MISTRAL).render(chat, bos_token="<s>", eos_token="</s>")) > 2_000_000


def test_messages_must_be_plain():
    with pytest.raises(UsageError):
        ChatTemplate(CHATML).render([{"role": "user", "content": object()}])


def test_a_template_may_be_used_again():
    template = ChatTemplate("{% for i in range(50000) %}x{% endfor %}")
    assert all(len(template.render([])) == 50_000 for _ in range(30))
