"""Recipes: functions that return a RunConfig. Adding one is a function and its line below."""

from functools import partial

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.overrides import nearest
from imp_ds.recipes import debug, digits, imp, real_small, routers

RECIPES = {
    function.__name__: function
    for function in (
        digits.digits,
        real_small.real_small,
        imp.imp_s,
        imp.imp_b,
        imp.imp_moe_b,
        imp.imp_moe_l,
        digits.digits_debug,
        real_small.real_small_debug,
        debug.imp_s_debug,
        debug.imp_b_debug,
        debug.imp_moe_b_debug,
        debug.imp_moe_l_debug,
    )
} | {f"routers_{router}": partial(routers.routers, router) for router in routers.ROUTERS}


def get_recipe(name: str) -> RunConfig:
    """The RunConfig of the recipe of that name. Raises UserError, with a suggestion, for an unknown one."""
    if name not in RECIPES:
        raise UserError("unknown recipe", got=name, allowed=nearest(name, RECIPES))
    # recipes share views and sources between their tasks; through a dump, each task gets its own
    return RunConfig.model_validate(RECIPES[name]().model_dump())
