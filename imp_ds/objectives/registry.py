"""The kinds of objective that there are, by name: from this package, and from code that registers one.

`@register` on a subclass of `ObjectiveRecord` makes its kind known to recipes, models and the trainer.
"""

import inspect
from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny, ValidationError

from imp_ds.errors import UserError
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives.objective import Objective, ObjectiveRecord
from imp_ds.overrides import nearest

OBJECTIVES = ObjectiveRecord.kinds
_SAID = ("sides", "spaces")  # beside its fields, what a spec has of its record


def register(record: type[ObjectiveRecord]) -> type[ObjectiveRecord]:
    """Make a kind of objective known, by the default of its field `kind`.

    Raises UserError when it leaves open what the trainer asks of each objective, and for a kind that is there already.
    """
    kind = record.model_fields["kind"].default
    if inspect.isabstract(record):
        missing = ", ".join(sorted(record.__abstractmethods__))
        raise UserError(f"the objective {record.__name__} does not define all parts", got=f"no {missing}", fix="define them")
    if not isinstance(kind, str):
        fix = 'kind: Literal["name"] = Field("name", description="which objective this is")'
        raise UserError(f"the objective {record.__name__} has no kind", got=repr(kind), fix=fix)
    if OBJECTIVES.get(kind, record).__qualname__ != record.__qualname__:
        raise UserError(f"two objectives of one kind: {kind}", got=f"{record.__name__} and {OBJECTIVES[kind].__name__}")
    OBJECTIVES[kind] = record
    return record


def objective_record(value) -> ObjectiveRecord:
    """A record from a dictionary whose "kind" names it, or the record itself. Raises ValueError for an unknown kind, and
    pydantic's ValidationError."""
    if isinstance(value, ObjectiveRecord):
        return value
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in OBJECTIVES:
        allowed = nearest(kind, OBJECTIVES) if isinstance(kind, str) else ", ".join(OBJECTIVES)
        imported = "or what a module registers that the recipe or --import MODULE imports"
        raise ValueError(f"unknown kind of objective: {kind!r}; allowed: {allowed}, {imported}")
    try:
        return OBJECTIVES[kind].model_validate(value)
    except ValidationError as error:  # the place of a mistake has the kind in it, as in any union of records
        lines = [
            {"type": line["type"], "loc": (kind, *line["loc"]), "input": line["input"], "ctx": line.get("ctx", {})}
            for line in error.errors()
        ]
        raise ValidationError.from_exception_data(error.title, lines) from None


AnyObjective = Annotated[SerializeAsAny[ObjectiveRecord], BeforeValidator(objective_record)]


def model_spec(record: ObjectiveRecord, tokenizer=None, task: str = "") -> dict:
    """An objective as ImpConfig has it, as JSON: the record, its sides, the common spaces that it trains, and what a model knows
    of it by the tokenizer.

    So a model's configuration holds all that its encoder needs, whether the code of the objective is there or not.
    """
    sides = record.sides()._asdict()
    sides = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in sides.items()}
    known = {} if tokenizer is None else record.known(tokenizer, task)
    spaces = [list(pair) for pair in record.common_spaces()]
    return {**record.model_dump(mode="json"), "sides": sides, "spaces": spaces, **known}


def task_entry(objectives: list, reduction: str = "sum", tokenizer=None, task: str = "") -> dict:
    """A task's entry of ImpConfig.objectives, from its records or dictionaries of them."""
    specs = [model_spec(objective_record(objective), tokenizer, task) for objective in objectives]
    return {"objectives": specs, "reduction": reduction}


def split_spec(spec: dict) -> tuple[ObjectiveRecord, dict]:
    """The record of a spec, and what else a model knows. Raises UserError for a kind that nobody registered."""
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in OBJECTIVES:
        raise UserError(
            "unknown kind of objective", got=kind, allowed=", ".join(OBJECTIVES),
            fix="import the module that registers it, then load the model",
        )  # fmt: skip
    fields = OBJECTIVES[kind].model_fields
    record = objective_record({name: value for name, value in spec.items() if name in fields})
    return record, {name: value for name, value in spec.items() if name not in fields and name not in _SAID}


def build_objective(spec: dict, config: ImpConfig) -> Objective:
    """The module of a spec for a model of `config`. Raises UserError as `split_spec`."""
    record, known = split_spec(spec)
    return record.build(config, known)
