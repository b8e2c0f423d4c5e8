"""Recipes: functions that return a RunConfig, or a StagedRun. Adding one to the package is a function and its line below."""

from functools import partial
from pathlib import Path

from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.overrides import nearest
from imp_ds.recipes import debug, digits, imp, motion, real_small, routers, talk, talk_debug, talk_real, uni_moe
from imp_ds.recipes.files import SUFFIXES, read_run_file
from imp_ds.recipes.outside import ALLOWED, call, find_function
from imp_ds.stages import StagedRun

RECIPES = {
    function.__name__: function
    for function in (
        digits.digits,
        real_small.real_small,
        motion.motion,
        talk.talk,
        talk.talk_joint,
        imp.imp_s,
        imp.imp_b,
        imp.imp_moe_b,
        imp.imp_moe_l,
        talk_real.talk_real,
        uni_moe.uni_moe_7b_4e,
        uni_moe.uni_moe_7b_8e,
        digits.digits_debug,
        real_small.real_small_debug,
        debug.imp_s_debug,
        debug.imp_b_debug,
        debug.imp_moe_b_debug,
        debug.imp_moe_l_debug,
        talk_real.talk_real_debug,
        talk_debug.talk_debug,
        uni_moe.uni_moe_7b_4e_debug,
        uni_moe.uni_moe_7b_8e_debug,
    )
} | {f"routers_{router}": partial(routers.routers, router) for router in routers.ROUTERS}


def get_recipe(recipe: str) -> RunConfig | StagedRun:
    """The run or the stages of a recipe: a name of RECIPES; FILE.py, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, which is
    executed; or a file .json, .yaml or .yml of the shape of run_config.json, or with `name` and `stages`. Raises UserError, with
    file and line, for what is none."""
    if recipe in RECIPES:
        found = RECIPES[recipe]()
        # recipes share views and sources between their tasks; through a dump, each task gets its own
        return type(found).model_validate(found.model_dump())
    if recipe.endswith(SUFFIXES):
        return read_run_file(Path(recipe))
    if (found := find_function(recipe)) is not None:
        return call(*found)
    fix = None
    for path in (f"{recipe}.py", f"{recipe}/{FILE_NAME}"):
        if Path(path).is_file():
            fix = f"write {path}"
    raise UserError("unknown recipe", got=recipe, allowed=f"{nearest(recipe, RECIPES)}; or {ALLOWED}", fix=fix)
