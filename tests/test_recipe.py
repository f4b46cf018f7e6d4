"""Settings from recipes and key=value: what is taken how, and that every mistake is told, at once, with its place."""

import pytest

from ssl_ft.config import (
    CompareSettings,
    FinetuneSettings,
    IndexSettings,
    PretrainSettings,
    ProbeSettings,
    ReportSettings,
    RunSettings,
    TuneSettings,
)
from ssl_ft.errors import UserError
from ssl_ft.recipe import describe, load_settings, recipe_names


def pretrain(*overrides: str, recipe: str | None = None) -> PretrainSettings:
    return load_settings(PretrainSettings, recipe=recipe, overrides=overrides)


def mistakes(*overrides: str, recipe: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        pretrain(*overrides, recipe=recipe)
    return str(caught.value)


class TestValues:
    def test_a_section_may_be_given_by_its_main_key_and_refined(self):
        settings = pretrain("encoder=resnet10t", "encoder.stem_stride=1", "data=photos/", "views=grey", "optim=sgd")
        assert (settings.encoder.name, settings.encoder.stem_stride) == ("resnet10t", 1)
        assert (settings.data.path, settings.views.recipe, settings.optim.name) == ("photos/", "grey", "sgd")
        assert pretrain("optim.rate=1e-2", "optim={name: lars, momentum: 0.8}").optim.rate == 0.01

    @pytest.mark.parametrize(
        "name", ["2024", "yes", "1e3", "photos: new", "a #b", "[x]", "~/photos", "C:\\x", "*", "null and void"]
    )
    def test_a_text_is_taken_as_it_stands(self, name):
        assert pretrain(f"data={name}", f"out={name}").data.path == name
        assert pretrain(f"out={name}").out == name
        if not name.startswith("["):
            assert load_settings(ReportSettings, recipe=None, overrides=[f"runs={name}"]).runs == (name,)

    def test_quotes_null_and_lists(self):
        assert pretrain("out='a b'").out == "a b"
        assert pretrain("out=null", "data.limit=null").out is None
        assert load_settings(ReportSettings, recipe=None, overrides=["runs=[a, b]"]).runs == ("a", "b")
        probe = load_settings(ProbeSettings, recipe=None, overrides=["labels=[1, 0.5, all]"])
        assert probe.labels == (1, 0.5, "all")
        assert load_settings(ProbeSettings, recipe=None, overrides=["labels=5", "data=x"]).labels == (5,)

    def test_a_recipe_is_refined_and_not_replaced(self, tmp_path):
        (tmp_path / "r.yaml").write_text("encoder: {name: a, stem_stride: 1}\ndata: é\n", encoding="utf-8")
        settings = pretrain("encoder=b", "data.limit=5", recipe=str(tmp_path / "r.yaml"))
        assert (settings.encoder.name, settings.encoder.stem_stride) == ("b", 1)
        assert (settings.data.path, settings.data.limit) == ("é", 5)

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            (
                ["objective=masked", "contrast.temperature=0.3"],
                "temperature belongs to objective=simclr or dcl",
            ),
            (["masked={hidden_share: 0.5}"], "objective=simclr does not read it, leave it out"),
            (["objective=dcl", "joint.form=shared"], "joint.form belongs to objective=joint; objective=dcl does not"),
        ],
    )
    def test_what_the_objective_does_not_read_is_not_taken(self, given, told):
        assert told in mistakes(*given)
        assert told in mistakes(*given, recipe="photos")
        with pytest.raises(UserError, match=r"pretrain\.\w+\.\w+ belongs to pretrain\.objective="):
            load_settings(RunSettings, recipe="photos", overrides=[f"pretrain.{each}" for each in given])

    def test_a_recipe_holds_sections_for_whichever_objective_is_chosen(self):
        switched = pretrain("objective=masked", recipe="small-photos")
        assert (switched.objective, switched.contrast.temperature) == ("masked", 0.2)
        joint = pretrain("objective=joint", "contrast.temperature=0.3", "masked.patch=8", recipe="photos")
        assert (joint.contrast.temperature, joint.masked.patch, joint.masked.hidden_share) == (0.3, 8, 0.6)
        run = load_settings(RunSettings, recipe="photos", overrides=["pretrain.objective=rotation"])
        assert run.pretrain.objective == "rotation"

    @pytest.mark.parametrize("name", recipe_names())
    def test_recipes_that_come_along_are_valid(self, name):
        for cls in (RunSettings, PretrainSettings, CompareSettings, TuneSettings):
            try:
                load_settings(cls, recipe=name, overrides=[])
            except UserError:
                continue
            return
        load_settings(RunSettings, recipe=name, overrides=[])


