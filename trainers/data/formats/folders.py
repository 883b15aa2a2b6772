"""Class folders: `<class>/*`, below folders of splits or domains where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainers.data.formats.class_folders import (
    contents,
    folders_in,
    image_files,
    images_by_class,
)
from trainers.data.formats.class_names import read_class_names_file, refuse_names_spoken_alike
from trainers.data.formats.index import (
    Example,
    Finding,
    LayoutOptions,
    Split,
    SplitListing,
    beside,
    join,
    only,
)
from trainers.data.formats.naming import SPLIT_WORDS, SPLITS, chosen_domains, domain_of
from trainers.data.formats.readers import FileSource
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class _Tree:
    """The class folders of one domain and split."""

    domain: str
    split: Split
    path: str
    """Of the folder they lie in, relative to the source."""
    images: dict[str, list[str]]
    """Paths by class; none of these is empty."""
    findings: tuple[Finding, ...]


def folders(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """List `<source>/[<domain>/][<split>/]<class>/**`; domains only where `--domains` is given.

    Classes are those of all domains and splits together, sorted, or in the order of
    `--class-names`. Images that no folder assigns to a split are `--split`'s, or else `train`.

    Raises:
        ConfigError: no class folders; folders that look like domains or splits among them; a
            folder that `--class-names` lacks or, without it, that `train` lacks; two classes that a
            prompt could not tell apart.
    """
    only(options, "folders", "domain", "domains", "split", "class_names")
    trees = [
        tree
        for path, domain in _domains(source, options).items()
        for tree in _trees_of_domain(source, path, domain, options.split or "train")
    ]
    class_names = _class_names(source, options, trees)
    return [_listing(tree, class_names) for tree in trees]


def _domains(source: Store, options: LayoutOptions) -> dict[str, str]:
    """Folders relative to the source, and the names of the domains that they are."""
    if not options.domains:
        return {"": domain_of(source, options)}
    if options.domain:
        raise ConfigError(
            f"{source.url}: --domain = {options.domain!r} names one domain, --domains names the "
            "folders of several; give one of the two"
        )
    names = chosen_domains(source, folders_in(source), options.domains)
    return {name: name for name in names}


def _trees_of_domain(source: Store, path: str, domain: str, split: Split) -> list[_Tree]:
    by_split = _split_folders(source, path)
    if not by_split:
        return [_tree(source, path, domain, split)]
    return [_tree(source, by_split[s], domain, s) for s in SPLITS if s in by_split]


def _split_folders(source: Store, path: str) -> dict[Split, str]:
    """The folders of splits in a folder; none if what lies there are classes.

    A class may be called `train`, as one of DomainNet is, so one such folder proves nothing.
    """
    names = folders_in(source, path)
    spelled = [name for name in names if name.lower() in SPLIT_WORDS]
    others = [
        name
        for name in names
        if spelled and name not in spelled and image_files(source, join(path, name))
    ]
    if others:
        parents = [name for name in spelled if _holds_class_folders(source, join(path, name))]
        if parents:
            raise ConfigError(
                f"{source.at(path).url if path else source.url}: {parents[0]!r} is the folder of a "
                f"split with class folders in it, and beside it lie images in {beside(others)}"
            )
        return {}
    found: dict[Split, str] = {}
    for name in spelled:
        split = SPLIT_WORDS[name.lower()]
        if split in found:
            raise ConfigError(
                f"{source.url}: {found[split]} and {join(path, name)} are both the split {split!r}"
            )
        found[split] = join(path, name)
    return found


def _holds_class_folders(source: Store, path: str) -> bool:
    return not _images_directly_in(source, path) and bool(folders_in(source, path))


def _tree(source: Store, path: str, domain: str, split: Split) -> _Tree:
    found, findings = images_by_class(source, path, folders_in(source, path))
    images = {name: paths for name, paths in found.items() if paths}
    where = source.at(path).url if path else source.url
    if not images:
        stray = len(_images_directly_in(source, path))
        there = f"{stray} images without a class folder" if stray else beside(list(found))
        raise ConfigError(f"{where}: no class folders with images; there is {there}")
    _refuse_domains_as_classes(where, path, images)
    findings += [
        Finding(join(path, name), "empty folder", "no images, so no class")
        for name, paths in found.items()
        if not paths
    ]
    return _Tree(domain, split, path, images, tuple(findings))


def _images_directly_in(source: Store, path: str) -> list[str]:
    return contents(source, path, recursive=False).images


def _refuse_domains_as_classes(where: str, path: str, images: dict[str, list[str]]) -> None:
    """Domains or splits taken for classes would train without complaint, on the wrong labels."""
    below: list[set[str]] = []
    for name, paths in images.items():
        start = len(join(path, name)) + 1
        if any("/" not in image[start:] for image in paths):
            return  # a class of its own
        below.append({image[start:].partition("/")[0] for image in paths})
    common = set.intersection(*below) if len(below) > 1 else set()
    if len(common) > 1:
        raise ConfigError(
            f"{where}: the folders {beside(list(images))} look like domains, for each of them "
            f"holds the folders {beside(sorted(common))}; say --domains all if they are"
        )


def _class_names(source: Store, options: LayoutOptions, trees: Sequence[_Tree]) -> tuple[str, ...]:
    there = sorted({name for tree in trees for name in tree.images})
    if options.class_names is None:
        _refuse_classes_without_training(source, trees)
        refuse_names_spoken_alike(there, source.url)
        return tuple(there)
    given = read_class_names_file(options.class_names)
    refuse_names_spoken_alike(given, options.class_names)
    for name in there:
        if name not in given:
            raise ConfigError(
                f"{source.url}: the class folder {name!r} is not in --class-names = "
                f"{options.class_names!r}{did_you_mean(name, given)}"
            )
    return given


def _refuse_classes_without_training(source: Store, trees: Sequence[_Tree]) -> None:
    """Images for evaluation often lie unsorted, and their folder would become a class."""
    trained = {tree.domain: tree.images for tree in trees if tree.split == "train"}
    for tree in trees:
        known = trained.get(tree.domain, tree.images)
        unknown = [name for name in tree.images if name not in known]
        if unknown:
            raise ConfigError(
                f"{source.at(tree.path).url}: the folders {beside(unknown)} are no classes of the "
                f"split train ({beside(list(known), most=3)}); sort the images into folders of "
                "these names, give the folder of train alone, or name all classes in --class-names"
            )


def _listing(tree: _Tree, class_names: tuple[str, ...]) -> SplitListing:
    examples = tuple(
        Example(FileSource(path), path, label)
        for label, name in enumerate(class_names)
        for path in tree.images.get(name, ())
    )
    missing = tuple(
        Finding(join(tree.path, name), "missing class", f"no images in {tree.domain}, {tree.split}")
        for name in class_names
        if name not in tree.images
    )
    return SplitListing(
        tree.domain,
        tree.split,
        class_names,
        examples,
        tree.findings + missing,
        {"layout": "folders"},
    )
