"""A template reaches nothing and takes no longer than it may."""

import time

import pytest

from server.chat.sandbox import Renderer, TemplateRefused

HOSTILE = {
    "a long range": "{% for i in range(10 * 1000000) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops over literals": "{% set d = [1,2,3,4,5,6,7,8,9,0] %}" + "{% for a in d %}" * 12 + "{% endfor %}" * 12,
    "a power": "{{ 10 ** 10 ** 10 }}",
    "repeated text": "{{ 'a' * 1000000000 }}",
    "doubling by join": "{% set x = 'a' %}" + "{% set x = x ~ x %}" * 60,
    "doubling by addition": "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "growing by replacement": "{% set n = namespace(x='aa') %}{% for i in range(90) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
    "growing by filter": "{% set n = namespace(x='aa') %}{% for i in range(90) %}{% set n.x = n.x|replace('a', n.x) %}{% endfor %}",
    "lists of lists": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "lists of lists as JSON": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x|tojson }}",
    "padding": "{{ 'a'.center(1000000000) }}",
    "padding by filter": "{{ 'a'|center(1000000000) }}",
    "formatting": "{{ '%1000000000d' % 1 }}",
    "formatting by method": "{{ '{:1000000000}'.format(1) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep source": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "long source": "x" * 10_000_000,
    "the class of a string": "{{ ''.__class__.__mro__ }}",
    "the class of a message": "{{ messages.__class__ }}",
    "an attribute by filter": "{{ messages|map(attribute='__class__')|join }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "a format string": "{{ '{0.__class__}'.format(messages) }}",
    "changing messages": "{{ messages.append(1) }}",
    "an include": "{% include 'x' %}",
    "half a template": "{{ ",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_refused_within_a_second(source: str) -> None:
    began = time.thread_time()
    with pytest.raises(TemplateRefused):
        Renderer(source).render(messages=[{"role": "user", "content": "hi"}])
    assert time.thread_time() - began < 1


def test_what_real_templates_do_is_allowed() -> None:
    source = """{%- macro say(m) -%}{{ m.role|upper }}: {{ m['content'].split('|')[-1]|trim }}{%- endmacro -%}
{%- if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif -%}
{%- set ns = namespace(count=0) -%}
{%- for m in rest if m.content is defined -%}
{%- set ns.count = ns.count + 1 -%}
{{ say(m) }}{{ ', ' if not loop.last }}{% if loop.index0 > 5 %}{% break %}{% endif %}
{%- endfor -%}
{{ ' ' ~ ns.count ~ ' ' ~ {'a': ['é']}|tojson ~ (tools or '') ~ unknown }}{{ strftime_now('%Y')|length }}"""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "old| new "}, {"role": "assistant", "content": "b"}]
    assert Renderer(source).render(messages=messages, tools=None) == 'USER: new, ASSISTANT: b 2 {"a": ["é"]}4'


def test_what_a_template_says_when_it_refuses_is_kept_apart() -> None:
    with pytest.raises(TemplateRefused) as caught:
        Renderer("{{ raise_exception('roles must alternate') }}").render()
    assert caught.value.said == "roles must alternate"
