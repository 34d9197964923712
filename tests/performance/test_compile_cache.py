"""Where compiled programs are kept."""

import jax
import pytest

from deblur_mae_jax.performance import compile_cache


@pytest.fixture
def nothing_set():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_folder_keeps_programs_of_half_a_second(nothing_set, tmp_path):
    compile_cache.use("")
    assert jax.config.jax_compilation_cache_dir is None
    compile_cache.use(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert jax.config.jax_persistent_cache_min_compile_time_secs < 0.5


def test_the_users_own_folder_stays(nothing_set, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "/somewhere")
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    compile_cache.use(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == "/somewhere"
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before


def test_an_address_is_left_to_jax(nothing_set):
    compile_cache.use("gs://bucket/cache")
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/cache"