class TestMistakes:
    def test_all_are_told_at_once_each_with_what_it_got(self):
        text = mistakes(
            "batch_size=0", "contrast.temperature=-1", "objective=byol", "duration=soon", "optim.rate=fast",
            "channels_last=maybe", "seed=1.5", "views.scale=3", "views.ratio=[1]", "data.max_damaged_share=1.5", "fo=1",
        )  # fmt: skip
        assert text.splitlines()[0] == "11 settings are wrong:"
        for line in (
            "batch_size: must be 1 or more (got 0)",
            "contrast.temperature: must be more than 0 (got -1)",
            "objective: must be 'simclr', 'dcl', 'masked', 'joint', 'rotation' or 'supervised' (got 'byol')",
            "duration: 'soon' is not a duration; write for example '20 epochs', '3000 steps' or '8 minutes'",
            "optim.rate: must be a number (got 'fast')",
            "channels_last: must be true or false (got 'maybe')",
            "seed: must be a whole number (got 1.5)",
            "views.scale: must be a list, such as [a, b] (got 3)",
            "views.ratio.1: is missing (got [1])",
            "data.max_damaged_share: must be 1 or less (got 1.5)",
            "fo: unknown setting",
        ):
            assert f"\n  {line}" in text

    @pytest.mark.parametrize(
        ("override", "hint"),
        [
            ("batchsize=3", "did you mean batch_size?"),
            ("encoder.nam=x", "did you mean encoder.name?"),
            ("stem_stride=1", "did you mean encoder.stem_stride?"),
            ("optim.lr=1", "optim has name, rate, rule"),
            ("zzz=1", "`--help` lists them all"),
            ("finetune={labels: 1}", "it belongs to a recipe of `ssl-ft run`"),
        ],
    )
    def test_an_unknown_key_is_answered_with_the_nearest(self, override, hint):
        assert f"{override.partition('=')[0]}: unknown setting; {hint}" in mistakes(override)

    def test_combinations(self):
        text = mistakes("batch_size=7", "objective=joint", "optim.accumulate=2", "eval_every=3 minutes")
        assert text.startswith("3 settings are wrong:") or text.count("\n") == 3
        assert "optim.accumulate=2 with objective=joint" in text
        assert "batch_size=7 must be a multiple of devices x accumulate = 2" in text
        assert "eval_every takes epochs or steps" in text
        for objective in ("simclr", "dcl", "joint"):
            assert "batch_size of 2 or more" in mistakes("batch_size=1", f"objective={objective}")
        assert pretrain("batch_size=1", "objective=masked").batch_size == 1

    def test_true_is_not_one(self):
        assert "batch_size: must be a number (got true)" in mistakes("batch_size=true", "optim.rate=yes")
        assert "optim.rate: must be a number (got true)" in mistakes("optim.rate=yes", "fo=1")

    def test_a_budget_says_what_budgets_are(self):
        with pytest.raises(UserError) as caught:
            load_settings(ProbeSettings, recipe=None, overrides=["labels=[1, 0, 2.5, few]"])
        lines = str(caught.value).splitlines()
        assert len(lines) == 4
        assert all("labels per class" in line for line in lines[1:])

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["seed=1", "seed=2"], "seed is given twice, as 'seed=1' and as 'seed=2'"),
            (["encoder=a", "encoder.name=b"], "encoder.name is given twice"),
            (["encoder={name: a}", "encoder=b"], "encoder.name is given twice"),
            (["batch_size="], "has no value"),
            (["=3"], "is not key=value"),
            (["data.=3"], "is not key=value"),
            (["data.limit=[1"], "not valid YAML"),
            (["data={{x}}"], "not valid YAML (braces or brackets stand where the name of a setting belongs"),
            (["seed=2024-02-30"], "not valid YAML ('2024-02-30' is no timestamp; a text belongs in quotes)"),
            (["encoder=null"], "encoder: is a section"),
            (["seed.x=1"], "seed: must be a whole number"),
            (["seed=2147483648"], "seed: must be less than 2147483648"),
        ],
    )
    def test_arguments(self, overrides, message):
        assert message in mistakes(*overrides)


