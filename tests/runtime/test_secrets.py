"""Secrets are hidden, control characters are spelled out, nothing else changes."""

from hypothesis import given
from hypothesis import strategies as st

from tea_jax.runtime.secrets import printable, public_text, public_url, public_values


def test_secrets_of_urls_are_hidden():
  assert public_url("https://host:80/a") == "https://host:80/a"
  shown = public_url("https://me:PW@host/a?key=K&n=1#F")
  assert shown == "https://<hidden>@host/a?key=<hidden>&n=<hidden>"
  assert public_text("see https://me:PW@host/a, or not") == "see https://<hidden>@host/a, or not"


def test_options_under_telling_names_are_hidden_but_references_stay():
  options = {
    "http://u:PW@h/": {"headers": {"X": "S", "Authorization": "Bearer ${T}"}, "timeout": 3.0},
    "api_key": "S",
    "columns": ["answer"],
  }
  assert public_values(options) == {
    "http://<hidden>@h/": {
      "headers": {"X": "<hidden>", "Authorization": "Bearer ${T}"},
      "timeout": 3.0,
    },
    "api_key": "<hidden>",
    "columns": ["answer"],
  }


@given(st.text())
def test_printable_text_has_no_control_characters(text):
  shown = printable(text)
  assert all(c in "\n\t" or c.isprintable() for c in shown)
  assert printable(shown) == shown
