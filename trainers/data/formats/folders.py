"""Class folders of one's own: `[<domain>/][<split>/]<class>/*`."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.data.formats.image_files import class_images, contents, folders_in
from trainers.data.formats.index import (
    SPLIT_WORDS,
    SPLITS,
    Example,
    Finding,
    Index,
    LayoutOptions,
    Split,
    check_distinct_in_prompts,
    check_options,
    chosen_domains,
    domain_name,
    join,
    read_class_names_file,
)
from trainers.data.formats.readers import FileSource
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean, listed


@dataclass(frozen=True)
class _Tree:
    """Class folders of one domain and split."""

    domain: str
    split: Split
    path: str  # folder that they lie in, relative to the source
    images: dict[str, list[str]]  # paths by class, none of them empty
    findings: list[Finding]


def read_folders(source: Store, options: LayoutOptions) -> list[Index]:
    """Index class folders; domain folders are looked for only with `--id` or `--domains`.

    The classes are those of all domains and splits together, sorted, or `--class-names` in its own
    order. Images outside of split folders belong to `--split`, by default to train.

    Raises:
        ConfigError: no class folders; folders among them that look like domains or splits; a
            folder that `--class-names` lacks or, without it, that `train` lacks, with `--id` that
            of the ID domain; two classes that a prompt could not tell apart.
    """
    check_options(options, "folders", "domain", "domains", "id", "ood", "split", "class_names")
    if options.domain and (options.domains or options.id):
        problem = f"cannot be given together with {'--id' if options.id else '--domains'}"
        raise ConfigError(problem, key="--domain", value=options.domain, source=source.url)
    if options.id or options.ood:
        domains = {name: name for name in _with_roles(source, options)}
    elif options.domains:
        chosen = chosen_domains(source, folders_in(source), options.domains)
        domains = {name: name for name in chosen}
    else:
        domains = {"": domain_name(source, options)}
    trees = []
    for path, domain in domains.items():
        splits = _split_folders(source, path) or {options.split or "train": path}
        trees += [_tree(source, domain, s, splits[s]) for s in SPLITS if s in splits]

    there = sorted({name for tree in trees for name in tree.images})
    if options.class_names is None:
        check_distinct_in_prompts(there, source.url)
        # A folder of unsorted images for evaluation would otherwise become a class.
        for tree in trees:
            trained = options.id or tree.domain
            of_train = [t.images for t in trees if (t.domain, t.split) == (trained, "train")]
            unknown = [name for name in tree.images if of_train and name not in of_train[0]]
            if unknown:
                where = f"the split train of {trained!r}"
                raise ConfigError(
                    f"the folders {listed(unknown)} are not classes of {where}",
                    hint="sort their images by class, or list all classes in --class-names",
                    source=join(source.url, tree.path),
                )
        class_names = tuple(there)
    else:
        class_names = read_class_names_file(options.class_names)
        check_distinct_in_prompts(class_names, options.class_names)
        for name in there:
            if name not in class_names:
                raise ConfigError(
                    f"lacks the class folder {name!r}{did_you_mean(name, class_names)}",
                    key="--class-names",
                    value=options.class_names,
                    source=source.url,
                )
    return [_index(tree, class_names) for tree in trees]


def _with_roles(source: Store, options: LayoutOptions) -> list[str]:
    """The domain folders that `--id` and `--ood` name, in this order; without `--ood`, all."""
    there = folders_in(source)
    if options.domains:
        hint = "name the domains in --id and --ood"
        given = ",".join(options.domains)
        raise ConfigError("cannot be used with --id", key="--domains", value=given, hint=hint)
    if options.id is None:
        raise ConfigError("is needed beside --ood", key="--id", hint="the domain to fine-tune on")
    if options.id in options.ood:
        problem = "is the domain of --id"
        raise ConfigError(problem, key="--ood", value=options.id, source=source.url)
    for key, name in [("--id", options.id), *(("--ood", name) for name in options.ood)]:
        if name not in there:
            problem = f"no such domain folder{did_you_mean(name, there)}"
            raise ConfigError(problem, key=key, value=name, source=source.url)
    others = options.ood or [name for name in there if name != options.id]
    return [options.id, *others]


def _split_folders(source: Store, path: str) -> dict[Split, str]:
    """Split folders in a folder; none if its folders are classes, of which one may be `train`."""
    names = folders_in(source, path)
    found: dict[Split, str] = {}
    for name in names:
        split = SPLIT_WORDS.get(name.lower())
        if split in found:
            problem = f"{found[split]} and {join(path, name)} are both the split {split!r}"
            raise ConfigError(problem, source=source.url)
        if split is not None:
            found[split] = join(path, name)
    spelled = {folder.rpartition("/")[2] for folder in found.values()}
    others = [
        name
        for name in names
        if found and name not in spelled and contents(source, join(path, name)).images
    ]
    if not others:
        return found
    for folder in found.values():
        if folders_in(source, folder) and not contents(source, folder, recursive=False).images:
            problem = (
                f"{folder!r} is the folder of a split, and there are images in {listed(others)}"
            )
            raise ConfigError(f"{problem} beside it", source=source.url)
    return {}


def _tree(source: Store, domain: str, split: Split, path: str) -> _Tree:
    """Read the class folders in a folder."""
    found, findings = class_images(source, path, folders_in(source, path))
    images = {name: paths for name, paths in found.items() if paths}
    where = join(source.url, path)
    if not images:
        stray = len(contents(source, path, recursive=False).images)
        there = f"{stray:,} image(s) outside class folders" if stray else listed(found)
        others = [f.detail for f in findings if f.kind == "other files"]
        problem = f"no class folders with images; found {'; '.join([there, *others])}"
        hint = "convert them to JPEG or PNG" if others else f"images belong in {where}/<class>/"
        raise ConfigError(problem, hint=hint, source=where)
    # Domains or splits taken for classes would train without an error, on the wrong labels.
    depth = path.count("/") + (2 if path else 1)
    below = [{image.split("/")[depth:][0] for image in paths} for paths in images.values()]
    common = set.intersection(*below) if len(below) > 1 else set()
    are_files = any(image.count("/") == depth for paths in images.values() for image in paths)
    if len(common) > 1 and not are_files:
        raise ConfigError(
            f"the folders {listed(images)} look like domains, since each of them holds the "
            f"folders {listed(sorted(common))}",
            hint="--id DOMAIN names the one to fine-tune on; --domains all takes all for domains",
            source=where,
        )
    findings += [
        Finding(join(path, name), "empty folder", "no images, so no class")
        for name, paths in found.items()
        if not paths
    ]
    return _Tree(domain, split, path, images, findings)


def _index(tree: _Tree, class_names: tuple[str, ...]) -> Index:
    examples = tuple(
        Example(FileSource(path), path, label)
        for label, name in enumerate(class_names)
        for path in tree.images.get(name, ())
    )
    missing = [
        Finding(join(tree.path, name), "missing class", f"no images in {tree.domain}, {tree.split}")
        for name in class_names
        if name not in tree.images
    ]
    findings = (*tree.findings, *missing)
    return Index(tree.domain, tree.split, class_names, examples, findings, {"layout": "folders"})
