"""A question of a task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A prompt and its answers: the choices, or the one right answer alone."""

    prompt: str
    answers: tuple[str, ...]
    """Each begins with what stands between it and the prompt."""
    right: int
    """Index of the right answer."""

    @property
    def text(self) -> str:
        """The prompt with the right answer."""
        return self.prompt + self.answers[self.right]