class TestRecipes:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a: [1\n", "line 2, column 1"),
            (b"\tseed: 1\n", "line 1, column 1"),
            (b"- 1\n", "holds no settings"),
            (b"", "holds no settings"),
            (b"\xff\xfe", "not UTF-8 text (byte 0)"),
            (b"seed: 1\nseed: 2\n", "line 2, column 1: 'seed' is there twice"),
            (b"data: {path: a, path: b}\n", "'path' is there twice"),
            (b"!!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
            (b"1: 2\n", "1: is no name of a setting"),
            (b"seed: 1\ndata: {{ path }}\n", "line 2, column 8: braces or brackets stand where the name"),
            (b"? [a, b]\n: 1\n", "line 1, column 3: braces or brackets stand where the name"),
            (b"seed: 1\ntitle: 2024-02-30\n", "line 2, column 8: '2024-02-30' is no timestamp; a text belongs"),
            (b"seed: !!int few\n", "line 1, column 7: 'few' is no int"),
            (b"seed: !!bool perhaps\n", "line 1, column 7: 'perhaps' is no bool"),
            (b"seed: !!timestamp soon\n", "line 1, column 7: 'soon' is no timestamp"),
            (b"seed: " + b"[" * 3000, "it is nested too deeply"),
            (b"out: 2024\n", "out: must be a text; put it in quotes (got 2024)"),
        ],
    )
    def test_files_that_are_no_recipe(self, tmp_path, content, message):
        path = tmp_path / "r.yaml"
        path.write_bytes(content)
        assert message in mistakes(recipe=str(path))

    def test_a_recipe_that_is_not_there(self, tmp_path):
        assert "did you mean digits?" in mistakes(recipe="digit")
        # A misspelt folder must not fall back to the recipe of that name that comes along.
        assert "neither a file" in mistakes(recipe=str(tmp_path / "digits.yaml"))
        assert "is a folder" in mistakes(recipe=str(tmp_path))


@pytest.mark.parametrize("cls", [PretrainSettings, ProbeSettings, RunSettings, IndexSettings])
def test_every_setting_has_a_line_of_help(cls):
    rows = list(describe(cls))
    assert len(rows) == len({name for name, _, _ in rows})
    assert [name for name, _, text in rows if not text] == []


def test_a_stage_takes_its_section_of_a_recipe_for_the_whole_way(tmp_path):
    recipe = tmp_path / "whole.yaml"
    recipe.write_text("pretrain: {batch_size: 32}\nprobe: {draws: 3}\ntitle: Birds\n")
    assert load_settings(PretrainSettings, recipe=str(recipe), overrides=["seed=4"]).batch_size == 32
    assert load_settings(ProbeSettings, recipe=str(recipe), overrides=[]).draws == 3
    recipe.write_text("pretrain: {batch_size: 32}\nbatchsize: 3\n")
    with pytest.raises(UserError, match="unknown setting batchsize"):
        load_settings(PretrainSettings, recipe=str(recipe), overrides=[])


class TestDefaultsOfASection:
    def test_one_key_leaves_the_others_as_this_stage_has_them(self):
        words = ["optim.weight_decay=0.1", "views.horizontal_flip=0"]
        settings = load_settings(FinetuneSettings, recipe=None, overrides=words)
        assert (settings.optim.rate, settings.optim.weight_decay) == (3e-3, 0.1)
        assert settings.views.recipe == "gentle"
        assert (
            load_settings(FinetuneSettings, recipe=None, overrides=["optim=muon", "optim.rate=1e-2"]).optim.rate == 1e-2
        )

    def test_help_tells_the_defaults_that_hold(self):
        told = {name: default for name, default, _ in describe(FinetuneSettings)}
        assert (told["optim.rate"], told["views.recipe"]) == ("0.003", "gentle")
