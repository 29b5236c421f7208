import subprocess
import sys

import tea_jax


def test_every_public_name_exists_and_is_documented():
  for name in tea_jax.__all__:
    assert getattr(tea_jax, name).__doc__, name


def test_unknown_name_is_an_attribute_error():
  assert not hasattr(tea_jax, "no_such_name")


def test_importing_the_package_loads_no_model_code():
  code = "import sys, tea_jax; print(any(m.split('.')[0] in ('flax', 'transformers', 'optax', "
  code += "'orbax') for m in sys.modules))"
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert found.stdout.strip() == "False"
