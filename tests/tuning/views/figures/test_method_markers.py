from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tests.tuning import fakes
from tuning.views.figures.method_markers import draw_methods, method_legend

SEARCH = fakes.search_record(Path("run"))


def marks(trials):
    axes = Figure().add_subplot()
    draw_methods(axes, SEARCH, trials)
    return [mark for mark in axes.collections if isinstance(mark, PathCollection)]


def looks(trials):
    found = {}
    for handle in method_legend(SEARCH, trials):
        assert isinstance(handle, Line2D)
        look = handle.get_color(), handle.get_marker(), handle.get_markerfacecolor()
        found[str(handle.get_label())] = look
    return found


def many_methods(number):
    return [fakes.trial(i, params={"method.name": f"method_{i}"}) for i in range(number)]


def test_no_two_methods_look_alike_and_neighbours_differ_in_colour_and_marker():
    found = list(looks(many_methods(60)).values())[:60]
    assert len(set(found)) == 60
    for one, other in pairwise(found):
        assert one[0] != other[0]
        assert one[1] != other[1]


def test_the_legend_names_the_methods_best_first_and_what_is_hollow():
    trials = [record for record in fakes.compared_methods() if record.kind == "trial"]
    assert list(looks(trials)) == ["carot", "lipsum_ft", "kd", "ft", "finished"]
    trials[0] = replace(trials[0], outcome="pruned")
    found = looks(trials)
    assert list(found)[-2:] == ["finished", "not finished"]
    assert found["not finished"][2] == "none" != found["finished"][2]


def test_a_method_keeps_its_look_when_further_trials_come():
    trials = [record for record in fakes.compared_methods(3) if record.kind == "trial"]
    early, late = looks(trials[:4]), looks(trials)
    assert early == late


def test_every_trial_is_a_mark_where_it_stands_and_the_best_of_each_method_is_large():
    trials = [record for record in fakes.compared_methods() if record.kind == "trial"]
    drawn = marks(trials)
    places = {tuple(map(float, mark.get_offsets()[0])): mark.get_sizes()[0] for mark in drawn}
    assert places.keys() == {
        (record.metrics["id_val/acc"], record.metrics["ood_val/mean_acc"]) for record in trials
    }
    large = {place for place, size in places.items() if size == max(places.values())}
    assert large == {
        (record.metrics["id_val/acc"], record.metrics["ood_val/mean_acc"]) for record in trials[4:]
    }
