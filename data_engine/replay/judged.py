"""The verdicts of people on a sample of the masks, followed through replays: how good is what would stay?

They speak of masks that the run made. Of masks that only a replay makes nobody has said anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from data_engine.errors import DatasetError
from data_engine.human_audit.answers import Answer, AnswerBook, last_answers
from data_engine.human_audit.estimators import Estimate, Stratum, clustered, stratified
from data_engine.human_audit.sample import Sample, audit_names, read_sample


class Judged:
    """A sample with the answers to it, and which of its masks stay under each label."""

    def __init__(self, sample: Sample, answers: Iterable[Answer]) -> None:
        """answers: by time; the last one of each person counts, and unsure ones decide nothing."""
        self._sample = sample
        votes: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        for given in last_answers(answers).values():
            for key, answer in given.items():
                votes[key][answer.verdict] += 1
        self._shares: list[float | None] = []
        self._positions: defaultdict[str, list[int]] = defaultdict(list)
        for position, key in enumerate(sample.keys):
            decided = votes[key]["accept"] + votes[key]["reject"]
            self._shares.append(votes[key]["accept"] / decided if decided else None)
            self._positions[key[0]].append(position)
        self._seen: set[str] = set()
        self._stay: defaultdict[str, set[int]] = defaultdict(set)

    @classmethod
    def read(cls, root: str, name: str, fingerprint: str) -> Judged:
        """The audit of this name. fingerprint: of the dataset's plan. Raises DatasetError where there is none."""
        sample = read_sample(root, name)
        if sample is None:
            there = ", ".join(audit_names(root)) or "none"
            raise DatasetError(f"{root} has no audit {name!r} (there are: {there}); draw one with audit-sample")
        if sample.facts.population.fingerprint != fingerprint:
            raise DatasetError(f"the audit {name!r} at {root} is of another dataset")
        return cls(sample, AnswerBook(root, name).read())

    def add(self, label: str, image_id: str, stays: np.ndarray) -> None:
        """Of one image: which of its masks stay, bool by mask_id."""
        self._seen.add(image_id)
        for position in self._positions.get(image_id, ()):
            if stays[self._sample.keys[position][1]]:
                self._stay[label].add(position)

    def estimate(self, label: str) -> Estimate:
        """The share of accepted masks among those of the run that stay.

        Only images that were replayed speak: a random part of the sample, since a hash of their ids chose them.
        """
        known = [position for image in sorted(self._seen) for position in self._positions.get(image, ())]
        stay = self._stay[label]
        if self._sample.facts.design.unit == "images":
            return self._of_images(known, stay)
        bins = self._sample.masks.select(["stability_bin", "iou_bin"]).to_pylist()
        strata = []
        for count in self._sample.facts.strata:
            here = [
                position
                for position in known
                if count.stability_bin in (None, bins[position]["stability_bin"])
                and count.iou_bin in (None, bins[position]["iou_bin"])
            ]
            staying = [position for position in here if position in stay]
            shares = [share for share in map(self._shares.__getitem__, staying) if share is not None]
            if staying:
                population = round(count.population * len(staying) / len(here))
                strata.append(Stratum(population=population, decided=len(shares), accepted=sum(shares)))
        return stratified(strata)

    def _of_images(self, known: list[int], stay: set[int]) -> Estimate:
        accepted: defaultdict[str, float] = defaultdict(float)
        decided: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for position in known:
            if position in stay:
                image, share = self._sample.keys[position][0], self._shares[position]
                sizes[image] += 1
                decided[image] += share is not None
                accepted[image] += share or 0.0
        population = self._sample.facts.population
        staying = round(population.masks * len(stay & set(known)) / max(len(known), 1))
        return clustered(
            [accepted[image] for image in sizes],
            [decided[image] for image in sizes],
            list(sizes.values()),
            population.images_with_masks,
            staying,
        )
