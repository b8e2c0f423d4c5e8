"""A model seen by another recipe: which heads count, and classes that another source counts in another order."""

import torch

from helpers.animals import SOURCE, task
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.evaluation.other_recipe import seen_by
from imp_ds.evaluation.task_heads import labels_of_head
from imp_ds.objectives import Classification
from imp_ds.tasks import Source


def run(tasks, **data) -> RunConfig:
    return RunConfig(name="own", tasks=tasks, data=DataSettings(**data), train=TrainSettings(steps=1))


def test_heads_count_where_the_recipe_has_the_task_with_the_same_classes():
    animal, elsewhere = task(), Source(path="elsewhere", vision="jpg", label="cls")
    plant = animal.model_copy(update={"name": "plant"})
    third = animal.model_copy(update={"name": "third"})
    four = plant.model_copy(update={"objectives": [Classification(modality="vision", num_classes=4)]})
    model = run([animal, plant, third], root="here", vocab_size=99)
    recipe = run([four, animal.model_copy(update={"source": elsewhere}), third.model_copy(update={"name": "new"})], root="there")
    seen, measured, notes = seen_by(model, recipe)
    assert measured == ["animal"] and [one.name for one in seen.tasks] == ["animal", "plant", "third"]
    assert seen.task("animal").source == elsewhere and seen.task("plant").source == SOURCE
    assert (seen.data.root, seen.data.vocab_size) == ("there", 99)  # what the model reads text by stays its own
    assert notes == ["task plant: its head is left out, with 3 classes of vision; the recipe's has 4 classes of vision"]


def test_labels_follow_the_names_of_the_classes():
    label_R = torch.tensor([0, 1, 2, -1])
    # the source's cow, ant, dog are the head's 2, none, 0
    assert labels_of_head(label_R, ["cow", "ant", "dog"], ["dog", "cat", "cow"]).tolist() == [2, -1, 0, -1]
    # no name in common, or none at all: the numbers are the same
    for names in (["n1", "n2", "n3"], None):
        assert labels_of_head(label_R, names, ["dog", "cat", "cow"]).tolist() == [0, 1, 2, -1]


def test_a_number_of_classes_that_the_recipe_leaves_to_its_data_fits_any_head():
    """The labels follow the names then."""
    own = task()
    uncounted = own.model_copy(update={"objectives": [Classification(modality="vision")]})
    assert seen_by(run([own]), run([uncounted]))[1:] == (["animal"], [])
