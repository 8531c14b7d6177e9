"""What a reader found wrong in a data set: how often, and the first few places."""

from collections.abc import Iterable
from dataclasses import dataclass, field

EXAMPLES = 3


@dataclass
class Report:
    """Problems counted by kind, with the first few examples of each ('file: object: value')."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        """Counts one problem of a kind."""
        self.add_many(kind, 1, [example])

    def add_many(self, kind: str, count: int, examples: Iterable[str]) -> None:
        """Counts several problems of a kind; only the first examples are kept."""
        if not count:
            return
        self.counts[kind] = self.counts.get(kind, 0) + count
        kept = self.examples.setdefault(kind, [])
        for example in examples:
            if len(kept) >= EXAMPLES:
                break
            kept.append(example)

    @property
    def total(self) -> int:
        """Problems of all kinds."""
        return sum(self.counts.values())

    def format(self) -> str:
        """One line a kind, with its count and first examples."""
        return "\n".join(self._line(kind) for kind in self.counts)

    def _line(self, kind: str) -> str:
        count, shown = self.counts[kind], self.examples[kind]
        more = [f"and {count - len(shown)} more"] if count > len(shown) else []
        return f"{kind} ({count}): " + " | ".join(shown + more)
