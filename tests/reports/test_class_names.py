"""Names of classes in figures."""

from deblur_mae_jax.reports import class_names


def test_long_names_stay_different():
    shown = class_names.shown(["High-grade_Serous_Cystadenoma", "High-grade_Serous_Carcinoma", "Cyst"])
    assert len(set(shown)) == 3 and shown[2] == "Cyst" and all(len(name) <= class_names.LENGTH for name in shown)
    alike = class_names.shown([f"carcinoma of organ {i} of them" for i in range(3)])
    assert len(set(alike)) == 3 and alike[0].startswith("1 ")


def test_a_dollar_is_no_formula_and_letters_without_a_font_are_numbered():
    assert class_names.shown(["$x^{$", "b"]) == [r"\$x^{\$", "b"]
    assert class_names.shown(["良性", "恶性"]) == ["1", "2"] and class_names.note(["良性", "恶性"])
    assert class_names.shown([str(i + 5) for i in range(20)])[:2] == ["1", "2"] and not class_names.note(["a", "b"])
