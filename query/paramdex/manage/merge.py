"""``merge``: the models of several atlases in one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paramdex_schemas import AtlasError, QueryError, atlas_files
from paramdex_schemas.arguments import given_path
from paramdex_schemas.commit import commit, copied, sweep
from paramdex_schemas.contents import Contents, Index, Relation, read_contents
from paramdex_schemas.place import check_writable, find_place, staging_folder
from paramdex_schemas.progress import Progress


def merge(sources: Sequence[str | Path], output: str | Path, progress: Progress | None = None) -> Path:
    """Copy the models of some atlases, and what relates them, into the atlas at ``output``, which is made where it is
    not there. Every file is compared with its SHA-256 on the way. A model that is there already is left as it is.

    Raises AtlasError for a source that is no atlas or is damaged, or an output that cannot be written; QueryError where
    two models have one name.
    """
    progress = progress or Progress()
    path = given_path(output, "an atlas", AtlasError)
    atlases = [read_contents(find_place(given_path(each, "an atlas", AtlasError))) for each in sources]
    place = find_place(path)
    check_writable(place)
    with staging_folder(place, path) as staging:
        contents = read_contents(place) if place.exists() else Contents(place)
        sweep(contents)
        work = staging / ".change"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        plan = _Plan.of(contents, atlases)
        with progress.step(f"merging into {path}", plan.n_bytes) as advance:
            for folder, target, files in plan.copies(work):
                target.mkdir(parents=True, exist_ok=True)
                atlas, within = folder
                for name, recorded in files.items():
                    copied(atlas, f"{within.as_posix()}/{name}", recorded, target / name)
                    advance(recorded[0])
                manifest = (atlas / within / atlas_files.MANIFEST).read_bytes()
                (target / atlas_files.MANIFEST).write_bytes(manifest)
        commit(plan.found, work)
        shutil.rmtree(work, ignore_errors=True)
    return path


@dataclass(frozen=True)
class _Plan:
    """What an atlas will hold, and where what is new is: by the name of the model, and by the uids of a relation."""

    found: Contents
    models: dict[str, Contents]
    relations: dict[tuple[str, str], tuple[Contents, Relation]]

    @classmethod
    def of(cls, contents: Contents, atlases: Sequence[Contents]) -> _Plan:
        """Raises QueryError where two models have one name."""
        found, models = contents, dict[str, Contents]()
        relations: dict[tuple[str, str], tuple[Contents, Relation]] = {}
        for other in atlases:
            for name, manifest in other.manifests.items():
                known = found.manifests.get(name)
                if known is not None and known.uid != manifest.uid:
                    raise QueryError(
                        f"{other.atlas} and another have a model {name} each; "
                        f"give one another name first: paramdex rename {other.atlas} {name} NEWNAME"
                    )
                if manifest.uid in found.names:
                    continue
                index = Index({**found.index.models, name: found.free_folder(name)})
                found = replace(found, index=index, manifests={**found.manifests, name: manifest})
                models[name] = other
        names = found.names
        for other in atlases:
            for a, b in other.related:
                if a in names and b in names and not {(a, b), (b, a)} & {*found.related, *relations}:
                    about = other.about(other.names[a], other.names[b])
                    if about is not None:
                        relations[a, b] = other, about
        return cls(replace(found, related=(*found.related, *relations)), models, relations)

    @property
    def n_bytes(self) -> int:
        every = [self.found.manifests[name].files for name in self.models]
        every += [about.files for _, about in self.relations.values()]
        return sum(n_bytes for files in every for n_bytes, _ in files.values())

    def copies(self, work: Path) -> Iterator[tuple[tuple[Path, Path], Path, dict[str, tuple[int, str]]]]:
        """(atlas, folder within it), the folder to copy it to, and its files."""
        for name, other in self.models.items():
            target = atlas_files.model_folder(work, self.found.index.models[name])
            yield (other.atlas, other.folder(name)), target, dict(self.found.manifests[name].files)
        for (a, b), (other, about) in self.relations.items():
            folder = atlas_files.relation_folder(Path(), a, b)
            yield (other.atlas, folder), atlas_files.relation_folder(work, a, b), dict(about.files)
